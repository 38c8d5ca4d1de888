//! The table of all metrics, and their text for Prometheus.
//!
//! A metric is one row: its doc comment is the HELP text, then come its type, its name, and its labels
//! with their values. No label has a value that a caller chooses.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use time::OffsetDateTime;

use crate::domain::{RepairCounts, RepairKind};

/// A mistake in a metric's definition.
pub use prometheus::Error;

/// Prefix of all names.
const PREFIX: &str = "openim_group_mirror";

/// Upper bounds in seconds. A write is one commit, about a millisecond on a good disk. OpenIM's timeout is
/// 5 s.
const REQUEST_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// Upper bounds in seconds. A mark waits for RECONCILE_DELAY_MS and for OpenIM.
const MARK_BUCKETS: &[f64] = &[0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// Upper bounds in seconds. A look waits 50 ms after most hints, at most 1 s after some, and for OpenIM.
const LOOK_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// The values of a label that another part knows. It starts the series at zero with `begin`.
const BY_PART: &[&str] = &[];

/// Makes of the rows the structs [`Table`] and [`Snapshot`], and the list of all names.
macro_rules! metrics {
    (
        recorded {
            $( $(#[doc = $help:literal])+
            $field:ident: $type:ty = $name:literal ($($label:literal in $values:expr),*) $($buckets:expr)?; )+
        }
        read {
            $( $(#[doc = $read_help:literal])+
            $read:ident: $read_type:ty = $kind:ident $read_name:literal ($($read_label:literal in $read_values:expr)?); )+
        }
    ) => {
        /// Metrics that the service counts where something happens.
        #[derive(Debug)]
        pub struct Table {
            registry: Registry,
            $( $(#[doc = $help])+ pub $field: $type, )+
        }

        impl Table {
            fn new() -> Result<Self, Error> {
                let registry = Registry::new_custom(Some(PREFIX.into()), None)?;
                $( let $field = <$type>::new(
                    &registry,
                    $name,
                    &help(&[$($help),+]),
                    [$($label),*],
                    [$(&$values),*],
                    $($buckets)?
                )?; )+
                Ok(Self { registry, $($field),+ })
            }
        }

        /// Values that are read when the metrics are asked for.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Snapshot {
            $( $(#[doc = $read_help])+ pub $read: $read_type, )+
        }

        impl Snapshot {
            fn collect(self) -> Result<Vec<MetricFamily>, Error> {
                let registry = Registry::new_custom(Some(PREFIX.into()), None)?;
                $( $kind(
                    &registry,
                    Opts::new($read_name, help(&[$($read_help),+])),
                    (&[$($read_label)?], &[$($read_values)?]),
                    self.$read,
                )?; )+
                Ok(registry.gather())
            }
        }

        #[cfg(test)]
        const NAMES: &[&str] = &[$($name,)+ $($read_name,)+];
    };
}

metrics! {
    recorded {
        /// Callbacks answered, by command and outcome: ok, or the code of the error.
        callbacks: Counter<2> = "callbacks_total" ("command" in BY_PART, "outcome" in BY_PART);
        /// Time from the head of a callback to its answer, by command.
        callback_seconds: Histogram<1> = "callback_duration_seconds" ("command" in BY_PART) REQUEST_BUCKETS;
        /// Other requests answered, by route and HTTP status.
        reads: Counter<2> = "reads_total" ("route" in BY_PART, "status" in BY_PART);
        /// Time from the head of a request to its answer, by route.
        read_seconds: Histogram<1> = "read_duration_seconds" ("route" in BY_PART) REQUEST_BUCKETS;
        /// Callbacks with a body that could not be understood, by code. The label kept says if the body
        /// was kept.
        rejected: Counter<2> = "rejected_callbacks_total" ("code" in BY_PART, "kept" in ["yes", "no"]);
        /// Callbacks that say nothing about the mirror. They are answered and not read further. By
        /// command: one of OpenIM's, or other.
        passed_over: Counter<1> = "passed_over_callbacks_total" ("command" in BY_PART);
        /// OpenIM's notifications of groups, by content type and outcome: due (a look at the group
        /// follows), merged (a look was already due), dropped (a run of all groups follows instead),
        /// marked or ignored (without access to OpenIM's API), unreadable (it names no group), failed
        /// (the mark was not written).
        hints: Counter<2> = "hints_total" ("type" in BY_PART, "outcome" in BY_PART);
        /// Looks at groups after hints, by outcome: compared, left (an operator must decide), unknown
        /// (OpenIM does not have the group), again (another look at the group was in progress), failed
        /// (not read or not written, due again after a pause).
        looks: Counter<1> = "looks_total" ("outcome" in BY_PART);
        /// Calls of OpenIM's API for looks, at most 200 a second.
        look_calls: Counter<0> = "look_calls_total" ();
        /// Time from the first hint of a group to the end of the look that followed it.
        hint_seconds: Histogram<0> = "hint_delay_seconds" () LOOK_BUCKETS;
        /// Requests with an older key, by door: callbacks (CALLBACK_PASSWORD_PREVIOUS) or reads (a token of
        /// API_TOKEN that is not the first).
        older_keys: Counter<1> = "older_keys_total" ("door" in ["callbacks", "reads"]);
        /// Open HTTP connections.
        connections: Gauge<0> = "http_connections" ();
        /// HTTP connections that could not be accepted.
        accept_errors: Counter<0> = "http_accept_errors_total" ();
        /// Calls of OpenIM's API, each try counted, by path and outcome: ok, unreachable (or the service
        /// behind the API is), keys (the administrator or the secret is wrong), refused (another error of
        /// OpenIM), too_many (rate limit), unreadable.
        openim_calls: Counter<2> = "openim_calls_total" ("path" in BY_PART, "outcome" in BY_PART);
        /// Runs, by outcome: ok, or the reason why a run stopped or held removals back. A run reconciles
        /// all groups with OpenIM.
        cycles: Counter<1> = "reconcile_cycles_total" ("outcome" in BY_PART);
        /// Interval of runs (RECONCILE_INTERVAL_SECS). 0 if this process does not reconcile.
        interval: Gauge<0> = "reconcile_interval_seconds" ();
        /// Time when the last run ended with ok, in seconds since 1970. 0 if this process has done none.
        last_cycle: Gauge<0> = "reconcile_last_cycle_timestamp_seconds" ();
        /// Groups that were read from OpenIM and compared. Unchanged groups are not read.
        compared: Counter<0> = "reconcile_groups_compared_total" ();
        /// Rows that were repaired because they differed from OpenIM, by kind.
        repairs: Counter<1> = "reconcile_repairs_total" ("kind" in BY_PART);
        /// Time from the mark of a group to the end of its reconcile.
        mark_seconds: Histogram<0> = "reconcile_check_delay_seconds" () MARK_BUCKETS;
        /// Marked groups, counted every few seconds if this process reconciles.
        marked: Gauge<0> = "reconcile_checks_wanted" ();
        /// Time of the oldest mark, in seconds since 1970. 0 if no group is marked.
        oldest_mark: Gauge<0> = "reconcile_oldest_check_timestamp_seconds" ();
        /// Always 1. The label is the version.
        build_info: Gauge<1> = "build_info" ("version" in [env!("CARGO_PKG_VERSION")]);
    }
    read {
        /// Open connections to Postgres, by state: used or idle.
        connections: [usize; 2] = gauge "database_connections" ("state" in ["used", "idle"]);
        /// Limit of connections to Postgres (DATABASE_POOL_SIZE).
        max_connections: usize = gauge "database_connections_max" ();
        /// Memory of request bodies in bytes, at most MAX_BODY_MEMORY.
        body_memory: usize = gauge "body_memory_bytes" ();
        /// Memory of answers to reads in bytes, at most MAX_ANSWER_MEMORY.
        answer_memory: usize = gauge "answer_memory_bytes" ();
        /// Changes that wait for a lane. A change that is being written is not counted.
        waiting: usize = gauge "changes_waiting" ();
        /// Groups that wait for their mark because a change of theirs was missed. More than a few only while
        /// the database is away.
        marks_waiting: usize = gauge "marks_waiting" ();
        /// Entries in the spool: changes and rejected callbacks that wait for the database.
        spool_entries: u64 = gauge "spool_entries" ();
        /// Size of these entries in bytes, at most SPOOL_MAX_BYTES.
        spool_bytes: u64 = gauge "spool_bytes" ();
        /// Age of the oldest entry in the spool. 0 if the spool is empty.
        spool_oldest: Duration = gauge "spool_oldest_seconds" ();
        /// Entries that went to the spool.
        spooled: u64 = counter "spool_spooled_total" ();
        /// Entries that left the spool: written to the database or, if damaged, given up.
        drained: u64 = counter "spool_drained_total" ();
        /// Changes and rejected callbacks that the spool did not take because it was full or its disk failed.
        spool_refused: u64 = counter "spool_refused_total" ();
        /// Entries that the database refused for ever. They were answered as done, and are kept as rejected
        /// callbacks.
        spool_rejected: u64 = counter "spool_rejected_total" ();
        /// 1 if the spool's folder can be used. 0 if not: callbacks are refused while the database is away.
        spool_usable: bool = gauge "spool_usable" ();
        /// 1 if the first entry of the spool is of a newer version of the service, so nothing is drained. Else 0.
        spool_blocked: bool = gauge "spool_blocked" ();
    }
}

/// The lines of a doc comment as one text.
fn help(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// Every combination of one value from each list.
fn combinations<'a, const N: usize>(lists: [&[&'a str]; N]) -> Vec<[&'a str; N]> {
    let mut all = vec![[""; N]];
    for (at, list) in lists.into_iter().enumerate() {
        let with = |one: [&'a str; N]| {
            list.iter().map(move |value| {
                let mut one = one;
                one[at] = value;
                one
            })
        };
        all = all.into_iter().flat_map(with).collect();
    }
    all
}

/// Makes a type of metric with `N` labels.
macro_rules! kinds {
    ($( $(#[doc = $doc:literal])+ $kind:ident($inner:ty), $options:ident $(, $buckets:ident)?; )+) => { $(
        $(#[doc = $doc])+
        #[derive(Clone, Debug)]
        pub struct $kind<const N: usize>($inner);

        impl<const N: usize> $kind<N> {
            fn new(
                registry: &Registry,
                name: &str,
                help: &str,
                labels: [&str; N],
                values: [&[&str]; N],
                $($buckets: &[f64],)?
            ) -> Result<Self, Error> {
                let options = $options::new(name, help)$(.$buckets($buckets.to_vec()))?;
                let new = Self(<$inner>::new(options, &labels)?);
                registry.register(Box::new(new.0.clone()))?;
                new.begin(values);
                Ok(new)
            }

            /// Starts the series of every combination of these values at zero. Prometheus sees an increase only
            /// from a value that it has seen, and alerts fire at the first failure.
            pub fn begin(&self, values: [&[&str]; N]) {
                for labels in combinations(values) {
                    self.0.with_label_values(&labels);
                }
            }
        }
    )+ };
}

kinds! {
    /// A number that only grows.
    Counter(IntCounterVec), Opts;
    /// A number that goes up and down.
    Gauge(IntGaugeVec), Opts;
    /// Durations, counted by size.
    Histogram(HistogramVec), HistogramOpts, buckets;
}

impl<const N: usize> Counter<N> {
    /// Adds one.
    pub fn inc(&self, labels: [&str; N]) {
        self.add(labels, 1);
    }

    /// Adds `count`.
    pub fn add(&self, labels: [&str; N], count: u64) {
        self.0.with_label_values(&labels).inc_by(count);
    }
}

impl<const N: usize> Gauge<N> {
    /// Sets the value.
    pub fn set(&self, labels: [&str; N], value: i64) {
        self.0.with_label_values(&labels).set(value);
    }

    /// Adds to the value, or takes from it.
    pub fn add(&self, labels: [&str; N], value: i64) {
        self.0.with_label_values(&labels).add(value);
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts a duration.
    pub fn observe(&self, labels: [&str; N], took: Duration) {
        let histogram = self.0.with_label_values(&labels);
        histogram.observe(took.as_secs_f64());
    }
}

/// The value of a row that is read, as one number for each value of its label.
trait Reading {
    fn numbers(self) -> impl IntoIterator<Item = u64>;
}

macro_rules! readings {
    ($($type:ty: $value:ident => $numbers:expr;)+) => { $(
        impl Reading for $type {
            fn numbers(self) -> impl IntoIterator<Item = u64> {
                let $value = self;
                $numbers
            }
        }
    )+ };
}

readings! {
    u64: number => [number];
    usize: number => [number as u64];
    bool: yes => [u64::from(yes)];
    Duration: time => [time.as_secs()];
    [usize; 2]: both => both.map(|number| number as u64);
}

/// The label of a row that is read, if there is one, and its values.
type OneLabel<'a> = (&'a [&'a str], &'a [[&'a str; 2]]);

fn gauge(
    registry: &Registry,
    options: Opts,
    (label, values): OneLabel<'_>,
    reading: impl Reading,
) -> Result<(), Error> {
    let gauge = IntGaugeVec::new(options, label)?;
    let set = |labels: &[&str], number| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        gauge.with_label_values(labels).set(number);
    };
    match values.first() {
        None => reading.numbers().into_iter().for_each(|n| set(&[], n)),
        Some(values) => {
            for (value, number) in values.iter().zip(reading.numbers()) {
                set(&[*value], number);
            }
        }
    }
    registry.register(Box::new(gauge))
}

fn counter(
    registry: &Registry,
    options: Opts,
    _: OneLabel<'_>,
    reading: impl Reading,
) -> Result<(), Error> {
    let counter = IntCounter::with_opts(options)?;
    reading
        .numbers()
        .into_iter()
        .for_each(|n| counter.inc_by(n));
    registry.register(Box::new(counter))
}

/// The metrics of one running service. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Table>);

impl Deref for Metrics {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.0
    }
}

impl Metrics {
    /// Makes all metrics, at zero.
    ///
    /// # Errors
    /// If two rows have one name, which is a mistake in the table.
    pub fn new() -> Result<Self, Error> {
        let table = Table::new()?;
        table.build_info.set([env!("CARGO_PKG_VERSION")], 1);
        Ok(Self(Arc::new(table)))
    }

    /// Sets the interval of runs, and starts the series of runs at zero. `failures`: outcomes beside ok.
    pub fn begin_comparing(&self, interval: Duration, failures: &[&str]) {
        let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
        self.interval.set([], seconds);
        self.repairs.begin([&RepairKind::ALL.map(RepairKind::name)]);
        self.cycles.begin([&["ok"]]);
        self.cycles.begin([failures]);
    }

    /// Counts a run.
    pub fn cycle_done(&self, outcome: &str) {
        self.cycles.inc([outcome]);
        if outcome == "ok" {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            self.last_cycle.set([], now);
        }
    }

    /// Counts repaired rows.
    pub fn repaired(&self, counts: RepairCounts) {
        for (kind, count) in counts.kinds() {
            self.repairs.add([kind.name()], count);
        }
    }

    /// Sets the number of marked groups, and the time of the oldest mark.
    pub fn checks_wanted(&self, groups: i64, oldest: Option<OffsetDateTime>) {
        self.marked.set([], groups);
        let oldest = oldest.map_or(0, OffsetDateTime::unix_timestamp);
        self.oldest_mark.set([], oldest);
    }

    /// All metrics in Prometheus' text format, with those of the process.
    ///
    /// # Errors
    /// If the text cannot be written, which is a mistake in the table.
    pub fn text(&self, snapshot: Snapshot) -> Result<String, Error> {
        let mut families = self.registry.gather();
        families.extend(snapshot.collect()?);
        families.extend(process());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// CPU, memory and open files of the process, by the names that every Prometheus client uses.
#[cfg(target_os = "linux")]
fn process() -> Vec<MetricFamily> {
    prometheus::process_collector::ProcessCollector::for_self().collect()
}

/// Empty: the values are read from /proc, which only Linux has.
#[cfg(not(target_os = "linux"))]
fn process() -> Vec<MetricFamily> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Metrics that the dashboard does not show, each with the reason.
    const NOT_IN_DASHBOARD: &[(&str, &str)] = &[
        ("older_keys_total", "of use only while keys are changed"),
        (
            "reconcile_interval_seconds",
            "a setting; the alert on late runs uses it",
        ),
        ("spool_blocked", "an alert; 0 as a rule"),
        ("spool_bytes", "spool_entries is shown"),
        ("spool_drained_total", "spool_entries is shown"),
        ("spool_rejected_total", "an alert; 0 as a rule"),
        ("spool_spooled_total", "spool_entries is shown"),
        ("spool_usable", "an alert; 1 as a rule"),
    ];

    /// The names of our metrics in a text, without the suffixes of histograms.
    fn names_in(text: &str) -> BTreeSet<&str> {
        let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
        text.split(&format!("{PREFIX}_"))
            .skip(1)
            .map(|rest| &rest[..rest.find(|c| !is_of_name(c)).unwrap_or(rest.len())])
            .map(|name| name.strip_suffix("_bucket").unwrap_or(name))
            .collect()
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_metrics_of_the_table() {
        let table: BTreeSet<&str> = NAMES.iter().copied().collect();
        let dashboard = names_in(include_str!("../../deploy/grafana-dashboard.json"));
        let alerts = names_in(include_str!("../../deploy/prometheus-alerts.yml"));
        assert!(dashboard.len() >= 20 && alerts.len() >= 15);
        for names in [&dashboard, &alerts] {
            assert_eq!(names.difference(&table).next(), None);
        }
        let excepted: BTreeSet<&str> = NOT_IN_DASHBOARD.iter().map(|(name, _)| *name).collect();
        let missing: Vec<_> = table.difference(&dashboard).copied().collect();
        assert_eq!(missing, excepted.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn series_with_known_labels_are_there_at_zero() {
        let metrics = Metrics::new().unwrap();
        metrics.rejected.begin([&["field_type"], &["yes", "no"]]);
        metrics.hint_seconds.observe([], Duration::from_millis(20));
        let text = metrics
            .text(Snapshot {
                connections: [1, 2],
                spool_oldest: Duration::from_millis(10_900),
                spooled: 11,
                spool_usable: true,
                ..Snapshot::default()
            })
            .unwrap();
        for line in [
            "# HELP openim_group_mirror_rejected_callbacks_total Callbacks with a body that could not be \
             understood, by code. The label kept says if the body was kept.",
            "# TYPE openim_group_mirror_spool_spooled_total counter",
            "openim_group_mirror_rejected_callbacks_total{code=\"field_type\",kept=\"no\"} 0",
            "openim_group_mirror_older_keys_total{door=\"reads\"} 0",
            "openim_group_mirror_look_calls_total 0",
            "openim_group_mirror_hint_delay_seconds_bucket{le=\"0.01\"} 0",
            "openim_group_mirror_hint_delay_seconds_bucket{le=\"0.025\"} 1",
            "openim_group_mirror_database_connections{state=\"used\"} 1",
            "openim_group_mirror_database_connections{state=\"idle\"} 2",
            "openim_group_mirror_spool_oldest_seconds 10",
            "openim_group_mirror_spool_spooled_total 11",
            "openim_group_mirror_spool_usable 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
