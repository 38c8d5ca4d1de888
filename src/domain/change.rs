//! Changes, the folding of those that come together, operators, and rejected callbacks. The names that serde gives are
//! in spools that older versions wrote, so they never change.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::iter;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::record::as_base64;
use super::{
    Fence, GroupId, GroupProfile, MarkReason, MemberPatch, ORDINARY, OWNER, OpenImGroup,
    OpenImMember, Text, UserId,
};

/// A change of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The group.
    pub group_id: GroupId,
    /// Time when the callback came, to the microsecond. Callbacks carry no time of their own.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub received_at: OffsetDateTime,
    /// Kind of the change, with its values.
    pub event: Event,
    /// True if the group is reconciled soon anyway, so that a contradiction need not mark it. A spool does not keep it:
    /// a spooled change may be written much later.
    #[serde(skip)]
    pub is_reconciled_soon: bool,
}

/// Kind of a change of a group, with its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The group was created.
    Create(Creation),
    /// A user joined without invitation or approval. OpenIM sends no callback for the other ways.
    Join(UserId),
    /// Users joined, in one callback. No known OpenIM version sends it.
    JoinAll(Users),
    /// A member quit.
    Quit(UserId),
    /// Members were removed.
    Kick(Users),
    /// The group was dismissed, with or without its members removed. Readers see the same.
    Dismiss,
    /// The owner gave the group to another member.
    Transfer {
        /// The owner before.
        old_owner: UserId,
        /// The owner after.
        new_owner: UserId,
    },
    /// The group's profile was set.
    SetProfile(GroupProfile),
    /// A member's own values were set.
    SetMember(MemberPatch),
    /// The group must be reconciled; no value changes.
    #[serde(rename = "want_check")]
    Mark(MarkReason),
    /// A mark only for a known, dismissed group.
    #[serde(rename = "want_check_if_dismissed")]
    MarkIfDismissed(MarkReason),
    /// OpenIM differs from the mirror. Never spooled: OpenIM is asked again after an outage.
    #[serde(skip)]
    Repair(Repair),
}

impl Event {
    /// Returns the length of the texts.
    pub fn bytes(&self) -> usize {
        fn sum<'a>(texts: impl Iterator<Item = &'a Text>) -> usize {
            texts.map(|text| text.as_str().len()).sum()
        }
        match self {
            Self::SetMember(patch) => sum(patch.texts()),
            Self::SetProfile(profile) | Self::Create(Creation { profile, .. }) => {
                sum(profile.texts())
            }
            Self::Repair(repair) => {
                let group = repair.group.as_ref();
                let profile = group.map_or(0, |group| sum(group.profile.texts()));
                let members = repair.present.iter().map(|(_, member)| member.bytes());
                profile + members.sum::<usize>()
            }
            _ => 0,
        }
    }

    /// True if the event only marks the group.
    pub fn is_mark(&self) -> bool {
        matches!(self, Self::Mark(_) | Self::MarkIfDismissed(_))
    }
}

/// List of users in a callback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// The valid ids.
    pub user_ids: Vec<UserId>,
    /// True if the list was missing or empty, or contained an invalid id.
    pub is_incomplete: bool,
}

/// A new group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// All fields are present.
    pub profile: GroupProfile,
    /// The owner. `None`: not known.
    pub owner: Option<UserId>,
    /// See [`super::DISMISSED`].
    pub status: Option<i32>,
    /// 2 for every group of current OpenIM versions.
    pub group_type: Option<i32>,
    /// Time of the creation, by OpenIM's clock.
    #[serde(default, with = "time::serde::timestamp::microseconds::option")]
    pub created_at: Option<OffsetDateTime>,
    /// The first members with their roles, each once.
    pub members: Vec<(UserId, i32)>,
    /// The last member, if the list does not show by a second mention of the owner that this one is a real member and
    /// not the operator. [`Operators`] decides that; a spool does not keep it.
    #[serde(skip)]
    pub may_be_operator: Option<UserId>,
    /// True if the list was missing or empty, or contained an invalid id.
    pub is_incomplete: bool,
}

/// Returns the real members of a new group from the list that OpenIM sends.
///
/// OpenIM's list names all members with their roles, then the admins and the owner again as ordinary members, then the
/// operator if it is another user. The operator is no member. So the first mention of a user counts, and the list ends
/// at the owner's second mention.
pub fn first_members(
    list: impl IntoIterator<Item = (UserId, i32)>,
    owner: Option<&UserId>,
) -> Vec<(UserId, i32)> {
    let mut members: Vec<(UserId, i32)> = Vec::new();
    let mut seen = HashSet::new();
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
    /// Makes a change that came at `received_at`.
    pub fn new(group_id: GroupId, received_at: OffsetDateTime, event: Event) -> Self {
        Self {
            group_id,
            // Postgres keeps microseconds: a computed value equals the one that is read back.
            received_at: to_micros(received_at),
            event,
            is_reconciled_soon: false,
        }
    }

    /// Returns the patch if it can be folded with others. A patch that makes an owner cannot: it depends on the group.
    pub fn as_patch(&self) -> Option<&MemberPatch> {
        match &self.event {
            Event::SetMember(patch) if patch.role_level != Some(OWNER) => Some(patch),
            _ => None,
        }
    }

    /// Returns the users whose stored texts are needed to apply the change. The texts of the other users of the change
    /// stay as they are.
    pub fn users_with_texts(&self) -> Box<dyn Iterator<Item = &UserId> + '_> {
        match &self.event {
            Event::Quit(_) | Event::Kick(_) => Box::new(iter::empty()),
            Event::Repair(repair) => Box::new(repair.present.iter().map(|(user, _)| user)),
            _ => self.user_ids(),
        }
    }

    /// True if the group's stored texts are needed to apply the change. Else they stay as they are.
    pub fn needs_group_texts(&self) -> bool {
        match &self.event {
            Event::Create(_) | Event::SetProfile(_) => true,
            Event::Repair(repair) => repair.group.is_some(),
            _ => false,
        }
    }

    /// True if the change says nothing about the group itself.
    pub fn is_only_about_members(&self) -> bool {
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
            | Event::Mark(_)
            | Event::MarkIfDismissed(_)
            | Event::Repair(_) => false,
        }
    }

    /// Returns the users whose rows the change may read or write.
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
            Event::Dismiss | Event::SetProfile(_) | Event::Mark(_) | Event::MarkIfDismissed(_) => {
                Box::new(iter::empty())
            }
        }
    }
}

/// Cuts the digits that Postgres does not keep.
pub fn to_micros(time: OffsetDateTime) -> OffsetDateTime {
    let nanos = time.nanosecond() % 1000;
    time - time::Duration::nanoseconds(i64::from(nanos))
}

/// A repair: the parts of a group that differ in the mirror, as OpenIM has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Begin of the comparison, by the database's clock. It is unique among the comparisons of a group.
    pub began_at: OffsetDateTime,
    /// Transactions that had ended before OpenIM was asked. Other writes may be newer than its answer.
    pub fence: Fence,
    /// The group itself, if it differs.
    pub group: Option<Box<OpenImGroup>>,
    /// Members who differ.
    pub present: Vec<(UserId, OpenImMember)>,
    /// Users who are not members.
    pub absent: Vec<UserId>,
}

impl Repair {
    /// Returns the users whose rows the repair may write.
    pub fn user_ids(&self) -> impl Iterator<Item = &UserId> {
        let present = self.present.iter().map(|(user, _)| user);
        present.chain(&self.absent)
    }
}

/// Maximum length of a kept body, in bytes.
pub const MAX_KEPT_BYTES: usize = 1 << 20;

/// A callback that was answered with an error because of its body.
#[derive(Clone, Serialize, Deserialize)]
pub struct Rejected {
    /// Time when the callback came.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub received_at: OffsetDateTime,
    /// Path of the request.
    pub path: String,
    /// OpenIM's request header, if present.
    pub operation_id: Option<String>,
    /// Error code.
    pub code: String,
    /// Error message. It quotes no value of the body.
    pub detail: String,
    /// The first [`MAX_KEPT_BYTES`] of the body.
    #[serde(with = "as_base64")]
    pub body: Bytes,
    /// Length of the whole body.
    pub body_bytes: u64,
}

impl Rejected {
    /// True if the body was too long to be kept whole.
    pub fn is_cut(&self) -> bool {
        self.body_bytes > self.body.len() as u64
    }
}

/// Changes by the way to write them. No group is in both lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded<'a> {
    /// A patch for each member, in bytewise order of group and user. The result of a write equals that of the original
    /// patches in their order, with one exception: the display value of a text that was set and emptied again stays
    /// known.
    ///
    /// The order of the keys prevents deadlocks: all writers lock the same rows in the same order.
    pub patches: Vec<FoldedPatch<'a>>,
    /// All changes of the other groups, in their order.
    pub others: Vec<&'a Change>,
}

/// All patches of one member, as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldedPatch<'a> {
    /// The group.
    pub group_id: &'a GroupId,
    /// The patch. It is borrowed if it is the only one.
    pub patch: Cow<'a, MemberPatch>,
}

impl FoldedPatch<'_> {
    /// Returns the ids of group and user.
    pub fn key(&self) -> (&GroupId, &UserId) {
        (self.group_id, &self.patch.user_id)
    }
}

/// Folds changes.
pub fn fold<'a>(changes: impl IntoIterator<Item = &'a Change> + Clone) -> Folded<'a> {
    let not_patches = changes
        .clone()
        .into_iter()
        .filter(|c| c.as_patch().is_none());
    let with_others: HashSet<&GroupId> = not_patches.map(|change| &change.group_id).collect();
    let mut patches = Vec::new();
    let mut others = Vec::new();
    for change in changes {
        let is_alone = with_others.is_empty() || !with_others.contains(&change.group_id);
        match change.as_patch().filter(|_| is_alone) {
            Some(patch) => patches.push(FoldedPatch {
                group_id: &change.group_id,
                patch: Cow::Borrowed(patch),
            }),
            None => others.push(change),
        }
    }
    // The sort is stable, so the patches of one member keep their order.
    patches.sort_by(|one, other| one.key().cmp(&other.key()));
    patches.dedup_by(|later, earlier| {
        let is_same = later.key() == earlier.key();
        if is_same {
            earlier.patch.to_mut().fold(&later.patch);
        }
        is_same
    });
    Folded { patches, others }
}

/// User ids with which backends call OpenIM's API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operators(BTreeSet<UserId>);

impl Operators {
    /// Creates the set of these users.
    pub fn new(users: impl IntoIterator<Item = UserId>) -> Self {
        Self(users.into_iter().collect())
    }

    /// Removes an operator from an event that names it for having called the API. The group is then marked, because an
    /// operator may be a member as well.
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

/// Returns the user of a creation's list who may be an operator: the last, if it is an ordinary member and the owner is
/// named once. If the owner is named twice, the list itself shows the operator.
pub fn may_be_operator(list: &[(UserId, i32)], owner: Option<&UserId>) -> Option<UserId> {
    let mentions = list.iter().filter(|(user, _)| Some(user) == owner).count();
    let (last, role_level) = list.last()?;
    let is_ordinary = *role_level == ORDINARY && Some(last) != owner;
    (mentions == 1 && is_ordinary).then(|| last.clone())
}
