//! Callbacks of the model of OpenIM, in their form on the wire.

use serde_json::{Map, Value, json};

use super::openim::{ADMIN, Creation, Group, NORMAL, ORDINARY, OWNER, WORKING_GROUP};

/// A callback of OpenIM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// The last part of the path.
    pub command: String,
    pub body: String,
    /// Operation id of its request. All callbacks of the request have it. It is a header.
    pub operation_id: String,
}

impl Callback {
    pub(super) fn new(command: &str, fields: Value) -> Self {
        let mut body = Map::from_iter([("callbackCommand".to_owned(), json!(command))]);
        let Value::Object(fields) = fields else {
            panic!("{fields} is no body");
        };
        body.extend(fields);
        Self::of(command, &Value::Object(body))
    }

    pub(super) fn of(command: &str, body: &Value) -> Self {
        Self {
            command: command.to_owned(),
            body: go_json(body) + "\n",
            operation_id: String::new(),
        }
    }
}

/// JSON in the form of Go's encoder.
pub(super) fn go_json(value: &Value) -> String {
    let mut text = value.to_string();
    for (plain, escaped) in [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026")] {
        text = text.replace(plain, escaped);
    }
    text
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
