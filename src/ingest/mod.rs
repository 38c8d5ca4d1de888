//! The queue between the doors and the wall: takes a change, answers when it is durable.

use tokio_util::task::TaskTracker;

use crate::domain::MemberPatch;
use crate::store::{self, Store};

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
    store: Store,
    under_way: TaskTracker,
}

impl Ingest {
    /// Writes to `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            under_way: TaskTracker::new(),
        }
    }

    /// Resolves when the change is committed. The write is a task of its own: OpenIM hangs up
    /// after its timeout and never sends the change again, so a change that was taken goes on
    /// when nobody waits for it any more.
    ///
    /// # Errors
    /// See [`Error`]; the change may still have been written.
    pub async fn submit(&self, patch: MemberPatch) -> Result<(), Error> {
        let store = self.store.clone();
        let write = async move { store.patch_member(&patch).await };
        match self.under_way.spawn(write).await {
            Ok(written) => Ok(written?),
            Err(_panicked_or_runtime_ended) => Err(Error::Lost),
        }
    }

    /// Waits for every change under way.
    pub async fn close(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }
}
