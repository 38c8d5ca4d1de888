//! Reads about groups as a whole.

use std::sync::Arc;

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;

use super::auth::ReadKey;
use super::error::{Code, Error};
use super::memory::AnswerMemory;
use super::page::{self, Scope};
use super::problem::ReadFailure;
use super::rows::{Answer, Reading};
use super::written::{optional_rfc3339, rfc3339};
use super::{Tag, params};
use crate::store::{GroupFilter, GroupRow, GroupSummary, Page, Store};

pub(super) struct Groups {
    pub(super) store: Store,
    pub(super) memory: Arc<AnswerMemory>,
}

/// A group. null means that OpenIM has never told; an empty text is a value.
#[derive(Clone, Debug, Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
struct Profile {
    /// The group.
    #[oai(rename = "groupID")]
    #[serde(rename = "groupID")]
    group_id: String,
    /// Its name.
    #[oai(nullable)]
    group_name: Option<String>,
    /// Its notice.
    #[oai(nullable)]
    notification: Option<String>,
    /// Its introduction.
    #[oai(nullable)]
    introduction: Option<String>,
    /// Its avatar.
    #[oai(rename = "faceURL", nullable)]
    #[serde(rename = "faceURL")]
    face_url: Option<String>,
    /// The current member who owns it; null where that is not known, or there is none.
    #[oai(rename = "ownerUserID", nullable)]
    #[serde(rename = "ownerUserID")]
    owner_user_id: Option<String>,
    /// Extra data.
    #[oai(nullable)]
    ex: Option<String>,
    /// 0 normal, 1 banned, 2 dismissed, 3 muted. OpenIM does not tell when it mutes a group.
    #[oai(nullable)]
    status: Option<i32>,
    /// 2 for every group of today's OpenIM.
    #[oai(nullable)]
    group_type: Option<i32>,
    /// 0: who asks waits for approval; 1: who is invited too; 2: anyone joins.
    #[oai(nullable)]
    need_verification: Option<i32>,
    /// Whether members may look at each other's profile.
    #[oai(nullable)]
    look_member_info: Option<i32>,
    /// Whether members may ask each other to be friends.
    #[oai(nullable)]
    apply_member_friend: Option<i32>,
    /// When OpenIM made it.
    #[oai(rename = "createdInOpenIMAt", nullable)]
    #[serde(rename = "createdInOpenIMAt", serialize_with = "optional_rfc3339")]
    created_in_openim_at: Option<OffsetDateTime>,
    /// When it was dismissed; null where it is not.
    #[oai(nullable)]
    #[serde(serialize_with = "optional_rfc3339")]
    dismissed_at: Option<OffsetDateTime>,
    /// When the mirror first heard of it.
    #[serde(serialize_with = "rfc3339")]
    created_at: OffsetDateTime,
    /// When one of the values above last changed.
    #[serde(serialize_with = "rfc3339")]
    updated_at: OffsetDateTime,
    /// Since when it is to be checked against OpenIM, because a callback did not fit what the
    /// mirror knew, or one was missed; null where all that was heard fits.
    #[oai(nullable)]
    #[serde(serialize_with = "optional_rfc3339")]
    check_wanted_since: Option<OffsetDateTime>,
    /// Why, as of the last time.
    #[oai(nullable)]
    check_reason: Option<String>,
}

impl From<GroupRow> for Profile {
    fn from(row: GroupRow) -> Self {
        let GroupRow {
            group_id,
            name,
            notification,
            introduction,
            face_url,
            owner_user_id,
            ex,
            status,
            group_type,
            need_verification,
            look_member_info,
            apply_member_friend,
            created_in_openim_at,
            dismissed_at,
            check_wanted_since,
            check_reason,
            created_at,
            updated_at,
        } = row;
        Self {
            group_id,
            group_name: name,
            notification,
            introduction,
            face_url,
            owner_user_id,
            ex,
            status,
            group_type,
            need_verification,
            look_member_info,
            apply_member_friend,
            created_in_openim_at,
            dismissed_at,
            created_at,
            updated_at,
            check_wanted_since,
            check_reason,
        }
    }
}

impl Example for Profile {
    fn example() -> Self {
        let text = |text: &str| Some(text.to_owned());
        Self {
            group_id: "12345".into(),
            group_name: text("Kayaks"),
            notification: text(""),
            introduction: text("On the river"),
            face_url: text(""),
            owner_user_id: text("boss"),
            ex: text(""),
            status: Some(0),
            group_type: Some(2),
            need_verification: Some(0),
            look_member_info: Some(0),
            apply_member_friend: Some(0),
            created_in_openim_at: Some(super::members::example_time()),
            dismissed_at: None,
            created_at: super::members::example_time(),
            updated_at: super::members::example_time(),
            check_wanted_since: None,
            check_reason: None,
        }
    }
}

/// A page of groups.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
struct GroupPage {
    /// In bytewise order of groupID.
    groups: Vec<Profile>,
    /// Where the next page starts; null on the last one.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

impl Example for GroupPage {
    fn example() -> Self {
        Self {
            groups: vec![Profile::example()],
            next_cursor: None,
        }
    }
}

/// A group, and in numbers.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
struct Group {
    #[oai(flatten)]
    #[serde(flatten)]
    profile: Profile,
    /// How many current members it has; none where it is dismissed.
    member_count: i64,
    /// The same by role level, the unknown (null) last; no role without members.
    roles: Vec<RoleMembers>,
    /// When a value of it or of one of its members last changed, or one left.
    #[serde(serialize_with = "rfc3339")]
    newest_change: OffsetDateTime,
}

/// How many current members have a role level.
#[derive(Object, Serialize)]
struct RoleMembers {
    /// 100 owner, 60 admin, 20 ordinary member; null where OpenIM has never told.
    #[oai(rename = "roleLevel", nullable)]
    #[serde(rename = "roleLevel")]
    role_level: Option<i32>,
    /// How many.
    members: i64,
}

impl Example for Group {
    fn example() -> Self {
        let role = |role_level, members| RoleMembers {
            role_level,
            members,
        };
        Self {
            profile: Profile::example(),
            member_count: 4,
            roles: vec![role(Some(20), 2), role(Some(100), 1), role(None, 1)],
            newest_change: super::members::example_time(),
        }
    }
}

#[OpenApi(tag = "Tag::Reads")]
impl Groups {
    /// Groups
    ///
    /// In bytewise order of groupID, a page at a time, dismissed ones too. Any page costs the same,
    /// but that with checkWanted and status together groups of another status are passed over one
    /// by one.
    #[oai(path = "/groups", method = "get", operation_id = "listGroups")]
    async fn list(
        &self,
        _key: ReadKey,
        /// Only groups of this status: 0 normal, 1 banned, 2 dismissed, 3 muted.
        status: Query<Option<i32>>,
        /// true: only groups that are to be checked against OpenIM; false: only the others.
        #[oai(name = "checkWanted")]
        check_wanted: Query<Option<bool>>,
        /// Most groups on a page. It ends earlier where they have 4 MiB of text: follow nextCursor.
        #[oai(
            default = "params::default_limit",
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
        let after = scope.key(cursor.0.as_deref())?;
        let filter = GroupFilter {
            status: status.0,
            check_wanted: check_wanted.0,
        };
        let mut reading = Reading::begin(&self.memory, limit.0 as usize + 1).await?;
        let page = loop {
            let room = reading.room();
            let found = self.store.groups(filter, &after, limit.0, room).await?;
            if let Some(page) = reading.takes(found).await? {
                break page;
            }
        };
        let found = reading.end_page(page, GroupRow::bytes);
        let next_cursor = page::next(&found.rows, &scope, |row| &row.group_id);
        let make = |page: Page<GroupRow>| GroupPage {
            groups: page.rows.into_iter().map(Profile::from).collect(),
            next_cursor,
        };
        Ok(found.write(make)?)
    }

    /// One group, and in numbers
    ///
    /// Counts current members, in all and per role level. Cost: reads every member of the group,
    /// about 0.2 s for a million held in memory; the lists cost the same for a group of any size.
    #[oai(path = "/groups/:groupID", method = "get", operation_id = "getGroup")]
    async fn group(
        &self,
        _key: ReadKey,
        /// The group.
        #[oai(name = "groupID", example = "params::example_group")]
        group_id: Path<String>,
    ) -> Result<Answer<Group>, ReadFailure> {
        let group = params::group_id(group_id.0)?;
        let mut reading = Reading::begin(&self.memory, 1).await?;
        let summary = loop {
            let found = match self.store.group(&group, reading.room()).await? {
                None => break None,
                Some(found) => reading.takes(found).await?,
            };
            if found.is_some() {
                break found;
            }
        };
        let Some(summary) = summary else {
            let detail = "groupID: no callback has named it yet";
            return Err(Error::new(Code::GroupUnknown, detail).into());
        };
        let bytes = summary.group.bytes();
        let found = reading.end(summary, 1, bytes);
        Ok(found.write(Group::from)?)
    }
}

impl From<GroupSummary> for Group {
    fn from(summary: GroupSummary) -> Self {
        let GroupSummary {
            group,
            by_role,
            newest_change,
        } = summary;
        let roles: Vec<RoleMembers> = by_role
            .into_iter()
            .map(|count| RoleMembers {
                role_level: count.role_level,
                members: count.members,
            })
            .collect();
        Self {
            profile: group.into(),
            member_count: roles.iter().map(|role| role.members).sum(),
            roles,
            newest_change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::written::assert_written_as_documented;
    use super::{Group, GroupPage};

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<Group>();
        assert_written_as_documented::<GroupPage>();
    }
}
