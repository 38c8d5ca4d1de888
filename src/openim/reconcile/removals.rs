//! How many members may be taken for gone without anybody looking at it. An API that answers less
//! than there is, or that of another OpenIM, must not empty the mirror.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Error;
use crate::domain::{RepairCounts, RepairKind};
use crate::store::Store;

/// So few are always believed.
const FEW: u64 = 20;
/// Of a group's members, in percent.
const OF_GROUP: u64 = 30;
/// Of all the mirror's members, in percent.
const OF_MIRROR: u64 = 10;

/// What was removed in a cycle, or by checks since one.
#[derive(Debug, Default)]
pub(super) struct Removals {
    removed: AtomicU64,
    /// That there are so many members at least.
    members: AtomicU64,
    /// There were too many, now or in the cycle before: until somebody accepts them, no member is
    /// removed any more.
    is_exceeded: AtomicBool,
    /// Somebody was to be removed, and was not for that.
    has_refused: AtomicBool,
    is_accepted: bool,
}

/// Who is to be taken for gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Some of a group's members.
    Members {
        /// So many.
        removed: u64,
        /// Of so many.
        of: u64,
    },
    /// All of a group, which is dismissed.
    WithGroup(u64),
}

impl Leaving {
    /// How many they are.
    pub(super) fn count(self) -> u64 {
        match self {
            Self::Members { removed, .. } => removed,
            Self::WithGroup(members) => members,
        }
    }

    /// How many of them have gone, where so much was written.
    pub(super) fn gone(self, written: RepairCounts) -> u64 {
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

/// What may be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    Yes,
    /// The group is left as it is.
    No,
}

impl Removals {
    /// `removed`: so many were already, by comparisons that did not come to their end.
    pub(super) fn new(is_accepted: bool, is_exceeded: bool, removed: u64) -> Self {
        Self {
            removed: AtomicU64::new(removed),
            is_exceeded: AtomicBool::new(is_exceeded && !is_accepted),
            is_accepted,
            ..Self::default()
        }
    }

    /// Whether any number is accepted.
    pub(super) fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    /// Whether the next has to begin as exceeded, after this one has come to its end or not. Where it
    /// has, and nobody was to be removed, the limit is one again.
    pub(super) fn stays_exceeded(&self, has_ended: bool) -> bool {
        let has_refused = self.has_refused.load(Ordering::Relaxed);
        self.is_exceeded.load(Ordering::Relaxed) && (has_refused || !has_ended)
    }

    /// So many were not removed after all, or are not known to be.
    pub(super) fn give_back(&self, removed: u64) {
        if !self.is_accepted {
            self.removed.fetch_sub(removed, Ordering::Relaxed);
        }
    }

    /// Whether they may go.
    pub(super) async fn allow(&self, leaving: Leaving, store: &Store) -> Result<Allowed, Error> {
        let removed = leaving.count();
        if removed == 0 || self.is_accepted {
            return Ok(Allowed::Yes);
        }
        if self.is_exceeded.load(Ordering::Relaxed) {
            self.has_refused.store(true, Ordering::Relaxed);
            return Ok(Allowed::No);
        }
        // Whoever dismisses a group takes all of it for gone, and that is no sign of a short answer.
        if let Leaving::Members { removed, of } = leaving
            && is_too_much(removed, of, OF_GROUP)
        {
            return Ok(Allowed::No);
        }
        let removed = self.removed.fetch_add(removed, Ordering::Relaxed) + removed;
        let enough = removed * 100 / OF_MIRROR;
        if removed > FEW && self.members.load(Ordering::Relaxed) < enough {
            // Twice as many, so that it is not asked for each.
            let members = store.count_members(enough * 2).await?;
            self.members.fetch_max(members, Ordering::Relaxed);
            if is_too_much(removed, members, OF_MIRROR) {
                self.is_exceeded.store(true, Ordering::Relaxed);
                self.has_refused.store(true, Ordering::Relaxed);
                return Err(Error::TooManyRemovals { removed, members });
            }
        }
        Ok(Allowed::Yes)
    }
}

fn is_too_much(removed: u64, members: u64, percent: u64) -> bool {
    removed > FEW && removed * 100 > members * percent
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was left because a callback has named it, or because the write failed, is nobody's removal.
    #[test]
    fn only_who_was_removed_has_gone() {
        let mut written = RepairCounts::default();
        let leaving = Leaving::Members { removed: 3, of: 9 };
        assert_eq!((leaving.count(), leaving.gone(written)), (3, 0));
        written.add(RepairKind::MemberRemoved);
        written.add(RepairKind::GroupChanged);
        assert_eq!(leaving.gone(written), 1);
        // Of whom some were announced.
        let leaving = Leaving::Members { removed: 0, of: 9 };
        assert_eq!(leaving.gone(written), 0);
        let leaving = Leaving::WithGroup(9);
        assert_eq!((leaving.count(), leaving.gone(written)), (9, 9));
        assert_eq!(leaving.gone(RepairCounts::default()), 0);
    }

    #[test]
    fn few_are_believed_and_more_only_as_a_part() {
        assert!(!is_too_much(20, 20, OF_GROUP));
        assert!(is_too_much(21, 69, OF_GROUP));
        assert!(!is_too_much(21, 70, OF_GROUP));
        assert!(is_too_much(21, 209, OF_MIRROR));
        assert!(!is_too_much(21, 210, OF_MIRROR));
    }
}
