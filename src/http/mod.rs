//! The HTTP API: callbacks of OpenIM, reads of a backend, operations. The only room that names poem.

mod body;
mod callbacks;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod json;
mod json_response;
mod openapi;
mod ops;
mod reads;
mod server;
mod settings;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use poem::http::header::CACHE_CONTROL;
use poem::web::Data;
use poem::{Endpoint, EndpointExt, IntoEndpoint, Request, Response, Route, Server, get, handler};
use poem_openapi::OpenApiService;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use callbacks::Callbacks;
use openapi::{Document, Pages};
use ops::{Gauges, Ops};
use reads::ReadState;
use reads::drift::Drifts;
use reads::groups::Groups;
use reads::members::Members;
use reads::memberships::Memberships;
use server::auth::Access;
use server::connection::{LimitedAcceptor, MAX_METRICS_CONNECTIONS, max_connections};
use server::memory::{AnswerMemory, BodyLimits};
use server::middleware::{self, Middleware};
pub use settings::{AccessSettings, BodySettings, HttpSettings, HttpTimeouts, Stopping};

use crate::domain::Change;
use crate::ingest::Ingest;
use crate::store::Store;
use crate::telemetry::Metrics;

/// Parts of the service that requests use.
#[derive(Clone, Debug)]
pub struct HttpParts {
    /// Answers reads.
    pub store: Store,
    /// Takes changes.
    pub ingest: Ingest,
    /// Counts requests.
    pub metrics: Metrics,
    /// Says when the service stops.
    pub stopping: Stopping,
}

type Api = (Callbacks, Groups, Members, Memberships, Drifts, Ops);

/// The OpenAPI document as JSON.
///
/// # Errors
/// If the document cannot be written as JSON, which is a bug.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    Ok(Document::of::<Api>()?.json)
}

/// The change of a callback to `path` that arrived at `received_at`.
///
/// # Errors
/// The code and the detail of the answer.
pub fn understand(path: &str, body: &[u8], received_at: OffsetDateTime) -> Result<Change, String> {
    let parsed = callbacks::understand(path, body).map_err(|error| error.to_string())?;
    Ok(Change::new(parsed.group_id, received_at, parsed.event))
}

/// Makes the endpoint of the API. It serves the metrics too, unless they have their own listener.
fn endpoint(
    parts: HttpParts,
    settings: &HttpSettings,
    is_local: bool,
    gauges: Gauges,
    serves_metrics: bool,
) -> Result<impl Endpoint<Output = Response> + 'static, serde_json::Error> {
    let HttpParts {
        store,
        ingest,
        metrics,
        stopping,
    } = parts;
    let document = Document::of::<Api>()?;
    middleware::begin_counts(&metrics, &document.routes);
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
    let api = (
        Callbacks {
            ingest: ingest.clone(),
            metrics,
            next_code: settings.callback_next_code,
            operators: settings.operators.clone(),
        },
        Groups(reads.clone()),
        Members(reads.clone()),
        Memberships(reads),
        Drifts {
            store: store.clone(),
            compares: settings.compares,
        },
        Ops {
            store,
            ingest,
            stopping,
            last_check: Mutex::default(),
            gauges: serves_metrics.then_some(gauges),
        },
    );
    // The document is complete, so this service needs no title and no version.
    Ok(OpenApiService::new((api, Pages::from(document)), "", "")
        .into_endpoint()
        .around(move |endpoint, request| {
            middleware::handle(endpoint, request, Arc::clone(&middleware))
        }))
}

/// Serves the metrics on their own listener. They need no key there.
#[handler]
fn metrics_alone(
    request: &Request,
    gauges: Data<&Gauges>,
    access: Data<&Access>,
) -> poem::Result<Response> {
    access.check_host(request, false)?;
    let text = gauges.text()?;
    Ok(Response::builder()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .header(CACHE_CONTROL, "no-store")
        .body(text))
}

/// Serves until `shutdown`, then finishes open requests within `timeout`. The metrics are on
/// `metrics_listener`, if there is one.
///
/// # Errors
/// If a listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    parts: HttpParts,
    settings: HttpSettings,
    shutdown: impl Future<Output = ()>,
    timeout: Duration,
) -> std::io::Result<()> {
    let is_local = listener.local_addr()?.ip().is_loopback();
    let timeouts = settings.timeouts;
    let metrics = &parts.metrics;
    let gauges = Gauges {
        metrics: metrics.clone(),
        store: parts.store.clone(),
        bodies: Arc::new(BodyLimits::new(settings.body, timeouts)),
        answers: Arc::new(AnswerMemory::new(settings.max_answer_memory, timeouts)),
        ingest: parts.ingest.clone(),
    };
    let connections = max_connections(parts.store.max_connections + MAX_METRICS_CONNECTIONS);
    let acceptor = LimitedAcceptor::new(listener, connections, timeouts, metrics.clone())?;
    let metrics_server = match metrics_listener {
        Some(listener) => {
            let no_keys = AccessSettings {
                callback_passwords: vec![],
                api_tokens: vec![],
                ..settings.access.clone()
            };
            let access = Access::new(&no_keys, listener.local_addr()?.ip().is_loopback());
            let route = Route::new().at("/metrics", get(metrics_alone)).data(access);
            let (limit, metrics) = (MAX_METRICS_CONNECTIONS, metrics.clone());
            let acceptor = LimitedAcceptor::new(listener, limit, timeouts, metrics)?;
            let server = Server::new_with_acceptor(acceptor);
            Some(server.run(route.data(gauges.clone())))
        }
        None => None,
    };
    let serves_metrics = metrics_server.is_none();
    let endpoint = endpoint(parts, &settings, is_local, gauges, serves_metrics)
        .map_err(std::io::Error::other)?;
    let served = Server::new_with_acceptor(acceptor).run_with_graceful_shutdown(
        endpoint,
        shutdown,
        Some(timeout),
    );
    // The metrics are served until the last request is answered.
    match metrics_server {
        Some(metrics) => tokio::select! {
            served = served => served,
            ended = metrics => ended,
        },
        None => served.await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::error::{Code, Side, expected_parameter};
    use super::openapi::response_docs::{codes_of, named_operations};

    fn operations() -> Vec<Value> {
        let document: Value = serde_json::from_str(&super::openapi_json().unwrap()).unwrap();
        let paths = document["paths"].as_object().unwrap().values();
        paths
            .flat_map(|path| path.as_object().unwrap().values().cloned())
            .collect()
    }

    #[test]
    fn facts_about_operations_name_operations_that_exist() {
        let operations = operations();
        let ids = operations.iter().map(|one| one["operationId"].as_str());
        let ids: BTreeSet<&str> = ids.map(Option::unwrap).collect();
        for id in named_operations() {
            assert!(ids.contains(id), "{id}");
        }
    }

    #[test]
    fn each_parameter_has_an_expected_value_for_its_error() {
        for operation in operations() {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap();
                // Any text can be read as a command, or as a header.
                let is_any = ["command", "If-None-Match"].contains(&name);
                assert!(is_any || expected_parameter(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn each_code_is_an_answer_of_an_operation() {
        let operations = operations();
        for side in [Side::Callback, Side::Read] {
            // The router answers for a wrong method, not an operation.
            let codes = Code::of_side(side).filter(|code| *code != Code::MethodNotAllowed);
            for code in codes {
                let status = code.status().as_u16();
                let mut all = operations.iter();
                let is_answer = all.any(|one| codes_of(one, side, status).contains(&code));
                assert!(is_answer, "{code:?}");
            }
        }
    }
}
