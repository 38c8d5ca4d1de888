//! Operations of the service itself: liveness, readiness, metrics.

use std::sync::Arc;
use std::time::Duration;

use poem_openapi::param::Query;
use poem_openapi::payload::{Json, PlainText};
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::error::{Code, Error, ReadFailure};
use super::server::auth::{ReadKey, Tag};
use super::server::memory::{AnswerMemory, BodyLimits};
use super::settings::Stopping;
use crate::ingest::Ingest;
use crate::store::Store;
use crate::telemetry::{Metrics, Snapshot};

pub(super) struct Ops {
    pub(super) store: Store,
    pub(super) ingest: Ingest,
    pub(super) stopping: Stopping,
    /// Last check of the database, with its result.
    pub(super) last_check: Mutex<Option<(Instant, Health)>>,
    /// None if the metrics have their own listener.
    pub(super) gauges: Option<Gauges>,
}

/// Interval of checks of the database.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Health of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Ok,
    Away,
    /// It answers, but its schema has never been up to date.
    NotPrepared,
}

impl Ops {
    /// Checks the database, once an interval for all callers: they need no key, and could ask often.
    async fn database(&self) -> Health {
        let mut last_check = self.last_check.lock().await;
        if let Some((when, health)) = *last_check
            && when.elapsed() < CHECK_INTERVAL
        {
            return health;
        }
        let health = match self.store.ping().await {
            Ok(()) if self.store.is_prepared() => Health::Ok,
            Ok(()) => Health::NotPrepared,
            Err(error) => {
                let cause = error.to_string();
                tracing::debug!(cause, "the database is away");
                Health::Away
            }
        };
        *last_check = Some((Instant::now(), health));
        health
    }
}

/// Sources of the metrics.
#[derive(Clone)]
pub(super) struct Gauges {
    pub(super) metrics: Metrics,
    pub(super) store: Store,
    pub(super) bodies: Arc<BodyLimits>,
    pub(super) answers: Arc<AnswerMemory>,
    pub(super) ingest: Ingest,
}

impl Gauges {
    pub(super) fn text(&self) -> Result<String, Error> {
        let (used, idle) = self.store.connections();
        // In the order of the work, so that no work is missed on its way.
        let (marks_waiting, waiting) = (self.ingest.marks_waiting(), self.ingest.waiting());
        let spool = self.ingest.spool().unwrap_or_default();
        let text = self.metrics.text(Snapshot {
            connections: [used, idle],
            max_connections: self.store.max_connections,
            body_memory: self.bodies.in_use(),
            answer_memory: self.answers.in_use(),
            waiting,
            marks_waiting,
            spool_entries: spool.waiting,
            spool_bytes: spool.bytes,
            spool_oldest: spool.age,
            spooled: spool.spooled,
            drained: spool.drained,
            spool_refused: spool.refused,
            spool_rejected: spool.rejected,
            spool_usable: !spool.is_absent,
            spool_blocked: spool.is_blocked,
        });
        text.map_err(|error| Error::internal().because(error))
    }
}

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
enum Part {
    /// Callbacks. The service takes them while the database is away too.
    Callbacks,
    /// Reads.
    Reads,
}

/// The state of the service.
#[derive(Object)]
#[oai(example)]
struct Status {
    /// Always "ok". Any other state has another HTTP status.
    status: String,
}

impl Example for Status {
    fn example() -> Self {
        Self {
            status: "ok".into(),
        }
    }
}

#[derive(ApiResponse)]
enum MetricsAnswer {
    /// The metrics.
    #[oai(
        status = 200,
        content_type = "text/plain; version=0.0.4; charset=utf-8"
    )]
    Text(PlainText<String>),
}

#[OpenApi(tag = "Tag::Operations")]
impl Ops {
    /// Liveness
    ///
    /// Uses nothing else. Restart the process if this does not answer.
    #[oai(path = "/livez", method = "get", operation_id = "livez")]
    async fn livez(&self) -> Result<Json<Status>, ReadFailure> {
        Ok(Json(Status::example()))
    }

    /// Readiness
    ///
    /// Checks the database. Send no traffic here while this answers 503. `detail` names each part that
    /// is not ready:
    /// `service: stopping`;
    /// `database: away`: reads get 503;
    /// `schema: not up to date`: the log has the reason, and reads of missing tables get 503;
    /// `callbacks: spooled`: callbacks wait on disk and are answered as done;
    /// `callbacks: refused`: the disk has no room for callbacks either;
    /// `spool: blocked`: callbacks on disk are not written, because an entry has the format of a newer
    /// version of the service.
    /// If callbacks and reads can go to different instances, ask for one of them.
    #[oai(path = "/readyz", method = "get", operation_id = "readyz")]
    async fn readyz(
        &self,
        /// Check only one kind of requests.
        #[oai(name = "for")]
        part: Query<Option<Part>>,
    ) -> Result<Json<Status>, ReadFailure> {
        let mut parts = Vec::new();
        if self.stopping.has_begun() {
            parts.push("service: stopping");
        }
        let spool = self.ingest.spool().unwrap_or_default();
        let of_database = match part.0 {
            Some(Part::Callbacks) => None,
            Some(Part::Reads) | None => match self.database().await {
                Health::Ok => None,
                Health::Away => Some("database: away"),
                Health::NotPrepared => Some("schema: not up to date"),
            },
        };
        parts.extend(of_database);
        if part.0.is_none() && spool.is_blocked {
            parts.push("spool: blocked");
        }
        if spool.is_diverting && (spool.is_refusing || spool.is_absent) {
            if part.0 != Some(Part::Reads) {
                parts.push("callbacks: refused");
            }
        } else if part.0.is_none()
            && spool.is_diverting
            && (of_database.is_some() || spool.is_blocked)
        {
            parts.push("callbacks: spooled");
        }
        if parts.is_empty() {
            return Ok(Json(Status::example()));
        }
        Err(Error::new(Code::NotReady, parts.join("; ")).into())
    }

    /// Metrics
    ///
    /// Metrics in Prometheus' text format. Needs a token if API_TOKEN is set. With METRICS_ADDR they
    /// have their own listener instead, and need no token.
    #[oai(path = "/metrics", method = "get", operation_id = "metrics")]
    async fn metrics(&self, _key: ReadKey) -> Result<MetricsAnswer, ReadFailure> {
        let Some(gauges) = &self.gauges else {
            let detail = "METRICS_ADDR: the metrics are served there";
            return Err(Error::new(Code::PathUnknown, detail).into());
        };
        Ok(MetricsAnswer::Text(PlainText(gauges.text()?)))
    }
}
