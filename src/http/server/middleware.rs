//! The router, and the middleware around each request: it normalizes the path, opens the span, renders
//! errors and panics for the caller, writes one log line, and counts the answer. It keeps the bodies of
//! rejected callbacks, and marks their groups.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use poem::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use poem::http::uri::PathAndQuery;
use poem::http::{HeaderValue, Method, StatusCode, Uri, Version};
use poem::{
    Endpoint, EndpointExt, IntoEndpoint, PathPattern, Request, RequestBody, Response, Result,
};
use poem_openapi::OpenApiService;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tracing::{Instrument, Level, Span};

use super::auth::{Access, Admitted, AdmittedBy, ApiToken, CallbackKey, CallbackPassword, Scheme};
use super::memory::BodyLimits;
use crate::domain::{HintKind, MAX_KEPT_BYTES, MarkReason, Rejected, is_usable_operation_id};
use crate::http::HttpSettings;
use crate::http::body::{self, EarlyBody, OPERATION_ID};
use crate::http::callbacks::{self, Callbacks, OtherCallbacks};
use crate::http::error::{self, Code, Error, Side};
use crate::http::openapi::{Document, Route, Routes};
use crate::http::ops::{Gauges, Ops};
use crate::http::reads::ReadState;
use crate::http::reads::drift::Drifts;
use crate::http::reads::groups::Groups;
use crate::http::reads::members::Members;
use crate::http::reads::memberships::Memberships;
use crate::ingest::Ingest;
use crate::telemetry::Metrics;

/// The operations.
pub(crate) type Api = (
    callbacks::Operations,
    OtherCallbacks,
    Groups,
    Members,
    Memberships,
    Drifts,
    Ops,
);

/// Makes the endpoint of the API. It serves the metrics too, unless they have their own listener.
pub(super) fn endpoint(
    gauges: Gauges,
    settings: &HttpSettings,
    is_local: bool,
    serves_metrics: bool,
) -> Result<impl Endpoint<Output = Response> + 'static, serde_json::Error> {
    let document = Document::of::<Api>()?;
    let (store, ingest) = (gauges.parts.store.clone(), gauges.parts.ingest.clone());
    let metrics = gauges.parts.metrics.clone();
    begin_counts(&metrics, &document.routes);
    let reads = ReadState {
        store: store.clone(),
        memory: Arc::clone(&gauges.answers),
    };
    let middleware = Arc::new(Middleware {
        routes: document.routes.clone(),
        access: Arc::new(Access::new(&settings.access, is_local)),
        bodies: Arc::clone(&gauges.bodies),
        ingest: ingest.clone(),
        metrics: metrics.clone(),
        is_locked_out: AtomicBool::new(false),
    });
    let callbacks = Arc::new(Callbacks {
        ingest,
        metrics,
        next_code: settings.callback_next_code,
        operators: settings.operators.clone(),
    });
    let api: Api = (
        callbacks::operations(&callbacks),
        OtherCallbacks(callbacks),
        Groups(reads.clone()),
        Members(reads.clone()),
        Memberships(reads),
        Drifts {
            store,
            compares: settings.compares,
        },
        Ops {
            gauges,
            serves_metrics,
            last_check: Mutex::default(),
        },
    );
    // The document is complete, so this service needs no title and no version.
    Ok(OpenApiService::new((api, document), "", "")
        .into_endpoint()
        .around(move |endpoint, request| handle(endpoint, request, Arc::clone(&middleware))))
}

/// State of the middleware.
struct Middleware {
    routes: Routes,
    /// Request data for the extractors, as is `bodies`.
    access: Arc<Access>,
    bodies: Arc<BodyLimits>,
    ingest: Ingest,
    metrics: Metrics,
    /// True if a callback had wrong credentials since the last one with right credentials. Only the
    /// first is a warning, because strangers can send any number.
    is_locked_out: AtomicBool,
}

/// Properties of a request.
struct RequestInfo {
    method: Method,
    version: Version,
    is_callback: bool,
    /// The path of the operation, as soon as it is known.
    path: String,
    /// True if the body names the operation.
    is_routed_by_body: bool,
    /// OpenIM's operation id, if a log line and a header can repeat it. The caller of OpenIM's API
    /// chooses it, and several callbacks share one. It finds lines in logs, and it tells which
    /// notification and which callback belong to one change.
    operation_id: Option<HeaderValue>,
    received_at: OffsetDateTime,
}

impl RequestInfo {
    /// The span of log lines about the request. A span has a cost, so it is made only for a line.
    fn span(&self, route: Option<&Route>) -> Span {
        // The level of errors: no filter removes it from lines that need it.
        tracing::error_span!(
            "request",
            method = %self.method,
            route = route.map(|route| route.path.as_str()),
            operation_id = self.operation_id(),
        )
    }

    fn operation_id(&self) -> Option<&str> {
        self.operation_id.as_ref().and_then(|id| id.to_str().ok())
    }
}

/// Runs `endpoint` within the middleware.
async fn handle<E: Endpoint<Output = Response>>(
    endpoint: Arc<E>,
    mut request: Request,
    middleware: Arc<Middleware>,
) -> Result<Response> {
    let method = request.method().clone();
    let routes = &middleware.routes;
    let mut is_routed_by_body = false;
    if method == Method::POST {
        // OpenIM's `url` may end with a slash, and proxies may add one. Reads by GET keep their path: an
        // empty segment is an empty id there.
        let path = format!("/{}", request.uri().path().trim_matches('/'));
        match callbacks::command_of(&path) {
            Some(command) => redirect(&mut request, &format!("/{command}")),
            None => {
                is_routed_by_body = !is_path_of_read(routes, &path);
                redirect(&mut request, &path);
            }
        }
    }
    let operation_id = request.headers().get(OPERATION_ID);
    let operation_id = operation_id.filter(|id| is_usable_operation_id(id.as_bytes()));
    let operation_id = operation_id.cloned();
    if operation_id.is_none() {
        request.headers_mut().remove(OPERATION_ID);
    }
    let path = request.uri().path().to_owned();
    let info = RequestInfo {
        version: request.version(),
        is_callback: method == Method::POST && !is_posted_read(routes, &path),
        method,
        path,
        is_routed_by_body,
        operation_id,
        received_at: OffsetDateTime::now_utc(),
    };
    middleware.answer(endpoint, request, info).await
}

impl Middleware {
    async fn answer<E: Endpoint<Output = Response>>(
        &self,
        endpoint: Arc<E>,
        mut request: Request,
        mut info: RequestInfo,
    ) -> Result<Response> {
        let admitted_by = AdmittedBy::default();
        request.set_data(admitted_by.clone());
        request.set_data(Arc::clone(&self.access));
        request.set_data(Arc::clone(&self.bodies));
        let mut count = Count {
            metrics: &self.metrics,
            began: Instant::now(),
            is_callback: info.is_callback,
            // A path without parameters is its own pattern. The router does not report the pattern of a
            // request that does not reach it.
            route: self.routes.get(&info.path),
            code: None,
            status: None,
        };
        let work = async {
            self.access.check_host(&request, info.is_callback)?;
            if info.is_routed_by_body {
                route_by_body(&mut request, &mut info).await?;
                count.route = self.routes.get(&info.path);
            }
            endpoint.call(request).await
        };
        let result = AssertUnwindSafe(work).catch_unwind().await;
        let result = result.unwrap_or_else(|_panic| Err(Error::internal().into()));
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
                // The path of all other callbacks takes any path, and serves nothing but POST.
                if error.code == Code::MethodNotAllowed && count.route.is_some_and(Route::is_any) {
                    error = Error::path_unknown();
                    count.route = None;
                }
                count.code = Some(error.code);
                let span = info.span(count.route);
                self.refuse(error, &info, count.route)
                    .instrument(span)
                    .await
            }
        };
        if info.is_callback && admitted_by.get() != Admitted::No {
            self.is_locked_out.store(false, Ordering::Relaxed);
        }
        let status = response.status();
        if tracing::enabled!(Level::DEBUG) {
            let elapsed_us = count.began.elapsed().as_micros();
            let _entered = info.span(count.route).entered();
            tracing::debug!(status = status.as_u16(), elapsed_us, "answered");
        }
        count.status = Some(status);
        if let Some(value) = info.operation_id {
            response.headers_mut().insert(OPERATION_ID, value);
        }
        if admitted_by.get() == Admitted::ByOlder {
            let side = match info.is_callback {
                true => "callbacks",
                false => "reads",
            };
            self.metrics.older_keys.inc([side]);
        }
        // A caller without a key does not keep a connection: strangers could take all places.
        if self.access.has_keys() && admitted_by.get() == Admitted::No {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
            // For HTTP/1.0 the server else adds "keep-alive" if the request asks for it.
            if info.version == Version::HTTP_10 {
                response.set_version(Version::HTTP_10);
            }
        }
        if !info.is_callback {
            let control = HeaderValue::from_static(cache_control(count.route, status));
            response.headers_mut().insert(CACHE_CONTROL, control);
        }
        Ok(response)
    }

    /// Renders an error for the caller. Logs errors of the service and lost callbacks, and keeps
    /// callbacks that cannot be understood.
    async fn refuse(
        &self,
        mut error: Error,
        info: &RequestInfo,
        route: Option<&Route>,
    ) -> Response {
        let status = error.code.status();
        self.log(&error, info.is_callback);
        if let Some(body) = error.body.take()
            && info.is_callback
            && is_kept(status)
        {
            self.keep(info, &error, body).await;
        }
        let mut response = match info.is_callback {
            true => callbacks::render(&error),
            false => error::render_problem(&error),
        };
        let header = match status {
            StatusCode::UNAUTHORIZED if info.is_callback => {
                Some((WWW_AUTHENTICATE, CallbackPassword::CHALLENGE))
            }
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, ApiToken::CHALLENGE)),
            StatusCode::SERVICE_UNAVAILABLE => Some((RETRY_AFTER, error::RETRY_AFTER_SECS)),
            StatusCode::METHOD_NOT_ALLOWED => {
                Some((ALLOW, route.map_or("GET, HEAD", |route| &route.methods)))
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

    /// Keeps the body of a rejected callback, marks the group that it names, and counts it.
    async fn keep(&self, info: &RequestInfo, error: &Error, body: Bytes) {
        // After a mismatch, the body is of another command, and its group id may mean something else.
        if error.code != Code::CommandMismatch
            && let Some(group) = callbacks::group_of(&body)
        {
            self.ingest
                .mark_unwaited(group, MarkReason::CallbackRejected);
        }
        let code = error.code.name();
        let rejected = Rejected {
            received_at: info.received_at,
            path: info.path.clone(),
            operation_id: info.operation_id().map(str::to_owned),
            code: code.to_owned(),
            detail: error.detail.to_string(),
            body: body.slice(..body.len().min(MAX_KEPT_BYTES)),
            body_bytes: body.len() as u64,
        };
        let kept = self.ingest.keep_rejected(rejected).await;
        let is_kept = if let Ok(true) = kept { "yes" } else { "no" };
        self.metrics.rejected.inc([code, is_kept]);
        if let Err(cause) = kept {
            tracing::error!(
                code,
                cause = cause.to_string(),
                "a rejected callback could not be kept"
            );
        }
    }

    fn log(&self, error: &Error, is_callback: bool) {
        let (code, detail) = (error.code.name(), &error.detail);
        if error.code.status().is_server_error() {
            let cause = error.source.as_ref().map(ToString::to_string);
            // Probes of readiness repeat all the time.
            if error.code == Code::NotReady {
                tracing::debug!(%detail, cause, "not ready");
            } else {
                tracing::error!(code, cause, "request failed");
            }
        } else if is_callback {
            // A refused callback is lost, so it is a warning. But strangers must not fill the log.
            let is_warning = match error.code {
                Code::CredentialsWrong => !self.is_locked_out.swap(true, Ordering::Relaxed),
                Code::PathUnknown | Code::MethodNotAllowed | Code::HostNotLocal => false,
                _ => true,
            };
            if is_warning {
                tracing::warn!(code, %detail, "callback refused");
            } else {
                tracing::debug!(code, %detail, "callback refused");
            }
        }
    }
}

/// True if a callback with this answer is kept: its body cannot be understood.
fn is_kept(status: StatusCode) -> bool {
    [StatusCode::BAD_REQUEST, StatusCode::UNSUPPORTED_MEDIA_TYPE].contains(&status)
}

/// Value of Cache-Control. Without it a cache may keep an answer as long as it likes, even a 404.
fn cache_control(route: Option<&Route>, status: StatusCode) -> &'static str {
    match route {
        _ if status.is_client_error() || status.is_server_error() => "no-store",
        // A cache asks each time if the ETag is still right.
        Some(route) if route.is_read => "private, no-cache",
        Some(_) => "no-store",
        // The documentation.
        None => "no-cache",
    }
}

/// Reads the body of a callback and sends the request to the operation that the body names.
async fn route_by_body(request: &mut Request, info: &mut RequestInfo) -> Result<()> {
    CallbackKey::of(request)?;
    let mut body = RequestBody::new(request.take_body());
    let (received, command) = body::read_whole::<callbacks::Command>(request, &mut body).await?;
    info.path = format!("/{command}");
    redirect(request, &info.path);
    request.set_data(EarlyBody::new(received));
    Ok(())
}

/// Label of paths without documentation.
const OTHER: &str = "other";
const OK: &str = "ok";
const UNANSWERED: &str = "unanswered";

/// Starts the counters of callbacks and of failed reads at zero.
fn begin_counts(metrics: &Metrics, routes: &Routes) {
    let (reads, callbacks): (Vec<&Route>, Vec<&Route>) =
        routes.values().partition(|route| route.command.is_none());
    let commands = callbacks
        .iter()
        .filter_map(|route| route.command.as_deref());
    let commands: Vec<&str> = commands.chain([OTHER]).collect();
    let codes = || Code::of_side(Side::Callback);
    let outcomes: Vec<&str> = codes().map(Code::name).chain([OK, UNANSWERED]).collect();
    metrics.callbacks.begin([&commands, &outcomes]);
    metrics.callback_seconds.begin([&commands]);
    let kept = codes().filter(|code| is_kept(code.status()));
    let kept: Vec<&str> = kept.map(Code::name).collect();
    metrics.rejected.begin([&kept, &["yes", "no"]]);
    let passed_over: Vec<&str> = callbacks::labels().collect();
    metrics.passed_over.begin([&passed_over]);
    let kinds: Vec<&str> = HintKind::ALL.iter().map(|kind| kind.label()).collect();
    let outcomes: Vec<&str> = callbacks::hint_outcomes().collect();
    metrics.hints.begin([&kinds, &outcomes]);
    let paths = reads.iter().map(|route| route.path.as_str());
    let paths: Vec<&str> = paths.chain([OTHER]).collect();
    let statuses = Code::of_side(Side::Read).map(Code::status);
    let failures: Vec<StatusCode> = statuses.filter(StatusCode::is_server_error).collect();
    let failures: Vec<&str> = failures.iter().map(StatusCode::as_str).collect();
    metrics.reads.begin([&paths, &failures]);
    metrics.read_seconds.begin([&paths]);
}

/// Counts an answer on drop. It also counts a request that gets no answer because the service stops.
struct Count<'a> {
    metrics: &'a Metrics,
    began: Instant,
    is_callback: bool,
    route: Option<&'a Route>,
    code: Option<Code>,
    status: Option<StatusCode>,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        let (metrics, took) = (self.metrics, self.began.elapsed());
        if self.is_callback {
            let command = self.route.and_then(|route| route.command.as_deref());
            let command = command.unwrap_or(OTHER);
            let outcome = match (self.status, self.code) {
                (None, _) => UNANSWERED,
                (Some(_), Some(code)) => code.name(),
                (Some(_), None) => OK,
            };
            metrics.callbacks.inc([command, outcome]);
            metrics.callback_seconds.observe([command], took);
        } else {
            let route = self.route.map_or(OTHER, |route| route.path.as_str());
            let status = self.status.as_ref().map_or(UNANSWERED, StatusCode::as_str);
            metrics.reads.inc([route, status]);
            metrics.read_seconds.observe([route], took);
        }
    }
}

/// True if a POST to this path is a read with parameters too long for a URL.
fn is_posted_read(routes: &Routes, path: &str) -> bool {
    let is_posted = |route: &Route| route.methods.split(", ").any(|method| method == "POST");
    routes
        .get(path)
        .is_some_and(|route| route.command.is_none() && is_posted(route))
}

/// True if this is the path of a read, for any method.
fn is_path_of_read(routes: &Routes, path: &str) -> bool {
    let is_segment = |(pattern, segment): (&str, &str)| {
        pattern == segment || (pattern.starts_with(':') && !segment.is_empty())
    };
    let is_like = |pattern: &str| {
        pattern.split('/').count() == path.split('/').count()
            && pattern.split('/').zip(path.split('/')).all(is_segment)
    };
    let mut reads = routes.iter().filter(|(_, route)| route.command.is_none());
    reads.any(|(pattern, _)| is_like(pattern))
}

/// Changes the path of a request. The query string stays.
pub(crate) fn redirect(request: &mut Request, path: &str) {
    if request.uri().path() == path {
        return;
    }
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    // The path is part of a parsed URI, or a command, so parsing does not fail.
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}
