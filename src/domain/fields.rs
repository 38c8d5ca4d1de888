//! Members and groups. All fields of one stand here: in a callback, in the mirror, in OpenIM.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Differences, Drift, RepairKind, Text, UserId, Verdict};

/// Role level of an ordinary member; 60 is an admin and 100 the owner. A before-hook of OpenIM can set any number, so a
/// role level is an `i32` and no number is refused.
pub const ORDINARY: i32 = 20;
/// Role level of the owner. OpenIM gives it only when a group is created or transferred.
pub const OWNER: i32 = 100;

/// A patch of one member, from set-member-info. `None` leaves a field as it is. An empty text is a value. A new field
/// needs `#[serde(skip_serializing_if = "Option::is_none")]`: the form of spooled patches must not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPatch {
    /// The member.
    pub user_id: UserId,
    /// Name in this group. Empty: OpenIM shows the name of the user's profile.
    pub nickname: Option<Text>,
    /// Avatar in this group. Empty: OpenIM shows the avatar of the user's profile.
    pub face_url: Option<Text>,
    /// See [`ORDINARY`].
    pub role_level: Option<i32>,
    /// Extra data, opaque to OpenIM and to the mirror.
    pub ex: Option<Text>,
}

impl MemberPatch {
    /// Makes a patch that changes nothing.
    pub fn new(user_id: UserId) -> Self {
        Self {
            user_id,
            nickname: None,
            face_url: None,
            role_level: None,
            ex: None,
        }
    }

    /// Adds a later patch of the same member. Its values replace earlier ones.
    pub(super) fn fold(&mut self, later: &Self) {
        let Self {
            user_id: _,
            nickname,
            face_url,
            role_level,
            ex,
        } = later;
        replace(&mut self.nickname, nickname);
        replace(&mut self.face_url, face_url);
        replace(&mut self.role_level, role_level);
        replace(&mut self.ex, ex);
    }

    /// Returns the texts that are present.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        [&self.nickname, &self.face_url, &self.ex]
            .into_iter()
            .flatten()
    }
}

/// A member in the mirror, current or a tombstone. `None`: the value is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at MemberPatch")]
pub struct Member {
    pub nickname: Option<Text>,
    pub face_url: Option<Text>,
    pub role_level: Option<i32>,
    pub ex: Option<Text>,
    /// Name that OpenIM shows: the nickname or, if that is empty, the name of the user's profile.
    pub display_nickname: Option<Text>,
    /// Avatar that OpenIM shows, by the same rule.
    pub display_face_url: Option<Text>,
    /// Time of the join.
    pub joined_at: Option<OffsetDateTime>,
    /// 1 by an administrator, 2 by invitation, 3 by search, 4 by QR code.
    pub join_source: Option<i32>,
    /// User who invited the member. Empty: nobody did, or OpenIM did not store it.
    pub inviter: Option<Text>,
    /// User who accepted the member.
    pub operator: Option<Text>,
    /// End of the time for which the member is muted.
    pub mute_end_at: Option<OffsetDateTime>,
    /// Time of the leave. The row is a tombstone if this is present.
    pub left_at: Option<OffsetDateTime>,
}

impl Member {
    /// Makes a member who has just joined. OpenIM then makes a new record with an ordinary role and empty texts,
    /// whatever the record before was.
    pub fn fresh(joined_at: Option<OffsetDateTime>) -> Self {
        Self::created(Some(ORDINARY), joined_at)
    }

    /// Makes the member of a new record of OpenIM.
    pub(super) fn created(role_level: Option<i32>, joined_at: Option<OffsetDateTime>) -> Self {
        Self {
            nickname: Some(Text::default()),
            face_url: Some(Text::default()),
            role_level,
            ex: Some(Text::default()),
            joined_at,
            ..Self::default()
        }
    }

    /// Fills the unknown values that a new record has. The other fields are in no callback.
    pub(super) fn fill(&mut self, record: &Self) {
        fill(&mut self.nickname, &record.nickname);
        fill(&mut self.face_url, &record.face_url);
        fill(&mut self.role_level, &record.role_level);
        fill(&mut self.ex, &record.ex);
        fill(&mut self.joined_at, &record.joined_at);
    }

    /// Applies all of a patch except the role level, which has rules of its own.
    pub(super) fn apply_texts(&mut self, patch: &MemberPatch) {
        let MemberPatch {
            user_id: _,
            nickname,
            face_url,
            role_level: _,
            ex,
        } = patch;
        set_shown(&mut self.nickname, &mut self.display_nickname, nickname);
        set_shown(&mut self.face_url, &mut self.display_face_url, face_url);
        replace(&mut self.ex, ex);
    }

    /// Returns the texts that are known.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        let texts = [
            &self.nickname,
            &self.face_url,
            &self.ex,
            &self.display_nickname,
            &self.display_face_url,
            &self.inviter,
            &self.operator,
        ];
        texts.into_iter().flatten()
    }

    /// True if the member has left.
    pub fn is_gone(&self) -> bool {
        self.left_at.is_some()
    }
}

/// Takes a later value if there is one.
fn replace<T: Clone>(field: &mut Option<T>, later: &Option<T>) {
    if later.is_some() {
        field.clone_from(later);
    }
}

/// Takes another value if none is known.
fn fill<T: Clone>(field: &mut Option<T>, other: &Option<T>) {
    if field.is_none() {
        field.clone_from(other);
    }
}

/// Sets a text that OpenIM shows. If it is empty, OpenIM shows the profile's, which no callback tells: that is known
/// only if the text was empty before.
fn set_shown(field: &mut Option<Text>, shown: &mut Option<Text>, patch: &Option<Text>) {
    let Some(text) = patch else {
        return;
    };
    if !text.is_empty() {
        *shown = Some(text.clone());
    } else if field.as_ref() != Some(text) {
        *shown = None;
    }
    *field = Some(text.clone());
}

/// A member in OpenIM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at Member")]
pub struct OpenImMember {
    /// OpenIM fills it from the user's profile if the group-level value is empty, and does not tell which of the two it
    /// is.
    pub display_nickname: Text,
    /// See `display_nickname`.
    pub display_face_url: Text,
    pub role_level: i32,
    pub ex: Text,
    pub joined_at: Option<OffsetDateTime>,
    pub join_source: i32,
    pub inviter: Text,
    pub operator: Text,
    pub mute_end_at: Option<OffsetDateTime>,
}

impl OpenImMember {
    /// Estimates the memory of the texts.
    pub fn bytes(&self) -> usize {
        let texts = [
            &self.display_nickname,
            &self.display_face_url,
            &self.ex,
            &self.inviter,
            &self.operator,
        ];
        texts.iter().map(|text| text.as_str().len()).sum()
    }

    /// Computes the row that is equal to OpenIM. `stored` is the row before.
    pub(super) fn to_row(&self, stored: Option<&Member>) -> Member {
        // Nothing of the time before a leave stays valid.
        let current = stored.filter(|member| !member.is_gone());
        // The shown text can be the profile's only if the member has none of its own.
        let own = |text: Option<&Text>, shown: &Text| {
            text.filter(|text| text.is_empty() || *text == shown)
                .cloned()
        };
        let nickname = current.and_then(|member| member.nickname.as_ref());
        let face_url = current.and_then(|member| member.face_url.as_ref());
        Member {
            nickname: own(nickname, &self.display_nickname),
            face_url: own(face_url, &self.display_face_url),
            role_level: Some(self.role_level),
            ex: Some(self.ex.clone()),
            display_nickname: Some(self.display_nickname.clone()),
            display_face_url: Some(self.display_face_url.clone()),
            joined_at: self.joined_at,
            join_source: Some(self.join_source),
            inviter: Some(self.inviter.clone()),
            operator: Some(self.operator.clone()),
            mute_end_at: self.mute_end_at,
            left_at: None,
        }
    }

    /// Lists the drift of a current member, whose row should be `row`.
    fn drift_of(&self, stored: &Member, row: &Member) -> Vec<Drift> {
        let mut list = Differences::default();
        // A stored text that OpenIM does not show is drift.
        if stored.nickname != row.nickname {
            let shown = Some(self.display_nickname.clone());
            list.add("nickName", &stored.nickname, &shown);
        }
        if stored.face_url != row.face_url {
            let shown = Some(self.display_face_url.clone());
            list.add("faceURL", &stored.face_url, &shown);
        }
        list.add("roleLevel", &stored.role_level, &row.role_level);
        list.add("ex", &stored.ex, &row.ex);
        // Only a comparison fills it, so this member was never compared.
        if stored.join_source.is_none() {
            return list.0;
        }
        list.add("joinedAt", &stored.joined_at, &row.joined_at);
        list.add("joinSource", &stored.join_source, &row.join_source);
        list.add("inviterUserID", &stored.inviter, &row.inviter);
        list.add("operatorUserID", &stored.operator, &row.operator);
        list.add("muteEndAt", &stored.mute_end_at, &row.mute_end_at);
        list.0
    }
}

/// Compares a member's row with OpenIM. `None`: they are equal.
pub fn compare_member(stored: Option<&Member>, openim: Option<&OpenImMember>) -> Option<Verdict> {
    let current = stored.filter(|member| !member.is_gone());
    let presence = || {
        let text = |is_there: bool| is_there.then(|| "present".to_owned());
        vec![Drift {
            field: "member",
            mirror: text(current.is_some()),
            openim: text(openim.is_some()),
        }]
    };
    let (kind, drift) = match (current, openim) {
        (None, None) => return None,
        (None, Some(_)) => (RepairKind::MemberAdded, presence()),
        (Some(_), None) => (RepairKind::MemberRemoved, presence()),
        (Some(member), Some(openim)) => {
            let row = openim.to_row(stored);
            if row == *member {
                return None;
            }
            match openim.drift_of(member, &row) {
                none if none.is_empty() => (RepairKind::DetailsChanged, none),
                drift => (RepairKind::MemberChanged, drift),
            }
        }
    };
    Some(Verdict { kind, drift })
}

/// Status of a dismissed group. 0 is a normal group, 1 a banned one, 3 a muted one.
pub const DISMISSED: i32 = 2;

/// Profile of a group, or new values for some of its fields. `None` leaves a field as it is. An empty text is a value.
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
    /// Computes the row that is equal to OpenIM. OpenIM tells no time of a dismissal, so `found_at` is used for a new
    /// one.
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
    list.add("groupName", &old.name, &new.name);
    list.add("notification", &old.notification, &new.notification);
    list.add("introduction", &old.introduction, &new.introduction);
    list.add("faceURL", &old.face_url, &new.face_url);
    list.add("ex", &old.ex, &new.ex);
    let (one, other) = (&old.need_verification, &new.need_verification);
    list.add("needVerification", one, other);
    let (one, other) = (&old.look_member_info, &new.look_member_info);
    list.add("lookMemberInfo", one, other);
    let (one, other) = (&old.apply_member_friend, &new.apply_member_friend);
    list.add("applyMemberFriend", one, other);
    list.add("ownerUserID", &group.owner, &row.owner);
    list.add("status", &group.status, &row.status);
    list.add("groupType", &group.group_type, &row.group_type);
    let (one, other) = (&group.created_in_openim_at, &row.created_in_openim_at);
    list.add("createdInOpenIMAt", one, other);
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

named! {
    /// Reason of a mark: a callback contradicts the mirror, or a change is known to be missed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    MarkReason, code:
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
    /// A callback named a user as a member so long after the leave that the user must have joined again.
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
    /// OpenIM announced a join. An invitation or an approval may follow, for which it sends no callback.
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
