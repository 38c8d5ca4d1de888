//! The values of a member.

use super::declare::{callback, id};
use crate::domain::{Event, GroupId, MemberPatch, Text, UserId};

callback! {
    /// callbackAfterSetGroupMemberInfoCommand: fields of one member that were set. Missing and null
    /// both mean "left as it is"; an empty text is a value.
    SetGroupMemberInfo = "callbackAfterSetGroupMemberInfoCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("12345");
        /// The member: 1 to 1,024 bytes, any characters but U+0000.
        "userID" user_id: UserId = id("user789");
        /// Name in this group; empty: OpenIM shows the name of the user's profile.
        #[oai(nullable)]
        "nickName" nick_name: Option<String> = Some("user".into());
        /// Avatar in this group; empty: OpenIM shows the avatar of the user's profile.
        #[oai(nullable)]
        "faceURL" face_url: Option<String> = Some("http://example.com/path/to/face/image.png".into());
        /// 100 owner, 60 admin, 20 ordinary member. Any number is stored: OpenIM's before-hooks can
        /// put one there.
        #[oai(nullable)]
        "roleLevel" role_level: Option<i32> = Some(20);
        /// Extra data.
        #[oai(nullable)]
        "ex" ex: Option<String> = Some("Extra data".into());
    } => |body| Event::SetMember(MemberPatch {
        user_id: body.user_id,
        nickname: body.nick_name.map(Text::parse),
        face_url: body.face_url.map(Text::parse),
        role_level: body.role_level,
        ex: body.ex.map(Text::parse),
    })
}
