//! Limits of removals: the number of members that a reconcile may remove without an operator's decision. An API that
//! lists too few members, or the API of another OpenIM, must not empty the mirror.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Error;
use crate::domain::{RepairCounts, RepairKind};
use crate::store::{self, Store};

/// Removals that are always allowed.
const MAX_UNCHECKED: u64 = 20;
/// Largest removed part of a group's members, in percent.
const MAX_PERCENT_OF_GROUP: u64 = 30;
/// Largest removed part of all members of the mirror, in percent.
const MAX_PERCENT_OF_MIRROR: u64 = 10;

/// Removals of a run, or of all other reconciles since a run.
#[derive(Debug, Default)]
pub(super) struct Removals {
    removed: AtomicU64,
    /// Least number of members in the mirror.
    members: AtomicU64,
    /// The limit was exceeded, now or in the run before. No member is removed until an operator accepts it.
    is_exceeded: AtomicBool,
    /// Removals were refused for that.
    has_refused: AtomicBool,
    is_accepted: bool,
}

/// Members to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Some members of a group.
    Members {
        /// Members to be removed.
        removed: u64,
        /// Members of the group.
        of: u64,
    },
    /// All members of a group, because it is dismissed.
    WithGroup(u64),
}

impl Leaving {
    pub(super) fn count(self) -> u64 {
        match self {
            Self::Members { removed, .. } => removed,
            Self::WithGroup(members) => members,
        }
    }

    /// Number of these members that were removed by the written repairs.
    pub(super) fn removed(self, written: RepairCounts) -> u64 {
        match self {
            Self::Members { removed, .. } => removed.min(written.of(RepairKind::MemberRemoved)),
            Self::WithGroup(members) => match written.of(RepairKind::GroupChanged) {
                0 => 0,
                _ => members,
            },
        }
    }

    pub(super) fn is_dismissal(self) -> bool {
        matches!(self, Self::WithGroup(_))
    }
}

impl Removals {
    /// `removed`: removals of earlier runs that were not complete.
    pub(super) fn new(is_accepted: bool, is_exceeded: bool, removed: u64) -> Self {
        Self {
            removed: AtomicU64::new(removed),
            is_exceeded: AtomicBool::new(is_exceeded && !is_accepted),
            is_accepted,
            ..Self::default()
        }
    }

    /// True if an operator accepts any number.
    pub(super) fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    /// True if the next run has to begin with an exceeded limit. A complete run that refused nothing ends that.
    pub(super) fn stays_exceeded(&self, is_complete: bool) -> bool {
        let has_refused = self.has_refused.load(Ordering::Relaxed);
        self.is_exceeded.load(Ordering::Relaxed) && (has_refused || !is_complete)
    }

    /// Subtracts removals that were not made, or may not have been.
    pub(super) fn refund(&self, removed: u64) {
        if !self.is_accepted {
            self.removed.fetch_sub(removed, Ordering::Relaxed);
        }
    }

    /// Returns true if the removals are allowed, and counts them. If not, the group is skipped.
    pub(super) async fn allow(&self, leaving: Leaving, store: &Store) -> Result<bool, Error> {
        let removed = leaving.count();
        if removed == 0 || self.is_accepted {
            return Ok(true);
        }
        if self.is_exceeded.load(Ordering::Relaxed) {
            self.has_refused.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        // A dismissal removes the whole group, and is no sign of a list that is too short.
        if let Leaving::Members { removed, of } = leaving
            && is_too_much(removed, of, MAX_PERCENT_OF_GROUP)
        {
            return Ok(false);
        }
        let removed = self.removed.fetch_add(removed, Ordering::Relaxed) + removed;
        let enough = removed * 100 / MAX_PERCENT_OF_MIRROR;
        if removed > MAX_UNCHECKED && self.members.load(Ordering::Relaxed) < enough {
            // Counts up to twice as many, so that the next removals need no count.
            let members = store.count_members(enough * 2).await?;
            self.members.fetch_max(members, Ordering::Relaxed);
            if is_too_much(removed, members, MAX_PERCENT_OF_MIRROR) {
                self.is_exceeded.store(true, Ordering::Relaxed);
                self.has_refused.store(true, Ordering::Relaxed);
                return Err(Error::TooManyRemovals { removed, members });
            }
        }
        Ok(true)
    }
}

fn is_too_much(removed: u64, members: u64, percent: u64) -> bool {
    removed > MAX_UNCHECKED && removed * 100 > members * percent
}

/// Removals outside of runs. They count from one run to the next, of any instance.
#[derive(Debug, Default)]
pub(super) struct RemovalsSinceRun {
    run: Option<i64>,
    removals: Arc<Removals>,
}

impl RemovalsSinceRun {
    /// Returns the current removals; new ones after another run.
    pub(super) async fn current(&mut self, store: &Store) -> Result<Arc<Removals>, store::Error> {
        let (last, _) = store.last_runs().await?;
        // A run that was not complete decides nothing.
        if let Some(last) = last
            && self.run != Some(last.id)
            && (last.stopped_by.is_none() || last.has_too_many_removals())
        {
            self.removals = Arc::new(Removals::new(false, last.has_too_many_removals(), 0));
            self.run = Some(last.id);
        }
        Ok(Arc::clone(&self.removals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member that stays, because a callback has named it or the write failed, does not count.
    #[test]
    fn only_written_removals_count() {
        let mut written = RepairCounts::default();
        let leaving = Leaving::Members { removed: 3, of: 9 };
        assert_eq!((leaving.count(), leaving.removed(written)), (3, 0));
        written.add(RepairKind::MemberRemoved);
        written.add(RepairKind::GroupChanged);
        assert_eq!(leaving.removed(written), 1);
        // The other removals were announced.
        let leaving = Leaving::Members { removed: 0, of: 9 };
        assert_eq!(leaving.removed(written), 0);
        let leaving = Leaving::WithGroup(9);
        assert_eq!((leaving.count(), leaving.removed(written)), (9, 9));
        assert_eq!(leaving.removed(RepairCounts::default()), 0);
    }

    #[test]
    fn few_removals_are_allowed_and_more_only_up_to_a_part() {
        assert!(!is_too_much(20, 20, MAX_PERCENT_OF_GROUP));
        assert!(is_too_much(21, 69, MAX_PERCENT_OF_GROUP));
        assert!(!is_too_much(21, 70, MAX_PERCENT_OF_GROUP));
        assert!(is_too_much(21, 209, MAX_PERCENT_OF_MIRROR));
        assert!(!is_too_much(21, 210, MAX_PERCENT_OF_MIRROR));
    }
}
