//! OpenIM's REST API over groups and members that are worked out when they are asked for: as the model
//! of the tests answers, but with next to no memory and little of the processors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use poem::http::{StatusCode, header};
use poem::listener::TcpAcceptor;
use poem::{Endpoint, Request, Response, Server};
use serde::Deserialize;
use serde_json::json;

/// First ids, of as many digits as OpenIM's.
pub const FIRST_GROUP: usize = 1_000_000_000;
pub const FIRST_USER: usize = 2_000_000_000;
/// Users who are members of some group.
pub const USERS: usize = 1_000_000;
/// Distance between the first users of two neighbouring groups.
pub const STRIDE: usize = 7919;
/// Creation time of the first group. Each other group is a second younger.
pub const START_MILLIS: i64 = 1_700_000_000_000;
/// Changes after which the rest of the groups of a request is left out.
const ENOUGH_CHANGES: usize = 500;
/// With more changes than these nobody is told them one by one.
const MOST_CHANGES: usize = 200;

/// Groups. The newest is the last.
pub struct World {
    sizes: Vec<u32>,
    /// The first so many groups are there.
    listed: AtomicUsize,
    /// True if a group has lost its owner.
    is_ownerless: fn(usize) -> bool,
    /// Versions of groups that have changed since.
    changed: Mutex<HashMap<usize, Changed>>,
    calls: Mutex<Calls>,
}

/// Calls.
#[derive(Default)]
pub struct Calls {
    /// Number of calls of each path.
    pub paths: BTreeMap<String, u64>,
    /// Bytes of all answers, before compression.
    pub bytes: usize,
}

impl Calls {
    pub fn list(&self) -> String {
        let paths = self.paths.iter();
        let paths = paths.map(|(path, count)| format!("{count} {path}"));
        paths.collect::<Vec<_>>().join(", ")
    }
}

#[derive(Default)]
struct Changed {
    /// Number of calls.
    count: u64,
    /// Members who came since. They follow the others.
    joined: usize,
    status: u32,
    members: BTreeMap<usize, ChangedMember>,
}

/// A member as it is since its last change.
#[derive(Clone, Default)]
struct ChangedMember {
    /// The count of its group's changes then.
    at: u64,
    nickname: Option<String>,
    mute_end: i64,
}

impl World {
    pub fn new(sizes: Vec<u32>, listed: usize, is_ownerless: fn(usize) -> bool) -> Arc<Self> {
        Arc::new(Self {
            sizes,
            listed: listed.into(),
            is_ownerless,
            changed: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    /// A server of it, on a thread of its own, for as long as this process runs; its address.
    pub fn serve(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let rest = Rest(Arc::clone(self));
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                let acceptor = TcpAcceptor::from_std(listener).unwrap();
                Server::new_with_acceptor(acceptor).run(rest).await.unwrap();
            });
        });
        url
    }

    pub fn list(&self, groups: usize) {
        self.listed.store(groups, Ordering::Relaxed);
    }

    pub fn listed(&self) -> usize {
        self.listed.load(Ordering::Relaxed)
    }

    /// Members of the groups that are there.
    pub fn members(&self) -> u64 {
        let sizes = &self.sizes[..self.listed()];
        sizes.iter().map(|size| u64::from(*size)).sum()
    }

    /// Members that a group has had from the start.
    pub fn size(&self, group: usize) -> usize {
        self.sizes[group] as usize
    }

    fn change<T>(&self, group: usize, change: impl FnOnce(&mut Changed) -> T) -> T {
        let mut changed = self.changed.lock().unwrap();
        let changed = changed.entry(group).or_default();
        changed.count += 1;
        change(changed)
    }

    fn change_member(&self, group: usize, member: usize, change: impl FnOnce(&mut ChangedMember)) {
        self.change(group, |changed| {
            let of_member = changed.members.entry(member).or_default();
            of_member.at = changed.count;
            change(of_member);
        });
    }

    /// A member gets a name of its own in a group.
    pub fn set_nickname(&self, group: usize, member: usize, nickname: &str) {
        self.change_member(group, member, |member| {
            member.nickname = Some(nickname.to_owned());
        });
    }

    /// A member is muted until then; 0 for not.
    pub fn mute(&self, group: usize, member: usize, until_millis: i64) {
        self.change_member(group, member, |member| member.mute_end = until_millis);
    }

    /// Somebody comes to a group; which member that is.
    pub fn join(&self, group: usize) -> usize {
        let size = self.size(group);
        self.change(group, |changed| {
            let member = size + changed.joined;
            changed.joined += 1;
            let of_member = changed.members.entry(member).or_default();
            of_member.at = changed.count;
            member
        })
    }

    pub fn set_status(&self, group: usize, status: u32) {
        self.change(group, |changed| changed.status = status);
    }

    /// Calls since the last question.
    pub fn take_calls(&self) -> Calls {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn owner(&self, group: usize) -> String {
        match (self.is_ownerless)(group) {
            true => String::new(),
            false => user_id(group, 0).to_string(),
        }
    }

    fn place(&self, id: &str) -> Option<usize> {
        let place = id.parse::<usize>().ok()?.checked_sub(FIRST_GROUP)?;
        (place < self.listed()).then_some(place)
    }

    fn write_group(&self, out: &mut String, group: usize, changed: Option<&Changed>) {
        let (id, owner) = (group_id(group), self.owner(group));
        let (made, creator) = (created_millis(group), user_id(group, 0));
        let size = self.size(group) + changed.map_or(0, |changed| changed.joined);
        let status = changed.map_or(0, |changed| changed.status);
        write!(
            out,
            r#"{{"groupID":"{id}","groupName":"Group {id}","notification":"","introduction":"","faceURL":"https://example.com/groups/{id}.png","ownerUserID":"{owner}","createTime":{made},"memberCount":{size},"ex":"","status":{status},"creatorUserID":"{creator}","groupType":2,"needVerification":0,"lookMemberInfo":0,"applyMemberFriend":0,"notificationUpdateTime":0,"notificationUserID":""}}"#
        )
        .unwrap();
    }

    fn write_member(
        &self,
        out: &mut String,
        group: usize,
        member: usize,
        changed: Option<&ChangedMember>,
    ) {
        let (id, user, inviter) = (group_id(group), user_id(group, member), user_id(group, 0));
        let is_owner = member == 0 && !(self.is_ownerless)(group);
        let role = if is_owner { 100 } else { 20 };
        let joined = created_millis(group) + i64::try_from(member).unwrap();
        let mute_end = changed.map_or(0, |changed| changed.mute_end);
        write!(
            out,
            r#"{{"groupID":"{id}","userID":"{user}","roleLevel":{role},"joinTime":{joined},"nickname":"#
        )
        .unwrap();
        match changed.and_then(|changed| changed.nickname.as_ref()) {
            Some(nickname) => write!(out, r#""{nickname}""#).unwrap(),
            None => write!(out, r#""Member {user}""#).unwrap(),
        }
        write!(
            out,
            r#","faceURL":"https://example.com/users/{user}.png","appMangerLevel":0,"joinSource":2,"operatorUserID":"{inviter}","ex":"","muteEndTime":{mute_end},"inviterUserID":"{inviter}"}}"#
        )
        .unwrap();
    }

    fn get_groups(&self, asked: &Pagination) -> String {
        let total = self.listed();
        let changed = self.changed.lock().unwrap();
        let mut out = format!(r#"{{"total":{total},"groups":"#);
        let newest_first = (0..total).rev();
        write_list(&mut out, asked.page(newest_first), |out, group| {
            out.push_str(r#"{"groupInfo":"#);
            self.write_group(out, group, changed.get(&group));
            let owner = self.owner(group);
            let end =
                format!(r#","groupOwnerUserName":"Member {owner}","groupOwnerUserID":"{owner}"}}"#);
            out.push_str(&end);
        });
        out.push('}');
        out
    }

    fn get_groups_info(&self, ids: &[String]) -> String {
        let changed = self.changed.lock().unwrap();
        let mut out = r#"{"groupInfos":"#.to_owned();
        let places = ids.iter().filter_map(|id| self.place(id));
        write_list(&mut out, places, |out, group| {
            self.write_group(out, group, changed.get(&group));
        });
        out.push('}');
        out
    }

    fn get_member_list(&self, id: &str, asked: &Pagination) -> String {
        let Some(group) = self.place(id) else {
            return r#"{"total":0,"members":null}"#.to_owned();
        };
        let changed = self.changed.lock().unwrap();
        let changed = changed.get(&group);
        let total = self.size(group) + changed.map_or(0, |changed| changed.joined);
        let mut out = format!(r#"{{"total":{total},"members":"#);
        write_list(&mut out, asked.page(0..total), |out, member| {
            let changed = changed.and_then(|changed| changed.members.get(&member));
            self.write_member(out, group, member, changed);
        });
        out.push('}');
        out
    }

    fn get_members_named(&self, group: usize, users: &[String]) -> String {
        let changed = self.changed.lock().unwrap();
        let changed = changed.get(&group);
        let total = self.size(group) + changed.map_or(0, |changed| changed.joined);
        let first = group * STRIDE % USERS;
        let named = users.iter().filter_map(|user| {
            let user = user.parse::<usize>().ok()?.checked_sub(FIRST_USER)?;
            let member = (user + USERS - first) % USERS;
            (member < total).then_some(member)
        });
        let mut out = r#"{"members":"#.to_owned();
        write_list(&mut out, named, |out, member| {
            let changed = changed.and_then(|changed| changed.members.get(&member));
            self.write_member(out, group, member, changed);
        });
        out.push('}');
        out
    }

    fn get_member_ids(&self, group: usize) -> String {
        let changed = self.changed.lock().unwrap();
        let none = Changed::default();
        let changed = changed.get(&group).unwrap_or(&none);
        let (id, version) = (version_id(group), changed.count + 1);
        let members = 0..self.size(group) + changed.joined;
        let mut out =
            format!(r#"{{"version":{version},"versionID":"{id}","equal":false,"userIDs":"#);
        write_list(&mut out, members, |out, member| {
            write!(out, r#""{}""#, user_id(group, member)).unwrap();
        });
        out.push('}');
        out
    }

    /// Writes the changes of a group, and returns their number. `None`: OpenIM cannot send them for a group without an
    /// owner.
    fn write_incremental(&self, out: &mut String, group: usize, asked: &Since) -> Option<usize> {
        let none = Changed::default();
        let changed = self.changed.lock().unwrap();
        let changed = changed.get(&group).unwrap_or(&none);
        let (id, version) = (version_id(group), changed.count + 1);
        let is_ours = asked.version_id == id && (1..=version).contains(&asked.version);
        if (self.is_ownerless)(group) && !(is_ours && asked.version == version) {
            return None;
        }
        let newer = |(member, of_member): (&usize, &ChangedMember)| {
            (of_member.at + 1 > asked.version).then(|| (*member, of_member.clone()))
        };
        let mut newer: Vec<_> = changed.members.iter().filter_map(newer).collect();
        let is_full = !is_ours || newer.len() > MOST_CHANGES;
        if is_full {
            newer.clear();
        }
        let count = newer.len();
        let size = self.size(group);
        // Who came is always taken for new: whoever is told does the same with both.
        let (joined, updated): (Vec<_>, Vec<_>) =
            newer.into_iter().partition(|(member, _)| *member >= size);
        write!(
            out,
            r#"{{"version":{version},"versionID":"{id}","full":{is_full},"delete":null"#
        )
        .unwrap();
        for (name, members) in [("insert", joined), ("update", updated)] {
            write!(out, r#","{name}":"#).unwrap();
            write_list(out, members.into_iter(), |out, (member, of_member)| {
                self.write_member(out, group, member, Some(&of_member));
            });
        }
        out.push_str(r#","group":"#);
        if is_full {
            self.write_group(out, group, Some(changed));
        } else {
            out.push_str("null");
        }
        out.push_str(r#","sortVersion":0}"#);
        Some(count)
    }

    fn get_incremental_batch(&self, all: &[Since]) -> Option<String> {
        let mut out = r#"{"respList":{"#.to_owned();
        let mut answered = HashSet::new();
        let mut changes = 0;
        for asked in all {
            let group = self.place(&asked.group_id)?;
            if !answered.insert(group) {
                continue;
            }
            let comma = if answered.len() > 1 { "," } else { "" };
            write!(out, r#"{comma}"{}":"#, asked.group_id).unwrap();
            changes += self.write_incremental(&mut out, group, asked)?;
            if changes >= ENOUGH_CHANGES {
                break;
            }
        }
        out.push_str("}}");
        Some(out)
    }

    /// The data of an answer, or an error's code. Nothing where there is no such call.
    fn answer(&self, path: &str, body: &[u8]) -> Option<Result<String, u32>> {
        const NOT_FOUND: u32 = 1004;
        let asked: Asked = serde_json::from_slice(body).ok()?;
        let since = Since {
            group_id: asked.group_id.clone(),
            version_id: asked.version_id,
            version: asked.version,
        };
        Some(match path {
            "/auth/get_admin_token" => {
                Ok(json!({"token": "t", "expireTimeSeconds": 7_776_000}).to_string())
            }
            "/group/get_groups" => Ok(self.get_groups(&asked.pagination)),
            "/group/get_groups_info" => Ok(self.get_groups_info(&asked.group_ids)),
            "/group/get_group_member_list" => {
                Ok(self.get_member_list(&asked.group_id, &asked.pagination))
            }
            "/group/get_group_members_info" => {
                let group = self.place(&asked.group_id);
                let named = group.map(|group| self.get_members_named(group, &asked.user_ids));
                named.ok_or(NOT_FOUND)
            }
            "/group/get_incremental_group_members" => {
                let mut out = String::new();
                let group = self.place(&asked.group_id);
                let told = group.and_then(|group| self.write_incremental(&mut out, group, &since));
                told.map(|_| out).ok_or(NOT_FOUND)
            }
            "/group/get_full_group_member_user_ids" => {
                let group = self.place(&asked.group_id);
                group
                    .map(|group| self.get_member_ids(group))
                    .ok_or(NOT_FOUND)
            }
            "/group/get_incremental_group_members_batch" => {
                let answer = self.get_incremental_batch(&asked.requests);
                answer.ok_or(NOT_FOUND)
            }
            _ => return None,
        })
    }
}

pub fn group_id(group: usize) -> usize {
    FIRST_GROUP + group
}

pub fn user_id(group: usize, member: usize) -> usize {
    FIRST_USER + (group * STRIDE + member) % USERS
}

fn created_millis(group: usize) -> i64 {
    START_MILLIS + 1000 * i64::try_from(group).unwrap()
}

/// An id of 24 digits.
fn version_id(group: usize) -> String {
    format!("{group:024x}")
}

/// A list in the form of Go's encoder, also one that was never made.
fn write_list<T>(
    out: &mut String,
    rows: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    let mut is_empty = true;
    for row in rows {
        out.push(if is_empty { '[' } else { ',' });
        is_empty = false;
        write(out, row);
    }
    out.push_str(if is_empty { "null" } else { "]" });
}

/// All that a request can have.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Asked {
    pagination: Pagination,
    #[serde(rename = "groupID")]
    group_id: String,
    #[serde(rename = "groupIDs")]
    group_ids: Vec<String>,
    #[serde(rename = "userIDs")]
    user_ids: Vec<String>,
    #[serde(rename = "versionID")]
    version_id: String,
    version: u64,
    #[serde(rename = "reqList")]
    requests: Vec<Since>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pagination {
    page_number: usize,
    show_number: usize,
}

impl Pagination {
    fn page(&self, all: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
        let skipped = self.page_number.saturating_sub(1) * self.show_number;
        all.skip(skipped).take(self.show_number)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Since {
    #[serde(rename = "groupID")]
    group_id: String,
    #[serde(rename = "versionID")]
    version_id: String,
    version: u64,
}

struct Rest(Arc<World>);

impl Endpoint for Rest {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let Self(world) = self;
        let path = request.uri().path().to_owned();
        let body = request.take_body().into_bytes().await?;
        let answer = world.answer(&path, &body);
        let envelope = match answer {
            None => return Ok(StatusCode::NOT_FOUND.into()),
            Some(Ok(data)) => format!(r#"{{"errCode":0,"errMsg":"","errDlt":"","data":{data}}}"#),
            Some(Err(code)) => {
                format!(r#"{{"errCode":{code},"errMsg":"RecordNotFoundError","errDlt":"{code}"}}"#)
            }
        };
        {
            let mut calls = world.calls.lock().unwrap();
            *calls.paths.entry(path).or_default() += 1;
            calls.bytes += envelope.len();
        }
        let response = Response::builder().content_type("application/json; charset=utf-8");
        let offered = request.header(header::ACCEPT_ENCODING);
        if !offered.is_some_and(|offered| offered.contains("gzip")) {
            return Ok(response.body(envelope));
        }
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(envelope.as_bytes()).unwrap();
        let body = encoder.finish().unwrap();
        Ok(response.header(header::CONTENT_ENCODING, "gzip").body(body))
    }
}
