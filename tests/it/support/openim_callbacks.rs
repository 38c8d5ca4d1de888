//! What the model of OpenIM tells of what it did, as it is written on the wire.

use serde_json::{Map, Value, json};

use super::openim::{ADMIN, Creation, Group, NORMAL, ORDINARY, OWNER, WORKING_GROUP};

/// What OpenIM sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// The last part of the path.
    pub command: &'static str,
    pub body: String,
}

impl Callback {
    pub(super) fn new(command: &'static str, fields: Value) -> Self {
        let mut body = Map::from_iter([("callbackCommand".to_owned(), json!(command))]);
        let Value::Object(fields) = fields else {
            panic!("{fields} is no body");
        };
        body.extend(fields);
        // As Go writes JSON.
        let mut text = Value::Object(body).to_string();
        for (plain, escaped) in [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026")] {
            text = text.replace(plain, escaped);
        }
        Self {
            command,
            body: text + "\n",
        }
    }
}

impl Group {
    /// The owner and the admins as they are, then everybody as an ordinary member, the owner last,
    /// and then the caller who is none.
    pub(super) fn creation(&self, creation: &Creation) -> Callback {
        let Creation {
            created_millis,
            owner,
            admins,
            members,
            caller,
            ..
        } = creation;
        let mut everybody: Vec<&String> = members.iter().chain(admins).chain([owner]).collect();
        if !everybody.contains(&caller) {
            everybody.push(caller);
        }
        let role_of = |user, role| json!({"userID": user, "roleLevel": role});
        let mut list = vec![role_of(owner, OWNER)];
        list.extend(admins.iter().map(|user| role_of(user, ADMIN)));
        list.extend(everybody.iter().map(|user| role_of(user, ORDINARY)));
        let profile = |name| &self.profile[name];
        Callback::new(
            "callbackAfterCreateGroupCommand",
            json!({
                "groupID": self.id,
                "groupName": profile("groupName"),
                "notification": profile("notification"),
                "introduction": profile("introduction"),
                "faceURL": profile("faceURL"),
                "ownerUserID": owner,
                "createTime": created_millis,
                "memberCount": everybody.len(),
                "ex": profile("ex"),
                "status": NORMAL,
                "creatorUserID": "",
                "groupType": WORKING_GROUP,
                "needVerification": profile("needVerification"),
                "lookMemberInfo": profile("lookMemberInfo"),
                "applyMemberFriend": profile("applyMemberFriend"),
                "notificationUpdateTime": 0,
                "notificationUserID": "",
                "initMemberList": list,
            }),
        )
    }
}
