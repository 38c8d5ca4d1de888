//! What surrounds every request: the path made plain, the span, errors and panics rendered for
//! whoever asked, the one log line, the count.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use poem::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use poem::http::{HeaderValue, Method, StatusCode, Version};
use poem::{Endpoint, PathPattern, Request, RequestBody, Response, Result};
use time::OffsetDateTime;
use tracing::{Instrument, Level, Span};

use super::auth::{Access, Admitted, ApiToken, CallbackKey, CallbackPassword, LetIn, Scheme};
use super::body::{self, Held};
use super::callbacks::{self, reply};
use super::count::{Count, is_kept};
use super::document::{Route, Routes, is_posted_read};
use super::error::{Code, Error};
use super::memory::BodyLimits;
use super::routing::{self, Way};
use super::{answers, operation_id, problem};
use crate::domain::{CheckReason, MAX_KEPT_BYTES, Rejected};
use crate::ingest::Ingest;
use crate::telemetry::Metrics;

/// What the edge works with.
pub(super) struct Edge {
    pub(super) routes: Routes,
    /// These two are handed to the extractors as request data.
    pub(super) access: Arc<Access>,
    pub(super) bodies: Arc<BodyLimits>,
    pub(super) ingest: Ingest,
    pub(super) metrics: Metrics,
    /// Whether a callback was refused for its credentials since one was let in. Only the first is
    /// worth a warning: a stranger can send any number.
    pub(super) locked_out: AtomicBool,
}

/// What is known of a request before it is handled.
struct Asked {
    method: Method,
    version: Version,
    is_callback: bool,
    /// Once it is known, that of its operation.
    path: String,
    /// Whether the body tells which operation it is for.
    is_by_body: bool,
    operation_id: Option<HeaderValue>,
    at: OffsetDateTime,
}

pub(super) async fn around<E: Endpoint<Output = Response>>(
    endpoint: Arc<E>,
    mut request: Request,
    edge: Arc<Edge>,
) -> Result<Response> {
    let method = request.method().clone();
    let mut is_by_body = false;
    if method == Method::POST {
        let straight = straight(request.uri().path());
        match Way::of(&edge.routes, &straight) {
            Way::Path => routing::redirect(&mut request, &straight),
            Way::Command(command) => routing::redirect(&mut request, &format!("/{command}")),
            Way::Body => {
                routing::redirect(&mut request, &straight);
                is_by_body = true;
            }
        }
    }
    let path = request.uri().path().to_owned();
    let operation_id = operation_id::of(&request).cloned();
    let asked = Asked {
        version: request.version(),
        is_callback: method == Method::POST && !is_posted_read(&edge.routes, &path),
        method,
        path,
        is_by_body,
        operation_id,
        at: OffsetDateTime::now_utc(),
    };
    edge.answer(endpoint, request, asked).await
}

impl Asked {
    /// Of the lines about a request. Made where there is one to write: it is not for nothing.
    fn span(&self, route: Option<&Route>) -> Span {
        // At the level of errors, so that no filter takes it from the lines that need it.
        tracing::error_span!(
            "request",
            method = %self.method,
            route = route.map(|route| route.path.as_str()),
            operation_id = self.operation_id.as_ref().and_then(|value| value.to_str().ok()),
        )
    }
}

impl Edge {
    async fn answer<E: Endpoint<Output = Response>>(
        &self,
        endpoint: Arc<E>,
        mut request: Request,
        mut asked: Asked,
    ) -> Result<Response> {
        let let_in = LetIn::default();
        request.set_data(let_in.clone());
        request.set_data(Arc::clone(&self.access));
        request.set_data(Arc::clone(&self.bodies));
        let mut count = Count::new(&self.metrics, asked.is_callback);
        // Of a path without parameters, such as a callback's, this is known before the router says
        // so, which it does not where the request never gets there.
        count.route = self.routes.get(&asked.path);
        let routed = match self.access.check_host(&request, asked.is_callback) {
            Ok(()) if asked.is_by_body => caught(route_by_body(&mut request, &mut asked)).await,
            checked => checked.map_err(poem::Error::from),
        };
        if asked.is_by_body {
            count.route = self.routes.get(&asked.path);
        }
        let result = match routed {
            Ok(()) => caught(endpoint.call(request)).await,
            Err(error) => Err(error),
        };
        let pattern = match &result {
            Ok(response) => response.data::<PathPattern>(),
            Err(error) => error.data::<PathPattern>(),
        };
        if let Some(PathPattern(pattern)) = pattern {
            count.route = self.routes.get(&**pattern);
        }
        let mut response = match result {
            Ok(response) => response,
            Err(error) if error.is_from_response() => error.into_response(),
            Err(error) => {
                let mut error = Error::from(error);
                // The path of all other callbacks is any, and for other methods none.
                if error.code == Code::MethodNotAllowed && count.route.is_some_and(Route::is_any) {
                    error = Error::new(Code::PathUnknown, "see /docs for what is");
                    count.route = None;
                }
                count.code = Some(error.code);
                let span = asked.span(count.route);
                self.refuse(error, &asked, count.route)
                    .instrument(span)
                    .await
            }
        };
        if asked.is_callback && let_in.how() != Admitted::No {
            self.locked_out.store(false, Ordering::Relaxed);
        }
        let status = response.status();
        if tracing::enabled!(Level::DEBUG) {
            let elapsed_us = count.began.elapsed().as_micros();
            let _entered = asked.span(count.route).entered();
            tracing::debug!(status = status.as_u16(), elapsed_us, "answered");
        }
        count.status = Some(status);
        if let Some(value) = asked.operation_id {
            response.headers_mut().insert(operation_id::HEADER, value);
        }
        if let_in.how() == Admitted::ByOlder {
            self.metrics.older_key(asked.is_callback);
        }
        // Who has shown no key does not keep a connection: strangers could take them all.
        if self.access.has_keys() && let_in.how() == Admitted::No {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
            // Else the server adds "keep-alive" for whoever asks for it with HTTP/1.0.
            if asked.version == Version::HTTP_10 {
                response.set_version(Version::HTTP_10);
            }
        }
        if !asked.is_callback {
            let control = HeaderValue::from_static(cache_control(count.route, status));
            response.headers_mut().insert(CACHE_CONTROL, control);
        }
        Ok(response)
    }

    /// An error as the answer for whoever asked, logged if it is ours or lost us a callback; a
    /// callback that could not be understood is kept.
    async fn refuse(&self, mut error: Error, asked: &Asked, route: Option<&Route>) -> Response {
        let code = error.code.name();
        let status = error.code.status();
        if status.is_server_error() {
            let cause = error.source.as_ref().map(ToString::to_string);
            // Whoever asks whether we are ready asks again and again.
            if error.code == Code::NotReady {
                tracing::debug!(detail = %error.detail, cause, "not ready");
            } else {
                tracing::error!(code, cause, "request failed");
            }
        } else if asked.is_callback {
            self.tell_of(&error);
        }
        let body = error.body.take();
        if let Some(body) = body
            && asked.is_callback
            && is_kept(status)
        {
            // A body of another command was sent here; what it names is not what it seems.
            if error.code != Code::CommandMismatch
                && let Some(group) = callbacks::group_of(&body.bytes)
            {
                self.ingest.want_check(group, CheckReason::CallbackRejected);
            }
            let length = body.bytes.len();
            let rejected = Rejected {
                received_at: asked.at,
                path: asked.path.clone(),
                operation_id: asked
                    .operation_id
                    .as_ref()
                    .and_then(|id| id.to_str().ok().map(str::to_owned)),
                code: code.to_owned(),
                detail: error.detail.to_string(),
                body: body.bytes.slice(..length.min(MAX_KEPT_BYTES)),
                body_bytes: length as u64,
            };
            let kept = self.ingest.keep_rejected(rejected).await;
            self.metrics.rejected(code, matches!(kept, Ok(true)));
            if let Err(cause) = kept {
                let cause = cause.to_string();
                tracing::error!(code, cause, "a rejected callback could not be kept");
            }
        }
        let mut response = if asked.is_callback {
            reply::render(&error)
        } else {
            problem::render(&error)
        };
        let header = match status {
            StatusCode::UNAUTHORIZED if asked.is_callback => {
                Some((WWW_AUTHENTICATE, CallbackPassword::CHALLENGE))
            }
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, ApiToken::CHALLENGE)),
            StatusCode::SERVICE_UNAVAILABLE => Some((RETRY_AFTER, answers::RETRY_AFTER_SECS)),
            StatusCode::METHOD_NOT_ALLOWED => Some((
                ALLOW,
                route.map_or("GET, HEAD", |route| route.methods.as_str()),
            )),
            _ => None,
        };
        if let Some((name, value)) = header
            && let Ok(value) = HeaderValue::from_str(value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }

    /// A callback that is refused is lost, which somebody has to hear of; but what strangers can
    /// send at will must not fill the log.
    fn tell_of(&self, error: &Error) {
        let (code, detail) = (error.code.name(), &error.detail);
        let is_told = match error.code {
            Code::CredentialsWrong => !self.locked_out.swap(true, Ordering::Relaxed),
            Code::PathUnknown | Code::MethodNotAllowed | Code::HostNotLocal => false,
            _ => true,
        };
        if is_told {
            tracing::warn!(code, %detail, "callback refused");
        } else {
            tracing::debug!(code, %detail, "callback refused");
        }
    }
}

/// What a cache on the way may do with an answer. Without a word it may keep what it likes for as
/// long as it likes, 404 too.
fn cache_control(route: Option<&Route>, status: StatusCode) -> &'static str {
    match route {
        _ if status.is_client_error() || status.is_server_error() => "no-store",
        // An ETag is good for as long as nothing has changed, which has to be asked each time.
        Some(route) if route.is_read => "private, no-cache",
        Some(_) => "no-store",
        // The documentation.
        None => "no-cache",
    }
}

/// What comes of something, or an error where it panics.
async fn caught<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    let result = AssertUnwindSafe(what).catch_unwind().await;
    result.unwrap_or_else(|_panic| Err(Error::new(Code::Internal, "the log says more").into()))
}

/// Reads the body of a callback, as whose operation it then goes on.
async fn route_by_body(request: &mut Request, asked: &mut Asked) -> Result<()> {
    CallbackKey::of(request)?;
    let mut body = RequestBody::new(request.take_body());
    let (received, command) = body::whole::<routing::Command>(request, &mut body).await?;
    asked.path = format!("/{command}");
    routing::redirect(request, &asked.path);
    request.set_data(Held::new(received));
    Ok(())
}

/// OpenIM's `url` may end in a slash, and others may add one at the end. Reads are left alone: there
/// an empty segment is an empty id.
fn straight(path: &str) -> String {
    format!("/{}", path.trim_matches('/'))
}
