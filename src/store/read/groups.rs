//! Groups: one in numbers, and pages of them.

use sqlx::{FromRow, Row};
use time::OffsetDateTime;

use super::super::{Error, Store};
use super::bounded::{self, Found, Page, Room, SHORT_ROW, Texts};
use crate::domain::GroupId;

pages! {
    /// Walks the primary key.
    PAGE_OF_GROUPS = group_columns + "check_wanted_since, check_reason, created_at, updated_at",
        key "group_id", room "$4", "
  FROM groups
 WHERE group_id > $1 AND ($3::boolean IS NULL OR (check_wanted_since IS NOT NULL) = $3)
 ORDER BY group_id
 LIMIT $2";
    /// Walks groups_by_status.
    PAGE_OF_STATUS = group_columns + "check_wanted_since, check_reason, created_at, updated_at",
        key "group_id", room "$5", "
  FROM groups
 WHERE (status, group_id) > ($4, $1) AND status <= $4
   AND ($3::boolean IS NULL OR (check_wanted_since IS NOT NULL) = $3)
 ORDER BY status, group_id
 LIMIT $2";
    /// Walks groups_check_wanted.
    PAGE_OF_CHECK_WANTED = group_columns + "check_wanted_since, check_reason, created_at, updated_at",
        key "group_id", room "$4", "
  FROM groups
 WHERE group_id > $1 AND check_wanted_since IS NOT NULL AND ($3::integer IS NULL OR status = $3)
 ORDER BY group_id
 LIMIT $2";
}

statements! {
    /// One look at the primary key; with the bytes of the group, and its texts where there is room.
    GROUP = concat!("
SELECT ", group_columns!(if "bytes <= $2"), ", check_wanted_since, check_reason, created_at, updated_at, bytes
  FROM (SELECT ", group_columns!(plain), ", check_wanted_since, check_reason, created_at, updated_at,
               ", group_columns!(bytes), " AS bytes
          FROM groups
         WHERE group_id = $1
         LIMIT 1) AS g");
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

impl Texts for GroupRow {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let texts = [
            &self.name,
            &self.notification,
            &self.introduction,
            &self.face_url,
            &self.ex,
        ];
        texts.into_iter().filter_map(|text| text.as_deref())
    }
}

impl GroupRow {
    /// Bytes of its texts and ids.
    pub fn bytes(&self) -> usize {
        let texts: usize = self.texts().map(str::len).sum();
        texts + self.group_id.len() + self.owner_user_id.as_ref().map_or(0, String::len)
    }
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
    pub async fn group(
        &self,
        group: &GroupId,
        room: Room,
    ) -> Result<Option<Found<GroupSummary>>, Error> {
        let room = match room {
            Room::Short => SHORT_ROW,
            Room::Bytes(bytes) => bytes,
        };
        let found: Option<Found<(GroupRow, Vec<RoleRow>)>> = self
            .read(async |connection| {
                let query = sqlx::query(GROUP).bind(group.as_str());
                let query = query.bind(bounded::count(room));
                let Some(row) = query.fetch_optional(&mut *connection).await? else {
                    return Ok(None);
                };
                let bytes = bounded::bytes(row.try_get("bytes")?);
                if bytes > room {
                    return Ok(Some(Found::Long(bytes)));
                }
                let row = GroupRow::from_row(&row)?;
                let by_role = sqlx::query_as(GROUP_BY_ROLE).bind(group.as_str());
                Ok(Some(Found::Whole((
                    row,
                    by_role.fetch_all(connection).await?,
                ))))
            })
            .await?;
        let summary = |(group, rows): (GroupRow, Vec<RoleRow>)| GroupSummary {
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
        };
        Ok(found.map(|found| match found {
            Found::Whole(found) => Found::Whole(summary(found)),
            Found::Long(bytes) => Found::Long(bytes),
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
            bounded::page(connection, sql, limit as usize, room, |query| {
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
