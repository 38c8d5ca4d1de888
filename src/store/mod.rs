//! The wall: the only place that names sqlx and holds SQL.
//!
//! SQL is static text beside the function that runs it, listed by `statements!` so that a test
//! can prepare every statement against the migrated schema.

/// Defines the SQL constants of a file and `STATEMENTS`, the list of them all.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)+) => {
        $($(#[$doc])* const $name: &str = $sql;)+
        /// Every statement of this file, by name.
        pub(super) const STATEMENTS: &[(&str, &str)] = &[$((stringify!($name), $name)),+];
    };
}

mod connect;
mod connections;
mod emptying;
mod error;
mod lookups;
mod migrate;
#[macro_use]
mod read;
mod reconcile;
mod rejected;
mod session;
mod stored;
mod tls;
mod touched;
mod url;
mod write;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout_at};

use connections::{Connector, Kind, Pool};
use lookups::Lookups;
use touched::Touched;

pub use connect::{Database, OpenError};
pub use error::Error;
pub use read::{
    Found, GroupFilter, GroupRow, GroupSummary, MemberFilter, MemberRow, MemberState, PAGE_BYTES,
    Page, RoleCount, Room, SHORT_ROW, SoughtMember,
};
pub(crate) use reconcile::run_counters;
pub use reconcile::{
    ComparedMember, Coverage, Finished, KnownGroup, KnownVersion, Lease, LeaseOf, MarksByReason,
    Named, ReconcileStart, Run, RunCounts, TOO_MANY_REMOVALS,
};
pub use rejected::RejectedSummary;
pub use session::Unfit;
pub use url::{UrlError, check_url};
pub use write::{Drainer, Failed, Writer, Written};

statements! {
    /// For the rest of a transaction.
    WITHOUT_HASTE = "SET LOCAL statement_timeout = '60s'";
}

/// How long housekeeping may take: as [`WITHOUT_HASTE`] says, and a little.
const LONG: Duration = Duration::from_secs(65);

/// The database, as the rest of the program sees it: one method per question or change.
#[derive(Clone, Debug)]
pub struct Store {
    /// Where it is.
    database: Arc<Database>,
    /// Whether its schema is up to date.
    prepared: Arc<OnceCell<()>>,
    /// Shared by all but the lanes.
    pool: Arc<Pool>,
    /// As many turns as reads may have connections of these.
    reads: Arc<Semaphore>,
    lookups: Arc<Lookups>,
    /// Makes the connections of the lanes.
    of_lanes: Arc<Connector>,
    /// Makes that of the drain of a spool.
    of_drain: Arc<Connector>,
    /// Makes those of whoever compares the mirror with OpenIM: one or two, beside all others.
    of_turns: Arc<Connector>,
    /// What callbacks have changed lately.
    touched: Touched,
    /// How many lanes there are.
    lanes: usize,
    /// How long they wait for one write.
    patience_of_lanes: Duration,
    /// How long Postgres waits for another's lock for them.
    lock_of_lanes: Duration,
    /// Most connections in all.
    size: usize,
    /// How long one question or change may take in all, seen from here: its turn, a connection,
    /// the statement. Postgres itself gives up on a statement first (`statement_timeout`), unless
    /// it or the network hangs.
    patience: Duration,
}

impl Store {
    /// Runs a read. Reads leave a connection to writes: a rejected callback that finds none is lost.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        self.read_by(Instant::now() + self.patience, work).await
    }

    /// The same with a deadline of the caller's.
    async fn read_by<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let turn = Arc::clone(&self.reads).acquire_owned();
        let turn = timeout_at(deadline, turn).await;
        let turn = turn.map_err(|_elapsed| Error::gave_up())?;
        // The semaphore is never closed.
        self.pool.run(Kind::Read, turn.ok(), deadline, work).await
    }

    /// Runs a write that does not go through a lane, and may be done twice.
    async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.patience;
        self.pool.run(Kind::Write, None, deadline, work).await
    }

    /// The same where it may not: the caller hears of an answer that was lost.
    async fn write_once<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.patience;
        self.pool.run(Kind::WriteOnce, None, deadline, work).await
    }

    /// Runs a statement that nobody waits for, that may read a whole table, and may be done twice.
    async fn housekeep<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let work = async |connection: &mut PgConnection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(WITHOUT_HASTE)
                .execute(&mut *transaction)
                .await?;
            match work(&mut transaction).await {
                Ok(done) => transaction.commit().await.map(|()| done),
                Err(error) => {
                    transaction.rollback().await?;
                    Err(error)
                }
            }
        };
        let deadline = Instant::now() + LONG;
        self.pool.run(Kind::Write, None, deadline, work).await
    }

    /// Checks the server and brings the schema up to date, once, before anything is written.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn prepare(&self) -> Result<(), OpenError> {
        let migrate = || self.database.migrate();
        self.prepared.get_or_try_init(migrate).await?;
        Ok(())
    }

    /// Whether [`Self::prepare`] has succeeded: before that there may be no tables.
    pub fn is_prepared(&self) -> bool {
        self.prepared.initialized()
    }

    /// A connection for a lane, made when it is needed. `of_spool`: the number of the spool that
    /// takes what it could not write, and of the lane, from 1.
    pub fn writer(&self, of_spool: Option<(i64, i16)>) -> Writer {
        Writer::new(Arc::clone(&self.of_lanes), self.touched.clone(), of_spool)
    }

    /// The connection that drains a spool.
    pub fn drainer(&self, spool_id: i64) -> Drainer {
        Drainer::new(Arc::clone(&self.of_drain), self.touched.clone(), spool_id)
    }

    /// How many lanes there are connections for.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// How long a lane waits for one write.
    pub fn patience_of_lanes(&self) -> Duration {
        self.patience_of_lanes
    }

    /// How long Postgres waits for another's lock for a lane.
    pub fn lock_of_lanes(&self) -> Duration {
        self.lock_of_lanes
    }

    /// How long one question may take in all.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The connections: how many are at work, and how many wait for it.
    pub fn connections(&self) -> (usize, usize) {
        let (used, idle) = self.pool.connections();
        let (used_of_lanes, idle_of_lanes) = self.of_lanes.count();
        let (used_of_drain, idle_of_drain) = self.of_drain.count();
        // Those that hold a turn wait for its end.
        let (used_of_turns, idle_of_turns) = self.of_turns.count();
        (
            used + used_of_lanes + used_of_drain + used_of_turns,
            idle + idle_of_lanes + idle_of_drain + idle_of_turns,
        )
    }

    /// Most connections.
    pub fn max_connections(&self) -> usize {
        self.size
    }

    /// Answers when the database does.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away.
    pub async fn ping(&self) -> Result<(), Error> {
        self.read(async |connection| connection.ping().await).await
    }

    /// Closes the connections of the pool, waiting for those in use. Lanes, the drain and turns close
    /// their own.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Every SQL statement the store can send, with its name; for the test that prepares them.
    pub fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        read::statements()
            .chain(emptying::STATEMENTS)
            .chain(rejected::STATEMENTS)
            .chain(reconcile::statements())
            .chain(write::statements())
            .chain(connect::STATEMENTS)
            .chain(session::STATEMENTS)
            .chain(migrate::STATEMENTS)
            .chain(STATEMENTS)
    }
}
