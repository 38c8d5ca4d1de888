//! For whoever runs the service: is it alive, can it work, what has it done?

use std::sync::Arc;
use std::time::Duration;

use poem_openapi::param::Query;
use poem_openapi::payload::{Json, PlainText};
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Tag;
use super::auth::ReadKey;
use super::error::{Code, Error};
use super::memory::{AnswerMemory, BodyLimits};
use super::problem::ReadFailure;
use crate::ingest::Ingest;
use crate::store::Store;
use crate::telemetry::{Metrics, Snapshot};

pub(super) struct Ops {
    pub(super) store: Store,
    pub(super) ingest: Ingest,
    pub(super) stopping: super::Stopping,
    /// The last look at the database, and how it was.
    pub(super) looked: Mutex<Option<(Instant, Health)>>,
    /// Absent where the metrics have a listener of their own.
    pub(super) gauges: Option<Gauges>,
}

/// How long a look at the database is good for.
const FRESH: Duration = Duration::from_millis(500);

/// How the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    Away,
    /// It answers, but its schema was not up to date yet at any time.
    NotPrepared,
}

impl Ops {
    /// One look at a time for all who ask: they need no key, and could ask often.
    async fn database(&self) -> Health {
        let mut looked = self.looked.lock().await;
        if let Some((when, health)) = *looked
            && when.elapsed() < FRESH
        {
            return health;
        }
        let health = match self.store.ping().await {
            Ok(()) if self.store.is_prepared() => Health::Well,
            Ok(()) => Health::NotPrepared,
            Err(error) => {
                let cause = error.to_string();
                tracing::debug!(cause, "the database is away");
                Health::Away
            }
        };
        *looked = Some((Instant::now(), health));
        health
    }
}

/// Everything that the metrics are read from.
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
        // In the order in which they go on, so that what is under way is seen once at least.
        let (marks_waiting, waiting) = (self.ingest.marks_waiting(), self.ingest.waiting());
        let spool = self.ingest.spool().unwrap_or_default();
        let text = self.metrics.text(Snapshot {
            connections: [used, idle],
            max_connections: self.store.max_connections(),
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
        text.map_err(|error| Error::new(Code::Internal, "the log says more").because(error))
    }
}

/// What can be sent to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
enum Part {
    /// Callbacks: taken, also while the database is away.
    Callbacks,
    /// Reads.
    Reads,
}

/// The state of the service.
#[derive(Object)]
#[oai(example)]
struct Status {
    /// Always "ok"; anything else is another HTTP status.
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
    /// Is the process alive?
    ///
    /// Asks nobody else: restart the process when this does not answer.
    #[oai(path = "/livez", method = "get", operation_id = "livez")]
    async fn livez(&self) -> Result<Json<Status>, ReadFailure> {
        Ok(Json(Status::example()))
    }

    /// Can it work?
    ///
    /// Asks the database: send no traffic here while this answers 503. Its `detail` has a word for
    /// each part that is not ready: `service: stopping`, `database: away` (reads get 503 then),
    /// `schema: not up to date` (the log says why; reads get 503 where tables are missing), and what
    /// becomes of callbacks where they are not written to the database at once: `callbacks: spooled`
    /// (they wait on disk and are answered as done) or `callbacks: refused` (there is no room for them
    /// either). `spool: blocked` says that what waits on disk is not written, for an entry of it is of a
    /// newer version of the service. Where callbacks and reads can be sent to different instances, ask
    /// for one of them.
    #[oai(path = "/readyz", method = "get", operation_id = "readyz")]
    async fn readyz(
        &self,
        /// Only whether callbacks are taken, or only whether reads are answered.
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
                Health::Well => None,
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

    /// What has it done?
    ///
    /// Metrics in Prometheus' text format. Needs a token where API_TOKEN is set; METRICS_ADDR gives
    /// them a listener of their own instead, where they need none.
    #[oai(path = "/metrics", method = "get", operation_id = "metrics")]
    async fn metrics(&self, _key: ReadKey) -> Result<MetricsAnswer, ReadFailure> {
        let Some(gauges) = &self.gauges else {
            let detail = "METRICS_ADDR: the metrics are served there";
            return Err(Error::new(Code::PathUnknown, detail).into());
        };
        Ok(MetricsAnswer::Text(PlainText(gauges.text()?)))
    }
}
