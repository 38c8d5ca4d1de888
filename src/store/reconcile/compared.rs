//! Reads of rows that are compared with OpenIM.

use std::collections::HashMap;

use time::OffsetDateTime;

use super::marks::fence;
use crate::domain::{Fence, Group, GroupId, Member, Text, UserId, Version};
use crate::store::columns::{Columns, PageRow, PgQuery, read_group, read_member};
use crate::store::read::{Found, Page, PageSql, Room, page};
use crate::store::{Error, Store};

/// SQL of a group's last comparison. LIMIT 1 keeps the planner from reading all comparisons.
macro_rules! join_comparison {
    ($group:literal) => {
        concat!(
            "
  LEFT JOIN LATERAL
       (SELECT version, version_id, fence, compared_at, read_at, touched
          FROM group_checks
         WHERE group_id = ",
            $group,
            ".group_id
         LIMIT 1) AS comparison ON true"
        )
    };
}

pages! {
    /// Walks the primary key, for current members and tombstones.
    MEMBERS_TO_COMPARE = member_row_of_group, key "user_id", room "$4", "
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Looks up each user in the primary key.
    MEMBERS_NAMED = member_row_of_group, key "user_id", room "$5", "
  FROM unnest($4::text[]) AS asked (named)
 CROSS JOIN LATERAL
       (SELECT *
          FROM group_members
         WHERE group_id = $1 AND user_id = named AND user_id > $2
         LIMIT 1) AS member
 ORDER BY user_id
 LIMIT $3";
    /// Looks up groups, in the order of the ids. LIMIT 1 keeps the planner from reading all groups.
    KNOWN_GROUPS = group_row + "version, version_id, fence, compared_at, read_at,
       touched IS DISTINCT FROM '{}' AS is_touched, place" as "version, version_id, fence, compared_at,
       read_at, is_touched",
        key "place", room "$3", concat!("
  FROM unnest($1::text[]) WITH ORDINALITY AS asked (sought, place)
 CROSS JOIN LATERAL
       (SELECT * FROM groups WHERE group_id = sought LIMIT 1) AS known", join_comparison!("known"), "
 ORDER BY place
 LIMIT $2");
    /// Walks the primary key, and looks up the last comparison of each group.
    GROUPS_TO_COMPARE = group_row + "version, version_id, fence, compared_at, read_at,
       touched IS DISTINCT FROM '{}' AS is_touched" as "version, version_id, fence, compared_at,
       read_at, is_touched",
        key "group_id", room "$3", concat!("
  FROM groups", join_comparison!("groups"), "
 WHERE group_id > $1
 ORDER BY group_id
 LIMIT $2");
}

statements! {
    /// Counts the members of groups, by the primary key.
    COUNT_MEMBERS_OF_GROUPS = "
SELECT asked.group_id,
       (SELECT count(*)
          FROM group_members AS m
         WHERE m.group_id = asked.group_id AND m.left_at IS NULL
           AND (g.emptying_at IS NULL OR m.came_at_dismissal = g.dismissals)) AS members
  FROM unnest($1::text[]) AS asked (group_id)
  LEFT JOIN groups AS g USING (group_id)";
    /// Counts current members up to a number.
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

/// Maximum number of members on a page. Long texts make it shorter.
const MAX_PAGE_MEMBERS: usize = 2000;

/// A group of the mirror with its last comparison.
#[derive(Clone, Debug)]
pub struct KnownGroup {
    /// The group.
    pub group_id: GroupId,
    /// The row.
    pub group: Group,
    /// Time of the first mark.
    pub wanted_since: Option<OffsetDateTime>,
    /// Reason of the latest mark.
    pub check_reason: Option<String>,
    /// Version that the rows are equal to, except for touched ones. `None`: not known.
    pub version: Option<Version>,
    /// True if callbacks have named the group or members of it since then.
    pub is_touched: bool,
    /// Begin of the last comparison.
    pub compared_at: Option<OffsetDateTime>,
    /// Time of the last read of the whole group.
    pub read_at: Option<OffsetDateTime>,
}

impl PageRow for KnownGroup {
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.group.profile.texts().map(Text::as_str)
    }

    fn read(columns: &mut Columns<'_>) -> Result<Self, sqlx::Error> {
        let (group_id, group) = read_group(columns)?;
        let (wanted_since, check_reason) = (columns.take()?, columns.take()?);
        let _made_and_changed: (OffsetDateTime, OffsetDateTime) =
            (columns.take()?, columns.take()?);
        let number: Option<i64> = columns.take()?;
        let id: Option<String> = columns.take()?;
        let fence: Option<&str> = columns.take()?;
        Ok(Self {
            group_id,
            group,
            wanted_since,
            check_reason,
            version: id
                .zip(number)
                .filter(|_| fence.is_some())
                .map(|(id, number)| Version {
                    id,
                    number: number.cast_unsigned(),
                }),
            compared_at: columns.take()?,
            read_at: columns.take()?,
            is_touched: columns.take()?,
        })
    }
}

/// A row of a member, current or a tombstone.
#[derive(Clone, Debug)]
pub struct ComparedMember {
    /// The user.
    pub user_id: UserId,
    /// The values.
    pub member: Member,
}

impl PageRow for ComparedMember {
    fn read(columns: &mut Columns<'_>) -> Result<Self, sqlx::Error> {
        let (_, user_id, member) = read_member(columns)?;
        let _made_and_changed: (OffsetDateTime, OffsetDateTime) =
            (columns.take()?, columns.take()?);
        Ok(Self { user_id, member })
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.member.texts().map(Text::as_str)
    }
}

impl Store {
    /// Returns the transactions that have ended by now.
    pub async fn fence(&self) -> Result<Fence, Error> {
        self.read(async |connection| fence(connection).await).await
    }

    /// Counts the members of groups, by group id. An unknown group has 0.
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

    /// Looks up groups. Returns the known ones in their order, and the number of ids that were looked up, at least one.
    /// The caller must ask again for the other ids: there was no room for their texts.
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

    /// Reads up to `limit` groups after the group id `after` ("" for the first), in bytewise order. Long texts make the
    /// page shorter. It is empty only at the end.
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

    /// Reads a page of a group's members and tombstones after the user id `after` ("" for the first), in bytewise order
    /// of user id. Returns true with the last page. `users` limits it to some users.
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
        let page: Page<ComparedMember> = self
            .page(sql, MAX_PAGE_MEMBERS, |query, limit| {
                let query = query.bind(group.as_str()).bind(after).bind(limit);
                match &ids {
                    Some(ids) => query.bind(ids),
                    None => query,
                }
            })
            .await?;
        Ok((page.rows, !page.has_more))
    }

    /// Reads a page with all its texts. `bind` binds the parameters, with the limit.
    async fn page<'q, T>(
        &self,
        sql: PageSql,
        rows: usize,
        bind: impl Fn(PgQuery<'q>, i64) -> PgQuery<'q>,
    ) -> Result<Page<T>, Error>
    where
        T: PageRow + Send + Unpin,
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
                // Repeats only if rows grow meanwhile.
                Found::Long(bytes) => room = Room::Bytes(bytes),
            }
        }
    }

    /// Counts all current members, up to `max`.
    pub async fn count_members(&self, max: u64) -> Result<u64, Error> {
        let count: i64 = self
            .housekeep(async |connection| {
                sqlx::query_scalar(COUNT_CURRENT)
                    .bind(max.cast_signed())
                    .fetch_one(connection)
                    .await
            })
            .await?;
        Ok(count.cast_unsigned())
    }
}
