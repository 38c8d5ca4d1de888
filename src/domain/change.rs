//! What a callback says, with all that a door knows of it. The names that serde gives are those of
//! records that wait on disk: older versions wrote them, so none is ever renamed.

use std::iter;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{CheckReason, GroupId, MemberPatch, Profile, Repair, UserId};

/// A change of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The group.
    pub group_id: GroupId,
    /// When it came, to the microsecond, kept wherever the change waits. Callbacks carry no time
    /// of their own.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub received_at: OffsetDateTime,
    /// What happened.
    pub event: Event,
    /// Whether the group is looked at soon anyway, so that what does not fit need not mark it. Of one that
    /// waits on disk nobody can tell when it is written.
    #[serde(skip)]
    pub is_looked_after: bool,
}

/// What happened to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It was created.
    Create(Creation),
    /// A user joined by itself. (Invitations and approvals are not told.)
    Join(UserId),
    /// Users joined who are told as such. No OpenIM that was seen does so.
    JoinAll(Users),
    /// A member left by itself.
    Quit(UserId),
    /// Members were removed.
    Kick(Users),
    /// The group was dismissed, its members removed or not: callers see the same.
    Dismiss,
    /// One member gave the group to another.
    Transfer {
        /// The owner until then.
        old_owner: UserId,
        /// The owner from then on.
        new_owner: UserId,
    },
    /// The group's profile was set.
    SetProfile(Profile),
    /// A member's own values were set.
    SetMember(MemberPatch),
    /// Nothing that we know of; the group is to be checked.
    WantCheck(CheckReason),
    /// The same, where the group is known and dismissed; else nothing at all.
    WantCheckIfDismissed(CheckReason),
    /// OpenIM was asked, and holds something else than the mirror. Never waits on disk: when the
    /// database is back, OpenIM is asked again.
    #[serde(skip)]
    Repair(Repair),
}

impl Event {
    /// Whether it marks its group to be checked, and does nothing else.
    pub fn is_mark(&self) -> bool {
        matches!(self, Self::WantCheck(_) | Self::WantCheckIfDismissed(_))
    }
}

/// Users as a callback lists them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Those whose ids are ids.
    pub user_ids: Vec<UserId>,
    /// Whether the list was missing or empty, or held something that is no id.
    pub is_incomplete: bool,
}

/// A new group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// All of it.
    pub profile: Profile,
    /// Who owns it; a creation without one says nothing of that.
    pub owner: Option<UserId>,
    /// See [`super::DISMISSED`].
    pub status: Option<i32>,
    /// 2 for every group of today's OpenIM.
    pub group_type: Option<i32>,
    /// By OpenIM's clock.
    #[serde(default, with = "time::serde::timestamp::microseconds::option")]
    pub created_at: Option<OffsetDateTime>,
    /// The first members with their roles, each once.
    pub members: Vec<(UserId, i32)>,
    /// The last of them, where the list does not tell by the owner's second mention whether that is who
    /// called OpenIM's API and no member. [`super::Operators`] tells; it is not kept.
    #[serde(skip)]
    pub may_be_operator: Option<UserId>,
    /// Whether the list was missing or empty, or held something that is no id.
    pub is_incomplete: bool,
}

/// The members that a new group really has, of the list that OpenIM sends.
///
/// That list names all members as they are, then the admins and the owner again as ordinary ones, and
/// then, where it was somebody else, whoever called the API, who is no member. So the first mention
/// counts, and nothing after the owner's second.
pub fn first_members(
    list: impl IntoIterator<Item = (UserId, i32)>,
    owner: Option<&UserId>,
) -> Vec<(UserId, i32)> {
    let mut members: Vec<(UserId, i32)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (user, role_level) in list {
        let is_first = seen.insert(user.clone());
        if is_first {
            members.push((user, role_level));
        } else if Some(&user) == owner {
            break;
        }
    }
    members
}

impl Change {
    /// A change that came at this moment.
    pub fn new(group_id: GroupId, received_at: OffsetDateTime, event: Event) -> Self {
        Self {
            group_id,
            // As Postgres keeps it, so that what is computed is what is read back.
            received_at: to_micros(received_at),
            event,
            is_looked_after: false,
        }
    }

    /// The patch, where the change is one that can be folded with others: it asks nothing of the
    /// group, unlike one that makes an owner.
    pub fn as_patch(&self) -> Option<&MemberPatch> {
        match &self.event {
            Event::SetMember(patch) if patch.role_level != Some(super::OWNER) => Some(patch),
            _ => None,
        }
    }

    /// The users whose texts have to be known to apply it. Those of others whom it names stay as they are.
    pub fn users_with_texts(&self) -> Box<dyn Iterator<Item = &UserId> + '_> {
        match &self.event {
            Event::Quit(_) | Event::Kick(_) => Box::new(iter::empty()),
            Event::Repair(repair) => Box::new(repair.present.iter().map(|(user, _)| user)),
            _ => self.user_ids(),
        }
    }

    /// Whether the group's own texts have to be known to apply it. Else they stay as they are.
    pub fn is_of_profile(&self) -> bool {
        match &self.event {
            Event::Create(_) | Event::SetProfile(_) => true,
            Event::Repair(repair) => repair.group.is_some(),
            _ => false,
        }
    }

    /// Whether it says nothing of the group itself.
    pub fn is_of_members_alone(&self) -> bool {
        match &self.event {
            Event::Join(_)
            | Event::JoinAll(_)
            | Event::Quit(_)
            | Event::Kick(_)
            | Event::SetMember(_) => true,
            Event::Create(_)
            | Event::Dismiss
            | Event::Transfer { .. }
            | Event::SetProfile(_)
            | Event::WantCheck(_)
            | Event::WantCheckIfDismissed(_)
            | Event::Repair(_) => false,
        }
    }

    /// The users whose rows it may read or write.
    pub fn user_ids(&self) -> Box<dyn Iterator<Item = &UserId> + '_> {
        match &self.event {
            Event::Create(creation) => Box::new(creation.members.iter().map(|(user, _)| user)),
            Event::Join(user) | Event::Quit(user) => Box::new(iter::once(user)),
            Event::JoinAll(users) | Event::Kick(users) => Box::new(users.user_ids.iter()),
            Event::Transfer {
                old_owner,
                new_owner,
            } => Box::new([old_owner, new_owner].into_iter()),
            Event::SetMember(patch) => Box::new(iter::once(&patch.user_id)),
            Event::Repair(repair) => Box::new(repair.user_ids()),
            Event::Dismiss
            | Event::SetProfile(_)
            | Event::WantCheck(_)
            | Event::WantCheckIfDismissed(_) => Box::new(iter::empty()),
        }
    }
}

/// Without what Postgres would round.
pub fn to_micros(time: OffsetDateTime) -> OffsetDateTime {
    let nanos = time.nanosecond() % 1000;
    time - time::Duration::nanoseconds(i64::from(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn decode(list: &[(&str, i32)], owner: &str) -> Vec<(String, i32)> {
        let list = list.iter().map(|(id, role)| (user(id), *role));
        let members = first_members(list, Some(&user(owner)));
        let plain = |(user, role): (UserId, i32)| (user.as_str().to_owned(), role);
        members.into_iter().map(plain).collect()
    }

    #[test]
    fn of_a_creations_list_the_first_mention_counts_and_nothing_after_the_owners_second() {
        let list = [
            ("o1", 100),
            ("a1", 60),
            ("m1", 20),
            ("a1", 20),
            ("o1", 20),
            ("imAdmin", 20),
        ];
        let true_members = [("o1", 100), ("a1", 60), ("m1", 20)];
        let owned = true_members.map(|(id, role)| (id.to_owned(), role));
        assert_eq!(decode(&list, "o1"), owned);
        // Without the caller, who is a member.
        assert_eq!(decode(&list[..5], "o1"), owned);
        // Without the repetition.
        assert_eq!(decode(&list[..3], "o1"), owned);
        assert_eq!(
            decode(&[("o1", 100), ("o1", 20), ("imAdmin", 20)], "o1"),
            [("o1".to_owned(), 100)]
        );
    }
}
