//! What is asked of the mirror.
//!
//! Every page starts after a key, from the empty key at first, which is below every id;
//! `$n IS NULL OR ...` would make a generic plan read the whole group. Pages compare whole rows,
//! `(group_id, user_id) > ($1, $2) AND group_id <= $1`, where `group_id = $1 AND user_id > $2`
//! says the same: with an equality the planner may take the order from the other index, which it
//! believes to hold the group's members evenly spread, and read all the table to find them.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use time::OffsetDateTime;

use super::{Error, Store};
use crate::domain::{GroupId, ORDINARY, UserId};

statements! {
    /// Walks the primary key.
    PAGE_OF_GROUP = "
SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Walks the primary key and leaves out the few with another role.
    PAGE_OF_ORDINARY = "
SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
   AND role_level = 20 AND left_at IS NULL
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Walks group_members_by_role. Its predicate is repeated here because the planner cannot
    /// know that a parameter is not 20.
    PAGE_OF_ROLE = "
SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
  FROM group_members
 WHERE (group_id, role_level, user_id) > ($1, $4, $2) AND (group_id, role_level) <= ($1, $4)
   AND role_level <> 20 AND left_at IS NULL
 ORDER BY group_id, role_level, user_id
 LIMIT $3";
    /// A look at an index for each of the users asked for, who are few; LIMIT 1 keeps the planner
    /// from reading the group instead.
    PAGE_OF_USERS = "
SELECT m.group_id, m.user_id, m.nickname, m.face_url, m.role_level, m.ex,
       m.created_at, m.updated_at
  FROM unnest($5::text[]) AS asked (user_id)
 CROSS JOIN LATERAL
       (SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
          FROM group_members
         WHERE group_id = $1 AND user_id = asked.user_id AND left_at IS NULL
         LIMIT 1) AS m
 WHERE m.user_id > $2 AND ($4::integer IS NULL OR m.role_level = $4)
 ORDER BY m.user_id
 LIMIT $3";
    /// One look at the primary key.
    MEMBER = "
SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
  FROM group_members
 WHERE group_id = $1 AND user_id = $2 AND left_at IS NULL";
    /// Walks group_members_by_user.
    PAGE_OF_USER = "
SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
  FROM group_members
 WHERE (user_id, group_id) > ($1, $2) AND user_id <= $1 AND left_at IS NULL
 ORDER BY user_id, group_id
 LIMIT $3";
    /// Reads every row of the group: the newest change is in none of the indexes, so that patches
    /// stay heap-only. A leave is a change too.
    GROUP_BY_ROLE = "
SELECT role_level,
       count(*) FILTER (WHERE left_at IS NULL) AS members,
       max(updated_at) AS newest_change
  FROM group_members
 WHERE group_id = $1
 GROUP BY role_level
 ORDER BY role_level";
    /// A look at an index for each pair, told apart by their places, from 1.
    MEMBERSHIPS = "
SELECT asked.place, m.group_id, m.user_id, m.nickname, m.face_url, m.role_level, m.ex,
       m.created_at, m.updated_at
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (group_id, user_id, place)
 CROSS JOIN LATERAL
       (SELECT group_id, user_id, nickname, face_url, role_level, ex, created_at, updated_at
          FROM group_members
         WHERE group_id = asked.group_id AND user_id = asked.user_id AND left_at IS NULL
         LIMIT 1) AS m";
}

/// A current member, as stored.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns; see migrations/0001")]
pub struct MemberRow {
    pub group_id: String,
    pub user_id: String,
    pub nickname: Option<String>,
    pub face_url: Option<String>,
    pub role_level: Option<i32>,
    pub ex: Option<String>,
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
    /// In order of role level, the unknown last; no role without members.
    pub by_role: Vec<RoleCount>,
    /// Of any row of the group, those of members who left included.
    pub newest_change: OffsetDateTime,
}

#[derive(FromRow)]
struct RoleRow {
    role_level: Option<i32>,
    members: i64,
    newest_change: OffsetDateTime,
}

/// By the place of the columns, which all these statements have in one order, with what else there
/// is before them: to find each by its name takes as long as to read it.
fn member_at(row: &PgRow, first: usize) -> Result<MemberRow, sqlx::Error> {
    Ok(MemberRow {
        group_id: row.try_get(first)?,
        user_id: row.try_get(first + 1)?,
        nickname: row.try_get(first + 2)?,
        face_url: row.try_get(first + 3)?,
        role_level: row.try_get(first + 4)?,
        ex: row.try_get(first + 5)?,
        created_at: row.try_get(first + 6)?,
        updated_at: row.try_get(first + 7)?,
    })
}

impl FromRow<'_, PgRow> for MemberRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        member_at(row, 0)
    }
}

struct PlacedRow {
    place: i64,
    member: MemberRow,
}

impl FromRow<'_, PgRow> for PlacedRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            place: row.try_get(0)?,
            member: member_at(row, 1)?,
        })
    }
}

/// Which members of a group are wanted.
#[derive(Clone, Debug, Default)]
pub struct MemberFilter {
    /// Only this role level.
    pub role_level: Option<i32>,
    /// Only these users; empty for all.
    pub user_ids: Vec<UserId>,
}

impl Store {
    /// Up to `limit` current members after the user id `after` ("" for the first), in bytewise
    /// order of user id. Costs the same anywhere in a group of any size; for `role_level` 20 that
    /// holds where most members are ordinary ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members(
        &self,
        group: &GroupId,
        filter: &MemberFilter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<MemberRow>, Error> {
        let MemberFilter {
            role_level,
            user_ids,
        } = filter;
        self.read(async |connection| {
            let query = match (role_level, user_ids.is_empty()) {
                (None, true) => sqlx::query_as(PAGE_OF_GROUP),
                (Some(ORDINARY), true) => sqlx::query_as(PAGE_OF_ORDINARY),
                (Some(_), true) => sqlx::query_as(PAGE_OF_ROLE),
                (_, false) => sqlx::query_as(PAGE_OF_USERS),
            };
            let mut query = query.bind(group.as_str()).bind(after).bind(limit);
            if !user_ids.is_empty() {
                let ids: Vec<&str> = user_ids.iter().map(UserId::as_str).collect();
                query = query.bind(role_level).bind(ids);
            } else if let Some(role_level) = role_level.filter(|level| *level != ORDINARY) {
                query = query.bind(role_level);
            }
            query.fetch_all(connection).await
        })
        .await
    }

    /// The current member, if there is one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn member(&self, group: GroupId, user: UserId) -> Result<Option<MemberRow>, Error> {
        let found = self.look_up([(group, user)].into()).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// Up to `limit` current memberships of a user after the group id `after` ("" for the first),
    /// in bytewise order of group id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups_of(
        &self,
        user: &UserId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<MemberRow>, Error> {
        self.read(async |connection| {
            sqlx::query_as(PAGE_OF_USER)
                .bind(user.as_str())
                .bind(after)
                .bind(limit)
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// A group in numbers; `None` for one we never heard of. Reads every row of the group, about
    /// 0.2 s for a million members held in memory.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn group(&self, group: &GroupId) -> Result<Option<GroupSummary>, Error> {
        let rows: Vec<RoleRow> = self
            .read(async |connection| {
                sqlx::query_as(GROUP_BY_ROLE)
                    .bind(group.as_str())
                    .fetch_all(connection)
                    .await
            })
            .await?;
        let newest_change = rows.iter().map(|row| row.newest_change).max();
        Ok(newest_change.map(|newest_change| GroupSummary {
            by_role: rows
                .into_iter()
                .filter(|row| row.members > 0)
                .map(|row| RoleCount {
                    role_level: row.role_level,
                    members: row.members,
                })
                .collect(),
            newest_change,
        }))
    }

    /// For each pair the current member, if there is one, in the order of the pairs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn memberships(
        &self,
        pairs: Arc<[(GroupId, UserId)]>,
    ) -> Result<Vec<Option<MemberRow>>, Error> {
        self.look_up(pairs).await
    }
}

pub(super) async fn member(
    connection: &mut PgConnection,
    group: &GroupId,
    user: &UserId,
) -> Result<Option<MemberRow>, sqlx::Error> {
    sqlx::query_as(MEMBER)
        .bind(group.as_str())
        .bind(user.as_str())
        .fetch_optional(connection)
        .await
}

pub(super) async fn memberships(
    connection: &mut PgConnection,
    pairs: &[&(GroupId, UserId)],
) -> Result<Vec<Option<MemberRow>>, sqlx::Error> {
    let (groups, users): (Vec<&str>, Vec<&str>) = pairs
        .iter()
        .map(|(group, user)| (group.as_str(), user.as_str()))
        .unzip();
    let found: Vec<PlacedRow> = sqlx::query_as(MEMBERSHIPS)
        .bind(groups)
        .bind(users)
        .fetch_all(connection)
        .await?;
    let mut members = vec![None; pairs.len()];
    for PlacedRow { place, member } in found {
        let index = usize::try_from(place - 1).ok();
        if let Some(slot) = index.and_then(|index| members.get_mut(index)) {
            *slot = Some(member);
        }
    }
    Ok(members)
}
