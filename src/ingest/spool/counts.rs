//! What is in the spool and was done with it, for those who must not wait for its file.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use time::OffsetDateTime;

use super::file::{Refused, SpoolFile};
use super::row::micros;

/// What waits in the spool, and what has been done with it since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpoolState {
    /// Entries in it.
    pub waiting: u64,
    /// What they take.
    pub bytes: u64,
    /// How long the first has waited.
    pub age: Duration,
    /// Entries that were put in.
    pub spooled: u64,
    /// Entries that were taken out: written to the database or, where one was damaged, given up.
    pub drained: u64,
    /// Changes and bodies that it did not take.
    pub refused: u64,
    /// Entries that the database did not take out of it, for good.
    pub rejected: u64,
    /// Whether the last change to come was refused, and no room was made since.
    pub is_refusing: bool,
    /// Whether there is none, for its folder cannot be used.
    pub is_absent: bool,
    /// Whether an entry of a newer version holds up what waits.
    pub is_blocked: bool,
    /// Whether callbacks go there.
    pub is_open: bool,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    waiting: AtomicU64,
    bytes: AtomicU64,
    /// When the first came, in microseconds since 1970; 0: there is none.
    oldest: AtomicU64,
    spooled: AtomicU64,
    drained: AtomicU64,
    refused: AtomicU64,
    rejected: AtomicU64,
    is_refusing: AtomicBool,
    is_absent: AtomicBool,
    is_blocked: AtomicBool,
}

impl Counts {
    /// What the file says now.
    pub(super) fn follow(&self, file: &SpoolFile) {
        let oldest = file.oldest().map_or(0, micros);
        self.waiting.store(file.len(), Relaxed);
        self.bytes.store(file.bytes(), Relaxed);
        self.is_absent.store(file.is_absent(), Relaxed);
        self.oldest
            .store(u64::try_from(oldest).unwrap_or(0), Relaxed);
    }

    /// So many came, and were taken or not.
    pub(super) fn came(&self, entries: usize, taken: &Result<(), Refused>) {
        let count = match taken {
            Ok(()) => &self.spooled,
            Err(_) => &self.refused,
        };
        count.fetch_add(entries as u64, Relaxed);
    }

    /// So many were taken out.
    pub(super) fn went(&self, entries: u64) {
        self.drained.fetch_add(entries, Relaxed);
    }

    /// Whether one of a newer version is the first that waits.
    pub(super) fn is_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Relaxed);
    }

    /// The database did not take one.
    pub(super) fn is_rejected(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// Changes are refused. Said once, until there is room again.
    pub(super) fn refuses(&self, refused: &Refused) {
        if !self.is_refusing.swap(true, Relaxed) {
            let reason = refused.to_string();
            tracing::error!(reason, "the spool takes no more: callbacks are refused");
        }
    }

    /// Changes are taken, or would be.
    pub(super) fn has_room(&self) {
        if self.is_refusing.swap(false, Relaxed) {
            tracing::info!("the spool has room again");
        }
    }

    pub(super) fn state(&self, is_open: bool) -> SpoolState {
        let age = match self.oldest.load(Relaxed) {
            0 => 0,
            oldest => {
                let now = micros(OffsetDateTime::now_utc()).cast_unsigned();
                now.saturating_sub(oldest)
            }
        };
        SpoolState {
            waiting: self.waiting.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            age: Duration::from_micros(age),
            spooled: self.spooled.load(Relaxed),
            drained: self.drained.load(Relaxed),
            refused: self.refused.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            is_refusing: self.is_refusing.load(Relaxed),
            is_absent: self.is_absent.load(Relaxed),
            is_blocked: self.is_blocked.load(Relaxed),
            is_open,
        }
    }
}
