//! Members: a group's, a user's memberships, and any pairs.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use time::OffsetDateTime;

use super::super::{Error, Store};
use super::bounded::{self, Found, Page, Room, SHORT_ROW, Texts};
use crate::domain::{GroupId, ORDINARY, UserId};

pages! {
    /// Walks the primary key; not at all in a dismissed group, of which everybody has left.
    PAGE_OF_GROUP = member_columns + "left_at, created_at, updated_at",
        key "user_id", room "$4", "
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g WHERE g.group_id = $1 AND g.status = 2)
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Walks the primary key and leaves out the few with another role.
    PAGE_OF_ORDINARY = member_columns + "left_at, created_at, updated_at",
        key "user_id", room "$4", "
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
    PAGE_OF_ROLE = member_columns + "left_at, created_at, updated_at",
        key "user_id", room "$5", "
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
    PAGE_OF_ALL = member_columns + "COALESCE(left_at, CASE
           WHEN came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at,
       created_at, updated_at" as "left_at, created_at, updated_at",
        key "user_id", room "$5", "
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
   AND ($4::integer IS NULL OR role_level = $4)
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Those who left: walks group_members_left; and, where the group is dismissed, merges into
    /// these, by the primary key, those who were there then and whose rows do not say so yet.
    PAGE_OF_LEFT = member_columns + "left_at, created_at, updated_at",
        key "user_id", room "$5", "
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
    PAGE_OF_USERS = member_columns + "left_at, created_at, updated_at",
        key "user_id", room "$7", "
  FROM unnest($5::text[]) AS asked (id)
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
         WHERE group_id = $1 AND user_id = asked.id
         LIMIT 1) AS m
 WHERE m.user_id > $2 AND ($4::integer IS NULL OR m.role_level = $4)
   AND (m.left_at IS NOT NULL) = ANY($6::boolean[])
 ORDER BY m.user_id
 LIMIT $3";
    /// Walks group_members_by_user. The group is looked for by each row's id: as a join, the
    /// planner might read all dismissed groups first.
    PAGE_OF_USER = member_columns + "left_at, created_at, updated_at",
        key "group_id", room "$4", "
  FROM group_members AS m
 WHERE (user_id, group_id) > ($1, $2) AND user_id <= $1 AND left_at IS NULL
   AND (SELECT true FROM groups AS g
         WHERE g.group_id = m.group_id AND g.emptying_at IS NOT NULL
           AND m.came_at_dismissal IS DISTINCT FROM g.dismissals) IS NULL
 ORDER BY user_id, group_id
 LIMIT $3";
}

statements! {
    /// One look at the primary key.
    MEMBER = concat!("
SELECT ", member_columns!(short), ", left_at, created_at, updated_at
  FROM group_members
 WHERE group_id = $1 AND user_id = $2 AND left_at IS NULL
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))");
    /// A look at an index for each pair, told apart by their places, from 1.
    MEMBERSHIPS = concat!("
SELECT ", member_columns!(short), ", left_at, created_at, updated_at, place
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (asked_group, asked_user, place)
 CROSS JOIN LATERAL
       (SELECT ", member_columns!(plain), ", left_at, created_at, updated_at
          FROM group_members
         WHERE group_id = asked_group AND user_id = asked_user AND left_at IS NULL
           AND NOT EXISTS (SELECT FROM groups AS g
                            WHERE g.group_id = asked_group AND g.emptying_at IS NOT NULL
                              AND came_at_dismissal IS DISTINCT FROM g.dismissals)
         LIMIT 1) AS m");
    /// The same with the bytes of each, and its texts where it is allowed so many.
    MEMBERSHIPS_SIZED = concat!("
SELECT ", member_columns!(if "bytes <= allowed"), ", left_at, created_at, updated_at, bytes, place
  FROM unnest($1::text[], $2::text[], $3::bigint[]) 
       WITH ORDINALITY AS asked (asked_group, asked_user, allowed, place)
 CROSS JOIN LATERAL
       (SELECT ", member_columns!(plain), ", left_at, created_at, updated_at,
               ", member_columns!(bytes), " AS bytes
          FROM group_members
         WHERE group_id = asked_group AND user_id = asked_user AND left_at IS NULL
           AND NOT EXISTS (SELECT FROM groups AS g
                            WHERE g.group_id = asked_group AND g.emptying_at IS NOT NULL
                              AND came_at_dismissal IS DISTINCT FROM g.dismissals)
         LIMIT 1) AS m");
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

/// Where the place stands, behind the columns of a member.
const PLACE: usize = 16;

/// By the place of the columns, which all these statements have in one order: to find each by its name
/// takes as long as to read it.
impl FromRow<'_, PgRow> for MemberRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            group_id: row.try_get(0)?,
            user_id: row.try_get(1)?,
            nickname: row.try_get(2)?,
            display_nickname: row.try_get(3)?,
            face_url: row.try_get(4)?,
            display_face_url: row.try_get(5)?,
            role_level: row.try_get(6)?,
            ex: row.try_get(7)?,
            joined_at: row.try_get(8)?,
            join_source: row.try_get(9)?,
            inviter_user_id: row.try_get(10)?,
            operator_user_id: row.try_get(11)?,
            mute_end_at: row.try_get(12)?,
            left_at: row.try_get(13)?,
            created_at: row.try_get(14)?,
            updated_at: row.try_get(15)?,
        })
    }
}

impl Texts for MemberRow {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let texts = [
            &self.nickname,
            &self.display_nickname,
            &self.face_url,
            &self.display_face_url,
            &self.ex,
            &self.inviter_user_id,
            &self.operator_user_id,
        ];
        texts.into_iter().filter_map(|text| text.as_deref())
    }
}

impl MemberRow {
    /// Bytes of its texts and ids.
    pub fn bytes(&self) -> usize {
        let texts: usize = self.texts().map(str::len).sum();
        texts + self.group_id.len() + self.user_id.len()
    }
}

/// A member who was looked for by id.
#[derive(Clone, Debug)]
pub struct SoughtMember {
    /// What is known of it.
    pub row: MemberRow,
    /// Bytes of its texts and ids.
    pub bytes: usize,
    /// Whether there was room for its texts, which else are not there.
    pub has_texts: bool,
}

impl SoughtMember {
    /// Gives back the memory of its texts and ids.
    pub fn forget_texts(&mut self) {
        let row = &mut self.row;
        (row.group_id, row.user_id) = (String::new(), String::new());
        for text in [
            &mut row.nickname,
            &mut row.display_nickname,
            &mut row.face_url,
            &mut row.display_face_url,
            &mut row.ex,
            &mut row.inviter_user_id,
            &mut row.operator_user_id,
        ] {
            *text = None;
        }
        self.has_texts = false;
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
        limit: u32,
        room: Room,
    ) -> Result<Found<Page<MemberRow>>, Error> {
        let MemberFilter {
            state,
            role_level,
            user_ids,
        } = filter;
        let of_users = !user_ids.is_empty();
        let sql = match (state, role_level) {
            _ if of_users => PAGE_OF_USERS,
            (MemberState::Current, None) => PAGE_OF_GROUP,
            (MemberState::Current, Some(ORDINARY)) => PAGE_OF_ORDINARY,
            (MemberState::Current, Some(_)) => PAGE_OF_ROLE,
            (MemberState::Left, _) => PAGE_OF_LEFT,
            (MemberState::All, _) => PAGE_OF_ALL,
        };
        let is_current = *state == MemberState::Current;
        let has_role = of_users || !is_current || role_level.is_some_and(|r| r != ORDINARY);
        let ids: Vec<&str> = user_ids.iter().map(UserId::as_str).collect();
        let has_left: &[bool] = match state {
            MemberState::Current => &[false],
            MemberState::Left => &[true],
            MemberState::All => &[false, true],
        };
        self.read(async |connection| {
            bounded::page(connection, sql, limit as usize, room, |query| {
                let query = query.bind(group.as_str()).bind(after);
                let mut query = query.bind(i64::from(limit) + 1);
                if has_role {
                    query = query.bind(role_level);
                }
                if of_users {
                    query = query.bind(ids.clone()).bind(has_left);
                }
                query
            })
            .await
        })
        .await
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
        limit: u32,
        room: Room,
    ) -> Result<Found<Page<MemberRow>>, Error> {
        self.read(async |connection| {
            bounded::page(connection, PAGE_OF_USER, limit as usize, room, |query| {
                let query = query.bind(user.as_str()).bind(after);
                query.bind(i64::from(limit) + 1)
            })
            .await
        })
        .await
    }

    /// For each pair the current member, if there is one, in the order of the pairs; with its texts
    /// if it has [`SHORT_ROW`] bytes at most.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn memberships(
        &self,
        pairs: Arc<[(GroupId, UserId)]>,
    ) -> Result<Vec<Option<SoughtMember>>, Error> {
        let mut found = self.look_up(Arc::clone(&pairs)).await?;
        let is_marked = |row: &Option<MemberRow>| row.as_ref().is_some_and(Texts::is_marked);
        let marked: Vec<usize> = (0..found.len())
            .filter(|at| is_marked(&found[*at]))
            .collect();
        let asked: Vec<_> = marked.iter().map(|at| (&pairs[*at], SHORT_ROW)).collect();
        // Not in memory twice.
        for at in &marked {
            found[*at] = None;
        }
        let sized = self.long_members(&asked).await?;
        let whole = |row: MemberRow| SoughtMember {
            bytes: row.bytes(),
            row,
            has_texts: true,
        };
        let mut sought: Vec<_> = found.into_iter().map(|row| row.map(whole)).collect();
        for (at, member) in marked.into_iter().zip(sized) {
            sought[at] = member;
        }
        Ok(sought)
    }

    /// The same with the texts of each who has as many bytes at most as it is allowed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn long_members(
        &self,
        pairs: &[(&(GroupId, UserId), usize)],
    ) -> Result<Vec<Option<SoughtMember>>, Error> {
        if pairs.is_empty() {
            return Ok(vec![]);
        }
        let groups: Vec<&str> = pairs.iter().map(|((group, _), _)| group.as_str()).collect();
        let users: Vec<&str> = pairs.iter().map(|((_, user), _)| user.as_str()).collect();
        let allowed: Vec<i64> = pairs
            .iter()
            .map(|(_, bytes)| bounded::count(*bytes))
            .collect();
        let found = self
            .read(async |connection| {
                sqlx::query(MEMBERSHIPS_SIZED)
                    .bind(&groups)
                    .bind(&users)
                    .bind(&allowed)
                    .try_map(|row: PgRow| {
                        let bytes: i64 = row.try_get("bytes")?;
                        Ok((row.try_get("place")?, bytes, MemberRow::from_row(&row)?))
                    })
                    .fetch_all(connection)
                    .await
            })
            .await?;
        let found = found.into_iter().map(|(place, bytes, row)| {
            let allowed = at(place).and_then(|at| allowed.get(at));
            let member = SoughtMember {
                row,
                bytes: bounded::bytes(bytes),
                has_texts: allowed.is_some_and(|allowed| bytes <= *allowed),
            };
            (place, member)
        });
        Ok(in_places(found, pairs.len()))
    }
}

/// The index of a place, which counts from 1.
fn at(place: i64) -> Option<usize> {
    usize::try_from(place - 1).ok()
}

/// Each at its place, of so many.
fn in_places<T: Clone>(found: impl Iterator<Item = (i64, T)>, count: usize) -> Vec<Option<T>> {
    let mut all = vec![None; count];
    for (place, one) in found {
        if let Some(slot) = at(place).and_then(|at| all.get_mut(at)) {
            *slot = Some(one);
        }
    }
    all
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
    let found = sqlx::query(MEMBERSHIPS)
        .bind(groups)
        .bind(users)
        .try_map(|row: PgRow| Ok((row.try_get(PLACE)?, MemberRow::from_row(&row)?)))
        .fetch_all(connection)
        .await?;
    Ok(in_places(found.into_iter(), pairs.len()))
}
