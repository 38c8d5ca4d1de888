//! Members: a group's, a user's memberships, and any pairs.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use time::OffsetDateTime;

use super::super::{Error, Store};
use crate::domain::{GroupId, ORDINARY, UserId};

statements! {
    /// Walks the primary key; not at all in a dismissed group, of which everybody has left.
    PAGE_OF_GROUP = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at, left_at, created_at, updated_at
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g WHERE g.group_id = $1 AND g.status = 2)
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Walks the primary key and leaves out the few with another role.
    PAGE_OF_ORDINARY = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at, left_at, created_at, updated_at
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
   AND role_level = 20 AND left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g WHERE g.group_id = $1 AND g.status = 2)
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Walks group_members_by_role. Its predicate is repeated here because the planner cannot
    /// know that a parameter is not 20.
    PAGE_OF_ROLE = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at, left_at, created_at, updated_at
  FROM group_members
 WHERE (group_id, role_level, user_id) > ($1, $4, $2) AND (group_id, role_level) <= ($1, $4)
   AND role_level <> 20 AND left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g WHERE g.group_id = $1 AND g.status = 2)
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))
 ORDER BY group_id, role_level, user_id
 LIMIT $3";
    /// Current members and others: walks the primary key.
    PAGE_OF_ALL = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at,
       COALESCE(left_at, CASE
           WHEN came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at,
       created_at, updated_at
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
   AND ($4::integer IS NULL OR role_level = $4)
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Those who left: walks group_members_left; and, where the group is dismissed, merges into
    /// these, by the primary key, those who were there then and whose rows do not say so yet.
    PAGE_OF_LEFT = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at, left_at, created_at, updated_at
  FROM (SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
               role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
               mute_end_at, left_at, created_at, updated_at
          FROM group_members
         WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NOT NULL
           AND ($4::integer IS NULL OR role_level = $4)
         UNION ALL
        SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
               role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
               mute_end_at,
               (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1),
               created_at, updated_at
          FROM group_members
         WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL
           AND ($4::integer IS NULL OR role_level = $4)
           AND (SELECT g.dismissals FROM groups AS g
                 WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NOT NULL
           AND came_at_dismissal IS DISTINCT FROM (SELECT g.dismissals FROM groups AS g
                                                    WHERE g.group_id = $1)) AS gone
 ORDER BY group_id, user_id
 LIMIT $3";
    /// A look at an index for each of the users asked for, who are few; LIMIT 1 keeps the planner
    /// from reading the group instead. $6 holds whether those who left are wanted, and the others.
    PAGE_OF_USERS = "
SELECT m.group_id, m.user_id, m.nickname, m.display_nickname, m.face_url, m.display_face_url,
       m.role_level, m.ex, m.joined_at, m.join_source, m.inviter_user_id, m.operator_user_id,
       m.mute_end_at, m.left_at, m.created_at, m.updated_at
  FROM unnest($5::text[]) AS asked (user_id)
 CROSS JOIN LATERAL
       (SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
               role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
               mute_end_at,
               COALESCE(left_at, CASE
           WHEN came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at,
               created_at, updated_at
          FROM group_members
         WHERE group_id = $1 AND user_id = asked.user_id
         LIMIT 1) AS m
 WHERE m.user_id > $2 AND ($4::integer IS NULL OR m.role_level = $4)
   AND (m.left_at IS NOT NULL) = ANY($6::boolean[])
 ORDER BY m.user_id
 LIMIT $3";
    /// One look at the primary key.
    MEMBER = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at, left_at, created_at, updated_at
  FROM group_members
 WHERE group_id = $1 AND user_id = $2 AND left_at IS NULL
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))";
    /// Walks group_members_by_user. The group is looked for by each row's id: as a join, the
    /// planner might read all dismissed groups first.
    PAGE_OF_USER = "
SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
       mute_end_at, left_at, created_at, updated_at
  FROM group_members AS m
 WHERE (user_id, group_id) > ($1, $2) AND user_id <= $1 AND left_at IS NULL
   AND (SELECT true FROM groups AS g
         WHERE g.group_id = m.group_id AND g.emptying_at IS NOT NULL
           AND m.came_at_dismissal IS DISTINCT FROM g.dismissals) IS NULL
 ORDER BY user_id, group_id
 LIMIT $3";
    /// A look at an index for each pair, told apart by their places, from 1.
    MEMBERSHIPS = "
SELECT asked.place, m.group_id, m.user_id, m.nickname, m.display_nickname, m.face_url,
       m.display_face_url, m.role_level, m.ex, m.joined_at, m.join_source, m.inviter_user_id,
       m.operator_user_id, m.mute_end_at, m.left_at, m.created_at, m.updated_at
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (group_id, user_id, place)
 CROSS JOIN LATERAL
       (SELECT group_id, user_id, nickname, display_nickname, face_url, display_face_url,
               role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id,
               mute_end_at, left_at, created_at, updated_at
          FROM group_members
         WHERE group_id = asked.group_id AND user_id = asked.user_id AND left_at IS NULL
           AND NOT EXISTS (SELECT FROM groups AS g
                            WHERE g.group_id = asked.group_id AND g.emptying_at IS NOT NULL
                              AND came_at_dismissal IS DISTINCT FROM g.dismissals)
         LIMIT 1) AS m";
}

/// A member, as stored.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns; see migrations/")]
pub struct MemberRow {
    pub group_id: String,
    pub user_id: String,
    pub nickname: Option<String>,
    pub display_nickname: Option<String>,
    pub face_url: Option<String>,
    pub display_face_url: Option<String>,
    pub role_level: Option<i32>,
    pub ex: Option<String>,
    pub joined_at: Option<OffsetDateTime>,
    pub join_source: Option<i32>,
    pub inviter_user_id: Option<String>,
    pub operator_user_id: Option<String>,
    pub mute_end_at: Option<OffsetDateTime>,
    /// When the member left, or the group was dismissed.
    pub left_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

/// By the place of the columns, which all these statements have in one order, with what else there
/// is before them: to find each by its name takes as long as to read it.
fn member_at(row: &PgRow, first: usize) -> Result<MemberRow, sqlx::Error> {
    Ok(MemberRow {
        group_id: row.try_get(first)?,
        user_id: row.try_get(first + 1)?,
        nickname: row.try_get(first + 2)?,
        display_nickname: row.try_get(first + 3)?,
        face_url: row.try_get(first + 4)?,
        display_face_url: row.try_get(first + 5)?,
        role_level: row.try_get(first + 6)?,
        ex: row.try_get(first + 7)?,
        joined_at: row.try_get(first + 8)?,
        join_source: row.try_get(first + 9)?,
        inviter_user_id: row.try_get(first + 10)?,
        operator_user_id: row.try_get(first + 11)?,
        mute_end_at: row.try_get(first + 12)?,
        left_at: row.try_get(first + 13)?,
        created_at: row.try_get(first + 14)?,
        updated_at: row.try_get(first + 15)?,
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

/// Whether members are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberState {
    /// Those who are.
    #[default]
    Current,
    /// Those who left, or whose group is dismissed.
    Left,
    /// Both.
    All,
}

/// Which members of a group are wanted.
#[derive(Clone, Debug, Default)]
pub struct MemberFilter {
    /// Only those in this state.
    pub state: MemberState,
    /// Only this role level.
    pub role_level: Option<i32>,
    /// Only these users; empty for all.
    pub user_ids: Vec<UserId>,
}

impl Store {
    /// Up to `limit` members after the user id `after` ("" for the first), in bytewise order of user
    /// id. Costs the same anywhere in a group of any size, but that those are passed over one by one
    /// who left, and those of another role with `role_level` 20, or any where not only current
    /// members are wanted.
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
            state,
            role_level,
            user_ids,
        } = filter;
        self.read(async |connection| {
            let of_users = !user_ids.is_empty();
            let query = match (state, role_level) {
                _ if of_users => sqlx::query_as(PAGE_OF_USERS),
                (MemberState::Current, None) => sqlx::query_as(PAGE_OF_GROUP),
                (MemberState::Current, Some(ORDINARY)) => sqlx::query_as(PAGE_OF_ORDINARY),
                (MemberState::Current, Some(_)) => sqlx::query_as(PAGE_OF_ROLE),
                (MemberState::Left, _) => sqlx::query_as(PAGE_OF_LEFT),
                (MemberState::All, _) => sqlx::query_as(PAGE_OF_ALL),
            };
            let mut query = query.bind(group.as_str()).bind(after).bind(limit);
            let is_current = *state == MemberState::Current;
            let has_role = of_users || !is_current || role_level.is_some_and(|r| r != ORDINARY);
            if has_role {
                query = query.bind(role_level);
            }
            if of_users {
                let ids: Vec<&str> = user_ids.iter().map(UserId::as_str).collect();
                let has_left: &[bool] = match state {
                    MemberState::Current => &[false],
                    MemberState::Left => &[true],
                    MemberState::All => &[false, true],
                };
                query = query.bind(ids).bind(has_left);
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

pub(in super::super) async fn member(
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

pub(in super::super) async fn memberships(
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
