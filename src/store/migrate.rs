//! Brings the schema up to date. Migrations are additive, so an older binary runs on a newer
//! schema too.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};

/// A migration that waits for a lock makes every later statement wait behind it, so it gives way
/// and tries again.
pub(super) const LOCK_TIMEOUT: (&str, &str) = ("lock_timeout", "3s");
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_secs(1);

statements! {
    HAS_LIST = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    /// How many of these are there.
    APPLIED = "SELECT count(*) FROM _sqlx_migrations WHERE success AND version = ANY($1)";
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
        .fetch_one(connection)
        .await?;
    Ok(usize::try_from(applied) != Ok(ours.len()))
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
            result => return result,
        }
    }
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
