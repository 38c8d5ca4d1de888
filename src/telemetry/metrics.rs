//! Every metric: its name, help and labels. No label has a value that a caller chooses.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use time::OffsetDateTime;

use crate::domain::{HintKind, RepairCounts, RepairKind};

/// A mistake in a metric's definition.
pub use prometheus::Error;

/// Seconds; a write is one commit, about a millisecond on a good disk, and OpenIM gives up at 5 s.
const BUCKETS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// Seconds; a mark waits for RECONCILE_DELAY_MS, and for OpenIM.
const CHECK_BUCKETS: [f64; 10] = [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// Seconds; a look waits for 50 ms after most hints, for 1 s at most after some, and for OpenIM.
const HINT_BUCKETS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// The metrics of one running service.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    callbacks: IntCounterVec,
    callback_seconds: HistogramVec,
    reads: IntCounterVec,
    read_seconds: HistogramVec,
    rejected: IntCounterVec,
    passed_over: IntCounterVec,
    hints: IntCounterVec,
    looks: IntCounterVec,
    look_calls: IntCounter,
    hint_seconds: Histogram,
    older_keys: IntCounterVec,
    connections: IntGauge,
    accept_errors: IntCounter,
    pool: IntGaugeVec,
    pool_max: IntGauge,
    body_memory: IntGauge,
    answer_memory: IntGauge,
    waiting: IntGauge,
    marks_waiting: IntGauge,
    spool_entries: IntGauge,
    spool_bytes: IntGauge,
    spool_oldest: IntGauge,
    spooled: IntCounter,
    drained: IntCounter,
    spool_refused: IntCounter,
    spool_rejected: IntCounter,
    spool_usable: IntGauge,
    spool_blocked: IntGauge,
    openim_calls: IntCounterVec,
    cycles: IntCounterVec,
    interval: IntGauge,
    last_cycle: IntGauge,
    compared: IntCounter,
    repairs: IntCounterVec,
    check_seconds: Histogram,
    checks_wanted: IntGauge,
    oldest_check: IntGauge,
    /// One text at a time: counters are brought up to what is counted elsewhere.
    text: Mutex<()>,
}

/// An answer to count.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// To a callback.
    Callback {
        /// The command, one of those that are documented, or "other".
        command: &'a str,
        /// "ok", the code of the error, or "unanswered".
        outcome: &'a str,
    },
    /// To anything else.
    Read {
        /// The template of its path, or "other".
        route: &'a str,
        /// The HTTP status, or "unanswered".
        status: &'a str,
    },
}

/// What is looked at when the metrics are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Connections to Postgres at work.
    pub pool_used: usize,
    /// Connections to Postgres waiting for work.
    pub pool_idle: usize,
    /// Most connections to Postgres.
    pub pool_max: usize,
    /// What request bodies take, in bytes.
    pub body_memory: usize,
    /// Memory that answers to reads take, in bytes.
    pub answer_memory: usize,
    /// Changes that wait for a lane.
    pub waiting: usize,
    /// Groups that wait to be marked.
    pub marks_waiting: usize,
    /// Entries in the spool.
    pub spool_entries: u64,
    /// What they take, in bytes.
    pub spool_bytes: u64,
    /// How long the first has waited.
    pub spool_oldest: Duration,
    /// Entries that went there since the start.
    pub spooled: u64,
    /// Those that were written out of it.
    pub drained: u64,
    /// Those that it did not take.
    pub spool_refused: u64,
    /// Those that the database did not take out of it.
    pub spool_rejected: u64,
    /// Whether its folder can be used.
    pub spool_usable: bool,
    /// Whether an entry of a newer version holds up what waits.
    pub spool_blocked: bool,
}

impl Metrics {
    /// All of them, at zero.
    ///
    /// # Errors
    /// When two have one name, which would be a mistake of ours.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new_custom(Some("openim_group_mirror".into()), None)?;
        let inner = Inner {
            callbacks: IntCounterVec::new(
                Opts::new(
                    "callbacks_total",
                    "Callbacks answered, by command and outcome: ok, or the code of the error.",
                ),
                &["command", "outcome"],
            )?,
            callback_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "callback_duration_seconds",
                    "Time from a callback's head to its answer, by command.",
                )
                .buckets(BUCKETS.to_vec()),
                &["command"],
            )?,
            reads: IntCounterVec::new(
                Opts::new(
                    "reads_total",
                    "Other requests answered, by route and HTTP status.",
                ),
                &["route", "status"],
            )?,
            read_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "read_duration_seconds",
                    "Time from a request's head to its answer, by route.",
                )
                .buckets(BUCKETS.to_vec()),
                &["route"],
            )?,
            rejected: IntCounterVec::new(
                Opts::new(
                    "rejected_callbacks_total",
                    "Callbacks whose body could not be understood, by code, and whether they were kept.",
                ),
                &["code", "kept"],
            )?,
            passed_over: IntCounterVec::new(
                Opts::new(
                    "passed_over_callbacks_total",
                    "Callbacks that say nothing of the mirror, answered and not looked at, by command: one of OpenIM's, or other.",
                ),
                &["command"],
            )?,
            hints: IntCounterVec::new(
                Opts::new(
                    "hints_total",
                    "OpenIM's notifications of groups, by content type and outcome: due (the group is to be looked at), merged (it was already), dropped (all groups are compared instead), marked or ignored (without OpenIM's API), unreadable (without a group), or failed (the mark was not written).",
                ),
                &["type", "outcome"],
            )?,
            looks: IntCounterVec::new(
                Opts::new(
                    "looks_total",
                    "Groups that were looked at because of hints, by outcome: compared, left (as they are, for a person to decide), unknown (to OpenIM), again (somebody else looked just then) or failed (not read or not written; due again after a pause).",
                ),
                &["outcome"],
            )?,
            look_calls: IntCounter::new(
                "look_calls_total",
                "Calls of OpenIM's API for these looks, 200 a second at most.",
            )?,
            hint_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "hint_delay_seconds",
                    "Time from the first hint of a group to the end of the look that followed it.",
                )
                .buckets(HINT_BUCKETS.to_vec()),
            )?,
            older_keys: IntCounterVec::new(
                Opts::new(
                    "older_keys_total",
                    "Requests let in by CALLBACK_PASSWORD_PREVIOUS, or by a token that is not the first of API_TOKEN, by door: callbacks or reads.",
                ),
                &["door"],
            )?,
            connections: IntGauge::new("http_connections", "Open HTTP connections.")?,
            accept_errors: IntCounter::new(
                "http_accept_errors_total",
                "HTTP connections that could not be accepted.",
            )?,
            pool: IntGaugeVec::new(
                Opts::new(
                    "database_connections",
                    "Open connections to Postgres, by state: used or idle.",
                ),
                &["state"],
            )?,
            pool_max: IntGauge::new(
                "database_connections_max",
                "Most connections to Postgres (DATABASE_POOL_SIZE).",
            )?,
            body_memory: IntGauge::new(
                "body_memory_bytes",
                "Memory that request bodies take (MAX_BODY_MEMORY at most).",
            )?,
            answer_memory: IntGauge::new(
                "answer_memory_bytes",
                "Memory that answers to reads take (MAX_ANSWER_MEMORY at most).",
            )?,
            waiting: IntGauge::new(
                "changes_waiting",
                "Changes that wait to be written; those that are being written are not counted.",
            )?,
            marks_waiting: IntGauge::new(
                "marks_waiting",
                "Groups to be marked because something about them was missed: more than a few only while the database is away.",
            )?,
            spool_entries: IntGauge::new(
                "spool_entries",
                "Changes and rejected bodies that wait in the spool for the database.",
            )?,
            spool_bytes: IntGauge::new(
                "spool_bytes",
                "What these take (SPOOL_MAX_BYTES at most).",
            )?,
            spool_oldest: IntGauge::new(
                "spool_oldest_seconds",
                "How long the first of them has waited; 0 where there is none.",
            )?,
            spooled: IntCounter::new(
                "spool_spooled_total",
                "Changes and rejected bodies that went to the spool.",
            )?,
            drained: IntCounter::new(
                "spool_drained_total",
                "Changes and rejected bodies that are done with: written to the database out of the spool or, where one was damaged, given up.",
            )?,
            spool_refused: IntCounter::new(
                "spool_refused_total",
                "Changes and rejected bodies that the spool did not take: it was full, or the disk refused.",
            )?,
            spool_rejected: IntCounter::new(
                "spool_rejected_total",
                "Changes that the database refused for good when they came out of the spool: they were answered as done, and are with the rejected callbacks.",
            )?,
            spool_usable: IntGauge::new(
                "spool_usable",
                "1: the spool's folder can be used. 0: it cannot, and callbacks are refused while the database is away.",
            )?,
            spool_blocked: IntGauge::new(
                "spool_blocked",
                "1: an entry of a newer version of the service is the first that waits in the spool, and nothing is written past it. 0: nothing of that kind.",
            )?,
            openim_calls: IntCounterVec::new(
                Opts::new(
                    "openim_calls_total",
                    "Calls of OpenIM's API, tries counted one by one, by path and outcome: ok, unreachable (also: the service behind the API is away), keys (the administrator or the secret is not accepted), refused (another error of OpenIM's own), too_many (its rate limit) or unreadable.",
                ),
                &["path", "outcome"],
            )?,
            cycles: IntCounterVec::new(
                Opts::new(
                    "reconcile_cycles_total",
                    "Comparisons of all groups with OpenIM, by outcome: ok, or why one did not come to its end or left members whom OpenIM does not have.",
                ),
                &["outcome"],
            )?,
            interval: IntGauge::new(
                "reconcile_interval_seconds",
                "From one comparison of all groups to the next (RECONCILE_INTERVAL_SECS); 0 where this process does none.",
            )?,
            last_cycle: IntGauge::new(
                "reconcile_last_cycle_timestamp_seconds",
                "When the last comparison of all groups came to its end, in seconds since 1970; 0 where this process has done none.",
            )?,
            compared: IntCounter::new(
                "reconcile_groups_compared_total",
                "Groups that were read from OpenIM and compared; those that have not changed are not read.",
            )?,
            repairs: IntCounterVec::new(
                Opts::new(
                    "reconcile_repairs_total",
                    "Rows that were not as in OpenIM and were made so, by kind.",
                ),
                &["kind"],
            )?,
            check_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "reconcile_check_delay_seconds",
                    "Time from the mark of a group to the end of its comparison.",
                )
                .buckets(CHECK_BUCKETS.to_vec()),
            )?,
            checks_wanted: IntGauge::new(
                "reconcile_checks_wanted",
                "Groups that want a check, counted every few seconds where this process compares.",
            )?,
            oldest_check: IntGauge::new(
                "reconcile_oldest_check_timestamp_seconds",
                "Since when the first of them does, in seconds since 1970; 0 where there is none.",
            )?,
            text: Mutex::default(),
            registry,
        };
        let build_info = IntGaugeVec::new(
            Opts::new("build_info", "1, with the version as a label."),
            &["version"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let Inner {
            registry,
            callbacks,
            callback_seconds,
            reads,
            read_seconds,
            rejected,
            passed_over,
            hints,
            looks,
            look_calls,
            hint_seconds,
            older_keys,
            connections,
            accept_errors,
            pool,
            pool_max,
            body_memory,
            answer_memory,
            waiting,
            marks_waiting,
            spool_entries,
            spool_bytes,
            spool_oldest,
            spooled,
            drained,
            spool_refused,
            spool_rejected,
            spool_usable,
            spool_blocked,
            openim_calls,
            cycles,
            interval,
            last_cycle,
            compared,
            repairs,
            check_seconds,
            checks_wanted,
            oldest_check,
            text: _,
        } = &inner;
        let all: [Box<dyn Collector>; 38] = [
            Box::new(callbacks.clone()),
            Box::new(callback_seconds.clone()),
            Box::new(reads.clone()),
            Box::new(read_seconds.clone()),
            Box::new(rejected.clone()),
            Box::new(passed_over.clone()),
            Box::new(hints.clone()),
            Box::new(looks.clone()),
            Box::new(look_calls.clone()),
            Box::new(hint_seconds.clone()),
            Box::new(older_keys.clone()),
            Box::new(connections.clone()),
            Box::new(accept_errors.clone()),
            Box::new(pool.clone()),
            Box::new(pool_max.clone()),
            Box::new(body_memory.clone()),
            Box::new(answer_memory.clone()),
            Box::new(waiting.clone()),
            Box::new(marks_waiting.clone()),
            Box::new(spool_entries.clone()),
            Box::new(spool_bytes.clone()),
            Box::new(spool_oldest.clone()),
            Box::new(spooled.clone()),
            Box::new(drained.clone()),
            Box::new(spool_refused.clone()),
            Box::new(spool_rejected.clone()),
            Box::new(spool_usable.clone()),
            Box::new(spool_blocked.clone()),
            Box::new(openim_calls.clone()),
            Box::new(cycles.clone()),
            Box::new(interval.clone()),
            Box::new(last_cycle.clone()),
            Box::new(compared.clone()),
            Box::new(repairs.clone()),
            Box::new(check_seconds.clone()),
            Box::new(checks_wanted.clone()),
            Box::new(oldest_check.clone()),
            Box::new(build_info),
        ];
        for collector in all {
            registry.register(collector)?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Counts an answer.
    pub fn answered(&self, answer: Answer<'_>, took: Duration) {
        let (count, seconds) = match answer {
            Answer::Callback { command, outcome } => (
                self.0.callbacks.with_label_values(&[command, outcome]),
                self.0.callback_seconds.with_label_values(&[command]),
            ),
            Answer::Read { route, status } => (
                self.0.reads.with_label_values(&[route, status]),
                self.0.read_seconds.with_label_values(&[route]),
            ),
        };
        count.inc();
        seconds.observe(took.as_secs_f64());
    }

    /// Starts the counts of a callback at zero: Prometheus sees an increase only where it has seen
    /// what was before, and already the first callback that fails is one to hear of.
    pub fn begin_callback<'a>(&self, command: &str, outcomes: impl Iterator<Item = &'a str>) {
        for outcome in outcomes {
            self.0.callbacks.with_label_values(&[command, outcome]);
        }
        self.0.callback_seconds.with_label_values(&[command]);
    }

    /// The same for reads that fail.
    pub fn begin_read<'a>(&self, route: &str, statuses: impl Iterator<Item = &'a str>) {
        for status in statuses {
            self.0.reads.with_label_values(&[route, status]);
        }
        self.0.read_seconds.with_label_values(&[route]);
    }

    /// The same for callbacks that could not be understood.
    pub fn begin_rejected<'a>(&self, codes: impl Iterator<Item = &'a str>) {
        for code in codes {
            for kept in ["yes", "no"] {
                self.0.rejected.with_label_values(&[code, kept]);
            }
        }
    }

    /// The same for callbacks that say nothing of the mirror.
    pub fn begin_passed_over<'a>(&self, commands: impl Iterator<Item = &'a str>) {
        for command in commands {
            self.0.passed_over.with_label_values(&[command]);
        }
    }

    /// Counts a callback that could not be understood.
    pub fn rejected(&self, code: &str, kept: bool) {
        let kept = if kept { "yes" } else { "no" };
        self.0.rejected.with_label_values(&[code, kept]).inc();
    }

    /// Counts a callback that says nothing of the mirror.
    pub fn passed_over(&self, command: &str) {
        self.0.passed_over.with_label_values(&[command]).inc();
    }

    /// The same for notifications.
    pub fn begin_hinted<'a>(&self, outcomes: impl Iterator<Item = &'a str>) {
        for outcome in outcomes {
            for kind in HintKind::ALL {
                let labels = [kind.label(), outcome];
                self.0.hints.with_label_values(&labels);
            }
        }
    }

    /// Counts a notification.
    pub fn hinted(&self, kind: HintKind, outcome: &str) {
        self.0
            .hints
            .with_label_values(&[kind.label(), outcome])
            .inc();
    }

    /// Starts the counts of looks at zero.
    pub fn begin_looks<'a>(&self, outcomes: impl Iterator<Item = &'a str>) {
        for outcome in outcomes {
            self.0.looks.with_label_values(&[outcome]);
        }
    }

    /// Counts a look at a group that a hint has asked for so long ago, if it was one.
    pub fn looked(&self, outcome: &str, since: Option<Duration>) {
        self.0.looks.with_label_values(&[outcome]).inc();
        if let Some(since) = since {
            self.0.hint_seconds.observe(since.as_secs_f64());
        }
    }

    /// Counts a call of OpenIM's API for such a look.
    pub fn look_called(&self) {
        self.0.look_calls.inc();
    }

    /// Counts a request that was let in by a key that is to be dropped.
    pub fn older_key(&self, is_callback: bool) {
        let door = if is_callback { "callbacks" } else { "reads" };
        self.0.older_keys.with_label_values(&[door]).inc();
    }

    /// Tells that all groups are compared with OpenIM every `interval`, and starts the counts of that
    /// at zero. `failures`: why a comparison may not come to its end.
    pub fn begin_comparing(&self, interval: Duration, failures: &[&str]) {
        let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
        self.0.interval.set(seconds);
        for kind in RepairKind::ALL {
            self.0.repairs.with_label_values(&[kind.name()]);
        }
        for outcome in ["ok"].iter().chain(failures) {
            self.0.cycles.with_label_values(&[*outcome]);
        }
    }

    /// Counts a call of OpenIM's API.
    pub fn called_openim(&self, path: &str, outcome: &str) {
        self.0
            .openim_calls
            .with_label_values(&[path, outcome])
            .inc();
    }

    /// Counts a comparison of all groups.
    pub fn cycle_done(&self, outcome: &str) {
        self.0.cycles.with_label_values(&[outcome]).inc();
        if outcome == "ok" {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            self.0.last_cycle.set(now);
        }
    }

    /// Counts a group that was compared.
    pub fn compared_group(&self) {
        self.0.compared.inc();
    }

    /// Counts rows that were made as in OpenIM.
    pub fn repaired(&self, counts: RepairCounts) {
        for (kind, count) in counts.kinds() {
            let kind = kind.name();
            self.0.repairs.with_label_values(&[kind]).inc_by(count);
        }
    }

    /// A mark is gone that was there for so long.
    pub fn check_done(&self, waited: Duration) {
        self.0.check_seconds.observe(waited.as_secs_f64());
    }

    /// So many groups want a check, the first of them since `oldest`.
    pub fn checks_wanted(&self, groups: i64, oldest: Option<OffsetDateTime>) {
        self.0.checks_wanted.set(groups);
        let oldest = oldest.map_or(0, OffsetDateTime::unix_timestamp);
        self.0.oldest_check.set(oldest);
    }

    /// One more open HTTP connection.
    pub fn connection_opened(&self) {
        self.0.connections.inc();
    }

    /// One less.
    pub fn connection_closed(&self) {
        self.0.connections.dec();
    }

    /// Counts a connection that could not be accepted.
    pub fn accept_error(&self) {
        self.0.accept_errors.inc();
    }

    /// All of them in Prometheus' text format, those of the process too.
    ///
    /// # Errors
    /// When the text cannot be written, which would be a mistake of ours.
    pub fn text(&self, snapshot: Snapshot) -> Result<String, Error> {
        let Snapshot {
            pool_used,
            pool_idle,
            pool_max,
            body_memory,
            answer_memory,
            waiting,
            marks_waiting,
            spool_entries,
            spool_bytes,
            spool_oldest,
            spooled,
            drained,
            spool_refused,
            spool_rejected,
            spool_usable,
            spool_blocked,
        } = snapshot;
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let inner = &self.0;
        inner
            .pool
            .with_label_values(&["used"])
            .set(number(pool_used));
        inner
            .pool
            .with_label_values(&["idle"])
            .set(number(pool_idle));
        inner.pool_max.set(number(pool_max));
        inner.body_memory.set(number(body_memory));
        inner.answer_memory.set(number(answer_memory));
        inner.waiting.set(number(waiting));
        inner.marks_waiting.set(number(marks_waiting));
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        inner.spool_entries.set(number(spool_entries));
        inner.spool_bytes.set(number(spool_bytes));
        inner.spool_oldest.set(number(spool_oldest.as_secs()));
        inner.spool_usable.set(spool_usable.into());
        inner.spool_blocked.set(spool_blocked.into());
        {
            let _one = inner.text.lock().unwrap_or_else(PoisonError::into_inner);
            for (counter, total) in [
                (&inner.spooled, spooled),
                (&inner.drained, drained),
                (&inner.spool_refused, spool_refused),
                (&inner.spool_rejected, spool_rejected),
            ] {
                counter.inc_by(total.saturating_sub(counter.get()));
            }
        }
        let mut families = inner.registry.gather();
        families.extend(process());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// CPU, memory and open files of the process, by the names that every Prometheus client uses.
#[cfg(target_os = "linux")]
fn process() -> Vec<prometheus::proto::MetricFamily> {
    prometheus::process_collector::ProcessCollector::for_self().collect()
}

/// Read from /proc, so on Linux only.
#[cfg(not(target_os = "linux"))]
fn process() -> Vec<prometheus::proto::MetricFamily> {
    Vec::new()
}
