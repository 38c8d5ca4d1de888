//! Callbacks that could not be understood: kept, listed, deleted.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use super::{Error, Store};
use crate::domain::Rejected;

statements! {
    /// Once, however often it is tried: an answer that was lost, and a spool, try again.
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
    /// The oldest above an id: to go through all without holding more than one.
    NEXT_REJECTED = "SELECT min(id) FROM rejected_callbacks WHERE id > $1";
    DELETE_REJECTED = "DELETE FROM rejected_callbacks WHERE id = $1";
    /// By the database's clock, from when they could be seen: one may have waited in a spool for long.
    DELETE_EXPIRED = "
DELETE FROM rejected_callbacks
 WHERE id IN (SELECT id FROM rejected_callbacks
               WHERE stored_at < now() - make_interval(days => $1)
               ORDER BY id LIMIT 1000)";
    /// The newest of those for which there is no room, counted from the newest of all. The length
    /// of a body is known without reading it; 256 bytes stand for the rest of a row.
    NEWEST_WITHOUT_ROOM = "
SELECT max(id)
  FROM (SELECT id, sum(octet_length(body) + 256) OVER (ORDER BY id DESC) AS bytes
          FROM rejected_callbacks) AS counted
 WHERE bytes > $1";
    /// A part at a time, so that no statement takes long.
    DELETE_REJECTED_UP_TO = "
DELETE FROM rejected_callbacks
 WHERE id IN (SELECT id FROM rejected_callbacks WHERE id <= $1 ORDER BY id LIMIT 1000)";
}

/// How many a statement deletes, as it says itself.
const PART: u64 = 1000;

/// A kept callback without its body.
#[derive(Clone, Debug, FromRow)]
pub struct RejectedSummary {
    /// Number, in order of arrival.
    pub id: i64,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// Where it was sent.
    pub path: String,
    /// OpenIM's request header, if it was there.
    pub operation_id: Option<String>,
    /// Why it was rejected: a stable code.
    pub code: String,
    /// Why, exactly.
    pub detail: String,
    /// Length of the body, before it was cut.
    pub body_bytes: i64,
}

#[derive(FromRow)]
struct RejectedRow {
    #[sqlx(flatten)]
    summary: RejectedSummary,
    body: Vec<u8>,
}

/// Keeps one, in the transaction that the connection is in, if any.
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
    sqlx::query(KEEP_REJECTED)
        .bind(received_at)
        .bind(path)
        .bind(operation_id)
        .bind(code)
        .bind(detail)
        .bind(body.as_ref())
        .bind(i64::try_from(*body_bytes).unwrap_or(i64::MAX))
        .bind(key(rejected))
        .execute(connection)
        .await?;
    Ok(())
}

/// What tells one from all others: two that are equal to the microsecond are one. Made of what a spool
/// keeps too, so that it is the same on both ways.
fn key(rejected: &Rejected) -> Vec<u8> {
    let Rejected {
        received_at,
        path,
        operation_id,
        code,
        detail,
        body,
        body_bytes,
    } = rejected;
    let micros = received_at.unix_timestamp_nanos().div_euclid(1000);
    let mut digest = Sha256::new()
        .chain_update(micros.to_be_bytes())
        .chain_update(body_bytes.to_be_bytes());
    let operation_id = operation_id.as_deref().unwrap_or_default();
    for text in [path, operation_id, code, detail].map(str::as_bytes) {
        digest.update(text.len().to_be_bytes());
        digest.update(text);
    }
    digest.chain_update(body).finalize().to_vec()
}

impl Store {
    /// Keeps a callback that could not be understood.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
    pub async fn keep_rejected(&self, rejected: &Rejected) -> Result<(), Error> {
        self.write(async |connection| insert(connection, rejected).await)
            .await
    }

    /// The newest kept ones, newest first.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
    pub async fn list_rejected(&self, limit: u32) -> Result<Vec<RejectedSummary>, Error> {
        self.read(async |connection| {
            sqlx::query_as(LIST_REJECTED)
                .bind(i64::from(limit))
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// A kept one, whole.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
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

    /// The number after this one; numbers start above 0.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
    pub async fn next_rejected(&self, after: i64) -> Result<Option<i64>, Error> {
        self.read(async |connection| {
            sqlx::query_scalar(NEXT_REJECTED)
                .bind(after)
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// Deletes a kept one; false where there is none.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away; it may be deleted.
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

    /// Deletes the kept ones that were stored more than `keep_days` ago, and the oldest beyond
    /// `max_bytes`. Returns how many.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away; some may be deleted.
    pub async fn purge_rejected(&self, keep_days: u16, max_bytes: u64) -> Result<u64, Error> {
        let mut deleted = 0;
        loop {
            let done = self
                .housekeep(async |connection| {
                    sqlx::query(DELETE_EXPIRED)
                        .bind(i32::from(keep_days))
                        .execute(connection)
                        .await
                })
                .await?;
            deleted += done.rows_affected();
            if done.rows_affected() < PART {
                break;
            }
        }
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

    /// Deletes every kept one up to a number. Returns how many.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away; some may be deleted.
    pub async fn delete_rejected_up_to(&self, id: i64) -> Result<u64, Error> {
        let mut deleted = 0;
        loop {
            let done = self
                .housekeep(async |connection| {
                    sqlx::query(DELETE_REJECTED_UP_TO)
                        .bind(id)
                        .execute(connection)
                        .await
                })
                .await?;
            deleted += done.rows_affected();
            if done.rows_affected() < PART {
                return Ok(deleted);
            }
        }
    }
}
