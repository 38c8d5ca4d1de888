//! The wall: the only place that names sqlx and holds SQL.
//!
//! SQL is static text beside the function that runs it, listed by `statements!` so that a test
//! can prepare every statement against the migrated schema.

/// Defines the SQL constants of a file and `STATEMENTS`, the list of them all.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:literal;)+) => {
        $($(#[$doc])* const $name: &str = $sql;)+
        /// Every statement of this file, by name.
        pub(super) const STATEMENTS: &[(&str, &str)] = &[$((stringify!($name), $name)),+];
    };
}

mod connect;
mod error;
mod migrate;
mod read;
mod write;

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};

pub use connect::{Database, OpenError, is_url};
pub use error::Error;
pub use read::{GroupSummary, MemberFilter, MemberRow, RoleCount};

/// The database, as the rest of the program sees it: one method per question or change.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    /// How long one statement may take, seen from here. Postgres itself gives up first
    /// (`statement_timeout`), unless it or the network hangs.
    patience: Duration,
}

impl Store {
    /// Runs `work` on a pooled connection, waiting no longer than the store's patience.
    ///
    /// A connection whose statement was given up on, by time or because the caller hung up, is
    /// closed instead of returned: the pool would wait for it to answer before counting it free.
    async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let mut lease = Lease {
            connection: Some(self.pool.acquire().await?),
        };
        let Some(connection) = lease.connection.as_deref_mut() else {
            return Err(Error::gave_up()); // cannot be: it was just put there
        };
        let done = tokio::time::timeout(self.patience, work(connection)).await;
        match done {
            Ok(result) => {
                lease.give_back();
                Ok(result?)
            }
            Err(_elapsed) => Err(Error::gave_up()),
        }
    }

    /// Answers when the database does.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
    pub async fn ping(&self) -> Result<(), Error> {
        self.run(async |connection| sqlx::Connection::ping(connection).await)
            .await
    }

    /// Closes every connection, waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Every SQL statement the store can send, with its name; for the test that prepares them.
    pub fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        read::STATEMENTS
            .iter()
            .chain(write::STATEMENTS)
            .chain(connect::STATEMENTS)
    }
}

/// A pooled connection that goes back to the pool only when its work is done.
struct Lease {
    connection: Option<PoolConnection<Postgres>>,
}

impl Lease {
    fn give_back(&mut self) {
        drop(self.connection.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}
