//! Reads of groups: one with counts, and pages of groups.

use sqlx::FromRow;
use time::OffsetDateTime;

use super::super::columns::{Columns, GroupRow, PageRow, SHORT_ROW, bytes, count};
use super::super::{Error, Store};
use super::{Found, Page, Room, page};
use crate::domain::GroupId;

pages! {
    /// Walks the primary key.
    PAGE_OF_GROUPS = group_row, key "group_id", room "$4", "
  FROM groups
 WHERE group_id > $1 AND ($3::boolean IS NULL OR (check_wanted_since IS NOT NULL) = $3)
 ORDER BY group_id
 LIMIT $2";
    /// Walks groups_by_status.
    PAGE_OF_STATUS = group_row, key "group_id", room "$5", "
  FROM groups
 WHERE (status, group_id) > ($4, $1) AND status <= $4
   AND ($3::boolean IS NULL OR (check_wanted_since IS NOT NULL) = $3)
 ORDER BY status, group_id
 LIMIT $2";
    /// Walks groups_check_wanted.
    PAGE_OF_CHECK_WANTED = group_row, key "group_id", room "$4", "
  FROM groups
 WHERE group_id > $1 AND check_wanted_since IS NOT NULL AND ($3::integer IS NULL OR status = $3)
 ORDER BY group_id
 LIMIT $2";
}

statements! {
    /// Walks the primary key. Reads the bytes of the group, and its texts if there is room.
    GROUP = concat!("
SELECT ", group_row!((texts_if "bytes <= $2")), ", bytes
  FROM (SELECT ", group_row!(plain), ", ", group_row!(bytes), " AS bytes
          FROM groups
         WHERE group_id = $1
         LIMIT 1) AS g");
    /// Reads every row of the group. No index has the time of the newest change, so that patches stay heap-only
    /// updates. A leave is a change too.
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
}

/// Current members of one role.
#[derive(Clone, Debug, FromRow)]
pub struct RoleCount {
    /// `None`: the role is not known.
    pub role_level: Option<i32>,
    /// Number of members.
    pub members: i64,
    /// Time of the newest change of a row, tombstones included.
    newest_change: OffsetDateTime,
}

/// A group with counts.
#[derive(Clone, Debug)]
pub struct GroupSummary {
    /// The group itself.
    pub group: GroupRow,
    /// Counts in order of role level, the unknown last. Roles without members are left out.
    pub by_role: Vec<RoleCount>,
    /// Time of the newest change of the group or of a row of it, tombstones included.
    pub newest_change: OffsetDateTime,
}

/// Conditions for groups.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupFilter {
    /// Only groups with this status.
    pub status: Option<i32>,
    /// Only marked groups, or only the others.
    pub check_wanted: Option<bool>,
}

impl Store {
    /// Reads a group with counts. `None`: the group is unknown. Reads every row of the group, which takes about 0.2 s
    /// for a million members in memory.
    pub async fn group(
        &self,
        group: &GroupId,
        room: Room,
    ) -> Result<Option<Found<GroupSummary>>, Error> {
        let room = match room {
            Room::Short => SHORT_ROW,
            Room::Bytes(bytes) => bytes,
        };
        self.read(async |connection| {
            let query = sqlx::query(GROUP).bind(group.as_str()).bind(count(room));
            let Some(row) = query.fetch_optional(&mut *connection).await? else {
                return Ok(None);
            };
            let mut columns = Columns::of(&row);
            let row = GroupRow::read(&mut columns)?;
            let bytes = bytes(columns.take()?);
            if bytes > room {
                return Ok(Some(Found::Long(bytes)));
            }
            let by_role = sqlx::query_as(GROUP_BY_ROLE).bind(group.as_str());
            let mut by_role: Vec<RoleCount> = by_role.fetch_all(connection).await?;
            let changes = by_role.iter().map(|role| role.newest_change);
            let newest_change = changes.fold(row.updated_at, OffsetDateTime::max);
            by_role.retain(|role| role.members > 0);
            Ok(Some(Found::Whole(GroupSummary {
                group: row,
                by_role,
                newest_change,
            })))
        })
        .await
    }

    /// Reads up to `limit` groups after the group id `after` ("" for the first), in bytewise order of group id. Marked
    /// groups with a status are searched one by one.
    pub async fn groups(
        &self,
        filter: GroupFilter,
        after: &str,
        limit: u32,
        room: Room,
    ) -> Result<Found<Page<GroupRow>>, Error> {
        let GroupFilter {
            status,
            check_wanted,
        } = filter;
        let sql = match (status, check_wanted) {
            (_, Some(true)) => PAGE_OF_CHECK_WANTED,
            (Some(_), _) => PAGE_OF_STATUS,
            (None, _) => PAGE_OF_GROUPS,
        };
        self.read(async |connection| {
            page(connection, sql, limit as usize, room, |query| {
                let query = query.bind(after).bind(i64::from(limit) + 1);
                match (status, check_wanted) {
                    (_, Some(true)) => query.bind(status),
                    (Some(status), _) => query.bind(check_wanted).bind(status),
                    (None, _) => query.bind(check_wanted),
                }
            })
            .await
        })
        .await
    }
}
