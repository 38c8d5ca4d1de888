//! A member of a group, and what a callback can change of one.

use super::{GroupId, Text, UserId};

/// Role level of an ordinary member; 60 is an admin and 100 the owner. OpenIM's before-hooks can
/// put any number in its place, so a role level is an `i32` and nothing is refused.
pub const ORDINARY: i32 = 20;

/// What set-member-info says of one member. `None` leaves a field as it is; an empty text is a
/// value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPatch {
    /// The group.
    pub group_id: GroupId,
    /// The member.
    pub user_id: UserId,
    /// Name in this group; empty means that OpenIM shows the name of the user's profile.
    pub nickname: Option<Text>,
    /// Avatar in this group; empty as for the nickname.
    pub face_url: Option<Text>,
    /// See [`ORDINARY`].
    pub role_level: Option<i32>,
    /// Extra data, opaque to OpenIM and to us.
    pub ex: Option<Text>,
}
