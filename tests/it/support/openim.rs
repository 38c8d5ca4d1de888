//! A small model of OpenIM: what it holds of groups, what it refuses, what it tells, and what it
//! does in silence. Values have the names that they have on the wire.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::openim_cache::Cache;
use super::openim_callbacks::Callback;
use super::openim_messages::Request;
use super::openim_order::{Told, in_order};
use super::openim_release::Release;
use super::openim_versions::{Change, Versions};
use super::random::Random;

pub const ORDINARY: i32 = 20;
pub const ADMIN: i32 = 60;
pub const OWNER: i32 = 100;

/// The administrator, a member of no group.
pub const ADMIN_ID: &str = "imAdmin";

pub(super) const NORMAL: i32 = 0;
const DISMISSED: i32 = 2;
const MUTED: i32 = 3;
pub(super) const WORKING_GROUP: i32 = 2;
/// Ways of a join.
const BY_INVITATION: i32 = 2;
const BY_SEARCH: i32 = 3;
/// Value of needVerification if anyone may join.
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

/// Number of the random sequence for the times of callbacks.
const ORDER: u64 = 0x0dde7;
/// First value of the clock.
const START_MILLIS: i64 = 1_760_000_000_000;

/// Values by their names: all of them, or those that a request sets.
pub type Values = BTreeMap<&'static str, Value>;

/// State of all groups at some moment.
#[derive(Clone, Debug)]
pub struct OpenIm {
    pub groups: BTreeMap<String, Group>,
    /// The profiles of users; of whom there is none, it is empty.
    pub users: BTreeMap<String, Profile>,
    /// The clock. What is done takes a millisecond.
    pub now_millis: i64,
    /// True if the changes of a group have its profile too if only members have changed.
    pub tells_group_with_members: bool,
    pub release: Release,
    /// True if the service that dismisses a dismissed group a second time, with its members, is away.
    pub push_is_away: bool,
    /// The largest answer of a service behind the API, in bytes, where it is not the release's.
    pub largest_answer: Option<usize>,
    /// Groups that nobody knows and whose ids were asked for, whereby OpenIM has made a version of
    /// each: a fault of who asks.
    pub versions_of_nothing: Vec<String>,
    /// Number of operations, for unique ids.
    done: u64,
}

/// Profile of a user, shown for a member without a name and a face in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub nickname: String,
    pub face_url: String,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub id: String,
    pub profile: Values,
    pub status: i32,
    pub created_millis: i64,
    pub members: BTreeMap<String, Member>,
    /// Versions: the changes, with their times.
    pub versions: Versions,
    /// Members who are there and not shown.
    pub(super) cache: Cache,
    /// Users who wait for an approval.
    applicants: BTreeSet<String>,
    /// Brought back from a dismissal, and nothing was told since that proves it.
    pub is_back_unheard: bool,
    /// Reported number of members, if it is wrong.
    pub(super) stale_count: Option<u64>,
    /// Number of its messages.
    pub(super) messages: u64,
}

#[derive(Clone, Debug)]
pub struct Member {
    pub values: Values,
    /// Came in silence, and was named by no callback since.
    pub is_unheard: bool,
    pub join_millis: i64,
    pub join_source: i32,
    pub inviter_user_id: String,
    pub operator_user_id: String,
    /// 0 where nothing mutes.
    pub mute_end_millis: i64,
}

/// A request, as one who may do everything sends it.
#[derive(Clone, Debug)]
pub enum Operation {
    Create(Creation),
    Invite(String),
    /// An invitation of several users. It ends at the first who is a member; those before are members then.
    InviteAll(Vec<String>),
    /// Approval of a user who has asked to join.
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
    /// Until a moment, in milliseconds.
    MuteMember(String, i64),
    UnmuteMember(String),
    /// Without them they are gone a moment later all the same, unless the push service is away.
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
    /// Sender of the request, a member or not.
    pub caller: String,
}

impl Creation {
    /// A group that anybody may join, made by the administrator.
    pub fn open(name: &str, owner: &str, members: &[&str]) -> Self {
        let texts = ["notification", "introduction", "faceURL", "ex"];
        let mut profile: Values = texts.map(|name| (name, json!(""))).into();
        let numbers = ["lookMemberInfo", "applyMemberFriend"];
        profile.extend(numbers.map(|name| (name, json!(0))));
        profile.insert("groupName", json!(name));
        profile.insert("needVerification", json!(DIRECTLY));
        Self {
            profile,
            created_millis: START_MILLIS,
            owner: owner.to_owned(),
            admins: vec![],
            members: members.iter().map(|&user| user.to_owned()).collect(),
            caller: ADMIN_ID.to_owned(),
        }
    }
}

/// OpenIM answers with an error, and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Time of an operation, and a unique id.
struct Moment {
    millis: i64,
    id: String,
    operation_id: String,
    release: Release,
    push_is_away: bool,
}

impl Default for OpenIm {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            users: BTreeMap::new(),
            now_millis: START_MILLIS,
            tells_group_with_members: false,
            release: Release::default(),
            push_is_away: false,
            largest_answer: None,
            versions_of_nothing: vec![],
            done: 0,
        }
    }
}

impl OpenIm {
    /// Does what is asked of a group, and gives the callbacks that tell of it. Of what is done to
    /// the end though the caller is told an error there may be none.
    pub fn apply(&mut self, group: &str, operation: &Operation) -> Result<Vec<Callback>, Refused> {
        let moment = Moment {
            millis: self.now_millis,
            id: format!("68e5f{:019x}", self.done),
            operation_id: self.operation_id(),
            release: self.release,
            push_is_away: self.push_is_away,
        };
        let mut callbacks = self.done_by(group, operation, &moment)?;
        for callback in &mut callbacks {
            callback.operation_id.clone_from(&moment.operation_id);
        }
        self.now_millis += 1;
        self.done += 1;
        Ok(callbacks)
    }

    /// And the messages too, each with how much later it comes, in that order.
    pub fn perform(&mut self, group: &str, operation: &Operation) -> Result<Vec<Told>, Refused> {
        let request = Request::new(self, group, operation);
        let mut random = Random::new(ORDER, self.done);
        let callbacks = self.apply(group, operation)?;
        let messages = request.messages(self);
        Ok(in_order(operation, callbacks, messages, &mut random))
    }

    /// Operation id of the next request.
    pub(super) fn operation_id(&self) -> String {
        format!("op{}{:06}", self.now_millis, self.done)
    }

    fn done_by(
        &mut self,
        group: &str,
        operation: &Operation,
        moment: &Moment,
    ) -> Result<Vec<Callback>, Refused> {
        if let Operation::Create(creation) = operation {
            require(!self.groups.contains_key(group))?;
            let made = Group::new(group, creation, moment);
            let told = made.creation(creation);
            self.groups.insert(group.to_owned(), made);
            return Ok(vec![told]);
        }
        let group = self.groups.get_mut(group).ok_or(Refused)?;
        group.apply(operation, moment)
    }

    /// A user has another profile, which is a change of every group that shows it; the messages
    /// of it.
    pub fn set_user(&mut self, user: &str, nickname: &str, face_url: &str) -> Vec<Told> {
        let profile = Profile {
            nickname: nickname.to_owned(),
            face_url: face_url.to_owned(),
        };
        let before = self.users.insert(user.to_owned(), profile.clone());
        if before.unwrap_or_default() == profile {
            return vec![];
        }
        let mut showing = vec![];
        for group in self.groups.values_mut() {
            let member = group.members.get(user);
            if member.is_some_and(|member| member.has_no("nickName") || member.has_no("faceURL")) {
                group.versions.members_changed([user], Change::Update);
                showing.push(group.id.clone());
            }
        }
        let mut random = Random::new(ORDER, self.done);
        let operation = Operation::SetMember(user.to_owned(), [("nickName", json!(""))].into());
        let mut messages = vec![];
        for group in showing {
            let request = Request::new(self, &group, &operation);
            messages.extend(request.messages(self));
        }
        self.done += 1;
        in_order(&operation, vec![], messages, &mut random)
    }
}

impl Group {
    fn new(id: &str, creation: &Creation, moment: &Moment) -> Self {
        let ordinary = creation.members.iter().map(|user| (user, ORDINARY));
        let admins = creation.admins.iter().map(|user| (user, ADMIN));
        let all = ordinary.chain(admins).chain([(&creation.owner, OWNER)]);
        let members: BTreeMap<String, Member> = all
            .map(|(user, role)| {
                let mut member = Member::new(role, creation.created_millis);
                member.invited_by(&creation.caller);
                (user.clone(), member)
            })
            .collect();
        let versions = Versions::new(moment.id.clone(), members.keys());
        Self {
            created_millis: creation.created_millis,
            versions,
            ..Self::new_as_read(id, creation.profile.clone(), members)
        }
    }

    /// Without a past.
    pub(super) fn new_as_read(
        id: &str,
        profile: Values,
        members: BTreeMap<String, Member>,
    ) -> Self {
        Self {
            id: id.to_owned(),
            profile,
            status: NORMAL,
            created_millis: START_MILLIS,
            // Of 24 digits as each, and of nobody else's counter.
            versions: Versions::new(format!("{:024x}", members.len()), members.keys()),
            members,
            cache: Cache::default(),
            applicants: BTreeSet::new(),
            is_back_unheard: false,
            stale_count: None,
            messages: 0,
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

    fn apply(&mut self, operation: &Operation, moment: &Moment) -> Result<Vec<Callback>, Refused> {
        let told = match operation {
            Operation::Create(_) => Err(Refused),
            Operation::Invite(user) => self.invite(user, moment).map(|()| None),
            Operation::InviteAll(users) => self.invite_all(users, moment).map(|()| None),
            Operation::Approve(user) => self.approve(user, moment).map(|()| None),
            Operation::Join(user) => self.join(user, moment),
            Operation::Quit(user) => self.quit(user).map(Some),
            Operation::Kick(users) => self.kick(users).map(Some),
            Operation::SetMember(user, values) => self.set_member(user, values).map(Some),
            Operation::Transfer {
                old_owner,
                new_owner,
            } => self.transfer(old_owner, new_owner, moment).map(Some),
            Operation::SetProfile(values) => self.set_profile(values),
            Operation::SetProfileEx(values) => self.set_profile_ex(values),
            Operation::Mute => Ok(self.set_status(MUTED)),
            Operation::Unmute => Ok(self.set_status(NORMAL)),
            Operation::MuteMember(user, until) => self.mute_member(user, *until).map(|()| None),
            Operation::UnmuteMember(user) => self.mute_member(user, 0).map(|()| None),
            Operation::Dismiss { with_members } => return self.dismiss(*with_members, moment),
        };
        Ok(told?.into_iter().collect())
    }

    fn invite(&mut self, user: &str, moment: &Moment) -> Result<(), Refused> {
        require(!self.is_dismissed() && !self.members.contains_key(user))?;
        let member = self.invited(moment);
        self.let_in_silently(user, member);
        Ok(())
    }

    fn invited(&self, moment: &Moment) -> Member {
        let inviter = self.owner().map_or(ADMIN_ID, String::as_str).to_owned();
        let mut member = Member::new(ORDINARY, moment.millis);
        member.invited_by(&inviter);
        member
    }

    /// If one of them is a member, the caller gets an error. But those before it are in the database: no version has
    /// moved and no cache was emptied for them.
    fn invite_all(&mut self, users: &[String], moment: &Moment) -> Result<(), Refused> {
        require(!self.is_dismissed())?;
        let is_member = |user: &&String| self.members.contains_key(*user);
        let new: Vec<String> = users
            .iter()
            .take_while(|user| !is_member(user))
            .cloned()
            .collect();
        let is_whole = new.len() == users.len();
        require(!new.is_empty())?;
        for user in &new {
            let mut member = self.invited(moment);
            member.is_unheard = true;
            self.members.insert(user.clone(), member);
            if !is_whole {
                self.cache.hide(user);
            }
        }
        if is_whole {
            self.members_came_or_left(&new, Change::Insert);
        }
        Ok(())
    }

    /// Also where the group is dismissed.
    fn approve(&mut self, user: &str, moment: &Moment) -> Result<(), Refused> {
        require(self.applicants.remove(user))?;
        if !self.members.contains_key(user) {
            let mut member = Member::new(ORDINARY, moment.millis);
            member.join_source = BY_SEARCH;
            ADMIN_ID.clone_into(&mut member.operator_user_id);
            self.let_in_silently(user, member);
        }
        Ok(())
    }

    fn let_in_silently(&mut self, user: &str, mut member: Member) {
        member.is_unheard = true;
        self.let_in(user, member);
    }

    fn let_in(&mut self, user: &str, member: Member) {
        self.members.insert(user.to_owned(), member);
        self.members_came_or_left([user], Change::Insert);
    }

    /// Every cache of who is a member is emptied.
    fn members_came_or_left(
        &mut self,
        users: impl IntoIterator<Item = impl AsRef<str>> + Clone,
        change: Change,
    ) {
        let named: Vec<_> = users.into_iter().collect();
        let named = || named.iter().map(AsRef::as_ref);
        self.versions.members_changed(named(), change);
        self.cache.ids_forgotten();
        for user in named() {
            self.cache.row_forgotten(user);
        }
    }

    fn join(&mut self, user: &str, moment: &Moment) -> Result<Option<Callback>, Refused> {
        require(!self.is_dismissed() && !self.members.contains_key(user))?;
        if self.profile["needVerification"] != json!(DIRECTLY) {
            self.applicants.insert(user.to_owned());
            return Ok(None);
        }
        // Where the joiner came from is not stored.
        let mut member = Member::new(ORDINARY, moment.millis);
        user.clone_into(&mut member.operator_user_id);
        if moment.release == Release::Patch16 {
            self.let_in_silently(user, member);
            return Ok(None);
        }
        self.let_in(user, member);
        self.is_back_unheard = false;
        Ok(Some(Callback::new(
            "callbackAfterJoinGroupCommand",
            json!({
                "operationID": moment.operation_id,
                "groupID": self.id,
                "reqMessage": "",
                "joinSource": BY_SEARCH,
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

    /// Not from a group without an owner.
    fn kick(&mut self, users: &[String]) -> Result<Callback, Refused> {
        require(self.owner().is_some())?;
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
        self.members_came_or_left(users.clone(), Change::Delete);
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
        if !values.is_empty() {
            self.versions.members_changed([user], Change::Update);
            self.cache.row_forgotten(user);
        }
        let mut fields = json!({"groupID": self.id, "userID": user});
        for name in OF_MEMBER {
            fields[name] = values.get(name).cloned().unwrap_or_default();
        }
        let command = "callbackAfterSetGroupMemberInfoCommand";
        Ok(Callback::new(command, fields))
    }

    /// An administrator can name any old owner: OpenIM does not check it.
    fn transfer(
        &mut self,
        old_owner: &str,
        new_owner: &str,
        moment: &Moment,
    ) -> Result<Callback, Refused> {
        require(!self.is_dismissed() && old_owner != new_owner)?;
        require(self.members.contains_key(old_owner))?;
        let new = self.members.get_mut(new_owner).ok_or(Refused)?;
        let previous = new.role();
        if new.mute_end_millis > moment.millis {
            self.mute_member(new_owner, 0)?;
        }
        for (user, role) in [(old_owner, previous), (new_owner, OWNER)] {
            let member = self.members.get_mut(user).ok_or(Refused)?;
            member.values.insert("roleLevel", json!(role));
            member.is_unheard = false;
        }
        self.versions
            .members_changed([old_owner, new_owner], Change::Update);
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

    /// Told to nobody.
    fn mute_member(&mut self, user: &str, until_millis: i64) -> Result<(), Refused> {
        let member = self.members.get_mut(user).ok_or(Refused)?;
        member.mute_end_millis = until_millis;
        self.versions.members_changed([user], Change::Update);
        Ok(())
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
        require(!self.is_dismissed() && self.owner().is_some())?;
        if values.is_empty() {
            return Ok(None);
        }
        self.profile.extend(values.clone());
        self.versions.group_changed();
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
        self.versions.group_changed();
        None
    }

    /// With its members it can be dismissed again, as long as it has an owner. Whoever dismisses it
    /// without them has the push service dismiss it with them.
    fn dismiss(&mut self, with_members: bool, moment: &Moment) -> Result<Vec<Callback>, Refused> {
        require(with_members || !self.is_dismissed())?;
        let mut told = vec![self.dismiss_once(with_members, moment)?];
        if !with_members && !moment.push_is_away {
            told.push(self.dismiss_once(true, moment)?);
        }
        Ok(told)
    }

    /// Members are deleted before they are listed.
    fn dismiss_once(&mut self, with_members: bool, moment: &Moment) -> Result<Callback, Refused> {
        let owner = self.owner().cloned().ok_or(Refused)?;
        self.status = DISMISSED;
        self.is_back_unheard = false;
        if with_members {
            self.members.clear();
            self.cache = Cache::default();
            self.versions = Versions::new(moment.id.clone(), []);
        } else {
            self.versions.group_changed();
        }
        let members: Vec<&String> = self.members.keys().collect();
        Ok(Callback::new(
            "callbackAfterDisMissGroupCommand",
            json!({
                "groupID": self.id,
                "ownerID": owner,
                // The character with that code.
                "groupType": "\u{2}",
                "membersID": members,
            }),
        ))
    }
}

impl Member {
    /// A new record, whatever there was before.
    fn new(role: i32, join_millis: i64) -> Self {
        let mut values: Values = OF_MEMBER.map(|name| (name, json!(""))).into();
        values.insert("roleLevel", json!(role));
        Self {
            values,
            is_unheard: false,
            join_millis,
            join_source: 0,
            inviter_user_id: String::new(),
            operator_user_id: String::new(),
            mute_end_millis: 0,
        }
    }

    fn invited_by(&mut self, user: &str) {
        self.join_source = BY_INVITATION;
        user.clone_into(&mut self.inviter_user_id);
        user.clone_into(&mut self.operator_user_id);
    }

    /// True if the member has no such text in the group.
    pub(super) fn has_no(&self, name: &str) -> bool {
        self.values[name] == json!("")
    }

    pub fn role(&self) -> i32 {
        let role = self.values["roleLevel"].as_i64().unwrap_or_default();
        i32::try_from(role).unwrap_or_default()
    }
}

fn require(condition: bool) -> Result<(), Refused> {
    if condition { Ok(()) } else { Err(Refused) }
}
