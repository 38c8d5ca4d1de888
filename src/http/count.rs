//! The count and the time of every answer.

use std::time::Instant;

use poem::http::StatusCode;

use super::document::Route;
use super::error::Code;
use crate::telemetry::{Answer, Metrics};

/// Counts an answer on drop, also where none was given: the connection was cut at the stop.
pub(super) struct Count<'a> {
    metrics: &'a Metrics,
    pub(super) began: Instant,
    is_callback: bool,
    pub(super) route: Option<&'a Route>,
    pub(super) code: Option<Code>,
    pub(super) status: Option<StatusCode>,
}

impl<'a> Count<'a> {
    pub(super) fn new(metrics: &'a Metrics, is_callback: bool) -> Self {
        Self {
            metrics,
            began: Instant::now(),
            is_callback,
            route: None,
            code: None,
            status: None,
        }
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        let other = "other";
        let answer = if self.is_callback {
            Answer::Callback {
                command: self
                    .route
                    .and_then(|route| route.command.as_deref())
                    .unwrap_or(other),
                outcome: match (self.status, self.code) {
                    (None, _) => "unanswered",
                    (Some(_), Some(code)) => code.name(),
                    (Some(_), None) => "ok",
                },
            }
        } else {
            Answer::Read {
                route: self.route.map_or(other, |route| route.path.as_str()),
                status: self
                    .status
                    .as_ref()
                    .map_or("unanswered", StatusCode::as_str),
            }
        };
        self.metrics.answered(answer, self.began.elapsed());
    }
}
