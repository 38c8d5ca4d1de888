//! Somebody is about to come in. Of invitations and approvals OpenIM tells nothing afterwards, so
//! this is the only sign of them.

use poem_openapi::Object;
use poem_openapi::types::{Any, Example};
use serde_json::json;

use super::super::body::FromBody;
use super::super::error::{Door, Error};
use super::super::json;
use super::{Callback, Ignored, ParsedCallback, expect_command};
use crate::domain::{CheckReason, Event};

/// callbackBeforeMembersJoinGroupCommand: users are about to become members, in whatever way.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct MembersJoin {
    /// Always callbackBeforeMembersJoinGroupCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Not looked at: whether they come in is not decided yet.
    member_list: Ignored,
    /// Not looked at.
    group_ex: Ignored,
}

/// callbackBeforeMemberJoinGroupCommand: the same of one user, as OpenIM 3.7 says it.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct MemberJoin {
    /// Always callbackBeforeMemberJoinGroupCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Not looked at: whether the user comes in is not decided yet.
    #[oai(rename = "userID")]
    user_id: Ignored,
    /// Not looked at.
    ex: Ignored,
    /// Not looked at.
    group_ex: Ignored,
}

impl Callback for MembersJoin {
    const COMMAND: &'static str = "callbackBeforeMembersJoinGroupCommand";
}

impl Callback for MemberJoin {
    const COMMAND: &'static str = "callbackBeforeMemberJoinGroupCommand";
}

impl FromBody for MembersJoin {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        parse(body, Self::COMMAND)
    }
}

impl FromBody for MemberJoin {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        parse(body, Self::COMMAND)
    }
}

fn parse(body: &str, command: &'static str) -> Result<ParsedCallback, Error> {
    let [found, group_id] = json::object(body, ["callbackCommand", "groupID"])?;
    expect_command(found, command)?;
    Ok(ParsedCallback {
        group_id: group_id.required()?.group_id()?,
        event: Event::WantCheck(CheckReason::JoinAnnounced),
    })
}

impl Example for MembersJoin {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            member_list: Some(Any(json!([{"userID": "u7", "ex": ""}]))),
            group_ex: Some(Any(json!(""))),
        }
    }
}

impl Example for MemberJoin {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            user_id: Some(Any(json!("u7"))),
            ex: Some(Any(json!(""))),
            group_ex: Some(Any(json!(""))),
        }
    }
}
