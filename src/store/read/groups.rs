//! Groups: one in numbers, and pages of them.

use sqlx::FromRow;
use time::OffsetDateTime;

use super::super::{Error, Store};
use crate::domain::GroupId;

statements! {
    /// One look at the primary key.
    GROUP = "
SELECT group_id, name, notification, introduction, face_url, owner_user_id, ex, status, group_type,
       need_verification, look_member_info, apply_member_friend, created_in_openim_at,
       CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at,
       check_wanted_since, check_reason, created_at, updated_at
  FROM groups
 WHERE group_id = $1";
    /// Reads every row of the group: the newest change is in none of the indexes, so that patches
    /// stay heap-only. A leave is a change too.
    GROUP_BY_ROLE = "
SELECT role_level,
       count(*) FILTER (WHERE left_at IS NULL
                          AND ((SELECT g.dismissals FROM groups AS g
                                 WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
                            OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g
                                                     WHERE g.group_id = $1))) AS members,
       max(updated_at) AS newest_change
  FROM group_members
 WHERE group_id = $1
 GROUP BY role_level
 ORDER BY role_level";
    /// Walks the primary key.
    PAGE_OF_GROUPS = "
SELECT group_id, name, notification, introduction, face_url, owner_user_id, ex, status, group_type,
       need_verification, look_member_info, apply_member_friend, created_in_openim_at,
       CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at,
       check_wanted_since, check_reason, created_at, updated_at
  FROM groups
 WHERE group_id > $1 AND ($3::boolean IS NULL OR (check_wanted_since IS NOT NULL) = $3)
 ORDER BY group_id
 LIMIT $2";
    /// Walks groups_by_status.
    PAGE_OF_STATUS = "
SELECT group_id, name, notification, introduction, face_url, owner_user_id, ex, status, group_type,
       need_verification, look_member_info, apply_member_friend, created_in_openim_at,
       CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at,
       check_wanted_since, check_reason, created_at, updated_at
  FROM groups
 WHERE (status, group_id) > ($4, $1) AND status <= $4
   AND ($3::boolean IS NULL OR (check_wanted_since IS NOT NULL) = $3)
 ORDER BY status, group_id
 LIMIT $2";
    /// Walks groups_check_wanted.
    PAGE_OF_CHECK_WANTED = "
SELECT group_id, name, notification, introduction, face_url, owner_user_id, ex, status, group_type,
       need_verification, look_member_info, apply_member_friend, created_in_openim_at,
       CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at,
       check_wanted_since, check_reason, created_at, updated_at
  FROM groups
 WHERE group_id > $1 AND check_wanted_since IS NOT NULL AND ($3::integer IS NULL OR status = $3)
 ORDER BY group_id
 LIMIT $2";
}

/// A group, as stored.
#[derive(Clone, Debug, FromRow)]
#[expect(missing_docs, reason = "the columns; see migrations/")]
pub struct GroupRow {
    pub group_id: String,
    pub name: Option<String>,
    pub notification: Option<String>,
    pub introduction: Option<String>,
    pub face_url: Option<String>,
    pub owner_user_id: Option<String>,
    pub ex: Option<String>,
    pub status: Option<i32>,
    pub group_type: Option<i32>,
    pub need_verification: Option<i32>,
    pub look_member_info: Option<i32>,
    pub apply_member_friend: Option<i32>,
    pub created_in_openim_at: Option<OffsetDateTime>,
    /// Only while the group is dismissed.
    pub dismissed_at: Option<OffsetDateTime>,
    pub check_wanted_since: Option<OffsetDateTime>,
    pub check_reason: Option<String>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

/// Current members of one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleCount {
    /// `None` for members whose role OpenIM has never told.
    pub role_level: Option<i32>,
    /// How many.
    pub members: i64,
}

/// A group in numbers.
#[derive(Clone, Debug)]
pub struct GroupSummary {
    /// The group itself.
    pub group: GroupRow,
    /// In order of role level, the unknown last; no role without members.
    pub by_role: Vec<RoleCount>,
    /// Of the group or any row of it, those of members who left included.
    pub newest_change: OffsetDateTime,
}

/// Which groups are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupFilter {
    /// Only of this status.
    pub status: Option<i32>,
    /// Only those that are to be checked against OpenIM; or only the others.
    pub check_wanted: Option<bool>,
}

#[derive(FromRow)]
struct RoleRow {
    role_level: Option<i32>,
    members: i64,
    newest_change: OffsetDateTime,
}

impl Store {
    /// A group in numbers; `None` for one we never heard of. Reads every row of the group, about
    /// 0.2 s for a million members held in memory.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn group(&self, group: &GroupId) -> Result<Option<GroupSummary>, Error> {
        let found: Option<(GroupRow, Vec<RoleRow>)> = self
            .read(async |connection| {
                let row = sqlx::query_as(GROUP).bind(group.as_str());
                let Some(row) = row.fetch_optional(&mut *connection).await? else {
                    return Ok(None);
                };
                let by_role = sqlx::query_as(GROUP_BY_ROLE).bind(group.as_str());
                Ok(Some((row, by_role.fetch_all(connection).await?)))
            })
            .await?;
        Ok(found.map(|(group, rows)| GroupSummary {
            newest_change: rows
                .iter()
                .map(|row| row.newest_change)
                .fold(group.updated_at, OffsetDateTime::max),
            group,
            by_role: rows
                .into_iter()
                .filter(|row| row.members > 0)
                .map(|row| RoleCount {
                    role_level: row.role_level,
                    members: row.members,
                })
                .collect(),
        }))
    }

    /// Up to `limit` groups after the group id `after` ("" for the first), in bytewise order of
    /// group id. With a status and those wanted that are to be checked, these are passed over one by
    /// one where they have another.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups(
        &self,
        filter: GroupFilter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<GroupRow>, Error> {
        let GroupFilter {
            status,
            check_wanted,
        } = filter;
        self.read(async |connection| {
            let query = match (status, check_wanted) {
                (_, Some(true)) => sqlx::query_as(PAGE_OF_CHECK_WANTED)
                    .bind(after)
                    .bind(limit)
                    .bind(status),
                (Some(status), _) => sqlx::query_as(PAGE_OF_STATUS)
                    .bind(after)
                    .bind(limit)
                    .bind(check_wanted)
                    .bind(status),
                (None, _) => sqlx::query_as(PAGE_OF_GROUPS)
                    .bind(after)
                    .bind(limit)
                    .bind(check_wanted),
            };
            query.fetch_all(connection).await
        })
        .await
    }
}
