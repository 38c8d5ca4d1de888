//! Callbacks about a group's profile, after and before it is set.

use poem_openapi::Object;
use poem_openapi::types::{Any, Example};
use serde::Serialize;
use serde_json::json;

use super::super::body::FromBody;
use super::super::body::{self, Field};
use super::super::error::{Error, Side};
use super::{Callback, Ignored, ParsedCallback, expect_command};
use crate::domain::{Event, GroupProfile, Text};

/// A callback about a profile. The four have the same fields.
macro_rules! profile {
    ($(#[doc = $doc:literal])+ $name:ident = $command:literal) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, Object)]
        #[oai(rename_all = "camelCase", example)]
        pub(in super::super) struct $name {
            /// Equal to the path.
            callback_command: String,
            /// Not read: always empty.
            #[oai(rename = "operationID")]
            operation_id: Ignored,
            /// The group: 1 to 1,024 bytes, any characters but U+0000.
            #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
            group_id: String,
            /// Its name.
            #[oai(nullable)]
            group_name: Option<String>,
            /// Its notice.
            #[oai(nullable)]
            notification: Option<String>,
            /// Its introduction.
            #[oai(nullable)]
            introduction: Option<String>,
            /// Its avatar.
            #[oai(rename = "faceURL", nullable)]
            face_url: Option<String>,
            /// Extra data; empty is a value.
            #[oai(nullable)]
            ex: Option<String>,
            /// 0: a user who asks to join waits for approval; 1: an invited user too; 2: anyone joins.
            #[oai(nullable)]
            need_verification: Option<i32>,
            /// Setting: may members look at each other's profile.
            #[oai(nullable)]
            look_member_info: Option<i32>,
            /// Setting: may members ask each other to be friends.
            #[oai(nullable)]
            apply_member_friend: Option<i32>,
        }

        impl $name {
            const COMMAND: &'static str = $command;
        }

        impl Example for $name {
            fn example() -> Self {
                Self {
                    callback_command: Self::COMMAND.into(),
                    operation_id: Some(Any(json!(""))),
                    group_id: "g77".into(),
                    group_name: Some("Canoes".into()),
                    notification: Some(String::new()),
                    introduction: Some("On the river".into()),
                    face_url: Some(String::new()),
                    ex: None,
                    need_verification: Some(2),
                    look_member_info: None,
                    apply_member_friend: None,
                }
            }
        }
    };
}

profile! {
    /// callbackAfterSetGroupInfoCommand: fields of a group's profile were set. Null means "left as
    /// it is"; of the name, the notice, the introduction and the avatar so does an empty text.
    SetGroupInfo = "callbackAfterSetGroupInfoCommand"
}
profile! {
    /// callbackAfterSetGroupInfoExCommand: fields of a group's profile were set. Null means "left
    /// as it is"; an empty text is a value. A value may stand in an object: {"value": 2}.
    SetGroupInfoEx = "callbackAfterSetGroupInfoExCommand"
}
profile! {
    /// callbackBeforeSetGroupInfoCommand: fields of a group's profile are about to be set.
    BeforeSetGroupInfo = "callbackBeforeSetGroupInfoCommand"
}
profile! {
    /// callbackBeforeSetGroupInfoExCommand: fields of a group's profile are about to be set. A
    /// value may stand in an object: {"value": 2}.
    BeforeSetGroupInfoEx = "callbackBeforeSetGroupInfoExCommand"
}

/// The fields of a callback about a profile, sent back. OpenIM stores the fields of the answer to a
/// before-callback. It stores a missing field as empty, also the group's name.
#[derive(Clone, Debug, Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct ProfileEcho {
    /// 0: the callback was executed.
    action_code: i32,
    /// 0.
    err_code: i32,
    /// Empty.
    err_msg: String,
    /// Empty.
    err_dlt: String,
    /// 0: OpenIM goes on.
    next_code: i32,
    /// As sent.
    #[oai(rename = "groupID")]
    #[serde(rename = "groupID")]
    group_id: String,
    /// As sent.
    #[oai(nullable)]
    group_name: Option<String>,
    /// As sent.
    #[oai(nullable)]
    notification: Option<String>,
    /// As sent.
    #[oai(nullable)]
    introduction: Option<String>,
    /// As sent.
    #[oai(rename = "faceURL", nullable)]
    #[serde(rename = "faceURL")]
    face_url: Option<String>,
    /// As sent.
    #[oai(nullable)]
    ex: Option<String>,
    /// As sent.
    #[oai(nullable)]
    need_verification: Option<i32>,
    /// As sent.
    #[oai(nullable)]
    look_member_info: Option<i32>,
    /// As sent.
    #[oai(nullable)]
    apply_member_friend: Option<i32>,
}

impl ProfileEcho {
    fn parse(body: &str, command: &'static str) -> Result<Self, Error> {
        let [
            found,
            group_id,
            group_name,
            notification,
            introduction,
            face_url,
            ex,
            need_verification,
            look_member_info,
            apply_member_friend,
        ] = body::object(
            body,
            [
                "callbackCommand",
                "groupID",
                "groupName",
                "notification",
                "introduction",
                "faceURL",
                "ex",
                "needVerification",
                "lookMemberInfo",
                "applyMemberFriend",
            ],
        )?;
        expect_command(found, command)?;
        Ok(Self {
            action_code: 0,
            err_code: 0,
            err_msg: String::new(),
            err_dlt: String::new(),
            next_code: 0,
            group_id: group_id.required()?.group_id()?.as_str().to_owned(),
            group_name: text(group_name)?,
            notification: text(notification)?,
            introduction: text(introduction)?,
            face_url: text(face_url)?,
            ex: text(ex)?,
            need_verification: int(need_verification)?,
            look_member_info: int(look_member_info)?,
            apply_member_friend: int(apply_member_friend)?,
        })
    }

    /// Event of the callback after these fields were set. `is_change` is true for a text that is a change.
    fn told(self, is_change: impl Fn(&String) -> bool) -> Result<ParsedCallback, Error> {
        let text = |value: Option<String>| value.filter(&is_change).map(Text::parse);
        let group_id = crate::domain::GroupId::parse(self.group_id);
        Ok(ParsedCallback {
            group_id: group_id.map_err(|error| Error::id("groupID", error))?,
            event: Event::SetProfile(GroupProfile {
                name: text(self.group_name),
                notification: text(self.notification),
                introduction: text(self.introduction),
                face_url: text(self.face_url),
                // Nullable in both callbacks, so an empty text is a value in both.
                ex: self.ex.map(Text::parse),
                need_verification: self.need_verification,
                look_member_info: self.look_member_info,
                apply_member_friend: self.apply_member_friend,
            }),
        })
    }
}

fn text(field: Field<'_>) -> Result<Option<String>, Error> {
    field.optional(|value| value.unwrapped()?.text())
}

fn int(field: Field<'_>) -> Result<Option<i32>, Error> {
    field.optional(|value| value.unwrapped()?.int32())
}

impl Callback for SetGroupInfo {
    const COMMAND: &'static str = Self::COMMAND;
}

impl FromBody for SetGroupInfo {
    const SIDE: Side = Side::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        ProfileEcho::parse(body, Self::COMMAND)?.told(|value| !value.is_empty())
    }
}

impl Callback for SetGroupInfoEx {
    const COMMAND: &'static str = Self::COMMAND;
}

impl FromBody for SetGroupInfoEx {
    const SIDE: Side = Side::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        ProfileEcho::parse(body, Self::COMMAND)?.told(|_| true)
    }
}

impl FromBody for BeforeSetGroupInfo {
    const SIDE: Side = Side::Callback;
    type Parsed = ProfileEcho;

    fn parse(body: &str) -> Result<ProfileEcho, Error> {
        ProfileEcho::parse(body, Self::COMMAND)
    }
}

impl FromBody for BeforeSetGroupInfoEx {
    const SIDE: Side = Side::Callback;
    type Parsed = ProfileEcho;

    fn parse(body: &str) -> Result<ProfileEcho, Error> {
        ProfileEcho::parse(body, Self::COMMAND)
    }
}

impl Example for ProfileEcho {
    fn example() -> Self {
        Self {
            action_code: 0,
            err_code: 0,
            err_msg: String::new(),
            err_dlt: String::new(),
            next_code: 0,
            group_id: "g77".into(),
            group_name: Some("Canoes".into()),
            notification: None,
            introduction: Some("On the river".into()),
            face_url: None,
            ex: None,
            need_verification: Some(2),
            look_member_info: None,
            apply_member_friend: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::json_response::assert_written_as_documented;
    use super::ProfileEcho;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<ProfileEcho>();
    }
}
