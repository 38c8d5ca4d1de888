//! OpenIM's REST API over the state of the model. Names, order and refusals are those of OpenIM.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::openim::{Group, Member, OpenIm, Operation, WORKING_GROUP};
use super::openim_versions::{Change, Since};
use super::random::Random;

pub(super) const ARGUMENTS: i64 = 1001;
pub(super) const NO_PERMISSION: i64 = 1002;
const NOT_FOUND: i64 = 1004;
const GROUP_UNKNOWN: i64 = 1201;
const DISMISSED: i64 = 1204;

/// The end of the path of the call for all ids of a group.
pub(super) const GET_IDS: &str = "get_full_group_member_user_ids";
const NOBODYS_VERSION: &str = "68e5f000000000000000ffff";

/// Ids in one request.
const MOST_IDS: usize = 1000;
/// Changes after which the rest of the groups of a request is left out.
const ENOUGH_CHANGES: usize = 500;

/// Error of a refused request.
pub(super) type Code = i64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pagination {
    #[serde(default)]
    page_number: i64,
    #[serde(default)]
    show_number: i64,
}

impl Pagination {
    fn page<T>(&self, all: Vec<T>) -> Vec<T> {
        let number = |number: i64| usize::try_from(number).unwrap_or(0);
        let (page, size) = (number(self.page_number), number(self.show_number));
        if page == 0 {
            return vec![];
        }
        let skipped = (page - 1).saturating_mul(size);
        all.into_iter().skip(skipped).take(size).collect()
    }
}

#[derive(Deserialize)]
struct GetGroups {
    pagination: Pagination,
    #[serde(default, rename = "groupID")]
    group_id: String,
}

#[derive(Deserialize)]
struct GetGroupsInfo {
    #[serde(rename = "groupIDs")]
    group_ids: Vec<String>,
}

#[derive(Deserialize)]
struct GetMemberList {
    #[serde(default, rename = "groupID")]
    group_id: String,
    pagination: Pagination,
}

#[derive(Deserialize)]
struct GetMembersInfo {
    #[serde(rename = "groupID")]
    group_id: String,
    #[serde(rename = "userIDs")]
    user_ids: Vec<String>,
}

#[derive(Deserialize)]
struct GetIds {
    #[serde(rename = "groupID")]
    group_id: String,
    #[serde(default, rename = "idHash")]
    id_hash: u64,
}

#[derive(Deserialize)]
struct GetIncremental {
    #[serde(default, rename = "groupID")]
    group_id: String,
    #[serde(default, rename = "versionID")]
    version_id: String,
    #[serde(default)]
    version: u64,
}

#[derive(Deserialize)]
struct GetIncrementalBatch {
    #[serde(default, rename = "reqList")]
    requests: Vec<GetIncremental>,
}

impl OpenIm {
    /// The data of an answer. Nothing where there is no such call.
    pub(super) fn answer(
        &mut self,
        path: &str,
        request: &Value,
        random: &mut Random,
    ) -> Option<Result<Value, Code>> {
        Some(match path.strip_prefix("/group/")? {
            "get_groups" => parse(request).map(|asked| self.get_groups(&asked)),
            GET_IDS => parse(request).and_then(|asked| self.get_ids(&asked)),
            "get_group_abstract_info" => {
                parse(request).and_then(|asked| self.get_abstracts(&asked))
            }
            "get_groups_info" => {
                parse(request).and_then(|asked| self.get_groups_info(&asked, random))
            }
            "get_group_member_list" => {
                parse(request).map(|asked| self.get_member_list(&asked, random))
            }
            "get_group_members_info" => {
                parse(request).and_then(|asked| self.get_members_info(&asked))
            }
            "get_incremental_group_members" => {
                parse(request).and_then(|asked| self.get_incremental(&asked))
            }
            "get_incremental_group_members_batch" => {
                parse(request).and_then(|asked| self.get_incremental_batch(&asked))
            }
            _ => return None,
        })
    }

    /// A group as REST shows it.
    pub fn shown_group(&self, group: &str) -> Option<Value> {
        self.groups.get(group).map(Group::shown)
    }

    /// Whoever is hidden by a cache shows, by the next who comes and 60 s.
    pub fn uncover(&mut self) {
        let groups = self
            .groups
            .values()
            .filter(|group| group.cache.hides_anybody());
        let groups: Vec<String> = groups.map(|group| group.id.clone()).collect();
        for group in groups {
            let invite = Operation::Invite(format!("uncovers-{}", self.now_millis));
            self.apply(&group, &invite).unwrap();
        }
        self.entries_expire();
    }

    /// Shows members that only a cache hides for 60 s.
    pub fn entries_expire(&mut self) {
        for group in self.groups.values_mut() {
            group.cache.entries_expire();
        }
    }

    /// The bytes of the largest answer of a service behind the API.
    pub(super) fn largest_answer(&self) -> usize {
        let of_release = self.release.largest_answer();
        self.largest_answer.unwrap_or(of_release)
    }

    /// A member as REST shows it, with the user's profile where the group has nothing of its own.
    pub fn shown_member(&self, group: &str, user: &str) -> Option<Value> {
        let group = self.groups.get(group)?;
        let member = group.members.get(user)?;
        group.cache.has_row(user).then_some(())?;
        Some(self.show(group, user, member))
    }

    pub(super) fn shown_members(&self, group: &str) -> Vec<Value> {
        let group = &self.groups[group];
        let members = group.with_ids();
        let members = members.map(|(user, member)| self.show(group, user, member));
        members.collect()
    }

    fn show(&self, group: &Group, user: &str, member: &Member) -> Value {
        let profile = self.users.get(user);
        let or_of_profile = |name, of_profile: Option<&String>| match of_profile {
            Some(text) if member.has_no(name) => json!(text),
            _ => member.values[name].clone(),
        };
        json!({
            "groupID": group.id,
            "userID": user,
            "roleLevel": member.values["roleLevel"],
            "joinTime": member.join_millis,
            "nickname": or_of_profile("nickName", profile.map(|profile| &profile.nickname)),
            "faceURL": or_of_profile("faceURL", profile.map(|profile| &profile.face_url)),
            "appMangerLevel": 0,
            "joinSource": member.join_source,
            "operatorUserID": member.operator_user_id,
            "ex": member.values["ex"],
            "muteEndTime": member.mute_end_millis,
            "inviterUserID": member.inviter_user_id,
        })
    }

    fn get_groups(&self, asked: &GetGroups) -> Value {
        let mut groups: Vec<&Group> = if asked.group_id.is_empty() {
            let groups = self.groups.values();
            groups.filter(|group| !group.is_dismissed()).collect()
        } else {
            self.groups.get(&asked.group_id).into_iter().collect()
        };
        groups.sort_by_key(|group| std::cmp::Reverse(group.created_millis));
        let total = groups.len();
        let row = |group: &Group| {
            let owner = group.owner();
            let shown = owner.and_then(|owner| self.shown_member(&group.id, owner));
            json!({
                "groupInfo": group.shown(),
                "groupOwnerUserName": shown.map_or(json!(""), |shown| shown["nickname"].clone()),
                "groupOwnerUserID": owner.map_or("", String::as_str),
            })
        };
        let page = asked.pagination.page(groups);
        json!({"total": total, "groups": list(page.into_iter().map(row))})
    }

    fn get_groups_info(&self, asked: &GetGroupsInfo, random: &mut Random) -> Result<Value, Code> {
        bounded(&asked.group_ids)?;
        let ids: BTreeSet<&String> = asked.group_ids.iter().collect();
        let groups = ids.into_iter().filter_map(|id| self.shown_group(id));
        let mut groups: Vec<Value> = groups.collect();
        shuffle(&mut groups, random);
        Ok(json!({"groupInfos": list(groups)}))
    }

    /// The roles decide who is on a page, but not the order within it.
    fn get_member_list(&self, asked: &GetMemberList, random: &mut Random) -> Value {
        let Some(group) = self.groups.get(&asked.group_id) else {
            return json!({"total": 0, "members": null});
        };
        let mut members: Vec<_> = group.with_ids().collect();
        let total = members.len();
        members.sort_by_cached_key(|(_, member)| std::cmp::Reverse(member.role()));
        let mut page = asked.pagination.page(members);
        shuffle(&mut page, random);
        let members = page.into_iter();
        let members = members.filter(|(user, _)| group.cache.has_row(user));
        let members = members.map(|(user, member)| self.show(group, user, member));
        json!({"total": total, "members": list(members)})
    }

    /// Remembers users without a row.
    fn get_members_info(&mut self, asked: &GetMembersInfo) -> Result<Value, Code> {
        bounded(&asked.user_ids)?;
        let users: BTreeSet<&String> = asked.user_ids.iter().collect();
        let mut members = vec![];
        for user in users {
            if let Some(member) = self.shown_member(&asked.group_id, user) {
                members.push(member);
            } else if let Some(group) = self.groups.get_mut(&asked.group_id) {
                group.cache.looked_for_in_vain(user);
            }
        }
        Ok(json!({"members": list(members)}))
    }

    /// The ids of all members, with the version, which is read after them. Of a group that nobody
    /// knows a version is made.
    fn get_ids(&mut self, asked: &GetIds) -> Result<Value, Code> {
        let Some(group) = self.groups.get(&asked.group_id) else {
            self.versions_of_nothing.push(asked.group_id.clone());
            let nothing =
                json!({"version": 1, "versionID": NOBODYS_VERSION, "equal": asked.id_hash == 0});
            return Ok(nothing);
        };
        let ids: Vec<Value> = group.with_ids().map(|(user, _)| json!(user)).collect();
        let is_equal = asked.id_hash == hash(&ids);
        Ok(json!({
            "version": group.versions.version,
            "versionID": group.versions.id,
            "equal": is_equal,
            "userIDs": if is_equal { None } else { list(ids) },
        }))
    }

    /// Renews the part that [`Self::get_ids`] has read second.
    pub(super) fn renew_version(&self, request: &Value, ids: &mut Value) {
        let group = request["groupID"].as_str();
        if let Some(group) = group.and_then(|group| self.groups.get(group)) {
            ids["version"] = json!(group.versions.version);
            ids["versionID"] = json!(group.versions.id);
        }
    }

    /// Each once, and all of them known.
    fn get_abstracts(&self, asked: &GetGroupsInfo) -> Result<Value, Code> {
        bounded(&asked.group_ids)?;
        let ids: BTreeSet<&String> = asked.group_ids.iter().collect();
        if ids.len() < asked.group_ids.len() {
            return Err(ARGUMENTS);
        }
        let row = |id: &String| {
            let group = self.groups.get(id).ok_or(GROUP_UNKNOWN)?;
            let members = group.with_ids();
            let members: Vec<_> = members
                .map(|(user, member)| self.show(group, user, member))
                .collect();
            Ok(json!({
                "groupID": id,
                "groupMemberNumber": members.len(),
                "groupMemberListHash": hash(&members),
            }))
        };
        let rows: Result<Vec<Value>, Code> = asked.group_ids.iter().map(row).collect();
        Ok(json!({"groupAbstractInfos": rows?}))
    }

    fn get_incremental(&self, asked: &GetIncremental) -> Result<Value, Code> {
        let group = self.groups.get(&asked.group_id).ok_or(NOT_FOUND)?;
        if group.is_dismissed() {
            return Err(DISMISSED);
        }
        let (members, is_full, tells_group) =
            match group.versions.since(&asked.version_id, asked.version) {
                Since::Full => (vec![], true, true),
                Since::Changes { members, group } => {
                    let with_members = self.tells_group_with_members && !members.is_empty();
                    (members, false, group || with_members)
                }
            };
        // Whoever owns the group is looked for wherever there is something to tell.
        let is_told = tells_group || !members.is_empty();
        if is_told && group.owner().is_none() {
            return Err(NOT_FOUND);
        }
        let of = |wanted| members.iter().filter(move |(_, change)| *change == wanted);
        let shown =
            |wanted| list(of(wanted).filter_map(|(user, _)| self.shown_member(&group.id, user)));
        Ok(json!({
            "version": group.versions.version,
            "versionID": group.versions.id,
            "full": is_full,
            "delete": list(of(Change::Delete).map(|(user, _)| json!(user))),
            "insert": shown(Change::Insert),
            "update": shown(Change::Update),
            "group": tells_group.then(|| group.shown()),
            "sortVersion": 0,
        }))
    }

    fn get_incremental_batch(&self, asked: &GetIncrementalBatch) -> Result<Value, Code> {
        let mut answers = Map::new();
        let mut changes = 0;
        for request in &asked.requests {
            if answers.contains_key(&request.group_id) {
                continue;
            }
            let answer = match self.get_incremental(request) {
                Err(DISMISSED) => continue,
                answer => answer?,
            };
            let count = |name: &str| answer[name].as_array().map_or(0, Vec::len);
            changes += count("insert") + count("update") + count("delete");
            answers.insert(request.group_id.clone(), answer);
            if changes >= ENOUGH_CHANGES {
                break;
            }
        }
        let answers = (!answers.is_empty()).then_some(answers);
        Ok(json!({"respList": answers}))
    }
}

impl Group {
    /// Members that OpenIM counts.
    fn with_ids(&self) -> impl Iterator<Item = (&String, &Member)> {
        let members = self.members.iter();
        members.filter(|(user, _)| self.cache.has_id(user))
    }

    pub(super) fn shown(&self) -> Value {
        let profile = |name| &self.profile[name];
        json!({
            "groupID": self.id,
            "groupName": profile("groupName"),
            "notification": profile("notification"),
            "introduction": profile("introduction"),
            "faceURL": profile("faceURL"),
            "ownerUserID": self.owner().map_or("", String::as_str),
            "createTime": self.created_millis,
            "memberCount": self.stale_count.unwrap_or(self.with_ids().count() as u64),
            "ex": profile("ex"),
            "status": self.status,
            "creatorUserID": "",
            "groupType": WORKING_GROUP,
            "needVerification": profile("needVerification"),
            "lookMemberInfo": profile("lookMemberInfo"),
            "applyMemberFriend": profile("applyMemberFriend"),
            "notificationUpdateTime": 0,
            "notificationUserID": "",
        })
    }
}

/// The data of an answer that has lost all rows.
pub(super) fn without_rows(path: &str) -> Option<Value> {
    match path.strip_prefix("/group/")? {
        "get_groups" => Some(json!({"total": 0, "groups": null})),
        "get_groups_info" => Some(json!({"groupInfos": null})),
        "get_group_member_list" => Some(json!({"total": 0, "members": null})),
        "get_group_members_info" => Some(json!({"members": null})),
        _ => None,
    }
}

/// Hash of a list, like OpenIM's: lists differ, and an empty one has 0. OpenIM's is a part of an MD5 sum.
fn hash(rows: &[Value]) -> u64 {
    if rows.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    json!(rows).to_string().hash(&mut hasher);
    hasher.finish()
}

fn parse<T: DeserializeOwned>(request: &Value) -> Result<T, Code> {
    T::deserialize(request).map_err(|_| ARGUMENTS)
}

fn bounded(ids: &[String]) -> Result<(), Code> {
    if (1..=MOST_IDS).contains(&ids.len()) {
        Ok(())
    } else {
        Err(ARGUMENTS)
    }
}

/// The form in which Go writes a list that was never made.
fn list(rows: impl IntoIterator<Item = Value>) -> Option<Vec<Value>> {
    let rows: Vec<Value> = rows.into_iter().collect();
    (!rows.is_empty()).then_some(rows)
}

fn shuffle<T>(rows: &mut [T], random: &mut Random) {
    for place in (1..rows.len()).rev() {
        let other = random.below(place as u64 + 1);
        rows.swap(place, usize::try_from(other).unwrap());
    }
}
