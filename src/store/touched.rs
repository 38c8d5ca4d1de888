//! Touched groups: the users whom callbacks have named since the last comparison.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{Change, Event, GroupId, UserId};

/// Maximum number of users of a group that are kept one by one.
pub(super) const MAX_TOUCHED_USERS: usize = 200;
/// Stands for the group itself among user ids. No user has an empty id.
pub(super) const GROUP_ITSELF: &str = "";

/// Ids of users. `None`: too many to keep.
pub(super) type TouchedUsers = Option<BTreeSet<String>>;

/// The touched groups. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched(Arc<Mutex<HashMap<GroupId, TouchedUsers>>>);

impl Touched {
    fn groups(&self) -> MutexGuard<'_, HashMap<GroupId, TouchedUsers>> {
        // A panic cannot leave the map in a wrong state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the users of changes that were written or may have been.
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
            let itself = (!change.is_only_about_members()).then_some(GROUP_ITSELF);
            add_to(named, of_change.chain(itself));
        }
    }

    /// Takes all groups.
    pub(super) fn take(&self) -> Vec<(GroupId, TouchedUsers)> {
        self.groups().drain().collect()
    }

    /// Takes one group.
    pub(super) fn take_of(&self, group: &GroupId) -> Option<(GroupId, TouchedUsers)> {
        self.groups().remove_entry(group)
    }

    pub(super) fn put_back(&self, some: Vec<(GroupId, TouchedUsers)>) {
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

fn add_to<'a>(named: &mut TouchedUsers, users: impl Iterator<Item = &'a str>) {
    for user in users {
        let Some(all) = named else {
            return;
        };
        if !all.contains(user) {
            all.insert(user.to_owned());
        }
        if all.len() > MAX_TOUCHED_USERS {
            *named = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::{MarkReason, Users};

    fn group(id: &str) -> GroupId {
        GroupId::parse(id.into()).unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn change(id: &str, event: Event) -> Change {
        Change::new(group(id), OffsetDateTime::UNIX_EPOCH, event)
    }

    fn users<const N: usize>(ids: [&str; N]) -> TouchedUsers {
        Some(ids.map(str::to_owned).into())
    }

    #[test]
    fn touched_users_are_returned_once() {
        let mark = Event::Mark(MarkReason::CallbackLost);
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
    fn too_many_users_are_not_kept() {
        let user_ids = (0..=MAX_TOUCHED_USERS)
            .map(|n| user(&format!("u{n}")))
            .collect();
        let kick = Event::Kick(Users {
            user_ids,
            is_incomplete: false,
        });
        let touched = Touched::default();
        touched.add(&[&change("a", kick), &change("a", Event::Join(user("u")))]);
        assert_eq!(touched.take(), [(group("a"), None)]);
    }
}
