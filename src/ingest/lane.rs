//! A lane: takes what waits, writes it, answers all. What it cannot write in time goes to the spool.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};

use super::Error;
use super::lanes::Shared;
use super::marks::Marks;
use super::queue::FEW;
use super::spool::{Attempt, Spool};
use crate::domain::{Change, Event, Repaired};
use crate::store::{self, Failed, Store, Writer, Written};

/// What takes longer is not worth waiting for: a statement and its commit take a tenth of this on
/// a good disk.
const SLOW: Duration = Duration::from_millis(5);

/// A change that waits to be written, and who waits for it. Where it is not written, its group is
/// marked, whatever the reason.
#[derive(Debug)]
pub(super) struct Waiting {
    change: Change,
    /// `None` once answered.
    answer: Option<oneshot::Sender<Result<Repaired, Error>>>,
    marks: Marks,
}

impl Waiting {
    pub(super) fn new(
        change: Change,
        marks: Marks,
    ) -> (Self, oneshot::Receiver<Result<Repaired, Error>>) {
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
            // Whoever hung up does not hear of it.
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
        // The lane that had it panicked, or the runtime ended.
        if self.answer.is_some() {
            self.marks.lost(&self.change);
        }
    }
}

/// With the number of the write that it may be in by, if any.
pub(super) type Left = (Waiting, Option<Attempt>);

pub(super) struct Lane {
    /// From 0.
    number: usize,
    shared: Arc<Shared>,
    /// Who drains the spool takes it too, to close its connection.
    writer: Arc<Mutex<Writer>>,
    /// How long one batch may take.
    patience: Duration,
    /// Postgres gives up on another's lock in this time.
    of_lock: Duration,
    spool: Option<Spool>,
}

impl Lane {
    pub(super) fn new(
        number: usize,
        shared: Arc<Shared>,
        writer: Arc<Mutex<Writer>>,
        store: &Store,
        spool: Option<Spool>,
    ) -> Self {
        Self {
            number,
            shared,
            writer,
            patience: store.lane_timeout(),
            of_lock: store.lane_lock_timeout(),
            spool,
        }
    }

    /// Writes what comes, until the end of [`Shared::next`].
    pub(super) async fn run(&self) {
        // What it was writing is answered as lost, and its groups are marked, so one change that nobody
        // thought of ends neither the process nor the others' wait.
        while AssertUnwindSafe(self.work()).catch_unwind().await.is_err() {
            tracing::error!(lane = self.number, "a lane panicked");
            self.writer.lock().await.abandon();
            if let Some(spool) = &self.spool {
                spool.open();
            }
        }
        self.writer.lock().await.close().await;
    }

    async fn work(&self) {
        while let Some(batch) = self.shared.next(self.number).await {
            if batch.len() <= FEW {
                self.write(batch).await;
                continue;
            }
            let mut writing = pin!(self.write(batch));
            if timeout(SLOW, &mut writing).await.is_err() {
                self.shared.is_slow(self.number);
                writing.await;
            }
        }
    }

    async fn write(&self, mut batch: Vec<Waiting>) {
        loop {
            if let Some(spool) = &self.spool
                && spool.is_open()
            {
                let all = batch.into_iter().map(|change| (change, None)).collect();
                let all = without_repairs(all, &store::Error::gave_up());
                if all.is_empty() {
                    return;
                }
                match spool.append_if_open(all).await {
                    Ok(()) => return,
                    // It was drained just now.
                    Err(back) => batch = back.into_iter().map(|(change, _)| change).collect(),
                }
            }
            let mut writer = self.writer.lock().await;
            // Whoever has opened it and had the writer since may write other things now.
            if self.spool.as_ref().is_none_or(|spool| !spool.is_open()) {
                return self.write_directly(&mut writer, batch).await;
            }
        }
    }

    async fn write_directly(&self, writer: &mut Writer, batch: Vec<Waiting>) {
        let deadline = Instant::now() + self.patience;
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

    /// One of them is the bad one, or has to wait for somebody who has locked its row.
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
            let has_time = Instant::now() + self.of_lock <= deadline;
            if !(has_time && failed.error.is_lock_error()) {
                let attempt = self.attempt(failed.attempt);
                let others = changes.into_iter().map(|change| (change, None));
                let all = std::iter::once((change, attempt)).chain(others);
                return self.give_up(all.collect(), failed.error).await;
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

    fn attempt(&self, number: Option<i64>) -> Option<Attempt> {
        Some(Attempt {
            lane: lane_of_writer(self.number),
            seq: number?,
        })
    }

    /// To the spool, from where they are written in their order, and whatever comes then after
    /// them. The writer is still ours: nobody writes before the spool is open.
    async fn give_up(&self, changes: Vec<Left>, error: store::Error) {
        let changes = without_repairs(changes, &error);
        match &self.spool {
            _ if changes.is_empty() => {}
            Some(spool) => spool.append(changes, &error).await,
            None => {
                for (change, _) in changes {
                    change.answer(Err(error.clone().into()));
                }
            }
        }
    }
}

/// Answers repairs: they wait in no spool, for what they were made of is out of date by then. One
/// that was given up on and is written nevertheless looks at its rows first, as any.
fn without_repairs(changes: Vec<Left>, error: &store::Error) -> Vec<Left> {
    let is_repair = |(change, _): &Left| matches!(change.change.event, Event::Repair(_));
    let (repairs, others): (Vec<Left>, Vec<Left>) = changes.into_iter().partition(is_repair);
    for (repair, _) in repairs {
        repair.answer(Err(error.clone().into()));
    }
    others
}

/// A lane's number in the database, where 0 drains the spool.
pub(super) fn lane_of_writer(number: usize) -> i16 {
    // There are few.
    i16::try_from(number + 1).unwrap_or(i16::MAX)
}

/// Answers changes that went to the spool, or did not.
pub(super) fn answer_all(changes: Vec<Left>, spooled: &Result<(), Error>) {
    for (change, _) in changes {
        change.answer(spooled.clone().map(|()| Repaired::default()));
    }
}

/// Writes changes as one. Where others were at the same rows at the same moment, and Postgres has
/// chosen us to begin anew, we do at once; once too where the session was the reason, for the next
/// attempt has another.
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
