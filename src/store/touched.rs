//! Groups that callbacks have changed, of which the last comparison may therefore say nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{Change, Event, GroupId};

/// Shared by its clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched(Arc<Mutex<HashSet<GroupId>>>);

impl Touched {
    fn groups(&self) -> MutexGuard<'_, HashSet<GroupId>> {
        // A set is a set, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the groups of changes that were written, or may have been.
    pub(super) fn add(&self, changes: &[&Change]) {
        let mut groups = self.groups();
        for change in changes {
            let is_callback = !matches!(change.event, Event::Repair(_)) && !change.event.is_mark();
            if is_callback && !groups.contains(&change.group_id) {
                groups.insert(change.group_id.clone());
            }
        }
    }

    /// Those since the last call.
    pub(super) fn take(&self) -> Vec<GroupId> {
        self.groups().drain().collect()
    }

    pub(super) fn put_back(&self, some: &[GroupId]) {
        self.groups().extend(some.iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::CheckReason;

    #[test]
    fn a_group_that_a_callback_has_changed_is_given_once() {
        let group = |id: &str| GroupId::parse(id.into()).unwrap();
        let change = |id: &str, event| Change::new(group(id), OffsetDateTime::UNIX_EPOCH, event);
        let touched = Touched::default();
        let mark = Event::WantCheck(CheckReason::CallbackLost);
        touched.add(&[&change("a", Event::Dismiss), &change("b", mark)]);
        assert_eq!(touched.take(), [group("a")]);
        assert_eq!(touched.take(), []);
        touched.put_back(&[group("a")]);
        assert_eq!(touched.take(), [group("a")]);
    }
}
