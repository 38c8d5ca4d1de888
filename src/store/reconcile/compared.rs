//! What is held against OpenIM's answers.

use std::collections::HashMap;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use time::OffsetDateTime;

use super::checks::fence;
use crate::domain::{Fence, Group, GroupId, Member, UserId, Version};
use crate::store::read::{Found, Page, Room, page};
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
}

statements! {
    /// By their ids.
    KNOWN_GROUPS = "
SELECT g.group_id, g.name, g.notification, g.introduction, g.face_url, g.ex, g.need_verification,
       g.look_member_info, g.apply_member_friend, g.owner_user_id, g.status, g.group_type,
       g.created_in_openim_at, g.dismissed_at, g.dismissals, g.emptying_at, g.last_callback_xid,
       g.created_at, g.check_wanted_since, g.check_reason, c.version, c.version_id, c.fence,
       c.compared_at, c.read_at, c.touched IS DISTINCT FROM '{}' AS is_touched
  FROM unnest($1::text[]) AS asked (group_id)
  JOIN groups AS g ON g.group_id = asked.group_id
  LEFT JOIN LATERAL
       (SELECT version, version_id, fence, compared_at, read_at, touched
          FROM group_checks
         WHERE group_id = g.group_id
         LIMIT 1) AS c ON true";
    /// Walks the primary key, and looks for each group's check; LIMIT 1 keeps the planner from reading
    /// all of these.
    GROUPS_TO_COMPARE = "
SELECT g.group_id, g.name, g.notification, g.introduction, g.face_url, g.ex, g.need_verification,
       g.look_member_info, g.apply_member_friend, g.owner_user_id, g.status, g.group_type,
       g.created_in_openim_at, g.dismissed_at, g.dismissals, g.emptying_at, g.last_callback_xid,
       g.created_at, g.check_wanted_since, g.check_reason, c.version, c.version_id, c.fence,
       c.compared_at, c.read_at, c.touched IS DISTINCT FROM '{}' AS is_touched
  FROM groups AS g
  LEFT JOIN LATERAL
       (SELECT version, version_id, fence, compared_at, read_at, touched
          FROM group_checks
         WHERE group_id = g.group_id
         LIMIT 1) AS c ON true
 WHERE g.group_id > $1
 ORDER BY g.group_id
 LIMIT $2";
    /// A look at the primary key for each user.
    MEMBERS_NAMED = "
SELECT m.group_id, m.user_id, m.nickname, m.face_url, m.role_level, m.ex, m.display_nickname,
       m.display_face_url, m.joined_at, m.join_source, m.inviter_user_id, m.operator_user_id,
       m.mute_end_at,
       COALESCE(m.left_at, CASE
           WHEN m.came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at,
       m.last_callback_xid, m.created_at
  FROM unnest($2::text[]) AS asked (user_id)
 CROSS JOIN LATERAL
       (SELECT group_id, user_id, nickname, face_url, role_level, ex, display_nickname,
               display_face_url, joined_at, join_source, inviter_user_id, operator_user_id,
               mute_end_at, left_at, came_at_dismissal, last_callback_xid, created_at
          FROM group_members
         WHERE group_id = $1 AND user_id = asked.user_id
         LIMIT 1) AS m";
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

    /// Those of these groups that are known, in any order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn known_groups(&self, groups: &[GroupId]) -> Result<Vec<KnownGroup>, Error> {
        let ids: Vec<&str> = groups.iter().map(GroupId::as_str).collect();
        self.read(async |connection| {
            sqlx::query_as(KNOWN_GROUPS)
                .bind(&ids)
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// Up to `limit` groups after the group id `after` ("" for the first), in bytewise order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups_to_compare(
        &self,
        after: &str,
        limit: i64,
    ) -> Result<Vec<KnownGroup>, Error> {
        self.read(async |connection| {
            sqlx::query_as(GROUPS_TO_COMPARE)
                .bind(after)
                .bind(limit)
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// A page of a group's members after the user id `after` ("" for the first), those who left too,
    /// in bytewise order of user id, and whether it is the last.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members_to_compare(
        &self,
        group: &GroupId,
        after: &str,
    ) -> Result<(Vec<ComparedMember>, bool), Error> {
        let limit = i64::try_from(PAGE + 1).unwrap_or(i64::MAX);
        let mut room = Room::Short;
        loop {
            let found: Found<Page<StoredMember>> = self
                .read(async |connection| {
                    page(connection, MEMBERS_TO_COMPARE, PAGE, room, |query| {
                        query.bind(group.as_str()).bind(after).bind(limit)
                    })
                    .await
                })
                .await?;
            match found {
                Found::Whole(Page { rows, has_more }) => {
                    let rows = rows.into_iter().map(ComparedMember::from);
                    return Ok((rows.collect(), !has_more));
                }
                // As much as a page has, or its first row alone. Again only where that grows.
                Found::Long(bytes) => room = Room::Bytes(bytes),
            }
        }
    }

    /// Those of these users who have a row in a group, in any order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members_named(
        &self,
        group: &GroupId,
        users: &[&UserId],
    ) -> Result<Vec<ComparedMember>, Error> {
        let ids: Vec<&str> = users.iter().map(|user| user.as_str()).collect();
        let rows: Vec<StoredMember> = self
            .read(async |connection| {
                sqlx::query_as(MEMBERS_NAMED)
                    .bind(group.as_str())
                    .bind(&ids)
                    .fetch_all(connection)
                    .await
            })
            .await?;
        Ok(rows.into_iter().map(ComparedMember::from).collect())
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
