//! What becomes of hints where OpenIM's API cannot be asked: some mark their group, for no callback tells
//! of what they announce.
//!
//! That somebody has entered is told by a callback where the user came by itself, and by none where the
//! user was approved. Which it is shows by whether that callback comes. So the group is marked, unless
//! the callback came before; and where it comes after, the mark is taken back.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::recent::{Key, Recent};
use crate::domain::HintKind;

/// How long a callback of the same change may come before or after its notification.
const TOGETHER: Duration = Duration::from_secs(5);

/// What a hint does to its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Always,
    /// Only where the mirror holds it dismissed: then it has come back.
    IfDismissed,
    Never,
}

/// How far the mark of somebody who entered is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    BeingWritten,
    Written,
    /// The callback came before the mark was written.
    Unfounded,
}

/// Changes of which half was heard.
#[derive(Debug)]
pub(super) struct Marking {
    joins: Recent,
    entries: HashMap<Key, (Instant, Progress)>,
    /// In the order of time; may name some that are gone.
    order: VecDeque<(Instant, Key)>,
    most: usize,
}

impl Marking {
    pub(super) fn new(most: usize) -> Self {
        Self {
            joins: Recent::new(TOGETHER, most),
            entries: HashMap::new(),
            order: VecDeque::new(),
            most,
        }
    }

    /// A hint has come. `key` is that of its group and operation, if it names one.
    pub(super) fn hear(&mut self, kind: HintKind, key: Option<Key>, now: Instant) -> Mark {
        match kind {
            HintKind::MemberInvited => Mark::Always,
            HintKind::GroupMuted | HintKind::GroupCancelMuted => Mark::IfDismissed,
            HintKind::MemberEnter => self.enter(key, now),
            _ => Mark::Never,
        }
    }

    fn enter(&mut self, key: Option<Key>, now: Instant) -> Mark {
        let Some(key) = key else {
            return Mark::Always;
        };
        if self.joins.has(key, now) {
            return Mark::Never;
        }
        self.forget(now);
        // Of more than can be kept the marks stay.
        if self.order.len() < self.most {
            self.entries.insert(key, (now, Progress::BeingWritten));
            self.order.push_back((now, key));
        }
        Mark::Always
    }

    /// The mark of somebody who entered is written. Whether it is to be taken back.
    pub(super) fn marked(&mut self, key: Key) -> bool {
        match self.entries.get_mut(&key) {
            Some((_, Progress::Unfounded)) => {
                self.entries.remove(&key);
                true
            }
            Some((_, progress)) => {
                *progress = Progress::Written;
                false
            }
            None => false,
        }
    }

    /// The callback of a join is written. Whether a mark is to be taken back.
    pub(super) fn joined(&mut self, key: Key, now: Instant) -> bool {
        self.joins.add(key, now);
        self.forget(now);
        match self.entries.get_mut(&key) {
            Some((_, Progress::Written)) => {
                self.entries.remove(&key);
                true
            }
            Some((_, progress)) => {
                *progress = Progress::Unfounded;
                false
            }
            None => false,
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front().copied()
            && now.saturating_duration_since(at) > TOGETHER
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

    fn marking() -> (Marking, Instant) {
        (Marking::new(10), Instant::now())
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn only_what_no_callback_tells_marks() {
        let (mut marking, now) = marking();
        for kind in HintKind::ALL {
            let expected = match kind.code() {
                1509 | 1510 => Mark::Always,
                1514 | 1515 => Mark::IfDismissed,
                _ => Mark::Never,
            };
            assert_eq!(marking.hear(*kind, None, now), expected, "{kind:?}");
        }
    }

    #[test]
    fn whose_callback_came_within_5_s_before_is_no_reason_for_a_mark() {
        let (mut marking, now) = marking();
        assert!(!marking.joined(1, now));
        let mut enter = |key, at| marking.hear(HintKind::MemberEnter, Some(key), at);
        assert_eq!(enter(1, now + secs(5)), Mark::Never);
        assert_eq!(enter(2, now + secs(5)), Mark::Always);
        assert_eq!(enter(1, now + secs(6)), Mark::Always);
    }

    #[test]
    fn whose_callback_comes_within_5_s_after_loses_the_mark_once_it_is_written() {
        let (mut marking, now) = marking();
        for key in [1, 2, 3] {
            let mark = marking.hear(HintKind::MemberEnter, Some(key), now);
            assert_eq!(mark, Mark::Always);
        }
        assert!(!marking.marked(1));
        assert!(marking.joined(1, now + secs(5)));
        assert!(!marking.joined(1, now + secs(5)), "once");
        // The callback is faster than the mark.
        assert!(!marking.joined(2, now));
        assert!(marking.marked(2));
        // Too late.
        assert!(!marking.marked(3));
        assert!(!marking.joined(3, now + secs(6)));
        assert!(marking.entries.is_empty());
    }

    #[test]
    fn of_too_many_the_marks_stay() {
        let (mut marking, now) = marking();
        for key in 0..20 {
            let mark = marking.hear(HintKind::MemberEnter, Some(key), now);
            assert_eq!(mark, Mark::Always);
            marking.marked(key);
        }
        assert!(marking.joined(9, now) && !marking.joined(10, now));
    }
}
