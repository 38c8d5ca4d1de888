//! Notifications: OpenIM sends one into a group when something has happened to it. What comes here of
//! one says that something did, and of which kind; what it came to has to be asked for.

use time::OffsetDateTime;

use super::GroupId;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $code:literal;)+) => {
        /// What a notification is about; the numbers are OpenIM's content types.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum HintKind {
            $($(#[doc = $doc])+ $kind = $code,)+
        }

        impl HintKind {
            /// Every kind, in the order of the numbers.
            pub const ALL: &[HintKind] = &[$(HintKind::$kind),+];

            /// OpenIM's `contentType`.
            pub fn code(self) -> i32 {
                self as i32
            }

            /// The same as text.
            pub fn label(self) -> &'static str {
                match self { $(HintKind::$kind => stringify!($code),)+ }
            }

            /// The kind of a content type; none for an ordinary message.
            pub fn of_code(code: i64) -> Option<Self> {
                match code { $($code => Some(HintKind::$kind),)+ _ => None }
            }
        }
    };
}

// As in OpenIM's protocol/constant/constant.go.
kinds! {
    /// A group was created.
    GroupCreated = 1501;
    /// A group's profile was set.
    GroupInfoSet = 1502;
    /// Somebody asks to be let in.
    JoinGroupApplication = 1503;
    /// A member left by itself.
    MemberQuit = 1504;
    /// Somebody who asked is let in.
    GroupApplicationAccepted = 1505;
    /// Somebody who asked is not.
    GroupApplicationRejected = 1506;
    /// The group has another owner.
    GroupOwnerTransferred = 1507;
    /// Members were removed.
    MemberKicked = 1508;
    /// Members were invited, and are in. So are those who were invited and then approved.
    MemberInvited = 1509;
    /// A user has joined, by itself or approved.
    MemberEnter = 1510;
    /// The group was dismissed.
    GroupDismissed = 1511;
    /// A member was muted.
    GroupMemberMuted = 1512;
    /// A member is muted no more.
    GroupMemberCancelMuted = 1513;
    /// The group was muted.
    GroupMuted = 1514;
    /// The group is muted no more; so comes back one that was dismissed.
    GroupCancelMuted = 1515;
    /// A member's own values were set, or those of its profile.
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
    /// Whether it is about the group itself: its profile, its owner, its status.
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

/// A notification, as far as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The group.
    pub group_id: GroupId,
    /// What it is about.
    pub kind: HintKind,
    /// Of the call that made the change; the callbacks of the same change have the same, but for
    /// those of an OpenIM that runs as one process, which mixes them up.
    pub operation_id: Option<String>,
    /// When it came.
    pub received_at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_types_are_1501_to_1520() {
        let codes: Vec<i32> = HintKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes, (1501..=1520).collect::<Vec<_>>());
        for kind in HintKind::ALL {
            assert_eq!(HintKind::of_code(kind.code().into()), Some(*kind));
            assert_eq!(kind.label(), kind.code().to_string());
        }
        for ordinary in [0, 101, 1500, 1521, -1509] {
            assert_eq!(HintKind::of_code(ordinary), None);
        }
    }
}
