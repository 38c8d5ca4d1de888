//! Users whom callbacks have named, of whom the last comparison may therefore say nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{Change, Event, GroupId, UserId};

/// Users of a group that are told one by one; of more it is only told that there are.
pub(super) const MOST_USERS: usize = 200;
/// What stands for the group itself where a user is expected: no user has an empty id.
pub(super) const GROUP_ITSELF: &str = "";

/// Users by their ids; `None`: too many to say.
pub(super) type Users = Option<BTreeSet<String>>;

/// Shared by its clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched(Arc<Mutex<HashMap<GroupId, Users>>>);

impl Touched {
    fn groups(&self) -> MutexGuard<'_, HashMap<GroupId, Users>> {
        // A map is a map, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whom changes have named that were written, or may have been.
    pub(super) fn add(&self, changes: &[&Change]) {
        let mut groups = self.groups();
        for change in changes {
            if matches!(change.event, Event::Repair(_)) || change.event.is_mark() {
                continue;
            }
            let named = match groups.get_mut(&change.group_id) {
                Some(named) => named,
                None => groups
                    .entry(change.group_id.clone())
                    .or_insert_with(|| Some(BTreeSet::new())),
            };
            let of_change = change.user_ids().map(UserId::as_str);
            let itself = (!change.is_of_members_alone()).then_some(GROUP_ITSELF);
            add_to(named, of_change.chain(itself));
        }
    }

    /// All of them since the last call.
    pub(super) fn take(&self) -> Vec<(GroupId, Users)> {
        self.groups().drain().collect()
    }

    /// Those of one group.
    pub(super) fn take_of(&self, group: &GroupId) -> Option<(GroupId, Users)> {
        self.groups().remove_entry(group)
    }

    pub(super) fn put_back(&self, some: Vec<(GroupId, Users)>) {
        let mut groups = self.groups();
        for (group, users) in some {
            let named = groups.entry(group).or_insert_with(|| Some(BTreeSet::new()));
            match &users {
                Some(users) => add_to(named, users.iter().map(String::as_str)),
                None => *named = None,
            }
        }
    }
}

fn add_to<'a>(named: &mut Users, users: impl Iterator<Item = &'a str>) {
    for user in users {
        let Some(all) = named else {
            return;
        };
        if !all.contains(user) {
            all.insert(user.to_owned());
        }
        if all.len() > MOST_USERS {
            *named = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::{CheckReason, Users as Listed};

    fn group(id: &str) -> GroupId {
        GroupId::parse(id.into()).unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn change(id: &str, event: Event) -> Change {
        Change::new(group(id), OffsetDateTime::UNIX_EPOCH, event)
    }

    fn users<const N: usize>(ids: [&str; N]) -> Users {
        Some(ids.map(str::to_owned).into())
    }

    #[test]
    fn whom_a_callback_has_named_is_given_once() {
        let mark = Event::WantCheck(CheckReason::CallbackLost);
        let touched = Touched::default();
        touched.add(&[
            &change("a", Event::Join(user("u"))),
            &change("a", Event::Dismiss),
            &change("b", mark),
        ]);
        assert_eq!(touched.take(), [(group("a"), users(["", "u"]))]);
        assert_eq!(touched.take(), []);
        touched.put_back(vec![(group("a"), users(["u"]))]);
        touched.add(&[&change("a", Event::Join(user("v")))]);
        assert_eq!(
            touched.take_of(&group("a")),
            Some((group("a"), users(["u", "v"])))
        );
        assert_eq!(touched.take_of(&group("a")), None);
    }

    #[test]
    fn of_too_many_it_is_told_that_there_are() {
        let user_ids = (0..=MOST_USERS).map(|n| user(&format!("u{n}"))).collect();
        let kick = Event::Kick(Listed {
            user_ids,
            is_incomplete: false,
        });
        let touched = Touched::default();
        touched.add(&[&change("a", kick), &change("a", Event::Join(user("u")))]);
        assert_eq!(touched.take(), [(group("a"), None)]);
    }
}
