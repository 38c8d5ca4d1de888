//! The database. Only this room names sqlx and has SQL.
//!
//! SQL is static text beside the function that runs it. `statements!` lists it, so that a test can prepare every
//! statement against the migrated schema.

/// Defines the SQL constants of a file, and `STATEMENTS`, the list of them.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)+) => {
        $($(#[$doc])* const $name: &str = $sql;)+
        /// All statements of this file, with their names.
        pub(in crate::store) const STATEMENTS: &[(&str, &str)] = &[$((stringify!($name), $name)),+];
    };
}

#[macro_use]
mod columns;
mod emptying;
mod error;
mod lookups;
mod postgres;
#[macro_use]
mod read;
mod reconcile;
mod rejected;
mod write;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use lookups::Lookups;
use postgres::{Connector, Kind, Pool};
use write::Touched;

pub use columns::{GroupRow, MemberRow, SHORT_ROW};
pub use error::{Error, OpenError, UnfitSession};
pub use lookups::SoughtMember;
pub use postgres::{Database, UrlError, check_url};
pub use read::{
    Found, GroupFilter, GroupSummary, MemberFilter, MemberState, PAGE_BYTES, Page, RoleCount, Room,
};
pub(crate) use reconcile::run_counters;
pub use reconcile::{
    ComparedMember, Coverage, Finished, KnownGroup, KnownVersion, Lease, LeaseOf, MarksByReason,
    Named, ReconcileStart, Run, RunCounts, TOO_MANY_REMOVALS,
};
pub use rejected::RejectedSummary;
pub use write::{Drainer, Failed, Writer, Written};

statements! {
    /// Sets a longer timeout for the rest of a transaction.
    ALLOW_LONG_STATEMENT = "SET LOCAL statement_timeout = '60s'";
}

/// Time limit of housekeeping: that of [`ALLOW_LONG_STATEMENT`], and a little more.
const HOUSEKEEPING_TIMEOUT: Duration = Duration::from_secs(65);

/// The database for the rest of the program. It has one method for each read or change. Each returns
/// [`Error::Transient`] while the database is away.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
    /// Set when the schema is up to date.
    prepared: Arc<OnceCell<()>>,
    /// Connections for all but the lanes, the drain and the leases.
    pool: Arc<Pool>,
    lookups: Arc<Lookups>,
    /// Makes the connections of the lanes.
    lane_connector: Arc<Connector>,
    /// Makes the connection of the drain of a spool.
    drain_connector: Arc<Connector>,
    /// Makes one or two connections that hold leases.
    lease_connector: Arc<Connector>,
    /// Users and groups that callbacks have changed lately.
    touched: Touched,
    /// Number of lanes.
    pub lanes: usize,
    /// Time limit of one write of a lane.
    pub lane_timeout: Duration,
    /// Time limit of a wait for a lock, for lanes.
    pub lane_lock_timeout: Duration,
    /// Maximum number of connections.
    pub max_connections: usize,
    /// Time limit of one read or change: its permit, its connection and its statement. Postgres ends a statement
    /// earlier (`statement_timeout`), unless it or the network hangs.
    timeout: Duration,
}

impl Database {
    /// Connects, checks the server, migrates the schema, and makes the store.
    pub async fn open(&self) -> Result<Store, OpenError> {
        self.migrate().await?;
        Ok(self.store())
    }
}

impl Store {
    /// Runs a read.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        self.pool.run(Kind::Read, deadline, work).await
    }

    /// Runs a write without a lane that may run twice.
    async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        self.pool.run(Kind::Write, deadline, work).await
    }

    /// Runs a write that must not run twice. The caller gets an error if the answer is lost.
    async fn write_once<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.timeout;
        self.pool.run(Kind::WriteOnce, deadline, work).await
    }

    /// Runs a background statement that may read a whole table and may run twice.
    async fn housekeep<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let work = async |connection: &mut PgConnection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(ALLOW_LONG_STATEMENT)
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
        let deadline = Instant::now() + HOUSEKEEPING_TIMEOUT;
        self.pool.run(Kind::Write, deadline, work).await
    }

    /// Checks the server and migrates the schema, once, before the first write.
    pub async fn prepare(&self) -> Result<(), OpenError> {
        let migrate = || self.database.migrate();
        self.prepared.get_or_try_init(migrate).await?;
        Ok(())
    }

    /// True after [`Self::prepare`]. Before that there may be no tables.
    pub fn is_prepared(&self) -> bool {
        self.prepared.initialized()
    }

    /// Makes the writer of a lane. `of_spool` has the id of the spool that takes unwritten changes, and the number of
    /// the lane, from 1.
    pub fn writer(&self, of_spool: Option<(i64, i16)>) -> Writer {
        let connector = Arc::clone(&self.lane_connector);
        Writer::new(connector, self.touched.clone(), of_spool)
    }

    /// Makes the writer that drains a spool.
    pub fn drainer(&self, spool_id: i64) -> Drainer {
        let connector = Arc::clone(&self.drain_connector);
        Drainer::new(connector, self.touched.clone(), spool_id)
    }

    /// Returns the number of connections with work, and of idle ones.
    pub fn connections(&self) -> (usize, usize) {
        // A connection that holds a lease waits for the end of the lease.
        let connectors = [
            &self.lane_connector,
            &self.drain_connector,
            &self.lease_connector,
        ];
        let counts = connectors.into_iter().map(|connector| connector.count());
        counts.fold(self.pool.connector.count(), |(used, idle), (u, i)| {
            (used + u, idle + i)
        })
    }

    /// Returns when the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        self.read(async |connection| connection.ping().await).await
    }

    /// Waits for the work in the pool and closes its connections. Lanes, the drain and leases close their own.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Returns all SQL statements with their names, for the test that prepares them.
    pub fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let files = [
            STATEMENTS,
            emptying::STATEMENTS,
            lookups::STATEMENTS,
            postgres::STATEMENTS,
            postgres::migrate::STATEMENTS,
            postgres::session::STATEMENTS,
            read::groups::PAGES,
            read::groups::STATEMENTS,
            read::members::PAGES,
            reconcile::compared::PAGES,
            reconcile::compared::STATEMENTS,
            reconcile::marks::STATEMENTS,
            reconcile::runs::STATEMENTS,
            rejected::STATEMENTS,
            write::STATEMENTS,
            write::rows::STATEMENTS,
        ];
        files.into_iter().flatten()
    }
}
