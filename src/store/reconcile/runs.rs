//! Runs: one row each, and the lease that lets one instance reconcile at a time.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sqlx::{Connection, FromRow, PgConnection};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::domain::{RepairCounts, RepairKind};
use crate::store::postgres::Counted;
use crate::store::{Error, Store};

/// Passes every counter of a run to the macro `$make`: its text in the API, its column, its name in JSON and, for
/// repairs, its kind. A new counter is a row here and a column in a migration.
macro_rules! run_counters {
    ($make:ident) => {
        $make! {
            counts {
                /// Groups that the run went through.
                groups_seen "groupsSeen";
                /// Groups among them that were read from OpenIM. The others had not changed.
                groups_compared "groupsCompared";
                /// Groups that were skipped: they cannot be read, or need a decision.
                groups_left "groupsLeft";
                /// Members that were compared.
                members_compared "membersCompared";
            }
            repairs {
                /// Members that the mirror did not have.
                members_added "memberAdded" MemberAdded;
                /// Members that OpenIM does not have.
                members_removed "memberRemoved" MemberRemoved;
                /// Members with another value.
                members_changed "memberChanged" MemberChanged;
                /// Members that differ only in details which no callback has, for example the name in their profile. No
                /// drift.
                details_changed "detailsChanged" DetailsChanged;
                /// Groups with another value of their own.
                groups_changed "groupChanged" GroupChanged;
            }
        }
    };
}
pub(crate) use run_counters;

macro_rules! make_run_counts {
    (
        counts { $($(#[$doc:meta])* $count:ident $json:literal;)+ }
        repairs { $($(#[$repair_doc:meta])* $repair:ident $repair_json:literal $kind:ident;)+ }
    ) => {
        /// Counts of a run. Each is a column. No number is negative.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow, Serialize)]
        pub struct RunCounts {
            $($(#[$doc])* pub $count: i64,)+
            $($(#[$repair_doc])* pub $repair: i64,)+
            /// Members that left with their groups, without a sign of it before. No part of a report.
            pub members_dismissed: i64,
        }

        impl RunCounts {
            /// Number of repaired rows.
            pub fn repairs(&self) -> i64 {
                [$(self.$repair),+].iter().sum()
            }

            /// Adds repairs that were made.
            pub fn add_repairs(&mut self, repairs: RepairCounts) {
                $(self.$repair += repairs.of(RepairKind::$kind).cast_signed();)+
            }
        }

        macro_rules! count_columns {
            () => {
                concat!(
                    $(stringify!($count), ", ",)+
                    $(stringify!($repair), ", ",)+
                    "members_dismissed"
                )
            };
        }
    };
}
run_counters!(make_run_counts);

statements! {
    BEGIN_RUN = "
INSERT INTO reconcile_runs (started_at, is_full) VALUES (now(), $1) RETURNING id";
    END_RUN = concat!("
UPDATE reconcile_runs SET
    ended_at = now(), stopped_by = COALESCE($2, stopped_by), (", count_columns!(), ") =
    (SELECT ", count_columns!(), "
       FROM jsonb_populate_record(NULL::reconcile_runs, $3::text::jsonb))
 WHERE id = $1");
    /// Marks the last run that ended, even if it was complete, and a current run.
    NOTE_TOO_MANY_REMOVALS = "
UPDATE reconcile_runs SET stopped_by = $1
 WHERE id >= (SELECT max(id) FROM reconcile_runs WHERE ended_at IS NOT NULL)";
    /// Adds up the runs since the last complete one.
    REMOVED_SINCE = "
SELECT COALESCE(sum(members_removed + members_dismissed), 0)::bigint
  FROM reconcile_runs
 WHERE id > COALESCE((SELECT max(id) FROM reconcile_runs
                       WHERE ended_at IS NOT NULL AND stopped_by IS NULL), 0)";
    FORGET_RUNS = "DELETE FROM reconcile_runs WHERE id <= $1 - 100";
    /// Reads the last run that ended, and the current one if it is the newest.
    LAST_RUNS = concat!("
SELECT id, started_at, ended_at, is_full, stopped_by, ", count_columns!(), ",
       extract(epoch FROM clock_timestamp() - started_at)::float8 AS age
  FROM reconcile_runs
 WHERE id = (SELECT max(id) FROM reconcile_runs WHERE ended_at IS NOT NULL)
    OR id = (SELECT max(id) FROM reconcile_runs)
 ORDER BY id");
    /// Holds until the session ends. The second key tells apart the mirrors in one database.
    TAKE_LEASE = "SELECT pg_try_advisory_lock($1, hashtext(current_schema()))";
    /// Gives the lease back at once. A session that is closed takes a moment to end.
    END_LEASE = "SELECT pg_advisory_unlock($1, hashtext(current_schema()))";
}

/// `stopped_by` of a run that would have removed too many members.
pub const TOO_MANY_REMOVALS: &str = "too_many_removals";

/// A run.
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
    /// Seconds since the start, by the database's clock. Negative after the clock was set back.
    pub age: f64,
}

/// The text of the log and of the command.
impl fmt::Display for RunCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "groups: {} seen, {} compared, {} changed, {} left as they are; members: {} compared, \
             {} added, {} removed, {} changed, {} with details filled in",
            self.groups_seen,
            self.groups_compared,
            self.groups_changed,
            self.groups_left,
            self.members_compared,
            self.members_added,
            self.members_removed,
            self.members_changed,
            self.details_changed
        )
    }
}

impl Run {
    /// True if no member may be removed until an operator decides.
    pub fn has_too_many_removals(&self) -> bool {
        self.stopped_by.as_deref() == Some(TOO_MANY_REMOVALS)
    }
}

/// Time limit of statements on the connection of a lease.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Work that one instance does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseOf {
    /// Runs.
    Runs,
    /// Reconciling marked groups.
    Marks,
}

impl LeaseOf {
    /// The first key of the advisory lock. The same in all versions of this program.
    fn key(self) -> i32 {
        match self {
            Self::Runs => 726_301,
            Self::Marks => 726_302,
        }
    }
}

/// The right to reconcile. Ends when this is dropped, or when its connection breaks.
#[derive(Debug)]
pub struct Lease {
    connection: Counted,
    of: LeaseOf,
}

impl Lease {
    /// Asks Postgres; returns true if the lease still holds.
    pub async fn holds(&mut self) -> bool {
        let deadline = Instant::now() + LEASE_TIMEOUT;
        let ping = async |connection: &mut PgConnection| connection.ping().await;
        self.connection.run(deadline, ping).await.is_ok()
    }

    /// Gives the lease back, so that another instance can take it at once.
    pub async fn end(mut self) {
        let unlock = async |connection: &mut PgConnection| {
            sqlx::query(END_LEASE)
                .bind(self.of.key())
                .execute(connection)
                .await
        };
        let deadline = Instant::now() + LEASE_TIMEOUT;
        // After a failure the lease ends with the session.
        let _ = self.connection.run(deadline, unlock).await;
        self.connection.close().await;
    }
}

impl Store {
    /// Takes a lease, on its own connection. `None` while another instance has it.
    pub async fn take_lease(&self, of: LeaseOf) -> Result<Option<Lease>, Error> {
        let deadline = Instant::now() + LEASE_TIMEOUT;
        let mut connection = self.lease_connector.connect(deadline).await?;
        let take = async |connection: &mut PgConnection| {
            sqlx::query_scalar(TAKE_LEASE)
                .bind(of.key())
                .fetch_one(connection)
                .await
        };
        if connection.run(deadline, take).await? {
            return Ok(Some(Lease { connection, of }));
        }
        connection.close().await;
        Ok(None)
    }

    /// Records the start of a run; returns its id.
    pub async fn begin_run(&self, is_full: bool) -> Result<i64, Error> {
        self.write_once(async |connection| {
            sqlx::query_scalar(BEGIN_RUN)
                .bind(is_full)
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// Records the end of a run, its counts and, if it was not complete, the reason.
    pub async fn end_run(
        &self,
        id: i64,
        stopped_by: Option<&str>,
        counts: &RunCounts,
    ) -> Result<(), Error> {
        // Cannot fail: these are numbers.
        let counts = serde_json::to_string(counts).unwrap_or_default();
        self.write(async |connection| {
            sqlx::query(END_RUN)
                .bind(id)
                .bind(stopped_by)
                .bind(&counts)
                .execute(&mut *connection)
                .await?;
            sqlx::query(FORGET_RUNS).bind(id).execute(connection).await
        })
        .await?;
        Ok(())
    }

    /// Counts the members that were removed, or left with their groups, since the last complete run.
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

    /// Records that too many members were to be removed after the last run.
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

    /// Reads the last run that ended, and the current one. The process of the current one may have ended.
    pub async fn last_runs(&self) -> Result<(Option<Run>, Option<Run>), Error> {
        let runs: Vec<Run> = self
            .read(async |connection| sqlx::query_as(LAST_RUNS).fetch_all(connection).await)
            .await?;
        let (ended, current): (Vec<Run>, Vec<Run>) =
            runs.into_iter().partition(|run| run.ended_at.is_some());
        Ok((ended.into_iter().next(), current.into_iter().next()))
    }
}
