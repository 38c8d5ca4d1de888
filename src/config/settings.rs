//! The structs of settings, made of the values of the table, and the conditions between settings.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::cli::Command;
use super::form::list;
use super::table::{Errors, Values};
use crate::domain::{Operators, UserId};
use crate::http::{AccessSettings, BodySettings, HttpTimeouts};
use crate::ingest::Retention;
use crate::local_postgres::Search;
use crate::openim;
use crate::reconcile;
use crate::secret::Secret;
use crate::store;
use crate::telemetry::LogSettings;

/// Timeout of one call of OpenIM's API. There is no setting for it, because a page of members takes a moment.
const OPENIM_TIMEOUT: Duration = Duration::from_secs(15);

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

impl Config {
    /// Reads the settings of a subcommand. `given` returns the value of a setting by its name, unless the default
    /// counts.
    ///
    /// # Errors
    /// All settings that are not valid, each with its name.
    pub fn from_values(
        given: impl Fn(&'static str) -> Option<OsString>,
        command: &Command,
    ) -> Result<Self, Errors> {
        let mut errors = Errors::default();
        let values = Values::read(given, &mut errors);
        check(&values, command, &mut errors);
        match assemble(values) {
            Some(config) if errors.0.is_empty() => Ok(config),
            _ => Err(errors),
        }
    }
}

/// Adds the errors that are not errors of one setting alone.
fn check(values: &Values, command: &Command, errors: &mut Errors) {
    let of_keys = ["CALLBACK_PASSWORD:", "API_TOKEN:"];
    let is_of_keys = |error: &String| of_keys.iter().any(|name| error.starts_with(name));
    let keys_are_valid = !errors.0.iter().any(is_of_keys);
    let is_complete = values.CALLBACK_PASSWORD.is_some() && values.API_TOKEN.is_some();
    let is_reachable = |addr: SocketAddr| !addr.ip().is_loopback();
    if *command == Command::Serve
        && keys_are_valid
        && values.LISTEN_ADDR.is_some_and(is_reachable)
        && values.ALLOW_ANONYMOUS == Some(false)
        && !is_complete
    {
        errors.add(
            "LISTEN_ADDR",
            "a loopback address (127.0.0.1 or ::1), or both CALLBACK_PASSWORD and API_TOKEN, or \
             ALLOW_ANONYMOUS=true: without keys everyone who reaches the port can read and change the \
             mirror",
        );
    }
    let variable = |name: &'static str| std::env::var(name).ok();
    if let Some(url) = &values.DATABASE_URL
        && let Err(error) = store::check_url(url, variable)
    {
        errors.add(error.setting, &error.expected);
    }
    if let (Some(body), Some(memory)) = (values.MAX_BODY_BYTES, values.MAX_BODY_MEMORY)
        && (memory as usize) < 2 * body
    {
        let expected = format!("at least twice MAX_BODY_BYTES, so {}", 2 * body);
        errors.add("MAX_BODY_MEMORY", &expected);
    }
    let admin = values.OPENIM_ADMIN_USER_ID.clone();
    if admin.is_some_and(|admin| UserId::parse(admin).is_err()) {
        errors.add("OPENIM_ADMIN_USER_ID", "a user id of 1 to 1,024 bytes");
    }
    if matches!(command, Command::Reconcile(_)) && values.OPENIM_API_URL.is_none() {
        errors.add(
            "OPENIM_API_URL",
            "the address of OpenIM's API, such as http://openim:10002, with OPENIM_ADMIN_USER_ID and \
             OPENIM_SECRET: without them there is nothing to compare with",
        );
    }
}

/// The structs. `None` if a value that has to be there is not.
fn assemble(values: Values) -> Option<Config> {
    let data_dir = values.DATA_DIR.or_else(default_data_dir);
    let spool_dir = values.SPOOL_DIR;
    let admin = values.OPENIM_ADMIN_USER_ID;
    let mut operators = values.OPENIM_OPERATOR_USER_IDS.unwrap_or_default();
    operators.extend(admin.clone().and_then(|id| UserId::parse(id).ok()));
    let secrets = |texts: Vec<String>| texts.into_iter().map(Secret::from).collect();
    let passwords = [values.CALLBACK_PASSWORD, values.CALLBACK_PASSWORD_PREVIOUS];
    let tokens = values.API_TOKEN.unwrap_or_default();
    let tokens = list(&tokens).filter(|token| !token.is_empty());
    let path = std::env::var_os("PATH");
    Some(Config {
        listen_addr: values.LISTEN_ADDR?,
        metrics_addr: values.METRICS_ADDR,
        access: AccessSettings {
            callback_username: values.CALLBACK_USERNAME?,
            callback_passwords: secrets(passwords.into_iter().flatten().collect()),
            api_tokens: secrets(tokens.map(str::to_owned).collect()),
            allow_anonymous: values.ALLOW_ANONYMOUS?,
        },
        database: DatabaseSettings {
            url: values.DATABASE_URL.map(Secret::from),
            schema: values.DATABASE_SCHEMA?,
            pool_size: values.DATABASE_POOL_SIZE?,
            timeout: values.DATABASE_TIMEOUT_MS?,
        },
        spool: SpoolSettings {
            dir: spool_dir.or_else(|| Some(data_dir.as_ref()?.join("spool"))),
            after: values.SPOOL_AFTER_MS?,
            max_bytes: values.SPOOL_MAX_BYTES?,
        },
        data_dir,
        search: Search {
            bin_dir: values.PG_BIN_DIR,
            path: path.map_or_else(Vec::new, |path| std::env::split_paths(&path).collect()),
        },
        body: BodySettings {
            max_bytes: values.MAX_BODY_BYTES?,
            max_memory: values.MAX_BODY_MEMORY?,
        },
        max_answer_memory: values.MAX_ANSWER_MEMORY?,
        callback_next_code: values.CALLBACK_NEXT_CODE?,
        operators: Operators::new(operators),
        openim: match (values.OPENIM_API_URL, admin, values.OPENIM_SECRET) {
            (Some(url), Some(admin_user_id), Some(secret)) => Some(openim::OpenimAccess {
                url: url.trim_end_matches('/').to_owned(),
                admin_user_id,
                secret: secret.into(),
                timeout: OPENIM_TIMEOUT,
            }),
            _ => None,
        },
        reconcile: reconcile::ReconcileSettings {
            interval: values.RECONCILE_INTERVAL_SECS?,
            full_interval: values.RECONCILE_FULL_INTERVAL_SECS?,
            delay: values.RECONCILE_DELAY_MS?,
            settling: reconcile::SETTLING_TIMEOUT,
            concurrency: values.RECONCILE_CONCURRENCY?,
        },
        rejected: Retention {
            keep_days: values.REJECTED_KEEP_DAYS?,
            max_bytes: values.REJECTED_MAX_BYTES?,
        },
        stop: StopSettings {
            delay: values.SHUTDOWN_DELAY_MS?,
            timeout: values.SHUTDOWN_TIMEOUT_SECS?,
        },
        timeouts: HttpTimeouts::default(),
        log: LogSettings {
            format: values.LOG_FORMAT?,
            filter: values.RUST_LOG?,
        },
    })
}

/// /var/lib for root, the XDG data folder for other users.
fn default_data_dir() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")))?
    };
    Some(data.join("openim-group-mirror"))
}
