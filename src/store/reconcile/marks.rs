//! Reconciles of single groups: the start and the result of each, the users that callbacks have named since, and marks.

use std::time::Duration;

use sqlx::{Connection, FromRow, PgConnection};
use time::OffsetDateTime;

use crate::domain::{Fence, GroupId, MarkReason, UserId, Version};
use crate::store::write::{GROUP_ITSELF, TouchedUsers};
use crate::store::{Error, Store};

statements! {
    /// Keeps what is known of the group until the end. The time identifies a reconcile of the group: it is later than
    /// the one before, whatever the clock says.
    BEGIN_GROUP = "
INSERT INTO group_checks AS stored (group_id, compared_at, read_at)
VALUES ($1, clock_timestamp(), clock_timestamp())
ON CONFLICT (group_id) DO UPDATE SET
    compared_at = greatest(EXCLUDED.compared_at, stored.compared_at + interval '1 microsecond')
RETURNING compared_at, version, version_id, fence, read_at, touched, touches";
    /// As BEGIN_GROUP, after OpenIM was asked for the changes since a version. Changes no row if another reconcile of
    /// the group has begun since the version was read.
    BEGIN_UPDATE = "
UPDATE group_checks AS stored SET
    compared_at = greatest(clock_timestamp(), stored.compared_at + interval '1 microsecond')
 WHERE group_id = $1 AND compared_at = $2 AND version = $3 AND version_id = $4
RETURNING compared_at, version, version_id, fence, read_at, touched, touches";
    FENCE = "SELECT pg_current_snapshot()::text";
    /// Locks the group before its row in group_checks, in the order of the lanes.
    LOCK_MARK = "SELECT FROM groups WHERE group_id = $1 AND check_wanted_since IS NOT NULL FOR UPDATE";
    /// Runs before a statement that has to see the writes of others. In the order of ids, as all statements that lock
    /// several rows.
    LOCK_CHECKS = "SELECT FROM group_checks WHERE group_id = ANY($1) ORDER BY group_id FOR UPDATE";
    /// Records the version, unless another reconcile of the group has begun since. The version of changes is recorded
    /// only by a later reconcile, which asks for the same changes again. Users that callbacks have named since stay.
    /// Removes the mark, unless it was set again since, or so shortly before that the announced change may have come
    /// after. (A mark in the future is from a clock that was set back.)
    FINISH_GROUP = "
WITH marked AS MATERIALIZED (
    SELECT check_wanted_since, check_marked_at, check_marked_xid
      FROM groups
     WHERE group_id = $1 AND check_wanted_since IS NOT NULL),
last AS MATERIALIZED (
    SELECT group_id FROM group_checks WHERE group_id = $1 AND compared_at = $2),
recorded AS (
    UPDATE group_checks AS c SET
        version = CASE
            WHEN $8 OR $10 = 0 OR version IS NULL OR version_id IS DISTINCT FROM $4 THEN $3
            WHEN later_at <= clock_timestamp() - $10 * interval '1 millisecond' THEN later_version
            ELSE version
        END,
        later_version = CASE
            WHEN $8 OR $10 = 0 OR version IS NULL OR version_id IS DISTINCT FROM $4 THEN NULL
            WHEN later_at > clock_timestamp() - $10 * interval '1 millisecond' THEN later_version
            ELSE NULLIF($3, COALESCE(later_version, version))
        END,
        later_at = CASE
            WHEN $8 OR $10 = 0 OR version IS NULL OR version_id IS DISTINCT FROM $4 THEN NULL
            WHEN later_at > clock_timestamp() - $10 * interval '1 millisecond' THEN later_at
            WHEN $3 <> COALESCE(later_version, version) THEN clock_timestamp()
        END,
        version_id = $4, fence = $6,
        read_at = CASE WHEN $8 THEN $2 ELSE read_at END,
        touched = CASE WHEN touches = $7 THEN '{}' ELSE touched END,
        is_touched = false
      FROM last
     WHERE c.group_id = last.group_id),
cleared AS (
    UPDATE groups AS g SET
        check_wanted_since = NULL, check_marked_at = NULL, check_marked_xid = NULL, check_reason = NULL
      FROM marked, last
     WHERE g.group_id = $1 AND $9
       AND (marked.check_marked_at < $2 - $5 * interval '1 millisecond'
         OR marked.check_marked_at > clock_timestamp())
       AND (marked.check_marked_xid IS NULL
         OR pg_visible_in_snapshot(marked.check_marked_xid::text::xid8, $6::pg_snapshot))
    RETURNING g.group_id)
SELECT (SELECT check_wanted_since FROM marked) AS marked_since,
       clock_timestamp() AS finished_at,
       EXISTS (SELECT FROM cleared) AS is_cleared";
    /// Only if nothing else has marked the group, before or since, and the mark has not made its row: for a group that
    /// only the mark made, nothing else is known.
    UNDO_MARK = "
UPDATE groups SET
    check_wanted_since = NULL, check_marked_at = NULL, check_marked_xid = NULL, check_reason = NULL
 WHERE group_id = $1 AND check_reason = $2 AND check_marked_at = check_wanted_since
   AND created_at < check_wanted_since";
    /// Uses the index groups_check_wanted.
    MARKED = "
SELECT group_id
  FROM groups
 WHERE group_id > $1 AND check_wanted_since IS NOT NULL
   AND (check_wanted_since <= now() - $3 * interval '1 millisecond' OR check_wanted_since > now())
 ORDER BY group_id
 LIMIT $2";
    /// Uses the index groups_check_wanted.
    MARKS_BY_REASON = "
SELECT check_reason AS reason, count(*) AS groups, min(check_wanted_since) AS since
  FROM groups
 WHERE check_wanted_since IS NOT NULL
 GROUP BY check_reason
 ORDER BY check_reason";
    /// Adds the users that callbacks have named. NULL: too many to keep.
    TOUCH = "
UPDATE group_checks AS c SET
    touches = c.touches + 1,
    touched = CASE
        WHEN added.has_all AND cardinality(c.touched) + added.count <= $3
        THEN c.touched || added.users
    END
  FROM (SELECT group_id, array_agg(user_id) AS users, count(*) AS count,
               bool_and(user_id IS NOT NULL) AS has_all
          FROM unnest($1::text[], $2::text[]) AS named (group_id, user_id)
         GROUP BY group_id) AS added
 WHERE c.group_id = added.group_id";
    FORGET = "UPDATE group_checks SET version = NULL, version_id = NULL WHERE group_id = ANY($1)";
    /// Finds the users that callbacks have named since the version, by their rows. Reads the whole group.
    NAMED_SINCE = "
SELECT user_id
  FROM group_members
 WHERE group_id = $1
   AND last_callback_xid >= pg_snapshot_xmin($2::pg_snapshot)::text::bigint
   AND NOT pg_visible_in_snapshot(last_callback_xid::text::xid8, $2::pg_snapshot)
 LIMIT $3";
    /// As NAMED_SINCE, for several groups. LATERAL, because for a join the planner might read all members.
    NAMED_SINCE_ALL = "
WITH known AS MATERIALIZED (
    SELECT group_id, fence::pg_snapshot AS fence,
           pg_snapshot_xmin(fence::pg_snapshot)::text::bigint AS first
      FROM group_checks
     WHERE group_id = ANY($1) AND version IS NOT NULL AND fence IS NOT NULL)
SELECT c.group_id, m.user_id
  FROM known AS c
 CROSS JOIN LATERAL
       (SELECT user_id
          FROM group_members AS m
         WHERE m.group_id = c.group_id AND m.last_callback_xid >= c.first
           AND NOT pg_visible_in_snapshot(m.last_callback_xid::text::xid8, c.fence)
         LIMIT $2) AS m
 UNION ALL
SELECT c.group_id, ''
  FROM known AS c
 WHERE (SELECT true
          FROM groups AS g
         WHERE g.group_id = c.group_id AND g.last_callback_xid >= c.first
           AND NOT pg_visible_in_snapshot(g.last_callback_xid::text::xid8, c.fence))";
}

/// Touched groups in one statement.
const GROUPS_PER_WRITE: usize = 1000;
/// Most touched users of a group that are kept by their ids.
const MAX_TOUCHED: usize = 1000;
/// Most users of a group that are found by their rows. With more, reading the whole group is no more work.
const MAX_NAMED: usize = 5000;

/// A reconcile of a group that has begun.
#[derive(Clone, Debug)]
pub struct ReconcileStart {
    /// Start by the database's clock. Identifies the reconcile among those of the group.
    pub at: OffsetDateTime,
    /// Covers what was written before OpenIM was asked.
    pub fence: Fence,
    /// The version that the mirror is equal to. `None`: the whole group has to be read.
    pub known: Option<KnownVersion>,
    touches: i64,
}

/// The version of OpenIM that a group in the mirror is equal to, except for touched users.
#[derive(Clone, Debug)]
pub struct KnownVersion {
    /// The version.
    pub version: Version,
    /// Time when the whole group was read last.
    pub read_at: OffsetDateTime,
    /// Users that callbacks have named since. `None`: too many to keep.
    pub touched: Option<Named>,
    fence: Fence,
}

impl KnownVersion {
    /// True if callbacks have named users or the group since.
    pub fn is_touched(&self) -> bool {
        self.touched != Some(Named::default())
    }
}

/// Part of a group that was read from OpenIM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// The whole group.
    Whole,
    /// The changes since a version.
    Changes,
    /// As much of the group as OpenIM sends.
    Incomplete,
}

/// Users and group that callbacks have named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Members, or users that were members.
    pub users: Vec<UserId>,
    /// True if a callback has named the group itself.
    pub has_group: bool,
}

impl Named {
    fn of(ids: Vec<String>) -> Self {
        let has_group = ids.iter().any(|id| id == GROUP_ITSELF);
        let mut users: Vec<UserId> = ids
            .into_iter()
            .filter_map(|id| UserId::parse(id).ok())
            .collect();
        users.sort_unstable();
        users.dedup();
        Self { users, has_group }
    }
}

#[derive(FromRow)]
struct ReconcileStartRow {
    compared_at: OffsetDateTime,
    version: Option<i64>,
    version_id: Option<String>,
    fence: Option<String>,
    read_at: OffsetDateTime,
    touched: Option<Vec<String>>,
    touches: i64,
}

impl ReconcileStartRow {
    fn begun(self, fence_of_answers: Fence) -> Result<ReconcileStart, sqlx::Error> {
        let fence: Option<Fence> = self
            .fence
            .map(|fence| fence.parse())
            .transpose()
            .map_err(unreadable)?;
        let known = match (self.version, self.version_id, fence) {
            (Some(number), Some(id), Some(fence)) => Some(KnownVersion {
                version: Version {
                    id,
                    number: number.cast_unsigned(),
                },
                read_at: self.read_at,
                touched: self.touched.map(Named::of),
                fence,
            }),
            _ => None,
        };
        Ok(ReconcileStart {
            at: self.compared_at,
            fence: fence_of_answers,
            known,
            touches: self.touches,
        })
    }
}

/// Reads the fence of everything that is written by now.
pub(super) async fn fence(connection: &mut PgConnection) -> Result<Fence, sqlx::Error> {
    let text: String = sqlx::query_scalar(FENCE).fetch_one(connection).await?;
    text.parse().map_err(unreadable)
}

/// Error of a fence that is not in Postgres' own form.
fn unreadable(error: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// Result of a reconcile of a group.
#[derive(Clone, Copy, Debug, FromRow)]
pub struct Finished {
    /// Time of the group's mark.
    pub marked_since: Option<OffsetDateTime>,
    /// End by the database's clock.
    pub finished_at: OffsetDateTime,
    /// True if the mark was removed.
    pub is_cleared: bool,
}

/// Marked groups with the same last reason.
#[derive(Clone, Debug, FromRow)]
pub struct MarksByReason {
    /// Code of the reason.
    pub reason: Option<String>,
    /// Number of groups.
    pub groups: i64,
    /// Time of the oldest mark.
    pub since: OffsetDateTime,
}

/// A time as a parameter of a statement.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Begins the reconcile of a group. OpenIM has to be asked after this.
    pub async fn begin_group(&self, group: &GroupId) -> Result<ReconcileStart, Error> {
        // Touched users that are not stored yet are known to this process alone.
        self.note_touched_of(&[group]).await?;
        self.write(async |connection| {
            let row: ReconcileStartRow = sqlx::query_as(BEGIN_GROUP)
                .bind(group.as_str())
                .fetch_one(&mut *connection)
                .await?;
            // Read after the touched users: they are before the fence, so a reconcile may clear them.
            row.begun(fence(connection).await?)
        })
        .await
    }

    /// Begins the reconcile of a group with changes since `version` that OpenIM sent after `fence`. `None` if another
    /// reconcile has begun after the one at `compared_at`.
    pub async fn begin_update(
        &self,
        group: &GroupId,
        compared_at: OffsetDateTime,
        version: &Version,
        fence: &Fence,
    ) -> Result<Option<ReconcileStart>, Error> {
        self.note_touched_of(&[group]).await?;
        self.write(async |connection| {
            let row: Option<ReconcileStartRow> = sqlx::query_as(BEGIN_UPDATE)
                .bind(group.as_str())
                .bind(compared_at)
                .bind(version.number.cast_signed())
                .bind(&version.id)
                .fetch_optional(connection)
                .await?;
            row.map(|row| row.begun(fence.clone())).transpose()
        })
        .await
    }

    /// Users and group that callbacks have named since the version. `None`: so many that the whole group has to be
    /// read. Unless `is_recorded`, an earlier process may have written callbacks without recording their users, and the
    /// rows are read.
    pub async fn named_since(
        &self,
        group: &GroupId,
        known: &KnownVersion,
        is_recorded: bool,
    ) -> Result<Option<Named>, Error> {
        if let Some(named) = &known.touched
            && is_recorded
        {
            return Ok(Some(named.clone()));
        }
        let limit = i64::try_from(MAX_NAMED + 1).unwrap_or(i64::MAX);
        let found = self
            .housekeep(async |connection| {
                sqlx::query_scalar(NAMED_SINCE)
                    .bind(group.as_str())
                    .bind(known.fence.as_str())
                    .bind(limit)
                    .fetch_all(connection)
                    .await
            })
            .await;
        let mut found: Vec<String> = match found {
            // So large that reading it from OpenIM is no more work.
            Err(error) if error.is_timeout() => return Ok(None),
            found => found?,
        };
        if let Some(named) = &known.touched {
            found.extend(named.users.iter().map(|user| user.as_str().to_owned()));
        }
        let named = Named {
            has_group: true,
            ..Named::of(found)
        };
        Ok((named.users.len() <= MAX_NAMED).then_some(named))
    }

    /// Ends the reconcile of a group. The mirror is equal to OpenIM at `version`; without one the next reconcile reads
    /// the whole group. A version that is younger than `settling` may have more to show. A mark that came less than
    /// `delay` before stays, and so does the mark of an incomplete group.
    pub async fn finish_group(
        &self,
        group: &GroupId,
        begun: &ReconcileStart,
        version: Option<&Version>,
        coverage: Coverage,
        (delay, settling): (Duration, Duration),
    ) -> Result<Finished, Error> {
        self.write(async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK_MARK)
                .bind(group.as_str())
                .execute(&mut *transaction)
                .await?;
            sqlx::query(LOCK_CHECKS)
                .bind([group.as_str()])
                .execute(&mut *transaction)
                .await?;
            let finished = sqlx::query_as(FINISH_GROUP)
                .bind(group.as_str())
                .bind(begun.at)
                .bind(version.map(|version| version.number.cast_signed()))
                .bind(version.map(|version| &version.id))
                .bind(millis(delay))
                .bind(begun.fence.as_str())
                .bind(begun.touches)
                .bind(coverage != Coverage::Changes)
                .bind(coverage != Coverage::Incomplete)
                .bind(millis(settling))
                .fetch_one(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(finished)
        })
        .await
    }

    /// Removes the mark of a notification that said nothing new.
    pub async fn undo_mark(&self, group: &GroupId) -> Result<(), Error> {
        self.write(async |connection| {
            sqlx::query(UNDO_MARK)
                .bind(group.as_str())
                .bind(MarkReason::Notified.code())
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
    }

    /// Up to `limit` groups after the group id `after` that were marked at least `delay` ago, in bytewise order.
    pub async fn marked_groups(
        &self,
        after: &str,
        limit: i64,
        delay: Duration,
    ) -> Result<Vec<GroupId>, Error> {
        let ids: Vec<String> = self
            .read(async |connection| {
                sqlx::query_scalar(MARKED)
                    .bind(after)
                    .bind(limit)
                    .bind(millis(delay))
                    .fetch_all(connection)
                    .await
            })
            .await?;
        // All stored ids can be parsed.
        let ids = ids.into_iter();
        Ok(ids.filter_map(|id| GroupId::parse(id).ok()).collect())
    }

    /// Counts the marked groups by reason.
    pub async fn marks_by_reason(&self) -> Result<Vec<MarksByReason>, Error> {
        self.read(async |connection| sqlx::query_as(MARKS_BY_REASON).fetch_all(connection).await)
            .await
    }

    /// Records the users that callbacks have named since the last call. A callback may come after a reconcile that
    /// began later in OpenIM; then the version says nothing about its members. After an error the next call records
    /// them.
    pub async fn note_touched(&self) -> Result<(), Error> {
        let mut rest = self.touched.take();
        while !rest.is_empty() {
            let others = rest.split_off(rest.len().min(GROUPS_PER_WRITE));
            if let Err(error) = self.note(&rest).await {
                self.touched.put_back(rest);
                self.touched.put_back(others);
                return Err(error);
            }
            rest = others;
        }
        Ok(())
    }

    /// As [`Self::note_touched`], for these groups alone.
    pub async fn note_touched_of(&self, groups: &[&GroupId]) -> Result<(), Error> {
        let touched = groups
            .iter()
            .filter_map(|group| self.touched.take_of(group));
        let touched: Vec<(GroupId, TouchedUsers)> = touched.collect();
        if touched.is_empty() {
            return Ok(());
        }
        let noted = self.note(&touched).await;
        if noted.is_err() {
            self.touched.put_back(touched);
        }
        noted
    }

    async fn note(&self, groups: &[(GroupId, TouchedUsers)]) -> Result<(), Error> {
        let (mut ids, mut users) = (Vec::new(), Vec::new());
        for (group, named) in groups {
            match named {
                Some(named) => {
                    ids.extend(named.iter().map(|_| group.as_str()));
                    users.extend(named.iter().map(|user| Some(user.as_str())));
                }
                None => {
                    ids.push(group.as_str());
                    users.push(None);
                }
            }
        }
        self.write(async |connection| {
            let mut transaction = connection.begin().await?;
            touch(&mut transaction, &ids, &users).await?;
            transaction.commit().await
        })
        .await
    }

    /// Forgets the versions of groups, so that the next reconcile reads them whole.
    pub async fn forget_versions(&self, groups: &[&GroupId]) -> Result<(), Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        self.write(async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK_CHECKS)
                .bind(&ids)
                .execute(&mut *transaction)
                .await?;
            sqlx::query(FORGET)
                .bind(&ids)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        })
        .await
    }

    /// As [`Self::note_touched`], by the rows of these groups: records what an earlier process did not record. Reads
    /// all of their members.
    pub async fn note_touched_before(&self, groups: &[&GroupId]) -> Result<(), Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let limit = i64::try_from(MAX_TOUCHED + 1).unwrap_or(i64::MAX);
        self.housekeep(async |connection| {
            let named: Vec<(String, String)> = sqlx::query_as(NAMED_SINCE_ALL)
                .bind(&ids)
                .bind(limit)
                .fetch_all(&mut *connection)
                .await?;
            if named.is_empty() {
                return Ok(());
            }
            let groups: Vec<&str> = named.iter().map(|(group, _)| group.as_str()).collect();
            let users: Vec<Option<&str>> =
                named.iter().map(|(_, user)| Some(user.as_str())).collect();
            touch(connection, &groups, &users).await
        })
        .await
    }
}

/// Adds users that callbacks have named, in the open transaction of the connection.
async fn touch(
    connection: &mut PgConnection,
    groups: &[&str],
    users: &[Option<&str>],
) -> Result<(), sqlx::Error> {
    sqlx::query(LOCK_CHECKS)
        .bind(groups)
        .execute(&mut *connection)
        .await?;
    sqlx::query(TOUCH)
        .bind(groups)
        .bind(users)
        .bind(i32::try_from(MAX_TOUCHED).unwrap_or(i32::MAX))
        .execute(connection)
        .await?;
    Ok(())
}
