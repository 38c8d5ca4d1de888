//! The queue between the doors and the wall: takes a change, answers when it is durable.

mod lane;
mod lanes;
mod marks;
mod queue;
mod rejected;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::{Change, CheckReason, GroupId, Rejected};
use crate::store::{self, Store};
use lanes::Lanes;
use marks::Marks;
use rejected::{Keeper, Kept};

pub use rejected::Retention;

/// How long an answer waits for the deletion of what is too much.
const PURGE_PATIENCE: Duration = Duration::from_secs(1);

/// Why a change is not known to be durable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The task that wrote it ended before it could say so.
    #[error("the write ended without an answer")]
    Lost,
}

/// Takes changes and writes them.
#[derive(Clone, Debug)]
pub struct Ingest {
    lanes: Lanes,
    marks: Marks,
    /// Writes the marks until it is told to end.
    marking: TaskTracker,
    closing: CancellationToken,
    keeper: Arc<Keeper>,
    /// How long a change may take in all.
    patience: Duration,
    under_way: TaskTracker,
}

impl Ingest {
    /// Starts the lanes, which write to `store`; keeps what could not be understood as `rejected` says.
    pub fn new(store: Store, rejected: Retention) -> Self {
        let marks = Marks::default();
        let lanes = Lanes::start(&store, marks.clone());
        let patience = store.patience();
        let closing = CancellationToken::new();
        let marking = TaskTracker::new();
        marking.spawn({
            let (marks, lanes, closing) = (marks.clone(), lanes.clone(), closing.clone());
            async move { marks.write(lanes, patience, closing).await }
        });
        Self {
            lanes,
            marks,
            marking,
            closing,
            patience,
            keeper: Arc::new(Keeper::new(store, rejected)),
            under_way: TaskTracker::new(),
        }
    }

    /// Resolves when the change is committed. Where it may not be, its group is marked to be
    /// checked as soon as the database can, also when nobody waits for the answer any more.
    ///
    /// # Errors
    /// See [`Error`]; the change may still have been written.
    pub async fn submit(&self, change: Change) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience;
        let answered = match self.lanes.place() {
            Some(place) => self.lanes.push(place, change, deadline),
            None => {
                let (lanes, marks) = (self.lanes.clone(), self.marks.clone());
                self.finish(async move {
                    let place = lanes.wait_for_place(deadline).await;
                    let place = place.inspect_err(|_| marks.lost(&change))?;
                    Ok(lanes.push(place, change, deadline))
                })
                .await?
            }
        };
        match answered.await {
            Ok(written) => Ok(written?),
            Err(_panicked) => Err(Error::Lost),
        }
    }

    /// Has a group marked to be checked, without waiting for it. A mark that is not written when
    /// the process ends is lost.
    pub fn want_check(&self, group: GroupId, reason: CheckReason) {
        self.marks.add(group, reason);
    }

    /// Keeps a callback that could not be understood; resolves when it is committed. False where
    /// none are kept.
    ///
    /// # Errors
    /// See [`Error`]; it may still have been kept.
    pub async fn keep_rejected(&self, rejected: Rejected) -> Result<bool, Error> {
        let keeper = Arc::clone(&self.keeper);
        let kept = self
            .finish(async move { keeper.keep(&rejected).await })
            .await?;
        if kept == Kept::TimeToPurge {
            let keeper = Arc::clone(&self.keeper);
            let purge = self.under_way.spawn(async move { keeper.purge().await });
            // As a rule it is done at once; who waits for an answer does not wait for a long one.
            let _ = tokio::time::timeout(PURGE_PATIENCE, purge).await;
        }
        Ok(kept != Kept::No)
    }

    /// Runs a write as a task of its own: OpenIM hangs up after its timeout and never sends a
    /// callback again, so what was taken goes on when nobody waits for it any more.
    async fn finish<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, store::Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.under_way.spawn(write).await {
            Ok(written) => Ok(written?),
            Err(_panicked_or_runtime_ended) => Err(Error::Lost),
        }
    }

    /// What has to be done now and then, for as long as it is polled.
    pub async fn housekeep(&self) -> std::convert::Infallible {
        self.keeper.housekeep().await
    }

    /// How many changes wait to be written.
    pub fn waiting(&self) -> usize {
        self.lanes.waiting()
    }

    /// How many groups wait to be marked.
    pub fn marks_waiting(&self) -> usize {
        self.marks.count()
    }

    /// Waits for every change under way.
    pub async fn close(&self) {
        self.under_way.close();
        self.under_way.wait().await;
        self.closing.cancel();
        self.marking.close();
        self.marking.wait().await;
        self.lanes.close().await;
        let groups = self.marks.count();
        if groups > 0 {
            tracing::warn!(
                groups,
                "changes of these groups were missed, which is noted nowhere"
            );
        }
    }
}
