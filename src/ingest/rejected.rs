//! Where callbacks that could not be understood are kept, within bounds.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Rejected;
use crate::store::{Error, Store};

/// How long rejected callbacks are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// In days.
    pub keep_days: u16,
    /// In bytes, all together; none at all with 0.
    pub max_bytes: u64,
}

/// What has become of a rejected callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// None are kept.
    No,
    Yes,
    /// It is kept, and there may be too many now.
    TimeToPurge,
}

/// Keeps rejected callbacks.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Store,
    settings: Retention,
    /// Bytes kept since the last look at how many there are.
    since_purge: AtomicU64,
}

impl Keeper {
    pub(super) fn new(store: Store, settings: Retention) -> Self {
        Self {
            store,
            settings,
            since_purge: AtomicU64::new(0),
        }
    }

    /// Whether any are kept.
    pub(super) fn keeps(&self) -> bool {
        self.settings.max_bytes > 0
    }

    pub(super) async fn keep(&self, rejected: &Rejected) -> Result<Kept, Error> {
        if !self.keeps() {
            return Ok(Kept::No);
        }
        self.store.keep_rejected(rejected).await?;
        let bytes = rejected.body.len() as u64 + 256;
        let since = self.since_purge.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if since > self.slack() {
            return Ok(Kept::TimeToPurge);
        }
        Ok(Kept::Yes)
    }

    /// Counting reads every row, so it is done only now and then; what comes meanwhile has its
    /// room in the bound.
    fn slack(&self) -> u64 {
        self.settings.max_bytes / 64
    }

    /// Deletes the rejected callbacks that are too old or too many.
    pub(super) async fn purge(&self) -> Result<(), Error> {
        let Retention {
            keep_days,
            max_bytes,
        } = self.settings;
        let room = max_bytes - self.slack();
        self.since_purge.store(0, Ordering::Relaxed);
        let deleted = self.store.purge_rejected(keep_days, room).await?;
        if deleted > 0 {
            tracing::info!(deleted, "deleted the oldest rejected callbacks");
        }
        Ok(())
    }
}
