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
mod rejected;
mod write;

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};
use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

pub use connect::{Database, OpenError, is_url};
pub use error::Error;
pub use read::{GroupSummary, MemberFilter, MemberRow, RoleCount};
pub use rejected::RejectedSummary;

statements! {
    /// For the rest of a transaction.
    WITHOUT_HASTE = "SET LOCAL statement_timeout = '60s'";
}

/// How long housekeeping may take: as [`WITHOUT_HASTE`] says, and a little.
const LONG: Duration = Duration::from_secs(65);

/// The database, as the rest of the program sees it: one method per question or change.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    /// As many turns as reads may have connections.
    reads: Arc<Semaphore>,
    /// How long one question or change may take in all, seen from here: its turn, a connection,
    /// the statement. Postgres itself gives up on a statement first (`statement_timeout`), unless
    /// it or the network hangs.
    patience: Duration,
}

impl Store {
    /// Runs a read. Reads leave a few connections to writes: a callback that finds none is lost.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.patience;
        let turn = Arc::clone(&self.reads).acquire_owned();
        let turn = timeout_at(deadline, turn).await;
        let turn = turn.map_err(|_elapsed| Error::gave_up())?;
        // The semaphore is never closed.
        self.run(turn.ok(), deadline, work).await
    }

    /// Runs a write.
    async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.patience;
        self.run(None, deadline, work).await
    }

    /// Runs a statement that nobody waits for and that may read a whole table.
    async fn housekeep<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        self.run(None, Instant::now() + LONG, async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(WITHOUT_HASTE)
                .execute(&mut *transaction)
                .await?;
            let done = work(&mut transaction).await?;
            transaction.commit().await?;
            Ok(done)
        })
        .await
    }

    /// Runs `work` on a pooled connection. The wait for one and the work have one deadline.
    async fn run<T>(
        &self,
        turn: Option<OwnedSemaphorePermit>,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let acquired = timeout_at(deadline, self.pool.acquire()).await;
        let mut lease = Lease {
            connection: Some(acquired.map_err(|_elapsed| Error::gave_up())??),
            turn,
            patience: self.patience,
        };
        let Some(connection) = lease.connection.as_deref_mut() else {
            return Err(Error::gave_up()); // cannot be: it was just put there
        };
        let done = timeout_at(deadline, work(connection)).await;
        match done {
            Ok(result) => {
                if let Some(connection) = lease.connection.take() {
                    let (turn, patience) = (lease.turn.take(), self.patience);
                    // The turn is over when the place is free again, not before.
                    tokio::spawn(async move {
                        give_back(connection, patience).await;
                        drop(turn);
                    });
                }
                Ok(result?)
            }
            Err(_elapsed) => Err(Error::gave_up()),
        }
    }

    /// The pool's connections: how many are at work, and how many wait for it.
    pub fn connections(&self) -> (usize, usize) {
        let idle = self.pool.num_idle();
        let used = (self.pool.size() as usize).saturating_sub(idle);
        (used, idle)
    }

    /// Most connections of the pool.
    pub fn max_connections(&self) -> usize {
        self.pool.options().get_max_connections() as usize
    }

    /// Answers when the database does.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
    pub async fn ping(&self) -> Result<(), Error> {
        self.read(async |connection| connection.ping().await).await
    }

    /// Closes every connection, waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Every SQL statement the store can send, with its name; for the test that prepares them.
    pub fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        read::STATEMENTS
            .iter()
            .chain(rejected::STATEMENTS)
            .chain(write::STATEMENTS)
            .chain(connect::STATEMENTS)
            .chain(STATEMENTS)
    }
}

/// Returns a connection to the pool. sqlx pings it on the way, without a limit and keeping its
/// place, so one whose network went silent is given up on here; that frees the place.
async fn give_back(mut connection: PoolConnection<Postgres>, patience: Duration) {
    let _ = tokio::time::timeout(patience, connection.return_to_pool()).await;
}

/// A pooled connection at work.
///
/// Where its statement was given up on, by time or because the caller hung up, Postgres may still
/// be at it. The connection then keeps its place in the pool, so that the pool stays the bound it
/// is meant to be, until it answers; one that does not is closed. (sqlx's own way back to the pool
/// would wait without end.)
struct Lease {
    connection: Option<PoolConnection<Postgres>>,
    turn: Option<OwnedSemaphorePermit>,
    patience: Duration,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (connection, turn) = (self.connection.take(), self.turn.take());
        let (Some(mut connection), Ok(runtime)) = (connection, Handle::try_current()) else {
            return;
        };
        let patience = self.patience;
        runtime.spawn(async move {
            let answered = tokio::time::timeout(patience, connection.ping()).await;
            if matches!(answered, Ok(Ok(()))) {
                give_back(connection, patience).await;
            } else {
                drop(connection.detach());
            }
            drop(turn);
        });
    }
}
