//! Reads of groups.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;

use super::{Answer, PageRequest, ReadState, Scope, read};
use crate::http::error::{Code, Error, ReadFailure};
use crate::http::json_response::{example_time, json_object, optional_rfc3339, rfc3339};
use crate::http::server::auth::{ReadKey, Tag};
use crate::store::{GroupFilter, GroupRow, GroupSummary, RoleCount};

pub(crate) struct Groups(pub(crate) ReadState);

json_object! {
    /// A group. null means unknown. An empty text is a value.
    #[oai(rename = "Profile")]
    struct GroupJson from GroupRow {
        /// The group.
        group_id "groupID": String = "12345".into();
        /// Name of the group.
        name "groupName" nullable: Option<String> = Some("Kayaks".into());
        /// Notice of the group.
        notification "notification" nullable: Option<String> = Some("".into());
        /// Introduction of the group.
        introduction "introduction" nullable: Option<String> = Some("On the river".into());
        /// Avatar of the group.
        face_url "faceURL" nullable: Option<String> = Some("".into());
        /// Owner of the group, a current member. null: unknown, or none.
        owner_user_id "ownerUserID" nullable: Option<String> = Some("boss".into());
        /// Extra data.
        ex "ex" nullable: Option<String> = Some("".into());
        /// 0 normal, 1 banned, 2 dismissed, 3 muted. OpenIM does not report that it mutes a group.
        status "status" nullable: Option<i32> = Some(0);
        /// 2 for every group of today's OpenIM.
        group_type "groupType" nullable: Option<i32> = Some(2);
        /// 0: requests to join wait for approval; 1: invitations too; 2: anyone joins.
        need_verification "needVerification" nullable: Option<i32> = Some(0);
        /// OpenIM's setting for access of members to each other's profile.
        look_member_info "lookMemberInfo" nullable: Option<i32> = Some(0);
        /// OpenIM's setting for friend requests between members.
        apply_member_friend "applyMemberFriend" nullable: Option<i32> = Some(0);
        /// Time of the creation in OpenIM.
        created_in_openim_at "createdInOpenIMAt" nullable: Option<OffsetDateTime>
            as "optional_rfc3339" = Some(example_time());
        /// Time of the dismissal. null: not dismissed.
        dismissed_at "dismissedAt" nullable: Option<OffsetDateTime> as "optional_rfc3339" = None;
        /// Time at which the mirror added the group.
        created_at "createdAt": OffsetDateTime as "rfc3339" = example_time();
        /// Time of the last change of a value above.
        updated_at "updatedAt": OffsetDateTime as "rfc3339" = example_time();
        /// Time of the mark. A marked group needs a reconcile, because a callback contradicted the mirror or
        /// was lost. null: not marked.
        check_wanted_since "checkWantedSince" nullable: Option<OffsetDateTime>
            as "optional_rfc3339" = None;
        /// Reason of the last mark.
        check_reason "checkReason" nullable: Option<String> = None;
    }
}

json_object! {
    /// A page of groups.
    #[oai(example)]
    struct GroupPage {
        /// In bytewise order of groupID.
        groups "groups": Vec<GroupJson> = vec![GroupJson::example()];
        /// Cursor of the next page. null on the last one.
        next_cursor "nextCursor" nullable: Option<String> = None;
    }
}

json_object! {
    /// Number of current members with a role level.
    struct RoleMembers {
        /// 100 owner, 60 admin, 20 ordinary member. null: unknown.
        role_level "roleLevel" nullable: Option<i32> = Some(20);
        /// Number of members.
        members "members": i64 = 2;
    }
}

/// A group, with counts of its members.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example, rename = "Group")]
pub(super) struct GroupWithCounts {
    #[oai(flatten)]
    #[serde(flatten)]
    group: GroupJson,
    /// Number of current members. 0 for a dismissed group.
    member_count: i64,
    /// Number of current members by role level, the unknown role (null) last, without empty roles.
    roles: Vec<RoleMembers>,
    /// Time of the last change of the group or a member, or of the last leave.
    #[serde(serialize_with = "rfc3339")]
    newest_change: OffsetDateTime,
}

impl From<GroupSummary> for GroupWithCounts {
    fn from(summary: GroupSummary) -> Self {
        let by_role = summary.by_role;
        let role = |RoleCount {
                        role_level,
                        members,
                        ..
                    }| RoleMembers {
            role_level,
            members,
        };
        Self {
            group: summary.group.into(),
            member_count: by_role.iter().map(|role| role.members).sum(),
            roles: by_role.into_iter().map(role).collect(),
            newest_change: summary.newest_change,
        }
    }
}

impl Example for GroupWithCounts {
    fn example() -> Self {
        let role = |role_level, members| RoleMembers {
            role_level,
            members,
        };
        Self {
            group: GroupJson::example(),
            member_count: 4,
            roles: vec![role(Some(20), 2), role(Some(100), 1), role(None, 1)],
            newest_change: example_time(),
        }
    }
}

#[OpenApi(tag = "Tag::Reads")]
impl Groups {
    /// Groups
    ///
    /// Groups in bytewise order of groupID, in pages, with dismissed groups. A page costs the same at
    /// any place. But with checkWanted and status together, the read skips groups of another status one
    /// by one.
    #[oai(path = "/groups", method = "get", operation_id = "listGroups")]
    async fn list(
        &self,
        _key: ReadKey,
        /// Only groups of this status: 0 normal, 1 banned, 2 dismissed, 3 muted.
        status: Query<Option<i32>>,
        /// true: only marked groups. false: only groups without a mark.
        #[oai(name = "checkWanted")]
        check_wanted: Query<Option<bool>>,
        /// Limit of groups on a page. A page also ends at 4 MiB of text: follow nextCursor.
        #[oai(
            default = "super::default_limit",
            validator(minimum(value = "1"), maximum(value = "1000"))
        )]
        limit: Query<u32>,
        /// nextCursor of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<GroupPage>, ReadFailure> {
        let text = |value: Option<String>| value.unwrap_or_default();
        let scope = Scope::new("groups")
            .and(&text(status.0.map(|status| status.to_string())))
            .and(&text(check_wanted.0.map(|wanted| wanted.to_string())));
        let filter = GroupFilter {
            status: status.0,
            check_wanted: check_wanted.0,
        };
        let page = PageRequest::new(scope, cursor.0, limit.0)?;
        let find = |room| self.0.store.groups(filter, &page.after, page.limit, room);
        let make = |groups, next_cursor| GroupPage {
            groups,
            next_cursor,
        };
        let memory = &self.0.memory;
        Ok(page
            .answer(memory, find, GroupRow::bytes, |row| &row.group_id, make)
            .await?)
    }

    /// One group, with counts
    ///
    /// Counts current members, in total and by role level. Cost: reads each member of the group, about
    /// 0.2 s for a million in memory. The lists cost the same for a group of any size.
    #[oai(path = "/groups/:groupID", method = "get", operation_id = "getGroup")]
    async fn group(
        &self,
        _key: ReadKey,
        /// The group.
        #[oai(name = "groupID", example = "super::example_group")]
        group_id: Path<String>,
    ) -> Result<Answer<GroupWithCounts>, ReadFailure> {
        let group = super::group_id(group_id.0)?;
        let find = |room| self.0.store.group(&group, room);
        let size = |summary: &GroupSummary| (1, summary.group.bytes());
        let Some(found) = read(&self.0.memory, 1, find, size).await? else {
            let detail = "groupID: no callback has named it yet";
            return Err(Error::new(Code::GroupUnknown, detail).into());
        };
        Ok(found.write(GroupWithCounts::from)?)
    }
}
