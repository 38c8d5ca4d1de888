//! The store of rejected callbacks, with limits of age and size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::Rejected;
use crate::store::{Error, Store};

/// Interval of the purge.
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);
/// Interval of the purge after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

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

    /// Bytes that may come between two purges. A purge counts by reading every row, so it is rare. The limit includes this
    /// part.
    fn slack(&self) -> u64 {
        self.settings.max_bytes / 64
    }

    /// Deletes the rows that exceed a limit. Returns the pause until the next purge.
    pub(super) async fn purge(&self) -> Duration {
        let Retention {
            keep_days,
            max_bytes,
        } = self.settings;
        let room = max_bytes - self.slack();
        self.since_purge.store(0, Ordering::Relaxed);
        match self.store.purge_rejected(keep_days, room).await {
            Ok(deleted) => {
                if deleted > 0 {
                    tracing::info!(deleted, "deleted the oldest rejected callbacks");
                }
                PURGE_INTERVAL
            }
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(error, "cannot delete old rejected callbacks");
                RETRY_INTERVAL
            }
        }
    }

    /// Purges at once and then at intervals, without end.
    pub(super) async fn housekeep(&self) -> std::convert::Infallible {
        loop {
            let pause = self.purge().await;
            tokio::time::sleep(pause).await;
        }
    }
}
