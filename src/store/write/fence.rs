//! What keeps a write that was given up on from taking effect after newer ones, or twice.
//!
//! Postgres may still be at a statement that we gave up on, or get it late from the network, and
//! commit it. So the lanes' sessions each have a share of an advisory lock, which is the spool's,
//! and after a write that failed nothing more is written until the session that drains the spool
//! has the lock for itself: only then is every session before it over. What such a session has
//! committed in the end is told by the positions, which move in the transactions themselves.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::super::Error;
use super::super::connections::Counted;
use tokio::time::Instant;

statements! {
    /// Until the session ends. At once, unless the session that drained is just ending.
    SHARE = "SELECT pg_advisory_lock_shared($1)";
    TAKE_ALONE = "SELECT pg_try_advisory_lock($1)";
    /// Who still has a share of it: sessions of ours that nobody listens to any more. A number
    /// that is locked is split in two halves here.
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

/// A place in `lane_positions` to move to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) spool_id: i64,
    pub(super) lane: i16,
    pub(super) seq: i64,
}

impl Position {
    /// In the transaction that the connection is in.
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

/// Gives a new session its share of the lock; how far each lane has come.
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

/// Tries to get the lock alone, and ends the sessions that are in the way. `None`: these are not
/// over yet.
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
            // Sessions of another role, as after a change of DATABASE_URL, end by themselves.
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
