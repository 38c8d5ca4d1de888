//! When which group is to be looked at. Rules only: whoever calls says what time it is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::recent::{Key, Recent};
use crate::domain::{GroupId, HintKind};

/// How long after most hints the callback of the same change is waited for.
const SOON: Duration = Duration::from_millis(50);
/// The same where the callback always comes after the hint: in the recordings up to 0.26 s.
const LEAVE: Duration = Duration::from_secs(1);
/// How long the callbacks of changes are remembered for hints that come after them.
const TOGETHER: Duration = Duration::from_secs(5);
/// From one look at a group to the next: however many the hints, there are five a second.
const APART: Duration = Duration::from_millis(200);
/// A callback that is written so soon after a look may tell of something that was before it.
const OVERTAKEN: Duration = Duration::from_secs(15);
/// After a look without another there is one more: what OpenIM told may have been a moment old, though it
/// said otherwise.
const ONCE_MORE: Duration = Duration::from_secs(4);
/// Pauses after looks that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Operations of a group whose callbacks are waited for.
const MOST_AWAITED: usize = 64;
/// So many members at most are named by one request to remove some.
const KICKED: u64 = 1000;

/// A group that is to be looked at now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub group_id: GroupId,
    /// So many members have left, by the hints: that they are gone is no surprise.
    pub announced: u64,
    /// When the first hint came that no look has followed. `None`: only a callback wants the look.
    pub hinted_since: Option<Instant>,
    /// What the hints were about.
    pub kinds: Kinds,
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    fn add(&mut self, kind: HintKind) {
        self.0 |= 1 << (kind.code() - 1501);
    }

    /// Whether it is one of them.
    pub fn has(self, kind: HintKind) -> bool {
        self.0 & (1 << (kind.code() - 1501)) != 0
    }

    /// Whether one of them is about the group itself.
    pub fn has_group(self) -> bool {
        let mut kinds = HintKind::ALL.iter();
        kinds.any(|kind| self.has(*kind) && kind.is_of_group())
    }
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookEnd {
    /// The group is as in OpenIM, or left as it is for a reason that another look would not change.
    Done,
    /// Somebody else is just looking, and may have begun too early.
    Again,
    /// Nothing was learned.
    Failed,
}

/// What the table made of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The group is to be looked at.
    Due,
    /// It was to be looked at already.
    Merged,
    /// There is no room.
    Full,
}

/// Groups that are looked after: those that are to be looked at, and those that were a moment ago.
#[derive(Debug)]
pub(super) struct Table {
    groups: HashMap<GroupId, Entry>,
    /// Those whose look is due, and when.
    queue: BTreeSet<(Instant, GroupId)>,
    /// Those that were looked at, in the order of time; some may have been again.
    looked: VecDeque<(Instant, GroupId)>,
    /// Callbacks that were written.
    written: Recent,
    most: usize,
}

#[derive(Debug, Default)]
struct Entry {
    /// The next look.
    next: Option<Next>,
    /// What the look under way is about.
    looking: Option<Next>,
    /// When the last look began.
    started_at: Option<Instant>,
    /// When the last ended that did not fail.
    looked_at: Option<Instant>,
    failures: u32,
    /// After a failure, not before this.
    pause_until: Option<Instant>,
    /// Its place in the queue.
    queued: Option<Instant>,
}

/// A look that is wanted.
#[derive(Debug)]
struct Next {
    at: Instant,
    hinted_since: Option<Instant>,
    announced: u64,
    kinds: Kinds,
    /// Callbacks with which it is due at once.
    awaited: Vec<Key>,
    /// Nothing has come since the last look.
    is_once_more: bool,
}

impl Next {
    fn at(at: Instant) -> Self {
        Self {
            at,
            hinted_since: None,
            announced: 0,
            kinds: Kinds::default(),
            awaited: Vec::new(),
            is_once_more: false,
        }
    }

    /// One look does for both.
    fn merge(&mut self, other: Self) {
        let Self {
            at,
            hinted_since,
            announced,
            kinds,
            awaited,
            is_once_more,
        } = other;
        // One that is wanted for something new waits for its callback, however soon the other would be.
        self.at = match (self.is_once_more, is_once_more) {
            (true, false) => at,
            (false, true) => self.at,
            _ => self.at.min(at),
        };
        self.is_once_more &= is_once_more;
        self.hinted_since = [self.hinted_since, hinted_since]
            .into_iter()
            .flatten()
            .min();
        self.announced = self.announced.saturating_add(announced);
        self.kinds.0 |= kinds.0;
        for key in awaited {
            if self.awaited.len() < MOST_AWAITED && !self.awaited.contains(&key) {
                self.awaited.push(key);
            }
        }
    }
}

impl Entry {
    fn want(&mut self, next: Next) {
        match &mut self.next {
            Some(wanted) => wanted.merge(next),
            none => *none = Some(next),
        }
    }

    /// When the next look may begin.
    fn due(&self) -> Option<Instant> {
        let next = self.next.as_ref().filter(|_| self.looking.is_none())?;
        let spaced = self.started_at.map(|at| at + APART);
        [Some(next.at), spaced, self.pause_until]
            .into_iter()
            .flatten()
            .max()
    }

    fn was_looked_at(&self, now: Instant) -> bool {
        self.looked_at
            .is_some_and(|at| now.saturating_duration_since(at) <= OVERTAKEN)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.next.is_none() && self.looking.is_none() && !self.was_looked_at(now)
    }
}

impl Table {
    /// Of so many groups at most.
    pub(super) fn new(most: usize) -> Self {
        Self {
            groups: HashMap::new(),
            queue: BTreeSet::new(),
            looked: VecDeque::new(),
            written: Recent::new(TOGETHER, most),
            most,
        }
    }

    /// A hint has come. `key` is that of its group and operation, if it names one.
    pub(super) fn hint(
        &mut self,
        group: &GroupId,
        kind: HintKind,
        key: Option<Key>,
        now: Instant,
    ) -> Taken {
        let mut next = Next::at(now);
        next.hinted_since = Some(now);
        next.kinds.add(kind);
        match kind {
            // Of these no callback tells.
            HintKind::MemberInvited
            | HintKind::MemberEnter
            | HintKind::GroupMemberMuted
            | HintKind::GroupMemberCancelMuted
            | HintKind::GroupMuted
            | HintKind::GroupCancelMuted => {}
            // So that who has left is known from the callback, which says more.
            HintKind::MemberQuit | HintKind::MemberKicked => {
                let is_written = key.is_some_and(|key| self.written.has(key, now));
                if !is_written {
                    next.at = now + LEAVE;
                    next.awaited.extend(key);
                }
            }
            _ => next.at = now + SOON,
        }
        next.announced = match kind {
            HintKind::MemberQuit => 1,
            HintKind::MemberKicked => KICKED,
            HintKind::GroupDismissed => u64::MAX,
            _ => 0,
        };
        self.want(group, next, now)
    }

    /// A callback of the group was written. `was_looked_after`: that was so when it came, so nothing else
    /// sees to what did not fit.
    pub(super) fn written(
        &mut self,
        group: &GroupId,
        key: Option<Key>,
        was_looked_after: bool,
        now: Instant,
    ) -> Taken {
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
        let is_late =
            entry.is_some_and(|entry| entry.looking.is_some() || entry.was_looked_at(now));
        let next = entry.and_then(|entry| entry.next.as_ref());
        let has_next = next.is_some_and(|next| !next.is_once_more);
        match (is_late || was_looked_after) && !has_next {
            true => self.want(group, Next::at(now + SOON), now),
            false => Taken::Merged,
        }
    }

    /// Whether what does not fit is seen to without a mark.
    pub(super) fn is_looked_after(&self, group: &GroupId, now: Instant) -> bool {
        let entry = self.groups.get(group);
        entry.is_some_and(|entry| !entry.is_over(now))
    }

    /// Begins looks at groups that are due, those that have been for longest first.
    pub(super) fn take(&mut self, most: usize, now: Instant) -> Vec<Due> {
        let mut taken = Vec::new();
        while taken.len() < most
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
            taken.push(Due {
                group_id,
                announced: next.announced,
                hinted_since: next.hinted_since,
                kinds: next.kinds,
            });
            entry.looking = Some(next);
        }
        taken
    }

    /// When the next look is due, as far as is known.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// A look has ended.
    pub(super) fn looked(&mut self, group: &GroupId, end: LookEnd, now: Instant) {
        self.forget(now);
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        let looking = entry.looking.take();
        match (end, looking) {
            (LookEnd::Done, looking) => {
                (entry.failures, entry.pause_until) = (0, None);
                entry.looked_at = Some(now);
                if looking.is_some_and(|looking| !looking.is_once_more) {
                    entry.want(Next {
                        is_once_more: true,
                        ..Next::at(now + ONCE_MORE)
                    });
                }
                self.looked.push_back((now, group.clone()));
            }
            (LookEnd::Again, looking) => {
                let mut next = looking.unwrap_or_else(|| Next::at(now));
                next.at = now + SOON;
                entry.want(next);
            }
            (LookEnd::Failed, looking) => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(entry.failures.min(16));
                entry.failures += 1;
                entry.pause_until = Some(now + pause.min(LONGEST_PAUSE));
                entry.want(looking.unwrap_or_else(|| Next::at(now)));
            }
        }
        self.place(group);
    }

    fn want(&mut self, group: &GroupId, next: Next, now: Instant) -> Taken {
        self.forget(now);
        if !self.groups.contains_key(group) {
            if self.groups.len() >= self.most {
                return Taken::Full;
            }
            self.groups.insert(group.clone(), Entry::default());
        }
        let mut taken = Taken::Due;
        if let Some(entry) = self.groups.get_mut(group) {
            if entry.next.as_ref().is_some_and(|next| !next.is_once_more) {
                taken = Taken::Merged;
            }
            entry.want(next);
        }
        self.place(group);
        taken
    }

    /// Puts a group into its place in the queue.
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

    /// Forgets the groups that were looked at long enough ago.
    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.looked.front()
            && now.saturating_duration_since(*at) > OVERTAKEN
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
