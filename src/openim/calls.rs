//! The calls that a comparison needs, one function each.

use serde_json::json;

use super::client::Client;
use super::error::Error;
use super::wire::{Delta, Deltas, Group, GroupInfos, Groups, Members};
use crate::domain::{GroupId, Version};

/// Groups or members on a page.
pub(super) const PAGE: usize = 1000;

impl Client {
    /// A page of all groups that are not dismissed, from 1, the newest first.
    pub(super) async fn groups(&self, page: usize) -> Result<Groups, Error> {
        let request = json!({
            "pagination": {"pageNumber": page, "showNumber": PAGE},
            "groupName": "",
            "groupID": "",
        });
        self.call("/group/get_groups", &request).await
    }

    /// These groups, dismissed or not; those that OpenIM does not know are left out.
    pub(super) async fn group_infos(&self, groups: &[&GroupId]) -> Result<Vec<Group>, Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let request = json!({"groupIDs": ids});
        let infos: GroupInfos = self.call("/group/get_groups_info", &request).await?;
        Ok(infos.group_infos)
    }

    /// A page of a group's members, from 1. Of a group that OpenIM does not know there are none.
    pub(super) async fn members(&self, group: &GroupId, page: usize) -> Result<Members, Error> {
        let request = json!({
            "groupID": group.as_str(),
            "pagination": {"pageNumber": page, "showNumber": PAGE},
            "filter": 0,
            "keyword": "",
        });
        self.call("/group/get_group_member_list", &request).await
    }

    /// How many members a group has.
    pub(super) async fn count_members(&self, group: &GroupId) -> Result<u64, Error> {
        let request = json!({
            "groupID": group.as_str(),
            // No rows, and the number all the same.
            "pagination": {"pageNumber": 1, "showNumber": 0},
            "filter": 0,
            "keyword": "",
        });
        let none: Members = self.call("/group/get_group_member_list", &request).await?;
        Ok(none.total)
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
        self.call("/group/get_incremental_group_members", &request)
            .await
    }

    /// The same of several groups. Dismissed ones are left out and, once there is much to tell, the
    /// rest; one that OpenIM does not know is an error of all.
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
        let deltas: Deltas = self
            .call("/group/get_incremental_group_members_batch", &request)
            .await?;
        let deltas = deltas.resp_list.unwrap_or_default().into_iter();
        let known = deltas.filter_map(|(group, delta)| Some((GroupId::parse(group).ok()?, delta)));
        Ok(known.collect())
    }
}
