//! Announcements of joins. OpenIM sends no callback after an invitation or an approval, so an
//! announcement is the only sign of it.

use poem_openapi::types::Any;
use serde_json::json;

use super::Ignored;
use super::declare::{callback, id};
use crate::domain::{Event, GroupId, MarkReason};

callback! {
    /// callbackBeforeMembersJoinGroupCommand: users are about to become members, in whatever way.
    MembersJoin = "callbackBeforeMembersJoinGroupCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read: it is not decided yet that they join.
        "memberList" member_list: Ignored = Some(Any(json!([{"userID": "u7", "ex": ""}])));
        /// Not read.
        "groupEx" group_ex: Ignored = Some(Any(json!("")));
    } => |body| Event::Mark(MarkReason::JoinAnnounced)
}

callback! {
    /// callbackBeforeMemberJoinGroupCommand: one user is about to become a member. OpenIM 3.7 sends it.
    MemberJoin = "callbackBeforeMemberJoinGroupCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read: it is not decided yet that the user joins.
        "userID" user_id: Ignored = Some(Any(json!("u7")));
        /// Not read.
        "ex" ex: Ignored = Some(Any(json!("")));
        /// Not read.
        "groupEx" group_ex: Ignored = Some(Any(json!("")));
    } => |body| Event::Mark(MarkReason::JoinAnnounced)
}
