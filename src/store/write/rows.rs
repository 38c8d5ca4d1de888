//! Writes changes that depend on stored rows.
//!
//! Rows are locked before they are read: groups first, in the order of their ids, then members. The lock of a group's
//! row covers the whole group, because every replica takes it first. A group has a row from its first change on.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;

use super::super::columns::{Columns, bind_groups, bind_members, read_group, read_member};
use super::Position;
use crate::domain::{self, Change, Event, Group, GroupId, GroupRows, Member, Repaired, UserId};

statements! {
    /// Locks groups in the order of the parameters, which is that of their ids. Reads the texts of some. The planner
    /// makes no hash of a subquery that locks; a hash would read the whole table. Also moves the lane's position if
    /// there is one, to save a statement.
    LOCK_GROUPS = concat!("
WITH moved AS (
    INSERT INTO lane_positions (spool_id, lane, seq)
    SELECT $2::bigint, $3::smallint, $4::bigint WHERE $2::bigint IS NOT NULL
    ON CONFLICT (spool_id, lane) DO UPDATE SET seq = EXCLUDED.seq)
SELECT group_id", group_columns!((texts_if "asked.wants")), ", dismissed_at,
       dismissals, emptying_at, last_callback_xid, created_at
  FROM unnest($1::text[], $5::boolean[]) AS asked (sought, wants)
 CROSS JOIN LATERAL (SELECT * FROM groups WHERE group_id = asked.sought FOR UPDATE) AS stored");
    /// Locks the comparisons of groups: a new comparison waits until these rows are written.
    LOCK_CHECKS = "
SELECT group_id, compared_at
  FROM group_checks
 WHERE group_id = ANY($1)
 ORDER BY group_id
   FOR UPDATE";
    /// Locks members in the order of their keys. A statement of its own, so that it sees what the owner of the group
    /// lock before has written. A member who was there at a dismissal has left, though the row may not say so yet.
    /// Reads the texts of some.
    LOCK_MEMBERS = concat!("
SELECT stored.group_id, stored.user_id", member_columns!((texts_if "asked.wants")), ",
       COALESCE(stored.left_at,
                (SELECT g.emptying_at FROM groups AS g
                  WHERE g.group_id = stored.group_id AND g.emptying_at IS NOT NULL
                    AND stored.came_at_dismissal IS DISTINCT FROM g.dismissals)) AS left_at,
       stored.last_callback_xid, stored.created_at
  FROM unnest($1::text[], $2::text[], $3::boolean[]) AS asked (in_group, sought, wants)
 CROSS JOIN LATERAL
       (SELECT * FROM group_members WHERE group_id = asked.in_group AND user_id = asked.sought FOR UPDATE) AS stored");
    /// Writes whole rows, each key once. A new row has no `created_at`. If another replica has made the row meanwhile,
    /// it stays, and is missing from the count of rows. Some rows keep their stored texts, which were not read:
    /// Postgres passes them on without a copy of a long text.
    ///
    /// `updated_at` moves only when a value changes, and by a microsecond at least: the ETag of a reader is made from
    /// it.
    WRITE_MEMBERS = concat!("
INSERT INTO group_members AS stored
       (group_id, user_id", member_columns!(plain), ", left_at, came_at_dismissal, created_at,
        updated_at, last_callback_at, last_callback_xid)
SELECT written.group_id, written.user_id", member_columns!(written), ", written.left_at,
       written.came_at_dismissal, COALESCE(written.created_at, now()), now(),
       CASE WHEN is_named THEN now() END,
       CASE WHEN is_named THEN pg_current_xact_id()::text::bigint END
  FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::boolean[], $5::timestamptz[],
              $6::integer[], $7::boolean[]", member_columns!(array), ")
       AS written (group_id, user_id, left_at, is_named, created_at, came_at_dismissal, keeps",
                   member_columns!(plain), ")
  LEFT JOIN LATERAL
       (SELECT *
          FROM group_members AS there
         WHERE written.keeps AND there.group_id = written.group_id AND there.user_id = written.user_id
         LIMIT 1) AS kept ON true
ON CONFLICT (group_id, user_id) DO UPDATE SET
    left_at = EXCLUDED.left_at, came_at_dismissal = EXCLUDED.came_at_dismissal",
    member_columns!(set), ",
    updated_at = CASE
        WHEN (EXCLUDED.left_at", member_columns!((of "EXCLUDED")), ")
             IS DISTINCT FROM
             (stored.left_at", member_columns!((of "stored")), ")
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at  = COALESCE(EXCLUDED.last_callback_at, stored.last_callback_at),
    last_callback_xid = COALESCE(EXCLUDED.last_callback_xid, stored.last_callback_xid)
 WHERE stored.created_at = EXCLUDED.created_at");
    /// Writes whole rows of groups, like `WRITE_MEMBERS`. An earlier mark stays; a new one sets reason and time of the
    /// latest mark.
    WRITE_GROUPS = concat!("
INSERT INTO groups AS stored
       (group_id", group_columns!(plain), ", dismissed_at, dismissals, emptying_at,
        check_wanted_since, check_marked_at, check_marked_xid, check_reason,
        last_callback_at, last_callback_xid, created_at, updated_at)
SELECT written.group_id", group_columns!(written), ", written.dismissed_at, written.dismissals,
       written.emptying_at,
       CASE WHEN written.check_reason IS NOT NULL THEN now() END,
       CASE WHEN written.check_reason IS NOT NULL THEN now() END,
       CASE WHEN written.check_reason IS NOT NULL THEN pg_current_xact_id()::text::bigint END,
       written.check_reason,
       CASE WHEN is_named THEN now() END,
       CASE WHEN is_named THEN pg_current_xact_id()::text::bigint END,
       COALESCE(written.created_at, now()), now()
  FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::boolean[], $5::timestamptz[],
              $6::integer[], $7::timestamptz[], $8::boolean[]", group_columns!(array), ")
       AS written (group_id, dismissed_at, check_reason, is_named, created_at, dismissals,
                   emptying_at, keeps", group_columns!(plain), ")
  LEFT JOIN LATERAL
       (SELECT *
          FROM groups AS there
         WHERE written.keeps AND there.group_id = written.group_id
         LIMIT 1) AS kept ON true
ON CONFLICT (group_id) DO UPDATE SET
    dismissed_at         = EXCLUDED.dismissed_at,
    dismissals           = EXCLUDED.dismissals,
    emptying_at          = EXCLUDED.emptying_at,
    check_wanted_since   = COALESCE(stored.check_wanted_since, EXCLUDED.check_wanted_since),
    check_marked_at      = COALESCE(EXCLUDED.check_marked_at, stored.check_marked_at),
    check_marked_xid     = COALESCE(EXCLUDED.check_marked_xid, stored.check_marked_xid),
    check_reason         = COALESCE(EXCLUDED.check_reason, stored.check_reason),
    last_callback_at     = COALESCE(EXCLUDED.last_callback_at, stored.last_callback_at),
    last_callback_xid    = COALESCE(EXCLUDED.last_callback_xid, stored.last_callback_xid)",
    group_columns!(set), ",
    updated_at = CASE
        WHEN (EXCLUDED.dismissed_at", group_columns!((of "EXCLUDED")), ")
             IS DISTINCT FROM
             (stored.dismissed_at", group_columns!((of "stored")), ")
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END
 WHERE stored.created_at = EXCLUDED.created_at");
}

/// Results of repairs.
pub(super) type Repairs<'a> = Vec<(&'a Change, Repaired)>;

/// Applies changes, all or none, and moves the lane's position. They are committed when this returns.
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

/// Applies changes in a transaction and moves a position. `None`: the caller must roll back and try again, because
/// another replica has made one of the new rows.
pub(super) async fn apply<'a>(
    transaction: &mut PgConnection,
    changes: &[&'a Change],
    position: Option<Position>,
) -> Result<Option<Repairs<'a>>, sqlx::Error> {
    let mut stored = LockedRows::lock(transaction, changes, position).await?;
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

/// State of a dismissal: the members' rows are written after it.
#[derive(Clone, Copy, Debug, Default)]
struct Emptying {
    /// Number of dismissals of the group.
    dismissals: i32,
    /// Time of the leave of members whose rows do not say so yet.
    at: Option<OffsetDateTime>,
}

/// The locked rows of changes, and the times when the rows were made.
#[derive(Debug, Default)]
struct LockedRows {
    rows: BTreeMap<GroupId, GroupRows>,
    emptying: HashMap<GroupId, Emptying>,
    groups_made: HashMap<GroupId, OffsetDateTime>,
    members_made: HashMap<(GroupId, UserId), OffsetDateTime>,
    /// Rows whose texts were not read, because no change needs them: they may be long.
    groups_without_texts: HashSet<GroupId>,
    members_without_texts: HashSet<(GroupId, UserId)>,
}

impl LockedRows {
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
        let with_texts = changes.iter().filter(|change| change.needs_group_texts());
        let with_texts: HashSet<&GroupId> = with_texts.map(|change| &change.group_id).collect();
        let wants = stored.rows.keys().map(|group| with_texts.contains(group));
        let groups = sqlx::query(LOCK_GROUPS)
            .bind(ids)
            .bind(position.map(|position| position.spool_id))
            .bind(position.map(|position| position.lane))
            .bind(position.map(|position| position.seq))
            .bind(wants.collect::<Vec<bool>>())
            .try_map(|row: PgRow| {
                let mut columns = Columns::of(&row);
                let (group_id, group) = read_group(&mut columns)?;
                let emptying = Emptying {
                    dismissals: columns.take()?,
                    at: columns.take()?,
                };
                let (xid, created_at) = (columns.take()?, columns.take()?);
                Ok((group_id, group, emptying, xid, created_at))
            })
            .fetch_all(&mut *connection)
            .await?;
        for (group_id, group, emptying, xid, created_at) in groups {
            stored.groups_made.insert(group_id.clone(), created_at);
            if !with_texts.contains(&group_id) {
                stored.groups_without_texts.insert(group_id.clone());
            }
            stored.emptying.insert(group_id.clone(), emptying);
            let rows = stored.rows.entry(group_id).or_default();
            rows.group = Some(group);
            rows.repair.group_xid = xid;
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
                    rows.repair.compared_at = Some(compared_at);
                }
            }
        }
        // True for members whose texts are needed.
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
        let members = sqlx::query(LOCK_MEMBERS)
            .bind(groups)
            .bind(users)
            .bind(wants)
            .try_map(|row: PgRow| {
                let mut columns = Columns::of(&row);
                let (group_id, user_id, member) = read_member(&mut columns)?;
                let (xid, created_at) = (columns.take()?, columns.take()?);
                Ok((group_id, user_id, member, xid, created_at))
            })
            .fetch_all(connection)
            .await?;
        for (group_id, user_id, member, xid, created_at) in members {
            let rows = stored.rows.entry(group_id.clone()).or_default();
            rows.members.insert(user_id.clone(), member);
            if let Some(xid) = xid {
                rows.repair.member_xids.insert(user_id.clone(), xid);
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

    /// Returns the new state of a group's dismissal. A dismissal writes only the group's row; the members' rows are
    /// written later.
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

    /// Writes all rows that changed. False: another replica has made one of the new rows.
    async fn write(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        Ok(self.write_members(connection).await? && self.write_groups(connection).await?)
    }

    async fn write_members(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let mut keys: Vec<(&GroupId, &UserId)> = Vec::new();
        let mut members: Vec<&Member> = Vec::new();
        let mut is_named: Vec<bool> = Vec::new();
        for (group, rows) in &self.rows {
            for user in rows.named.union(&rows.repair.repaired_members) {
                if let Some(member) = rows.members.get(user) {
                    keys.push((group, user));
                    members.push(member);
                    is_named.push(rows.named.contains(user));
                }
            }
        }
        if members.is_empty() {
            return Ok(true);
        }
        let groups: Vec<&str> = keys.iter().map(|(group, _)| group.as_str()).collect();
        let users: Vec<&str> = keys.iter().map(|(_, user)| user.as_str()).collect();
        let left: Vec<_> = members.iter().map(|member| member.left_at).collect();
        let owned = |(group, user): &(&GroupId, &UserId)| ((*group).clone(), (*user).clone());
        let made = keys
            .iter()
            .map(|key| self.members_made.get(&owned(key)).copied());
        let keeps = keys
            .iter()
            .map(|key| self.members_without_texts.contains(&owned(key)));
        // Joins after a dismissal need its number until all older rows say that they have left.
        let came = keys.iter().zip(&members).map(|((group, _), member)| {
            let emptying = self.emptying(group, self.rows.get(*group)?);
            let has_come = emptying.at.is_some() && !member.is_gone();
            has_come.then_some(emptying.dismissals)
        });
        let query = sqlx::query(WRITE_MEMBERS)
            .bind(groups)
            .bind(users)
            .bind(left)
            .bind(is_named)
            .bind(made.collect::<Vec<_>>())
            .bind(came.collect::<Vec<_>>())
            .bind(keeps.collect::<Vec<_>>());
        let done = bind_members(query, &members).execute(connection).await?;
        Ok(done.rows_affected() == members.len() as u64)
    }

    async fn write_groups(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let is_written = |rows: &GroupRows| {
            let is_repaired = rows.repair.is_group_repaired;
            rows.is_new || rows.is_named || is_repaired || rows.mark.is_some()
        };
        let written = self.rows.iter().filter(|(_, rows)| is_written(rows));
        let written: Vec<(&GroupId, &GroupRows, &Group)> = written
            .filter_map(|(id, rows)| Some((id, rows, rows.group.as_ref()?)))
            .collect();
        if written.is_empty() {
            return Ok(true);
        }
        let rows = || written.iter().map(|(id, rows, _)| (*id, *rows));
        let ids: Vec<&str> = rows().map(|(id, _)| id.as_str()).collect();
        let groups: Vec<&Group> = written.iter().map(|(.., group)| *group).collect();
        let dismissed: Vec<_> = groups.iter().map(|group| group.dismissed_at).collect();
        let marks = rows().map(|(_, rows)| rows.mark.map(|reason| reason.code()));
        let is_named = rows().map(|(_, rows)| rows.is_named);
        let made = rows().map(|(id, _)| self.groups_made.get(id).copied());
        let emptying: Vec<Emptying> = rows().map(|(id, rows)| self.emptying(id, rows)).collect();
        let dismissals: Vec<i32> = emptying
            .iter()
            .map(|emptying| emptying.dismissals)
            .collect();
        let emptying: Vec<_> = emptying.iter().map(|emptying| emptying.at).collect();
        let keeps = rows().map(|(id, _)| self.groups_without_texts.contains(id));
        let query = sqlx::query(WRITE_GROUPS)
            .bind(ids)
            .bind(dismissed)
            .bind(marks.collect::<Vec<_>>())
            .bind(is_named.collect::<Vec<_>>())
            .bind(made.collect::<Vec<_>>())
            .bind(dismissals)
            .bind(emptying)
            .bind(keeps.collect::<Vec<_>>());
        let done = bind_groups(query, &groups).execute(connection).await?;
        Ok(done.rows_affected() == written.len() as u64)
    }
}
