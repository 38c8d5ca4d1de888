//! What is held against OpenIM's answers.

use std::collections::HashMap;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use time::OffsetDateTime;

use super::marks::fence;
use crate::domain::{Fence, Group, GroupId, Member, Text, UserId, Version};
use crate::store::read::{Found, Page, PageSql, PgQuery, Room, Texts, page};
use crate::store::stored::{StoredGroup, StoredMember};
use crate::store::{Error, Store};

pages! {
    /// Walks the primary key, those who left too.
    MEMBERS_TO_COMPARE = member_columns + "COALESCE(left_at, CASE
           WHEN came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at,
       last_callback_xid, created_at" as "left_at, last_callback_xid, created_at",
        key "user_id", room "$4", "
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
 ORDER BY group_id, user_id
 LIMIT $3";
    /// A look at the primary key for each user.
    MEMBERS_NAMED = member_columns + "COALESCE(left_at, CASE
           WHEN came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at,
       last_callback_xid, created_at" as "left_at, last_callback_xid, created_at",
        key "user_id", room "$5", "
  FROM unnest($4::text[]) AS asked (named)
 CROSS JOIN LATERAL
       (SELECT *
          FROM group_members
         WHERE group_id = $1 AND user_id = named AND user_id > $2
         LIMIT 1) AS member
 ORDER BY user_id
 LIMIT $3";
    /// By their ids, in the order of these. LIMIT 1 keeps the planner from reading all groups and checks.
    KNOWN_GROUPS = group_columns + "dismissals, emptying_at, last_callback_xid, created_at,
       check_wanted_since, check_reason, version, version_id, fence, compared_at, read_at,
       touched IS DISTINCT FROM '{}' AS is_touched, place" as "dismissals, emptying_at,
       last_callback_xid, created_at, check_wanted_since, check_reason, version, version_id, fence,
       compared_at, read_at, is_touched",
        key "place", room "$3", "
  FROM unnest($1::text[]) WITH ORDINALITY AS asked (sought, place)
 CROSS JOIN LATERAL
       (SELECT * FROM groups WHERE group_id = sought LIMIT 1) AS known
  LEFT JOIN LATERAL
       (SELECT version, version_id, fence, compared_at, read_at, touched
          FROM group_checks
         WHERE group_id = known.group_id
         LIMIT 1) AS check_of ON true
 ORDER BY place
 LIMIT $2";
    /// Walks the primary key, and looks for each group's check; LIMIT 1 keeps the planner from reading
    /// all of these.
    GROUPS_TO_COMPARE = group_columns + "dismissals, emptying_at, last_callback_xid, created_at,
       check_wanted_since, check_reason, version, version_id, fence, compared_at, read_at,
       touched IS DISTINCT FROM '{}' AS is_touched" as "dismissals, emptying_at,
       last_callback_xid, created_at, check_wanted_since, check_reason, version, version_id, fence,
       compared_at, read_at, is_touched",
        key "group_id", room "$3", "
  FROM groups
  LEFT JOIN LATERAL
       (SELECT version, version_id, fence, compared_at, read_at, touched
          FROM group_checks
         WHERE group_id = groups.group_id
         LIMIT 1) AS check_of ON true
 WHERE group_id > $1
 ORDER BY group_id
 LIMIT $2";
}

statements! {
    /// Walks the primary key.
    COUNT_MEMBERS_OF_GROUPS = "
SELECT asked.group_id,
       (SELECT count(*)
          FROM group_members AS m
         WHERE m.group_id = asked.group_id AND m.left_at IS NULL
           AND (g.emptying_at IS NULL OR m.came_at_dismissal = g.dismissals)) AS members
  FROM unnest($1::text[]) AS asked (group_id)
  LEFT JOIN groups AS g USING (group_id)";
    /// Stops at so many.
    COUNT_CURRENT = "
SELECT count(*)
  FROM (SELECT
          FROM group_members AS m
         WHERE left_at IS NULL
           AND (SELECT true FROM groups AS g
                 WHERE g.group_id = m.group_id AND g.emptying_at IS NOT NULL
                   AND m.came_at_dismissal IS DISTINCT FROM g.dismissals) IS NULL
         LIMIT $1) AS found";
}

/// Members on a page; fewer where they have much text.
const PAGE: usize = 2000;

/// A group of the mirror, and what is known of its last comparison.
#[derive(Clone, Debug)]
pub struct KnownGroup {
    /// The group.
    pub group_id: GroupId,
    /// What is stored of it.
    pub group: Group,
    /// Since when it wants a check.
    pub wanted_since: Option<OffsetDateTime>,
    /// Why, as of the last time.
    pub check_reason: Option<String>,
    /// The version that it was made equal to; `None`: that is not known.
    pub version: Option<Version>,
    /// Whether callbacks have named it, or members of it, since then.
    pub is_touched: bool,
    /// When its last comparison began.
    pub compared_at: Option<OffsetDateTime>,
    /// When all of it was last read.
    pub read_at: Option<OffsetDateTime>,
}

impl Texts for KnownGroup {
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.group.profile.texts().map(Text::as_str)
    }
}

impl FromRow<'_, PgRow> for KnownGroup {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let StoredGroup {
            group_id, group, ..
        } = StoredGroup::from_row(row)?;
        let number: Option<i64> = row.try_get("version")?;
        let id: Option<String> = row.try_get("version_id")?;
        let fence: Option<&str> = row.try_get("fence")?;
        Ok(Self {
            group_id,
            group,
            wanted_since: row.try_get("check_wanted_since")?,
            check_reason: row.try_get("check_reason")?,
            version: id
                .zip(number)
                .filter(|_| fence.is_some())
                .map(|(id, number)| Version {
                    id,
                    number: number.cast_unsigned(),
                }),
            is_touched: row.try_get("is_touched")?,
            compared_at: row.try_get("compared_at")?,
            read_at: row.try_get("read_at")?,
        })
    }
}

/// A row of a member, current or gone.
#[derive(Clone, Debug)]
pub struct ComparedMember {
    /// The user.
    pub user_id: UserId,
    /// What is stored.
    pub member: Member,
}

impl From<StoredMember> for ComparedMember {
    fn from(stored: StoredMember) -> Self {
        Self {
            user_id: stored.user_id,
            member: stored.member,
        }
    }
}

impl Store {
    /// What is written by now.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fence(&self) -> Result<Fence, Error> {
        self.read(async |connection| fence(connection).await).await
    }

    /// How many members each of these groups has, by its id; 0 where it is not known.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_members_of(
        &self,
        groups: &[&GroupId],
    ) -> Result<HashMap<String, u64>, Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let counts: Vec<(String, i64)> = self
            .housekeep(async |connection| {
                sqlx::query_as(COUNT_MEMBERS_OF_GROUPS)
                    .bind(&ids)
                    .fetch_all(connection)
                    .await
            })
            .await?;
        let counts = counts.into_iter();
        Ok(counts
            .map(|(group, count)| (group, count.cast_unsigned()))
            .collect())
    }

    /// Those of these groups that are known, in their order, and how many of the ids were looked up:
    /// one at least. The others are to be asked for again, for there was no room for their texts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn known_groups(
        &self,
        groups: &[GroupId],
    ) -> Result<(Vec<KnownGroup>, usize), Error> {
        let ids: Vec<&str> = groups.iter().map(GroupId::as_str).collect();
        let page: Page<KnownGroup> = self
            .page(KNOWN_GROUPS, groups.len(), |query, limit| {
                query.bind(&ids).bind(limit)
            })
            .await?;
        let last = page.rows.last().filter(|_| page.has_more);
        let place = last.and_then(|last| groups.iter().rposition(|id| *id == last.group_id));
        let count = place.map_or(groups.len(), |place| place + 1);
        Ok((page.rows, count))
    }

    /// Up to `limit` groups after the group id `after` ("" for the first), in bytewise order; fewer
    /// where they have much text, and none at the end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups_to_compare(
        &self,
        after: &str,
        limit: usize,
    ) -> Result<Vec<KnownGroup>, Error> {
        let page: Page<KnownGroup> = self
            .page(GROUPS_TO_COMPARE, limit, |query, limit| {
                query.bind(after).bind(limit)
            })
            .await?;
        Ok(page.rows)
    }

    /// A page of a group's members after the user id `after` ("" for the first), those who left too,
    /// in bytewise order of user id, and whether it is the last. With `users`, of these alone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members_to_compare(
        &self,
        group: &GroupId,
        users: Option<&[&UserId]>,
        after: &str,
    ) -> Result<(Vec<ComparedMember>, bool), Error> {
        let ids = users.map(|users| users.iter().map(|user| user.as_str()).collect::<Vec<_>>());
        let sql = match &ids {
            Some(_) => MEMBERS_NAMED,
            None => MEMBERS_TO_COMPARE,
        };
        let page: Page<StoredMember> = self
            .page(sql, PAGE, |query, limit| {
                let query = query.bind(group.as_str()).bind(after).bind(limit);
                match &ids {
                    Some(ids) => query.bind(ids),
                    None => query,
                }
            })
            .await?;
        let rows = page.rows.into_iter().map(ComparedMember::from);
        Ok((rows.collect(), !page.has_more))
    }

    /// A page, with as much text as one has, or its first row alone. `bind` gives the statements their
    /// arguments, with the limit that they are to have.
    async fn page<'q, T>(
        &self,
        sql: PageSql,
        rows: usize,
        bind: impl Fn(PgQuery<'q>, i64) -> PgQuery<'q>,
    ) -> Result<Page<T>, Error>
    where
        T: Texts + for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let limit = i64::try_from(rows + 1).unwrap_or(i64::MAX);
        let bind = &|query| bind(query, limit);
        let mut room = Room::Short;
        loop {
            let found = self
                .read(async |connection| page(connection, sql, rows, room, bind).await)
                .await?;
            match found {
                Found::Whole(page) => return Ok(page),
                // Again only where that grows.
                Found::Long(bytes) => room = Room::Bytes(bytes),
            }
        }
    }

    /// How many current members there are in all, or that there are `most` at least.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_members(&self, most: u64) -> Result<u64, Error> {
        let count: i64 = self
            .housekeep(async |connection| {
                sqlx::query_scalar(COUNT_CURRENT)
                    .bind(most.cast_signed())
                    .fetch_one(connection)
                    .await
            })
            .await?;
        Ok(count.cast_unsigned())
    }
}
