//! The structs of settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::Operators;
use crate::http::{AccessSettings, BodySettings, HttpTimeouts};
use crate::ingest::Retention;
use crate::local_postgres::Search;
use crate::openim;
use crate::reconcile;
use crate::secret::Secret;
use crate::telemetry::LogSettings;

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to listen on.
    pub listen_addr: SocketAddr,
    /// Address of the metrics alone. Unset: they are on `listen_addr`.
    pub metrics_addr: Option<SocketAddr>,
    /// Keys of callbacks and reads.
    pub access: AccessSettings,
    /// The database of the mirror.
    pub database: DatabaseSettings,
    /// The spool.
    pub spool: SpoolSettings,
    /// Folder of all files of the service. Unset only if there is no home folder.
    pub data_dir: Option<PathBuf>,
    /// Folders with the programs of the private Postgres.
    pub search: Search,
    /// Limits of request bodies.
    pub body: BodySettings,
    /// Limit of all answers to reads together, in bytes.
    pub max_answer_memory: u32,
    /// `nextCode` of some replies, see `--help`.
    pub callback_next_code: i32,
    /// User ids with which backends call OpenIM's API.
    pub operators: Operators,
    /// Access to OpenIM's API. Unset: the mirror is not compared with OpenIM.
    pub openim: Option<openim::OpenimAccess>,
    /// Intervals and limits of runs.
    pub reconcile: reconcile::ReconcileSettings,
    /// Limits of rejected callbacks.
    pub rejected: Retention,
    /// Times of the stop.
    pub stop: StopSettings,
    /// Timeouts of requests.
    pub timeouts: HttpTimeouts,
    /// Form and filter of the log.
    pub log: LogSettings,
}

/// Times of the stop.
#[derive(Clone, Copy, Debug)]
pub struct StopSettings {
    /// Delay in which the service goes on, but is not ready.
    pub delay: Duration,
    /// Timeout of everything after that.
    pub timeout: Duration,
}

/// The database.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Unset: the private Postgres.
    pub url: Option<Secret>,
    /// Schema of the tables.
    pub schema: String,
    /// Limit of connections.
    pub pool_size: u32,
    /// Timeout of a connection, and of each statement of a read.
    pub timeout: Duration,
}

/// The spool.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Folder. Unset only if there is no home folder.
    pub dir: Option<PathBuf>,
    /// Timeout of a change in Postgres before it goes to the spool.
    pub after: Duration,
    /// Limit in bytes.
    pub max_bytes: u64,
}
