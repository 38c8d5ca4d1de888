//! Reconciles the mirror with OpenIM: asks OpenIM's API, compares, and repairs what differs.
//!
//! A repair never undoes a callback. An answer of OpenIM is as old as its question, so a row that a callback has named
//! since then stays, and its group is reconciled again. Groups are compared outside the lanes. Repairs go through the
//! group's lane like any change, and the transaction that writes them checks again which rows a callback has named
//! meanwhile. The version is recorded last: members that no callback has named since are as OpenIM had them at that
//! version. So a reconcile reads the changes since the version, and the touched users by their ids. It reads the whole
//! group only if these do not say enough.

mod compare;
mod group;
mod looks;
mod marked;
mod removals;
mod report;
mod run;
mod schedule;

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::domain::GroupId;
use crate::ingest::{self, Ingest};
use crate::openim::{self, Client, Pace, ReadError, Reader};
use crate::store::{self, Store, TOO_MANY_REMOVALS};
use crate::tasks::Task;
use crate::telemetry::Metrics;
use removals::Removals;
use report::Job;
use run::Checkpoint;

pub use report::{DriftEntry, Report};

/// Time in which OpenIM may answer a new version with old rows. It clears its caches after the version has moved: about
/// 0.1 s later on a busy machine.
pub const SETTLING_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval of trying to take a lease that another instance has.
const LEASE_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Times and limits.
#[derive(Clone, Copy, Debug)]
pub struct ReconcileSettings {
    /// Interval of runs.
    pub interval: Duration,
    /// A group is read whole if that was not done for so long, even if its version has not moved.
    pub full_interval: Duration,
    /// Delay between a mark and the reconcile of its group.
    pub delay: Duration,
    /// Time in which OpenIM's caches may answer a new version with old rows.
    pub settling: Duration,
    /// Groups that are reconciled at a time; at least 1.
    pub concurrency: usize,
}

/// The parts that reconciling uses.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "their types say it")]
pub struct ReconcileParts {
    pub store: Store,
    pub ingest: Ingest,
    pub metrics: Metrics,
}

/// Mode of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Read every group whole.
    pub is_full: bool,
    /// Remove any number of members.
    pub accept_removals: bool,
}

/// A reconcile that did not end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of OpenIM failed.
    #[error(transparent)]
    Client(#[from] openim::Error),
    /// A group cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database failed.
    #[error("the database: {0}")]
    Store(#[from] store::Error),
    /// A repair was not written.
    #[error("a repair was not written: {0}")]
    Ingest(#[from] ingest::Error),
    /// Spooled callbacks have to be written first.
    #[error("callbacks in the spool have to be written first")]
    Spooling,
    /// OpenIM lists so few members that an operator has to decide.
    #[error(
        "OpenIM no longer has {removed} of the mirror's {members} members, more than a tenth: if that \
         is right, run `openim-group-mirror reconcile --accept-removals`"
    )]
    TooManyRemovals {
        /// Members that would have been removed.
        removed: u64,
        /// Members of the mirror.
        members: u64,
    },
    /// Another instance has the lease.
    #[error("another instance reconciles now")]
    LeaseTaken,
    /// The lease ended during the run, and another instance may have taken it.
    #[error("the lease is lost: its connection ended")]
    LeaseLost,
    /// The caller has stopped it.
    #[error("it was stopped")]
    Stopped,
}

impl Error {
    /// Codes of the errors that can end a run.
    pub const OF_RUN: [&str; 6] = [
        "openim_unavailable",
        "database_unavailable",
        "spooling",
        TOO_MANY_REMOVALS,
        "stopped",
        "turn_lost",
    ];

    /// The code in `reconcile_runs`. Never renamed.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::Read(_) => "openim_unavailable",
            Self::Store(_) | Self::Ingest(_) => "database_unavailable",
            Self::Spooling => "spooling",
            Self::TooManyRemovals { .. } => TOO_MANY_REMOVALS,
            Self::LeaseTaken => "not_our_turn",
            Self::LeaseLost => "turn_lost",
            Self::Stopped => "stopped",
        }
    }
}

/// Reconciles groups. Clones share it.
#[derive(Clone, Debug)]
pub struct Reconciler(Arc<Core>);

/// The tasks that reconcile while the service runs.
#[derive(Debug)]
pub struct Background([Task; 4]);

impl Background {
    /// Starts to reconcile in the background. `None` without access to OpenIM, which is logged.
    pub fn start(
        client: Option<Client>,
        settings: ReconcileSettings,
        parts: ReconcileParts,
    ) -> Option<Self> {
        let Some(client) = client else {
            tracing::warn!(
                "OPENIM_API_URL is not set: the mirror is not reconciled with OpenIM. Changes that \
                 OpenIM sends no callback for (invitations, approvals, mutes, profile names), or \
                 loses or sends out of order, stay missing or wrong"
            );
            return None;
        };
        parts
            .metrics
            .begin_comparing(settings.interval, &Error::OF_RUN);
        Some(Reconciler::new(client, settings, parts).start())
    }

    /// Stops the tasks at once. The next run continues from there.
    pub async fn end(&self) {
        self.0.iter().for_each(Task::close);
        for task in &self.0 {
            task.end().await;
        }
    }
}

#[derive(Debug)]
struct Core {
    reader: Reader,
    store: Store,
    ingest: Ingest,
    metrics: Metrics,
    settings: ReconcileSettings,
    /// Permits to read a group from OpenIM.
    read_permits: Semaphore,
    /// Permits to write a repair. Most lanes are left to callbacks.
    write_permits: Semaphore,
    /// Groups that are reconciled now.
    claimed: Mutex<HashSet<GroupId>>,
    /// Rate limit of the calls of looks.
    pace: Arc<Pace>,
    /// True once a run has recorded the touched users that earlier processes have not recorded.
    has_recovered_touched: AtomicBool,
}

impl Reconciler {
    /// Makes a reconciler. Calls nothing yet.
    pub fn new(client: Client, settings: ReconcileSettings, parts: ReconcileParts) -> Self {
        let ReconcileParts {
            store,
            ingest,
            metrics,
        } = parts;
        Self(Arc::new(Core {
            reader: Reader::new(client),
            read_permits: Semaphore::new(settings.concurrency),
            write_permits: Semaphore::new((store.lanes / 2).max(1)),
            store,
            ingest,
            metrics,
            settings,
            claimed: Mutex::default(),
            pace: Arc::default(),
            has_recovered_touched: AtomicBool::new(false),
        }))
    }

    /// Starts the tasks: runs at the start and at each interval, marked groups, looks, and counts of marks.
    pub fn start(&self) -> Background {
        self.0.metrics.looks.begin([&looks::OUTCOMES]);
        self.0.ingest.hints().begin_looks();
        Background([
            self.start_task("reconciles all groups", Core::schedule_runs),
            self.start_task("reconciles marked groups", Core::watch_marks),
            self.start_task("looks at groups", Core::watch_hints),
            self.start_task("counts marked groups", Core::count_marks),
        ])
    }

    fn start_task<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(Arc<Core>, CancellationToken) -> F,
    ) -> Task {
        let task = self.0.ingest.tasks().task(name);
        task.start(|closing| work(Arc::clone(&self.0), closing));
        task
    }

    /// Reconciles these groups or, if there are none, all groups in a run, once.
    ///
    /// # Errors
    /// See [`Error`]. Repairs that were made before stay.
    pub async fn reconcile(
        &self,
        groups: &[GroupId],
        mode: Mode,
        report: &Report,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        if groups.is_empty() {
            // Boxed, because the future is large and deeply nested.
            return Box::pin(self.0.run(mode, report, closing)).await;
        }
        let removals = Removals::new(mode.accept_removals, false, 0);
        let job = Job::new(&removals, report, true);
        report.expect(groups.len() as u64);
        report.saw(groups.len() as u64);
        tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::Stopped),
            done = Box::pin(self.0.reconcile_groups(groups.to_vec(), &job)) => done,
        }
    }

    /// Compares these groups or, if there are none, all groups. Passes to `tell` each value that differs and is the
    /// same a while later: a callback that is under way makes a difference too. Writes nothing.
    ///
    /// # Errors
    /// See [`Error`]. The drift that was passed on before is right.
    pub async fn dry_run(
        &self,
        groups: &[GroupId],
        report: &Report,
        tell: &mut (dyn FnMut(DriftEntry) + Send),
    ) -> Result<(), Error> {
        let job = Job::dry(report);
        if groups.is_empty() {
            let checkpoint = Checkpoint::TellDrift(tell);
            return Box::pin(self.0.reconcile_all(&job, checkpoint)).await;
        }
        report.expect(groups.len() as u64);
        report.saw(groups.len() as u64);
        Box::pin(self.0.reconcile_groups(groups.to_vec(), &job)).await?;
        self.0.confirm_drift(&job, tell).await
    }
}

impl Core {
    fn claimed(&self) -> MutexGuard<'_, HashSet<GroupId>> {
        // A set of ids is usable after a panic.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a group until the claim is dropped. `None` if another task has it.
    fn claim(&self, group: &GroupId) -> Option<Claim<'_>> {
        let group = group.clone();
        let is_free = self.claimed().insert(group.clone());
        is_free.then_some(Claim { inner: self, group })
    }

    /// Number of entries that were spooled since the start.
    fn spooled(&self) -> u64 {
        self.ingest.spool().map_or(0, |spool| spool.spooled)
    }

    fn is_diverting(&self) -> bool {
        self.ingest.spool().is_some_and(|spool| spool.is_diverting)
    }
}

/// The right to reconcile a group.
struct Claim<'a> {
    inner: &'a Core,
    group: GroupId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.inner.claimed().remove(&self.group);
    }
}
