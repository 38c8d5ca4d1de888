//! Comparisons of all groups: one row each.

use std::fmt;

use sqlx::FromRow;
use time::OffsetDateTime;

use crate::store::{Error, Store};

statements! {
    BEGIN_RUN = "
INSERT INTO reconcile_runs (started_at, is_full) VALUES (now(), $1) RETURNING id";
    END_RUN = "
UPDATE reconcile_runs SET
    ended_at = now(), stopped_by = COALESCE($2, stopped_by), groups_seen = $3, groups_compared = $4, groups_left = $5,
    members_compared = $6, members_added = $7, members_removed = $8, members_changed = $9,
    details_changed = $10, groups_changed = $11, members_dismissed = $12
 WHERE id = $1";
    /// The last that ended, also where it had come to its end, and one that goes on.
    NOTE_TOO_MANY_REMOVALS = "
UPDATE reconcile_runs SET stopped_by = $1
 WHERE id >= (SELECT max(id) FROM reconcile_runs WHERE ended_at IS NOT NULL)";
    /// By runs that did not come to their end, one after the other.
    REMOVED_SINCE = "
SELECT COALESCE(sum(members_removed + members_dismissed), 0)::bigint
  FROM reconcile_runs
 WHERE id > COALESCE((SELECT max(id) FROM reconcile_runs
                       WHERE ended_at IS NOT NULL AND stopped_by IS NULL), 0)";
    FORGET_RUNS = "DELETE FROM reconcile_runs WHERE id <= $1 - 100";
    /// The last that ended, and the one that goes on, if it is the last of all.
    LAST_RUNS = "
SELECT id, started_at, ended_at, is_full, stopped_by, groups_seen, groups_compared, groups_left,
       members_compared, members_added, members_removed, members_changed, details_changed,
       groups_changed, extract(epoch FROM clock_timestamp() - started_at)::float8 AS age
  FROM reconcile_runs
 WHERE id = (SELECT max(id) FROM reconcile_runs WHERE ended_at IS NOT NULL)
    OR id = (SELECT max(id) FROM reconcile_runs)
 ORDER BY id";
}

/// What `stopped_by` says where so many members were to be removed that somebody has to look at it.
pub const TOO_MANY_REMOVALS: &str = "too_many_removals";

/// A comparison of all groups.
#[derive(Clone, Debug, FromRow)]
#[expect(missing_docs, reason = "the columns; see migrations/")]
pub struct Run {
    pub id: i64,
    pub started_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
    pub is_full: bool,
    pub stopped_by: Option<String>,
    #[sqlx(flatten)]
    pub counts: RunCounts,
    /// How long ago it began, in seconds by the database's clock; negative after that was set back.
    pub age: f64,
}

/// What a comparison came to. No number is negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
#[expect(missing_docs, reason = "the columns; see migrations/")]
pub struct RunCounts {
    pub groups_seen: i64,
    pub groups_compared: i64,
    pub groups_left: i64,
    pub members_compared: i64,
    pub members_added: i64,
    pub members_removed: i64,
    pub members_changed: i64,
    pub details_changed: i64,
    pub groups_changed: i64,
}

impl RunCounts {
    /// Rows that were made as in OpenIM.
    pub fn repairs(&self) -> i64 {
        self.members_added
            + self.members_removed
            + self.members_changed
            + self.details_changed
            + self.groups_changed
    }
}

/// For people.
impl fmt::Display for RunCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            groups_seen,
            groups_compared,
            groups_left,
            members_compared,
            members_added,
            members_removed,
            members_changed,
            details_changed,
            groups_changed,
        } = self;
        write!(
            f,
            "groups: {groups_seen} seen, {groups_compared} compared, {groups_changed} changed, \
             {groups_left} left as they are; members: {members_compared} compared, \
             {members_added} added, {members_removed} removed, {members_changed} changed, \
             {details_changed} with details filled in"
        )
    }
}

impl Run {
    /// Whether nobody may be removed until somebody has looked at it.
    pub fn has_too_many_removals(&self) -> bool {
        self.stopped_by.as_deref() == Some(TOO_MANY_REMOVALS)
    }
}

impl Store {
    /// Notes that one begins; its number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_run(&self, is_full: bool) -> Result<i64, Error> {
        self.write_once(async |connection| {
            sqlx::query_scalar(BEGIN_RUN)
                .bind(is_full)
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// Notes what came of it, and why it did not come to its end if it did not. So many members have left
    /// with their groups, beside those of `counts`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn end_run(
        &self,
        id: i64,
        stopped_by: Option<&str>,
        counts: &RunCounts,
        members_dismissed: u64,
    ) -> Result<(), Error> {
        self.write(async |connection| {
            sqlx::query(END_RUN)
                .bind(id)
                .bind(stopped_by)
                .bind(counts.groups_seen)
                .bind(counts.groups_compared)
                .bind(counts.groups_left)
                .bind(counts.members_compared)
                .bind(counts.members_added)
                .bind(counts.members_removed)
                .bind(counts.members_changed)
                .bind(counts.details_changed)
                .bind(counts.groups_changed)
                .bind(members_dismissed.cast_signed())
                .execute(&mut *connection)
                .await?;
            sqlx::query(FORGET_RUNS).bind(id).execute(connection).await
        })
        .await?;
        Ok(())
    }

    /// How many members were removed since the last run that came to its end, or left with their groups.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn removed_since_last_end(&self) -> Result<u64, Error> {
        let removed: i64 = self
            .read(async |connection| {
                sqlx::query_scalar(REMOVED_SINCE)
                    .fetch_one(connection)
                    .await
            })
            .await?;
        Ok(removed.unsigned_abs())
    }

    /// Notes that too many members were to be removed after the last run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn note_too_many_removals(&self) -> Result<(), Error> {
        self.write(async |connection| {
            sqlx::query(NOTE_TOO_MANY_REMOVALS)
                .bind(TOO_MANY_REMOVALS)
                .execute(connection)
                .await
        })
        .await?;
        Ok(())
    }

    /// The last run that ended, and the one that goes on or whose process ended before it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn last_runs(&self) -> Result<(Option<Run>, Option<Run>), Error> {
        let runs: Vec<Run> = self
            .read(async |connection| sqlx::query_as(LAST_RUNS).fetch_all(connection).await)
            .await?;
        let (ended, going_on): (Vec<Run>, Vec<Run>) =
            runs.into_iter().partition(|run| run.ended_at.is_some());
        Ok((ended.into_iter().next(), going_on.into_iter().next()))
    }
}
