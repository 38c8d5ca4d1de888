//! Operators: users who call OpenIM's API for others. Callbacks name them without their being members.

use std::collections::BTreeSet;

use super::{Event, MarkReason, ORDINARY, UserId};

/// User ids with which backends call OpenIM's API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operators(BTreeSet<UserId>);

impl Operators {
    /// Creates the set of these users.
    pub fn new(users: impl IntoIterator<Item = UserId>) -> Self {
        Self(users.into_iter().collect())
    }

    /// Removes an operator from an event that names it for having called the API. The group is then
    /// marked, because an operator may be a member as well.
    pub fn sort_out(&self, event: Event) -> Event {
        match event {
            // The inviter is an operator: a user has joined, and the callback does not name it.
            Event::Join(user) if self.0.contains(&user) => Event::Mark(MarkReason::MembersMissing),
            Event::Create(mut creation) => {
                let operator = creation.may_be_operator.take();
                if let Some(operator) = operator.filter(|user| self.0.contains(user)) {
                    creation.members.retain(|(user, _)| *user != operator);
                    creation.is_incomplete = true;
                }
                Event::Create(creation)
            }
            event => event,
        }
    }
}

/// Returns the user of a creation's list who may be an operator: the last, if it is an ordinary member and
/// the owner is named once. If the owner is named twice, the list itself shows the operator.
pub fn may_be_operator(list: &[(UserId, i32)], owner: Option<&UserId>) -> Option<UserId> {
    let mentions = list.iter().filter(|(user, _)| Some(user) == owner).count();
    let (last, role_level) = list.last()?;
    let is_ordinary = *role_level == ORDINARY && Some(last) != owner;
    (mentions == 1 && is_ordinary).then(|| last.clone())
}

#[cfg(test)]
mod tests {
    use super::super::{Creation, GroupProfile, first_members};
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn operators() -> Operators {
        Operators::new([user("imAdmin"), user("backend")])
    }

    fn creation(list: &[(&str, i32)]) -> Creation {
        let list: Vec<_> = list.iter().map(|(id, role)| (user(id), *role)).collect();
        let owner = user("o1");
        Creation {
            profile: GroupProfile::default(),
            may_be_operator: may_be_operator(&list, Some(&owner)),
            members: first_members(list, Some(&owner)),
            owner: Some(owner),
            status: None,
            group_type: None,
            created_at: None,
            is_incomplete: false,
        }
    }

    fn members(list: &[(&str, i32)]) -> (Vec<String>, bool) {
        let Event::Create(created) = operators().sort_out(Event::Create(creation(list))) else {
            panic!("another event");
        };
        assert_eq!(created.may_be_operator, None);
        let ids = created.members.iter();
        let ids = ids.map(|(user, _)| user.as_str().to_owned()).collect();
        (ids, created.is_incomplete)
    }

    #[test]
    fn an_operator_at_the_end_of_a_list_that_names_the_owner_once_is_no_member() {
        let of = |ids: &[&str], marked| (ids.iter().map(|id| (*id).to_owned()).collect(), marked);
        for (list, expected) in [
            (
                [("o1", 100), ("m1", 20), ("imAdmin", 20)].as_slice(),
                of(&["o1", "m1"], true),
            ),
            (&[("o1", 100), ("backend", 20)], of(&["o1"], true)),
            // Not an ordinary member, not the last, not an operator.
            (
                &[("o1", 100), ("imAdmin", 60)],
                of(&["o1", "imAdmin"], false),
            ),
            (
                &[("o1", 100), ("imAdmin", 20), ("m1", 20)],
                of(&["o1", "imAdmin", "m1"], false),
            ),
            (&[("o1", 100), ("m1", 20)], of(&["o1", "m1"], false)),
            // Named twice: the list tells, and a member who is an operator stays.
            (
                &[("o1", 100), ("imAdmin", 20), ("o1", 20)],
                of(&["o1", "imAdmin"], false),
            ),
            (
                &[("o1", 100), ("m1", 20), ("o1", 20), ("imAdmin", 20)],
                of(&["o1", "m1"], false),
            ),
        ] {
            assert_eq!(members(list), expected, "{list:?}");
        }
    }

    #[test]
    fn who_joins_is_not_the_operator_that_is_told_as_inviter() {
        let marked = Event::Mark(MarkReason::MembersMissing);
        assert_eq!(operators().sort_out(Event::Join(user("imAdmin"))), marked);
        let join = Event::Join(user("u5"));
        assert_eq!(operators().sort_out(join.clone()), join);
        assert_eq!(Operators::default().sort_out(join.clone()), join);
    }
}
