//! The way of a request in: connection, middleware, keys, memory, and the operation of a callback.
//!
//! The operation id of OpenIM is here too. The caller of OpenIM's API chooses it, and several
//! callbacks share one. It finds lines in logs, and it tells which notification and which callback
//! belong to one change.

pub(super) mod auth;
pub(super) mod connection;
pub(super) mod memory;
pub(super) mod middleware;
mod rejected;
pub(super) mod routing;

use poem::Request;
use poem::http::{HeaderName, HeaderValue};

/// Header of requests and answers with the operation id.
const OPERATION_ID: HeaderName = HeaderName::from_static("operationid");
const MAX_OPERATION_ID_CHARS: usize = 128;

/// The operation id of a request, if a log line and a header can repeat it.
fn operation_id_header(request: &Request) -> Option<&HeaderValue> {
    let value = request.headers().get(OPERATION_ID);
    value.filter(|value| is_usable_operation_id(value.as_bytes()))
}

/// The operation id of a request as text.
pub(super) fn operation_id(request: &Request) -> Option<&str> {
    operation_id_header(request).and_then(|value| value.to_str().ok())
}

/// True for visible ASCII of limited length.
pub(super) fn is_usable_operation_id(id: &[u8]) -> bool {
    (1..=MAX_OPERATION_ID_CHARS).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}
