//! Rejected callbacks: their bodies are kept, and their groups are marked.

use bytes::Bytes;
use poem::http::{HeaderValue, StatusCode};
use time::OffsetDateTime;

use crate::domain::{MAX_KEPT_BYTES, MarkReason, Rejected};
use crate::http::callbacks;
use crate::http::error::{Code, Error};
use crate::ingest::Ingest;
use crate::telemetry::Metrics;

/// True if a callback with this answer is kept: its body cannot be understood.
pub(super) fn is_kept(status: StatusCode) -> bool {
    [StatusCode::BAD_REQUEST, StatusCode::UNSUPPORTED_MEDIA_TYPE].contains(&status)
}

/// The request of a rejected callback, without its body.
pub(super) struct RejectedRequest<'a> {
    pub(super) path: &'a str,
    pub(super) operation_id: Option<&'a HeaderValue>,
    pub(super) received_at: OffsetDateTime,
}

/// Keeps the body, marks the group that it names, and counts it.
pub(super) async fn keep(
    ingest: &Ingest,
    metrics: &Metrics,
    request: RejectedRequest<'_>,
    error: &Error,
    body: Bytes,
) {
    // After a mismatch, the body is of another command, and its group id may mean something else.
    if error.code != Code::CommandMismatch
        && let Some(group) = callbacks::group_of(&body)
    {
        ingest.mark_unwaited(group, MarkReason::CallbackRejected);
    }
    let code = error.code.name();
    let operation_id = request.operation_id.and_then(|id| id.to_str().ok());
    let rejected = Rejected {
        received_at: request.received_at,
        path: request.path.to_owned(),
        operation_id: operation_id.map(str::to_owned),
        code: code.to_owned(),
        detail: error.detail.to_string(),
        body: body.slice(..body.len().min(MAX_KEPT_BYTES)),
        body_bytes: body.len() as u64,
    };
    let kept = ingest.keep_rejected(rejected).await;
    let is_kept = match kept {
        Ok(true) => "yes",
        _ => "no",
    };
    metrics.rejected.inc([code, is_kept]);
    if let Err(cause) = kept {
        let cause = cause.to_string();
        tracing::error!(code, cause, "a rejected callback could not be kept");
    }
}
