//! The fence: keeps an abandoned write from taking effect after newer ones, or twice.
//!
//! Postgres may still run a statement after its timeout here, or get it late from the network, and
//! commit it. So each session of a lane has a share of an advisory lock, one lock for each spool.
//! After a failed write, nothing is written until the session that drains the spool has the whole
//! lock: then all earlier sessions have ended. Positions tell what those sessions have committed,
//! because they move in the same transactions.

use std::collections::HashMap;

use sqlx::PgConnection;
use tokio::time::Instant;

use super::super::Error;
use super::super::postgres::Counted;

statements! {
    /// Takes a share until the session ends. Waits only while the session of a drain ends.
    SHARE = "SELECT pg_advisory_lock_shared($1)";
    TAKE_ALONE = "SELECT pg_try_advisory_lock($1)";
    /// Ends the sessions that still have a share: no one waits for their answers. `pg_locks` splits
    /// the number of the lock into two halves.
    END_OTHERS = "
SELECT count(pg_terminate_backend(pid))
  FROM pg_locks
 WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND classid::bigint = $1 >> 32 AND objid::bigint = $1 & 4294967295";
    POSITIONS = "SELECT lane, seq FROM lane_positions WHERE spool_id = $1";
    ADVANCE = "
INSERT INTO lane_positions (spool_id, lane, seq) VALUES ($1, $2, $3)
ON CONFLICT (spool_id, lane) DO UPDATE SET seq = EXCLUDED.seq";
}

/// New position of a lane in `lane_positions`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) spool_id: i64,
    pub(super) lane: i16,
    pub(super) seq: i64,
}

impl Position {
    /// Moves the position in the current transaction.
    pub(super) async fn advance(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query(ADVANCE)
            .bind(self.spool_id)
            .bind(self.lane)
            .bind(self.seq)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Takes a share of the lock for a new session. Returns the positions of the lanes.
pub(super) async fn share(
    connection: &mut Counted,
    spool_id: i64,
    deadline: Instant,
) -> Result<HashMap<i16, i64>, Error> {
    let share = async |connection: &mut PgConnection| {
        sqlx::query(SHARE)
            .bind(spool_id)
            .execute(&mut *connection)
            .await?;
        positions(connection, spool_id).await
    };
    connection.run(deadline, share).await
}

/// Tries to take the whole lock, and ends sessions that have shares. `None`: some have not ended
/// yet.
pub(super) async fn take_alone(
    connection: &mut Counted,
    spool_id: i64,
    deadline: Instant,
) -> Result<Option<HashMap<i16, i64>>, Error> {
    let take = async |connection: &mut PgConnection| {
        let is_alone: bool = sqlx::query_scalar(TAKE_ALONE)
            .bind(spool_id)
            .fetch_one(&mut *connection)
            .await?;
        if is_alone {
            return positions(connection, spool_id).await.map(Some);
        }
        let ended = sqlx::query(END_OTHERS)
            .bind(spool_id)
            .execute(connection)
            .await;
        match ended {
            // Sessions of another role, from before a change of DATABASE_URL, end by themselves.
            Err(sqlx::Error::Database(error)) => {
                let error = error.message();
                tracing::debug!(error, "an earlier session cannot be ended");
            }
            ended => {
                ended?;
            }
        }
        Ok(None)
    };
    connection.run(deadline, take).await
}

async fn positions(
    connection: &mut PgConnection,
    spool_id: i64,
) -> Result<HashMap<i16, i64>, sqlx::Error> {
    let rows: Vec<(i16, i64)> = sqlx::query_as(POSITIONS)
        .bind(spool_id)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().collect())
}
