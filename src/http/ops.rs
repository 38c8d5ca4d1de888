//! Operations of the service itself: liveness, readiness, metrics.

use std::sync::Arc;
use std::time::Duration;

use poem::http::header::CACHE_CONTROL;
use poem::web::Data;
use poem::{IntoResponse, Request, Response, handler};
use poem_openapi::param::Query;
use poem_openapi::payload::PlainText;
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Enum, OpenApi};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::HttpParts;
use super::error::{Code, Error, ReadFailure};
use super::json_response::{JsonResponse, json_object};
use super::server::auth::{Access, ReadKey, Tag};
use super::server::memory::{AnswerMemory, BodyLimits};
use crate::telemetry::Snapshot;

pub(super) struct Ops {
    pub(super) gauges: Gauges,
    /// False if the metrics have their own listener.
    pub(super) serves_metrics: bool,
    /// Last check of the database, with the reason why it is not ready.
    pub(super) last_check: Mutex<Option<(Instant, Option<&'static str>)>>,
}

/// Interval of checks of the database.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl Ops {
    /// Checks the database, once an interval for all callers: they need no key, and could ask often.
    /// Returns the reason why it is not ready.
    async fn check_database(&self) -> Option<&'static str> {
        let mut last_check = self.last_check.lock().await;
        if let Some((when, reason)) = *last_check
            && when.elapsed() < CHECK_INTERVAL
        {
            return reason;
        }
        let store = &self.gauges.parts.store;
        let reason = match store.ping().await {
            Ok(()) if store.is_prepared() => None,
            // It answers, but its schema has never been up to date.
            Ok(()) => Some("schema: not up to date"),
            Err(error) => {
                let cause = error.to_string();
                tracing::debug!(cause, "the database is away");
                Some("database: away")
            }
        };
        *last_check = Some((Instant::now(), reason));
        reason
    }
}

/// Sources of the metrics.
#[derive(Clone)]
pub(super) struct Gauges {
    pub(super) parts: HttpParts,
    pub(super) bodies: Arc<BodyLimits>,
    pub(super) answers: Arc<AnswerMemory>,
}

impl Gauges {
    fn text(&self) -> Result<String, Error> {
        let (store, ingest) = (&self.parts.store, &self.parts.ingest);
        let (used, idle) = store.connections();
        // In the order of the work, so that no work is missed on its way.
        let (marks_waiting, waiting) = (ingest.marks_waiting(), ingest.waiting());
        let spool = ingest.spool().unwrap_or_default();
        let text = self.parts.metrics.text(Snapshot {
            connections: [used, idle],
            max_connections: store.max_connections,
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

/// Serves the metrics on their own listener. They need no key there.
#[handler]
pub(super) fn metrics_alone(
    request: &Request,
    gauges: Data<&Gauges>,
    access: Data<&Access>,
) -> poem::Result<Response> {
    access.check_host(request, false)?;
    let answer = MetricsAnswer::Text(PlainText(gauges.text()?));
    Ok(answer
        .with_header(CACHE_CONTROL, "no-store")
        .into_response())
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

json_object! {
    /// The state of the service.
    #[oai(example)]
    struct Status {
        /// Always "ok". Any other state has another HTTP status.
        status "status": String = "ok".into();
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
    async fn livez(&self) -> Result<JsonResponse<Status>, ReadFailure> {
        Ok(JsonResponse(Status::example()))
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
    ) -> Result<JsonResponse<Status>, ReadFailure> {
        let mut reasons = Vec::new();
        if self.gauges.parts.stopping.has_begun() {
            reasons.push("service: stopping");
        }
        let spool = self.gauges.parts.ingest.spool().unwrap_or_default();
        let database = match part.0 {
            Some(Part::Callbacks) => None,
            Some(Part::Reads) | None => self.check_database().await,
        };
        reasons.extend(database);
        if part.0.is_none() && spool.is_blocked {
            reasons.push("spool: blocked");
        }
        let is_behind = database.is_some() || spool.is_blocked;
        if spool.is_diverting && (spool.is_refusing || spool.is_absent) {
            if part.0 != Some(Part::Reads) {
                reasons.push("callbacks: refused");
            }
        } else if part.0.is_none() && spool.is_diverting && is_behind {
            reasons.push("callbacks: spooled");
        }
        if reasons.is_empty() {
            return Ok(JsonResponse(Status::example()));
        }
        Err(Error::new(Code::NotReady, reasons.join("; ")).into())
    }

    /// Metrics
    ///
    /// Metrics in Prometheus' text format. Needs a token if API_TOKEN is set. With METRICS_ADDR they
    /// have their own listener instead, and need no token.
    #[oai(path = "/metrics", method = "get", operation_id = "metrics")]
    async fn metrics(&self, _key: ReadKey) -> Result<MetricsAnswer, ReadFailure> {
        if !self.serves_metrics {
            let detail = "METRICS_ADDR: the metrics are served there";
            return Err(Error::new(Code::PathUnknown, detail).into());
        }
        Ok(MetricsAnswer::Text(PlainText(self.gauges.text()?)))
    }
}
