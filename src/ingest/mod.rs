//! Takes changes, and answers when they are durable.

mod drain;
mod hints;
mod intake;
mod lanes;
mod rejected;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::{
    Change, Event, GroupId, Hint, MarkReason, Rejected, Repair, Repaired, from_record,
};
use crate::spool::SpoolError;
use crate::store::{self, Store};
use crate::tasks::{Period, Task, Tasks};
use drain::Drain;
use hints::HintAction;
use lanes::Lanes;
use rejected::{Keeper, Kept};

pub use drain::Error as DrainError;
pub use hints::{DueLook, HintOutcome, Hints, Kinds, LookEnd};
pub use intake::{Spool, SpoolState};
pub use rejected::Retention;

/// The task that notes touched groups. At the end it notes the rest; what is left then is found by the next process.
const NOTES: Period = Period {
    last: Some(Duration::from_secs(2)),
    ..Period::every(Duration::from_secs(1))
};
/// The task that fills in leaves. The next process goes on from where it ends.
const LEAVES: Period = Period::every(Duration::from_secs(1));
/// The task that deletes old rejected callbacks.
const PURGE: Period = Period {
    first: Duration::ZERO,
    retry: Duration::from_secs(60),
    ..Period::every(Duration::from_secs(3600))
};

/// Time limit of an answer's wait for the deletion of excess rejected callbacks.
const PURGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reason for which a change is not known to be durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The database is away, and the spool cannot take it.
    #[error("the spool: {0}")]
    Refused(Arc<SpoolError>),
    /// The task that wrote it ended without a result.
    #[error("the write ended without an answer")]
    Lost,
}

/// Takes changes and writes them.
#[derive(Clone, Debug)]
pub struct Ingest {
    store: Store,
    lanes: Lanes,
    marks: Marks,
    hints: Hints,
    spool: Option<Spool>,
    /// Writes the marks until it ends.
    marking: Task,
    /// Drains the spool until it ends.
    draining: Task,
    /// Notes the groups that callbacks have touched.
    noting: Task,
    /// Fills in the leave time of members of dismissed groups.
    filling_in: Task,
    /// Deletes rejected callbacks that are too old.
    housekeeping: Task,
    /// Cancelled as soon as the state of the database is known.
    settled: CancellationToken,
    keeper: Arc<Keeper>,
    /// Time limit of a change's wait for a lane with a long queue.
    queue_timeout: Duration,
    under_way: TaskTracker,
    tasks: Tasks,
}

/// A callback that was taken: when this is dropped, its change is written or may be, whether somebody has waited for
/// that or not.
struct TakenCallback<'a> {
    hints: &'a Hints,
    group: &'a GroupId,
    operation_id: Option<&'a str>,
    is_watched: bool,
}

impl Drop for TakenCallback<'_> {
    fn drop(&mut self) {
        self.hints
            .written(self.group, self.operation_id, self.is_watched);
    }
}

impl Ingest {
    /// Starts the lanes, which write to `store`; keeps what could not be understood as `rejected` says. What cannot be
    /// written goes to `spool`, if there is one; else whoever brought it is told.
    pub fn new(store: Store, rejected: Retention, spool: Option<Spool>) -> Self {
        let (marks, tasks) = (Marks::default(), Tasks::default());
        let lanes = Lanes::start(&store, marks.clone(), spool.as_ref(), &tasks);
        // The lanes may be at something that takes all their time.
        let queue_timeout = store.lane_timeout * 2;
        let marking = tasks.task("writes marks");
        marking.start({
            let (marks, lanes) = (marks.clone(), lanes.clone());
            move |closing| async move {
                let submit = |change| {
                    let (queued, deadline) = (lanes.push(change), Instant::now() + queue_timeout);
                    let lanes = &lanes;
                    async move { lanes.answer(queued, deadline).await.is_ok() }
                };
                marks.write(submit, closing).await;
            }
        });
        let (draining, settled) = (tasks.task("drains the spool"), CancellationToken::new());
        match &spool {
            Some(spool) => {
                let drain = Drain::new(spool.clone(), store.clone(), Some(lanes.clone()));
                let settled = settled.clone();
                draining.start(move |closing| drain.run(settled, closing));
            }
            None => settled.cancel(),
        }
        let noting = tasks.periodic("notes touched groups", NOTES, {
            let store = store.clone();
            move || {
                let store = store.clone();
                async move { store.note_touched().await }
            }
        });
        let filling_in = tasks.periodic("fills in leaves of dismissed groups", LEAVES, {
            let store = store.clone();
            move || {
                let store = store.clone();
                async move { store.fill_in_leaves().await }
            }
        });
        Self {
            store: store.clone(),
            lanes,
            marks,
            hints: Hints::default(),
            spool,
            marking,
            draining,
            noting,
            filling_in,
            housekeeping: tasks.task("deletes old rejected callbacks"),
            settled,
            queue_timeout,
            keeper: Arc::new(Keeper::new(store, rejected)),
            under_way: TaskTracker::new(),
            tasks,
        }
    }

    /// Tasks that run until [`Self::close`] and may end early.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Waits until what an earlier process left is in the database, or the database is known to be away.
    pub async fn settled(&self) {
        self.settled.cancelled().await;
    }

    /// Resolves when the change is durable: committed or, while the database is away, in the spool. If it may be
    /// neither, its group is marked as soon as the database can be written, even if the caller no longer waits for the
    /// answer.
    ///
    /// # Errors
    /// See [`Error`]; the change may still have been written.
    pub async fn submit(&self, change: Change) -> Result<(), Error> {
        self.write(change).await?;
        Ok(())
    }

    /// Writes a change as [`Self::submit`] does. Returns the result of a repair.
    async fn write(&self, change: Change) -> Result<Repaired, Error> {
        let queued = self.lanes.push(change);
        if queued.needs_deadline() {
            let (lanes, deadline) = (self.lanes.clone(), Instant::now() + self.queue_timeout);
            // Nothing waits in the queue without a bound, also where nobody waits for the answer.
            return self
                .finish(async move { lanes.answer(queued, deadline).await })
                .await;
        }
        queued.answered.await.unwrap_or(Err(Error::Lost)) // the lane has panicked
    }

    /// As [`Self::submit`], of a callback that has just come; the callbacks and the notifications of one change have
    /// one `operation_id`.
    ///
    /// # Errors
    /// See [`Error`]; the change may still have been written.
    pub async fn take(&self, change: Change, operation_id: Option<&str>) -> Result<(), Error> {
        let group = change.group_id.clone();
        let is_join = matches!(change.event, Event::Join(_) | Event::JoinAll(_));
        let is_watched = self.hints.is_watched(&group);
        let taken = TakenCallback {
            hints: &self.hints,
            group: &group,
            operation_id,
            is_watched,
        };
        self.submit(Change {
            is_reconciled_soon: is_watched,
            ..change
        })
        .await?;
        drop(taken);
        if is_join && self.hints.joined(&group, operation_id) {
            self.undo_mark(&group).await;
        }
        Ok(())
    }

    /// Takes a notification. If OpenIM's API cannot be asked and no callback covers the notification, this resolves
    /// when the mark of its group is durable, as for a change.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hint(&self, hint: Hint) -> Result<HintOutcome, Error> {
        match self.receive(&hint) {
            HintAction::Done(done) => Ok(done),
            action => {
                self.mark(hint, action).await?;
                Ok(HintOutcome::Marked)
            }
        }
    }

    /// Takes a notification as [`Self::hint`] does, without waiting for the mark.
    pub fn hint_unwaited(&self, hint: Hint) -> HintOutcome {
        match self.receive(&hint) {
            HintAction::Done(done) => done,
            action => {
                let ingest = self.clone();
                // A change that is not written marks its group itself.
                self.under_way
                    .spawn(async move { ingest.mark(hint, action).await });
                HintOutcome::Marked
            }
        }
    }

    fn receive(&self, hint: &Hint) -> HintAction {
        let is_spooling = self.spool.as_ref().is_some_and(Spool::is_diverting);
        self.hints.receive(hint, is_spooling)
    }

    async fn mark(&self, hint: Hint, action: HintAction) -> Result<(), Error> {
        let reason = MarkReason::Notified;
        let (event, key) = match action {
            HintAction::Done(_) => return Ok(()),
            HintAction::Mark(key) => (Event::Mark(reason), key),
            HintAction::MarkIfDismissed => (Event::MarkIfDismissed(reason), None),
        };
        let change = Change::new(hint.group_id.clone(), hint.received_at, event);
        self.submit(change).await?;
        if key.is_some_and(|key| self.hints.marked(key)) {
            self.undo_mark(&hint.group_id).await;
        }
        Ok(())
    }

    /// Removes the mark for a user who entered, because the callback names the user.
    async fn undo_mark(&self, group: &GroupId) {
        if let Err(error) = self.store.undo_mark(group).await {
            // An unneeded mark does no harm.
            tracing::debug!(
                error = error.to_string(),
                "a mark that has turned out to be unfounded stays"
            );
        }
    }

    /// State of the hints.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// Makes a part of a group equal to OpenIM. Resolves with the written rows when that is committed. Rows that a
    /// callback has named since OpenIM was asked stay as they are, and the group is marked.
    ///
    /// # Errors
    /// See [`Error`]. Nothing of it waits for a database that is away.
    pub async fn repair(&self, group: GroupId, repair: Repair) -> Result<Repaired, Error> {
        let event = Event::Repair(repair);
        self.write(Change::new(group, OffsetDateTime::now_utc(), event))
            .await
    }

    /// Marks a group without waiting for the write.
    pub fn mark_unwaited(&self, group: GroupId, reason: MarkReason) {
        self.marks.add(group, reason);
    }

    /// Keeps a rejected callback. Resolves when it is durable. Returns false if rejected callbacks are not kept.
    ///
    /// # Errors
    /// See [`Error`]; it may still have been kept.
    pub async fn keep_rejected(&self, rejected: Rejected) -> Result<bool, Error> {
        let (keeper, spool) = (Arc::clone(&self.keeper), self.spool.clone());
        let kept = self
            .finish(async move { keep(&keeper, spool, rejected).await })
            .await?;
        if kept == Kept::TimeToPurge {
            let keeper = Arc::clone(&self.keeper);
            let purge = self.under_way.spawn(async move {
                if let Err(error) = keeper.purge().await {
                    tracing::warn!(
                        error = error.to_string(),
                        "old rejected callbacks are not deleted"
                    );
                }
            });
            // As a rule it is done at once; who waits for an answer does not wait for a long one.
            let _ = timeout(PURGE_TIMEOUT, purge).await;
        }
        Ok(kept != Kept::No)
    }

    /// Runs a write as a task of its own: OpenIM hangs up after its timeout and never sends a callback again, so what
    /// was taken goes on when nobody waits for it any more.
    async fn finish<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let written = self.under_way.spawn(write).await;
        written.unwrap_or(Err(Error::Lost)) // a panic, or the end of the runtime
    }

    /// Starts the periodic housekeeping.
    pub fn begin_housekeeping(&self) {
        let keeper = Arc::clone(&self.keeper);
        self.housekeeping.repeat(PURGE, move || {
            let keeper = Arc::clone(&keeper);
            async move { keeper.purge().await }
        });
    }

    /// Number of changes that wait to be written.
    pub fn waiting(&self) -> usize {
        self.lanes.waiting()
    }

    /// Number of groups that wait to be marked.
    pub fn marks_waiting(&self) -> usize {
        self.marks.count()
    }

    /// State of the spool, if there is one.
    pub fn spool(&self) -> Option<SpoolState> {
        self.spool.as_ref().map(Spool::state)
    }

    /// Waits for every change under way, and drains the spool as far as the database lets us.
    pub async fn close(&self) {
        self.housekeeping.end().await;
        self.under_way.close();
        self.under_way.wait().await;
        self.marking.end().await;
        self.lanes.close().await;
        self.draining.end().await;
        self.noting.end().await;
        self.filling_in.end().await;
        let groups = self.marks.count();
        if groups > 0 {
            tracing::warn!(
                groups,
                "changes of these groups were missed, which is noted nowhere"
            );
        }
    }

    /// Logs the entries left in the spool at the end.
    pub fn log_entries_left(&self) {
        if let Some(state) = self.spool()
            && state.waiting > 0
        {
            tracing::warn!(
                entries = state.waiting,
                "the spool is not empty: the next start drains it first, or `drain` does"
            );
        }
    }
}

/// Writes the entries of a spool once.
///
/// # Errors
/// See [`DrainError`]. The entries left can be tried again.
pub async fn drain(spool: &Spool, store: Store) -> Result<(), DrainError> {
    let drained = Drain::new(spool.clone(), store.clone(), None)
        .drain_all()
        .await;
    // Nobody else notes what this process has changed.
    if let Err(error) = store.note_touched().await {
        tracing::warn!(
            error = error.to_string(),
            "what was drained is compared with OpenIM only when whole groups are: `reconcile --full` \
             does it now"
        );
    }
    drained
}

async fn keep(keeper: &Keeper, spool: Option<Spool>, rejected: Rejected) -> Result<Kept, Error> {
    let spool = match spool {
        Some(spool) if keeper.keeps() => spool,
        _ => return Ok(keeper.keep(&rejected).await?),
    };
    if !spool.is_diverting() {
        match keeper.keep(&rejected).await {
            Err(error) if !matches!(error, store::Error::Permanent(_)) => {}
            kept => return Ok(kept?),
        }
    }
    intake::append_rejected(&spool, &rejected).await?;
    Ok(Kept::Yes)
}

/// Reads a spooled change that the database refused, from its kept record. `None`: it was kept for another reason.
pub fn refused_change(rejected: &Rejected) -> Option<Result<Change, String>> {
    let is_ours = rejected.path == drain::REFUSED_PATH;
    is_ours.then(|| {
        let change = from_record(&rejected.body);
        change.map_err(|why| format!("expected a change; {why}"))
    })
}

/// Limit of groups. OpenIM names only a few a second while it waits for failing answers.
const MAX_MARKS: usize = 100_000;
/// Limit of marks in the queue at a time, which is shared with callbacks.
const MARKS_PER_BATCH: usize = 256;
/// Shortest and longest pause after marks that could not be written.
const FIRST_MARK_PAUSE: Duration = Duration::from_millis(100);
const MAX_MARK_PAUSE: Duration = Duration::from_secs(5);

/// Tells if each change goes through the spool. Clones share it.
#[derive(Clone, Debug, Default)]
struct Diverting(Arc<DivertingState>);

#[derive(Debug, Default)]
struct DivertingState {
    is_on: AtomicBool,
    /// Wakes the drain.
    begun: Notify,
}

impl Diverting {
    fn is_on(&self) -> bool {
        // Acquire: a reader that sees the end of diverting sees what was written before.
        self.0.is_on.load(Ordering::Acquire)
    }

    fn begin(&self) {
        self.0.is_on.store(true, Ordering::Release);
        self.0.begun.notify_one();
    }

    fn end(&self) {
        self.0.is_on.store(false, Ordering::Release);
    }

    /// Waits until it is on.
    async fn begun(&self) {
        while !self.is_on() {
            self.0.begun.notified().await;
        }
    }
}

/// Marks that are not written. Clones share them.
#[derive(Clone, Debug, Default)]
struct Marks(Arc<SharedMarks>);

#[derive(Debug, Default)]
struct SharedMarks {
    waiting: Mutex<HashMap<GroupId, MarkReason>>,
    /// Number of marks that were taken and are not known to be durable.
    under_way: AtomicUsize,
    added: Notify,
}

impl Marks {
    fn waiting(&self) -> MutexGuard<'_, HashMap<GroupId, MarkReason>> {
        // No code panics while it holds the lock.
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a group to be marked.
    fn add(&self, group: GroupId, reason: MarkReason) {
        let is_full = {
            let mut waiting = self.waiting();
            let is_full = waiting.len() >= MAX_MARKS && !waiting.contains_key(&group);
            if !is_full {
                waiting.insert(group, reason);
            }
            is_full
        };
        if is_full {
            tracing::error!("too many groups wait for a mark; one of them is lost");
        }
        self.0.added.notify_one();
    }

    /// Marks the group of a change that is not known to be written.
    fn lost(&self, change: &Change) {
        let reason = match change.event {
            Event::Mark(reason) => reason,
            // The next reconcile of the group makes it again.
            Event::Repair(_) => return,
            _ => MarkReason::CallbackLost,
        };
        self.add(change.group_id.clone(), reason);
    }

    /// Number of marks that are not written.
    fn count(&self) -> usize {
        self.waiting().len() + self.0.under_way.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<(GroupId, MarkReason)> {
        let mut waiting = self.waiting();
        let some: Vec<GroupId> = waiting.keys().take(MARKS_PER_BATCH).cloned().collect();
        self.0.under_way.store(some.len(), Ordering::Relaxed);
        some.iter()
            .filter_map(|group| waiting.remove_entry(group))
            .collect()
    }

    /// Writes marks until `closing`, and then the rest once. `submit` writes one change and returns true if that is
    /// done; a change that is not written comes back through [`Self::lost`].
    async fn write<F: Future<Output = bool>>(
        &self,
        submit: impl Fn(Change) -> F,
        closing: CancellationToken,
    ) {
        let mut pause = FIRST_MARK_PAUSE;
        loop {
            let marks = self.take();
            if marks.is_empty() {
                tokio::select! {
                    biased;
                    () = self.0.added.notified() => continue,
                    () = closing.cancelled() => return,
                }
            }
            let is_last = closing.is_cancelled();
            let write = marks.into_iter().map(|(group, reason)| {
                let event = Event::Mark(reason);
                submit(Change::new(group, OffsetDateTime::now_utc(), event))
            });
            let done = join_all(write).await;
            self.0.under_way.store(0, Ordering::Relaxed);
            if done.into_iter().all(|done| done) {
                pause = FIRST_MARK_PAUSE;
                continue;
            }
            if is_last {
                return;
            }
            let _ = timeout(pause, closing.cancelled()).await;
            pause = (pause * 2).min(MAX_MARK_PAUSE);
        }
    }
}
