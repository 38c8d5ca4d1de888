//! A group as OpenIM holds it: all of it, as it was at one moment.
//!
//! OpenIM lists members page by page, and between two pages anything may happen. So the group's
//! version is asked for before the first page and after the last. Where it has moved, what changed
//! in between is told with it: of each member the last state, so it can be put over what was read.
//! What it does not tell is who has moved from a page that was not read yet to one that was, because
//! somebody before them left. Then it is the number of members that shows whether anybody is missing.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::Client;
use super::error::Error;
use super::wire::{Delta, Group, Member};
use crate::domain::{DISMISSED, GroupId, HeldGroup, HeldMember, UserId, Version};

/// How often a group is read that changes faster than it can be read.
const TRIES: usize = 3;
/// No such record: an unknown group, or one without an owner where the group is to be told.
const NOT_FOUND: i64 = 1004;
const GROUP_UNKNOWN: i64 = 1201;
const GROUP_DISMISSED: i64 = 1204;
/// Members who left since a version, without a look at the whole group.
pub(super) const FEW_GONE: usize = 20;
/// Members that are held at a time, a few hundred bytes each. A group that has more is read alone.
const MOST_MEMBERS: u32 = 100_000;

/// What was read.
#[derive(Debug)]
pub(super) enum Fetched {
    /// All of a group, or what has changed in it.
    View(View),
    /// It is dismissed; whom it still has for members is nobody's concern.
    Dismissed(HeldGroup),
    /// OpenIM does not know it.
    Unknown,
}

/// A group and its members.
#[derive(Debug)]
pub(super) struct View {
    /// `None`: as it was.
    pub(super) group: Option<HeldGroup>,
    pub(super) members: HashMap<UserId, HeldMember>,
    /// Who is in no case a member. In a whole view nobody is who is not among the members.
    pub(super) absent: Vec<UserId>,
    pub(super) is_whole: bool,
    /// `None` where OpenIM tells none.
    pub(super) version: Option<Version>,
    /// Held for as long as the members are.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

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

    /// Reads all of a group.
    pub(super) async fn whole(&self, group: &GroupId) -> Result<Fetched, FetchError> {
        for _ in 0..TRIES {
            let before = match self.client.changes(group, None).await {
                Ok(delta) => delta,
                Err(error) => match error.code() {
                    Some(GROUP_DISMISSED | NOT_FOUND | GROUP_UNKNOWN) => {
                        match self.without_version(group).await? {
                            Some(fetched) => return Ok(fetched),
                            // It is there after all.
                            None => continue,
                        }
                    }
                    _ => return Err(error.into()),
                },
            };
            let version = before.version();
            let List {
                mut members,
                pages,
                unkept,
                is_short,
                room,
            } = self.members(group).await?;
            let after = match self.client.changes(group, Some(&version)).await {
                Ok(delta) => delta,
                // Dismissed meanwhile, or left without an owner.
                Err(error) if matches!(error.code(), Some(GROUP_DISMISSED | NOT_FOUND)) => continue,
                Err(error) => return Err(error.into()),
            };
            if after.full {
                continue;
            }
            let Some(held) = self.group_at(group, before.group, &after).await? else {
                continue;
            };
            let is_still = after.is_at(&version);
            let version = after.version();
            let (changed, absent) = split(group, after);
            members.extend(changed);
            for user in absent {
                members.remove(&user);
            }
            // A list with fewer rows than it says is one of a cache that is behind.
            let may_lack_some = is_short || (!is_still && pages > 1);
            let count = members.len() as u64 + unkept;
            if may_lack_some && !self.is_complete(group, &version, count).await? {
                continue;
            }
            let view = View {
                group: Some(held),
                members,
                absent: vec![],
                is_whole: true,
                version: Some(version),
                room,
            };
            return self.believed(group, view).await;
        }
        Err(FetchError::Restless)
    }

    pub(super) async fn since(
        &self,
        group: &GroupId,
        version: &Version,
        touched: &[UserId],
    ) -> Result<Option<Fetched>, FetchError> {
        let delta = match self.client.changes(group, Some(version)).await {
            Err(error) if error.code().is_some() => return Ok(None),
            delta => delta?,
        };
        self.from_delta(group, delta, touched).await
    }

    pub(super) async fn from_delta(
        &self,
        group: &GroupId,
        delta: Delta,
        touched: &[UserId],
    ) -> Result<Option<Fetched>, FetchError> {
        let _ = touched;
        Ok(Self::changed(group, delta))
    }

    /// What has changed since a version; `None` where that does not tell all of it.
    pub(super) fn changed(group: &GroupId, delta: Delta) -> Option<Fetched> {
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
        let mut members: HashMap<UserId, HeldMember> = changed.collect();
        for user in &absent {
            members.remove(user);
        }
        Some(Fetched::View(View {
            group: held,
            members,
            absent,
            is_whole: false,
            version: Some(version),
            room: None,
        }))
    }

    /// The group itself as of the version after the members were read. `None`: it is dismissed, or
    /// gone.
    async fn group_at(
        &self,
        group: &GroupId,
        before: Option<Group>,
        after: &Delta,
    ) -> Result<Option<HeldGroup>, FetchError> {
        let told = match after.group.clone().or(before) {
            Some(told) => Some(told),
            None => self.info(group).await?,
        };
        let held = told.map(Group::held);
        Ok(held.filter(|held| held.status != DISMISSED))
    }

    /// Of a group without a version: it is dismissed, or unknown, or has no owner. Then two lists
    /// that are the same are all that there is to go by.
    async fn without_version(&self, group: &GroupId) -> Result<Option<Fetched>, FetchError> {
        let Some(info) = self.info(group).await? else {
            return Ok(Some(Fetched::Unknown));
        };
        let held = info.held();
        if held.status == DISMISSED {
            return Ok(Some(Fetched::Dismissed(held)));
        }
        if held.owner.is_some() {
            return Ok(None);
        }
        let mut list = self.members(group).await?;
        for _ in 0..TRIES {
            let before = list.members;
            // Two of them are held only here.
            drop(list.room);
            list = self.members(group).await?;
            if list.members != before || list.is_short {
                continue;
            }
            let Some(info) = self.info(group).await? else {
                return Ok(Some(Fetched::Unknown));
            };
            if info.clone().held() != held {
                return Ok(None);
            }
            let view = View {
                group: Some(held),
                members: list.members,
                absent: vec![],
                is_whole: true,
                version: None,
                room: list.room,
            };
            return self.believed(group, view).await.map(Some);
        }
        Err(FetchError::Restless)
    }

    /// That a group has no members is believed only where its own state says so too: an answer
    /// without any can come from a cache that was just emptied.
    async fn believed(&self, group: &GroupId, view: View) -> Result<Fetched, FetchError> {
        if !view.members.is_empty() {
            return Ok(Fetched::View(view));
        }
        match self.info(group).await? {
            None => Ok(Fetched::Unknown),
            Some(info) if info.member_count == 0 => Ok(Fetched::View(view)),
            Some(info) => Err(FetchError::Contradiction(info.member_count)),
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
            Err(error) if matches!(error.code(), Some(GROUP_DISMISSED | NOT_FOUND)) => {
                return Ok(false);
            }
            now => now?,
        };
        Ok(now.is_at(version) && total == members)
    }

    pub(super) async fn info(&self, group: &GroupId) -> Result<Option<Group>, Error> {
        let infos = self.client.group_infos(&[group]).await?;
        Ok(infos
            .into_iter()
            .find(|info| info.group_id == group.as_str()))
    }

    /// All pages. What moves from one to another meanwhile is missed here.
    async fn members(&self, group: &GroupId) -> Result<List, Error> {
        let mut list = List::default();
        for page in 1.. {
            let answer = self.client.members(group, page).await?;
            let count = answer.members.len();
            if page == 1 {
                // A page is held by whoever waits for the room of the others.
                let total = u32::try_from(answer.total).unwrap_or(u32::MAX);
                let wanted = total.min(MOST_MEMBERS);
                let permit = Arc::clone(&self.room).acquire_many_owned(wanted).await;
                // It is never closed.
                list.room = permit.ok();
                list.members.reserve(wanted as usize);
            }
            let kept = held(group, answer.members);
            let before = list.members.len();
            list.unkept += (count - kept.len()) as u64;
            list.members.extend(kept);
            list.pages = page;
            let read = list.members.len() as u64 + list.unkept;
            list.is_short = read < answer.total;
            // A page without anybody new is the last, or one that was given before.
            if !list.is_short || list.members.len() == before {
                break;
            }
        }
        Ok(list)
    }
}

/// A list of members.
#[derive(Debug, Default)]
struct List {
    members: HashMap<UserId, HeldMember>,
    /// How many pages it was.
    pages: usize,
    /// Members whose ids the mirror cannot hold.
    unkept: u64,
    /// Whether there were to be more.
    is_short: bool,
    room: Option<OwnedSemaphorePermit>,
}

fn split(
    group: &GroupId,
    delta: Delta,
) -> (impl Iterator<Item = (UserId, HeldMember)>, Vec<UserId>) {
    let absent = delta.delete.into_iter();
    let absent = absent.filter_map(|user| UserId::parse(user).ok()).collect();
    // Who came and was changed then is only among those who were.
    let changed = delta.insert.into_iter().chain(delta.update);
    (held(group, changed.collect()).into_iter(), absent)
}

/// Those whose ids the mirror can hold.
fn held(group: &GroupId, members: Vec<Member>) -> Vec<(UserId, HeldMember)> {
    let held = members.into_iter().filter_map(|member| {
        let held = member.held();
        if let Err(error) = &held {
            let (group, error) = (group.as_str(), error.to_string());
            tracing::warn!(
                group,
                error,
                "OpenIM has a member whose userID cannot be kept"
            );
        }
        held.ok()
    });
    held.collect()
}
