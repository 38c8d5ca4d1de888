//! OpenIM's operation id: of the call that a callback tells of. It is chosen by whoever called OpenIM,
//! and several callbacks share one. It is for finding lines in logs, and for telling which
//! notification and which callback are of one change.

use poem::Request;
use poem::http::{HeaderName, HeaderValue};

/// The header of a request, also an answer's.
pub(super) const HEADER: HeaderName = HeaderName::from_static("operationid");
const MAX_CHARS: usize = 128;

/// That of a request, where it can be repeated.
pub(super) fn of(request: &Request) -> Option<&HeaderValue> {
    let value = request.headers().get(HEADER);
    value.filter(|value| is_usable(value.as_bytes()))
}

/// Visible ASCII only: it goes into a log line and a header.
pub(super) fn is_usable(id: &[u8]) -> bool {
    (1..=MAX_CHARS).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// The same as text, which it is.
pub(super) fn text_of(request: &Request) -> Option<&str> {
    of(request).and_then(|value| value.to_str().ok())
}
