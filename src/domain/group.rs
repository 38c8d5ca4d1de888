//! A group: what is known of one, what a callback can change, and why one wants a check.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Text, UserId};

/// Status of a group that is dismissed; 0 is a normal one, 1 banned, 3 muted.
pub const DISMISSED: i32 = 2;

/// Profile of a group: as told by its creation, or, as far as it is there, a change of it. `None`
/// leaves a field as it is; an empty text is a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "OpenIM's fields, opaque to us")]
pub struct Profile {
    pub name: Option<Text>,
    pub notification: Option<Text>,
    pub introduction: Option<Text>,
    pub face_url: Option<Text>,
    pub ex: Option<Text>,
    /// 0 those who ask wait for approval, 1 so do those who are invited, 2 anyone joins.
    pub need_verification: Option<i32>,
    pub look_member_info: Option<i32>,
    pub apply_member_friend: Option<i32>,
}

impl Profile {
    /// Takes what is there of a later one.
    pub(super) fn update(&mut self, later: &Self) {
        let older = std::mem::replace(self, later.clone());
        self.fill(&older);
    }

    /// Those that are known, in no order.
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

    /// Takes from another what is not there.
    pub(super) fn fill(&mut self, other: &Self) {
        fn fill<T: Clone>(field: &mut Option<T>, other: &Option<T>) {
            if field.is_none() {
                field.clone_from(other);
            }
        }
        let Self {
            name,
            notification,
            introduction,
            face_url,
            ex,
            need_verification,
            look_member_info,
            apply_member_friend,
        } = self;
        fill(name, &other.name);
        fill(notification, &other.notification);
        fill(introduction, &other.introduction);
        fill(face_url, &other.face_url);
        fill(ex, &other.ex);
        fill(need_verification, &other.need_verification);
        fill(look_member_info, &other.look_member_info);
        fill(apply_member_friend, &other.apply_member_friend);
    }
}

/// What is known of a group; `None` is what OpenIM has never told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// What its members see of it.
    pub profile: Profile,
    /// The current member who owns it.
    pub owner: Option<UserId>,
    /// See [`DISMISSED`].
    pub status: Option<i32>,
    /// 2 for every group of today's OpenIM.
    pub group_type: Option<i32>,
    /// When OpenIM made it.
    pub created_in_openim_at: Option<OffsetDateTime>,
    /// When we first heard that it is dismissed; means nothing in another status.
    pub dismissed_at: Option<OffsetDateTime>,
}

impl Group {
    /// Whether its members are not current.
    pub fn is_dismissed(&self) -> bool {
        self.status == Some(DISMISSED)
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident = $code:literal;)+) => {
        /// Why a group is to be held against OpenIM: what a callback implies of the time before it
        /// is not what the mirror knows, or something is known to be missed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum CheckReason {
            $($(#[doc = $doc])+ #[serde(rename = $code)] $reason,)+
        }

        impl CheckReason {
            /// Every reason.
            pub const ALL: &[CheckReason] = &[$(CheckReason::$reason),+];

            /// As it is stored and served; never renamed.
            pub fn code(self) -> &'static str {
                match self { $(CheckReason::$reason => $code,)+ }
            }
        }
    };
}

reasons! {
    /// A callback other than its creation was the first that named the group.
    GroupUnknown = "group_unknown";
    /// A creation came for a group that was known.
    GroupKnown = "group_known";
    /// A callback came that OpenIM does not send of a dismissed group.
    GroupDismissed = "group_dismissed";
    /// A callback named somebody as a member who was not known.
    MemberUnknown = "member_unknown";
    /// A callback named somebody as a member who had left.
    MemberGone = "member_gone";
    /// So long after the leave that the member must have come back.
    MemberBack = "member_back";
    /// Somebody joined who was a member.
    MemberPresent = "member_present";
    /// A list of members was missing, empty, or held something that is no id.
    MembersMissing = "members_missing";
    /// The owner left, which OpenIM does not let one do.
    OwnerLeft = "owner_left";
    /// The owner's role was set, or somebody's to the owner's, other than by a transfer.
    OwnerRole = "owner_role";
    /// A transfer does not fit the roles known.
    OwnerMismatch = "owner_mismatch";
    /// OpenIM asked whether somebody may come in: an invitation or an approval may follow, of which
    /// it tells nothing.
    JoinAnnounced = "join_announced";
    /// OpenIM has sent a notification of something that no callback tells.
    Notified = "notified";
    /// A callback could not be understood.
    CallbackRejected = "callback_rejected";
    /// A callback could not be written.
    CallbackLost = "callback_lost";
    /// A callback came while the group was held against OpenIM, which may have been answered before
    /// it.
    CallbackMeanwhile = "callback_meanwhile";
    /// OpenIM does not know the group.
    NotInOpenim = "not_in_openim";
    /// OpenIM does not give all of the group.
    ReadInPart = "read_in_part";
    /// OpenIM names so few of its members that somebody has to look at it before the others are taken
    /// for gone.
    TooManyRemovals = "too_many_removals";
}
