//! Callbacks about groups that are created, dismissed or transferred, and members who join or leave.

use std::collections::HashSet;

use poem_openapi::Object;
use poem_openapi::types::{Any, Example};
use serde_json::json;
use time::OffsetDateTime;

use super::super::body::FromBody;
use super::super::body::{self, Field};
use super::super::error::{Error, Side};
use super::declare::{FromField, callback, id};
use super::{Callback, Ignored, ParsedCallback, expect_command};
use crate::domain::{
    Creation, Event, GroupId, GroupProfile, Text, UserId, Users, first_members, may_be_operator,
};

/// Limit of users in a list. OpenIM takes a thousand at a time; a body has room for millions, and
/// each would be a row in memory.
const MAX_USERS: usize = 100_000;

callback! {
    /// callbackAfterCreateGroupCommand: a group was created.
    CreateGroup = "callbackAfterCreateGroupCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Its name.
        #[oai(nullable)]
        "groupName" group_name: Option<String> = Some("Kayaks".into());
        /// Its notice.
        #[oai(nullable)]
        "notification" notification: Option<String> = Some(String::new());
        /// Its introduction.
        #[oai(nullable)]
        "introduction" introduction: Option<String> = Some(String::new());
        /// Its avatar.
        #[oai(nullable)]
        "faceURL" face_url: Option<String> = Some(String::new());
        /// The owner.
        #[oai(nullable)]
        "ownerUserID" owner_user_id: Option<String> = Some("o1".into());
        /// Time at which OpenIM made it, in milliseconds since 1970.
        #[oai(nullable)]
        "createTime" create_time: Option<i64> = Some(1_751_450_000_123);
        /// Not read: counts the caller too, who may be no member.
        "memberCount" member_count: Ignored = Some(Any(json!(3)));
        /// Extra data.
        #[oai(nullable)]
        "ex" ex: Option<String> = Some(String::new());
        /// 0 normal, 1 banned, 2 dismissed, 3 muted.
        #[oai(nullable)]
        "status" status: Option<i32> = Some(0);
        /// Not read: often empty.
        "creatorUserID" creator_user_id: Ignored = Some(Any(json!("")));
        /// 2 for every group of today's OpenIM.
        #[oai(nullable)]
        "groupType" group_type: Option<i32> = Some(2);
        /// 0: a user who asks to join waits for approval; 1: an invited user too; 2: anyone joins.
        #[oai(nullable)]
        "needVerification" need_verification: Option<i32> = Some(0);
        /// Setting: may members look at each other's profile.
        #[oai(nullable)]
        "lookMemberInfo" look_member_info: Option<i32> = Some(0);
        /// Setting: may members ask each other to be friends.
        #[oai(nullable)]
        "applyMemberFriend" apply_member_friend: Option<i32> = Some(0);
        /// Not read.
        "notificationUpdateTime" notification_update_time: Ignored = Some(Any(json!(0)));
        /// Not read.
        "notificationUserID" notification_user_id: Ignored = Some(Any(json!("")));
        /// The first members. The first mention of each counts, and nothing after the second mention of
        /// the owner: OpenIM repeats admins and owner as ordinary members, then adds the caller of its API.
        #[oai(nullable, validator(max_items = 100000))]
        "initMemberList" init_member_list: Option<Vec<FirstMember>> = Some(vec![
            FirstMember::new("o1", 100),
            FirstMember::new("m1", 20),
            FirstMember::new("o1", 20),
            FirstMember::new("imAdmin", 20),
        ]);
    } => |body| {
        let owner = body.owner_user_id.and_then(|id| UserId::parse(id).ok());
        let list = body.init_member_list.unwrap_or_default().into_iter();
        let list: Vec<Option<(UserId, i32)>> = list
            .map(|member| Some((UserId::parse(member.user_id).ok()?, member.role_level)))
            .collect();
        let is_incomplete = list.is_empty() || list.iter().any(Option::is_none);
        let list: Vec<(UserId, i32)> = list.into_iter().flatten().collect();
        Event::Create(Creation {
            profile: GroupProfile {
                name: body.group_name.map(Text::parse),
                notification: body.notification.map(Text::parse),
                introduction: body.introduction.map(Text::parse),
                face_url: body.face_url.map(Text::parse),
                ex: body.ex.map(Text::parse),
                need_verification: body.need_verification,
                look_member_info: body.look_member_info,
                apply_member_friend: body.apply_member_friend,
            },
            may_be_operator: may_be_operator(&list, owner.as_ref()),
            members: first_members(list, owner.as_ref()),
            owner,
            status: body.status,
            group_type: body.group_type,
            created_at: body.create_time.and_then(time_of),
            is_incomplete,
        })
    }
}

/// A first member of a group.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase")]
struct FirstMember {
    /// The member.
    #[oai(rename = "userID")]
    user_id: String,
    /// 100 owner, 60 admin, 20 ordinary member.
    role_level: i32,
}

impl FirstMember {
    fn new(user_id: &str, role_level: i32) -> Self {
        Self {
            user_id: user_id.into(),
            role_level,
        }
    }
}

impl FromField for Option<Vec<FirstMember>> {
    fn from_field(field: Field<'_>) -> Result<Self, Error> {
        field.optional(|list| {
            list.each(MAX_USERS, |member| {
                let [user_id, role_level] = member.object(["userID", "roleLevel"])?;
                Ok(FirstMember {
                    user_id: user_id.required()?.text()?,
                    role_level: role_level.required()?.int32()?,
                })
            })
        })
    }
}

impl FromField for Option<Vec<String>> {
    fn from_field(field: Field<'_>) -> Result<Self, Error> {
        field.optional(|list| list.each(MAX_USERS, |user| user.text()))
    }
}

/// Time of OpenIM's milliseconds. `None` if they are not positive or outside the calendar.
fn time_of(millis: i64) -> Option<OffsetDateTime> {
    let nanos = i128::from(millis) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    (millis > 0).then_some(time)
}

/// callbackAfterJoinGroupCommand: a user joined a group by itself.
#[derive(Clone, Debug, Object)]
#[oai(rename_all = "camelCase", example)]
pub(in super::super) struct JoinGroup {
    /// Always callbackAfterJoinGroupCommand.
    callback_command: String,
    /// Not read; several callbacks may share one.
    #[oai(rename = "operationID")]
    operation_id: Ignored,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// Not read.
    req_message: Ignored,
    /// Not read: OpenIM itself does not store it.
    join_source: Ignored,
    /// The user who joined, in spite of the name: 1 to 1,024 bytes, any characters but U+0000. Not read if
    /// `userID`, `userIDs`, `invitedUserIDs` or `memberList` names users. No version of OpenIM sends these yet.
    #[oai(rename = "inviterUserID", validator(min_length = 1, max_length = 1024))]
    inviter_user_id: String,
}

impl Callback for JoinGroup {
    const COMMAND: &'static str = "callbackAfterJoinGroupCommand";
}

impl FromBody for JoinGroup {
    const SIDE: Side = Side::Callback;
    type Parsed = ParsedCallback;

    fn parse(body: &str) -> Result<ParsedCallback, Error> {
        let [command, group_id, inviter, user, users, invited, members] = body::object(
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
        let mut named: Vec<String> = Vec::new();
        named.extend(
            user.optional(|user| user.text())?
                .filter(|id| !id.is_empty()),
        );
        for list in [users, invited] {
            let list = list.optional(|list| list.each(MAX_USERS, |user| user.text()))?;
            named.extend(list.unwrap_or_default());
        }
        let members = members.optional(|list| {
            list.each(MAX_USERS, |member| {
                let [user] = member.object(["userID"])?;
                user.required()?.text()
            })
        })?;
        named.extend(members.unwrap_or_default());
        if named.is_empty() {
            let event = Event::Join(inviter.required()?.user_id()?);
            return Ok(ParsedCallback { group_id, event });
        }
        let mut joined = Users {
            user_ids: Vec::new(),
            is_incomplete: false,
        };
        let mut seen = HashSet::new();
        for id in named {
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

callback! {
    /// callbackAfterQuitGroupCommand: a member left a group by itself.
    QuitGroup = "callbackAfterQuitGroupCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// The member: 1 to 1,024 bytes, any characters but U+0000.
        "userID" user_id: UserId = id("m1");
    } => |body| Event::Quit(body.user_id)
}

callback! {
    /// callbackAfterKickGroupCommand: members were removed from a group.
    KickGroup = "callbackAfterKickGroupCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// The removed members. A text that is no id is skipped.
        #[oai(nullable, validator(max_items = 100000))]
        "kickedUserIDs" kicked_user_ids: Option<Vec<String>> = Some(vec!["m1".into(), "m2".into()]);
        /// Not read.
        "reason" reason: Ignored = Some(Any(json!("spam")));
    } => |body| {
        let list = body.kicked_user_ids.unwrap_or_default();
        let count = list.len();
        let users = list.into_iter().filter_map(|id| UserId::parse(id).ok());
        let user_ids: Vec<UserId> = users.collect();
        Event::Kick(Users {
            is_incomplete: count == 0 || user_ids.len() < count,
            user_ids,
        })
    }
}

callback! {
    /// callbackAfterDisMissGroupCommand: a group was dismissed. The M is a capital.
    DismissGroup = "callbackAfterDisMissGroupCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read.
        "ownerID" owner_id: Ignored = Some(Any(json!("o1")));
        /// Not read: a control character.
        "groupType" group_type: Ignored = Some(Any(json!("\u{2}")));
        /// Not read: all members, or none if they were removed before.
        "membersID" members_id: Ignored = Some(Any(json!(["o1", "m1"])));
    } => |body| Event::Dismiss
}

callback! {
    /// callbackAfterTransferGroupOwnerCommand: a group has another owner.
    TransferGroupOwner = "callbackAfterTransferGroupOwnerCommand" {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// The owner until now, who gets the role that the new owner had: 1 to 1,024 bytes, any
        /// characters but U+0000.
        "oldOwnerUserID" old_owner_user_id: UserId = id("o1");
        /// The owner from now on: 1 to 1,024 bytes, any characters but U+0000.
        "newOwnerUserID" new_owner_user_id: UserId = id("m1");
    } => |body| Event::Transfer {
        old_owner: body.old_owner_user_id,
        new_owner: body.new_owner_user_id,
    }
}
