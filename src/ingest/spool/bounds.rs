//! How much may wait.

use super::record::Kind;

/// Counted for each row besides its record: what SQLite keeps with it, and more.
pub(super) const BYTES_OF_ROW: u64 = 128;
/// What the file may need besides what is counted.
const SLACK: u64 = 1 << 20;

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) rows: u64,
    /// Of changes.
    pub(super) changes: u64,
    /// Of rejected callbacks.
    pub(super) rejected: u64,
}

impl Held {
    /// `None`: one of a newer version, which counts as a change.
    pub(super) fn add(&mut self, kind: Option<Kind>, record: u64) {
        self.rows += 1;
        let bytes = record + BYTES_OF_ROW;
        match kind {
            Some(Kind::Rejected) => self.rejected += bytes,
            Some(Kind::Change) | None => self.changes += bytes,
        }
    }

    /// Rows that are damaged since they were counted can make the sums wrong, never less than nothing,
    /// and only until there is nothing.
    pub(super) fn remove(&mut self, kind: Option<Kind>, rows: u64, bytes: u64) {
        self.rows = self.rows.saturating_sub(rows);
        match kind {
            Some(Kind::Rejected) => self.rejected = self.rejected.saturating_sub(bytes),
            Some(Kind::Change) | None => self.changes = self.changes.saturating_sub(bytes),
        }
        if self.rows == 0 {
            *self = Self::default();
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.changes + self.rejected
    }
}

/// How much may wait in all. Rejected callbacks, which anybody can send who may send callbacks, have
/// their own part, so that they never keep a change out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    max_bytes: u64,
}

impl Bounds {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes }
    }

    /// As it was given.
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Whether there is room for what would be held with one more.
    pub(super) fn admit(&self, held: &Held, kind: Kind, is_mark: bool) -> bool {
        let of_changes = self.of_changes();
        match kind {
            Kind::Rejected => held.rejected <= self.max_bytes - of_changes,
            // A mark is small, and says that something did not come in.
            Kind::Change if is_mark => {
                held.changes <= of_changes.saturating_add(self.max_bytes / 16)
            }
            Kind::Change => held.changes <= of_changes,
        }
    }

    fn of_changes(&self) -> u64 {
        self.max_bytes - self.max_bytes / 10
    }

    /// Whether there is room for more than the next change: a bound that is reached again at once
    /// was never left.
    pub(super) fn has_room(&self, held: &Held) -> bool {
        held.changes <= self.of_changes() / 16 * 15
    }

    /// As many pages as a file that keeps the bounds needs, as a rule.
    pub(super) fn pages(&self, page: u64) -> u64 {
        let bytes = self.max_bytes / 8 * 9;
        bytes.max(self.max_bytes).saturating_add(SLACK) / page
    }
}
