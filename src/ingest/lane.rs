//! A lane: takes what waits, writes it, answers all.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::lanes::Shared;
use crate::domain::{MemberPatch, fold};
use crate::store::{Error, Writer};

/// First pause between two attempts to reach a database that is away; the next are longer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What takes longer is not worth waiting for: a statement and its commit take a tenth of this on
/// a good disk.
const SLOW: Duration = Duration::from_millis(5);

/// A change that waits to be written, and who waits for it.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) patch: MemberPatch,
    /// When nobody waits any longer.
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<(), Error>>,
    /// In the queue.
    pub(super) place: OwnedSemaphorePermit,
}

impl Waiting {
    fn answer(self, written: Result<(), Error>) {
        let Self { answer, place, .. } = self;
        drop(place);
        // Whoever hung up does not hear of it.
        let _ = answer.send(written);
    }
}

pub(super) struct Lane {
    number: usize,
    shared: Arc<Shared>,
    writer: Writer,
    /// Whether the database did not answer last time, and how long to wait before the next.
    pause: Option<Duration>,
}

impl Lane {
    pub(super) fn new(number: usize, shared: Arc<Shared>, writer: Writer) -> Self {
        Self {
            number,
            shared,
            writer,
            pause: None,
        }
    }

    /// Writes what comes, until the end of [`Shared::next`].
    pub(super) async fn run(&mut self) {
        let (number, shared) = (self.number, Arc::clone(&self.shared));
        while let Some(batch) = shared.next(number).await {
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
        // They were told so already.
        for change in late {
            change.answer(Err(Error::gave_up()));
        }
        let Some(deadline) = batch.iter().map(|change| change.deadline).max() else {
            return;
        };
        let patches = batch.iter().map(|change| &change.patch);
        match self.attempt(patches, deadline).await {
            Ok(()) => {
                for change in batch {
                    change.answer(Ok(()));
                }
            }
            Err(error) if batch.len() == 1 && matches!(error, Error::Permanent(_)) => {
                for change in batch {
                    change.answer(Err(error));
                    break;
                }
            }
            // One of them is the bad one, or had to wait for somebody who has its row.
            Err(_) => {
                for change in batch {
                    let written = self.attempt([&change.patch], change.deadline).await;
                    change.answer(written);
                }
            }
        }
    }

    /// Writes patches as one, again and again while the database cannot be reached.
    async fn attempt<'a>(
        &mut self,
        patches: impl IntoIterator<Item = &'a MemberPatch>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let patches = fold(patches);
        loop {
            let written = self.writer.patch_members(&patches, deadline).await;
            let error = match written {
                Err(error) if error.is_of_connection() => error,
                done => {
                    if done.is_ok() && self.pause.take().is_some() {
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
