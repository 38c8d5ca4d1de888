//! Brings the schema up to date. Migrations are additive, so an older binary runs on a newer
//! schema too.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};

/// A migration that waits for a lock makes every later statement wait behind it, so it gives way
/// and tries again.
pub(super) const LOCK_TIMEOUT_MS: i64 = 3000;
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_secs(1);

statements! {
    HAS_LIST = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    /// How many of these are there.
    APPLIED = "SELECT count(*) FROM _sqlx_migrations WHERE success AND version = ANY($1)";
    /// Whether the numbers of transactions are of another server: this is a dump that was loaded. Fails
    /// where our role may not ask.
    IS_FROM_ELSEWHERE = "
SELECT system_identifier <> (SELECT system_identifier FROM pg_control_system())
  FROM transaction_origin
 WHERE system_identifier IS NOT NULL";
    /// Numbers that this server has not come to yet would be taken for callbacks that are newer than any
    /// answer of OpenIM.
    FORGET_TRANSACTIONS = "
WITH of_members AS (
    UPDATE group_members SET last_callback_xid = NULL
     WHERE last_callback_xid >= pg_current_xact_id()::text::bigint),
of_groups AS (
    UPDATE groups SET last_callback_xid = NULL, check_marked_xid = NULL
     WHERE last_callback_xid IS NOT NULL OR check_marked_xid IS NOT NULL),
checks AS (
    UPDATE group_checks SET version = NULL, version_id = NULL, fence = NULL)
UPDATE transaction_origin SET system_identifier = (SELECT system_identifier FROM pg_control_system())";
}

/// Whether there is something to apply.
pub(super) async fn is_due(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let has_list: bool = sqlx::query_scalar(HAS_LIST)
        .fetch_one(&mut *connection)
        .await?;
    if !has_list {
        return Ok(true);
    }
    let ours: Vec<i64> = sqlx::migrate!().iter().map(|one| one.version).collect();
    let applied: i64 = sqlx::query_scalar(APPLIED)
        .bind(&ours)
        .fetch_one(&mut *connection)
        .await?;
    if usize::try_from(applied) != Ok(ours.len()) {
        return Ok(true);
    }
    is_from_elsewhere(connection).await
}

async fn is_from_elsewhere(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match sqlx::query_scalar(IS_FROM_ELSEWHERE)
        .fetch_optional(connection)
        .await
    {
        Ok(is_from_elsewhere) => Ok(is_from_elsewhere.unwrap_or(false)),
        // insufficient_privilege
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == "42501") => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Applies what is missing, one replica at a time (sqlx holds an advisory lock meanwhile).
pub(super) async fn run(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut migrator: Migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    let mut attempt = 1;
    loop {
        match migrator.run_direct(None, connection, false).await {
            Err(error) if attempt < ATTEMPTS && is_lock_timeout(&error) => {
                tracing::warn!(attempt, "the schema is locked by others; trying again");
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    if is_from_elsewhere(connection).await? {
        tracing::info!("the tables are of another server; all groups are to be compared anew");
        sqlx::query(FORGET_TRANSACTIONS).execute(connection).await?;
    }
    Ok(())
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| code == "55P03") // lock_not_available
}
