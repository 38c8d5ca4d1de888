//! Reports: the counts of a run, and the jobs that count into them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::removals::Removals;
use crate::domain::{Drift, GroupId, UserId};
use crate::store::RunCounts;

/// Most skipped groups that a report names.
const MAX_NAMED: usize = 100;
/// Failures in a row after which the reason may be OpenIM, and not the groups.
const MAX_FAILURES: u32 = 5;

/// Counts of a run, readable while it goes on.
#[derive(Debug, Default)]
pub struct Report(Mutex<ReportState>);

#[derive(Debug, Default)]
struct ReportState {
    expected_groups: u64,
    counts: RunCounts,
    skipped: Vec<(Option<GroupId>, String)>,
}

impl Report {
    fn lock(&self) -> MutexGuard<'_, ReportState> {
        // The counts are usable after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut RunCounts)) {
        add(&mut self.lock().counts);
    }

    /// Counts groups that the run has come to.
    pub(super) fn saw(&self, groups: u64) {
        self.count(|counts| counts.groups_seen += groups.cast_signed());
    }

    /// Sets the number of groups to see, as far as it is known.
    pub(super) fn expect(&self, groups: u64) {
        let mut counted = self.lock();
        counted.expected_groups = counted.expected_groups.max(groups);
    }

    /// Counts skipped groups. `None`: the id is unknown.
    pub(super) fn skip(&self, groups: u64, group: Option<&GroupId>, why: &str) {
        let mut counted = self.lock();
        counted.counts.groups_left += groups.cast_signed();
        if counted.skipped.len() < MAX_NAMED {
            counted.skipped.push((group.cloned(), why.to_owned()));
        }
    }

    /// Number of groups to see; 0 if it is not known yet.
    pub fn expected_groups(&self) -> u64 {
        self.lock().expected_groups
    }

    /// Some of the skipped groups, with the reasons. `None`: OpenIM does not send the ids.
    pub fn skipped(&self) -> Vec<(Option<GroupId>, String)> {
        self.lock().skipped.clone()
    }

    /// All counts.
    pub fn counts(&self) -> RunCounts {
        self.lock().counts
    }
}

/// A value of the mirror that differs from OpenIM's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DriftEntry {
    /// The group.
    pub group_id: GroupId,
    /// The member. `None`: the group itself.
    pub user_id: Option<UserId>,
    /// The field with both values.
    pub drift: Drift,
}

impl DriftEntry {
    /// Makes the entry of a group that OpenIM does not know.
    pub(super) fn unknown_group(group: &GroupId) -> Self {
        Self {
            group_id: group.clone(),
            user_id: None,
            drift: Drift {
                field: "group",
                mirror: Some("present".to_owned()),
                openim: None,
            },
        }
    }
}

/// Content of the hints about a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct HintSummary {
    /// Members that have left.
    pub(super) announced_leaves: u64,
    /// The group itself has changed.
    pub(super) has_group: bool,
    /// The group was dismissed.
    pub(super) is_dismissed: bool,
}

/// Groups that are reconciled for the same reason.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// Limits of removals. `None` in a dry run.
    pub(super) removals: Option<&'a Removals>,
    pub(super) report: &'a Report,
    /// True if every group is read whole.
    pub(super) is_full: bool,
    /// Drift that a dry run has found.
    drift: Mutex<Vec<DriftEntry>>,
    /// Unreadable groups in a row.
    failures: AtomicU32,
    hints: HashMap<GroupId, HintSummary>,
}

impl<'a> Job<'a> {
    pub(super) fn new(removals: &'a Removals, report: &'a Report, is_full: bool) -> Self {
        Self {
            removals: Some(removals),
            is_full,
            ..Self::dry(report)
        }
    }

    /// Makes the job of a dry run.
    pub(super) fn dry(report: &'a Report) -> Self {
        Self {
            removals: None,
            report,
            is_full: true,
            drift: Mutex::default(),
            failures: AtomicU32::new(0),
            hints: HashMap::new(),
        }
    }

    pub(super) fn with_hints(self, hints: HashMap<GroupId, HintSummary>) -> Self {
        Self { hints, ..self }
    }

    /// True if a hint says that the group itself has changed.
    pub(super) fn has_group(&self, group: &GroupId) -> bool {
        self.hints.get(group).is_some_and(|hints| hints.has_group)
    }

    /// True if a hint says that the group was dismissed.
    pub(super) fn has_dismissal(&self, group: &GroupId) -> bool {
        let hints = self.hints.get(group);
        hints.is_some_and(|hints| hints.is_dismissed)
    }

    /// Number of the removed members that no hint has announced. Only these count for the limits. A look can come
    /// before the hint of a leave; OpenIM's log of changes then announces the leave, in `logged_leaves`.
    pub(super) fn unannounced(&self, group: &GroupId, removed: u64, logged_leaves: u64) -> u64 {
        let Some(hints) = self.hints.get(group) else {
            return removed;
        };
        removed.saturating_sub(hints.announced_leaves.saturating_add(logged_leaves))
    }

    pub(super) fn is_dry(&self) -> bool {
        self.removals.is_none()
    }

    fn drift(&self) -> MutexGuard<'_, Vec<DriftEntry>> {
        self.drift.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_drift(&self, drift: impl IntoIterator<Item = DriftEntry>) {
        self.drift().extend(drift);
    }

    pub(super) fn take_drift(&self) -> Vec<DriftEntry> {
        std::mem::take(&mut *self.drift())
    }

    /// Records a correct answer of OpenIM.
    pub(super) fn has_read(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Records a group that cannot be read. Returns true if the reason may be OpenIM, and not the group.
    pub(super) fn has_failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        failures.is_multiple_of(MAX_FAILURES)
    }

    pub(super) fn skip(&self, group: &GroupId, why: &str) {
        let id = group.as_str();
        tracing::warn!(group = id, why, "a group is skipped");
        self.report.skip(1, Some(group), why);
    }

    /// Skips groups that OpenIM cannot list and the mirror does not know.
    pub(super) fn skip_unnamed(&self, groups: u64, why: &str) {
        tracing::warn!(groups, why, "groups are skipped");
        self.report.skip(groups, None, why);
    }
}
