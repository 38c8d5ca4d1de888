//! The subcommand `reconcile`: reconciles once, and shows what it does.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::database::{self, Private};
use super::{Error, PRIVATE_STOP_TIMEOUT};
use crate::config::{Config, Reconcile};
use crate::domain::GroupId;
use crate::ingest::Ingest;
use crate::openim::Client;
use crate::reconcile::{self as reconciling, DriftEntry, Mode, ReconcileParts, Reconciler, Report};
use crate::store::{RunCounts, run_counters};
use crate::telemetry::Metrics;

/// Interval of trying to take the lease of another instance.
const LEASE_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of showing progress on a terminal.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of writing progress if there is no terminal.
const TEXT_INTERVAL: Duration = Duration::from_secs(5);

/// Reconciles once, until `shutdown`. Writes the result to `out` and the progress to `notes`, drawn if that is a
/// terminal.
///
/// # Errors
/// [`Error::Drift`] if a dry run finds a difference, [`Error::Left`] if groups were skipped, and see [`Error`].
pub async fn reconcile(
    config: &Config,
    asked: Reconcile,
    out: impl Write + Send,
    notes: impl Write,
    is_terminal: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let metrics = Metrics::new()?;
    // Present: the settings were read for this command.
    let access = config.openim.clone().ok_or(Error::NoOpenIm)?;
    let client = Client::new(access, metrics.clone())?;
    let (database, server) = database::find(config, Private::Shared).await?;
    let store = database.open().await?;
    let ingest = Ingest::new(store.clone(), config.rejected, None);
    let parts = ReconcileParts {
        store: store.clone(),
        ingest: ingest.clone(),
        metrics,
    };
    let reconciler = Reconciler::new(client, config.reconcile, parts);
    let work = reconcile_and_print(reconciler, asked, out, notes, is_terminal, shutdown);
    let done = tokio::select! {
        done = work => done,
        // Without the task the work could wait for ever.
        ended = ingest.tasks().until_one_ends_early() => Err(Error::Task(ended)),
    };
    ingest.close().await;
    store.close().await;
    database::stop(server, PRIVATE_STOP_TIMEOUT).await?;
    done
}

async fn reconcile_and_print(
    reconciler: Reconciler,
    asked: Reconcile,
    mut out: impl Write + Send,
    notes: impl Write,
    is_terminal: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let began = Instant::now();
    let report = Report::default();
    let closing = CancellationToken::new();
    let mut progress = Progress::new(notes, is_terminal, asked.dry_run);
    let (mut found, mut printed) = (0_u64, Ok(()));
    let mut tell = |entry: DriftEntry| {
        found += 1;
        if printed.is_ok() {
            printed = print_drift(&mut out, &entry, asked.json);
        }
    };
    let done = {
        let work = async {
            match asked.dry_run {
                true => reconciler.dry_run(&asked.groups, &report, &mut tell).await,
                false => reconcile_with_lease(&reconciler, &asked, &report, &closing).await,
            }
        };
        let (mut work, mut shutdown) = (std::pin::pin!(work), std::pin::pin!(shutdown));
        let mut is_stopping = false;
        loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut shutdown, if !is_stopping => {
                    is_stopping = true;
                    closing.cancel();
                    // A dry run has nothing to record.
                    if asked.dry_run {
                        break Err(reconciling::Error::Stopped);
                    }
                }
                () = sleep(progress.interval()) => progress.show(&report),
            }
        }
    };
    progress.end(&report);
    printed?;
    if !asked.dry_run {
        print_result(&mut out, &report, began.elapsed(), asked.json)?;
    }
    done?;
    match (found, report.counts().groups_left) {
        (0, 0) => Ok(()),
        (0, skipped) => Err(Error::Left(skipped)),
        (found, _) => Err(Error::Drift(found)),
    }
}

/// Waits for the lease if another instance has it, and reconciles.
async fn reconcile_with_lease(
    reconciler: &Reconciler,
    asked: &Reconcile,
    report: &Report,
    closing: &CancellationToken,
) -> Result<(), reconciling::Error> {
    let mode = Mode {
        is_full: asked.full,
        accept_removals: asked.accept_removals,
    };
    let mut is_logged = false;
    loop {
        match reconciler
            .reconcile(&asked.groups, mode, report, closing)
            .await
        {
            Err(reconciling::Error::LeaseTaken) => {
                if !is_logged {
                    tracing::info!("another instance reconciles now; waiting for its end");
                }
                is_logged = true;
                let stopped = timeout(LEASE_RETRY_INTERVAL, closing.cancelled()).await;
                if stopped.is_ok() {
                    return Err(reconciling::Error::Stopped);
                }
            }
            done => return done,
        }
    }
}

fn print_drift(mut out: impl Write, entry: &DriftEntry, is_json: bool) -> io::Result<()> {
    let DriftEntry {
        group_id,
        user_id,
        drift,
    } = entry;
    let user = user_id.as_ref().map(|user| user.as_str());
    if is_json {
        let line = json!({
            "groupID": group_id.as_str(),
            "userID": user,
            "field": drift.field,
            "mirror": drift.mirror,
            "openim": drift.openim,
        });
        return writeln!(out, "{line}");
    }
    // As JSON, so that an empty text shows and a line stays one line.
    let shown = |value: &Option<String>| json!(value).to_string();
    let (mirror, openim) = (shown(&drift.mirror), shown(&drift.openim));
    let (group, field) = (json!(group_id.as_str()), drift.field);
    match user {
        Some(user) => write!(out, "group {group}, user {}: ", json!(user))?,
        None => write!(out, "group {group}: ")?,
    }
    writeln!(out, "{field} is {mirror} here, {openim} in OpenIM")
}

macro_rules! make_counts_json {
    (
        counts { $($(#[$doc:meta])* $count:ident $json:literal;)+ }
        repairs { $($(#[$repair_doc:meta])* $repair:ident $repair_json:literal $kind:ident;)+ }
    ) => {
        fn counts_json(counts: &RunCounts) -> Map<String, Value> {
            let repairs = json!({ $($repair_json: counts.$repair,)+ });
            let all = [$(($json, json!(counts.$count)),)+ ("repairs", repairs)];
            all.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
        }
    };
}
run_counters!(make_counts_json);

fn print_result(
    mut out: impl Write,
    report: &Report,
    took: Duration,
    is_json: bool,
) -> io::Result<()> {
    let counts = report.counts();
    let skipped = report.skipped();
    let seconds = took.as_secs_f64();
    if is_json {
        let mut line = counts_json(&counts);
        let skipped = skipped.iter().map(|(group, why)| {
            let group = group.as_ref().map(GroupId::as_str);
            json!({"groupID": group, "why": why})
        });
        line.insert("left".to_owned(), skipped.collect());
        let rounded = (seconds * 1000.0).round() / 1000.0;
        line.insert("seconds".to_owned(), json!(rounded));
        return writeln!(out, "{}", Value::Object(line));
    }
    writeln!(out, "{counts}")?;
    for (group, why) in skipped {
        match group {
            Some(group) => {
                writeln!(out, "left as it is: group {}: {why}", json!(group.as_str()))?;
            }
            None => writeln!(out, "left as they are: {why}")?,
        }
    }
    writeln!(out, "took {seconds:.1} s")
}

/// Progress of a run, for people.
struct Progress<W> {
    notes: W,
    /// Bar on standard error. `None` without a terminal.
    bar: Option<ProgressBar>,
    /// Word for rows that are not as in OpenIM.
    differing: &'static str,
}

impl<W: Write> Progress<W> {
    fn new(notes: W, is_terminal: bool, is_dry: bool) -> Self {
        let bar = is_terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "{bar:30} {pos}/{len} groups, {msg}, {eta} left";
            // The template is valid, so the default is never used.
            bar.with_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        let differing = match is_dry {
            true => "differ",
            false => "repaired",
        };
        Self {
            notes,
            bar,
            differing,
        }
    }

    fn interval(&self) -> Duration {
        match self.bar {
            Some(_) => TERMINAL_INTERVAL,
            None => TEXT_INTERVAL,
        }
    }

    fn show(&mut self, report: &Report) {
        let counts = report.counts();
        let seen = counts.groups_seen.unsigned_abs();
        let groups = report.expected_groups().max(seen);
        let rows = format!(
            "{} members compared, {} rows {}",
            counts.members_compared,
            counts.repairs(),
            self.differing
        );
        match &self.bar {
            Some(bar) => {
                bar.set_length(groups);
                bar.set_position(seen);
                bar.set_message(rows);
            }
            // A reader that is gone must not end the work.
            None => drop(writeln!(self.notes, "{seen}/{groups} groups, {rows}")),
        }
    }

    fn end(&mut self, report: &Report) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => self.show(report),
        }
    }
}
