//! Comparisons of single groups: when each began, what it came to, and which are wanted.

use std::time::Duration;

use sqlx::{Connection, FromRow, PgConnection};
use time::OffsetDateTime;

use crate::domain::{CheckReason, GroupId, Version};
use crate::store::{Error, Store};

statements! {
    /// Forgets the version until the end: what becomes of the group meanwhile is not known.
    BEGIN_CHECK = "
INSERT INTO group_checks AS stored (group_id, compared_at, read_at)
VALUES ($1, clock_timestamp(), clock_timestamp())
ON CONFLICT (group_id) DO UPDATE SET
    version     = NULL,
    version_id  = NULL,
    compared_at = greatest(EXCLUDED.compared_at, stored.compared_at + interval '1 microsecond'),
    read_at     = EXCLUDED.read_at,
    is_touched  = false
RETURNING compared_at";
    /// The same where OpenIM was asked already, at $2, what has changed since a version.
    BEGIN_UPDATE = "
UPDATE group_checks SET version = NULL, version_id = NULL, compared_at = $2, is_touched = false
 WHERE group_id = $1 AND compared_at < $2 AND version = $3 AND version_id = $4";
    /// Groups before their checks, as lanes lock them.
    LOCK_MARK = "SELECT FROM groups WHERE group_id = $1 AND check_wanted_since IS NOT NULL FOR UPDATE";
    /// Before that which is to see what others have written meanwhile: whoever touches a check has the
    /// row before or after, but not between. In the order of the ids, as everybody who locks several.
    LOCK_CHECKS = "SELECT FROM group_checks WHERE group_id = ANY($1) ORDER BY group_id FOR UPDATE";
    /// Notes the version, unless another comparison has begun since, or a callback was written, of
    /// which nobody can tell whether it is in that version; and takes the mark away, unless the group
    /// was marked again since, or so shortly before that what it announced may have come after.
    FINISH_CHECK = "
WITH marked AS MATERIALIZED (
    SELECT check_wanted_since, check_marked_at
      FROM groups
     WHERE group_id = $1 AND check_wanted_since IS NOT NULL),
last AS MATERIALIZED (
    SELECT group_id FROM group_checks WHERE group_id = $1 AND compared_at = $2),
noted AS (
    UPDATE group_checks AS c SET version = $3, version_id = $4
      FROM last
     WHERE c.group_id = last.group_id AND NOT c.is_touched
       AND NOT EXISTS (SELECT FROM marked WHERE check_marked_at >= $2)),
cleared AS (
    UPDATE groups AS g SET check_wanted_since = NULL, check_marked_at = NULL, check_reason = NULL
      FROM marked, last
     WHERE g.group_id = $1
       AND marked.check_marked_at < $2 - $5 * interval '1 millisecond'
    RETURNING g.group_id)
SELECT (SELECT check_wanted_since FROM marked) AS wanted_since,
       clock_timestamp() AS finished_at,
       EXISTS (SELECT FROM cleared) AS is_cleared";
    /// Where nothing else has marked the group, before or since, nor the mark made its row: of a group that
    /// is known by it alone nothing else is known.
    TAKE_BACK_MARK = "
UPDATE groups SET check_wanted_since = NULL, check_marked_at = NULL, check_reason = NULL
 WHERE group_id = $1 AND check_reason = $2 AND check_marked_at = check_wanted_since
   AND created_at < check_wanted_since";
    /// Walks groups_check_wanted.
    WANTED = "
SELECT group_id
  FROM groups
 WHERE group_id > $1 AND check_wanted_since <= now() - $3 * interval '1 millisecond'
 ORDER BY group_id
 LIMIT $2";
    /// Walks groups_check_wanted.
    WANTED_BY_REASON = "
SELECT check_reason AS reason, count(*) AS groups, min(check_wanted_since) AS since
  FROM groups
 WHERE check_wanted_since IS NOT NULL
 GROUP BY check_reason
 ORDER BY check_reason";
    /// Leaves a trace for a comparison that is under way.
    TOUCH = "
UPDATE group_checks SET version = NULL, version_id = NULL, is_touched = true
 WHERE group_id = ANY($1) AND NOT is_touched";
    /// Those of these groups of which a callback was written since they were compared, or whose
    /// transaction began up to the longest that one takes before. As EXISTS or a join the planner might
    /// read all members.
    HEARD = "
SELECT c.group_id
  FROM group_checks AS c
 WHERE c.group_id = ANY($1) AND c.version IS NOT NULL
   AND ((SELECT true FROM group_members AS m
          WHERE m.group_id = c.group_id
            AND m.last_callback_at >= c.compared_at - interval '65 seconds'
          LIMIT 1)
     OR (SELECT true FROM groups AS g
          WHERE g.group_id = c.group_id
            AND g.last_callback_at >= c.compared_at - interval '65 seconds'))";
}

/// Groups at a time of which versions are forgotten.
const SOME: usize = 1000;

/// How a comparison ended.
#[derive(Clone, Copy, Debug, FromRow)]
pub struct Finished {
    /// Since when the group wanted a check before.
    pub wanted_since: Option<OffsetDateTime>,
    /// By the database's clock.
    pub finished_at: OffsetDateTime,
    /// Whether it wants none any more.
    pub is_cleared: bool,
}

/// Groups that want a check for one reason.
#[derive(Clone, Debug, FromRow)]
pub struct WantedByReason {
    /// Its code; the last one of each group.
    pub reason: Option<String>,
    /// How many.
    pub groups: i64,
    /// Since when the first of them does.
    pub since: OffsetDateTime,
}

/// Milliseconds as a statement takes them.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Begins a comparison of a group. Returns the database's time: OpenIM is to be asked after it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_check(&self, group: &GroupId) -> Result<OffsetDateTime, Error> {
        self.write(async |connection| {
            sqlx::query_scalar(BEGIN_CHECK)
                .bind(group.as_str())
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// Begins one with what OpenIM, asked after `began_at`, has told of changes since `version`. False
    /// where that is no longer the version that the group is known to have had.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_update(
        &self,
        group: &GroupId,
        began_at: OffsetDateTime,
        version: &Version,
    ) -> Result<bool, Error> {
        self.write(async |connection| {
            let begun = sqlx::query(BEGIN_UPDATE)
                .bind(group.as_str())
                .bind(began_at)
                .bind(version.number.cast_signed())
                .bind(&version.id)
                .execute(connection)
                .await?;
            Ok(begun.rows_affected() == 1)
        })
        .await
    }

    /// Ends the comparison that began at `began_at`: the group is as it was at `version`, or, where
    /// OpenIM has told none, is to be read again by the next. A mark that came less than `delay` before
    /// stays.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn finish_check(
        &self,
        group: &GroupId,
        began_at: OffsetDateTime,
        version: Option<&Version>,
        delay: Duration,
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
            let finished = sqlx::query_as(FINISH_CHECK)
                .bind(group.as_str())
                .bind(began_at)
                .bind(version.map(|version| version.number.cast_signed()))
                .bind(version.map(|version| &version.id))
                .bind(millis(delay))
                .fetch_one(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(finished)
        })
        .await
    }

    /// Takes away the mark of a notification that told nothing new.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn take_back_mark(&self, group: &GroupId) -> Result<(), Error> {
        self.write(async |connection| {
            sqlx::query(TAKE_BACK_MARK)
                .bind(group.as_str())
                .bind(CheckReason::Notified.code())
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
    }

    /// Up to `limit` groups after the group id `after` that have wanted a check for `delay` at
    /// least, in bytewise order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups_wanting_check(
        &self,
        after: &str,
        limit: i64,
        delay: Duration,
    ) -> Result<Vec<GroupId>, Error> {
        let ids: Vec<String> = self
            .read(async |connection| {
                sqlx::query_scalar(WANTED)
                    .bind(after)
                    .bind(limit)
                    .bind(millis(delay))
                    .fetch_all(connection)
                    .await
            })
            .await?;
        // They are stored as they were parsed.
        let ids = ids.into_iter();
        Ok(ids.filter_map(|id| GroupId::parse(id).ok()).collect())
    }

    /// How many groups want a check, and why.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn checks_wanted(&self) -> Result<Vec<WantedByReason>, Error> {
        self.read(async |connection| sqlx::query_as(WANTED_BY_REASON).fetch_all(connection).await)
            .await
    }

    /// Forgets the versions of the groups that callbacks have changed since the last call:
    /// a callback that OpenIM sent before the group was compared may have come after it, and then the
    /// version says nothing of what is stored.
    ///
    /// # Errors
    /// See [`Error`]; what could not be done is done by the next call.
    pub async fn forget_versions(&self) -> Result<(), Error> {
        let groups = self.touched.take();
        let mut rest = groups.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(rest.len().min(SOME));
            let ids: Vec<String> = some.iter().map(|group| group.as_str().into()).collect();
            let forget = async |connection: &mut PgConnection| {
                let mut transaction = connection.begin().await?;
                touch(&mut transaction, &ids).await?;
                transaction.commit().await
            };
            if let Err(error) = self.write(forget).await {
                self.touched.put_back(rest);
                return Err(error);
            }
            rest = others;
        }
        Ok(())
    }

    /// The same for these groups, by what is stored: for what an earlier process did not come to. Reads
    /// all of their members. Returns those that callbacks have changed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn forget_versions_of_heard(
        &self,
        groups: &[&GroupId],
    ) -> Result<Vec<String>, Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        self.housekeep(async |connection| {
            let heard: Vec<String> = sqlx::query_scalar(HEARD)
                .bind(&ids)
                .fetch_all(&mut *connection)
                .await?;
            if !heard.is_empty() {
                touch(connection, &heard).await?;
            }
            Ok(heard)
        })
        .await
    }
}

/// Notes that callbacks have changed these groups, in the transaction that the connection is in.
async fn touch(connection: &mut PgConnection, groups: &[String]) -> Result<(), sqlx::Error> {
    sqlx::query(LOCK_CHECKS)
        .bind(groups)
        .execute(&mut *connection)
        .await?;
    sqlx::query(TOUCH).bind(groups).execute(connection).await?;
    Ok(())
}
