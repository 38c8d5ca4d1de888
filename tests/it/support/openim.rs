//! A small model of OpenIM: what it holds of groups, what it refuses, what it tells, and what it
//! does in silence. Values have the names that they have on the wire.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

pub const ORDINARY: i32 = 20;
pub const ADMIN: i32 = 60;
pub const OWNER: i32 = 100;

const NORMAL: i32 = 0;
const DISMISSED: i32 = 2;
const MUTED: i32 = 3;
const WORKING_GROUP: i32 = 2;
/// What needVerification is where anyone may join.
const DIRECTLY: i32 = 2;

/// Texts of a profile that the older callback can tell but not clear.
const PLAIN: [&str; 4] = ["groupName", "notification", "introduction", "faceURL"];
/// The rest of a profile.
const NULLABLE: [&str; 4] = [
    "ex",
    "needVerification",
    "lookMemberInfo",
    "applyMemberFriend",
];
const OF_MEMBER: [&str; 4] = ["nickName", "faceURL", "roleLevel", "ex"];

/// Values by their names: all of them, or those that a request sets.
pub type Values = BTreeMap<&'static str, Value>;

/// What was held of all groups, up to some moment.
#[derive(Clone, Debug, Default)]
pub struct OpenIm {
    pub groups: BTreeMap<String, Group>,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub id: String,
    pub profile: Values,
    pub status: i32,
    pub created_millis: i64,
    pub members: BTreeMap<String, Member>,
    /// Who waits for an approval.
    applicants: BTreeSet<String>,
    /// Brought back from a dismissal, and nothing was told since that proves it.
    pub is_back_unheard: bool,
    /// Dismissed at some time with its members deleted, of which no callback tells.
    pub was_emptied: bool,
}

#[derive(Clone, Debug)]
pub struct Member {
    pub values: Values,
    /// Came in silence, and was named by no callback since.
    pub is_unheard: bool,
}

/// A request, as one who may do everything sends it.
#[derive(Clone, Debug)]
pub enum Operation {
    Create(Creation),
    Invite(String),
    /// Of somebody who has asked to join.
    Approve(String),
    /// Or to ask for it, where an approval is needed.
    Join(String),
    Quit(String),
    Kick(Vec<String>),
    SetMember(String, Values),
    Transfer {
        old_owner: String,
        new_owner: String,
    },
    /// By the older call, which takes an empty text for one that is not there.
    SetProfile(Values),
    SetProfileEx(Values),
    Mute,
    Unmute,
    Dismiss {
        with_members: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Creation {
    pub profile: Values,
    pub created_millis: i64,
    pub owner: String,
    pub admins: Vec<String>,
    pub members: Vec<String>,
    /// Who sends the request, a member or not.
    pub caller: String,
}

/// OpenIM answers with an error, and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What OpenIM sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// The last part of the path.
    pub command: &'static str,
    pub body: String,
}

impl Callback {
    fn new(command: &'static str, fields: Value) -> Self {
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

impl OpenIm {
    /// Does what is asked of a group, and gives what is told of it.
    pub fn apply(&mut self, group: &str, operation: &Operation) -> Result<Vec<Callback>, Refused> {
        if let Operation::Create(creation) = operation {
            require(!self.groups.contains_key(group))?;
            let made = Group::new(group, creation);
            let told = made.creation(creation);
            self.groups.insert(group.to_owned(), made);
            return Ok(vec![told]);
        }
        let group = self.groups.get_mut(group).ok_or(Refused)?;
        Ok(group.apply(operation)?.into_iter().collect())
    }
}

impl Group {
    fn new(id: &str, creation: &Creation) -> Self {
        let ordinary = creation.members.iter().map(|user| (user, ORDINARY));
        let admins = creation.admins.iter().map(|user| (user, ADMIN));
        let all = ordinary.chain(admins).chain([(&creation.owner, OWNER)]);
        Self {
            id: id.to_owned(),
            profile: creation.profile.clone(),
            status: NORMAL,
            created_millis: creation.created_millis,
            members: all
                .map(|(user, role)| (user.clone(), Member::new(role)))
                .collect(),
            applicants: BTreeSet::new(),
            is_back_unheard: false,
            was_emptied: false,
        }
    }

    pub fn owner(&self) -> Option<&String> {
        let mut members = self.members.iter();
        let owner = members.find(|(_, member)| member.role() == OWNER);
        owner.map(|(user, _)| user)
    }

    pub fn is_dismissed(&self) -> bool {
        self.status == DISMISSED
    }

    fn apply(&mut self, operation: &Operation) -> Result<Option<Callback>, Refused> {
        match operation {
            Operation::Create(_) => Err(Refused),
            Operation::Invite(user) => self.invite(user).map(|()| None),
            Operation::Approve(user) => self.approve(user).map(|()| None),
            Operation::Join(user) => self.join(user),
            Operation::Quit(user) => self.quit(user).map(Some),
            Operation::Kick(users) => self.kick(users).map(Some),
            Operation::SetMember(user, values) => self.set_member(user, values).map(Some),
            Operation::Transfer {
                old_owner,
                new_owner,
            } => self.transfer(old_owner, new_owner).map(Some),
            Operation::SetProfile(values) => self.set_profile(values),
            Operation::SetProfileEx(values) => self.set_profile_ex(values),
            Operation::Mute => Ok(self.set_status(MUTED)),
            Operation::Unmute => Ok(self.set_status(NORMAL)),
            Operation::Dismiss { with_members } => self.dismiss(*with_members).map(Some),
        }
    }

    /// The owner and the admins as they are, then everybody as an ordinary member, the owner last,
    /// and then the caller who is none.
    fn creation(&self, creation: &Creation) -> Callback {
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

    fn invite(&mut self, user: &str) -> Result<(), Refused> {
        require(!self.is_dismissed() && !self.members.contains_key(user))?;
        self.let_in_silently(user);
        Ok(())
    }

    /// Also where the group is dismissed.
    fn approve(&mut self, user: &str) -> Result<(), Refused> {
        require(self.applicants.remove(user))?;
        if !self.members.contains_key(user) {
            self.let_in_silently(user);
        }
        Ok(())
    }

    fn let_in_silently(&mut self, user: &str) {
        let mut member = Member::new(ORDINARY);
        member.is_unheard = true;
        self.members.insert(user.to_owned(), member);
    }

    fn join(&mut self, user: &str) -> Result<Option<Callback>, Refused> {
        require(!self.is_dismissed() && !self.members.contains_key(user))?;
        if self.profile["needVerification"] != json!(DIRECTLY) {
            self.applicants.insert(user.to_owned());
            return Ok(None);
        }
        self.members.insert(user.to_owned(), Member::new(ORDINARY));
        self.is_back_unheard = false;
        Ok(Some(Callback::new(
            "callbackAfterJoinGroupCommand",
            json!({
                "operationID": "imAdmin",
                "groupID": self.id,
                "reqMessage": "",
                "joinSource": 3,
                // Who joins, in spite of the name.
                "inviterUserID": user,
            }),
        )))
    }

    fn quit(&mut self, user: &String) -> Result<Callback, Refused> {
        self.remove([user])?;
        let fields = json!({"groupID": self.id, "userID": user});
        Ok(Callback::new("callbackAfterQuitGroupCommand", fields))
    }

    fn kick(&mut self, users: &[String]) -> Result<Callback, Refused> {
        self.remove(users)?;
        let fields = json!({"groupID": self.id, "kickedUserIDs": users, "reason": ""});
        Ok(Callback::new("callbackAfterKickGroupCommand", fields))
    }

    /// All or none, and never an owner; also where the group is dismissed.
    fn remove<'a>(
        &mut self,
        users: impl IntoIterator<Item = &'a String> + Clone,
    ) -> Result<(), Refused> {
        let may_go = |user| self.members.get(user).is_some_and(|m| m.role() != OWNER);
        require(users.clone().into_iter().all(may_go))?;
        for user in users {
            self.members.remove(user);
        }
        Ok(())
    }

    /// Also where the group is dismissed, and of an owner too.
    fn set_member(&mut self, user: &str, values: &Values) -> Result<Callback, Refused> {
        let role = values.get("roleLevel");
        require(role.is_none_or(|role| [json!(ORDINARY), json!(ADMIN)].contains(role)))?;
        let member = self.members.get_mut(user).ok_or(Refused)?;
        member.values.extend(values.clone());
        member.is_unheard = false;
        let mut fields = json!({"groupID": self.id, "userID": user});
        for name in OF_MEMBER {
            fields[name] = values.get(name).cloned().unwrap_or_default();
        }
        let command = "callbackAfterSetGroupMemberInfoCommand";
        Ok(Callback::new(command, fields))
    }

    /// Whether the old owner is one is not looked at, where an administrator asks.
    fn transfer(&mut self, old_owner: &str, new_owner: &str) -> Result<Callback, Refused> {
        require(!self.is_dismissed() && old_owner != new_owner)?;
        require(self.members.contains_key(old_owner))?;
        let new = self.members.get_mut(new_owner).ok_or(Refused)?;
        let previous = new.role();
        for (user, role) in [(old_owner, previous), (new_owner, OWNER)] {
            let member = self.members.get_mut(user).ok_or(Refused)?;
            member.values.insert("roleLevel", json!(role));
            member.is_unheard = false;
        }
        self.is_back_unheard = false;
        Ok(Callback::new(
            "callbackAfterTransferGroupOwnerCommand",
            json!({
                "groupID": self.id,
                "oldOwnerUserID": old_owner,
                "newOwnerUserID": new_owner,
            }),
        ))
    }

    fn set_profile(&mut self, values: &Values) -> Result<Option<Callback>, Refused> {
        let mut values = values.clone();
        values.retain(|name, value| !(PLAIN.contains(name) && *value == json!("")));
        let command = "callbackAfterSetGroupInfoCommand";
        self.change_profile(command, &values, &json!(""))
    }

    fn set_profile_ex(&mut self, values: &Values) -> Result<Option<Callback>, Refused> {
        if values.get("groupName") == Some(&json!("")) {
            // A success, of nothing.
            return Ok(None);
        }
        let command = "callbackAfterSetGroupInfoExCommand";
        self.change_profile(command, values, &Value::Null)
    }

    fn change_profile(
        &mut self,
        command: &'static str,
        values: &Values,
        unchanged_plain: &Value,
    ) -> Result<Option<Callback>, Refused> {
        require(!self.is_dismissed())?;
        if values.is_empty() {
            return Ok(None);
        }
        self.profile.extend(values.clone());
        self.is_back_unheard = false;
        let mut fields = json!({"operationID": "", "groupID": self.id});
        for name in PLAIN {
            fields[name] = values.get(name).unwrap_or(unchanged_plain).clone();
        }
        for name in NULLABLE {
            fields[name] = values.get(name).cloned().unwrap_or_default();
        }
        Ok(Some(Callback::new(command, fields)))
    }

    /// Does not ask whether the group is dismissed, so it brings it back; and is told to nobody.
    fn set_status(&mut self, status: i32) -> Option<Callback> {
        self.is_back_unheard |= self.is_dismissed();
        self.status = status;
        None
    }

    /// With its members it can be dismissed again. They are deleted before they are listed.
    fn dismiss(&mut self, with_members: bool) -> Result<Callback, Refused> {
        require(with_members || !self.is_dismissed())?;
        let owner = self.owner().cloned().ok_or(Refused)?;
        self.status = DISMISSED;
        self.is_back_unheard = false;
        if with_members {
            self.members.clear();
            self.was_emptied = true;
        }
        let members: Vec<&String> = self.members.keys().collect();
        Ok(Callback::new(
            "callbackAfterDisMissGroupCommand",
            json!({
                "groupID": self.id,
                "ownerID": owner,
                // The character with that code.
                "groupType": "\u{2}",
                "membersID": if with_members { Value::Null } else { json!(members) },
            }),
        ))
    }
}

impl Member {
    /// A new record, whatever there was before.
    fn new(role: i32) -> Self {
        let mut values: Values = OF_MEMBER.map(|name| (name, json!(""))).into();
        values.insert("roleLevel", json!(role));
        Self {
            values,
            is_unheard: false,
        }
    }

    pub fn role(&self) -> i32 {
        let role = self.values["roleLevel"].as_i64().unwrap_or_default();
        i32::try_from(role).unwrap_or_default()
    }
}

fn require(condition: bool) -> Result<(), Refused> {
    if condition { Ok(()) } else { Err(Refused) }
}
