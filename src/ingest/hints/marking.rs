//! Marks by hints, for instances without access to OpenIM's API. A hint marks its group if no callback says the same.
//!
//! If a user enters a group by itself, OpenIM sends a callback too; if the user was approved, it sends none. So an
//! entry marks the group, unless its callback came before. If the callback comes after, the mark is undone.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{CallbackKey, HintAction, HintOutcome, Recent};
use crate::domain::HintKind;

/// Longest time between the callback and the notification of one change.
const PAIRING_TIMEOUT: Duration = Duration::from_secs(5);

/// Progress of the mark of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkProgress {
    BeingWritten,
    Written,
    /// The callback came before the mark was written, so the mark has to be undone.
    Unfounded,
}

/// Changes with only a callback or only a notification yet.
#[derive(Debug)]
pub(super) struct Marking {
    joins: Recent,
    entries: HashMap<CallbackKey, (Instant, MarkProgress)>,
    /// Sorted by time. May have keys that are no longer in `entries`.
    order: VecDeque<(Instant, CallbackKey)>,
    max_entries: usize,
}

impl Marking {
    pub(super) fn new(max_entries: usize) -> Self {
        Self {
            joins: Recent::new(PAIRING_TIMEOUT, max_entries),
            entries: HashMap::new(),
            order: VecDeque::new(),
            max_entries,
        }
    }

    /// Takes a hint. `key`: its group and operation, if it names one.
    pub(super) fn receive(
        &mut self,
        kind: HintKind,
        key: Option<CallbackKey>,
        now: Instant,
    ) -> HintAction {
        match kind {
            HintKind::MemberInvited => HintAction::Mark(key),
            HintKind::GroupMuted | HintKind::GroupCancelMuted => HintAction::MarkIfDismissed,
            HintKind::MemberEnter => self.enter(key, now),
            _ => HintAction::Done(HintOutcome::Ignored),
        }
    }

    fn enter(&mut self, key: Option<CallbackKey>, now: Instant) -> HintAction {
        let Some(key) = key else {
            return HintAction::Mark(None);
        };
        if self.joins.has(key, now) {
            return HintAction::Done(HintOutcome::Ignored);
        }
        self.expire(now);
        // Without room, the mark stays.
        if self.order.len() < self.max_entries {
            self.entries.insert(key, (now, MarkProgress::BeingWritten));
            self.order.push_back((now, key));
        }
        HintAction::Mark(Some(key))
    }

    /// Records that the mark of an entry is written. Returns true if it has to be undone.
    pub(super) fn marked(&mut self, key: CallbackKey) -> bool {
        match self.entries.get_mut(&key) {
            Some((_, MarkProgress::Unfounded)) => {
                self.entries.remove(&key);
                true
            }
            Some((_, progress)) => {
                *progress = MarkProgress::Written;
                false
            }
            None => false,
        }
    }

    /// Records that the callback of a join is written. Returns true if a mark has to be undone.
    pub(super) fn joined(&mut self, key: CallbackKey, now: Instant) -> bool {
        self.joins.add(key, now);
        self.expire(now);
        match self.entries.get_mut(&key) {
            Some((_, MarkProgress::Written)) => {
                self.entries.remove(&key);
                true
            }
            Some((_, progress)) => {
                *progress = MarkProgress::Unfounded;
                false
            }
            None => false,
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front().copied()
            && now.saturating_duration_since(at) > PAIRING_TIMEOUT
        {
            self.order.pop_front();
            if self.entries.get(&key).is_some_and(|entry| entry.0 == at) {
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IGNORED: HintAction = HintAction::Done(HintOutcome::Ignored);

    fn marking() -> (Marking, Instant) {
        (Marking::new(10), Instant::now())
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn only_hints_without_a_callback_mark() {
        let (mut marking, now) = marking();
        for kind in HintKind::ALL {
            let expected = match kind.code() {
                1509 | 1510 => HintAction::Mark(None),
                1514 | 1515 => HintAction::MarkIfDismissed,
                _ => IGNORED,
            };
            assert_eq!(marking.receive(*kind, None, now), expected, "{kind:?}");
        }
    }

    #[test]
    fn an_entry_does_not_mark_within_5_s_after_its_callback() {
        let (mut marking, now) = marking();
        assert!(!marking.joined(1, now));
        let mut enter = |key, at| marking.receive(HintKind::MemberEnter, Some(key), at);
        assert_eq!(enter(1, now + secs(5)), IGNORED);
        assert_eq!(enter(2, now + secs(5)), HintAction::Mark(Some(2)));
        assert_eq!(enter(1, now + secs(6)), HintAction::Mark(Some(1)));
    }

    #[test]
    fn a_callback_within_5_s_after_an_entry_undoes_its_mark_once() {
        let (mut marking, now) = marking();
        for key in [1, 2, 3] {
            let mark = marking.receive(HintKind::MemberEnter, Some(key), now);
            assert_eq!(mark, HintAction::Mark(Some(key)));
        }
        assert!(!marking.marked(1));
        assert!(marking.joined(1, now + secs(5)));
        assert!(!marking.joined(1, now + secs(5)), "once");
        // The callback comes before the mark is written.
        assert!(!marking.joined(2, now));
        assert!(marking.marked(2));
        // Too late.
        assert!(!marking.marked(3));
        assert!(!marking.joined(3, now + secs(6)));
        assert!(marking.entries.is_empty());
    }

    #[test]
    fn marks_stay_if_there_is_no_room() {
        let (mut marking, now) = marking();
        for key in 0..20 {
            let mark = marking.receive(HintKind::MemberEnter, Some(key), now);
            assert_eq!(mark, HintAction::Mark(Some(key)));
            marking.marked(key);
        }
        assert!(marking.joined(9, now) && !marking.joined(10, now));
    }
}
