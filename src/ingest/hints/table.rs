//! Schedule of looks at groups. Rules only: the caller passes the time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{CallbackKey, HintOutcome, Recent};
use crate::domain::{GroupId, HintKind};

/// Delay of a look after most hints, so that the callback of the same change comes first.
const CALLBACK_DELAY: Duration = Duration::from_millis(50);
/// Longest delay after the hint of a leave. Its callback always comes later: up to 0.26 s in the recordings.
const LEAVE_DELAY: Duration = Duration::from_secs(1);
/// Time for which callbacks are remembered, for hints that come after them.
const PAIRING_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest interval between looks at one group: at most five a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Time for which a group is watched after a look: a callback that is written then may be from before the look.
const WATCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Delay of the second look after a look without another: OpenIM's answer may have been out of date, though it named a
/// newer version.
const SECOND_LOOK_DELAY: Duration = Duration::from_secs(4);
/// Pauses after looks that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Most operations of a group whose callbacks a look waits for.
const MAX_AWAITED: usize = 64;
/// Most members that one request can kick.
const MAX_KICKED: u64 = 1000;

/// A look that is due now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueLook {
    /// The group.
    pub group_id: GroupId,
    /// Members that have left, by the hints. These leaves are no surprise.
    pub announced_leaves: u64,
    /// Time of the first hint since the last look. `None`: only a callback asks for the look.
    pub hinted_since: Option<Instant>,
    /// Kinds of the hints.
    pub kinds: Kinds,
}

/// Set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    fn add(&mut self, kind: HintKind) {
        self.0 |= 1 << (kind.code() - 1501);
    }

    /// True if the set has the kind.
    pub fn has(self, kind: HintKind) -> bool {
        self.0 & (1 << (kind.code() - 1501)) != 0
    }

    /// True if one of the kinds is about the group itself.
    pub fn has_group(self) -> bool {
        let mut kinds = HintKind::ALL.iter();
        kinds.any(|kind| self.has(*kind) && kind.is_of_group())
    }
}

/// End of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookEnd {
    /// The group is as in OpenIM, or another look would change nothing.
    Done,
    /// Another task reconciles the group, and may have begun too early.
    Again,
    /// The look failed.
    Failed,
}

/// Watched groups: a look at them is due, or was done a moment ago.
#[derive(Debug)]
pub(super) struct LookTable {
    groups: HashMap<GroupId, WatchedGroup>,
    /// Groups with a due look, sorted by its time.
    queue: BTreeSet<(Instant, GroupId)>,
    /// Looks that were done, sorted by time. A group may have a later one.
    looked: VecDeque<(Instant, GroupId)>,
    /// Callbacks that were written.
    written: Recent,
    max_groups: usize,
}

#[derive(Debug, Default)]
struct WatchedGroup {
    next: Option<NextLook>,
    /// The current look.
    current: Option<NextLook>,
    /// Start of the last look.
    started_at: Option<Instant>,
    /// End of the last look that did not fail.
    looked_at: Option<Instant>,
    failures: u32,
    /// End of the pause after a failure.
    pause_until: Option<Instant>,
    /// The group's time in the queue.
    queued: Option<Instant>,
}

/// A look that has not begun.
#[derive(Debug)]
struct NextLook {
    at: Instant,
    hinted_since: Option<Instant>,
    announced_leaves: u64,
    kinds: Kinds,
    /// Callbacks that make the look due at once.
    awaited: Vec<CallbackKey>,
    /// True for a second look without a hint or callback since the first.
    is_second: bool,
}

impl NextLook {
    fn at(at: Instant) -> Self {
        Self {
            at,
            hinted_since: None,
            announced_leaves: 0,
            kinds: Kinds::default(),
            awaited: Vec::new(),
            is_second: false,
        }
    }

    /// Makes one look of two.
    fn merge(&mut self, other: Self) {
        let Self {
            at,
            hinted_since,
            announced_leaves,
            kinds,
            awaited,
            is_second,
        } = other;
        // A look for something new waits for its callback, even if the second look would come earlier.
        self.at = match (self.is_second, is_second) {
            (true, false) => at,
            (false, true) => self.at,
            _ => self.at.min(at),
        };
        self.is_second &= is_second;
        self.hinted_since = [self.hinted_since, hinted_since]
            .into_iter()
            .flatten()
            .min();
        self.announced_leaves = self.announced_leaves.saturating_add(announced_leaves);
        self.kinds.0 |= kinds.0;
        for key in awaited {
            if self.awaited.len() < MAX_AWAITED && !self.awaited.contains(&key) {
                self.awaited.push(key);
            }
        }
    }
}

impl WatchedGroup {
    fn schedule(&mut self, next: NextLook) {
        match &mut self.next {
            Some(scheduled) => scheduled.merge(next),
            none => *none = Some(next),
        }
    }

    /// Time from which the next look may begin.
    fn due(&self) -> Option<Instant> {
        let next = self.next.as_ref().filter(|_| self.current.is_none())?;
        let spaced = self.started_at.map(|at| at + LOOK_INTERVAL);
        [Some(next.at), spaced, self.pause_until]
            .into_iter()
            .flatten()
            .max()
    }

    fn was_recent(&self, now: Instant) -> bool {
        self.looked_at
            .is_some_and(|at| now.saturating_duration_since(at) <= WATCH_TIMEOUT)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.next.is_none() && self.current.is_none() && !self.was_recent(now)
    }
}

impl LookTable {
    pub(super) fn new(max_groups: usize) -> Self {
        Self {
            groups: HashMap::new(),
            queue: BTreeSet::new(),
            looked: VecDeque::new(),
            written: Recent::new(PAIRING_TIMEOUT, max_groups),
            max_groups,
        }
    }

    /// Adds a hint. `key`: its group and operation, if it names one.
    pub(super) fn hint(
        &mut self,
        group: &GroupId,
        kind: HintKind,
        key: Option<CallbackKey>,
        now: Instant,
    ) -> HintOutcome {
        let mut next = NextLook::at(now);
        next.hinted_since = Some(now);
        next.kinds.add(kind);
        match kind {
            // OpenIM sends no callback for these.
            HintKind::MemberInvited
            | HintKind::MemberEnter
            | HintKind::GroupMemberMuted
            | HintKind::GroupMemberCancelMuted
            | HintKind::GroupMuted
            | HintKind::GroupCancelMuted => {}
            // The callback says more about a leave than OpenIM's API, so it comes first.
            HintKind::MemberQuit | HintKind::MemberKicked => {
                let is_written = key.is_some_and(|key| self.written.has(key, now));
                if !is_written {
                    next.at = now + LEAVE_DELAY;
                    next.awaited.extend(key);
                }
            }
            _ => next.at = now + CALLBACK_DELAY,
        }
        next.announced_leaves = match kind {
            HintKind::MemberQuit => 1,
            HintKind::MemberKicked => MAX_KICKED,
            HintKind::GroupDismissed => u64::MAX,
            _ => 0,
        };
        self.schedule(group, next, now)
    }

    /// Adds a callback that was written. `was_watched`: the group was watched when it came, so it has not marked the
    /// group.
    pub(super) fn written(
        &mut self,
        group: &GroupId,
        key: Option<CallbackKey>,
        was_watched: bool,
        now: Instant,
    ) -> HintOutcome {
        if let Some(key) = key {
            self.written.add(key, now);
        }
        let entry = self.groups.get_mut(group);
        if let (Some(key), Some(next)) = (key, entry.and_then(|entry| entry.next.as_mut()))
            && next.awaited.contains(&key)
        {
            next.at = next.at.min(now);
            self.place(group);
        }
        let entry = self.groups.get(group);
        let is_late = entry.is_some_and(|entry| entry.current.is_some() || entry.was_recent(now));
        let next = entry.and_then(|entry| entry.next.as_ref());
        let has_next = next.is_some_and(|next| !next.is_second);
        match (is_late || was_watched) && !has_next {
            true => self.schedule(group, NextLook::at(now + CALLBACK_DELAY), now),
            false => HintOutcome::Merged,
        }
    }

    /// True if a look at the group follows, or was done a moment ago.
    pub(super) fn is_watched(&self, group: &GroupId, now: Instant) -> bool {
        let entry = self.groups.get(group);
        entry.is_some_and(|entry| !entry.is_over(now))
    }

    /// Begins up to `limit` looks that are due, the earliest first.
    pub(super) fn take(&mut self, limit: usize, now: Instant) -> Vec<DueLook> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && self.queue.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, group_id)) = self.queue.pop_first()
        {
            let Some(entry) = self.groups.get_mut(&group_id) else {
                continue;
            };
            entry.queued = None;
            let Some(next) = entry.next.take() else {
                continue;
            };
            entry.started_at = Some(now);
            taken.push(DueLook {
                group_id,
                announced_leaves: next.announced_leaves,
                hinted_since: next.hinted_since,
                kinds: next.kinds,
            });
            entry.current = Some(next);
        }
        taken
    }

    /// Time of the next look.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Ends a look.
    pub(super) fn looked(&mut self, group: &GroupId, end: LookEnd, now: Instant) {
        self.expire(now);
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        let current = entry.current.take();
        match (end, current) {
            (LookEnd::Done, current) => {
                (entry.failures, entry.pause_until) = (0, None);
                entry.looked_at = Some(now);
                if current.is_some_and(|current| !current.is_second) {
                    entry.schedule(NextLook {
                        is_second: true,
                        ..NextLook::at(now + SECOND_LOOK_DELAY)
                    });
                }
                self.looked.push_back((now, group.clone()));
            }
            (LookEnd::Again, current) => {
                let mut next = current.unwrap_or_else(|| NextLook::at(now));
                next.at = now + CALLBACK_DELAY;
                entry.schedule(next);
            }
            (LookEnd::Failed, current) => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(entry.failures.min(16));
                entry.failures += 1;
                entry.pause_until = Some(now + pause.min(MAX_PAUSE));
                entry.schedule(current.unwrap_or_else(|| NextLook::at(now)));
            }
        }
        self.place(group);
    }

    fn schedule(&mut self, group: &GroupId, next: NextLook, now: Instant) -> HintOutcome {
        self.expire(now);
        if !self.groups.contains_key(group) {
            if self.groups.len() >= self.max_groups {
                return HintOutcome::Dropped;
            }
            self.groups.insert(group.clone(), WatchedGroup::default());
        }
        let mut taken = HintOutcome::Due;
        if let Some(entry) = self.groups.get_mut(group) {
            if entry.next.as_ref().is_some_and(|next| !next.is_second) {
                taken = HintOutcome::Merged;
            }
            entry.schedule(next);
        }
        self.place(group);
        taken
    }

    /// Moves a group to its place in the queue.
    fn place(&mut self, group: &GroupId) {
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        let due = entry.due();
        if due == entry.queued {
            return;
        }
        if let Some(queued) = entry.queued {
            self.queue.remove(&(queued, group.clone()));
        }
        if let Some(due) = due {
            self.queue.insert((due, group.clone()));
        }
        entry.queued = due;
    }

    /// Removes groups that no longer have to be watched.
    fn expire(&mut self, now: Instant) {
        while let Some((at, _)) = self.looked.front()
            && now.saturating_duration_since(*at) > WATCH_TIMEOUT
            && let Some((_, group)) = self.looked.pop_front()
        {
            if self.groups.get(&group).is_some_and(|e| e.is_over(now)) {
                self.groups.remove(&group);
            }
        }
    }
}

#[cfg(test)]
mod tests;
