//! Groups. All fields of a group stand here: in a callback, in the mirror, in OpenIM.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::member::fill;
use super::{Differences, RepairKind, Text, UserId, Verdict};

/// Status of a dismissed group. 0 is a normal group, 1 a banned one, 3 a muted one.
pub const DISMISSED: i32 = 2;

/// Profile of a group, or new values for some of its fields. `None` leaves a field as it is. An
/// empty text is a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "OpenIM's fields, opaque to the mirror")]
pub struct GroupProfile {
    pub name: Option<Text>,
    pub notification: Option<Text>,
    pub introduction: Option<Text>,
    pub face_url: Option<Text>,
    pub ex: Option<Text>,
    /// 0: users who ask need an approval. 1: invited users need one too. 2: nobody needs one.
    pub need_verification: Option<i32>,
    pub look_member_info: Option<i32>,
    pub apply_member_friend: Option<i32>,
}

impl GroupProfile {
    /// Takes the values that are present in a later profile.
    pub(super) fn update(&mut self, later: &Self) {
        let older = std::mem::replace(self, later.clone());
        self.fill(&older);
    }

    /// Takes the values that are absent here from another profile.
    pub(super) fn fill(&mut self, other: &Self) {
        let Self {
            name,
            notification,
            introduction,
            face_url,
            ex,
            need_verification,
            look_member_info,
            apply_member_friend,
        } = other;
        fill(&mut self.name, name);
        fill(&mut self.notification, notification);
        fill(&mut self.introduction, introduction);
        fill(&mut self.face_url, face_url);
        fill(&mut self.ex, ex);
        fill(&mut self.need_verification, need_verification);
        fill(&mut self.look_member_info, look_member_info);
        fill(&mut self.apply_member_friend, apply_member_friend);
    }

    /// Returns the texts that are present.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &Text> {
        let texts = [
            &self.name,
            &self.notification,
            &self.introduction,
            &self.face_url,
            &self.ex,
        ];
        texts.into_iter().flatten()
    }
}

/// A group in the mirror. `None`: the value is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The part that members see.
    pub profile: GroupProfile,
    /// The current member who owns the group.
    pub owner: Option<UserId>,
    /// See [`DISMISSED`].
    pub status: Option<i32>,
    /// 2 for every group of current OpenIM versions.
    pub group_type: Option<i32>,
    /// Time when OpenIM created the group.
    pub created_in_openim_at: Option<OffsetDateTime>,
    /// Time when the mirror learned of the dismissal. Without meaning in another status.
    pub dismissed_at: Option<OffsetDateTime>,
}

impl Group {
    /// True if the group is dismissed. It has no current members then.
    pub fn is_dismissed(&self) -> bool {
        self.status == Some(DISMISSED)
    }
}

/// A group in OpenIM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at Group")]
pub struct OpenImGroup {
    /// All fields are present.
    pub profile: GroupProfile,
    pub owner: Option<UserId>,
    pub status: i32,
    pub group_type: i32,
    pub created_in_openim_at: Option<OffsetDateTime>,
}

impl OpenImGroup {
    /// Computes the row that is equal to OpenIM. OpenIM tells no time of a dismissal, so `found_at`
    /// is used for a new one.
    pub(super) fn to_row(&self, stored: Option<&Group>, found_at: OffsetDateTime) -> Group {
        let dismissed = stored.filter(|group| group.is_dismissed());
        let is_dismissed = self.status == DISMISSED;
        let dismissed_at = dismissed.and_then(|group| group.dismissed_at);
        Group {
            profile: self.profile.clone(),
            // OpenIM still names the owner of a dismissed group while the group has members.
            owner: self.owner.clone().filter(|_| !is_dismissed),
            status: Some(self.status),
            group_type: Some(self.group_type),
            created_in_openim_at: self.created_in_openim_at,
            dismissed_at: is_dismissed.then(|| dismissed_at.unwrap_or(found_at)),
        }
    }
}

/// Compares a group's row with OpenIM. `None`: they are equal.
pub fn compare_group(stored: Option<&Group>, openim: &OpenImGroup) -> Option<Verdict> {
    // The time of a dismissal is not compared, so any time will do.
    let row = openim.to_row(stored, OffsetDateTime::UNIX_EPOCH);
    let nothing = Group::default();
    let group = stored.unwrap_or(&nothing);
    let (old, new) = (&group.profile, &row.profile);
    let mut list = Differences::default();
    list.text("groupName", &old.name, &new.name);
    list.text("notification", &old.notification, &new.notification);
    list.text("introduction", &old.introduction, &new.introduction);
    list.text("faceURL", &old.face_url, &new.face_url);
    list.text("ex", &old.ex, &new.ex);
    for (field, old, new) in [
        (
            "needVerification",
            old.need_verification,
            new.need_verification,
        ),
        ("lookMemberInfo", old.look_member_info, new.look_member_info),
        (
            "applyMemberFriend",
            old.apply_member_friend,
            new.apply_member_friend,
        ),
    ] {
        list.number(field, old, new);
    }
    let (old, new) = (group.owner.as_ref(), row.owner.as_ref());
    list.id(
        "ownerUserID",
        old.map(UserId::as_str),
        new.map(UserId::as_str),
    );
    list.number("status", group.status, row.status);
    list.number("groupType", group.group_type, row.group_type);
    let (old, new) = (group.created_in_openim_at, row.created_in_openim_at);
    list.time("createdInOpenIMAt", old, new);
    (!list.0.is_empty() || stored.is_none()).then_some(Verdict {
        kind: RepairKind::GroupChanged,
        drift: list.0,
    })
}

/// OpenIM's number of the state of a group's member list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Id of the count. A group that is dismissed for good loses its count.
    pub id: String,
    /// The number. It can be any.
    pub number: u64,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident = $code:literal;)+) => {
        /// Reason of a mark: a callback contradicts the mirror, or a change is known to be missed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum MarkReason {
            $($(#[doc = $doc])+ #[serde(rename = $code)] $reason,)+
        }

        impl MarkReason {
            /// All reasons.
            pub const ALL: &[MarkReason] = &[$(MarkReason::$reason),+];

            /// Returns the stored and served name, which never changes.
            pub fn code(self) -> &'static str {
                match self { $(MarkReason::$reason => $code,)+ }
            }
        }
    };
}

reasons! {
    /// The first callback that named the group was not its creation.
    GroupUnknown = "group_unknown";
    /// A creation came for a known group.
    GroupKnown = "group_known";
    /// A callback came that OpenIM does not send for a dismissed group.
    GroupDismissed = "group_dismissed";
    /// A callback named an unknown user as a member.
    MemberUnknown = "member_unknown";
    /// A callback named a user as a member who had left.
    MemberGone = "member_gone";
    /// A callback named a user as a member so long after the leave that the user must have joined
    /// again.
    MemberBack = "member_back";
    /// A current member joined.
    MemberPresent = "member_present";
    /// A list of members was missing or empty, or contained an invalid id.
    MembersMissing = "members_missing";
    /// The owner left. OpenIM does not allow that.
    OwnerLeft = "owner_left";
    /// The owner's role was set without a transfer, or a member was made owner without one.
    OwnerRole = "owner_role";
    /// A transfer contradicts the known roles.
    OwnerMismatch = "owner_mismatch";
    /// OpenIM announced a join. An invitation or an approval may follow, for which it sends no
    /// callback.
    JoinAnnounced = "join_announced";
    /// OpenIM sent a notification of a change that no callback tells.
    Notified = "notified";
    /// A callback could not be understood.
    CallbackRejected = "callback_rejected";
    /// A callback could not be written.
    CallbackLost = "callback_lost";
    /// A callback came during the comparison of the group. OpenIM's answer may be older.
    CallbackMeanwhile = "callback_meanwhile";
    /// OpenIM does not know the group.
    NotInOpenim = "not_in_openim";
    /// OpenIM does not return all of the group.
    ReadInPart = "read_in_part";
    /// OpenIM returns so few of the members that the removal of the others needs a confirmation.
    TooManyRemovals = "too_many_removals";
}
