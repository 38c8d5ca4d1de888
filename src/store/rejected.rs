//! Rejected callbacks: keeps, lists and deletes them.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgQueryResult;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use super::{Error, Store};
use crate::domain::Rejected;

statements! {
    /// Stores a rejected callback once. It can be tried again after a lost answer, and by a drain.
    KEEP_REJECTED = "
INSERT INTO rejected_callbacks
       (received_at, path, operation_id, code, detail, body, body_bytes, key)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (key) DO NOTHING";
    LIST_REJECTED = "
SELECT id, received_at, path, operation_id, code, detail, body_bytes
  FROM rejected_callbacks
 ORDER BY id DESC
 LIMIT $1";
    REJECTED = "
SELECT id, received_at, path, operation_id, code, detail, body_bytes, body
  FROM rejected_callbacks
 WHERE id = $1";
    /// Finds the oldest one above an id, to read all without more than one in memory.
    NEXT_REJECTED = "SELECT min(id) FROM rejected_callbacks WHERE id > $1";
    DELETE_REJECTED = "DELETE FROM rejected_callbacks WHERE id = $1";
    /// Deletes the oldest ones by the time when they were stored, by the database's clock. A spool may have kept one
    /// for long before that.
    DELETE_EXPIRED = "
DELETE FROM rejected_callbacks
 WHERE id IN (SELECT id FROM rejected_callbacks
               WHERE stored_at < now() - make_interval(days => $1)
               ORDER BY id LIMIT 1000)";
    /// Finds the newest one beyond the limit of bytes, counted from the newest of all. Postgres knows the length of a
    /// body without reading it. 256 bytes stand for the rest of a row.
    NEWEST_WITHOUT_ROOM = "
SELECT max(id)
  FROM (SELECT id, sum(octet_length(body) + 256) OVER (ORDER BY id DESC) AS bytes
          FROM rejected_callbacks) AS counted
 WHERE bytes > $1";
    /// Deletes a batch, so that no statement takes long.
    DELETE_REJECTED_UP_TO = "
DELETE FROM rejected_callbacks
 WHERE id IN (SELECT id FROM rejected_callbacks WHERE id <= $1 ORDER BY id LIMIT 1000)";
}

/// Number of rows that a statement deletes; the statements have the number too.
const DELETE_BATCH: u64 = 1000;

/// A rejected callback without its body.
#[derive(Clone, Debug, FromRow)]
pub struct RejectedSummary {
    /// Number, in the order in which they were stored.
    pub id: i64,
    /// Time when the callback came.
    pub received_at: OffsetDateTime,
    /// Path of the request.
    pub path: String,
    /// OpenIM's request header, if present.
    pub operation_id: Option<String>,
    /// Error code.
    pub code: String,
    /// Error message.
    pub detail: String,
    /// Length of the whole body.
    pub body_bytes: i64,
}

#[derive(FromRow)]
struct RejectedRow {
    #[sqlx(flatten)]
    summary: RejectedSummary,
    body: Vec<u8>,
}

/// Stores a rejected callback, in the current transaction if there is one.
pub(super) async fn insert(
    connection: &mut PgConnection,
    rejected: &Rejected,
) -> Result<(), sqlx::Error> {
    let Rejected {
        received_at,
        path,
        operation_id,
        code,
        detail,
        body,
        body_bytes,
    } = rejected;
    // Two that are equal to the microsecond are one. A spool keeps all values of the key, so that it is the same with
    // and without a spool.
    let micros = received_at.unix_timestamp_nanos().div_euclid(1000);
    let mut key = Sha256::new()
        .chain_update(micros.to_be_bytes())
        .chain_update(body_bytes.to_be_bytes());
    let operation = operation_id.as_deref().unwrap_or_default();
    for text in [path, operation, code, detail].map(str::as_bytes) {
        key.update(text.len().to_be_bytes());
        key.update(text);
    }
    sqlx::query(KEEP_REJECTED)
        .bind(received_at)
        .bind(path)
        .bind(operation_id)
        .bind(code)
        .bind(detail)
        .bind(body.as_ref())
        .bind(i64::try_from(*body_bytes).unwrap_or(i64::MAX))
        .bind(key.chain_update(body).finalize().to_vec())
        .execute(connection)
        .await?;
    Ok(())
}

impl Store {
    /// Stores a rejected callback.
    pub async fn keep_rejected(&self, rejected: &Rejected) -> Result<(), Error> {
        self.write(async |connection| insert(connection, rejected).await)
            .await
    }

    /// Lists the newest rejected callbacks, newest first.
    pub async fn list_rejected(&self, limit: u32) -> Result<Vec<RejectedSummary>, Error> {
        self.read(async |connection| {
            sqlx::query_as(LIST_REJECTED)
                .bind(i64::from(limit))
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// Reads a rejected callback with its body.
    pub async fn rejected(&self, id: i64) -> Result<Option<Rejected>, Error> {
        let row: Option<RejectedRow> = self
            .read(async |connection| {
                sqlx::query_as(REJECTED)
                    .bind(id)
                    .fetch_optional(connection)
                    .await
            })
            .await?;
        Ok(row.map(|RejectedRow { summary, body }| Rejected {
            received_at: summary.received_at,
            path: summary.path,
            operation_id: summary.operation_id,
            code: summary.code,
            detail: summary.detail,
            body: Bytes::from(body),
            body_bytes: summary.body_bytes.unsigned_abs(),
        }))
    }

    /// Returns the next number after `after`. Numbers start above 0.
    pub async fn next_rejected(&self, after: i64) -> Result<Option<i64>, Error> {
        self.read(async |connection| {
            sqlx::query_scalar(NEXT_REJECTED)
                .bind(after)
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// Deletes a rejected callback. False: there is none.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away. It may be deleted.
    pub async fn delete_rejected(&self, id: i64) -> Result<bool, Error> {
        let done = self
            .write_once(async |connection| {
                sqlx::query(DELETE_REJECTED)
                    .bind(id)
                    .execute(connection)
                    .await
            })
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Deletes rejected callbacks that were stored more than `keep_days` ago, and the oldest beyond `max_bytes`.
    /// Returns the number.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away. Some may be deleted.
    pub async fn purge_rejected(&self, keep_days: u16, max_bytes: u64) -> Result<u64, Error> {
        let mut deleted = self
            .delete_batches(async |connection| {
                sqlx::query(DELETE_EXPIRED)
                    .bind(i32::from(keep_days))
                    .execute(connection)
                    .await
            })
            .await?;
        let without_room: Option<i64> = self
            .housekeep(async |connection| {
                sqlx::query_scalar(NEWEST_WITHOUT_ROOM)
                    .bind(i64::try_from(max_bytes).unwrap_or(i64::MAX))
                    .fetch_one(connection)
                    .await
            })
            .await?;
        if let Some(id) = without_room {
            deleted += self.delete_rejected_up_to(id).await?;
        }
        Ok(deleted)
    }

    /// Deletes all rejected callbacks up to a number. Returns the number.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away. Some may be deleted.
    pub async fn delete_rejected_up_to(&self, id: i64) -> Result<u64, Error> {
        self.delete_batches(async |connection| {
            sqlx::query(DELETE_REJECTED_UP_TO)
                .bind(id)
                .execute(connection)
                .await
        })
        .await
    }

    /// Repeats a statement that deletes a batch until there are no more rows. Returns their number.
    async fn delete_batches(
        &self,
        delete: impl AsyncFnOnce(&mut PgConnection) -> Result<PgQueryResult, sqlx::Error> + Clone,
    ) -> Result<u64, Error> {
        let mut deleted = 0;
        loop {
            let done = self.housekeep(delete.clone()).await?;
            deleted += done.rows_affected();
            if done.rows_affected() < DELETE_BATCH {
                return Ok(deleted);
            }
        }
    }
}
