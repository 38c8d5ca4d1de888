//! Every setting. The only reader of the environment.

mod flags;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use flags::Command;

use crate::local_postgres::Search;

/// Every setting, parsed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen_addr: SocketAddr,
    /// Where the mirror is kept.
    pub database: DatabaseSettings,
    /// Folder of everything we keep on disk; absent only where no home can be told.
    pub data_dir: Option<PathBuf>,
    /// Where the private Postgres' programs are.
    pub search: Search,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// See `--help`.
    pub callback_next_code: i32,
    /// Longest time to finish open requests when stopping.
    pub shutdown_timeout: Duration,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// A tracing filter.
    pub log_filter: String,
}

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Unset: the private Postgres.
    pub url: Option<Secret>,
    /// The schema of the mirror's tables.
    pub schema: String,
    /// Most connections at a time.
    pub pool_size: u32,
    /// Bounds the wait for a connection, and each statement.
    pub timeout: Duration,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A value that prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Every configuration error, one a line.
#[derive(Debug, Default)]
pub struct Errors(Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is not usable:")?;
        self.0.iter().try_for_each(|e| write!(f, "\n  {e}"))
    }
}

impl std::error::Error for Errors {}

/// Reads `./.env` into the environment, where a name is not set already. Call it while the
/// process has one thread.
///
/// # Errors
/// When the file is there and cannot be read; the text does not quote it.
pub fn load_dotenv() -> Result<(), Errors> {
    match dotenvy::from_path(".env") {
        Ok(()) => Ok(()),
        Err(dotenvy::Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(dotenvy::Error::Io(e)) => Err(Errors(vec![format!("./.env: {e}")])),
        Err(_quotes_the_line) => Err(Errors(vec![
            "./.env: expected lines of the form NAME=value, values with spaces in quotes".into(),
        ])),
    }
}

/// Reads the arguments and the environment. `--help`, `--version` and usage errors print what
/// they have to say and end the process.
///
/// # Errors
/// All settings that cannot be used, each named.
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<(Command, Config), Errors> {
    flags::read(args)
}
