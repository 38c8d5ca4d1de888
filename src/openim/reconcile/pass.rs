//! What a look at several groups has in common.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Tally;
use super::dry_run::DriftOf;
use super::removals::Removals;
use crate::domain::GroupId;

/// So many groups that cannot be read, one after the other, and it may not be the groups.
const MOST_FAILURES: u32 = 5;

/// Some groups, looked at for one reason.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    /// `None` in a dry run.
    pub(super) removals: Option<&'a Removals>,
    pub(super) tally: &'a Tally,
    /// Whether every group is read as a whole.
    pub(super) is_full: bool,
    /// In a dry run, what differs.
    drift: Mutex<Vec<DriftOf>>,
    /// Groups that could not be read, one after the other.
    failures: AtomicU32,
    /// What hints say of their groups.
    expected: HashMap<GroupId, Expected>,
}

/// What hints say of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// So many members have left.
    pub(super) announced: u64,
    /// Whether the group itself has changed.
    pub(super) has_group: bool,
    /// Whether it was dismissed.
    pub(super) is_dismissed: bool,
}

impl<'a> Pass<'a> {
    pub(super) fn new(removals: &'a Removals, tally: &'a Tally, is_full: bool) -> Self {
        Self {
            removals: Some(removals),
            ..Self::dry(tally, is_full)
        }
    }

    /// Only looks.
    pub(super) fn dry(tally: &'a Tally, is_full: bool) -> Self {
        Self {
            removals: None,
            tally,
            is_full,
            drift: Mutex::default(),
            failures: AtomicU32::new(0),
            expected: HashMap::new(),
        }
    }

    /// With what hints say.
    pub(super) fn expecting(self, expected: HashMap<GroupId, Expected>) -> Self {
        Self { expected, ..self }
    }

    /// Whether a hint says that the group itself has changed.
    pub(super) fn has_group(&self, group: &GroupId) -> bool {
        self.expected.get(group).is_some_and(|told| told.has_group)
    }

    /// Whether a hint says that the group was dismissed.
    pub(super) fn has_dismissal(&self, group: &GroupId) -> bool {
        let told = self.expected.get(group);
        told.is_some_and(|told| told.is_dismissed)
    }

    /// How many of the members who are gone nobody has announced: only these count for the limits. A look
    /// that hints want can come before the hint of a leave; then OpenIM's log of changes, which names
    /// `logged` of them, does for that.
    pub(super) fn unannounced(&self, group: &GroupId, removed: u64, logged: u64) -> u64 {
        let Some(told) = self.expected.get(group) else {
            return removed;
        };
        removed.saturating_sub(told.announced.saturating_add(logged))
    }

    pub(super) fn is_dry(&self) -> bool {
        self.removals.is_none()
    }

    pub(super) fn differ(&self, drift: impl IntoIterator<Item = DriftOf>) {
        let mut all = self.drift.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(drift);
    }

    pub(super) fn take_drift(&self) -> Vec<DriftOf> {
        let mut all = self.drift.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *all)
    }

    /// OpenIM has answered something as it should.
    pub(super) fn has_read(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// A group could not be read. Whether there were so many that it may not be the groups.
    pub(super) fn has_failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        failures.is_multiple_of(MOST_FAILURES)
    }

    /// Leaves a group as it is.
    pub(super) fn leave(&self, group: &GroupId, why: &str) {
        let id = group.as_str();
        tracing::warn!(group = id, why, "a group is left as it is");
        self.tally.left(group, why);
    }

    /// Leaves groups that OpenIM cannot list, and that the mirror does not know either.
    pub(super) fn leave_unnamed(&self, groups: u64, why: &str) {
        tracing::warn!(groups, why, "groups are left as they are");
        self.tally.left_unnamed(groups, why);
    }
}
