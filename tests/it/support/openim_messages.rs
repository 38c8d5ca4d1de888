//! The messages by which OpenIM tells a group's members what has changed, as they come to one who
//! has its callbacks about messages.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::openim::{ADMIN, ADMIN_ID, OpenIm, Operation};
use super::openim_callbacks::{Callback, go_json};
use super::openim_release::Release;

const AFTER_SEND: &str = "callbackAfterSendGroupMsgCommand";
const BEFORE_PUSH: &str = "callbackBeforeGroupOnlinePushCommand";

/// Kinds of changes, by OpenIM's numbers.
mod types {
    pub(super) const CREATED: u32 = 1501;
    pub(super) const PROFILE: u32 = 1502;
    pub(super) const QUIT: u32 = 1504;
    pub(super) const TRANSFERRED: u32 = 1507;
    pub(super) const KICKED: u32 = 1508;
    pub(super) const INVITED: u32 = 1509;
    pub(super) const ENTERED: u32 = 1510;
    pub(super) const DISMISSED: u32 = 1511;
    pub(super) const MEMBER_MUTED: u32 = 1512;
    pub(super) const MEMBER_UNMUTED: u32 = 1513;
    pub(super) const MUTED: u32 = 1514;
    pub(super) const UNMUTED: u32 = 1515;
    pub(super) const MEMBER: u32 = 1516;
    pub(super) const MADE_ADMIN: u32 = 1517;
    pub(super) const MADE_ORDINARY: u32 = 1518;
    pub(super) const ANNOUNCEMENT: u32 = 1519;
    pub(super) const NAME: u32 = 1520;
}

impl Callback {
    /// True if it reports a message, and not a change.
    pub fn is_message(&self) -> bool {
        [AFTER_SEND, BEFORE_PUSH].contains(&self.command.as_str())
    }

    /// The number of what a message says.
    pub fn content_type(&self) -> Option<u64> {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["contentType"].as_u64()
    }
}

/// A request, and those whom it names as they were before it.
pub(super) struct Request<'a> {
    group: &'a str,
    operation: &'a Operation,
    operation_id: String,
    before: BTreeMap<&'a str, Value>,
    /// Users of these who were members, shown or not.
    members_before: BTreeSet<&'a str>,
}

impl Operation {
    /// Users whom it names.
    fn named(&self) -> Vec<&str> {
        match self {
            Self::Invite(user)
            | Self::Approve(user)
            | Self::Join(user)
            | Self::Quit(user)
            | Self::SetMember(user, _)
            | Self::MuteMember(user, _)
            | Self::UnmuteMember(user) => vec![user],
            Self::InviteAll(users) | Self::Kick(users) => {
                users.iter().map(String::as_str).collect()
            }
            Self::Transfer {
                old_owner,
                new_owner,
            } => vec![new_owner, old_owner],
            _ => vec![],
        }
    }
}

impl<'a> Request<'a> {
    pub(super) fn new(openim: &OpenIm, group: &'a str, operation: &'a Operation) -> Self {
        let named = operation.named().into_iter();
        let rows = named.clone();
        let rows = rows.filter_map(|user| Some((user, openim.shown_member(group, user)?)));
        let there = openim.groups.get(group);
        let is_member = |user: &&str| there.is_some_and(|group| group.members.contains_key(*user));
        Self {
            group,
            operation,
            operation_id: openim.operation_id(),
            before: rows.collect(),
            members_before: named.filter(is_member).collect(),
        }
    }

    /// Sent callbacks, one or two of each message.
    pub(super) fn messages(&self, openim: &mut OpenIm) -> Vec<Vec<Callback>> {
        let types = self.types(openim);
        let types = types.into_iter();
        let messages = types.map(|content_type| self.message(openim, content_type));
        messages.collect()
    }

    /// Types of the messages after the operation.
    fn types(&self, openim: &OpenIm) -> Vec<u32> {
        let was_member = |user: &str| self.members_before.contains(user);
        let is_member = |user: &str| openim.groups[self.group].members.contains_key(user);
        let when = |condition: bool, content_type| {
            if condition {
                vec![content_type]
            } else {
                vec![]
            }
        };
        match self.operation {
            Operation::Create(_) => vec![types::CREATED],
            Operation::Invite(_) => vec![types::INVITED],
            // It failed half-way.
            Operation::InviteAll(_) => when(self.members_before.is_empty(), types::INVITED),
            Operation::Approve(user) => when(!was_member(user), types::ENTERED),
            // Not where it only asks for an approval.
            Operation::Join(user) => when(is_member(user), types::ENTERED),
            Operation::Quit(_) => vec![types::QUIT],
            Operation::Kick(_) => vec![types::KICKED],
            Operation::SetMember(_, values) => {
                let role = values.get("roleLevel").map(|role| {
                    if *role == json!(ADMIN) {
                        types::MADE_ADMIN
                    } else {
                        types::MADE_ORDINARY
                    }
                });
                let others = values.keys().any(|name| *name != "roleLevel");
                let others = others.then_some(types::MEMBER);
                role.into_iter().chain(others).collect()
            }
            Operation::Transfer { new_owner, .. } => {
                let row = self.before.get(new_owner.as_str());
                let until = row.and_then(|row| row["muteEndTime"].as_i64());
                let was_muted = until > Some(openim.now_millis);
                let unmuted = was_muted.then_some(types::MEMBER_UNMUTED);
                unmuted.into_iter().chain([types::TRANSFERRED]).collect()
            }
            Operation::SetProfile(values) => {
                // The older call takes an empty text for one that is not there.
                let is_set = |name: &str| values.get(name).is_some_and(|value| *value != json!(""));
                let others = values.iter().any(|(name, value)| match *name {
                    "notification" | "groupName" => false,
                    "introduction" | "faceURL" => *value != json!(""),
                    _ => true,
                });
                of_profile(is_set("notification"), is_set("groupName"), others)
            }
            Operation::SetProfileEx(values) if values.get("groupName") == Some(&json!("")) => {
                vec![]
            }
            Operation::SetProfileEx(values) => {
                let is_set = |name: &str| values.contains_key(name);
                let is_other = |name: &&str| !["notification", "groupName"].contains(name);
                let others = values.keys().any(is_other);
                of_profile(is_set("notification"), is_set("groupName"), others)
            }
            Operation::Mute => vec![types::MUTED],
            Operation::Unmute => vec![types::UNMUTED],
            Operation::MuteMember(..) => vec![types::MEMBER_MUTED],
            Operation::UnmuteMember(_) => vec![types::MEMBER_UNMUTED],
            Operation::Dismiss { with_members } => when(!with_members, types::DISMISSED),
        }
    }

    fn message(&self, openim: &mut OpenIm, content_type: u32) -> Vec<Callback> {
        let millis = openim.now_millis;
        let group = openim.groups.get_mut(self.group).unwrap();
        group.messages += 1;
        let seq = group.messages;
        let sender = match self.operation {
            Operation::Join(user) => user,
            _ => ADMIN_ID,
        };
        let id = format!("{millis:016x}{seq:016x}");
        let mut message = match openim.release {
            Release::Main => {
                let content = go_json(&self.content(openim, content_type));
                let body = |seq| {
                    json!({
                        "callbackCommand": BEFORE_PUSH,
                        "operationID": self.operation_id,
                        "platformID": 0,
                        "platform": "",
                        "clientMsgID": id,
                        "sendID": sender,
                        "groupID": self.group,
                        "contentType": content_type,
                        "sessionType": 3,
                        "atUserIDList": null,
                        "content": content,
                        "seq": seq,
                    })
                };
                // As a message that is kept, and as a notification. Of members only the latter.
                let is_kept = !matches!(
                    content_type,
                    types::PROFILE | types::MEMBER | types::MADE_ADMIN | types::MADE_ORDINARY
                );
                let seqs = is_kept.then_some(seq).into_iter().chain([0]);
                seqs.map(|seq| Callback::of(BEFORE_PUSH, &body(seq)))
                    .collect()
            }
            Release::Patch15 | Release::Patch16 => {
                let is_named = matches!(content_type, types::PROFILE | types::ANNOUNCEMENT);
                let body = json!({
                    "sendID": sender,
                    "callbackCommand": AFTER_SEND,
                    "serverMsgID": id,
                    "clientMsgID": id,
                    "operationID": self.operation_id,
                    "senderPlatformID": 0,
                    "senderNickname": if is_named { sender } else { "" },
                    "sessionType": 3,
                    "msgFrom": 200,
                    "contentType": content_type,
                    "status": 0,
                    "sendTime": millis + 2,
                    "createTime": millis + 1,
                    "content": "",
                    "seq": 0,
                    "atUserList": null,
                    "faceURL": "",
                    "ex": "",
                    "groupID": self.group,
                });
                vec![Callback::of(AFTER_SEND, &body)]
            }
        };
        for callback in &mut message {
            callback.operation_id.clone_from(&self.operation_id);
        }
        message
    }

    /// Whole objects. Those of mutes and profiles were read in the source, the others seen.
    fn content(&self, openim: &OpenIm, content_type: u32) -> Value {
        let mut content = json!({"group": openim.shown_group(self.group)});
        let mut add = |name: &str, value: Value| content[name] = value;
        let named = self.operation.named().into_iter();
        let after = |user: &str| openim.shown_member(self.group, user).unwrap_or_default();
        let now: Vec<Value> = named.clone().map(after).collect();
        let before = named.map(|user| self.before.get(user).cloned().unwrap_or_default());
        let before: Vec<Value> = before.collect();
        let who = match content_type {
            types::ENTERED | types::QUIT => None,
            _ => Some(administrator(self.group)),
        };
        if let Some(who) = who {
            add("opUser", who);
        }
        match content_type {
            types::CREATED => add("memberList", json!(openim.shown_members(self.group))),
            types::ENTERED => add("entrantUser", json!(now.first())),
            types::QUIT => add("quitUser", json!(before.first())),
            types::KICKED => add("kickedUserList", json!(before)),
            types::INVITED => add("invitedUserList", json!(now)),
            types::TRANSFERRED => {
                add("newGroupOwner", json!(now.first()));
                add("oldGroupOwner", json!(""));
            }
            _ => {}
        }
        add("operationTime", json!(0));
        match content_type {
            types::CREATED => {
                let owner = openim.groups[self.group].owner();
                add("groupOwnerUser", json!(owner.map(|owner| after(owner))));
            }
            types::TRANSFERRED => add("oldGroupOwnerInfo", json!(now.last())),
            types::MEMBER | types::MADE_ADMIN | types::MADE_ORDINARY => {
                add("changedUser", json!(now.first()));
            }
            types::MEMBER_MUTED | types::MEMBER_UNMUTED => add("mutedUser", json!(now.first())),
            _ => {}
        }
        if content_type != types::DISMISSED {
            add("groupMemberVersion", json!(0));
            add("groupMemberVersionID", json!(""));
        }
        match content_type {
            types::INVITED => add("inviterUser", administrator(self.group)),
            types::MEMBER | types::MADE_ADMIN | types::MADE_ORDINARY => {
                add("groupSortVersion", json!(0));
            }
            _ => {}
        }
        content
    }
}

/// An announcement and a name have their own.
fn of_profile(announcement: bool, name: bool, others: bool) -> Vec<u32> {
    let all = [
        (announcement, types::ANNOUNCEMENT),
        (name, types::NAME),
        (others, types::PROFILE),
    ];
    let told = all.into_iter().filter(|(is_told, _)| *is_told);
    told.map(|(_, content_type)| content_type).collect()
}

/// The administrator in the form of a member, which it is not.
fn administrator(group: &str) -> Value {
    json!({
        "groupID": group,
        "userID": ADMIN_ID,
        "roleLevel": ADMIN,
        "joinTime": 0,
        "nickname": "superAdmin",
        "faceURL": "",
        "appMangerLevel": 2,
        "joinSource": 0,
        "operatorUserID": "",
        "ex": "",
        "muteEndTime": 0,
        "inviterUserID": "",
    })
}
