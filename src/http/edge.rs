//! What surrounds every request: the path made plain, the span, errors and panics rendered for
//! whoever asked, and the one log line.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use poem::http::header::{ALLOW, RETRY_AFTER};
use poem::http::uri::PathAndQuery;
use poem::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use poem::{Endpoint, PathPattern, Request, Response, Result};
use tracing::{Instrument, field};

use super::document::{Route, Routes};
use super::error::{Code, Error};
use super::{answers, problem, reply};

/// OpenIM's request header, also an answer's. It is chosen by whoever called OpenIM, and several
/// callbacks share one, so it tells nothing apart; it is for finding lines in logs.
const OPERATION_ID: HeaderName = HeaderName::from_static("operationid");
const MAX_OPERATION_ID_CHARS: usize = 128;

/// Paths that take a POST and are no callbacks.
const POSTED_READS: [&str; 1] = ["/memberships/query"];

pub(super) async fn around<E: Endpoint<Output = Response>>(
    endpoint: Arc<E>,
    mut request: Request,
    routes: Arc<Routes>,
) -> Result<Response> {
    let started = Instant::now();
    let method = request.method().clone();
    if method == Method::POST {
        straighten(&mut request);
    }
    let is_callback = method == Method::POST && !POSTED_READS.contains(&request.uri().path());
    let operation_id = request
        .headers()
        .get(OPERATION_ID)
        .filter(|value| is_echoable(value))
        .cloned();
    // At the level of errors, so that no filter takes it from the lines that need it.
    let span = tracing::error_span!(
        "request",
        %method,
        route = field::Empty,
        operation_id = operation_id.as_ref().and_then(|value| value.to_str().ok()),
    );
    let result = AssertUnwindSafe(endpoint.call(request))
        .catch_unwind()
        .instrument(span.clone())
        .await
        .unwrap_or_else(|_panic| Err(Error::new(Code::Internal, "the log says more").into()));
    let pattern = match &result {
        Ok(response) => response.data::<PathPattern>(),
        Err(error) => error.data::<PathPattern>(),
    };
    let route = pattern.and_then(|PathPattern(pattern)| routes.get(&**pattern));
    if let Some(Route { path, .. }) = route {
        span.record("route", path);
    }
    let mut response =
        result.unwrap_or_else(|error| span.in_scope(|| render(error, is_callback, route)));
    let elapsed_us = started.elapsed().as_micros();
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, elapsed_us, "answered"));
    if let Some(value) = operation_id {
        response.headers_mut().insert(OPERATION_ID, value);
    }
    Ok(response)
}

/// OpenIM appends "/" and the command to its `url`, which may end in a slash; others may add one
/// at the end. Reads are left alone: there an empty segment is an empty id.
fn straighten(request: &mut Request) {
    let path = request.uri().path();
    let straight = format!("/{}", path.trim_matches('/'));
    if straight == path {
        return;
    }
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{straight}?{query}"),
        None => straight,
    };
    let mut parts = request.uri().clone().into_parts();
    // Both halves come from a URI that was already parsed; if not, the path stays as it was.
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Visible ASCII only: it goes into a log line and a header.
fn is_echoable(value: &HeaderValue) -> bool {
    (1..=MAX_OPERATION_ID_CHARS).contains(&value.len())
        && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// An error as the answer for whoever asked, logged if it is ours or lost us a callback.
fn render(error: poem::Error, is_callback: bool, route: Option<&Route>) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    let error = Error::from(error);
    let code = error.code.name();
    if error.code.status().is_server_error() {
        let cause = error.source.as_ref().map(ToString::to_string);
        tracing::error!(code, cause, "request failed");
    } else if is_callback {
        tracing::warn!(code, detail = %error.detail, "callback refused");
    }
    let mut response = if is_callback {
        reply::render(&error)
    } else {
        problem::render(&error)
    };
    let header = match error.code.status() {
        StatusCode::SERVICE_UNAVAILABLE => Some((RETRY_AFTER, answers::RETRY_AFTER_SECS)),
        StatusCode::METHOD_NOT_ALLOWED => {
            Some((ALLOW, route.map_or("GET", |route| route.methods.as_str())))
        }
        _ => None,
    };
    if let Some((name, value)) = header
        && let Ok(value) = HeaderValue::from_str(value)
    {
        response.headers_mut().insert(name, value);
    }
    response
}
