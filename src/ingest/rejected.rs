//! The store of rejected callbacks, with limits of age and size.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Rejected;
use crate::store::{Error, Store};

/// Limits of rejected callbacks.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Days that one is kept.
    pub keep_days: u16,
    /// Bytes of all of them. With 0 none is kept.
    pub max_bytes: u64,
}

/// Result of keeping a rejected callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// The settings keep none.
    No,
    Yes,
    /// It is kept, and the limit may be exceeded.
    TimeToPurge,
}

/// Writes and purges rejected callbacks.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Store,
    settings: Retention,
    /// Bytes that were kept since the last purge.
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

    /// True if the settings keep rejected callbacks.
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

    /// Bytes that may come between two purges. A purge counts by reading every row, so it is rare. The limit includes
    /// this part.
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
