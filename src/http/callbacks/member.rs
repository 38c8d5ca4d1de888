//! A member's own values.

use poem_openapi::Object;
use poem_openapi::types::Example;

use super::super::body::FromBody;
use super::super::error::{Door, Error};
use super::super::json;
use super::{Callback, ParsedCallback, expect_command};
use crate::domain::{Event, MemberPatch, Text};

/// callbackAfterSetGroupMemberInfoCommand: fields of one member that were set. Missing and null
/// both mean "left as it is"; an empty text is a value.
#[derive(Clone, Debug, Object)]
#[oai(rename = "SetGroupMemberInfo", rename_all = "camelCase", example)]
pub(in super::super) struct SetGroupMemberInfo {
    /// Always callbackAfterSetGroupMemberInfoCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// The member: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "userID", validator(min_length = 1, max_length = 1024))]
    user_id: String,
    /// Name in this group; empty: OpenIM shows the name of the user's profile.
    #[oai(nullable)]
    nick_name: Option<String>,
    /// Avatar in this group; empty: OpenIM shows the avatar of the user's profile.
    #[oai(rename = "faceURL", nullable)]
    face_url: Option<String>,
    /// 100 owner, 60 admin, 20 ordinary member. Any number is stored: OpenIM's before-hooks can
    /// put one there.
    #[oai(nullable)]
    role_level: Option<i32>,
    /// Extra data.
    #[oai(nullable)]
    ex: Option<String>,
}

impl Callback for SetGroupMemberInfo {
    const COMMAND: &'static str = "callbackAfterSetGroupMemberInfoCommand";
}

impl SetGroupMemberInfo {
    const FIELDS: [&'static str; 7] = [
        "callbackCommand",
        "groupID",
        "userID",
        "nickName",
        "faceURL",
        "roleLevel",
        "ex",
    ];
}

impl FromBody for SetGroupMemberInfo {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [
            command,
            group_id,
            user_id,
            nick_name,
            face_url,
            role_level,
            ex,
        ] = json::object(body, Self::FIELDS)?;
        expect_command(command, Self::COMMAND)?;
        Ok(ParsedCallback {
            group_id: group_id.required()?.group_id()?,
            event: Event::SetMember(MemberPatch {
                user_id: user_id.required()?.user_id()?,
                nickname: nick_name.optional(|value| value.text().map(Text::parse))?,
                face_url: face_url.optional(|value| value.text().map(Text::parse))?,
                role_level: role_level.optional(|value| value.int32())?,
                ex: ex.optional(|value| value.text().map(Text::parse))?,
            }),
        })
    }
}

impl Example for SetGroupMemberInfo {
    /// The sample of OpenIM's documentation.
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "12345".into(),
            user_id: "user789".into(),
            nick_name: Some("user".into()),
            face_url: Some("http://example.com/path/to/face/image.png".into()),
            role_level: Some(20),
            ex: Some("Extra data".into()),
        }
    }
}
