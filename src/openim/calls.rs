//! Calls of OpenIM that a reconcile needs, one function each, and pages that get smaller if an answer is too large.
//!
//! OpenIM's services send each other answers of at most 4 or 8 MiB, and answer with an error if more is asked for. The
//! number of rows that fit is not known before: the `ex` of one member may have 5 MiB.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::Client;
use super::error::Error;
use super::wire::{
    Delta, Deltas, GroupInfo, GroupInfoList, ListedGroups, ListedMembers, MemberIds, MemberInfo,
};
use crate::domain::{GroupId, OpenImMember, UserId, Version};

/// ListPage sizes, the largest first. Each one divides the one before: pages are asked for by number, so the rest of a
/// page that is too large has to start at a whole smaller page.
const PAGE_SIZES: [u64; 7] = [1000, 500, 250, 125, 25, 5, 1];
/// ListPages in a row after which the next page is larger again. With 4, at most one page in five is too large if all
/// large pages are, and one large row makes few rows come one by one.
const PAGES_BEFORE_GROWTH: u32 = 4;
/// Groups or members on the largest page.
pub(crate) const LARGEST_PAGE: usize = PAGE_SIZES[0] as usize;
/// ListPage without rows. OpenIM still sends the total.
const NO_ROWS: ListPage = ListPage { number: 1, size: 0 };
/// Members in memory at a time, of a few hundred bytes each. A group that has more is read alone.
pub(super) const MAX_MEMBERS_IN_MEMORY: u32 = 100_000;
/// Most rows of a list that can be too large for an answer. With more, the reason is not the rows.
const MAX_TOO_LARGE_ROWS: usize = 1000;

impl Client {
    /// Reads a page of all groups that are not dismissed, the newest first.
    pub(crate) async fn groups(&self, page: ListPage) -> Result<ListedGroups, Error> {
        let request = json!({
            "pagination": {"pageNumber": page.number, "showNumber": page.size},
            "groupName": "",
            "groupID": "",
        });
        // No check: any group can be on the page. Callers drop duplicates.
        self.call("/group/get_groups", &request, |_: &ListedGroups| Ok(()))
            .await
    }

    /// Counts the groups that are not dismissed.
    pub(crate) async fn count_groups(&self) -> Result<u64, Error> {
        Ok(self.groups(NO_ROWS).await?.total)
    }

    /// Reads groups, dismissed or not. Leaves out groups that OpenIM does not know.
    pub(crate) async fn group_infos(&self, groups: &[&GroupId]) -> Result<Vec<GroupInfo>, Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let request = json!({"groupIDs": ids});
        let check = |infos: &GroupInfoList| infos.check(groups);
        let infos = self.call("/group/get_groups_info", &request, check);
        Ok(infos.await?.group_infos)
    }

    /// Reads a page of a group's members. A group that OpenIM does not know has none.
    async fn members(&self, group: &GroupId, page: ListPage) -> Result<ListedMembers, Error> {
        let request = json!({
            "groupID": group.as_str(),
            "pagination": {"pageNumber": page.number, "showNumber": page.size},
            "filter": 0,
            "keyword": "",
        });
        let check = |members: &ListedMembers| members.check(group);
        self.call("/group/get_group_member_list", &request, check)
            .await
    }

    /// Counts a group's members.
    pub(crate) async fn count_members(&self, group: &GroupId) -> Result<u64, Error> {
        Ok(self.members(group, NO_ROWS).await?.total)
    }

    /// Reads the members among at most 1000 users.
    pub(super) async fn members_named(
        &self,
        group: &GroupId,
        users: &[&UserId],
    ) -> Result<Vec<MemberInfo>, Error> {
        let ids: Vec<&str> = users.iter().map(|user| user.as_str()).collect();
        let request = json!({"groupID": group.as_str(), "userIDs": ids});
        let check = |named: &ListedMembers| named.check_named(group, users);
        let named = self.call("/group/get_group_members_info", &request, check);
        Ok(named.await?.members)
    }

    /// Reads the ids of all members, and a version that is not older. Only for groups that OpenIM has just shown: for
    /// an unknown group OpenIM makes a version.
    pub(super) async fn member_ids(&self, group: &GroupId) -> Result<MemberIds, Error> {
        // With a matching hash OpenIM would leave out the ids.
        let request = json!({"groupID": group.as_str(), "idHash": 0});
        self.call(
            "/group/get_full_group_member_user_ids",
            &request,
            MemberIds::check,
        )
        .await
    }

    /// Reads the changes of a group since a version. Without a version, the answer only has the current one.
    pub(crate) async fn changes(
        &self,
        group: &GroupId,
        since: Option<&Version>,
    ) -> Result<Delta, Error> {
        let request = json!({
            "groupID": group.as_str(),
            "versionID": since.map_or("", |version| &version.id),
            "version": since.map_or(0, |version| version.number),
        });
        let check = |delta: &Delta| delta.check(group, since);
        self.call("/group/get_incremental_group_members", &request, check)
            .await
    }

    /// Reads the changes of several groups. OpenIM leaves out dismissed groups and, if the answer gets large, the last
    /// groups. It answers with an error for all groups if one is unknown, or has changed and has no owner.
    pub(crate) async fn changes_of(
        &self,
        groups: &[(&GroupId, &Version)],
    ) -> Result<Vec<(GroupId, Delta)>, Error> {
        let list: Vec<_> = groups
            .iter()
            .map(|(group, version)| {
                json!({
                    "groupID": group.as_str(),
                    "versionID": version.id,
                    "version": version.number,
                })
            })
            .collect();
        // OpenIM requires the user id and does not use it.
        let request = json!({"userID": "", "reqList": list});
        let check = |deltas: &Deltas| deltas.check(groups);
        let deltas = self
            .call(
                "/group/get_incremental_group_members_batch",
                &request,
                check,
            )
            .await?;
        let deltas = deltas.resp_list.unwrap_or_default().into_iter();
        let known = deltas.filter_map(|(group, delta)| Some((GroupId::parse(group).ok()?, delta)));
        Ok(known.collect())
    }
}

/// All members of a group, read page by page.
#[derive(Debug, Default)]
pub(super) struct MemberList {
    pub(super) members: HashMap<UserId, OpenImMember>,
    /// Members that OpenIM counts.
    pub(super) total: u64,
    /// ListPages that were read.
    pub(super) pages: usize,
    /// Members whose ids the mirror cannot keep.
    unkept: u64,
    /// Members that are too large for an answer.
    pub(super) too_large: u64,
    /// Permit for the members in memory.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl MemberList {
    /// Reads all pages; `memory` has a permit for each member in memory. Misses members that move from one page to
    /// another meanwhile.
    pub(super) async fn read(
        client: &Client,
        memory: &Arc<Semaphore>,
        group: &GroupId,
    ) -> Result<Self, Error> {
        let mut list = Self::default();
        let mut pages = ListPages::default();
        // Rows in a row without a new member.
        let mut rows_without_new = 0;
        loop {
            let read = |page| client.members(group, page);
            let count = client.count_members(group);
            let next = pages.next(read, count).await?;
            list.too_large = pages.too_large.len() as u64;
            let Some((page, answer)) = next else {
                list.total = pages.total.unwrap_or_default();
                return Ok(list);
            };
            pages.total = Some(answer.total);
            list.total = answer.total;
            if list.pages == 0 {
                // The first page has the total, so it stays in memory without a permit meanwhile.
                let total = u32::try_from(answer.total).unwrap_or(u32::MAX);
                let wanted = total.min(MAX_MEMBERS_IN_MEMORY);
                let permit = Arc::clone(memory).acquire_many_owned(wanted).await;
                // The semaphore is never closed.
                list.permit = permit.ok();
                list.members.reserve(wanted as usize);
            }
            list.pages += 1;
            let count = answer.members.len();
            let parsed = parse_members(group, answer.members);
            let before = list.members.len();
            list.unkept += (count - parsed.len()) as u64;
            list.members.extend(parsed);
            // A small page can be empty, if OpenIM has lost a row. But some APIs answer each page with the first one.
            rows_without_new = match list.members.len() == before {
                true => rows_without_new + page.size,
                false => 0,
            };
            let is_last = pages.start() >= list.total || rows_without_new >= LARGEST_PAGE as u64;
            if is_last || !list.is_short() {
                return Ok(list);
            }
        }
    }

    /// Members that are read, unkept or too large.
    pub(super) fn count(&self) -> u64 {
        self.members.len() as u64 + self.unkept + self.too_large
    }

    /// True if OpenIM counts more members.
    pub(super) fn is_short(&self) -> bool {
        self.count() < self.total
    }

    /// Members without a row.
    pub(super) fn missing(&self) -> u64 {
        self.total.saturating_sub(self.count()) + self.too_large
    }
}

/// Parses members, and leaves out those with an id that the mirror cannot keep.
pub(super) fn parse_members(
    group: &GroupId,
    members: Vec<MemberInfo>,
) -> Vec<(UserId, OpenImMember)> {
    let parsed = members.into_iter().filter_map(|member| {
        let parsed = member.into_domain();
        if let Err(error) = &parsed {
            let (group, error) = (group.as_str(), error.to_string());
            tracing::warn!(
                group,
                error,
                "OpenIM has a member whose userID cannot be kept"
            );
        }
        parsed.ok()
    });
    parsed.collect()
}

/// ListPage of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListPage {
    /// Number of the page, from 1.
    pub(crate) number: u64,
    pub(crate) size: u64,
}

/// Position in a list that is read page by page.
#[derive(Debug, Default)]
pub(crate) struct ListPages {
    /// Rows before the page.
    start: u64,
    /// Index of the page size.
    size_index: usize,
    /// ListPages of this size in a row.
    run: u32,
    /// Rows that OpenIM counts. Set by the caller after each page.
    pub(crate) total: Option<u64>,
    /// Places in the list, from 1, of rows that are too large for an answer.
    pub(crate) too_large: Vec<u64>,
}

impl ListPages {
    /// Reads the next page with `read`. If an answer is too large, asks for smaller pages, and leaves out rows that are
    /// too large alone. `count` is awaited if no page has come that has the total. `None`: the list ends with rows that
    /// are too large.
    pub(crate) async fn next<T, R: Future<Output = Result<T, Error>>>(
        &mut self,
        read: impl Fn(ListPage) -> R,
        count: impl Future<Output = Result<u64, Error>>,
    ) -> Result<Option<(ListPage, T)>, Error> {
        // Awaited at most once: the total is known then.
        let mut count = Some(count);
        loop {
            let page = self.page();
            match read(page).await {
                Ok(answer) => {
                    self.advance();
                    return Ok(Some((page, answer)));
                }
                Err(error) if error.is_too_large() => {
                    let Some(place) = self.shrink() else {
                        continue;
                    };
                    self.too_large.push(place + 1);
                    if self.too_large.len() > MAX_TOO_LARGE_ROWS {
                        return Err(error);
                    }
                    if self.total.is_none()
                        && let Some(count) = count.take()
                    {
                        self.total = Some(count.await?);
                    }
                    if self.total.is_none_or(|total| self.start >= total) {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn size(&self) -> u64 {
        PAGE_SIZES[self.size_index]
    }

    /// The next page.
    fn page(&self) -> ListPage {
        ListPage {
            number: self.start / self.size() + 1,
            size: self.size(),
        }
    }

    /// Rows before the next page.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Moves on after a page that was read.
    fn advance(&mut self) {
        self.start += self.size();
        self.run += 1;
        self.grow();
    }

    /// Makes the page smaller after an answer that is too large. A page of one row is left out: returns its place in
    /// the list, from 0.
    fn shrink(&mut self) -> Option<u64> {
        if self.size_index + 1 < PAGE_SIZES.len() {
            self.size_index += 1;
            self.run = 0;
            return None;
        }
        let place = self.start;
        self.start += 1;
        self.grow();
        Some(place)
    }

    fn grow(&mut self) {
        if self.size_index > 0
            && self.run >= PAGES_BEFORE_GROWTH
            && self.start.is_multiple_of(PAGE_SIZES[self.size_index - 1])
        {
            self.size_index -= 1;
            self.run = 0;
        }
    }
}

/// Parts of a list that are asked for together, halved if an answer is too large.
#[derive(Debug)]
pub(crate) struct Halves<'a, T> {
    /// The next part is the last one.
    parts: Vec<&'a [T]>,
}

impl<'a, T> Halves<'a, T> {
    /// Splits a list into parts of at most `limit`.
    pub(crate) fn of(all: &'a [T], limit: usize) -> Self {
        let parts = all.chunks(limit);
        Self {
            parts: parts.rev().collect(),
        }
    }

    /// Halves a part after an answer that is too large. A part of one is left out and returned.
    pub(crate) fn split(&mut self, part: &'a [T]) -> Option<&'a T> {
        match part {
            [] => None,
            [one] => Some(one),
            more => {
                let (first, second) = more.split_at(more.len() / 2);
                self.parts.extend([second, first]);
                None
            }
        }
    }
}

impl<'a, T> Iterator for Halves<'a, T> {
    type Item = &'a [T];

    fn next(&mut self) -> Option<&'a [T]> {
        self.parts.pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_size_divides_the_one_before() {
        for pair in PAGE_SIZES.windows(2) {
            assert!(pair[0].is_multiple_of(pair[1]) && pair[0] > pair[1]);
        }
        assert_eq!(PAGE_SIZES.last(), Some(&1));
    }

    /// Reads rows of these sizes through answers of at most `limit`. Returns the places that were read, in order, the
    /// places that were left out, and the number of pages.
    fn read(rows: &[u64], limit: u64) -> (Vec<u64>, Vec<u64>, usize) {
        let (mut given, mut left, mut calls) = (vec![], vec![], 0);
        let mut pages = ListPages::default();
        while pages.start() < rows.len() as u64 {
            let ListPage { number, size } = pages.page();
            let first = (number - 1) * size;
            assert_eq!(first, pages.start());
            let end = (first + size).min(rows.len() as u64);
            let sum: u64 = (first..end)
                .map(|row| rows[usize::try_from(row).unwrap()])
                .sum();
            calls += 1;
            if sum > limit {
                left.extend(pages.shrink());
            } else {
                given.extend(first..end);
                pages.advance();
            }
        }
        (given, left, calls)
    }

    #[test]
    fn one_row_that_is_too_large_costs_a_few_pages_more() {
        let mut rows = vec![1; 100_000];
        rows[31_337] = 4000;
        let (given, left, calls) = read(&rows, 3000);
        assert_eq!((given.len(), left), (99_999, vec![31_337]));
        assert!(calls < 100 + 60, "{calls}");
    }

    #[test]
    fn rows_that_are_all_large_are_read_in_smaller_pages() {
        let (given, left, calls) = read(&vec![12; 10_000], 12 * 400);
        assert_eq!((given.len(), left), (10_000, vec![]));
        // 40 pages of 250.
        assert!(calls <= 55, "{calls}");
    }

    #[test]
    fn a_list_without_any_readable_row_ends() {
        let (given, left, calls) = read(&[9; 30], 8);
        assert_eq!((given.len(), left.len()), (0, 30));
        assert_eq!(calls, 6 + 30);
    }

    proptest! {
        #[test]
        fn every_row_is_read_once_or_is_too_large_alone(
            rows in prop::collection::vec(prop_oneof![9 => 0_u64..20, 1 => 900_u64..1100], 0..4000),
        ) {
            let (given, left, _) = read(&rows, 1000);
            let is_large = |row: &u64| rows[usize::try_from(*row).unwrap()] > 1000;
            let all: Vec<u64> = (0..rows.len() as u64).collect();
            let (large, small): (Vec<u64>, Vec<u64>) = all.into_iter().partition(is_large);
            prop_assert_eq!(given, small);
            prop_assert_eq!(left, large);
        }

        #[test]
        fn halves_leave_out_only_what_is_too_large_alone(
            all in prop::collection::vec(prop_oneof![9 => 0_u64..20, 1 => 90_u64..110], 0..500),
        ) {
            let (mut given, mut left) = (vec![], vec![]);
            let mut halves = Halves::of(&all, 200);
            while let Some(some) = halves.next() {
                assert!((1..=200).contains(&some.len()));
                if some.iter().sum::<u64>() > 100 {
                    left.extend(halves.split(some).copied());
                } else {
                    given.extend(some.iter().copied());
                }
            }
            let (large, small): (Vec<u64>, Vec<u64>) = all.iter().partition(|row| **row > 100);
            prop_assert_eq!(given, small);
            prop_assert_eq!(left, large);
        }
    }
}
