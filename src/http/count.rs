//! The count and the time of every answer.

use std::time::Instant;

use poem::http::StatusCode;

use super::callbacks::{self, commands};
use super::document::{Route, Routes};
use super::error::{Code, Door};
use crate::telemetry::{Answer, Metrics};

/// What stands for every path that is not documented.
const OTHER: &str = "other";
const OK: &str = "ok";
const UNANSWERED: &str = "unanswered";

/// Starts the counts of all callbacks at zero, and those of reads that fail.
pub(super) fn begin(metrics: &Metrics, routes: &Routes) {
    let commands = routes.values().filter_map(|route| route.command.as_deref());
    for command in commands.chain([OTHER]) {
        let codes = Code::told_at(Door::Callback).map(Code::name);
        metrics.begin_callback(command, codes.chain([OK, UNANSWERED]));
    }
    let kept = Code::told_at(Door::Callback).filter(|code| is_kept(code.status()));
    metrics.begin_rejected(kept.map(Code::name));
    metrics.begin_passed_over(commands::labels());
    metrics.begin_hinted(callbacks::hint_outcomes());
    let reads = routes.values().filter(|route| route.command.is_none());
    for path in reads.map(|route| route.path.as_str()).chain([OTHER]) {
        let statuses = Code::told_at(Door::Read).map(Code::status);
        let failures: Vec<StatusCode> = statuses.filter(StatusCode::is_server_error).collect();
        metrics.begin_read(path, failures.iter().map(StatusCode::as_str));
    }
}

/// Whether a callback that was answered with this status is kept: its body was not understood.
pub(super) fn is_kept(status: StatusCode) -> bool {
    [StatusCode::BAD_REQUEST, StatusCode::UNSUPPORTED_MEDIA_TYPE].contains(&status)
}

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
        let answer = if self.is_callback {
            Answer::Callback {
                command: self
                    .route
                    .and_then(|route| route.command.as_deref())
                    .unwrap_or(OTHER),
                outcome: match (self.status, self.code) {
                    (None, _) => UNANSWERED,
                    (Some(_), Some(code)) => code.name(),
                    (Some(_), None) => OK,
                },
            }
        } else {
            Answer::Read {
                route: self.route.map_or(OTHER, |route| route.path.as_str()),
                status: self.status.as_ref().map_or(UNANSWERED, StatusCode::as_str),
            }
        };
        self.metrics.answered(answer, self.began.elapsed());
    }
}
