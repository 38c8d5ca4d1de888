//! The calls that a comparison needs, one function each.

use serde_json::json;

use super::client::Client;
use super::error::Error;
use super::pages::Page;
use super::wire::{Delta, Deltas, Group, GroupInfos, Groups, Member, MemberIds, Members};
use crate::domain::{GroupId, UserId, Version};

/// No rows, and their number all the same.
const NO_ROWS: Page = Page { number: 1, size: 0 };

impl Client {
    /// A page of all groups that are not dismissed, the newest first.
    pub(super) async fn groups(&self, page: Page) -> Result<Groups, Error> {
        let request = json!({
            "pagination": {"pageNumber": page.number, "showNumber": page.size},
            "groupName": "",
            "groupID": "",
        });
        // Which there are nobody knows before. Those that are told twice are seen once.
        self.call("/group/get_groups", &request, |_: &Groups| Ok(()))
            .await
    }

    /// How many groups there are that are not dismissed.
    pub(super) async fn count_groups(&self) -> Result<u64, Error> {
        Ok(self.groups(NO_ROWS).await?.total)
    }

    /// These groups, dismissed or not; those that OpenIM does not know are left out.
    pub(super) async fn group_infos(&self, groups: &[&GroupId]) -> Result<Vec<Group>, Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let request = json!({"groupIDs": ids});
        let check = |infos: &GroupInfos| infos.check(groups);
        let infos = self.call("/group/get_groups_info", &request, check);
        Ok(infos.await?.group_infos)
    }

    /// A page of a group's members. Of a group that OpenIM does not know there are none.
    pub(super) async fn members(&self, group: &GroupId, page: Page) -> Result<Members, Error> {
        let request = json!({
            "groupID": group.as_str(),
            "pagination": {"pageNumber": page.number, "showNumber": page.size},
            "filter": 0,
            "keyword": "",
        });
        let check = |members: &Members| members.check(group);
        self.call("/group/get_group_member_list", &request, check)
            .await
    }

    /// How many members a group has.
    pub(super) async fn count_members(&self, group: &GroupId) -> Result<u64, Error> {
        Ok(self.members(group, NO_ROWS).await?.total)
    }

    /// Those of these users, 1000 at most, who are members.
    pub(super) async fn members_named(
        &self,
        group: &GroupId,
        users: &[&UserId],
    ) -> Result<Vec<Member>, Error> {
        let ids: Vec<&str> = users.iter().map(|user| user.as_str()).collect();
        let request = json!({"groupID": group.as_str(), "userIDs": ids});
        let check = |named: &Members| named.check_named(group, users);
        let named = self.call("/group/get_group_members_info", &request, check);
        Ok(named.await?.members)
    }

    /// Who the members are, and a version that is no older. Makes a version for a group that OpenIM
    /// does not know: to be asked only of groups that it has just shown.
    pub(super) async fn member_ids(&self, group: &GroupId) -> Result<MemberIds, Error> {
        // A hash of the ids spares them where they are the same.
        let request = json!({"groupID": group.as_str(), "idHash": 0});
        self.call(
            "/group/get_full_group_member_user_ids",
            &request,
            MemberIds::check,
        )
        .await
    }

    /// What has changed in a group since a version. Without one: where it is now.
    pub(super) async fn changes(
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

    /// The same of several groups. Dismissed ones are left out and, once there is much to tell, the
    /// rest; one that OpenIM does not know, or that has no owner and has changed, is an error of all.
    pub(super) async fn changes_of(
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
        // Asked for, and not used by OpenIM.
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
