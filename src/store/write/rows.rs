//! Changes that depend on what is stored.
//!
//! Rows are locked before they are read: the groups first, in the order of their ids, then the
//! members. Whoever has a group's row has all of the group, for every replica takes it first; it is
//! there from the first change on.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;

use super::super::stored::{Emptying, StoredGroup, StoredMember};
use super::fence::Position;
use crate::domain::{
    self, Change, Event, Group, GroupId, GroupRows, Member, Repaired, Text, UserId,
};

statements! {
    /// In the order in which they are asked for, which is that of their ids, with the texts of those
    /// that are to have them. The planner makes no hash of a subquery that locks, which would read
    /// the whole table. Moves the lane's position too, if there is one, for that needs no statement of its
    /// own.
    LOCK_GROUPS = "
WITH moved AS (
    INSERT INTO lane_positions (spool_id, lane, seq)
    SELECT $2::bigint, $3::smallint, $4::bigint WHERE $2::bigint IS NOT NULL
    ON CONFLICT (spool_id, lane) DO UPDATE SET seq = EXCLUDED.seq)
SELECT group_id, CASE WHEN asked.wants THEN name END AS name,
       CASE WHEN asked.wants THEN notification END AS notification,
       CASE WHEN asked.wants THEN introduction END AS introduction,
       CASE WHEN asked.wants THEN face_url END AS face_url, CASE WHEN asked.wants THEN ex END AS ex,
       need_verification, look_member_info, apply_member_friend,
       owner_user_id, status, group_type, created_in_openim_at, dismissed_at, dismissals,
       emptying_at, last_callback_xid, created_at
  FROM unnest($1::text[], $5::boolean[]) AS asked (sought, wants)
 CROSS JOIN LATERAL (SELECT * FROM groups WHERE group_id = asked.sought FOR UPDATE) AS stored";
    /// Whoever begins another comparison of these groups waits until this one's rows are written.
    LOCK_CHECKS = "
SELECT group_id, compared_at
  FROM group_checks
 WHERE group_id = ANY($1)
 ORDER BY group_id
   FOR UPDATE";
    /// In the order of their keys. A statement of its own, so that it sees what whoever had the
    /// groups before has written. Who was there at a dismissal has left, though the row may not say so
    /// yet. With the texts of those that are to have them, as with groups.
    LOCK_MEMBERS = "
SELECT stored.group_id, stored.user_id, CASE WHEN asked.wants THEN nickname END AS nickname,
       CASE WHEN asked.wants THEN face_url END AS face_url, stored.role_level,
       CASE WHEN asked.wants THEN ex END AS ex,
       CASE WHEN asked.wants THEN display_nickname END AS display_nickname,
       CASE WHEN asked.wants THEN display_face_url END AS display_face_url, stored.joined_at,
       stored.join_source, CASE WHEN asked.wants THEN inviter_user_id END AS inviter_user_id,
       CASE WHEN asked.wants THEN operator_user_id END AS operator_user_id, stored.mute_end_at,
       COALESCE(stored.left_at,
                (SELECT g.emptying_at FROM groups AS g
                  WHERE g.group_id = stored.group_id AND g.emptying_at IS NOT NULL
                    AND stored.came_at_dismissal IS DISTINCT FROM g.dismissals)) AS left_at,
       stored.last_callback_xid, stored.created_at
  FROM unnest($1::text[], $2::text[], $3::boolean[]) AS asked (in_group, sought, wants)
 CROSS JOIN LATERAL
       (SELECT * FROM group_members WHERE group_id = asked.in_group AND user_id = asked.sought FOR UPDATE) AS stored";
    /// Whole rows, each there once. A row that was not there has no created_at; where another
    /// replica has made it meanwhile, it is left, and is missing from the count. Some keep the texts
    /// that they have, which were not read: Postgres hands them on without a copy of a long one, and
    /// compares none where an earlier value is another, such as that of who leaves.
    WRITE_MEMBERS = "
INSERT INTO group_members AS stored
       (group_id, user_id, nickname, face_url, role_level, ex, display_nickname, display_face_url,
        joined_at, join_source, inviter_user_id, operator_user_id, mute_end_at, left_at,
        came_at_dismissal, created_at, updated_at, last_callback_at, last_callback_xid)
SELECT group_id, user_id, CASE WHEN written.keeps THEN kept.nickname ELSE written.nickname END,
       CASE WHEN written.keeps THEN kept.face_url ELSE written.face_url END, role_level,
       CASE WHEN written.keeps THEN kept.ex ELSE written.ex END,
       CASE WHEN written.keeps THEN kept.display_nickname ELSE written.display_nickname END,
       CASE WHEN written.keeps THEN kept.display_face_url ELSE written.display_face_url END,
       joined_at, join_source,
       CASE WHEN written.keeps THEN kept.inviter_user_id ELSE written.inviter_user_id END,
       CASE WHEN written.keeps THEN kept.operator_user_id ELSE written.operator_user_id END,
       mute_end_at, left_at,
       came_at_dismissal, COALESCE(created_at, now()), now(), CASE WHEN is_named THEN now() END,
       CASE WHEN is_named THEN pg_current_xact_id()::text::bigint END
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::text[],
              $7::text[], $8::text[], $9::timestamptz[], $10::integer[], $11::text[], $12::text[],
              $13::timestamptz[], $14::timestamptz[], $15::boolean[], $16::timestamptz[],
              $17::integer[], $18::boolean[])
       AS written (group_id, user_id, nickname, face_url, role_level, ex, display_nickname,
                   display_face_url, joined_at, join_source, inviter_user_id, operator_user_id,
                   mute_end_at, left_at, is_named, created_at, came_at_dismissal, keeps)
  LEFT JOIN LATERAL
       (SELECT nickname, face_url, ex, display_nickname, display_face_url, inviter_user_id,
               operator_user_id
          FROM group_members AS there
         WHERE written.keeps AND there.group_id = written.group_id AND there.user_id = written.user_id
         LIMIT 1) AS kept ON true
ON CONFLICT (group_id, user_id) DO UPDATE SET
    nickname         = EXCLUDED.nickname,
    face_url         = EXCLUDED.face_url,
    role_level       = EXCLUDED.role_level,
    ex               = EXCLUDED.ex,
    display_nickname = EXCLUDED.display_nickname,
    display_face_url = EXCLUDED.display_face_url,
    joined_at        = EXCLUDED.joined_at,
    join_source      = EXCLUDED.join_source,
    inviter_user_id  = EXCLUDED.inviter_user_id,
    operator_user_id = EXCLUDED.operator_user_id,
    mute_end_at      = EXCLUDED.mute_end_at,
    left_at          = EXCLUDED.left_at,
    came_at_dismissal = EXCLUDED.came_at_dismissal,
    updated_at = CASE
        WHEN (EXCLUDED.left_at, EXCLUDED.role_level, EXCLUDED.joined_at, EXCLUDED.join_source,
              EXCLUDED.mute_end_at, EXCLUDED.nickname, EXCLUDED.face_url, EXCLUDED.ex,
              EXCLUDED.display_nickname, EXCLUDED.display_face_url, EXCLUDED.inviter_user_id,
              EXCLUDED.operator_user_id)
             IS DISTINCT FROM
             (stored.left_at, stored.role_level, stored.joined_at, stored.join_source,
              stored.mute_end_at, stored.nickname, stored.face_url, stored.ex,
              stored.display_nickname, stored.display_face_url, stored.inviter_user_id,
              stored.operator_user_id)
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at  = COALESCE(EXCLUDED.last_callback_at, stored.last_callback_at),
    last_callback_xid = COALESCE(EXCLUDED.last_callback_xid, stored.last_callback_xid)
 WHERE stored.created_at = EXCLUDED.created_at";
    /// The same for groups. A mark that is there stays; a new one counts from now on as the latest.
    WRITE_GROUPS = "
INSERT INTO groups AS stored
       (group_id, name, notification, introduction, face_url, ex,
        need_verification, look_member_info, apply_member_friend,
        owner_user_id, status, group_type, created_in_openim_at, dismissed_at, dismissals, emptying_at,
        check_wanted_since, check_marked_at, check_marked_xid, check_reason,
        last_callback_at, last_callback_xid, created_at, updated_at)
SELECT group_id, CASE WHEN written.keeps THEN kept.name ELSE written.name END,
       CASE WHEN written.keeps THEN kept.notification ELSE written.notification END,
       CASE WHEN written.keeps THEN kept.introduction ELSE written.introduction END,
       CASE WHEN written.keeps THEN kept.face_url ELSE written.face_url END,
       CASE WHEN written.keeps THEN kept.ex ELSE written.ex END,
       need_verification, look_member_info, apply_member_friend,
       owner_user_id, status, group_type, created_in_openim_at, dismissed_at, dismissals, emptying_at,
       CASE WHEN check_reason IS NOT NULL THEN now() END,
       CASE WHEN check_reason IS NOT NULL THEN now() END,
       CASE WHEN check_reason IS NOT NULL THEN pg_current_xact_id()::text::bigint END,
       check_reason,
       CASE WHEN is_named THEN now() END,
       CASE WHEN is_named THEN pg_current_xact_id()::text::bigint END,
       COALESCE(created_at, now()), now()
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
              $7::integer[], $8::integer[], $9::integer[],
              $10::text[], $11::integer[], $12::integer[], $13::timestamptz[], $14::timestamptz[],
              $15::text[], $16::boolean[], $17::timestamptz[], $18::integer[], $19::timestamptz[],
              $20::boolean[])
       AS written (group_id, name, notification, introduction, face_url, ex,
                   need_verification, look_member_info, apply_member_friend,
                   owner_user_id, status, group_type, created_in_openim_at, dismissed_at,
                   check_reason, is_named, created_at, dismissals, emptying_at, keeps)
  LEFT JOIN LATERAL
       (SELECT name, notification, introduction, face_url, ex
          FROM groups AS there
         WHERE written.keeps AND there.group_id = written.group_id
         LIMIT 1) AS kept ON true
ON CONFLICT (group_id) DO UPDATE SET
    name                 = EXCLUDED.name,
    notification         = EXCLUDED.notification,
    introduction         = EXCLUDED.introduction,
    face_url             = EXCLUDED.face_url,
    ex                   = EXCLUDED.ex,
    need_verification    = EXCLUDED.need_verification,
    look_member_info     = EXCLUDED.look_member_info,
    apply_member_friend  = EXCLUDED.apply_member_friend,
    owner_user_id        = EXCLUDED.owner_user_id,
    status               = EXCLUDED.status,
    group_type           = EXCLUDED.group_type,
    created_in_openim_at = EXCLUDED.created_in_openim_at,
    dismissed_at         = EXCLUDED.dismissed_at,
    dismissals           = EXCLUDED.dismissals,
    emptying_at          = EXCLUDED.emptying_at,
    check_wanted_since   = COALESCE(stored.check_wanted_since, EXCLUDED.check_wanted_since),
    check_marked_at      = COALESCE(EXCLUDED.check_marked_at, stored.check_marked_at),
    check_marked_xid     = COALESCE(EXCLUDED.check_marked_xid, stored.check_marked_xid),
    check_reason         = COALESCE(EXCLUDED.check_reason, stored.check_reason),
    last_callback_at     = COALESCE(EXCLUDED.last_callback_at, stored.last_callback_at),
    last_callback_xid    = COALESCE(EXCLUDED.last_callback_xid, stored.last_callback_xid),
    updated_at = CASE
        WHEN (EXCLUDED.name, EXCLUDED.notification, EXCLUDED.introduction, EXCLUDED.face_url,
              EXCLUDED.ex, EXCLUDED.need_verification, EXCLUDED.look_member_info,
              EXCLUDED.apply_member_friend, EXCLUDED.owner_user_id, EXCLUDED.status,
              EXCLUDED.group_type, EXCLUDED.created_in_openim_at, EXCLUDED.dismissed_at)
             IS DISTINCT FROM
             (stored.name, stored.notification, stored.introduction, stored.face_url,
              stored.ex, stored.need_verification, stored.look_member_info,
              stored.apply_member_friend, stored.owner_user_id, stored.status,
              stored.group_type, stored.created_in_openim_at, stored.dismissed_at)
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END
 WHERE stored.created_at = EXCLUDED.created_at";
}

/// What came of repairs.
pub(super) type Repairs<'a> = Vec<(&'a Change, Repaired)>;

/// Applies changes, all or none, and moves the lane's position with them; committed when this
/// returns.
pub(super) async fn apply_all<'a>(
    connection: &mut PgConnection,
    changes: &[&'a Change],
    position: Option<Position>,
) -> Result<Repairs<'a>, sqlx::Error> {
    loop {
        let mut transaction = connection.begin().await?;
        if let Some(repairs) = apply(&mut transaction, changes, position).await? {
            transaction.commit().await?;
            return Ok(repairs);
        }
        transaction.rollback().await?;
    }
}

/// Applies changes within a transaction, and moves a position. `None` where it is to be rolled back and begun
/// anew: another replica was the first to write a row that was not there. Now it is.
pub(super) async fn apply<'a>(
    transaction: &mut PgConnection,
    changes: &[&'a Change],
    position: Option<Position>,
) -> Result<Option<Repairs<'a>>, sqlx::Error> {
    let mut stored = Stored::lock(transaction, changes, position).await?;
    let mut repairs = Repairs::new();
    for change in changes {
        if let Some(rows) = stored.rows.get_mut(&change.group_id) {
            let repaired = domain::apply(rows, change);
            if matches!(change.event, Event::Repair(_)) {
                repairs.push((change, repaired));
            }
        }
    }
    Ok(stored.write(transaction).await?.then_some(repairs))
}

/// The rows that changes concern, and when each was made.
#[derive(Debug, Default)]
struct Stored {
    rows: BTreeMap<GroupId, GroupRows>,
    emptying: HashMap<GroupId, Emptying>,
    groups_made: HashMap<GroupId, OffsetDateTime>,
    members_made: HashMap<(GroupId, UserId), OffsetDateTime>,
    /// Whose texts were not read, for nothing changes them: they may be long.
    groups_without_texts: HashSet<GroupId>,
    members_without_texts: HashSet<(GroupId, UserId)>,
}

impl Stored {
    async fn lock(
        connection: &mut PgConnection,
        changes: &[&Change],
        position: Option<Position>,
    ) -> Result<Self, sqlx::Error> {
        let mut stored = Self::default();
        for change in changes {
            stored.rows.entry(change.group_id.clone()).or_default();
        }
        let ids: Vec<&str> = stored.rows.keys().map(GroupId::as_str).collect();
        let of_profile = changes.iter().filter(|change| change.is_of_profile());
        let of_profile: HashSet<&GroupId> = of_profile.map(|change| &change.group_id).collect();
        let wants = stored.rows.keys().map(|group| of_profile.contains(group));
        let groups: Vec<StoredGroup> = sqlx::query_as(LOCK_GROUPS)
            .bind(ids)
            .bind(position.map(|position| position.spool_id))
            .bind(position.map(|position| position.lane))
            .bind(position.map(|position| position.seq))
            .bind(wants.collect::<Vec<bool>>())
            .fetch_all(&mut *connection)
            .await?;
        for StoredGroup {
            group_id,
            group,
            last_callback_xid,
            emptying,
            created_at,
        } in groups
        {
            stored.groups_made.insert(group_id.clone(), created_at);
            if !of_profile.contains(&group_id) {
                stored.groups_without_texts.insert(group_id.clone());
            }
            stored.emptying.insert(group_id.clone(), emptying);
            let rows = stored.rows.entry(group_id).or_default();
            rows.group = Some(group);
            rows.heard = last_callback_xid;
        }
        let repairs: Vec<&str> = changes
            .iter()
            .filter(|change| matches!(change.event, Event::Repair(_)))
            .map(|change| change.group_id.as_str())
            .collect();
        if !repairs.is_empty() {
            let checks: Vec<(String, OffsetDateTime)> = sqlx::query_as(LOCK_CHECKS)
                .bind(repairs)
                .fetch_all(&mut *connection)
                .await?;
            for (group_id, compared_at) in checks {
                let group_id = GroupId::parse(group_id).ok();
                let rows = group_id.and_then(|id| stored.rows.get_mut(&id));
                if let Some(rows) = rows {
                    rows.compared_at = Some(compared_at);
                }
            }
        }
        // Whether the texts of each are to be read.
        let mut wanted: BTreeMap<(&str, &str), bool> = BTreeMap::new();
        for change in changes {
            let key = |user| (change.group_id.as_str(), UserId::as_str(user));
            for user in change.user_ids() {
                wanted.entry(key(user)).or_default();
            }
            wanted.extend(change.users_with_texts().map(|user| (key(user), true)));
        }
        if wanted.is_empty() {
            return Ok(stored);
        }
        let keys = wanted
            .iter()
            .map(|((group, user), wants)| (*group, (*user, *wants)));
        let (groups, of_groups): (Vec<&str>, Vec<(&str, bool)>) = keys.unzip();
        let (users, wants): (Vec<&str>, Vec<bool>) = of_groups.into_iter().unzip();
        let members: Vec<StoredMember> = sqlx::query_as(LOCK_MEMBERS)
            .bind(groups)
            .bind(users)
            .bind(wants)
            .fetch_all(connection)
            .await?;
        for StoredMember {
            group_id,
            user_id,
            member,
            last_callback_xid,
            created_at,
        } in members
        {
            let rows = stored.rows.entry(group_id.clone()).or_default();
            rows.members.insert(user_id.clone(), member);
            if let Some(xid) = last_callback_xid {
                rows.members_heard.insert(user_id.clone(), xid);
            }
            let key = (group_id.as_str(), user_id.as_str());
            let has_texts = wanted.get(&key).copied();
            let key = (group_id, user_id);
            if has_texts == Some(false) {
                stored.members_without_texts.insert(key.clone());
            }
            stored.members_made.insert(key, created_at);
        }
        Ok(stored)
    }

    /// As it is to be: a dismissal is one write, of the group, and the rows of its members follow.
    fn emptying(&self, group: &GroupId, rows: &GroupRows) -> Emptying {
        let stored = self.emptying.get(group).copied().unwrap_or_default();
        match rows.emptied_at {
            None => stored,
            at => Emptying {
                dismissals: stored.dismissals.wrapping_add(1),
                at,
            },
        }
    }

    /// Whether all of it could be written.
    async fn write(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        Ok(self.write_members(connection).await? && self.write_groups(connection).await?)
    }

    async fn write_members(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let touched: Vec<(&GroupId, &UserId, &Member, bool)> = self
            .rows
            .iter()
            .flat_map(|(group, rows)| {
                let member = move |user| {
                    let is_named = rows.named.contains(user);
                    Some((group, user, rows.members.get(user)?, is_named))
                };
                rows.named.union(&rows.repaired).filter_map(member)
            })
            .collect();
        if touched.is_empty() {
            return Ok(true);
        }
        macro_rules! column {
            (|$group:pat_param, $user:pat_param, $member:pat_param, $is_named:pat_param| $of:expr) => {
                touched
                    .iter()
                    .map(|($group, $user, $member, $is_named)| $of)
                    .collect::<Vec<_>>()
            };
        }
        let came = |group: &GroupId, member: &Member| {
            let emptying = self.emptying(group, self.rows.get(group)?);
            let has_come = emptying.at.is_some() && !member.is_gone();
            has_come.then_some(emptying.dismissals)
        };
        let made = |group: &GroupId, user: &UserId| {
            let key = (group.clone(), user.clone());
            self.members_made.get(&key).copied()
        };
        let keeps = |group: &GroupId, user: &UserId| {
            let key = (group.clone(), user.clone());
            self.members_without_texts.contains(&key)
        };
        let done = sqlx::query(WRITE_MEMBERS)
            .bind(column!(|group, _, _, _| group.as_str()))
            .bind(column!(|_, user, _, _| user.as_str()))
            .bind(column!(|_, _, member, _| text(&member.nickname)))
            .bind(column!(|_, _, member, _| text(&member.face_url)))
            .bind(column!(|_, _, member, _| member.role_level))
            .bind(column!(|_, _, member, _| text(&member.ex)))
            .bind(column!(|_, _, member, _| text(&member.display_nickname)))
            .bind(column!(|_, _, member, _| text(&member.display_face_url)))
            .bind(column!(|_, _, member, _| member.joined_at))
            .bind(column!(|_, _, member, _| member.join_source))
            .bind(column!(|_, _, member, _| text(&member.inviter)))
            .bind(column!(|_, _, member, _| text(&member.operator)))
            .bind(column!(|_, _, member, _| member.mute_end_at))
            .bind(column!(|_, _, member, _| member.left_at))
            .bind(column!(|_, _, _, is_named| *is_named))
            .bind(column!(|group, user, _, _| made(group, user)))
            .bind(column!(|group, _, member, _| came(group, member)))
            .bind(column!(|group, user, _, _| keeps(group, user)))
            .execute(connection)
            .await?;
        Ok(done.rows_affected() == touched.len() as u64)
    }

    async fn write_groups(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let touched: Vec<(&GroupId, &GroupRows, &Group)> = self
            .rows
            .iter()
            .filter(|(_, rows)| {
                rows.is_new || rows.is_named || rows.is_repaired || rows.check.is_some()
            })
            .filter_map(|(id, rows)| Some((id, rows, rows.group.as_ref()?)))
            .collect();
        if touched.is_empty() {
            return Ok(true);
        }
        macro_rules! column {
            (|$id:pat_param, $rows:pat_param, $group:pat_param| $of:expr) => {
                touched
                    .iter()
                    .map(|($id, $rows, $group)| $of)
                    .collect::<Vec<_>>()
            };
        }
        let done = sqlx::query(WRITE_GROUPS)
            .bind(column!(|id, _, _| id.as_str()))
            .bind(column!(|_, _, group| text(&group.profile.name)))
            .bind(column!(|_, _, group| text(&group.profile.notification)))
            .bind(column!(|_, _, group| text(&group.profile.introduction)))
            .bind(column!(|_, _, group| text(&group.profile.face_url)))
            .bind(column!(|_, _, group| text(&group.profile.ex)))
            .bind(column!(|_, _, group| group.profile.need_verification))
            .bind(column!(|_, _, group| group.profile.look_member_info))
            .bind(column!(|_, _, group| group.profile.apply_member_friend))
            .bind(column!(|_, _, group| group
                .owner
                .as_ref()
                .map(UserId::as_str)))
            .bind(column!(|_, _, group| group.status))
            .bind(column!(|_, _, group| group.group_type))
            .bind(column!(|_, _, group| group.created_in_openim_at))
            .bind(column!(|_, _, group| group.dismissed_at))
            .bind(column!(|_, rows, _| rows.check.map(|reason| reason.code())))
            .bind(column!(|_, rows, _| rows.is_named))
            .bind(column!(|id, _, _| self.groups_made.get(*id).copied()))
            .bind(column!(|id, rows, _| self.emptying(id, rows).dismissals))
            .bind(column!(|id, rows, _| self.emptying(id, rows).at))
            .bind(column!(|id, _, _| self.groups_without_texts.contains(*id)))
            .execute(connection)
            .await?;
        Ok(done.rows_affected() == touched.len() as u64)
    }
}

fn text(text: &Option<Text>) -> Option<&str> {
    text.as_ref().map(Text::as_str)
}
