//! The callbacks that the mirror understands, one declaration each, and the other commands of OpenIM.

use std::collections::HashSet;
use std::sync::Arc;

use poem_openapi::Object;
use poem_openapi::types::Any;
use serde_json::json;
use time::OffsetDateTime;

use super::super::body::{
    self, Field, FromBody, FromField, Ignored, id, unwrapped_int32, unwrapped_text,
};
use super::super::error::{Code, Error, Side};
use super::super::json_response::json_object;

use super::{Callbacks, Declared, Operation, callback};
use crate::domain::{
    Creation, Event, GroupId, GroupProfile, HintKind, MarkReason, MemberPatch, Text, UserId, Users,
    first_members, may_be_operator,
};

/// Lists the declarations, in the order of the document.
macro_rules! declared {
    ($($name:ident),+ $(,)?) => {
        /// All declared callbacks.
        pub(in crate::http) const DECLARED: &[Declared] = &[$(Operation::<$name>::DECLARED),+];

        /// Their operations.
        pub(in crate::http) type Operations = declared!(@types $($name),+);

        /// Makes the operations.
        pub(in crate::http) fn operations(callbacks: &Arc<Callbacks>) -> Operations {
            declared!(@values callbacks $($name),+)
        }
    };
    // Pairs in pairs: poem-openapi joins at most sixteen APIs in one tuple.
    (@types $name:ident) => { Operation<$name> };
    (@types $name:ident, $($others:ident),+) => { (Operation<$name>, declared!(@types $($others),+)) };
    (@values $callbacks:ident $name:ident) => { Operation::<$name>::new($callbacks) };
    (@values $callbacks:ident $name:ident, $($others:ident),+) => {
        (Operation::<$name>::new($callbacks), declared!(@values $callbacks $($others),+))
    };
}

declared!(
    SetGroupMemberInfo,
    CreateGroup,
    JoinGroup,
    QuitGroup,
    KickGroup,
    DismissGroup,
    TransferGroupOwner,
    SetGroupInfo,
    SetGroupInfoEx,
    MembersJoin,
    MemberJoin,
    BeforeSetGroupInfo,
    BeforeSetGroupInfoEx,
    SentGroupMessage,
    PushedGroupMessage,
);

callback! {
    /// After set group member info
    ///
    /// OpenIM calls this after nickname, avatar, role or extra data of a group member were set.
    /// Only the fields that are present and not null change; an empty text is a value. An
    /// unknown member gets a row with the known values. The answer is sent when the change is committed.
    /// While the database is away, it is sent when the change is on disk; the change is written later.
    /// This holds for every callback of a change. Query strings and unknown fields are ignored.
    "/callbackAfterSetGroupMemberInfoCommand", "callbackAfterSetGroupMemberInfo",
    switch "afterSetGroupMemberInfo";

    /// callbackAfterSetGroupMemberInfoCommand: fields of one member that were set. Missing and null
    /// both mean "left as it is"; an empty text is a value.
    SetGroupMemberInfo: Stored {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("12345");
        /// The member: 1 to 1,024 bytes, any characters but U+0000.
        "userID" user_id: UserId = id("user789");
        /// Name in this group; empty: OpenIM shows the name of the user's profile.
        #[oai(nullable)]
        "nickName" nickname: Option<String> = Some("user".into());
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
    } of group_id => Event::SetMember(MemberPatch {
        user_id,
        nickname: nickname.map(Text::parse),
        face_url: face_url.map(Text::parse),
        role_level,
        ex: ex.map(Text::parse),
    })
}

/// Limit of users in a list. OpenIM takes a thousand at a time; a body has room for millions, and
/// each would be a row in memory.
const MAX_USERS: usize = 100_000;

callback! {
    /// After create group
    ///
    /// OpenIM calls this after a group was created. The profile and the first members are stored. In a
    /// known group, only unknown values are filled in.
    "/callbackAfterCreateGroupCommand", "callbackAfterCreateGroup", switch "afterCreateGroup";

    /// callbackAfterCreateGroupCommand: a group was created.
    CreateGroup: Stored {
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
        /// 0: requests to join need approval. 1: invitations need approval too. 2: nobody needs approval.
        #[oai(nullable)]
        "needVerification" need_verification: Option<i32> = Some(0);
        /// Setting: if members can see each other's profile.
        #[oai(nullable)]
        "lookMemberInfo" look_member_info: Option<i32> = Some(0);
        /// Setting: if members can ask each other to be friends.
        #[oai(nullable)]
        "applyMemberFriend" apply_member_friend: Option<i32> = Some(0);
        /// Not read.
        "notificationUpdateTime" notification_update_time: Ignored = Some(Any(json!(0)));
        /// Not read.
        "notificationUserID" notification_user_id: Ignored = Some(Any(json!("")));
        /// The first members. The first mention of each member counts. The list after the second mention of the
        /// owner is ignored: OpenIM repeats administrators and owner as ordinary members, then adds the user who
        /// called its API.
        #[oai(nullable, validator(max_items = 100000))]
        "initMemberList" init_member_list: Option<Vec<FirstMember>> = Some(vec![
            FirstMember::new("o1", 100),
            FirstMember::new("m1", 20),
            FirstMember::new("o1", 20),
            FirstMember::new("imAdmin", 20),
        ]);
    } of group_id => {
        let owner = owner_user_id.and_then(|id| UserId::parse(id).ok());
        let list = init_member_list.unwrap_or_default().into_iter();
        let list: Vec<Option<(UserId, i32)>> = list
            .map(|member| Some((UserId::parse(member.user_id).ok()?, member.role_level)))
            .collect();
        let is_incomplete = list.is_empty() || list.iter().any(Option::is_none);
        let list: Vec<(UserId, i32)> = list.into_iter().flatten().collect();
        Event::Create(Creation {
            profile: GroupProfile {
                name: group_name.map(Text::parse),
                notification: notification.map(Text::parse),
                introduction: introduction.map(Text::parse),
                face_url: face_url.map(Text::parse),
                ex: ex.map(Text::parse),
                need_verification,
                look_member_info,
                apply_member_friend,
            },
            may_be_operator: may_be_operator(&list, owner.as_ref()),
            members: first_members(list, owner.as_ref()),
            owner,
            status,
            group_type,
            created_at: create_time.and_then(time_of),
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

callback! {
    /// After join group
    ///
    /// OpenIM calls this after a user joined a group by itself, and not after invitations and approvals.
    /// `inviterUserID` is the user who joined, as an ordinary member. If other fields name the users who
    /// joined, these count.
    "/callbackAfterJoinGroupCommand", "callbackAfterJoinGroup", switch "afterJoinGroup";

    /// callbackAfterJoinGroupCommand: a user joined a group by itself.
    JoinGroup: Stored {
        /// Not read; several callbacks may share one.
        "operationID" operation_id: Ignored = Some(Any(json!("op-9")));
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read.
        "reqMessage" req_message: Ignored = Some(Any(json!("hi")));
        /// Not read: OpenIM itself does not store it.
        "joinSource" join_source: Ignored = Some(Any(json!(3)));
        /// The user who joined. OpenIM uses the field of the inviter for this user. 1 to 1,024 bytes, any characters but
        /// U+0000. Not read if
        /// `userID`, `userIDs`, `invitedUserIDs` or `memberList` names users. No version of OpenIM sends these yet.
        "inviterUserID" inviter: UserId = id("u5"), by Ok::<Field<'_>, Error>;
        hidden "userID" user by FromField::from_field;
        hidden "userIDs" users by FromField::from_field;
        hidden "invitedUserIDs" invited by FromField::from_field;
        hidden "memberList" members by user_ids;
    } of group_id => {
        // OpenIM sends null, an empty text or an empty list for what is not set.
        let user: Option<String> = user;
        let lists: [Option<Vec<String>>; 3] = [users, invited, members];
        let lists = lists.into_iter().flatten().flatten();
        let mut named = user.filter(|id| !id.is_empty()).into_iter().chain(lists).peekable();
        if named.peek().is_none() {
            Event::Join(inviter.required()?.user_id()?)
        } else {
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
            Event::JoinAll(joined)
        }
    }
}

/// Reads the users of a list of members.
fn user_ids(field: Field<'_>) -> Result<Option<Vec<String>>, Error> {
    field.optional(|list| {
        list.each(MAX_USERS, |member| {
            let [user] = member.object(["userID"])?;
            user.required()?.text()
        })
    })
}

callback! {
    /// After quit group
    ///
    /// OpenIM calls this after a member left a group by itself.
    "/callbackAfterQuitGroupCommand", "callbackAfterQuitGroup", switch "afterQuitGroup";

    /// callbackAfterQuitGroupCommand: a member left a group by itself.
    QuitGroup: Stored {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// The member: 1 to 1,024 bytes, any characters but U+0000.
        "userID" user_id: UserId = id("m1");
    } of group_id => Event::Quit(user_id)
}

callback! {
    /// After kick group
    ///
    /// OpenIM calls this after members were removed from a group. All of them leave at once.
    "/callbackAfterKickGroupCommand", "callbackAfterKickGroup", switch "afterKickGroupMember";

    /// callbackAfterKickGroupCommand: members were removed from a group.
    KickGroup: Stored {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// The removed members. A text that is no id is skipped.
        #[oai(nullable, validator(max_items = 100000))]
        "kickedUserIDs" kicked: Option<Vec<String>> = Some(vec!["m1".into(), "m2".into()]);
        /// Not read.
        "reason" reason: Ignored = Some(Any(json!("spam")));
    } of group_id => {
        let list = kicked.unwrap_or_default();
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
    /// After dismiss group
    ///
    /// OpenIM calls this after a group was dismissed. It has no current members from then on.
    "/callbackAfterDisMissGroupCommand", "callbackAfterDismissGroup", switch "afterDismissGroup";

    /// callbackAfterDisMissGroupCommand: a group was dismissed. The M is a capital.
    DismissGroup: Stored {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read.
        "ownerID" owner_id: Ignored = Some(Any(json!("o1")));
        /// Not read: a control character.
        "groupType" group_type: Ignored = Some(Any(json!("\u{2}")));
        /// Not read: it holds all members, or no member after their removal.
        "membersID" members_id: Ignored = Some(Any(json!(["o1", "m1"])));
    } of group_id => Event::Dismiss
}

callback! {
    /// After transfer group owner
    ///
    /// OpenIM calls this after a group got another owner. The old owner gets the role that the new one
    /// had.
    "/callbackAfterTransferGroupOwnerCommand", "callbackAfterTransferGroupOwner",
    switch "afterTransferGroupOwner";

    /// callbackAfterTransferGroupOwnerCommand: a group has another owner.
    TransferGroupOwner: Stored {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// The owner until now, who gets the role that the new owner had: 1 to 1,024 bytes, any
        /// characters but U+0000.
        "oldOwnerUserID" old_owner: UserId = id("o1");
        /// The owner from now on: 1 to 1,024 bytes, any characters but U+0000.
        "newOwnerUserID" new_owner: UserId = id("m1");
    } of group_id => Event::Transfer { old_owner, new_owner }
}

/// Declares a callback about a group's profile. The four have the same fields.
macro_rules! profile {
    (
        $(#[doc = $operation:literal])+
        $path:literal, $id:literal $(, switch $switch:literal)?;

        $(#[doc = $doc:literal])+
        $name:ident: $kind:ident |$profile:ident| $content:expr
    ) => {
        callback! {
            $(#[doc = $operation])+
            $path, $id $(, switch $switch)?;

            $(#[doc = $doc])+
            $name: $kind {
                /// Not read: always empty.
                "operationID" operation_id: Ignored = Some(Any(json!("")));
                /// The group: 1 to 1,024 bytes, any characters but U+0000.
                "groupID" group_id: GroupId = id("g77");
                /// Its name.
                #[oai(nullable)]
                "groupName" group_name: Option<String> = Some("Canoes".into()), by unwrapped_text;
                /// Its notice.
                #[oai(nullable)]
                "notification" notification: Option<String> = Some(String::new()), by unwrapped_text;
                /// Its introduction.
                #[oai(nullable)]
                "introduction" introduction: Option<String> = Some("On the river".into()), by unwrapped_text;
                /// Its avatar.
                #[oai(nullable)]
                "faceURL" face_url: Option<String> = Some(String::new()), by unwrapped_text;
                /// Extra data; empty is a value.
                #[oai(nullable)]
                "ex" ex: Option<String> = None, by unwrapped_text;
                /// 0: requests to join need approval. 1: invitations need approval too. 2: nobody needs approval.
                #[oai(nullable)]
                "needVerification" need_verification: Option<i32> = Some(2), by unwrapped_int32;
                /// Setting: if members can see each other's profile.
                #[oai(nullable)]
                "lookMemberInfo" look_member_info: Option<i32> = None, by unwrapped_int32;
                /// Setting: if members can ask each other to be friends.
                #[oai(nullable)]
                "applyMemberFriend" apply_member_friend: Option<i32> = None, by unwrapped_int32;
            } of group_id => {
                let $profile = ProfileEcho {
                    action_code: 0,
                    err_code: 0,
                    err_msg: String::new(),
                    err_dlt: String::new(),
                    next_code: 0,
                    group_id: group_id.as_str().to_owned(),
                    group_name,
                    notification,
                    introduction,
                    face_url,
                    ex,
                    need_verification,
                    look_member_info,
                    apply_member_friend,
                };
                $content
            }
        }
    };
}

profile! {
    /// After set group info
    ///
    /// OpenIM calls this after a group's profile was set by the older of its two ways. Only the fields
    /// that are present and not null change; an empty name, notice, introduction or avatar is no change.
    "/callbackAfterSetGroupInfoCommand", "callbackAfterSetGroupInfo", switch "afterSetGroupInfo";

    /// callbackAfterSetGroupInfoCommand: fields of a group's profile were set. Null means "left as
    /// it is". An empty name, notice, introduction or avatar means the same.
    SetGroupInfo: Stored |profile| profile.event(|text| !text.is_empty())
}

profile! {
    /// After set group info ex
    ///
    /// OpenIM calls this after a group's profile was set by the newer of its two ways. Only the fields
    /// that are present and not null change; an empty text is a value.
    "/callbackAfterSetGroupInfoExCommand", "callbackAfterSetGroupInfoEx", switch "afterSetGroupInfoEx";

    /// callbackAfterSetGroupInfoExCommand: fields of a group's profile were set. Null means "left
    /// as it is"; an empty text is a value. A value can also have the form {"value": 2}.
    SetGroupInfoEx: Stored |profile| profile.event(|_| true)
}

// OpenIM sends no callback after an invitation or an approval, so an announcement is the only sign of it. Their switch
// is not named: with it on, nobody can join a group while this service is away.

callback! {
    /// Before members join group
    ///
    /// OpenIM calls this before users become members in any way, and waits for the answer. The group is
    /// marked for a reconcile. Nothing else changes, because the users may not join after all.
    "/callbackBeforeMembersJoinGroupCommand", "callbackBeforeMembersJoinGroup";

    /// callbackBeforeMembersJoinGroupCommand: users are about to become members, in whatever way.
    MembersJoin: Announced {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read: the users may not join after all.
        "memberList" member_list: Ignored = Some(Any(json!([{"userID": "u7", "ex": ""}])));
        /// Not read.
        "groupEx" group_ex: Ignored = Some(Any(json!("")));
    } of group_id => Event::Mark(MarkReason::JoinAnnounced)
}

callback! {
    /// Before member join group
    ///
    /// OpenIM 3.7 calls this before one user becomes a member. It is handled like
    /// callbackBeforeMembersJoinGroupCommand.
    "/callbackBeforeMemberJoinGroupCommand", "callbackBeforeMemberJoinGroup";

    /// callbackBeforeMemberJoinGroupCommand: one user is about to become a member. OpenIM 3.7 sends it.
    MemberJoin: Announced {
        /// The group: 1 to 1,024 bytes, any characters but U+0000.
        "groupID" group_id: GroupId = id("g77");
        /// Not read: the user may not join after all.
        "userID" user_id: Ignored = Some(Any(json!("u7")));
        /// Not read.
        "ex" ex: Ignored = Some(Any(json!("")));
        /// Not read.
        "groupEx" group_ex: Ignored = Some(Any(json!("")));
    } of group_id => Event::Mark(MarkReason::JoinAnnounced)
}

profile! {
    /// Before set group info
    ///
    /// OpenIM calls this before a group's profile is set, waits for the answer, and stores the
    /// fields of the answer instead. It stores a missing field as empty. So the answer repeats the fields.
    "/callbackBeforeSetGroupInfoCommand", "callbackBeforeSetGroupInfo";

    /// callbackBeforeSetGroupInfoCommand: fields of a group's profile are about to be set.
    BeforeSetGroupInfo: Echoed |profile| profile
}

profile! {
    /// Before set group info ex
    ///
    /// OpenIM calls this before a group's profile is set by the newer of its two ways. It is handled like
    /// callbackBeforeSetGroupInfoCommand.
    "/callbackBeforeSetGroupInfoExCommand", "callbackBeforeSetGroupInfoEx";

    /// callbackBeforeSetGroupInfoExCommand: fields of a group's profile are about to be set. A
    /// value can also have the form {"value": 2}.
    BeforeSetGroupInfoEx: Echoed |profile| profile
}

json_object! {
    /// The fields of a callback about a profile, sent back. OpenIM stores the fields of the answer to a
    /// before-callback. It stores a missing field as empty, also the group's name.
    #[oai(example)]
    struct ProfileEcho {
        /// 0: the callback was executed.
        action_code "actionCode": i32 = 0;
        /// 0.
        err_code "errCode": i32 = 0;
        /// Empty.
        err_msg "errMsg": String = String::new();
        /// Empty.
        err_dlt "errDlt": String = String::new();
        /// 0: OpenIM continues.
        next_code "nextCode": i32 = 0;
        /// As sent.
        group_id "groupID": String = "g77".into();
        /// As sent.
        group_name "groupName" nullable: Option<String> = Some("Canoes".into());
        /// As sent.
        notification "notification" nullable: Option<String> = None;
        /// As sent.
        introduction "introduction" nullable: Option<String> = Some("On the river".into());
        /// As sent.
        face_url "faceURL" nullable: Option<String> = None;
        /// As sent.
        ex "ex" nullable: Option<String> = None;
        /// As sent.
        need_verification "needVerification" nullable: Option<i32> = Some(2);
        /// As sent.
        look_member_info "lookMemberInfo" nullable: Option<i32> = None;
        /// As sent.
        apply_member_friend "applyMemberFriend" nullable: Option<i32> = None;
    }
}

impl ProfileEcho {
    /// Event of the callback after these fields were set. `is_change` is true for a text that is a change.
    fn event(self, is_change: impl Fn(&String) -> bool) -> Event {
        let text = |value: Option<String>| value.filter(&is_change).map(Text::parse);
        Event::SetProfile(GroupProfile {
            name: text(self.group_name),
            notification: text(self.notification),
            introduction: text(self.introduction),
            face_url: text(self.face_url),
            // Nullable in both callbacks, so an empty text is a value in both.
            ex: self.ex.map(Text::parse),
            need_verification: self.need_verification,
            look_member_info: self.look_member_info,
            apply_member_friend: self.apply_member_friend,
        })
    }
}

// Messages have no parser here: `Message` reads them as they arrive.

callback! {
    /// After send group message
    ///
    /// OpenIM calls this after a message was sent into a group. After a notification (`contentType` 1501
    /// to 1520) the group is reconciled soon. Without access to OpenIM's API, the group is marked if no
    /// callback covers the notification, and the answer is sent when the mark is written. Every other
    /// message is answered at once and counted. A malformed body is no error.
    "/callbackAfterSendGroupMsgCommand", "callbackAfterSendGroupMsg";

    /// callbackAfterSendGroupMsgCommand: a message was sent into a group. Other fields are
    /// not read.
    SentGroupMessage: Sent {
        /// Id of the call that made the change. If it is empty, the header of that name counts.
        #[oai(nullable)]
        "operationID" operation_id: Option<String> = Some("op-13".into());
        /// 1501 to 1520: a notification. Anything else: an ordinary message.
        "contentType" content_type: i32 = HintKind::MemberInvited.code();
        /// Not read; empty in a notification.
        "content" content: Ignored = Some(Any(json!("")));
        /// The group.
        #[oai(nullable)]
        "groupID" group_id: Option<String> = Some("g77".into());
    }
}

callback! {
    /// Before group online push
    ///
    /// OpenIM calls this before a message is pushed to the online members of a group, and waits for the
    /// answer. It is handled like callbackAfterSendGroupMsgCommand, but the answer waits for nothing.
    "/callbackBeforeGroupOnlinePushCommand", "callbackBeforeGroupOnlinePush";

    /// callbackBeforeGroupOnlinePushCommand: a message is about to be pushed to online members.
    PushedGroupMessage: Pushed {
        /// Id of the call that made the change. If it is empty, the header of that name counts.
        #[oai(nullable)]
        "operationID" operation_id: Option<String> = Some("op-13".into());
        /// The group.
        #[oai(nullable)]
        "groupID" group_id: Option<String> = Some("g77".into());
        /// 1501 to 1520: a notification. Anything else: an ordinary message.
        "contentType" content_type: i32 = HintKind::MemberEnter.code();
        /// Not read: the change is read from OpenIM instead.
        "content" content: Ignored = Some(Any(json!("{}")));
    }
}

/// Label of every other command. A caller must not choose a label.
const OTHER: &str = "other";

/// As in OpenIM's pkg/callbackstruct/constant.go, 3.8; those with another ending are of 3.6.
const KNOWN: [&str; 43] = [
    "callbackAfterAddFriendAgreeCommand",
    "callbackAfterAddFriendCommand",
    "callbackAfterCreateGroupChatConversationsCommand",
    "callbackAfterCreateSingleChatConversationsCommand",
    "callbackAfterDeleteFriendCommand",
    "callbackAfterGroupMsgReadCommand",
    "callbackAfterImportFriendsCommand",
    "callbackAfterMsgSaveDBCommand",
    "callbackAfterRemoveBlackCommand",
    "callbackAfterSendGroupMsgCommand",
    "callbackAfterSendSingleMsgCommand",
    "callbackAfterSetFriendRemark",
    "callbackAfterSetFriendRemarkCommand",
    "callbackAfterSingleMsgReadCommand",
    "callbackAfterUpdateUserInfoCommand",
    "callbackAfterUpdateUserInfoExCommand",
    "callbackAfterUserKickOffCommand",
    "callbackAfterUserOfflineCommand",
    "callbackAfterUserOnlineCommand",
    "callbackAfterUserRegisterCommand",
    "callbackBeforeAddBlackCommand",
    "callbackBeforeAddFriendAgreeCommand",
    "callbackBeforeAddFriendCommand",
    "callbackBeforeAfterMsgCommand",
    "callbackBeforeCreateGroupChatConversationsCommand",
    "callbackBeforeCreateGroupCommand",
    "callbackBeforeCreateSingleChatConversationsCommand",
    "callbackBeforeGroupOnlinePushCommand",
    "callbackBeforeImportFriendsCommand",
    "callbackBeforeInviteJoinGroupCommand",
    "callbackBeforeJoinGroupCommand",
    "callbackBeforeMsgModifyCommand",
    "callbackBeforeOfflinePushCommand",
    "callbackBeforeOnlinePushCommand",
    "callbackBeforeSendGroupMsgCommand",
    "callbackBeforeSendSingleMsgCommand",
    "callbackBeforeSetFriendRemark",
    "callbackBeforeSetFriendRemarkCommand",
    "callbackBeforeSetGroupMemberInfoCommand",
    "callbackBeforeUpdateUserInfoCommand",
    "callbackBeforeUpdateUserInfoExCommand",
    "callbackBeforeUserRegisterCommand",
    "callbackSingleMsgRead",
];

/// Pattern of commands that are not [`KNOWN`], as a regular expression of JSON Schema.
pub(in crate::http) const PATTERN: &str = "^callback[A-Za-z0-9]+Command$";

/// Returns true if the text is a command of OpenIM, known or unknown.
pub(in crate::http) fn is_command(text: &str) -> bool {
    let middle = text
        .strip_prefix("callback")
        .and_then(|rest| rest.strip_suffix("Command"));
    let is_one = |middle: &str| {
        !middle.is_empty() && middle.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    middle.is_some_and(is_one) || KNOWN.contains(&text)
}

/// Label of a command: the command itself if it is known.
pub(in crate::http) fn label(command: &str) -> &'static str {
    let known = KNOWN.iter().find(|known| **known == command);
    known.copied().unwrap_or(OTHER)
}

/// Every label.
pub(in crate::http) fn labels() -> impl Iterator<Item = &'static str> {
    KNOWN.into_iter().chain([OTHER])
}

/// A command for examples.
pub(in crate::http) fn example() -> String {
    "callbackAfterSendSingleMsgCommand".into()
}

// OpenIM appends "/" and the command to its `url`. After a path the command is the last segment; after a query string
// it is a part of that; and a proxy may cut it off. The body always has it.

/// The command at the end of a path. A slash may follow it.
pub(in crate::http) fn command_of(path: &str) -> Option<&str> {
    let last = path.trim_end_matches('/').rsplit('/').next();
    last.filter(|last| is_command(last))
}

/// A body that is read for its command only.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Command;

impl FromBody for Command {
    const SIDE: Side = Side::Callback;
    type Parsed = String;

    fn parse(body: &str) -> Result<String, Error> {
        let [command] = body::object(body, ["callbackCommand"])?;
        let command = command.required()?.text()?;
        if is_command(&command) {
            return Ok(command);
        }
        Err(Error::new(
            Code::CommandUnknown,
            "callbackCommand: expected a command of OpenIM, such as callbackAfterQuitGroupCommand",
        ))
    }
}
