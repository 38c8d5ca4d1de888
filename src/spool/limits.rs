//! Limits of the spool.

use super::entry::{Draft, REJECTED};

/// Bytes that count for each entry besides its record.
pub(super) const BYTES_OF_ENTRY: u64 = 128;
/// Sizes at which another segment begins.
const MIN_SEGMENT: u64 = 64 << 10;
const MAX_SEGMENT: u64 = 64 << 20;

/// Entries and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries.
    pub entries: u64,
    /// Bytes of changes, and of kinds that only newer versions know.
    pub changes: u64,
    /// Bytes of rejected callbacks.
    pub rejected: u64,
}

impl Usage {
    pub(super) fn of(kind: u8, record: usize) -> Self {
        let bytes = record as u64 + BYTES_OF_ENTRY;
        let (changes, rejected) = match kind {
            REJECTED => (0, bytes),
            _ => (bytes, 0),
        };
        Self {
            entries: 1,
            changes,
            rejected,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.changes += other.changes;
        self.rejected += other.rejected;
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.entries -= other.entries.min(self.entries);
        self.changes -= other.changes.min(self.changes);
        self.rejected -= other.rejected.min(self.rejected);
    }
}

/// Limits by SPOOL_MAX_BYTES. Rejected callbacks have a tenth of their own, so that they never keep a
/// change out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits(pub(super) u64);

impl Limits {
    /// True if there is room for `usage`, in which `draft` is counted.
    pub(super) fn admit(self, usage: &Usage, draft: &Draft) -> bool {
        if draft.is_rejected() {
            return usage.rejected <= self.0 - self.for_changes();
        }
        // A mark is small, and says that another change did not come in.
        let reserve = if draft.is_mark() { self.0 / 16 } else { 0 };
        usage.changes <= self.for_changes().saturating_add(reserve)
    }

    /// True if changes are well below their limit. A limit that is reached again at once was never left.
    pub(super) fn has_room(self, usage: &Usage) -> bool {
        usage.changes <= self.for_changes() / 16 * 15
    }

    fn for_changes(self) -> u64 {
        self.0 - self.0 / 10
    }

    /// Size at which another segment begins.
    pub(super) fn segment(self) -> u64 {
        (self.0 / 8).clamp(MIN_SEGMENT, MAX_SEGMENT)
    }
}
