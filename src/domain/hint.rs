//! Hints. OpenIM sends a notification message into a group after something happened to the group. A hint tells that it
//! happened and of which kind it is. The result must be read from OpenIM.

use time::OffsetDateTime;

use super::GroupId;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $code:literal;)+) => {
        /// Kind of a notification. The numbers are OpenIM's content types.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum HintKind {
            $($(#[doc = $doc])+ $kind = $code,)+
        }

        impl HintKind {
            /// All kinds, in the order of the numbers.
            pub const ALL: &[HintKind] = &[$(HintKind::$kind),+];

            /// Returns OpenIM's `contentType`.
            pub fn code(self) -> i32 {
                self as i32
            }

            /// Returns the content type as text.
            pub fn label(self) -> &'static str {
                match self { $(HintKind::$kind => stringify!($code),)+ }
            }

            /// Finds the kind of a content type. `None`: an ordinary message.
            pub fn of_code(code: i64) -> Option<Self> {
                match code { $($code => Some(HintKind::$kind),)+ _ => None }
            }
        }
    };
}

// From OpenIM's protocol/constant/constant.go.
kinds! {
    /// A group was created.
    GroupCreated = 1501;
    /// A group's profile was set.
    GroupInfoSet = 1502;
    /// A user asks to join.
    JoinGroupApplication = 1503;
    /// A member quit.
    MemberQuit = 1504;
    /// A request to join was accepted.
    GroupApplicationAccepted = 1505;
    /// A request to join was rejected.
    GroupApplicationRejected = 1506;
    /// The group has another owner.
    GroupOwnerTransferred = 1507;
    /// Members were removed.
    MemberKicked = 1508;
    /// Users joined by invitation, with or without an approval.
    MemberInvited = 1509;
    /// A user joined without an invitation, with or without an approval.
    MemberEnter = 1510;
    /// The group was dismissed.
    GroupDismissed = 1511;
    /// A member was muted.
    GroupMemberMuted = 1512;
    /// A member was unmuted.
    GroupMemberCancelMuted = 1513;
    /// The group was muted.
    GroupMuted = 1514;
    /// The group was unmuted. This also brings a dismissed group back.
    GroupCancelMuted = 1515;
    /// A member's values were set, in the group or in the user's profile.
    GroupMemberInfoSet = 1516;
    /// A member became an admin.
    GroupMemberSetToAdmin = 1517;
    /// An admin became an ordinary member.
    GroupMemberSetToOrdinaryUser = 1518;
    /// The group's notice was set.
    GroupInfoSetAnnouncement = 1519;
    /// The group's name was set.
    GroupInfoSetName = 1520;
}

impl HintKind {
    /// True if the hint is about the group itself: its profile, its owner, its status.
    pub fn is_of_group(self) -> bool {
        matches!(
            self,
            Self::GroupCreated
                | Self::GroupInfoSet
                | Self::GroupOwnerTransferred
                | Self::GroupDismissed
                | Self::GroupMuted
                | Self::GroupCancelMuted
                | Self::GroupInfoSetAnnouncement
                | Self::GroupInfoSetName
        )
    }
}

/// A notification, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The group.
    pub group_id: GroupId,
    /// The kind.
    pub kind: HintKind,
    /// Id of the API call that made the change. The callbacks of the change carry the same id, except from an OpenIM
    /// that runs as one process: it mixes the ids up.
    pub operation_id: Option<String>,
    /// Time when it came.
    pub received_at: OffsetDateTime,
}
