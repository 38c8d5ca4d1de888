//! Groups that callbacks have changed, of which the last comparison may therefore say nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{Change, Event, GroupId};

/// Shared by its clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched(Arc<Mutex<Groups>>);

#[derive(Debug, Default)]
struct Groups {
    /// Since the last look.
    new: HashSet<GroupId>,
    /// Since the one before. These are given twice: a comparison that was just about to note a
    /// version at the first time has done so at the second.
    old: HashSet<GroupId>,
}

impl Touched {
    fn groups(&self) -> MutexGuard<'_, Groups> {
        // A set is a set, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the groups of changes that were written, or may have been.
    pub(super) fn add(&self, changes: &[&Change]) {
        let mut groups = self.groups();
        for change in changes {
            let is_callback = !matches!(change.event, Event::WantCheck(_) | Event::Repair(_));
            if is_callback && !groups.new.contains(&change.group_id) {
                groups.new.insert(change.group_id.clone());
            }
        }
    }

    /// Those since the last call but one.
    pub(super) fn take(&self) -> Vec<GroupId> {
        let mut groups = self.groups();
        let new = std::mem::take(&mut groups.new);
        let mut old = std::mem::replace(&mut groups.old, new.clone());
        old.extend(new);
        old.into_iter().collect()
    }

    pub(super) fn put_back(&self, some: &[GroupId]) {
        self.groups().new.extend(some.iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::CheckReason;

    #[test]
    fn a_group_is_given_twice_and_then_no_more() {
        let group = |id: &str| GroupId::parse(id.into()).unwrap();
        let change = |id: &str, event| Change::new(group(id), OffsetDateTime::UNIX_EPOCH, event);
        let touched = Touched::default();
        let mark = Event::WantCheck(CheckReason::CallbackLost);
        touched.add(&[&change("a", Event::Dismiss), &change("b", mark)]);
        assert_eq!(touched.take(), [group("a")]);
        assert_eq!(touched.take(), [group("a")]);
        assert_eq!(touched.take(), []);
        touched.put_back(&[group("a")]);
        assert_eq!(touched.take(), [group("a")]);
    }
}
