//! The composition root: it builds the parts, runs them and stops them in order. One file a subcommand.

mod database;
mod healthcheck;
mod reconcile;
mod rejected;
mod serve;
mod spool;
mod systemd;
mod webhooks;

use std::net::SocketAddr;
use std::time::Duration;

use crate::ingest;
use crate::local_postgres;
use crate::openim;
use crate::reconcile as reconciling;
use crate::store::{self, OpenError};
use crate::tasks::EndedEarly;
use crate::telemetry;

pub use database::migrate;
pub use healthcheck::healthcheck;
pub use reconcile::reconcile;
pub use rejected::rejected;
pub use serve::{run, serve};
pub use spool::drain;
pub use webhooks::openim_config;

/// Timeout of the private Postgres to stop, if less is left. After it, its wrapper goes on without us.
const PRIVATE_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why a subcommand fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, or not of this machine.
    #[error("cannot listen on {addr} ({setting}): {error}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The setting with the address.
        setting: &'static str,
        /// The error of the system.
        error: std::io::Error,
    },
    /// There is no database.
    #[error(
        "there is no database to use: DATABASE_URL is not set, and {0}\n\
         Three ways out:\n  \
         1. install PostgreSQL's server programs (Debian: sudo apt-get install postgresql; \
         macOS: brew install postgresql), or name their folder in PG_BIN_DIR\n  \
         2. set DATABASE_URL=postgres://user:password@host:5432/database\n  \
         3. make .env && docker compose up"
    )]
    NoDatabase(local_postgres::Error),
    /// The private Postgres cannot be started.
    #[error("the private Postgres cannot be used: {0}")]
    Private(local_postgres::Error),
    /// There is no folder for the private Postgres.
    #[error("DATA_DIR: expected a folder for the private Postgres (there is no HOME to put it in)")]
    NoDataDir,
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] crate::spool::SpoolError),
    /// There is no folder for the spool.
    #[error("SPOOL_DIR: expected a folder for callbacks that wait (there is no HOME to put it in)")]
    NoSpoolDir,
    /// Some entries of the spool could not be written.
    #[error("the spool is not drained, {left} entries wait: {error}")]
    Drain {
        /// Number of entries that are left.
        left: u64,
        /// The reason.
        error: ingest::DrainError,
    },
    /// The server failed.
    #[error("serving failed: {0}")]
    Serve(std::io::Error),
    /// A task ended early.
    #[error("{0}")]
    Task(EndedEarly),
    /// The metrics cannot be made.
    #[error("the metrics cannot be made: {0}")]
    Metrics(#[from] telemetry::Error),
    /// The database failed.
    #[error("the database: {0}")]
    Store(#[from] store::Error),
    /// A change could not be written.
    #[error("the database: {0}")]
    Ingest(#[from] ingest::Error),
    /// Rejected callbacks were not found, or not applied.
    #[error("{0}")]
    Rejected(String),
    /// OpenIM's API cannot be used.
    #[error(transparent)]
    OpenIm(#[from] openim::Error),
    /// A run has stopped before its end.
    #[error("not compared to the end: {0}")]
    Reconcile(#[from] reconciling::Error),
    /// There is no access to OpenIM's API.
    #[error("OPENIM_API_URL, OPENIM_ADMIN_USER_ID and OPENIM_SECRET are not set")]
    NoOpenIm,
    /// Number of groups that a run has skipped, or that an operator must decide about.
    #[error("groups that were left as they are: {0}")]
    Left(i64),
    /// Number of values in which a dry run has found drift.
    #[error("values that are not as in OpenIM: {0}")]
    Drift(u64),
    /// The service is not healthy.
    #[error("{0}")]
    Unhealthy(String),
    /// The output cannot be written.
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}
