//! Every setting. The only reader of the environment.

mod flags;
mod parse;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use flags::{
    Command, ConfigFormat, OpenimConfig, OpenimVersion, Reconcile, RejectedCommand, Selection,
};

use crate::domain::Operators;
use crate::ingest::Retention;
use crate::local_postgres::Search;
use crate::openim;
use crate::reconcile;
use crate::secret::Secret;

/// Every setting, parsed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen_addr: SocketAddr,
    /// Where to serve the metrics alone; unset: on `listen_addr`.
    pub metrics_addr: Option<SocketAddr>,
    /// Who is let in.
    pub access: AccessSettings,
    /// Where the mirror is kept.
    pub database: DatabaseSettings,
    /// Where changes wait while the database is away.
    pub spool: SpoolSettings,
    /// Folder of everything we keep on disk; absent only where no home can be told.
    pub data_dir: Option<PathBuf>,
    /// Where the private Postgres' programs are.
    pub search: Search,
    /// How much of bodies is held.
    pub body: BodySettings,
    /// How much of answers to reads is held, in bytes.
    pub max_answer_memory: u32,
    /// See `--help`.
    pub callback_next_code: i32,
    /// Who calls OpenIM's API for others.
    pub operators: Operators,
    /// How to reach OpenIM; unset: the mirror is not compared with it.
    pub openim: Option<openim::OpenimAccess>,
    /// When it is compared.
    pub reconcile: reconcile::ReconcileSettings,
    /// How long rejected callbacks are kept.
    pub rejected: Retention,
    /// How to stop.
    pub stop: StopSettings,
    /// How long senders are waited for.
    pub patience: Patience,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// A tracing filter.
    pub log_filter: String,
}

/// The keys of both doors.
#[derive(Clone, Debug)]
pub struct AccessSettings {
    /// Without colons and control characters.
    pub callback_username: String,
    /// The password and the one before; empty: callbacks need none.
    pub callback_passwords: Vec<Secret>,
    /// Visible ASCII each; empty: reads need none.
    pub api_tokens: Vec<Secret>,
    /// Whether to do without keys where others can reach us.
    pub allow_anonymous: bool,
}

impl AccessSettings {
    /// Whether both doors have a key.
    pub fn is_complete(&self) -> bool {
        !self.callback_passwords.is_empty() && !self.api_tokens.is_empty()
    }
}

/// How much of request bodies is held.
#[derive(Clone, Copy, Debug)]
pub struct BodySettings {
    /// Largest one, in bytes.
    pub max_bytes: usize,
    /// All together, in bytes; twice `max_bytes` at least.
    pub max_memory: u32,
}

/// How long senders are waited for. Nobody has to set these: OpenIM gives up after 15 s at most.
/// Tests do.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a request, from its first byte; for the first one, from the connection.
    pub head: Duration,
    /// For a body, from its head.
    pub body: Duration,
    /// For a share of the memory, before a 503: less than OpenIM's usual 5 s.
    pub memory: Duration,
    /// For some of an answer to be taken.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(15),
            body: Duration::from_secs(15),
            memory: Duration::from_secs(3),
            answer: Duration::from_secs(30),
        }
    }
}

/// How to stop.
#[derive(Clone, Copy, Debug)]
pub struct StopSettings {
    /// How long to go on as before, but not ready.
    pub delay: Duration,
    /// After that, how long everything together may take.
    pub timeout: Duration,
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
    /// Bounds the wait for the database, and each statement of a read.
    pub timeout: Duration,
}

/// Where changes wait while the database is away.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Folder; absent only where no home can be told.
    pub dir: Option<PathBuf>,
    /// How long Postgres may take for a change before it goes there.
    pub after: Duration,
    /// Most bytes in it.
    pub max_bytes: u64,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
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
/// process has one thread. Returns the names in it that are no settings, which may be misspelt.
///
/// # Errors
/// When the file is there and cannot be read; the text does not quote it.
pub fn load_dotenv() -> Result<Vec<String>, Errors> {
    let not_understood = |error| match error {
        dotenvy::Error::Io(e) => Errors(vec![format!("./.env: {e}")]),
        _quotes_the_line => Errors(vec![
            "./.env: expected lines of the form NAME=value, values with spaces in quotes".into(),
        ]),
    };
    let lines = match dotenvy::from_path_iter(".env") {
        Err(dotenvy::Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        lines => lines.map_err(not_understood)?,
    };
    let mut unknown = Vec::new();
    for line in lines {
        let (name, _) = line.map_err(not_understood)?;
        // The others are for docker-compose.yml.
        if !flags::is_variable(&name) && !name.starts_with("POSTGRES_") {
            unknown.push(name);
        }
    }
    dotenvy::from_path(".env").map_err(not_understood)?;
    Ok(unknown)
}

/// Reads the arguments and the environment. `--help`, `--version` and usage errors print what
/// they have to say and end the process.
///
/// # Errors
/// All settings that cannot be used, each named.
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<(Command, Config), Errors> {
    flags::read(args)
}
