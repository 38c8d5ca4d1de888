//! The lanes together: what waits for them, and who wakes them.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::lane::{Lane, Waiting, lane_of_writer};
use super::marks::Marks;
use super::queue::{Load, Queue};
use super::spool::Spool;
use crate::domain::{Change, Repaired};
use crate::store::{self, Store, Writer};
use crate::tasks::{Task, Tasks};

/// So many changes are written soon. Whatever comes while more wait may wait for too long.
const SOON: usize = 2048;

/// What a lane writes at a time: so much that commits are few, so little that none takes long.
const MOST: Load = Load {
    changes: 512,
    bytes: 4 << 20,
};

/// What a row costs beside its texts, as if these were bytes of them.
const BYTES_OF_ROW: usize = 64;

/// The lanes. Shared by its clones.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    shared: Arc<Shared>,
    /// One for each lane.
    writers: Arc<[Arc<AsyncMutex<Writer>>]>,
    /// Of what is not written.
    marks: Marks,
    writing: Task,
}

#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue<Waiting>>,
    /// One for each lane.
    wake: Vec<Notify>,
    hasher: RandomState,
    closing: CancellationToken,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue<Waiting>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch of a lane, which is done with the one before; `None` at the end.
    pub(super) async fn next(&self, lane: usize) -> Option<Vec<Waiting>> {
        loop {
            let (batch, other) = {
                let mut queue = self.queue();
                (queue.take(lane), queue.wanted())
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

    /// What a lane writes takes long: others need not wait for it.
    pub(super) fn is_slow(&self, lane: usize) {
        let other = {
            let mut queue = self.queue();
            queue.is_slow(lane);
            queue.wanted()
        };
        self.wake(other);
    }

    fn wake(&self, lane: Option<usize>) {
        if let Some(lane) = lane {
            self.wake[lane].notify_one();
        }
    }
}

/// A change that waits for a lane. The answer comes when it is durable or cannot be: by twice the
/// time that a lane may take, for a lane does nothing without a bound. A timer for each change would
/// cost more than the change.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) answered: oneshot::Receiver<Result<Repaired, Error>>,
    /// In the queue, where that bound may not hold: see [`SOON`].
    number: Option<u64>,
}

impl Queued {
    /// Whether many changes were before it.
    pub(super) fn is_late(&self) -> bool {
        self.number.is_some()
    }
}

impl Lanes {
    pub(super) fn start(store: &Store, marks: Marks, spool: Option<&Spool>, tasks: &Tasks) -> Self {
        let lanes = store.lanes();
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(lanes, MOST)),
            wake: (0..lanes).map(|_| Notify::new()).collect(),
            hasher: RandomState::new(),
            closing: CancellationToken::new(),
        });
        let writing = tasks.task("writes changes");
        let mut writers = Vec::new();
        for number in 0..lanes {
            let of_spool = spool.map(|spool| (spool.id(), lane_of_writer(number)));
            let writer = Arc::new(AsyncMutex::new(store.writer(of_spool)));
            writers.push(Arc::clone(&writer));
            let spool = spool.cloned();
            let lane = Lane::new(number, Arc::clone(&shared), writer, store, spool);
            writing.start(|_| async move { lane.run().await });
        }
        Self {
            shared,
            writers: writers.into(),
            marks,
            writing,
        }
    }

    /// Puts a change behind all that came before it, however many these are: the bodies that they
    /// came in have their bound elsewhere.
    pub(super) fn push(&self, change: Change) -> Queued {
        let group = self.shared.hasher.hash_one(&change.group_id);
        let bytes = bytes_of(&change);
        let (waiting, answered) = Waiting::new(change, self.marks.clone());
        let (lane, number) = {
            let mut queue = self.shared.queue();
            let are_many = queue.len() >= SOON;
            let lane = queue.push(group, bytes, waiting);
            (lane, are_many.then_some(queue.last()))
        };
        self.shared.wake(lane);
        Queued { answered, number }
    }

    /// Waits for the answer to a change that many others were before. It is given up on where no
    /// lane has taken it by `deadline`, and is not written then.
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
                    let waiting = self.shared.queue().take_back(number);
                    if let Some(waiting) = waiting {
                        waiting.answer(Err(store::Error::gave_up().into()));
                    }
                    answered.await
                }
            },
        };
        answer.unwrap_or(Err(Error::Lost)) // the lane panicked
    }

    /// How many changes wait.
    pub(super) fn waiting(&self) -> usize {
        self.shared.queue().len()
    }

    /// Has every lane end its connection, once what it writes there is done or given up on.
    pub(super) async fn close_connections(&self) {
        for writer in &*self.writers {
            writer.lock().await.close().await;
        }
    }

    /// Writes what waits, then ends the lanes.
    pub(super) async fn close(&self) {
        self.writing.close();
        self.shared.closing.cancel();
        for lane in &self.shared.wake {
            lane.notify_one();
        }
        self.writing.end().await;
    }
}

/// About what a change holds.
fn bytes_of(change: &Change) -> usize {
    let users = change
        .user_ids()
        .map(|user| user.as_str().len() + BYTES_OF_ROW);
    change.group_id.as_str().len() + users.sum::<usize>() + change.event.bytes()
}
