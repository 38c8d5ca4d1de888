//! What a comparison has come to so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::domain::{GroupId, RepairCounts, RepairKind};
use crate::store::RunCounts;

/// Groups that are named; of more, there is only the number.
const MOST_NAMED: usize = 100;

/// Counts, looked at while they are made.
#[derive(Debug, Default)]
pub struct Tally {
    groups: AtomicU64,
    seen: AtomicU64,
    compared: AtomicU64,
    left: AtomicU64,
    members: AtomicU64,
    added: AtomicU64,
    removed: AtomicU64,
    changed: AtomicU64,
    details: AtomicU64,
    profiles: AtomicU64,
    /// Members who left with their groups.
    dismissed: AtomicU64,
    /// `None`: OpenIM does not tell which.
    named: Mutex<Vec<(Option<GroupId>, String)>>,
}

impl Tally {
    fn of(&self, kind: RepairKind) -> &AtomicU64 {
        match kind {
            RepairKind::MemberAdded => &self.added,
            RepairKind::MemberRemoved => &self.removed,
            RepairKind::MemberChanged => &self.changed,
            RepairKind::DetailsChanged => &self.details,
            RepairKind::GroupChanged => &self.profiles,
        }
    }

    pub(super) fn add(&self, counts: RepairCounts) {
        for (kind, count) in counts.kinds() {
            self.of(kind).fetch_add(count, Ordering::Relaxed);
        }
    }

    /// So many members have left with their group.
    pub(super) fn dismissed(&self, members: u64) {
        self.dismissed.fetch_add(members, Ordering::Relaxed);
    }

    /// How many members have left with their groups, without a word of it before.
    pub(super) fn members_dismissed(&self) -> u64 {
        self.dismissed.load(Ordering::Relaxed)
    }

    /// How many groups there are to see, as far as that is known.
    pub(super) fn expect(&self, groups: u64) {
        self.groups.fetch_max(groups, Ordering::Relaxed);
    }

    pub(super) fn saw(&self, groups: u64) {
        self.seen.fetch_add(groups, Ordering::Relaxed);
    }

    /// A group was read, as a whole or as far as it had changed, and held against the mirror.
    pub(super) fn compared(&self, members: u64) {
        self.compared.fetch_add(1, Ordering::Relaxed);
        self.members.fetch_add(members, Ordering::Relaxed);
    }

    /// A group was left as it is.
    pub(super) fn left(&self, group: &GroupId, why: &str) {
        self.left_some(1, Some(group), why);
    }

    /// Groups were left of which nobody knows the ids.
    pub(super) fn left_unnamed(&self, groups: u64, why: &str) {
        self.left_some(groups, None, why);
    }

    fn left_some(&self, groups: u64, group: Option<&GroupId>, why: &str) {
        self.left.fetch_add(groups, Ordering::Relaxed);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < MOST_NAMED {
            named.push((group.cloned(), why.to_owned()));
        }
    }

    /// How many groups there are to see; 0 where that is not known yet.
    pub fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }

    /// Some of the groups that were left as they are, and why; `None` for groups of which OpenIM does
    /// not give the ids.
    pub fn left_groups(&self) -> Vec<(Option<GroupId>, String)> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.clone()
    }

    /// All counts.
    pub fn counts(&self) -> RunCounts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed).cast_signed();
        RunCounts {
            groups_seen: get(&self.seen),
            groups_compared: get(&self.compared),
            groups_left: get(&self.left),
            members_compared: get(&self.members),
            members_added: get(&self.added),
            members_removed: get(&self.removed),
            members_changed: get(&self.changed),
            details_changed: get(&self.details),
            groups_changed: get(&self.profiles),
        }
    }
}
