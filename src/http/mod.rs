//! The door that is pushed to and asked: routes, the edge around them, and the server. The only
//! place that names poem.

mod accept;
mod answers;
mod auth;
mod body;
mod callbacks;
mod connection;
mod count;
mod document;
mod drift;
mod edge;
mod error;
mod etag;
#[cfg(fuzzing)]
pub mod fuzz;
mod groups;
mod json;
mod members;
mod memberships;
mod memory;
mod operation_id;
mod ops;
mod page;
mod pages;
mod params;
mod portable;
mod problem;
mod routing;
mod rows;
mod site;
mod written;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use poem::http::header::CACHE_CONTROL;
use poem::web::Data;
use poem::{Endpoint, EndpointExt, IntoEndpoint, Request, Response, Route, Server, get, handler};
use poem_openapi::{OpenApiService, Tags};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use accept::PatientAcceptor;
use auth::Access;
use callbacks::Callbacks;
use document::Document;
use drift::Drifts;
use edge::Edge;
use groups::Groups;
use members::Members;
use memberships::Memberships;
use memory::{AnswerMemory, BodyLimits};
use ops::{Gauges, Ops};
use pages::Pages;

use crate::config::{AccessSettings, BodySettings, Patience};
use crate::domain::{Change, Operators};
use crate::ingest::Ingest;
use crate::store::Store;
use crate::telemetry::Metrics;

/// How to treat requests.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who is let in.
    pub access: AccessSettings,
    /// How much of bodies is held.
    pub body: BodySettings,
    /// How much of answers to reads is held, in bytes.
    pub max_answer_memory: u32,
    /// How long senders are waited for.
    pub patience: Patience,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand.
    pub callback_next_code: i32,
    /// Who is named in callbacks for having called OpenIM's API.
    pub operators: Operators,
    /// Whether the mirror is compared with OpenIM.
    pub compares: bool,
}

/// The parts behind the door.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Answers reads.
    pub store: Store,
    /// Takes changes.
    pub ingest: Ingest,
    /// Counts.
    pub metrics: Metrics,
    /// Whether we are ready.
    pub stopping: Stopping,
}

/// Whether the service has been asked to stop. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// From now on, not ready.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Parts of the API.
#[derive(Tags)]
enum Tag {
    /// What OpenIM calls.
    Callbacks,
    /// What a backend asks.
    Reads,
    /// What whoever runs the service asks.
    Operations,
}

type Api = (Callbacks, Groups, Members, Memberships, Drifts, Ops);

/// The OpenAPI document as JSON.
///
/// # Errors
/// When the document cannot be written as JSON, which would be a mistake of ours.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    Ok(Document::of::<Api>()?.json)
}

/// What a callback means that was sent to `path` and came at `received_at`.
///
/// # Errors
/// The code and the detail that the answer would have.
pub fn understand(path: &str, body: &[u8], received_at: OffsetDateTime) -> Result<Change, String> {
    let parsed = callbacks::understand(path, body).map_err(|error| error.to_string())?;
    Ok(Change::new(parsed.group_id, received_at, parsed.event))
}

/// Everything that is served, without a socket.
fn endpoint(
    parts: Parts,
    settings: &Settings,
    is_local: bool,
    gauges: Option<Gauges>,
    bodies: Arc<BodyLimits>,
    answers: Arc<AnswerMemory>,
) -> Result<impl Endpoint<Output = Response> + 'static, serde_json::Error> {
    let Parts {
        store,
        ingest,
        metrics,
        stopping,
    } = parts;
    let document = Document::of::<Api>()?;
    count::begin(&metrics, &document.routes);
    let access = Arc::new(Access::new(&settings.access, is_local));
    let edge = Arc::new(Edge {
        routes: document.routes.clone(),
        access,
        bodies,
        ingest: ingest.clone(),
        metrics: metrics.clone(),
        locked_out: AtomicBool::new(false),
    });
    let api = (
        Callbacks {
            ingest: ingest.clone(),
            metrics,
            next_code: settings.callback_next_code,
            operators: settings.operators.clone(),
        },
        Groups {
            store: store.clone(),
            memory: Arc::clone(&answers),
        },
        Members {
            store: store.clone(),
            memory: Arc::clone(&answers),
        },
        Memberships {
            store: store.clone(),
            memory: Arc::clone(&answers),
        },
        Drifts {
            store: store.clone(),
            compares: settings.compares,
        },
        Ops {
            store,
            ingest,
            stopping,
            looked: Mutex::default(),
            gauges,
        },
    );
    // Title and version are of the document, which is made already.
    Ok(OpenApiService::new((api, Pages::from(document)), "", "")
        .into_endpoint()
        .around(move |endpoint, request| edge::around(endpoint, request, Arc::clone(&edge))))
}

/// The metrics alone, for a listener of their own. They need no key there.
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

/// Serves until `shutdown`, then finishes open requests, for `timeout` at most. The metrics are on
/// `metrics_listener`, if there is one.
///
/// # Errors
/// When a listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    parts: Parts,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
    timeout: Duration,
) -> std::io::Result<()> {
    let is_local = listener.local_addr()?.ip().is_loopback();
    let patience = settings.patience;
    let bodies = Arc::new(BodyLimits::new(settings.body, patience));
    let answers = Arc::new(AnswerMemory::new(settings.max_answer_memory, patience));
    let gauges = Gauges {
        metrics: parts.metrics.clone(),
        store: parts.store.clone(),
        bodies: Arc::clone(&bodies),
        answers: Arc::clone(&answers),
        ingest: parts.ingest.clone(),
    };
    let places = accept::places(parts.store.max_connections() + accept::FEW);
    let acceptor = PatientAcceptor::new(listener, places, patience, parts.metrics.clone())?;
    let metrics_server = match metrics_listener {
        Some(listener) => {
            let no_keys = AccessSettings {
                callback_passwords: vec![],
                api_tokens: vec![],
                ..settings.access.clone()
            };
            let access = Access::new(&no_keys, listener.local_addr()?.ip().is_loopback());
            let route = Route::new().at("/metrics", get(metrics_alone)).data(access);
            let metrics = parts.metrics.clone();
            let acceptor = PatientAcceptor::new(listener, accept::FEW, patience, metrics)?;
            let server = Server::new_with_acceptor(acceptor);
            Some(server.run(route.data(gauges.clone())))
        }
        None => None,
    };
    let gauges = metrics_server.is_none().then_some(gauges);
    let endpoint = endpoint(parts, &settings, is_local, gauges, bodies, answers)
        .map_err(std::io::Error::other)?;
    let served = Server::new_with_acceptor(acceptor).run_with_graceful_shutdown(
        endpoint,
        shutdown,
        Some(timeout),
    );
    // Metrics can be asked for until the last request is answered.
    match metrics_server {
        Some(metrics) => tokio::select! {
            served = served => served,
            ended = metrics => ended,
        },
        None => served.await,
    }
}
