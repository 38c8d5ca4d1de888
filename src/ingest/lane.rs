//! A lane: takes what waits, writes it, answers all.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::lanes::Shared;
use super::marks::Marks;
use super::queue::FEW;
use crate::domain::Change;
use crate::store::{Error, Writer};

/// First pause between two attempts to reach a database that is away; the next are longer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What takes longer is not worth waiting for: a statement and its commit take a tenth of this on
/// a good disk.
const SLOW: Duration = Duration::from_millis(5);

/// A change that waits to be written, and who waits for it. Where it is not written, its group is
/// marked, whatever the reason.
#[derive(Debug)]
pub(super) struct Waiting {
    change: Change,
    /// When it is too late to begin with it.
    deadline: Instant,
    /// `None` once answered.
    answer: Option<oneshot::Sender<Result<(), Error>>>,
    /// In the queue.
    place: Option<OwnedSemaphorePermit>,
    marks: Marks,
}

impl Waiting {
    pub(super) fn new(
        change: Change,
        deadline: Instant,
        place: OwnedSemaphorePermit,
        marks: Marks,
    ) -> (Self, oneshot::Receiver<Result<(), Error>>) {
        let (answer, answered) = oneshot::channel();
        let waiting = Self {
            change,
            deadline,
            answer: Some(answer),
            place: Some(place),
            marks,
        };
        (waiting, answered)
    }

    fn answer(mut self, written: Result<(), Error>) {
        if written.is_err() {
            self.marks.lost(&self.change);
        }
        self.place = None;
        if let Some(answer) = self.answer.take() {
            // Whoever hung up does not hear of it.
            let _ = answer.send(written);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The lane that had it panicked, or the runtime ended.
        if self.answer.is_some() {
            self.marks.lost(&self.change);
        }
    }
}

pub(super) struct Lane {
    number: usize,
    shared: Arc<Shared>,
    writer: Writer,
    /// How much longer than its time a change waits for others of its batch.
    grace: Duration,
    /// Postgres gives up on another's lock in less.
    of_lock: Duration,
    /// Whether the database did not answer last time, and how long to wait before the next.
    pause: Option<Duration>,
}

impl Lane {
    pub(super) fn new(
        number: usize,
        shared: Arc<Shared>,
        writer: Writer,
        patience: Duration,
    ) -> Self {
        Self {
            number,
            shared,
            writer,
            grace: patience / 2,
            of_lock: patience / 4,
            pause: None,
        }
    }

    /// Writes what comes, until the end of [`Shared::next`].
    pub(super) async fn run(&mut self) {
        let (number, shared) = (self.number, Arc::clone(&self.shared));
        while let Some(batch) = shared.next(number).await {
            if batch.len() <= FEW {
                self.write(batch).await;
                continue;
            }
            let mut writing = pin!(self.write(batch));
            if timeout(SLOW, &mut writing).await.is_err() {
                shared.is_slow(number);
                writing.await;
            }
        }
        self.writer.close().await;
    }

    async fn write(&mut self, batch: Vec<Waiting>) {
        let now = Instant::now();
        let (batch, late): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|change| change.deadline > now);
        for change in late {
            change.answer(Err(Error::gave_up()));
        }
        let deadlines = batch.iter().map(|change| change.deadline);
        let (Some(first), Some(last)) = (deadlines.clone().min(), deadlines.max()) else {
            return;
        };
        // The last has its full time, unless the first would wait too long for that.
        let deadline = last.min(first + self.grace);
        let changes: Vec<&Change> = batch.iter().map(|waiting| &waiting.change).collect();
        match self.attempt(&changes, deadline).await {
            Ok(()) => {
                for change in batch {
                    change.answer(Ok(()));
                }
            }
            Err(error)
                if error.is_of_connection()
                    || batch.len() == 1 && matches!(error, Error::Permanent(_)) =>
            {
                for change in batch {
                    change.answer(Err(error.clone()));
                }
            }
            Err(_) => self.write_one_by_one(batch.into(), deadline).await,
        }
    }

    /// One of them is the bad one, or has to wait for somebody who has locked its row.
    async fn write_one_by_one(&mut self, mut changes: VecDeque<Waiting>, deadline: Instant) {
        while let Some(change) = changes.pop_front() {
            let written = self.attempt(&[&change.change], deadline).await;
            // An attempt that we would not see the end of could be written after all.
            let has_time = Instant::now() + self.of_lock <= deadline;
            if !(has_time && written.as_ref().is_err_and(Error::is_of_lock)) {
                change.answer(written);
                continue;
            }
            // Behind the others; what must not overtake it stays after it.
            let group = change.change.group_id.clone();
            let mut user = change.change.as_patch().map(|patch| patch.user_id.clone());
            let is_same = |other: &Waiting| {
                if other.change.group_id != group {
                    return false;
                }
                // Patches of two members are in nobody's way, until something else happened.
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

    /// Writes changes as one, again and again while the database cannot be reached.
    async fn attempt(&mut self, changes: &[&Change], deadline: Instant) -> Result<(), Error> {
        loop {
            if Instant::now() >= deadline {
                return Err(Error::gave_up());
            }
            let written = self.writer.write(changes, deadline).await;
            let error = match written {
                Err(error) if error.is_of_connection() => error,
                done => {
                    if self.pause.take().is_some() {
                        tracing::info!(lane = self.number, "the database is back");
                    }
                    return done;
                }
            };
            let now = Instant::now();
            let pause = match self.pause {
                // The connection may just have been an old one.
                None => Duration::ZERO,
                Some(pause) => pause,
            };
            if self.pause.is_none() {
                let error = error.to_string();
                tracing::warn!(
                    lane = self.number,
                    error,
                    "lost the connection to the database"
                );
            }
            if now + pause >= deadline {
                return Err(error);
            }
            self.pause = Some((pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE));
            sleep_until(now + pause).await;
        }
    }
}
