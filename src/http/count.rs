//! The count and the time of every answer.

use std::time::Instant;

use poem::http::StatusCode;

use super::document::{Route, Routes};
use super::error::{Code, Door};
use super::{callbacks, commands};
use crate::domain::HintKind;
use crate::telemetry::Metrics;

/// What stands for every path that is not documented.
const OTHER: &str = "other";
const OK: &str = "ok";
const UNANSWERED: &str = "unanswered";

/// Starts the counts of all callbacks at zero, and those of reads that fail.
pub(super) fn begin(metrics: &Metrics, routes: &Routes) {
    let all = routes.values();
    let commands: Vec<&str> = all
        .clone()
        .filter_map(|route| route.command.as_deref())
        .chain([OTHER])
        .collect();
    let codes = || Code::told_at(Door::Callback);
    let outcomes: Vec<&str> = codes().map(Code::name).chain([OK, UNANSWERED]).collect();
    metrics.callbacks.begin([&commands, &outcomes]);
    metrics.callback_seconds.begin([&commands]);
    let kept = codes().filter(|code| is_kept(code.status()));
    let kept: Vec<&str> = kept.map(Code::name).collect();
    metrics.rejected.begin([&kept, &["yes", "no"]]);
    let passed_over: Vec<&str> = commands::labels().collect();
    metrics.passed_over.begin([&passed_over]);
    let kinds: Vec<&str> = HintKind::ALL.iter().map(|kind| kind.label()).collect();
    let outcomes: Vec<&str> = callbacks::hint_outcomes().collect();
    metrics.hints.begin([&kinds, &outcomes]);
    let reads = all.filter(|route| route.command.is_none());
    let paths: Vec<&str> = reads
        .map(|route| route.path.as_str())
        .chain([OTHER])
        .collect();
    let failures: Vec<StatusCode> = Code::told_at(Door::Read)
        .map(Code::status)
        .filter(StatusCode::is_server_error)
        .collect();
    let failures: Vec<&str> = failures.iter().map(StatusCode::as_str).collect();
    metrics.reads.begin([&paths, &failures]);
    metrics.read_seconds.begin([&paths]);
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
