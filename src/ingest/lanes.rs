//! The lanes: tasks that write changes to Postgres in batches and answer each. A batch that cannot be written in time
//! goes to the spool.
//!
//! Any lane takes the changes of any group, but one group is in one lane at a time. A lane claims the groups of its
//! batch, and later changes of these groups are kept for it. So the changes of one group take effect in their order of
//! arrival, and two changes of two groups are written at the same time. With a fixed lane for each group, by a hash,
//! one of two such changes would wait for the other in half of all cases with two lanes.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::intake::{self, Spool};
use super::{Diverting, Error, Marks};
use crate::domain::{Change, Event, Repaired};
use crate::spool::Attempt;
use crate::store::{self, Failed, Store, Writer, Written};
use crate::tasks::{Task, Tasks};

/// A batch that takes longer than this is slow, and other lanes take new changes. A statement and its commit take a
/// tenth of it on a good disk.
const SLOW_BATCH: Duration = Duration::from_millis(5);

/// A change that finds this many before it gets a deadline of its own in the queue.
const LONG_QUEUE: usize = 2048;

/// Limit of a batch: large enough for few commits, small enough for short ones.
const MAX_BATCH: Load = Load {
    changes: 512,
    bytes: 4 << 20,
};

/// Cost of a row beside its texts, in bytes of text.
const ROW_BYTES: usize = 64;

/// All lanes. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    shared: Arc<Shared>,
    /// One per lane.
    writers: Arc<[Arc<AsyncMutex<Writer>>]>,
    /// Takes the groups of changes that are not written.
    marks: Marks,
    writing: Task,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue<Waiting>>,
    /// One per lane.
    wake: Vec<Notify>,
    hasher: RandomState,
    closing: CancellationToken,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue<Waiting>> {
        // No code panics while it holds the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next batch of a lane that has finished the one before. `None` after the close, when the queue is
    /// empty.
    async fn next(&self, lane: usize) -> Option<Vec<Waiting>> {
        loop {
            let (batch, other) = {
                let mut queue = self.queue();
                (queue.take(lane), queue.lane_to_wake())
            };
            self.wake(other);
            if !batch.is_empty() {
                return Some(batch);
            }
            if self.closing.is_cancelled() {
                return None;
            }
            self.wake[lane].notified().await;
        }
    }

    /// Notes that the batch of a lane is slow, and wakes another lane if there is work for one.
    fn note_slow(&self, lane: usize) {
        let other = {
            let mut queue = self.queue();
            queue.lanes[lane].is_slow = true;
            queue.lane_to_wake()
        };
        self.wake(other);
    }

    fn wake(&self, lane: Option<usize>) {
        if let Some(lane) = lane {
            self.wake[lane].notify_one();
        }
    }
}

/// A change in the queue. The answer comes within twice the timeout of a lane, because a lane does nothing without a
/// timeout. A timer for each change would cost more than the change.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) answered: oneshot::Receiver<Result<Repaired, Error>>,
    /// Number in a queue that is longer than [`LONG_QUEUE`], where the change needs a deadline of its own.
    number: Option<u64>,
}

impl Queued {
    /// True if the change needs a deadline of its own: see [`Lanes::answer`].
    pub(super) fn needs_deadline(&self) -> bool {
        self.number.is_some()
    }
}

impl Lanes {
    /// Starts the lanes, as many as `store` has connections for.
    pub(super) fn start(store: &Store, marks: Marks, spool: Option<&Spool>, tasks: &Tasks) -> Self {
        let lanes = store.lanes;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(lanes, MAX_BATCH)),
            wake: (0..lanes).map(|_| Notify::new()).collect(),
            hasher: RandomState::new(),
            closing: CancellationToken::new(),
        });
        let writing = tasks.task("writes changes");
        let mut writers = Vec::new();
        for number in 0..lanes {
            let position = spool.map(|spool| (spool.id(), lane_number(number)));
            let writer = Arc::new(AsyncMutex::new(store.writer(position)));
            writers.push(Arc::clone(&writer));
            let lane = Lane {
                number,
                shared: Arc::clone(&shared),
                writer,
                batch_timeout: store.lane_timeout,
                lock_timeout: store.lane_lock_timeout,
                diverting: spool.map(Spool::diverting).unwrap_or_default(),
                spool: spool.cloned(),
            };
            writing.start(|_| async move { lane.run().await });
        }
        Self {
            shared,
            writers: writers.into(),
            marks,
            writing,
        }
    }

    /// Adds a change to the end of the queue. The queue has no limit of its own: the memory for bodies has one.
    pub(super) fn push(&self, change: Change) -> Queued {
        let group = self.shared.hasher.hash_one(&change.group_id);
        let bytes = bytes_of(&change);
        let (waiting, answered) = Waiting::new(change, self.marks.clone());
        let (lane, number) = {
            let mut queue = self.shared.queue();
            let is_long = queue.len() >= LONG_QUEUE;
            let lane = queue.push(group, bytes, waiting);
            (lane, is_long.then_some(queue.count))
        };
        self.shared.wake(lane);
        Queued { answered, number }
    }

    /// Waits for the answer to a change. A change that needs a deadline and that no lane has taken by `deadline` is
    /// taken out of the queue and fails.
    pub(super) async fn answer(
        &self,
        queued: Queued,
        deadline: Instant,
    ) -> Result<Repaired, Error> {
        let Queued {
            mut answered,
            number,
        } = queued;
        let answer = match number {
            None => answered.await,
            Some(number) => match timeout_at(deadline, &mut answered).await {
                Ok(answer) => answer,
                Err(_elapsed) => {
                    let waiting = self.shared.queue().remove(number);
                    if let Some(waiting) = waiting {
                        waiting.answer(Err(store::Error::gave_up().into()));
                    }
                    answered.await
                }
            },
        };
        answer.unwrap_or(Err(Error::Lost)) // the lane has panicked
    }

    /// Number of changes that no lane has taken.
    pub(super) fn waiting(&self) -> usize {
        self.shared.queue().len()
    }

    /// Closes the connection of every lane, after the batch on it has ended or timed out.
    pub(super) async fn close_connections(&self) {
        for writer in &*self.writers {
            writer.lock().await.close().await;
        }
    }

    /// Writes the queue and ends the lanes.
    pub(super) async fn close(&self) {
        self.writing.close();
        self.shared.closing.cancel();
        for lane in &self.shared.wake {
            lane.notify_one();
        }
        self.writing.end().await;
    }
}

/// A change without an answer. If it fails or is dropped, its group is marked.
#[derive(Debug)]
struct Waiting {
    change: Change,
    /// `None` after the answer.
    answer: Option<oneshot::Sender<Result<Repaired, Error>>>,
    marks: Marks,
}

impl Waiting {
    fn new(change: Change, marks: Marks) -> (Self, oneshot::Receiver<Result<Repaired, Error>>) {
        let (answer, answered) = oneshot::channel();
        let waiting = Self {
            change,
            answer: Some(answer),
            marks,
        };
        (waiting, answered)
    }

    pub(super) fn answer(mut self, written: Result<Repaired, Error>) {
        if written.is_err() {
            self.marks.lost(&self.change);
        }
        if let Some(answer) = self.answer.take() {
            // The receiver is gone if the client has hung up.
            let _ = answer.send(written);
        }
    }
}

impl AsRef<Change> for Waiting {
    fn as_ref(&self) -> &Change {
        &self.change
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The lane has panicked, or the runtime has ended.
        if self.answer.is_some() {
            self.marks.lost(&self.change);
        }
    }
}

/// A change that is not known to be written, with the attempt that may still commit it.
type Unwritten = (Waiting, Option<Attempt>);

/// One lane.
struct Lane {
    /// From 0.
    number: usize,
    shared: Arc<Shared>,
    /// The drain locks it too, to close the connection.
    writer: Arc<AsyncMutex<Writer>>,
    /// Time limit of a batch.
    batch_timeout: Duration,
    /// Time after which Postgres gives up a lock that another session holds.
    lock_timeout: Duration,
    /// Never on without a spool.
    diverting: Diverting,
    spool: Option<Spool>,
}

impl Lane {
    /// Writes batches until [`Shared::next`] ends.
    async fn run(&self) {
        // After a panic the batch is answered as lost and its groups are marked. One bad change must not end the
        // process.
        while AssertUnwindSafe(self.work()).catch_unwind().await.is_err() {
            tracing::error!(lane = self.number, "a lane panicked");
            self.writer.lock().await.abandon();
            if let Some(spool) = &self.spool {
                spool.divert();
            }
        }
        self.writer.lock().await.close().await;
    }

    async fn work(&self) {
        while let Some(batch) = self.shared.next(self.number).await {
            if batch.len() <= SMALL_BATCH {
                self.write(batch).await;
                continue;
            }
            let mut writing = pin!(self.write(batch));
            if timeout(SLOW_BATCH, &mut writing).await.is_err() {
                self.shared.note_slow(self.number);
                writing.await;
            }
        }
    }

    async fn write(&self, mut batch: Vec<Waiting>) {
        loop {
            if let Some(spool) = &self.spool
                && self.diverting.is_on()
            {
                let all = batch.into_iter().map(|change| (change, None)).collect();
                let all = fail_repairs(all, &store::Error::gave_up());
                if all.is_empty() {
                    return;
                }
                match intake::append_if_diverting(spool, all).await {
                    Ok(answers) => return answer_all(answers),
                    // The drain has ended in between.
                    Err(back) => batch = back.into_iter().map(|(change, _)| change).collect(),
                }
            }
            let mut writer = self.writer.lock().await;
            // The spool may have been opened while this lane waited for its writer.
            if !self.diverting.is_on() {
                return self.write_directly(&mut writer, batch).await;
            }
        }
    }

    async fn write_directly(&self, writer: &mut Writer, batch: Vec<Waiting>) {
        let deadline = Instant::now() + self.batch_timeout;
        let changes: Vec<&Change> = batch.iter().map(AsRef::as_ref).collect();
        match attempt(writer, &changes, deadline).await {
            Ok(written) => {
                for (place, change) in batch.into_iter().enumerate() {
                    change.answer(Ok(written.repaired(place)));
                }
            }
            Err(Failed {
                error: store::Error::Permanent(_),
                ..
            }) => self.write_one_by_one(writer, batch.into(), deadline).await,
            Err(Failed { error, .. }) if error.is_lock_error() => {
                self.write_one_by_one(writer, batch.into(), deadline).await;
            }
            Err(Failed { error, attempt }) => {
                let attempt = self.attempt(attempt);
                let all = batch.into_iter().map(|change| (change, attempt));
                self.give_up(all.collect(), error).await;
            }
        }
    }

    /// Writes changes one by one, because Postgres refuses one of them or another session has locked one row.
    async fn write_one_by_one(
        &self,
        writer: &mut Writer,
        mut changes: VecDeque<Waiting>,
        deadline: Instant,
    ) {
        while let Some(change) = changes.pop_front() {
            let failed = match attempt(writer, &[&change.change], deadline).await {
                Ok(written) => {
                    change.answer(Ok(written.repaired(0)));
                    continue;
                }
                Err(Failed { error, .. }) if matches!(error, store::Error::Permanent(_)) => {
                    change.answer(Err(error.into()));
                    continue;
                }
                Err(failed) => failed,
            };
            let has_time = Instant::now() + self.lock_timeout <= deadline;
            if !(has_time && failed.error.is_lock_error()) {
                let attempt = self.attempt(failed.attempt);
                let others = changes.into_iter().map(|change| (change, None));
                let all = std::iter::once((change, attempt)).chain(others);
                return self.give_up(all.collect(), failed.error).await;
            }
            // The change goes to the end, and all changes that must not overtake it go after it.
            let group = change.change.group_id.clone();
            let mut user = change.change.as_patch().map(|patch| patch.user_id.clone());
            let is_same = |other: &Waiting| {
                if other.change.group_id != group {
                    return false;
                }
                // Patches of two members may change places, but not with any other change of the group.
                let patch = other.change.as_patch();
                match (&user, patch) {
                    (Some(user), Some(patch)) => *user == patch.user_id,
                    _ => {
                        user = None;
                        true
                    }
                }
            };
            let (same, others): (VecDeque<_>, VecDeque<_>) = changes.into_iter().partition(is_same);
            changes = others;
            changes.push_back(change);
            changes.extend(same);
        }
    }

    fn attempt(&self, number: Option<i64>) -> Option<Attempt> {
        let lane = lane_number(self.number);
        number.map(|seq| Attempt { lane, seq })
    }

    /// Moves changes to the spool, which keeps their order. The caller holds the writer, so no later change is written
    /// before the spool diverts.
    async fn give_up(&self, changes: Vec<Unwritten>, error: store::Error) {
        let changes = fail_repairs(changes, &error);
        match &self.spool {
            _ if changes.is_empty() => {}
            Some(spool) => answer_all(intake::divert(spool, changes, &error).await),
            None => {
                for (change, _) in changes {
                    change.answer(Err(error.clone().into()));
                }
            }
        }
    }
}

/// Fails the repairs and returns the other changes. A repair is never spooled: it would be stale. A late commit of one
/// is safe: it checks its rows again.
fn fail_repairs(changes: Vec<Unwritten>, error: &store::Error) -> Vec<Unwritten> {
    let is_repair = |(change, _): &Unwritten| matches!(change.change.event, Event::Repair(_));
    let (repairs, others): (Vec<Unwritten>, Vec<Unwritten>) =
        changes.into_iter().partition(is_repair);
    for (repair, _) in repairs {
        repair.answer(Err(error.clone().into()));
    }
    others
}

/// Number of a lane in the database, where 0 is the drain.
fn lane_number(number: usize) -> i16 {
    // There are few lanes.
    i16::try_from(number + 1).unwrap_or(i16::MAX)
}

/// Answers changes with the result of the spool.
fn answer_all(answers: Vec<(Waiting, Result<(), Error>)>) {
    for (change, spooled) in answers {
        change.answer(spooled.map(|()| Repaired::default()));
    }
}

/// Writes changes in one transaction. Retries at once after a serialization failure or a deadlock, and once after an
/// error of the session, because the next attempt has a new one.
async fn attempt(
    writer: &mut Writer,
    changes: &[&Change],
    deadline: Instant,
) -> Result<Written, Failed> {
    let mut has_new_session = false;
    loop {
        match writer.write(changes, deadline).await {
            Err(failed) if Instant::now() >= deadline => return Err(failed),
            Err(Failed { error, .. }) if error.is_conflict() => {}
            Err(Failed { error, .. }) if error.is_session_error() && !has_new_session => {
                has_new_session = true;
            }
            done => return done,
        }
    }
}

/// Estimated size of a change, in bytes.
fn bytes_of(change: &Change) -> usize {
    let users = change
        .user_ids()
        .map(|user| user.as_str().len() + ROW_BYTES);
    change.group_id.as_str().len() + users.sum::<usize>() + change.event.bytes()
}

/// Changes in their order of arrival. `C` is a change. A group is known by a hash: two groups with the same hash only
/// keep their common order.
#[derive(Debug)]
struct Queue<C> {
    /// Changes of groups that no lane has claimed.
    unclaimed: VecDeque<Item<C>>,
    lanes: Vec<LaneState<C>>,
    /// The lane that has claimed a group: a change of the group is in its batch or kept for it.
    claims: HashMap<u64, usize>,
    /// Lanes without work, the latest at the end.
    idle: Vec<usize>,
    /// Limit of a batch.
    max_batch: Load,
    /// Number of changes that were ever added.
    count: u64,
}

/// Up to this number of changes, the commit costs more than the rows.
const SMALL_BATCH: usize = 4;

/// An amount of work.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    changes: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Item<C> {
    /// Number of the change, from 1.
    number: u64,
    group: u64,
    bytes: usize,
    change: C,
}

#[derive(Debug)]
struct LaneState<C> {
    /// Later changes of claimed groups, in order of arrival.
    kept: VecDeque<Item<C>>,
    /// Group of each change in the batch.
    writing: Vec<u64>,
    /// True if the batch takes long.
    is_slow: bool,
}

impl<C> Queue<C> {
    fn new(lanes: usize, max_batch: Load) -> Self {
        let lane = |_| LaneState {
            kept: VecDeque::new(),
            writing: Vec::new(),
            is_slow: false,
        };
        Self {
            unclaimed: VecDeque::new(),
            lanes: (0..lanes).map(lane).collect(),
            claims: HashMap::new(),
            idle: Vec::new(),
            max_batch,
            count: 0,
        }
    }

    /// Adds a change of `bytes` bytes. Returns the lane to wake, if any.
    fn push(&mut self, group: u64, bytes: usize, change: C) -> Option<usize> {
        self.count += 1;
        let entry = Item {
            number: self.count,
            group,
            bytes,
            change,
        };
        if let Some(lane) = self.claims.get(&group) {
            self.lanes[*lane].kept.push_back(entry);
            return None;
        }
        self.unclaimed.push_back(entry);
        self.lane_to_wake()
    }

    /// Removes a change by its number. `None` if a lane has taken it.
    fn remove(&mut self, number: u64) -> Option<C> {
        let is_it = |entry: &Item<C>| entry.number == number;
        if let Some(place) = self.unclaimed.iter().position(is_it) {
            return self.unclaimed.remove(place).map(|entry| entry.change);
        }
        self.lanes.iter_mut().find_map(|lane| {
            let place = lane.kept.iter().position(is_it)?;
            let entry = lane.kept.remove(place)?;
            let has_group = lane.writing.contains(&entry.group)
                || lane.kept.iter().any(|kept| kept.group == entry.group);
            if !has_group {
                // The lane is not woken for later changes of this group.
                self.claims.remove(&entry.group);
            }
            Some(entry.change)
        })
    }

    /// Next batch of `lane`, in order of arrival within each group. Ends the batch before. If the batch is empty, the
    /// lane is idle until [`Queue::push`] or [`Queue::lane_to_wake`] returns it.
    fn take(&mut self, lane: usize) -> Vec<C> {
        let LaneState {
            kept,
            writing,
            is_slow,
        } = &mut self.lanes[lane];
        *is_slow = false;
        for group in writing.drain(..) {
            self.claims.remove(&group);
        }
        let mut batch = Vec::new();
        let mut taken = Load::default();
        // Kept changes are older than unclaimed changes of the same group.
        for source in [&mut *kept, &mut self.unclaimed] {
            while let Some(first) = source.front() {
                let is_full = taken.changes >= self.max_batch.changes
                    || taken.bytes.saturating_add(first.bytes) > self.max_batch.bytes;
                if is_full && taken.changes > 0 {
                    break;
                }
                let Some(entry) = source.pop_front() else {
                    break;
                };
                taken.changes += 1;
                taken.bytes = taken.bytes.saturating_add(entry.bytes);
                writing.push(entry.group);
                batch.push(entry.change);
            }
        }
        let has = writing.iter().chain(kept.iter().map(|entry| &entry.group));
        for group in has {
            self.claims.insert(*group, lane);
        }
        // No unclaimed change of a claimed group may stay: another lane would take it.
        if !self.unclaimed.is_empty() {
            let claims = &self.claims;
            let (own, others) = std::mem::take(&mut self.unclaimed)
                .into_iter()
                .partition(|entry| claims.get(&entry.group) == Some(&lane));
            kept.extend::<VecDeque<_>>(own);
            self.unclaimed = others;
        }
        if batch.is_empty() && !self.idle.contains(&lane) {
            self.idle.push(lane);
        }
        batch
    }

    /// Idle lane to wake, if there is work for it.
    ///
    /// While a lane writes many changes, new changes are left to it unless they fill a batch: a row costs little, a
    /// statement and its commit cost much. So two changes are written in parallel by two lanes, and hundreds by one
    /// lane. Each is the faster way for its number of changes.
    fn lane_to_wake(&mut self) -> Option<usize> {
        let waiting = self.unclaimed.len();
        let fast = self.lanes.iter().filter(|lane| !lane.is_slow);
        let writing: usize = fast.map(|lane| lane.writing.len()).sum();
        if waiting == 0 || (writing > SMALL_BATCH && waiting < self.max_batch.changes) {
            return None;
        }
        self.idle.pop()
    }

    /// Number of changes that are in no batch.
    fn len(&self) -> usize {
        let kept: usize = self.lanes.iter().map(|lane| lane.kept.len()).sum();
        self.unclaimed.len() + kept
    }
}

#[cfg(test)]
mod tests;
