//! OpenIM's bodies exactly as sent; each turns into what it changes.

use poem_openapi::Object;
use poem_openapi::types::Example;

use super::body::FromBody;
use super::error::{Code, Door, Error};
use super::json;
use crate::domain::{MemberPatch, Text};

/// callbackAfterSetGroupMemberInfoCommand: fields of one member that were set. Missing and null
/// both mean "left as it is"; an empty text is a value.
#[derive(Clone, Debug, Object)]
#[oai(rename = "SetGroupMemberInfo", rename_all = "camelCase", example)]
pub(super) struct SetGroupMemberInfo {
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

impl SetGroupMemberInfo {
    pub(super) const COMMAND: &'static str = "callbackAfterSetGroupMemberInfoCommand";
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
    type Parsed = MemberPatch;

    fn parse(body: &str) -> Result<MemberPatch, Error> {
        let [
            command,
            group_id,
            user_id,
            nick_name,
            face_url,
            role_level,
            ex,
        ] = json::object(body, Self::FIELDS)?;
        expect_command(&command.required()?.text()?, Self::COMMAND)?;
        Ok(MemberPatch {
            group_id: group_id.required()?.group_id()?,
            user_id: user_id.required()?.user_id()?,
            nickname: nick_name.optional(|value| value.text().map(Text::parse))?,
            face_url: face_url.optional(|value| value.text().map(Text::parse))?,
            role_level: role_level.optional(|value| value.int32())?,
            ex: ex.optional(|value| value.text().map(Text::parse))?,
        })
    }
}

/// A body sent to the wrong path is one that we would misread.
fn expect_command(found: &str, expected: &'static str) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::new(
        Code::CommandMismatch,
        format!("callbackCommand: expected {expected}, as in the path"),
    ))
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
