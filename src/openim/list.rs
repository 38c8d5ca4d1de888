//! A group's members, page by page.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::Client;
use super::error::Error;
use super::pages::{PAGE, Pages};
use super::view::{Trouble, Unshown, View};
use super::wire::{Member, MemberIds};
use crate::domain::{GroupId, OpenImGroup, OpenImMember, UserId, Version};

/// Members that are held at a time, a few hundred bytes each. A group that has more is read alone.
pub(super) const MOST_MEMBERS: u32 = 100_000;
/// Rows of one list that are too large: with more, it is not the rows.
const MOST_UNREAD: u64 = 1000;

/// A list of members.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) members: HashMap<UserId, OpenImMember>,
    /// How many members OpenIM counts.
    total: u64,
    /// How many pages it was.
    pub(super) pages: usize,
    /// Members whose ids the mirror cannot hold.
    unkept: u64,
    /// Members who are larger than an answer.
    pub(super) unread: u64,
    room: Option<OwnedSemaphorePermit>,
}

impl List {
    /// Reads all pages, in `room` for so many members. What moves from one page to another meanwhile is
    /// missed.
    pub(super) async fn read(
        client: &Client,
        room: &Arc<Semaphore>,
        group: &GroupId,
    ) -> Result<Self, Error> {
        let mut list = Self::default();
        let mut pages = Pages::default();
        // Places in a row where nobody was who is not on an earlier page.
        let mut barren = 0;
        loop {
            let page = pages.page();
            let answer = match client.members(group, page).await {
                Ok(answer) => answer,
                Err(error) if error.is_too_large() => {
                    if pages.too_large().is_none() {
                        continue;
                    }
                    if list.unread == 0 && list.pages == 0 {
                        // There may be no row that can be read and tells it.
                        list.total = client.count_members(group).await?;
                    }
                    list.unread += 1;
                    if list.unread > MOST_UNREAD {
                        return Err(error);
                    }
                    if pages.start() >= list.total {
                        return Ok(list);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            pages.given();
            list.total = answer.total;
            if list.pages == 0 {
                // A page is held by whoever waits for the room of the others.
                let total = u32::try_from(answer.total).unwrap_or(u32::MAX);
                let wanted = total.min(MOST_MEMBERS);
                let permit = Arc::clone(room).acquire_many_owned(wanted).await;
                // It is never closed.
                list.room = permit.ok();
                list.members.reserve(wanted as usize);
            }
            list.pages += 1;
            let count = answer.members.len();
            let kept = held(group, answer.members);
            let before = list.members.len();
            list.unkept += (count - kept.len()) as u64;
            list.members.extend(kept);
            // A small page may have nobody, where OpenIM has lost a row; but there are APIs that give
            // the first page whatever is asked for.
            barren = match list.members.len() == before {
                true => barren + page.size,
                false => 0,
            };
            let is_last = pages.start() >= list.total || barren >= PAGE as u64;
            if is_last || !list.is_short() {
                return Ok(list);
            }
        }
    }

    /// How many members are accounted for.
    pub(super) fn count(&self) -> u64 {
        self.members.len() as u64 + self.unkept + self.unread
    }

    /// Whether there were to be more.
    pub(super) fn is_short(&self) -> bool {
        self.count() < self.total
    }

    /// How many members there are of whom there is no row.
    pub(super) fn missing(&self) -> u64 {
        self.total.saturating_sub(self.count()) + self.unread
    }

    /// Who may be a member though there is no row, where these are.
    pub(super) fn unshown(&self, ids: MemberIds) -> Unshown {
        // They may come from a cache that was just emptied.
        if (ids.user_ids.len() as u64) < self.total {
            return Unshown::SomeOf(self.missing());
        }
        let ids = ids.user_ids.into_iter();
        let ids = ids.filter_map(|id| UserId::parse(id).ok());
        let unshown: HashSet<UserId> = ids.filter(|id| !self.members.contains_key(id)).collect();
        match unshown.is_empty() {
            true => Unshown::Nobody,
            false => Unshown::Users(unshown),
        }
    }

    /// All of a group.
    pub(super) fn into_view(
        self,
        group: Option<OpenImGroup>,
        version: Option<Version>,
    ) -> Box<View> {
        Box::new(View {
            group,
            members: self.members,
            absent: vec![],
            logged_gone: 0,
            unshown: Unshown::Nobody,
            is_whole: true,
            version,
            trouble: None,
            room: self.room,
        })
    }

    /// What can be read of it.
    pub(super) fn into_part(self, group: Option<OpenImGroup>, unshown: Unshown) -> Box<View> {
        let trouble = match (&group, self.unread) {
            (None, _) => Trouble::ProfileTooLarge,
            (Some(_), 0) => Trouble::RowsMissing {
                total: self.total.max(self.count() + unshown.count()),
                rows: self.count(),
            },
            (Some(_), unread) => Trouble::MembersTooLarge(unread),
        };
        let mut view = self.into_view(group, None);
        view.unshown = unshown;
        view.trouble = Some(trouble);
        view
    }
}

/// Those whose ids the mirror can hold.
pub(super) fn held(group: &GroupId, members: Vec<Member>) -> Vec<(UserId, OpenImMember)> {
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
