//! Pages of members: of a group, and of a user's memberships.

use super::super::columns::MemberRow;
use super::super::{Error, Store};
use super::{Found, Page, Room, page};
use crate::domain::{GroupId, ORDINARY, UserId};

/// SQL condition: the group `$1` is not dismissed.
macro_rules! is_not_dismissed {
    () => {
        "
   AND NOT EXISTS (SELECT FROM groups AS g WHERE g.group_id = $1 AND g.status = 2)"
    };
}

/// SQL condition: a row of the group `$1` without `left_at` is that of a current member. See the notes about dismissals
/// in the module.
macro_rules! joined_after_dismissal {
    () => {
        "
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))"
    };
}

pages! {
    /// Walks the primary key. Does not walk a dismissed group.
    PAGE_OF_GROUP = member_row, key "user_id", room "$4", concat!("
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL",
   is_not_dismissed!(), joined_after_dismissal!(), "
 ORDER BY group_id, user_id
 LIMIT $3");
    /// Walks the primary key and skips the few members with another role.
    PAGE_OF_ORDINARY = member_row, key "user_id", room "$4", concat!("
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
   AND role_level = 20 AND left_at IS NULL",
   is_not_dismissed!(), joined_after_dismissal!(), "
 ORDER BY group_id, user_id
 LIMIT $3");
    /// Walks group_members_by_role. Repeats the predicate of the index, because the planner cannot know that a
    /// parameter is not 20.
    PAGE_OF_ROLE = member_row, key "user_id", room "$5", concat!("
  FROM group_members
 WHERE (group_id, role_level, user_id) > ($1, $4, $2) AND (group_id, role_level) <= ($1, $4)
   AND role_level <> 20 AND left_at IS NULL",
   is_not_dismissed!(), joined_after_dismissal!(), "
 ORDER BY group_id, role_level, user_id
 LIMIT $3");
    /// Walks the primary key, for current members and tombstones.
    PAGE_OF_ALL = member_row_of_group, key "user_id", room "$5", "
  FROM group_members
 WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1
   AND ($4::integer IS NULL OR role_level = $4)
 ORDER BY group_id, user_id
 LIMIT $3";
    /// Walks group_members_left for tombstones. Of a dismissed group, merges in those who were members and whose rows
    /// do not say yet that they left, by the primary key.
    PAGE_OF_LEFT = member_row, key "user_id", room "$5", concat!("
  FROM (SELECT ", member_row!(plain), "
          FROM group_members
         WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NOT NULL
           AND ($4::integer IS NULL OR role_level = $4)
         UNION ALL
        SELECT ", member_row!(plain, "(SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1)"), "
          FROM group_members
         WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL
           AND ($4::integer IS NULL OR role_level = $4)
           AND (SELECT g.dismissals FROM groups AS g
                 WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NOT NULL
           AND came_at_dismissal IS DISTINCT FROM (SELECT g.dismissals FROM groups AS g
                                                    WHERE g.group_id = $1)) AS gone
 ORDER BY group_id, user_id
 LIMIT $3");
    /// Looks up each of the users, who are few. LIMIT 1 keeps the planner from reading the group instead. $6 has one
    /// value for tombstones and one for current members.
    PAGE_OF_USERS = member_row, key "user_id", room "$7", concat!("
  FROM unnest($5::text[]) AS asked (id)
 CROSS JOIN LATERAL
       (SELECT ", member_row_of_group!(plain), "
          FROM group_members
         WHERE group_id = $1 AND user_id = asked.id
         LIMIT 1) AS m
 WHERE m.user_id > $2 AND ($4::integer IS NULL OR m.role_level = $4)
   AND (m.left_at IS NOT NULL) = ANY($6::boolean[])
 ORDER BY m.user_id
 LIMIT $3");
    /// Walks group_members_by_user. The group is searched for each row: for a join the planner may read all dismissed
    /// groups first.
    PAGE_OF_USER = member_row, key "group_id", room "$4", "
  FROM group_members AS m
 WHERE (user_id, group_id) > ($1, $2) AND user_id <= $1 AND left_at IS NULL
   AND (SELECT true FROM groups AS g
         WHERE g.group_id = m.group_id AND g.emptying_at IS NOT NULL
           AND m.came_at_dismissal IS DISTINCT FROM g.dismissals) IS NULL
 ORDER BY user_id, group_id
 LIMIT $3";
}

/// State of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberState {
    /// Current members.
    #[default]
    Current,
    /// Users who have left, or whose group is dismissed.
    Left,
    /// All of them.
    All,
}

/// Conditions for members of a group.
#[derive(Clone, Debug, Default)]
pub struct MemberFilter {
    /// Only members in this state.
    pub state: MemberState,
    /// Only members with this role level.
    pub role_level: Option<i32>,
    /// Only these users. Empty: all users.
    pub user_ids: Vec<UserId>,
}

impl Store {
    /// Reads up to `limit` members after the user id `after` ("" for the first), in bytewise order of user id. A page
    /// costs the same anywhere in a group of any size, but these rows are skipped one by one: tombstones, other roles
    /// than 20, and any other role if tombstones are read too.
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
            page(connection, sql, limit as usize, room, |query| {
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

    /// Reads up to `limit` current memberships of a user after the group id `after` ("" for the first), in bytewise
    /// order of group id.
    pub async fn groups_of(
        &self,
        user: &UserId,
        after: &str,
        limit: u32,
        room: Room,
    ) -> Result<Found<Page<MemberRow>>, Error> {
        self.read(async |connection| {
            page(connection, PAGE_OF_USER, limit as usize, room, |query| {
                let query = query.bind(user.as_str()).bind(after);
                query.bind(i64::from(limit) + 1)
            })
            .await
        })
        .await
    }
}
