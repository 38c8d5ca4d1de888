//! A group as OpenIM holds it: all of it, as it was at one moment.
//!
//! OpenIM lists members page by page, and between two pages anything may happen. So the group's
//! version is asked for before the first page and after the last. Where it has moved, what changed
//! in between is told with it: of each member the last state, so it can be put over what was read.
//! What it does not tell is who has moved from a page that was not read yet to one that was, because
//! somebody before them left. Then it is the number of members that shows whether anybody is missing.
//!
//! Of a group without an owner OpenIM tells no changes, but who its members are and at which version.
//! So does it of one that is too large to be told. Such a group is what its rows are where these are
//! of the same members, and the version stands still.
//!
//! Some of a group may be beyond reading: a row that is larger than any answer, or one that OpenIM
//! counts and does not give. What can be read is given all the same, with who else may be a member.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::client::Client;
use super::error::Error;
use super::list::{List, MOST_MEMBERS, held};
use super::pages::{Halves, PAGE};
use super::view::{Fetched, Trouble, Unshown, View};
use super::wire::{Delta, Group, MemberIds};
use crate::domain::{DISMISSED, GroupId, OpenImGroup, OpenImMember, UserId, Version};

/// How often a group is read that changes faster than it can be read.
const TRIES: usize = 3;
/// No such record: an unknown group, or one without an owner where the group is to be told.
pub(super) const NOT_FOUND: i64 = 1004;
const GROUP_UNKNOWN: i64 = 1201;
const GROUP_DISMISSED: i64 = 1204;
/// Members who left since a version, without a look at the whole group.
pub(super) const FEW_GONE: usize = 20;

/// Why a group could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Client(#[from] Error),
    #[error("it changes faster than it can be read")]
    Restless,
    #[error("OpenIM lists no members, and counts {0}")]
    Contradiction(u64),
}

/// How a try to read a group ended.
enum Tried {
    Done(Fetched),
    /// It has changed meanwhile.
    Moved,
    /// Rows are missing, at a version that stands still. It may be a cache that is behind.
    Short(Box<View>),
}

impl Tried {
    /// Which rows are too large does not change from one look to the next, which are missing may.
    fn in_part(view: Box<View>) -> Self {
        match view.trouble {
            Some(Trouble::RowsMissing { .. }) => Self::Short(view),
            _ => Self::Done(Fetched::View(view)),
        }
    }
}

/// What there is to know of a group without its changes.
pub(super) struct Info {
    pub(super) held: OpenImGroup,
    member_count: u64,
}

/// Reads groups.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) client: Client,
    room: Arc<Semaphore>,
}

impl Fetch {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            room: Arc::new(Semaphore::new(MOST_MEMBERS as usize)),
        }
    }

    /// Reads all of a group that can be read.
    pub(super) async fn whole(&self, group: &GroupId) -> Result<Fetched, FetchError> {
        let mut was_short = false;
        for number in 1..=TRIES {
            match self.try_whole(group).await? {
                Tried::Done(fetched) => return Ok(fetched),
                Tried::Moved => {}
                Tried::Short(view) => {
                    if was_short || number == TRIES {
                        return Ok(Fetched::View(view));
                    }
                    was_short = true;
                }
            }
        }
        Err(FetchError::Restless)
    }

    async fn try_whole(&self, group: &GroupId) -> Result<Tried, FetchError> {
        let before = match self.client.changes(group, None).await {
            Ok(delta) => delta,
            Err(error) if tells_nothing(&error) => {
                return self.without_changes(group, &error).await;
            }
            Err(error) => return Err(error.into()),
        };
        let version = before.version();
        let mut list = List::read(&self.client, &self.room, group).await?;
        let after = match self.client.changes(group, Some(&version)).await {
            Ok(delta) if !delta.full => delta,
            Ok(_) => return Ok(Tried::Moved),
            // Dismissed meanwhile, or left without an owner, or with much to tell.
            Err(error) if tells_nothing(&error) => return Ok(Tried::Moved),
            Err(error) => return Err(error.into()),
        };
        let Some(held) = self.group_at(group, before.group, &after).await? else {
            return Ok(Tried::Moved);
        };
        let is_still = after.is_at(&version);
        let version = after.version();
        let (changed, absent) = split(group, after);
        list.members.extend(changed);
        for user in absent {
            list.members.remove(&user);
        }
        if list.unread == 0 {
            // A list with fewer rows than it says is one of a cache that is behind.
            let may_lack_some = list.is_short() || (!is_still && list.pages > 1);
            if !may_lack_some || self.is_complete(group, &version, list.count()).await? {
                let view = list.into_view(Some(held), Some(version));
                return self.believed(group, view).await;
            }
            if !(list.is_short() && is_still) {
                return Ok(Tried::Moved);
            }
        }
        let unshown = match self.ids(group).await? {
            Some(ids) if ids.version() != version => return Ok(Tried::Moved),
            Some(ids) => list.unshown(ids),
            None => Unshown::SomeOf(list.missing()),
        };
        Ok(Tried::in_part(list.into_part(Some(held), unshown)))
    }

    /// Of a group of which OpenIM tells no changes: it is dismissed, or unknown, or has no owner, or
    /// is too large.
    async fn without_changes(&self, group: &GroupId, why: &Error) -> Result<Tried, FetchError> {
        let info = match self.info(group).await {
            Ok(None) => return Ok(Tried::Done(Fetched::Unknown)),
            Ok(Some(info)) => Some(info),
            // It is there: of one that is not there would be nothing to tell.
            Err(error) if error.is_too_large() => None,
            Err(error) => return Err(error.into()),
        };
        let is_dismissed = match &info {
            Some(info) => info.held.status == DISMISSED,
            None => why.code() == Some(GROUP_DISMISSED),
        };
        if is_dismissed {
            let held = info.map(|info| info.held);
            return Ok(Tried::Done(Fetched::Dismissed(held)));
        }
        // Also where there is an owner after all.
        let before = self.ids(group).await?.map(|ids| ids.version());
        let list = List::read(&self.client, &self.room, group).await?;
        let after = self.ids(group).await?;
        let now = match &info {
            Some(_) => self.info(group).await?,
            None => None,
        };
        let version = after.as_ref().map(MemberIds::version);
        let is_same = now.as_ref().map(|info| &info.held) == info.as_ref().map(|info| &info.held);
        if version != before || !is_same {
            return Ok(Tried::Moved);
        }
        let held = now.map(|info| info.held);
        let Some(ids) = after else {
            let missing = list.missing();
            let mut view = list.into_view(held, None);
            view.unshown = Unshown::SomeOf(missing);
            view.trouble = Some(Trouble::IdsTooLarge);
            return Ok(Tried::Done(Fetched::View(view)));
        };
        let has_all = ids.user_ids.len() as u64 == list.count() && !list.is_short();
        let unshown = list.unshown(ids);
        if list.unread > 0 || !has_all || unshown != Unshown::Nobody {
            return Ok(Tried::in_part(list.into_part(held, unshown)));
        }
        let is_read = held.is_some();
        let mut view = list.into_view(held, version);
        if !is_read {
            view.version = None;
            view.trouble = Some(Trouble::ProfileTooLarge);
        }
        self.believed(group, view).await
    }

    /// What has changed since a version, and what has become of users who were named meanwhile.
    /// `None` where that does not tell all of it.
    pub(super) async fn since(
        &self,
        group: &GroupId,
        version: &Version,
        touched: &[UserId],
    ) -> Result<Option<Fetched>, FetchError> {
        match self.client.changes(group, Some(version)).await {
            Ok(delta) => self.by_delta(group, delta, touched).await,
            Err(error) if tells_nothing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, where the changes were told.
    pub(super) async fn by_delta(
        &self,
        group: &GroupId,
        delta: Delta,
        touched: &[UserId],
    ) -> Result<Option<Fetched>, FetchError> {
        let Some(mut view) = changed(group, delta) else {
            return Ok(None);
        };
        let is_told = |user: &UserId| view.members.contains_key(user) || view.absent.contains(user);
        let others: HashSet<&UserId> = touched.iter().filter(|user| !is_told(user)).collect();
        let others: Vec<&UserId> = others.into_iter().collect();
        let mut too_large = HashSet::new();
        let mut halves = Halves::of(&others, PAGE);
        while let Some(some) = halves.next() {
            match self.client.members_named(group, some).await {
                Ok(named) => {
                    let mut named: HashMap<_, _> = held(group, named).into_iter().collect();
                    for &user in some {
                        match named.remove(user) {
                            Some(held) => {
                                view.members.insert(user.clone(), held);
                            }
                            None => view.absent.push(user.clone()),
                        }
                    }
                }
                Err(error) if error.is_too_large() => {
                    too_large.extend(halves.too_large(some).map(|&user| user.clone()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !too_large.is_empty() {
            view.version = None;
            view.trouble = Some(Trouble::MembersTooLarge(too_large.len() as u64));
            view.unshown = Unshown::Users(too_large);
        }
        Ok(Some(Fetched::View(view)))
    }

    /// The group itself as of the version after the members were read. `None`: it is dismissed, or
    /// gone.
    async fn group_at(
        &self,
        group: &GroupId,
        before: Option<Group>,
        after: &Delta,
    ) -> Result<Option<OpenImGroup>, FetchError> {
        let held = match after.group.clone().or(before) {
            Some(told) => Some(told.held()),
            None => self.info(group).await?.map(|info| info.held),
        };
        Ok(held.filter(|held| held.status != DISMISSED))
    }

    /// That a group has no members is believed only where its own state says so too: an answer
    /// without any can come from a cache that was just emptied.
    async fn believed(&self, group: &GroupId, mut view: Box<View>) -> Result<Tried, FetchError> {
        if !view.members.is_empty() {
            return Ok(Tried::Done(Fetched::View(view)));
        }
        match self.info(group).await {
            Ok(None) => Ok(Tried::Done(Fetched::Unknown)),
            Ok(Some(info)) if info.member_count == 0 => Ok(Tried::Done(Fetched::View(view))),
            Ok(Some(info)) => Err(FetchError::Contradiction(info.member_count)),
            Err(error) if error.is_too_large() => {
                view.version = None;
                view.trouble = Some(Trouble::ProfileTooLarge);
                view.unshown = Unshown::SomeOf(0);
                Ok(Tried::Done(Fetched::View(view)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether these are all that there were at a version.
    async fn is_complete(
        &self,
        group: &GroupId,
        version: &Version,
        members: u64,
    ) -> Result<bool, Error> {
        let total = self.client.count_members(group).await?;
        let now = match self.client.changes(group, Some(version)).await {
            Err(error) if tells_nothing(&error) => return Ok(false),
            now => now?,
        };
        Ok(now.is_at(version) && total == members)
    }

    pub(super) async fn info(&self, group: &GroupId) -> Result<Option<Info>, Error> {
        let infos = self.client.group_infos(&[group]).await?;
        let mut infos = infos.into_iter();
        let info = infos.find(|info| info.group_id == group.as_str());
        Ok(info.map(|info| Info {
            member_count: info.member_count,
            held: info.held(),
        }))
    }

    /// Who the members are, of a group that OpenIM has just shown. `None`: they are too many.
    async fn ids(&self, group: &GroupId) -> Result<Option<MemberIds>, Error> {
        match self.client.member_ids(group).await {
            Ok(ids) => Ok(Some(ids)),
            Err(error) if error.is_too_large() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether it is only that OpenIM has no way to tell what has changed in the group.
fn tells_nothing(error: &Error) -> bool {
    let codes = [GROUP_DISMISSED, NOT_FOUND, GROUP_UNKNOWN];
    error.is_too_large() || error.code().is_some_and(|code| codes.contains(&code))
}

/// What has changed since a version; `None` where that does not tell all of it.
fn changed(group: &GroupId, delta: Delta) -> Option<Box<View>> {
    // Whether so many may have left is to be seen beside all the others.
    if delta.full || delta.delete.len() > FEW_GONE {
        return None;
    }
    let version = delta.version();
    let held = delta.group.clone().map(Group::held);
    if held.as_ref().is_some_and(|held| held.status == DISMISSED) {
        return None;
    }
    let (changed, absent) = split(group, delta);
    let mut members: HashMap<UserId, OpenImMember> = changed.collect();
    for user in &absent {
        members.remove(user);
    }
    Some(Box::new(View {
        group: held,
        members,
        logged_gone: absent.len() as u64,
        absent,
        unshown: Unshown::Nobody,
        is_whole: false,
        version: Some(version),
        trouble: None,
        room: None,
    }))
}

fn split(
    group: &GroupId,
    delta: Delta,
) -> (impl Iterator<Item = (UserId, OpenImMember)>, Vec<UserId>) {
    let absent = delta.delete.into_iter();
    let absent = absent.filter_map(|user| UserId::parse(user).ok()).collect();
    // Who came and was changed then is only among those who were.
    let changed = delta.insert.into_iter().chain(delta.update);
    (held(group, changed.collect()).into_iter(), absent)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::Access;
    use super::*;
    use crate::telemetry::Metrics;

    /// What is answered to a path and a request: data, or a code.
    type Answer = fn(&str, &Value) -> Result<Value, i64>;

    /// Reads from an OpenIM that answers so.
    async fn fetch(answer: Answer) -> Fetch {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let access = Access {
            url: format!("http://{}", listener.local_addr().unwrap()),
            admin_user_id: "imAdmin".to_owned(),
            secret: "secret".to_owned().into(),
            timeout: Duration::from_secs(5),
        };
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, answer));
            }
        });
        Fetch::new(Client::new(access, Metrics::new().unwrap()).unwrap())
    }

    async fn serve(mut connection: TcpStream, answer: Answer) {
        let mut text = Vec::new();
        loop {
            let head_and_body = String::from_utf8_lossy(&text).into_owned();
            let asked = head_and_body
                .split_once("\r\n\r\n")
                .and_then(|(head, body)| Some((head, serde_json::from_str(body).ok()?)));
            let Some((head, request)) = asked else {
                if connection.read_buf(&mut text).await.unwrap_or(0) == 0 {
                    return;
                }
                continue;
            };
            let path = head.split(' ').nth(1).unwrap();
            let envelope = match answer(path, &request) {
                Ok(data) => json!({"errCode": 0, "errMsg": "", "errDlt": "", "data": data}),
                Err(code) => json!({"errCode": code, "errMsg": "", "errDlt": ""}),
            };
            let body = envelope.to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let answer = head + &body;
            connection.write_all(answer.as_bytes()).await.unwrap();
            text.clear();
        }
    }

    fn delta(changed: Value) -> Value {
        let mut delta = json!({"version": 7, "versionID": "v", "full": false});
        for (name, value) in changed.as_object().unwrap() {
            delta[name] = value.clone();
        }
        delta
    }

    fn group() -> GroupId {
        GroupId::parse("g".to_owned()).unwrap()
    }

    fn users(ids: &[&str]) -> Vec<UserId> {
        let ids = ids.iter().map(|&id| UserId::parse(id.to_owned()).unwrap());
        ids.collect()
    }

    async fn since(answer: Answer, touched: &[&str]) -> Result<Option<Box<View>>, FetchError> {
        let version = Version {
            id: "v".to_owned(),
            number: 5,
        };
        let fetch = fetch(answer).await;
        let fetched = fetch.since(&group(), &version, &users(touched)).await?;
        Ok(fetched.map(|fetched| match fetched {
            Fetched::View(view) => view,
            other => panic!("{other:?}"),
        }))
    }

    fn sorted<'a>(users: impl IntoIterator<Item = &'a UserId>) -> Vec<&'a str> {
        let mut users: Vec<&str> = users.into_iter().map(UserId::as_str).collect();
        users.sort_unstable();
        users
    }

    #[tokio::test]
    async fn users_who_were_named_and_of_whom_no_change_is_told_are_asked_for() {
        let answer: Answer = |path, asked| match path {
            "/auth/get_admin_token" => Ok(json!({"token": "t"})),
            "/group/get_incremental_group_members" => {
                assert_eq!(
                    (&asked["version"], &asked["versionID"]),
                    (&json!(5), &json!("v"))
                );
                Ok(delta(
                    json!({"update": [{"groupID": "g", "userID": "u1"}], "delete": ["u2"]}),
                ))
            }
            "/group/get_group_members_info" => {
                let mut ids: Vec<_> = asked["userIDs"].as_array().unwrap().iter().collect();
                ids.sort_by_key(|id| id.as_str());
                assert_eq!(ids, ["u3", "u4"]);
                Ok(json!({"members": [{"groupID": "g", "userID": "u3", "roleLevel": 60}]}))
            }
            other => panic!("{other}"),
        };
        let touched = ["u1", "u2", "u3", "u4", "u4"];
        let view = since(answer, &touched).await.unwrap().unwrap();
        assert_eq!(sorted(view.members.keys()), ["u1", "u3"]);
        assert_eq!(view.members[&users(&["u3"])[0]].role_level, 60);
        assert_eq!(sorted(&view.absent), ["u2", "u4"]);
        assert_eq!((view.is_whole, &view.unshown), (false, &Unshown::Nobody));
        assert_eq!(view.version.unwrap().number, 7);
        assert_eq!(view.trouble, None);
    }

    #[tokio::test]
    async fn one_who_is_too_large_is_neither_there_nor_gone() {
        let answer: Answer = |path, asked| match path {
            "/auth/get_admin_token" => Ok(json!({"token": "t"})),
            "/group/get_incremental_group_members" => Ok(delta(json!({}))),
            _ => match asked["userIDs"].as_array().unwrap() {
                ids if ids.contains(&json!("u3")) => Err(8),
                ids => {
                    let there = ids.iter().filter(|id| **id != json!("u5"));
                    let there: Vec<_> = there
                        .map(|id| json!({"groupID": "g", "userID": id}))
                        .collect();
                    Ok(json!({"members": there}))
                }
            },
        };
        let touched = ["u1", "u2", "u3", "u4", "u5"];
        let view = since(answer, &touched).await.unwrap().unwrap();
        assert_eq!(sorted(view.members.keys()), ["u1", "u2", "u4"]);
        assert_eq!(sorted(&view.absent), ["u5"]);
        let unshown = Unshown::Users(users(&["u3"]).into_iter().collect());
        assert_eq!((view.unshown, view.version), (unshown, None));
        assert_eq!(view.trouble, Some(Trouble::MembersTooLarge(1)));
    }

    /// Ids that come from a cache that was just emptied say of nobody that they have left.
    #[tokio::test]
    async fn ids_that_are_fewer_than_openim_counts_are_not_believed() {
        async fn whole(answer: Answer) -> Box<View> {
            match fetch(answer).await.whole(&group()).await.unwrap() {
                Fetched::View(view) => view,
                other => panic!("{other:?}"),
            }
        }
        fn answer(path: &str) -> Result<Value, i64> {
            match path {
                "/auth/get_admin_token" => Ok(json!({"token": "t"})),
                "/group/get_group_member_list" => {
                    Ok(json!({"total": 3, "members": [{"groupID": "g", "userID": "u1"}]}))
                }
                "/group/get_groups_info" => Ok(json!({"groupInfos": [{"groupID": "g"}]})),
                "/group/get_full_group_member_user_ids" => {
                    Ok(json!({"version": 7, "versionID": "v", "userIDs": null}))
                }
                other => panic!("{other}"),
            }
        }
        let with_owner: Answer = |path, asked| match path {
            "/group/get_incremental_group_members" => {
                let is_first = asked["version"] == 0;
                Ok(delta(json!({"full": is_first, "group": {"groupID": "g"}})))
            }
            _ => answer(path),
        };
        let without_owner: Answer = |path, _| match path {
            "/group/get_incremental_group_members" => Err(1004),
            _ => answer(path),
        };
        for answer in [with_owner, without_owner] {
            let view = whole(answer).await;
            assert_eq!(sorted(view.members.keys()), ["u1"]);
            assert_eq!(view.unshown, Unshown::SomeOf(2));
            let trouble = Trouble::RowsMissing { total: 3, rows: 1 };
            assert_eq!((view.trouble, view.version), (Some(trouble), None));
        }
    }

    #[tokio::test]
    async fn what_does_not_tell_all_is_not_enough() {
        fn or_token(path: &str, answer: Result<Value, i64>) -> Result<Value, i64> {
            match path {
                "/auth/get_admin_token" => Ok(json!({"token": "t"})),
                _ => answer,
            }
        }
        let not_enough: [Answer; 6] = [
            |path, _| or_token(path, Ok(delta(json!({"full": true})))),
            |path, _| or_token(path, Ok(delta(json!({"delete": vec!["u"; 21]})))),
            |path, _| {
                or_token(
                    path,
                    Ok(delta(json!({"group": {"groupID": "g", "status": 2}}))),
                )
            },
            |path, _| or_token(path, Err(1004)),
            |path, _| or_token(path, Err(1204)),
            |path, _| or_token(path, Err(8)),
        ];
        for answer in not_enough {
            assert!(since(answer, &["u1"]).await.unwrap().is_none());
        }
        let refused = since(|path, _| or_token(path, Err(1001)), &[]).await;
        assert!(matches!(refused, Err(FetchError::Client(error)) if error.code() == Some(1001)));
    }
}
