//! Groups come and go, and so do their members.

use std::collections::HashSet;

use poem_openapi::Object;
use poem_openapi::types::{Any, Example};
use serde_json::json;
use time::OffsetDateTime;

use super::super::body::FromBody;
use super::super::error::{Door, Error};
use super::super::json::{self, Field};
use super::{Callback, Ignored, ParsedCallback, expect_command};
use crate::domain::{
    Creation, Event, Profile, Text, UserId, Users, first_members, may_be_operator,
};

/// Most users in a list. OpenIM takes a thousand at a time; a body has room for millions, each of
/// which would be a row in memory.
const MOST_USERS: usize = 100_000;

/// callbackAfterCreateGroupCommand: a group was created.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct CreateGroup {
    /// Always callbackAfterCreateGroupCommand.
    callback_command: String,
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
    /// Who owns it.
    #[oai(rename = "ownerUserID", nullable)]
    owner_user_id: Option<String>,
    /// When OpenIM made it, in milliseconds since 1970.
    #[oai(nullable)]
    create_time: Option<i64>,
    /// Not looked at: counts the caller too, who may be no member.
    member_count: Ignored,
    /// Extra data.
    #[oai(nullable)]
    ex: Option<String>,
    /// 0 normal, 1 banned, 2 dismissed, 3 muted.
    #[oai(nullable)]
    status: Option<i32>,
    /// Not looked at: often empty.
    #[oai(rename = "creatorUserID")]
    creator_user_id: Ignored,
    /// 2 for every group of today's OpenIM.
    #[oai(nullable)]
    group_type: Option<i32>,
    /// 0: who asks waits for approval; 1: who is invited too; 2: anyone joins.
    #[oai(nullable)]
    need_verification: Option<i32>,
    /// Whether members may look at each other's profile.
    #[oai(nullable)]
    look_member_info: Option<i32>,
    /// Whether members may ask each other to be friends.
    #[oai(nullable)]
    apply_member_friend: Option<i32>,
    /// Not looked at.
    notification_update_time: Ignored,
    /// Not looked at.
    #[oai(rename = "notificationUserID")]
    notification_user_id: Ignored,
    /// The first members: the first mention of each counts, and nothing after the owner's second,
    /// for OpenIM repeats admins and owner as ordinary members and then adds whoever called its API.
    #[oai(nullable, validator(max_items = 100000))]
    init_member_list: Option<Vec<FirstMember>>,
}

/// One of the first members of a group.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase")]
struct FirstMember {
    /// The member.
    #[oai(rename = "userID")]
    user_id: String,
    /// 100 owner, 60 admin, 20 ordinary member.
    role_level: i32,
}

impl Callback for CreateGroup {
    const COMMAND: &'static str = "callbackAfterCreateGroupCommand";
}

impl FromBody for CreateGroup {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [
            command,
            group_id,
            name,
            notification,
            introduction,
            face_url,
            owner,
            create_time,
            ex,
            status,
            group_type,
            need_verification,
            look_member_info,
            apply_member_friend,
            members,
        ] = json::object(
            body,
            [
                "callbackCommand",
                "groupID",
                "groupName",
                "notification",
                "introduction",
                "faceURL",
                "ownerUserID",
                "createTime",
                "ex",
                "status",
                "groupType",
                "needVerification",
                "lookMemberInfo",
                "applyMemberFriend",
                "initMemberList",
            ],
        )?;
        expect_command(command, Self::COMMAND)?;
        let text = |field: Field<'_>| field.optional(|value| value.text().map(Text::parse));
        let int = |field: Field<'_>| field.optional(|value| value.int32());
        let group_id = group_id.required()?.group_id()?;
        let owner = owner.optional(|value| value.text())?;
        let owner = owner.and_then(|id| UserId::parse(id).ok());
        let list = members.optional(|list| {
            list.each(MOST_USERS, |member| {
                let [user, role_level] = member.object(["userID", "roleLevel"])?;
                let user = user.required()?.text()?;
                let role_level = role_level.required()?.int32()?;
                Ok(UserId::parse(user).ok().map(|user| (user, role_level)))
            })
        })?;
        let list = list.unwrap_or_default();
        let is_incomplete = list.is_empty() || list.iter().any(Option::is_none);
        let list: Vec<(UserId, i32)> = list.into_iter().flatten().collect();
        let event = Event::Create(Creation {
            profile: Profile {
                name: text(name)?,
                notification: text(notification)?,
                introduction: text(introduction)?,
                face_url: text(face_url)?,
                ex: text(ex)?,
                need_verification: int(need_verification)?,
                look_member_info: int(look_member_info)?,
                apply_member_friend: int(apply_member_friend)?,
            },
            may_be_operator: may_be_operator(&list, owner.as_ref()),
            members: first_members(list, owner.as_ref()),
            owner,
            status: int(status)?,
            group_type: int(group_type)?,
            created_at: create_time
                .optional(|value| value.int64())?
                .and_then(time_of),
            is_incomplete,
        });
        Ok(ParsedCallback { group_id, event })
    }
}

/// OpenIM's milliseconds; nothing for what is no time of this age, 0 among it.
fn time_of(millis: i64) -> Option<OffsetDateTime> {
    let nanos = i128::from(millis) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    (millis > 0).then_some(time)
}

impl Example for CreateGroup {
    fn example() -> Self {
        let member = |user_id: &str, role_level| FirstMember {
            user_id: user_id.into(),
            role_level,
        };
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            group_name: Some("Kayaks".into()),
            notification: Some(String::new()),
            introduction: Some(String::new()),
            face_url: Some(String::new()),
            owner_user_id: Some("o1".into()),
            create_time: Some(1_751_450_000_123),
            member_count: Some(Any(json!(3))),
            ex: Some(String::new()),
            status: Some(0),
            creator_user_id: Some(Any(json!(""))),
            group_type: Some(2),
            need_verification: Some(0),
            look_member_info: Some(0),
            apply_member_friend: Some(0),
            notification_update_time: Some(Any(json!(0))),
            notification_user_id: Some(Any(json!(""))),
            init_member_list: Some(vec![
                member("o1", 100),
                member("m1", 20),
                member("o1", 20),
                member("imAdmin", 20),
            ]),
        }
    }
}

/// callbackAfterJoinGroupCommand: a user joined a group by itself.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct JoinGroup {
    /// Always callbackAfterJoinGroupCommand.
    callback_command: String,
    /// Not looked at; several callbacks may share one.
    #[oai(rename = "operationID")]
    operation_id: Ignored,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Not looked at.
    req_message: Ignored,
    /// Not looked at: OpenIM itself does not store it.
    join_source: Ignored,
    /// Who joined, in spite of the name: 1 to 1,024 bytes, any characters but U+0000. Not looked at where
    /// `userID`, `userIDs`, `invitedUserIDs` or `memberList` tell who joined, which no OpenIM does yet.
    #[oai(rename = "inviterUserID", validator(min_length = 1, max_length = 1024))]
    inviter_user_id: String,
}

impl Callback for JoinGroup {
    const COMMAND: &'static str = "callbackAfterJoinGroupCommand";
}

impl FromBody for JoinGroup {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [command, group_id, inviter, user, users, invited, members] = json::object(
            body,
            [
                "callbackCommand",
                "groupID",
                "inviterUserID",
                "userID",
                "userIDs",
                "invitedUserIDs",
                "memberList",
            ],
        )?;
        expect_command(command, Self::COMMAND)?;
        let group_id = group_id.required()?.group_id()?;
        // OpenIM sends null, an empty text or an empty list for what is not set.
        let mut told: Vec<String> = Vec::new();
        told.extend(
            user.optional(|user| user.text())?
                .filter(|id| !id.is_empty()),
        );
        for list in [users, invited] {
            let list = list.optional(|list| list.each(MOST_USERS, |user| user.text()))?;
            told.extend(list.unwrap_or_default());
        }
        let members = members.optional(|list| {
            list.each(MOST_USERS, |member| {
                let [user] = member.object(["userID"])?;
                user.required()?.text()
            })
        })?;
        told.extend(members.unwrap_or_default());
        if told.is_empty() {
            let event = Event::Join(inviter.required()?.user_id()?);
            return Ok(ParsedCallback { group_id, event });
        }
        let mut joined = Users {
            user_ids: Vec::new(),
            is_incomplete: false,
        };
        let mut seen = HashSet::new();
        for id in told {
            match UserId::parse(id) {
                Ok(user) if seen.insert(user.clone()) => joined.user_ids.push(user),
                Ok(_again) => {}
                Err(_no_id) => joined.is_incomplete = true,
            }
        }
        let event = Event::JoinAll(joined);
        Ok(ParsedCallback { group_id, event })
    }
}

impl Example for JoinGroup {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            operation_id: Some(Any(json!("op-9"))),
            group_id: "g77".into(),
            req_message: Some(Any(json!("hi"))),
            join_source: Some(Any(json!(3))),
            inviter_user_id: "u5".into(),
        }
    }
}

/// callbackAfterQuitGroupCommand: a member left a group by itself.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct QuitGroup {
    /// Always callbackAfterQuitGroupCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// The member: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "userID", validator(min_length = 1, max_length = 1024))]
    user_id: String,
}

impl Callback for QuitGroup {
    const COMMAND: &'static str = "callbackAfterQuitGroupCommand";
}

impl FromBody for QuitGroup {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [command, group_id, user] =
            json::object(body, ["callbackCommand", "groupID", "userID"])?;
        expect_command(command, Self::COMMAND)?;
        Ok(ParsedCallback {
            group_id: group_id.required()?.group_id()?,
            event: Event::Quit(user.required()?.user_id()?),
        })
    }
}

impl Example for QuitGroup {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            user_id: "m1".into(),
        }
    }
}

/// callbackAfterKickGroupCommand: members were removed from a group.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct KickGroup {
    /// Always callbackAfterKickGroupCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Those removed. What is no id is passed over.
    #[oai(rename = "kickedUserIDs", nullable, validator(max_items = 100000))]
    kicked_user_ids: Option<Vec<String>>,
    /// Not looked at.
    reason: Ignored,
}

impl Callback for KickGroup {
    const COMMAND: &'static str = "callbackAfterKickGroupCommand";
}

impl FromBody for KickGroup {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [command, group_id, users] =
            json::object(body, ["callbackCommand", "groupID", "kickedUserIDs"])?;
        expect_command(command, Self::COMMAND)?;
        let group_id = group_id.required()?.group_id()?;
        let list = users.optional(|users| {
            users.each(MOST_USERS, |user| Ok(UserId::parse(user.text()?).ok()))
        })?;
        let list = list.unwrap_or_default();
        let is_incomplete = list.is_empty() || list.iter().any(Option::is_none);
        let event = Event::Kick(Users {
            user_ids: list.into_iter().flatten().collect(),
            is_incomplete,
        });
        Ok(ParsedCallback { group_id, event })
    }
}

impl Example for KickGroup {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            kicked_user_ids: Some(vec!["m1".into(), "m2".into()]),
            reason: Some(Any(json!("spam"))),
        }
    }
}

/// callbackAfterDisMissGroupCommand: a group was dismissed.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct DismissGroup {
    /// Always callbackAfterDisMissGroupCommand, with a capital M.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Not looked at.
    #[oai(rename = "ownerID")]
    owner_id: Ignored,
    /// Not looked at: a control character.
    group_type: Ignored,
    /// Not looked at: all members, or none where they were removed before.
    #[oai(rename = "membersID")]
    members_id: Ignored,
}

impl Callback for DismissGroup {
    const COMMAND: &'static str = "callbackAfterDisMissGroupCommand";
}

impl FromBody for DismissGroup {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [command, group_id] = json::object(body, ["callbackCommand", "groupID"])?;
        expect_command(command, Self::COMMAND)?;
        Ok(ParsedCallback {
            group_id: group_id.required()?.group_id()?,
            event: Event::Dismiss,
        })
    }
}

impl Example for DismissGroup {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            owner_id: Some(Any(json!("o1"))),
            group_type: Some(Any(json!("\u{2}"))),
            members_id: Some(Any(json!(["o1", "m1"]))),
        }
    }
}

/// callbackAfterTransferGroupOwnerCommand: a group has another owner.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct TransferGroupOwner {
    /// Always callbackAfterTransferGroupOwnerCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Who has been the owner, and gets the role that the new one had: 1 to 1,024 bytes, any
    /// characters but U+0000.
    #[oai(
        rename = "oldOwnerUserID",
        validator(min_length = 1, max_length = 1024)
    )]
    old_owner_user_id: String,
    /// Who is the owner now: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(
        rename = "newOwnerUserID",
        validator(min_length = 1, max_length = 1024)
    )]
    new_owner_user_id: String,
}

impl Callback for TransferGroupOwner {
    const COMMAND: &'static str = "callbackAfterTransferGroupOwnerCommand";
}

impl FromBody for TransferGroupOwner {
    const DOOR: Door = Door::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [command, group_id, old_owner, new_owner] = json::object(
            body,
            [
                "callbackCommand",
                "groupID",
                "oldOwnerUserID",
                "newOwnerUserID",
            ],
        )?;
        expect_command(command, Self::COMMAND)?;
        Ok(ParsedCallback {
            group_id: group_id.required()?.group_id()?,
            event: Event::Transfer {
                old_owner: old_owner.required()?.user_id()?,
                new_owner: new_owner.required()?.user_id()?,
            },
        })
    }
}

impl Example for TransferGroupOwner {
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "g77".into(),
            old_owner_user_id: "o1".into(),
            new_owner_user_id: "m1".into(),
        }
    }
}
