//! Holds the mirror against OpenIM, and has repaired what differs.
//!
//! A callback is never undone. What OpenIM answers is as old as the question, so a row that a callback
//! has named since then is left as it is, and its group is looked at again. Rows are compared here,
//! outside the lanes; those that differ go through the group's lane like any change, and the
//! transaction that writes them looks once more at what was named meanwhile. Last comes the version:
//! whoever is not noted as named by a callback since is in the mirror as OpenIM had it at that version.
//! So a look takes what has changed since, and asks by id for those who were named; all of a group is
//! read only where that does not tell everything.

mod check;
mod compare;
mod cycle;
mod dry_run;
mod hinted;
mod pass;
mod removals;
mod tally;
mod walk;
mod wanted;

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::fetch::{Fetch, FetchError};
use super::pace::Pace;
use super::{Client, ClientError};
use crate::domain::GroupId;
use crate::ingest::{self, Ingest};
use crate::store::{self, Store, TOO_MANY_REMOVALS};
use crate::tasks::Task;
use crate::telemetry::Metrics;
use pass::Pass;
use removals::Removals;

pub use dry_run::DriftOf;
pub use tally::Tally;

/// How long OpenIM is not trusted to give the rows of a version that it tells: it drops them from its
/// caches after the version has moved, some 0.1 s later on a busy machine.
pub const SETTLING: Duration = Duration::from_secs(3);

/// When to compare, and how much at a time.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From one comparison of all groups to the next.
    pub interval: Duration,
    /// After so long a group is read as a whole, also where its version has not moved.
    pub full_interval: Duration,
    /// From a mark to the look at its group.
    pub delay: Duration,
    /// How long OpenIM's caches may give the row of a member as it was before a version that it tells
    /// with it.
    pub settling: Duration,
    /// Groups that are read at a time; 1 at least, or nothing is.
    pub concurrency: usize,
}

/// What it works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Tells what is stored.
    pub store: Store,
    /// Takes repairs.
    pub ingest: Ingest,
    /// Counts.
    pub metrics: Metrics,
}

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Read every group as a whole.
    pub is_full: bool,
    /// Take members for gone whatever their number.
    pub accept_removals: bool,
}

/// Why a comparison did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// OpenIM does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// One group cannot be read; said of that group alone.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The database does not.
    #[error("the database: {0}")]
    Store(#[from] store::Error),
    /// A repair was not written.
    #[error("a repair was not written: {0}")]
    Ingest(#[from] ingest::Error),
    /// Callbacks wait for the database, and they are to be written first.
    #[error("callbacks wait in the spool to be written first")]
    Spooling,
    /// OpenIM names so few that somebody has to look at it.
    #[error(
        "OpenIM no longer has {removed} of the mirror's {members} members, more than a tenth: if that \
         is right, run `openim-group-mirror reconcile --accept-removals`"
    )]
    TooManyRemovals {
        /// How many would have been removed.
        removed: u64,
        /// Of how many.
        members: u64,
    },
    /// Another process does it just now.
    #[error("another process compares the mirror with OpenIM just now")]
    NotOurTurn,
    /// Another process may have begun it meanwhile.
    #[error("the connection that held our turn is gone")]
    TurnLost,
    /// Asked to.
    #[error("it was stopped")]
    Stopped,
}

impl Error {
    /// What ends a comparison of all groups before its end, as [`Error::code`] has it.
    pub const OF_RUN: [&str; 6] = [
        "openim_unavailable",
        "database_unavailable",
        "spooling",
        TOO_MANY_REMOVALS,
        "stopped",
        "turn_lost",
    ];

    /// As `reconcile_runs` has it; never renamed.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::Fetch(_) => "openim_unavailable",
            Self::Store(_) | Self::Ingest(_) => "database_unavailable",
            Self::Spooling => "spooling",
            Self::TooManyRemovals { .. } => TOO_MANY_REMOVALS,
            Self::NotOurTurn => "not_our_turn",
            Self::TurnLost => "turn_lost",
            Self::Stopped => "stopped",
        }
    }
}

/// Compares. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Reconciler(Arc<Inner>);

/// The comparing that goes on beside serving.
#[derive(Debug)]
pub struct Comparing([Task; 4]);

impl Comparing {
    /// Ends it. What is under way is left: the next comparison goes on from there.
    pub async fn end(&self) {
        self.0.iter().for_each(Task::close);
        for task in &self.0 {
            task.end().await;
        }
    }
}

#[derive(Debug)]
struct Inner {
    fetch: Fetch,
    store: Store,
    ingest: Ingest,
    metrics: Metrics,
    settings: Settings,
    /// Turns to read a group.
    reading: Semaphore,
    /// Turns to write: most lanes are left to callbacks.
    writing: Semaphore,
    /// Groups that are looked at just now.
    claimed: Mutex<HashSet<GroupId>>,
    /// Turns to call OpenIM because of hints.
    pace: Arc<Pace>,
    /// Whether this process has looked at what an earlier one left undone.
    has_looked_back: AtomicBool,
}

impl Reconciler {
    /// Makes no call yet.
    pub fn new(client: Client, settings: Settings, parts: Parts) -> Self {
        let Parts {
            store,
            ingest,
            metrics,
        } = parts;
        Self(Arc::new(Inner {
            fetch: Fetch::new(client),
            reading: Semaphore::new(settings.concurrency),
            writing: Semaphore::new((store.lanes() / 2).max(1)),
            store,
            ingest,
            metrics,
            settings,
            claimed: Mutex::default(),
            pace: Arc::default(),
            has_looked_back: AtomicBool::new(false),
        }))
    }

    /// Starts what compares for as long as the service runs: all groups at the start and every interval,
    /// those that want a check soon after they were marked, and those that hints are about. Ends with
    /// [`Comparing::end`].
    pub fn start(&self) -> Comparing {
        self.begin_looks();
        Comparing([
            self.start_one("compares all groups", |inner, closing| async move {
                inner.run_cycles(&closing).await;
            }),
            self.start_one("compares marked groups", |inner, closing| async move {
                inner.run_checks(&closing).await;
            }),
            self.start_one("compares groups of hints", |inner, closing| async move {
                inner.run_hints(&closing).await;
            }),
            self.start_one("counts marked groups", |inner, closing| async move {
                inner.run_counts(&closing).await;
            }),
        ])
    }

    fn start_one<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        run: impl FnOnce(Arc<Inner>, CancellationToken) -> F,
    ) -> Task {
        let task = self.0.ingest.tasks().task(name);
        task.start(|closing| run(Arc::clone(&self.0), closing));
        task
    }

    /// From now on hints are kept.
    fn begin_looks(&self) {
        self.0.metrics.looks.begin([&hinted::OUTCOMES]);
        self.0.ingest.hints().begin_looks();
    }

    /// Compares these groups or, where there are none, all; once. Only for all of them a turn is taken,
    /// and the run noted.
    ///
    /// # Errors
    /// See [`Error`]; what was repaired until then is.
    pub async fn compare(
        &self,
        groups: &[GroupId],
        mode: Mode,
        tally: &Tally,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        if groups.is_empty() {
            return self.0.cycle(mode, tally, closing).await;
        }
        let removals = Removals::new(mode.accept_removals, false, 0);
        let pass = Pass::new(&removals, tally, true);
        tally.expect(groups.len() as u64);
        tally.saw(groups.len() as u64);
        tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::Stopped),
            checked = self.0.check_all(groups.to_vec(), &pass) => checked,
        }
    }
}

impl Inner {
    fn claimed(&self) -> MutexGuard<'_, HashSet<GroupId>> {
        // A set is a set, whoever panicked.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to look at a group, until it is dropped; `None` where somebody does.
    fn claim(&self, group: &GroupId) -> Option<Claim<'_>> {
        let group = group.clone();
        let is_free = self.claimed().insert(group.clone());
        is_free.then_some(Claim { inner: self, group })
    }

    /// How many callbacks have had to wait since the start.
    fn spooled(&self) -> u64 {
        self.ingest.spool().map_or(0, |spool| spool.spooled)
    }

    fn is_spooling(&self) -> bool {
        self.ingest.spool().is_some_and(|spool| spool.is_diverting)
    }
}

struct Claim<'a> {
    inner: &'a Inner,
    group: GroupId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.inner.claimed().remove(&self.group);
    }
}
