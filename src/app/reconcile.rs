//! Comparing the mirror with OpenIM: beside serving, and once for somebody who asks.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::database::{self, Private};
use super::{Error, PRIVATE_STOP};
use crate::config::{Config, Reconcile};
use crate::ingest::Ingest;
use crate::openim::{self, Client, DriftOf, Mode, Parts, Reconciler, Tally};
use crate::store::RunResult;
use crate::telemetry::Metrics;

/// How often progress is shown on a terminal.
const DRAWN: Duration = Duration::from_millis(100);
/// How often it is told elsewhere.
const TOLD: Duration = Duration::from_secs(5);
/// How soon somebody who waits for another's turn to end asks again.
const TURN_PAUSE: Duration = Duration::from_millis(500);

/// The comparing that goes on beside serving.
#[derive(Debug, Default)]
pub(super) struct Comparing {
    running: TaskTracker,
    closing: CancellationToken,
}

impl Comparing {
    /// Begins, where there is access to OpenIM; where not, says what that means.
    pub(super) fn start(client: Option<Client>, settings: openim::Settings, parts: Parts) -> Self {
        let comparing = Self::default();
        let Some(client) = client else {
            tracing::warn!(
                "OPENIM_API_URL is not set: the mirror is not compared with OpenIM. What OpenIM does \
                 not tell (invitations, approvals, mutes, names of profiles), drops or sends out of \
                 order stays missing or wrong"
            );
            return comparing;
        };
        parts
            .metrics
            .begin_comparing(settings.interval, &openim::Error::OF_RUN);
        let reconciler = Reconciler::new(client, settings, parts);
        let closing = comparing.closing.clone();
        comparing
            .running
            .spawn(async move { reconciler.run(closing).await });
        comparing
    }

    /// Ends it. What is under way is left: the next comparison goes on from there.
    pub(super) async fn end(&self) {
        self.closing.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// Compares once, until `shutdown`. What was asked for goes to `out`, how far it is to `notes`, drawn
/// where that is a terminal.
///
/// # Errors
/// [`Error::Drift`] where a dry run finds a difference, and see [`Error`].
pub async fn reconcile(
    config: &Config,
    asked: Reconcile,
    out: impl Write + Send,
    notes: impl Write,
    is_terminal: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Some(access) = config.openim.clone() else {
        return Err(Error::NoOpenIm); // cannot be: the settings were read for this command
    };
    let metrics = Metrics::new()?;
    let client = Client::new(access, metrics.clone())?;
    let (database, server) = database::find(config, Private::Shared).await?;
    let store = database.open().await?;
    let ingest = Ingest::new(store.clone(), config.rejected, None);
    let parts = Parts {
        store: store.clone(),
        ingest: ingest.clone(),
        metrics,
    };
    let reconciler = Reconciler::new(client, config.reconcile, parts);
    let compared = compare(reconciler, asked, out, notes, is_terminal, shutdown).await;
    ingest.close().await;
    store.close().await;
    database::stop(server, PRIVATE_STOP).await?;
    compared
}

async fn compare(
    reconciler: Reconciler,
    asked: Reconcile,
    mut out: impl Write + Send,
    notes: impl Write,
    is_terminal: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let began = Instant::now();
    let tally = Tally::default();
    let mode = Mode {
        is_full: asked.full,
        accept_removals: asked.accept_removals,
    };
    let closing = CancellationToken::new();
    let mut progress = Progress::new(notes, is_terminal);
    let (mut found, mut printed) = (0_u64, Ok(()));
    let mut tell = |drift: DriftOf| {
        found += 1;
        if printed.is_ok() {
            printed = print_drift(&mut out, &drift, asked.json);
        }
    };
    let work = async {
        if asked.dry_run {
            let groups = &asked.groups;
            return reconciler.drift(groups, mode, &tally, &mut tell).await;
        }
        let mut is_told = false;
        loop {
            match reconciler
                .compare(&asked.groups, mode, &tally, &closing)
                .await
            {
                Err(openim::Error::NotOurTurn) => {
                    if !is_told {
                        tracing::info!("another process compares just now; waiting for its end");
                    }
                    is_told = true;
                    sleep(TURN_PAUSE).await;
                }
                done => return done,
            }
        }
    };
    let done = {
        let mut work = std::pin::pin!(work);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut shutdown, if !is_stopping => {
                    is_stopping = true;
                    closing.cancel();
                    // A look changes nothing that would have to be noted.
                    if asked.dry_run {
                        break Err(openim::Error::Stopped);
                    }
                }
                () = sleep(progress.pause()) => progress.show(&tally),
            }
        }
    };
    progress.end(&tally);
    printed?;
    if asked.dry_run {
        done?;
        return match found {
            0 => Ok(()),
            found => Err(Error::Drift(found)),
        };
    }
    print_result(&mut out, &tally, began.elapsed(), asked.json)?;
    Ok(done?)
}

fn print_drift(mut out: impl Write, drift: &DriftOf, is_json: bool) -> io::Result<()> {
    let DriftOf {
        group_id,
        user_id,
        drift,
    } = drift;
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
    // As JSON, so that an empty text is seen and a line stays one.
    let shown = |value: &Option<String>| json!(value).to_string();
    let (mirror, openim) = (shown(&drift.mirror), shown(&drift.openim));
    let (group, field) = (json!(group_id.as_str()), drift.field);
    match user {
        Some(user) => write!(out, "group {group}, user {}: ", json!(user))?,
        None => write!(out, "group {group}: ")?,
    }
    writeln!(out, "{field} is {mirror} here, {openim} in OpenIM")
}

fn print_result(
    mut out: impl Write,
    tally: &Tally,
    took: Duration,
    is_json: bool,
) -> io::Result<()> {
    let RunResult {
        stopped_by: _,
        groups_seen,
        groups_compared,
        groups_left,
        members_compared,
        members_added,
        members_removed,
        members_changed,
        details_changed,
        groups_changed,
    } = tally.result();
    let left = tally.left_groups();
    let seconds = took.as_secs_f64();
    if is_json {
        let left: Vec<_> = left
            .iter()
            .map(|(group, why)| json!({"groupID": group.as_str(), "why": why}))
            .collect();
        let line = json!({
            "groupsSeen": groups_seen,
            "groupsCompared": groups_compared,
            "groupsLeft": groups_left,
            "membersCompared": members_compared,
            "repairs": {
                "memberAdded": members_added,
                "memberRemoved": members_removed,
                "memberChanged": members_changed,
                "detailsChanged": details_changed,
                "groupChanged": groups_changed,
            },
            "left": left,
            "seconds": (seconds * 1000.0).round() / 1000.0,
        });
        return writeln!(out, "{line}");
    }
    writeln!(
        out,
        "groups    {groups_seen} seen, {groups_compared} compared, {groups_changed} changed, \
         {groups_left} left as they are"
    )?;
    writeln!(
        out,
        "members   {members_compared} compared, {members_added} added, {members_removed} removed, \
         {members_changed} changed, {details_changed} with details filled in"
    )?;
    for (group, why) in left {
        writeln!(out, "left      {}: {why}", json!(group.as_str()))?;
    }
    writeln!(out, "took      {seconds:.1} s")
}

/// How far it is, for people.
struct Progress<W> {
    notes: W,
    /// Absent where there is no terminal.
    bar: Option<ProgressBar>,
}

impl<W: Write> Progress<W> {
    fn new(notes: W, is_terminal: bool) -> Self {
        let bar = is_terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "{bar:30} {pos}/{len} groups, {msg}, {eta} left";
            // The text above is a template.
            bar.with_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        Self { notes, bar }
    }

    fn pause(&self) -> Duration {
        if self.bar.is_some() { DRAWN } else { TOLD }
    }

    fn show(&mut self, tally: &Tally) {
        let result = tally.result();
        let repairs = result.members_added
            + result.members_removed
            + result.members_changed
            + result.details_changed
            + result.groups_changed;
        let (members, seen) = (result.members_compared, result.groups_seen);
        let groups = tally.groups().max(seen);
        match &self.bar {
            Some(bar) => {
                bar.set_length(groups);
                bar.set_position(seen);
                bar.set_message(format!("{members} members compared, {repairs} repairs"));
            }
            None => {
                // Notes that nobody reads are no reason to end.
                let _ = writeln!(
                    self.notes,
                    "{seen}/{groups} groups, {members} members compared, {repairs} repairs"
                );
            }
        }
    }

    fn end(&mut self, tally: &Tally) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else {
            self.show(tally);
        }
    }
}
