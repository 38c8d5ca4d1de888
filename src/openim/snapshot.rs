//! Snapshots: a group as OpenIM shows it, all of it as of one moment.
//!
//! OpenIM lists members page by page, and a group can change between two pages. So the group's version is read before
//! the first page and after the last. If it has moved, OpenIM also sends the changes: the last state of each changed
//! member, which replaces what the pages have. The changes do not show a member that moved to a page that was read
//! already, because another member left. The number of members shows that one is missing.
//!
//! For a group without an owner, or one that is too large, OpenIM sends no changes, but the ids of its members and a
//! version. Such a group is complete if its rows have the same ids and the version stands still.
//!
//! Some of a group may be unreadable: a row that is larger than any answer, or one that OpenIM counts and does not
//! send. The snapshot then has the rest, and the users that may be members too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::calls::{Halves, LARGEST_PAGE, MAX_MEMBERS_IN_MEMORY, MemberList, parse_members};
use super::client::Client;
use super::error::Error;
use super::wire::{Delta, GroupInfo, MemberIds};
use crate::domain::{DISMISSED, GroupId, OpenImGroup, OpenImMember, UserId, Version};

/// Attempts to read a group that changes meanwhile.
const MAX_ATTEMPTS: usize = 3;
/// OpenIM's code of a missing record: an unknown group, or one without an owner where it sends the group.
pub(crate) const NOT_FOUND: i64 = 1004;
const GROUP_UNKNOWN: i64 = 1201;
const GROUP_DISMISSED: i64 = 1204;
/// Most leaves since a version that are believed without reading the whole group.
pub(crate) const MAX_DELTA_LEAVES: usize = 20;

/// A group that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A call failed.
    #[error(transparent)]
    Client(#[from] Error),
    /// Each attempt saw another version.
    #[error("it changes faster than it can be read")]
    Restless,
    /// OpenIM counts members and lists none.
    #[error("OpenIM lists no members, and counts {0}")]
    Contradiction(u64),
}

/// State of a group in OpenIM.
#[derive(Debug)]
pub(crate) enum GroupState {
    /// The group exists. The snapshot has all of it that can be read, or its changes.
    Present(Box<GroupSnapshot>),
    /// The group is dismissed; the members that OpenIM may still have do not count. `None`: its profile is too large to
    /// be read.
    Dismissed(Option<OpenImGroup>),
    /// OpenIM does not know the group.
    Unknown,
}

/// A group and its members.
#[derive(Debug)]
pub(crate) struct GroupSnapshot {
    /// `None`: not changed, or too large to be read.
    pub(crate) group: Option<OpenImGroup>,
    pub(crate) members: HashMap<UserId, OpenImMember>,
    /// Users that are surely no members. In a whole snapshot all other users are no members, except `unlisted`.
    pub(crate) absent: Vec<UserId>,
    /// Number of users in `absent` that OpenIM's log of changes names. Unlike a list that is too short, the log names
    /// only users that have left.
    pub(crate) logged_leaves: u64,
    /// Users that may be members all the same.
    pub(crate) unlisted: Unlisted,
    /// False if this has only changes since a version.
    pub(crate) is_whole: bool,
    /// `None` if the snapshot is incomplete.
    pub(crate) version: Option<Version>,
    /// The reason, if some of the group is missing.
    pub(crate) incomplete: Option<Incomplete>,
    /// Permit for the members in memory.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// Members that OpenIM does not list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unlisted {
    /// There are none.
    Nobody,
    /// These users.
    Users(HashSet<UserId>),
    /// At least so many users, with unknown ids.
    AtLeast(u64),
}

impl Unlisted {
    /// Least number of these users.
    fn count(&self) -> u64 {
        match self {
            Self::Nobody => 0,
            Self::Users(users) => users.len() as u64,
            Self::AtLeast(count) => *count,
        }
    }

    /// True if the user may be a member.
    pub(crate) fn may_be(&self, user: &UserId) -> bool {
        match self {
            Self::Nobody => false,
            Self::Users(users) => users.contains(user),
            Self::AtLeast(_) => true,
        }
    }
}

/// Reason why a snapshot does not have all of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incomplete {
    /// OpenIM counts more members than it lists.
    RowsMissing { total: u64, rows: u64 },
    /// So many members are larger than an answer.
    MembersTooLarge(u64),
    /// The ids of all members are larger than an answer.
    IdsTooLarge,
    /// The group itself is larger than an answer.
    ProfileTooLarge,
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::RowsMissing { total, rows } => {
                return write!(f, "OpenIM counts {total} members and gives rows of {rows}");
            }
            Self::MembersTooLarge(1) => "one member is",
            Self::MembersTooLarge(members) => {
                write!(f, "{members} ")?;
                "members are"
            }
            Self::IdsTooLarge => "the list of its members' ids is",
            Self::ProfileTooLarge => "the group's own profile is",
        };
        write!(f, "{what} too large for an answer of OpenIM")
    }
}

impl MemberList {
    /// Finds the members without a row, among these ids.
    fn unlisted(&self, ids: MemberIds) -> Unlisted {
        // The ids may come from a cache that was just emptied.
        if (ids.user_ids.len() as u64) < self.total {
            return Unlisted::AtLeast(self.missing());
        }
        let ids = ids.user_ids.into_iter();
        let ids = ids.filter_map(|id| UserId::parse(id).ok());
        let unlisted: HashSet<UserId> = ids.filter(|id| !self.members.contains_key(id)).collect();
        match unlisted.is_empty() {
            true => Unlisted::Nobody,
            false => Unlisted::Users(unlisted),
        }
    }

    /// Makes the snapshot of a group that was read completely.
    fn into_whole(
        self,
        group: Option<OpenImGroup>,
        version: Option<Version>,
    ) -> Box<GroupSnapshot> {
        Box::new(GroupSnapshot {
            group,
            members: self.members,
            absent: vec![],
            logged_leaves: 0,
            unlisted: Unlisted::Nobody,
            is_whole: true,
            version,
            incomplete: None,
            permit: self.permit,
        })
    }

    /// Makes the snapshot of what can be read.
    fn into_incomplete(self, group: Option<OpenImGroup>, unlisted: Unlisted) -> Box<GroupSnapshot> {
        let why = match (&group, self.too_large) {
            (None, _) => Incomplete::ProfileTooLarge,
            (Some(_), 0) => Incomplete::RowsMissing {
                total: self.total.max(self.count() + unlisted.count()),
                rows: self.count(),
            },
            (Some(_), too_large) => Incomplete::MembersTooLarge(too_large),
        };
        self.into_whole(group, None).incomplete(why, unlisted)
    }
}

impl GroupSnapshot {
    fn incomplete(mut self: Box<Self>, why: Incomplete, unlisted: Unlisted) -> Box<Self> {
        self.version = None;
        self.incomplete = Some(why);
        self.unlisted = unlisted;
        self
    }
}

/// End of an attempt to read a group.
enum Attempt {
    Done(GroupState),
    /// The group has changed meanwhile.
    Moved,
    /// Rows are missing at a version that stands still. The reason may be a cache that is behind.
    Short(Box<GroupSnapshot>),
}

impl Attempt {
    fn present(snapshot: Box<GroupSnapshot>) -> Self {
        Self::Done(GroupState::Present(snapshot))
    }

    /// Ends an attempt with an incomplete snapshot. Another attempt may find missing rows, but not make a large row
    /// smaller.
    fn incomplete(snapshot: Box<GroupSnapshot>) -> Self {
        match snapshot.incomplete {
            Some(Incomplete::RowsMissing { .. }) => Self::Short(snapshot),
            _ => Self::present(snapshot),
        }
    }
}

/// Reads groups.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) client: Client,
    /// Has a permit for each member in memory.
    memory: Arc<Semaphore>,
}

impl Reader {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            memory: Arc::new(Semaphore::new(MAX_MEMBERS_IN_MEMORY as usize)),
        }
    }

    /// Reads the whole group, as far as it can be read.
    pub(crate) async fn whole(&self, group: &GroupId) -> Result<GroupState, ReadError> {
        let mut was_short = false;
        for number in 1..=MAX_ATTEMPTS {
            match self.try_whole(group).await? {
                Attempt::Done(state) => return Ok(state),
                Attempt::Moved => {}
                Attempt::Short(snapshot) => {
                    if was_short || number == MAX_ATTEMPTS {
                        return Ok(GroupState::Present(snapshot));
                    }
                    was_short = true;
                }
            }
        }
        Err(ReadError::Restless)
    }

    async fn try_whole(&self, group: &GroupId) -> Result<Attempt, ReadError> {
        let before = match self.client.changes(group, None).await {
            Ok(delta) => delta,
            Err(error) if has_no_changes(&error) => {
                return self.try_without_changes(group, &error).await;
            }
            Err(error) => return Err(error.into()),
        };
        let version = before.version();
        let mut list = MemberList::read(&self.client, &self.memory, group).await?;
        let after = match self.client.changes(group, Some(&version)).await {
            Ok(delta) if !delta.full => delta,
            Ok(_) => return Ok(Attempt::Moved),
            // Meanwhile it was dismissed, has lost its owner, or has changed a lot.
            Err(error) if has_no_changes(&error) => return Ok(Attempt::Moved),
            Err(error) => return Err(error.into()),
        };
        let Some(profile) = self.group_at(group, before.group, &after).await? else {
            return Ok(Attempt::Moved);
        };
        let is_still = after.is_at(&version);
        let version = after.version();
        let (changed, absent) = parse_changes(group, after);
        list.members.extend(changed);
        for user in absent {
            list.members.remove(&user);
        }
        if list.too_large == 0 {
            // A list with fewer rows than its total comes from a cache that is behind.
            let may_lack_some = list.is_short() || (!is_still && list.pages > 1);
            if !may_lack_some || self.is_complete(group, &version, list.count()).await? {
                let snapshot = list.into_whole(Some(profile), Some(version));
                return self.confirm_if_empty(group, snapshot).await;
            }
            if !(list.is_short() && is_still) {
                return Ok(Attempt::Moved);
            }
        }
        let unlisted = match self.member_ids(group).await? {
            Some(ids) if ids.version() != version => return Ok(Attempt::Moved),
            Some(ids) => list.unlisted(ids),
            None => Unlisted::AtLeast(list.missing()),
        };
        Ok(Attempt::incomplete(
            list.into_incomplete(Some(profile), unlisted),
        ))
    }

    /// Reads a group for which OpenIM sends no changes: it is dismissed, unknown, too large, or has no owner.
    async fn try_without_changes(
        &self,
        group: &GroupId,
        why: &Error,
    ) -> Result<Attempt, ReadError> {
        let info = match self.info(group).await {
            Ok(None) => return Ok(Attempt::Done(GroupState::Unknown)),
            Ok(Some(info)) => Some(info),
            // The group exists: the answer for an unknown group is small.
            Err(error) if error.is_too_large() => None,
            Err(error) => return Err(error.into()),
        };
        let is_dismissed = match &info {
            Some((profile, _)) => profile.status == DISMISSED,
            None => why.code() == Some(GROUP_DISMISSED),
        };
        if is_dismissed {
            let profile = info.map(|(profile, _)| profile);
            return Ok(Attempt::Done(GroupState::Dismissed(profile)));
        }
        // This also reads a group that has an owner after all.
        let before = self.member_ids(group).await?.map(|ids| ids.version());
        let list = MemberList::read(&self.client, &self.memory, group).await?;
        let after = self.member_ids(group).await?;
        let info_after = match &info {
            Some(_) => self.info(group).await?,
            None => None,
        };
        let profile = info_after.map(|(profile, _)| profile);
        let version = after.as_ref().map(MemberIds::version);
        if version != before || profile != info.map(|(profile, _)| profile) {
            return Ok(Attempt::Moved);
        }
        let Some(ids) = after else {
            let unlisted = Unlisted::AtLeast(list.missing());
            let snapshot = list.into_whole(profile, None);
            return Ok(Attempt::present(
                snapshot.incomplete(Incomplete::IdsTooLarge, unlisted),
            ));
        };
        let has_all = ids.user_ids.len() as u64 == list.count() && !list.is_short();
        let unlisted = list.unlisted(ids);
        if list.too_large > 0 || !has_all || unlisted != Unlisted::Nobody {
            return Ok(Attempt::incomplete(list.into_incomplete(profile, unlisted)));
        }
        let has_profile = profile.is_some();
        let mut snapshot = list.into_whole(profile, version);
        if !has_profile {
            snapshot = snapshot.incomplete(Incomplete::ProfileTooLarge, Unlisted::Nobody);
        }
        self.confirm_if_empty(group, snapshot).await
    }

    /// Reads the changes since a version, and the state of the users in `touched`. `None`: only the whole group says
    /// enough.
    pub(crate) async fn since(
        &self,
        group: &GroupId,
        version: &Version,
        touched: &[UserId],
    ) -> Result<Option<Box<GroupSnapshot>>, ReadError> {
        match self.client.changes(group, Some(version)).await {
            Ok(delta) => self.by_delta(group, delta, touched).await,
            Err(error) if has_no_changes(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Self::since`], for changes that were read before.
    pub(crate) async fn by_delta(
        &self,
        group: &GroupId,
        delta: Delta,
        touched: &[UserId],
    ) -> Result<Option<Box<GroupSnapshot>>, ReadError> {
        let Some(mut snapshot) = snapshot_of_changes(group, delta) else {
            return Ok(None);
        };
        let is_known =
            |user: &UserId| snapshot.members.contains_key(user) || snapshot.absent.contains(user);
        let others: HashSet<&UserId> = touched.iter().filter(|user| !is_known(user)).collect();
        let others: Vec<&UserId> = others.into_iter().collect();
        let mut too_large = HashSet::new();
        let mut halves = Halves::of(&others, LARGEST_PAGE);
        while let Some(part) = halves.next() {
            match self.client.members_named(group, part).await {
                Ok(named) => {
                    let mut named: HashMap<_, _> =
                        parse_members(group, named).into_iter().collect();
                    for &user in part {
                        match named.remove(user) {
                            Some(member) => {
                                snapshot.members.insert(user.clone(), member);
                            }
                            None => snapshot.absent.push(user.clone()),
                        }
                    }
                }
                Err(error) if error.is_too_large() => {
                    too_large.extend(halves.split(part).map(|&user| user.clone()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !too_large.is_empty() {
            let why = Incomplete::MembersTooLarge(too_large.len() as u64);
            snapshot = snapshot.incomplete(why, Unlisted::Users(too_large));
        }
        Ok(Some(snapshot))
    }

    /// Returns the group itself as of the version after its members were read. `None`: it is dismissed or unknown.
    async fn group_at(
        &self,
        group: &GroupId,
        before: Option<GroupInfo>,
        after: &Delta,
    ) -> Result<Option<OpenImGroup>, ReadError> {
        let profile = match after.group.clone().or(before) {
            Some(info) => Some(info.into_domain()),
            None => self.info(group).await?.map(|(profile, _)| profile),
        };
        Ok(profile.filter(|profile| profile.status != DISMISSED))
    }

    /// Accepts a snapshot without members only if the group itself counts none: the empty list can come from a cache
    /// that was just emptied.
    async fn confirm_if_empty(
        &self,
        group: &GroupId,
        snapshot: Box<GroupSnapshot>,
    ) -> Result<Attempt, ReadError> {
        if !snapshot.members.is_empty() {
            return Ok(Attempt::present(snapshot));
        }
        match self.info(group).await {
            Ok(None) => Ok(Attempt::Done(GroupState::Unknown)),
            Ok(Some((_, 0))) => Ok(Attempt::present(snapshot)),
            Ok(Some((_, members))) => Err(ReadError::Contradiction(members)),
            Err(error) if error.is_too_large() => Ok(Attempt::present(
                snapshot.incomplete(Incomplete::ProfileTooLarge, Unlisted::AtLeast(0)),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// True if the group has so many members and is still at the version.
    async fn is_complete(
        &self,
        group: &GroupId,
        version: &Version,
        members: u64,
    ) -> Result<bool, Error> {
        let total = self.client.count_members(group).await?;
        let now = match self.client.changes(group, Some(version)).await {
            Err(error) if has_no_changes(&error) => return Ok(false),
            now => now?,
        };
        Ok(now.is_at(version) && total == members)
    }

    /// Reads the group itself and the number of its members. `None`: OpenIM does not know it.
    pub(crate) async fn info(&self, group: &GroupId) -> Result<Option<(OpenImGroup, u64)>, Error> {
        let infos = self.client.group_infos(&[group]).await?;
        let mut infos = infos.into_iter();
        let info = infos.find(|info| info.group_id == group.as_str());
        Ok(info.map(|info| {
            let members = info.member_count;
            (info.into_domain(), members)
        }))
    }

    /// Reads the member ids of a group that OpenIM has just shown. `None`: they are larger than an answer.
    async fn member_ids(&self, group: &GroupId) -> Result<Option<MemberIds>, Error> {
        match self.client.member_ids(group).await {
            Ok(ids) => Ok(Some(ids)),
            Err(error) if error.is_too_large() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// True if the error only says that OpenIM cannot list the changes of the group.
fn has_no_changes(error: &Error) -> bool {
    let codes = [GROUP_DISMISSED, NOT_FOUND, GROUP_UNKNOWN];
    error.is_too_large() || error.code().is_some_and(|code| codes.contains(&code))
}

/// Makes a snapshot of changes. `None`: only the whole group says enough.
fn snapshot_of_changes(group: &GroupId, delta: Delta) -> Option<Box<GroupSnapshot>> {
    // Many leaves are believed only beside all other members.
    if delta.full || delta.delete.len() > MAX_DELTA_LEAVES {
        return None;
    }
    let version = delta.version();
    let profile = delta.group.clone().map(GroupInfo::into_domain);
    if profile
        .as_ref()
        .is_some_and(|profile| profile.status == DISMISSED)
    {
        return None;
    }
    let (changed, absent) = parse_changes(group, delta);
    let mut members: HashMap<UserId, OpenImMember> = changed.collect();
    for user in &absent {
        members.remove(user);
    }
    Some(Box::new(GroupSnapshot {
        group: profile,
        members,
        logged_leaves: absent.len() as u64,
        absent,
        unlisted: Unlisted::Nobody,
        is_whole: false,
        version: Some(version),
        incomplete: None,
        permit: None,
    }))
}

/// Returns the members of a delta that came or changed, and the users that left.
fn parse_changes(
    group: &GroupId,
    delta: Delta,
) -> (impl Iterator<Item = (UserId, OpenImMember)>, Vec<UserId>) {
    let absent = delta.delete.into_iter();
    let absent = absent.filter_map(|user| UserId::parse(user).ok()).collect();
    // A member that came and then changed is only in `update`, so `update` is last.
    let changed = delta.insert.into_iter().chain(delta.update);
    (parse_members(group, changed.collect()).into_iter(), absent)
}

#[cfg(test)]
mod tests;
