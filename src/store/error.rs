//! Errors of the database, told apart by SQLSTATE and never by the message's text.

use std::fmt;
use std::sync::Arc;

use sqlx::migrate::MigrateError;

use super::postgres::UrlError;

/// An error of the store.
#[derive(Clone, Debug)]
pub enum Error {
    /// The database is away or slow, or refuses to work now. The same call may succeed later.
    Transient(Cause),
    /// The database refused the values. The same call can never succeed.
    Permanent(Cause),
    /// The answer cannot be read, because of a bug or of a row that another program wrote. It can be corrected, so for
    /// a write this equals a database that is away.
    Unreadable(Cause),
}

/// Cause of an error. Callers never see it.
#[derive(Clone, Debug)]
pub enum Cause {
    /// Error of sqlx, shared by several callers.
    Sqlx(Arc<sqlx::Error>),
    /// No answer came in time.
    GaveUp,
    /// The session is unfit.
    Session(UnfitSession),
}

impl Error {
    /// Makes the error of a timeout here.
    pub fn gave_up() -> Self {
        Error::Transient(Cause::GaveUp)
    }

    fn cause(&self) -> &Cause {
        let (Error::Transient(cause) | Error::Permanent(cause) | Error::Unreadable(cause)) = self;
        cause
    }

    /// True if another transaction's lock was in the way.
    pub fn is_lock_error(&self) -> bool {
        self.has_code(&LOCK_CODES)
    }

    /// True if Postgres ended the transaction in favour of another. It can be tried again at once.
    pub fn is_conflict(&self) -> bool {
        self.has_code(&CONFLICT_CODES)
    }

    /// True if the call took too long, by itself or because of others.
    pub fn is_timeout(&self) -> bool {
        matches!(self.cause(), Cause::GaveUp) || self.has_code(&["57014"]) // query_canceled
    }

    /// True if no answer came, so that the statement may still run.
    pub(super) fn may_still_run(&self) -> bool {
        matches!(self.cause(), Cause::GaveUp)
    }

    /// True if the state of the session was the cause and nothing was done. Another session may succeed.
    pub fn is_session_error(&self) -> bool {
        self.has_code(&SESSION_CODES)
    }

    /// True if an administrator must correct the way to the database.
    pub fn is_setup_error(&self) -> bool {
        matches!(self.cause(), Cause::Session(_))
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        match self {
            Error::Transient(Cause::Sqlx(error)) => error
                .as_database_error()
                .and_then(|error| error.code())
                .is_some_and(|code| codes.contains(&code.as_ref())),
            _ => false,
        }
    }

    /// True if a new connection may succeed: this one is gone or silent, or its server takes no writes.
    pub fn is_connection_error(&self) -> bool {
        let error = match self.cause() {
            Cause::GaveUp | Cause::Session(_) => return true,
            Cause::Sqlx(error) => error,
        };
        if self.is_session_error() {
            return true;
        }
        match &**error {
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                let is = |start: &&str| code.starts_with(start);
                CONNECTION_CODES.iter().any(is)
            }),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
            // A transaction was already open, or had failed.
            sqlx::Error::BeginFailed => true,
            _ => false,
        }
    }
}

/// SQLSTATE classes that no retry can cure: cardinality, data, constraint, program limit. All other causes can be
/// removed on the database's side, for example a revoked right or a missing table.
const PERMANENT_CLASSES: [&str; 4] = ["21", "22", "23", "54"];

/// Starts of SQLSTATEs after which the connection is gone or useless: it failed; the server ends it (shutdown, restart
/// after a crash, idle session, long transaction) or has no free one; the role is refused; the server is read-only,
/// like a former primary.
const CONNECTION_CODES: [&str; 8] = [
    "08", "25006", "25P03", "25P04", "28", "3D000", "53300", "57P",
];

/// SQLSTATEs of a statement that cannot begin in its session: the type of a column has changed since it was prepared
/// (0A000); the prepared statement is missing or is another one, because a pooler has cleared or replaced the session
/// (26000, 42P05); a failed transaction is still open (25P02).
const SESSION_CODES: [&str; 4] = ["0A000", "26000", "42P05", "25P02"];

/// SQLSTATEs of a statement that another transaction's locks stopped.
const LOCK_CODES: [&str; 3] = ["55P03", "40P01", "40001"];
/// SQLSTATEs of [`LOCK_CODES`] that a new attempt does not meet again.
const CONFLICT_CODES: [&str; 2] = ["40P01", "40001"];

impl From<UnfitSession> for Error {
    fn from(unfit: UnfitSession) -> Self {
        Error::Transient(Cause::Session(unfit))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let is_permanent = |database: &dyn sqlx::error::DatabaseError| {
            let code = database.code();
            let class = code.as_ref().and_then(|code| code.get(..2));
            class.is_some_and(|class| PERMANENT_CLASSES.contains(&class))
        };
        let kind = match &error {
            sqlx::Error::Database(database) if is_permanent(&**database) => Error::Permanent,
            // A column is missing or has another type.
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. } => Error::Unreadable,
            _ => Error::Transient,
        };
        kind(Cause::Sqlx(Arc::new(error)))
    }
}

impl fmt::Display for Error {
    /// Writes SQLSTATE and message for the log, without the detail: that quotes values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            Cause::GaveUp => f.write_str("no answer from the database in time"),
            Cause::Session(unfit) => unfit.fmt(f),
            Cause::Sqlx(error) => match &**error {
                sqlx::Error::Database(error) => write!(
                    f,
                    "SQLSTATE {}: {}",
                    error.code().as_deref().unwrap_or("none"),
                    error.message()
                ),
                error => error.fmt(f),
            },
        }
    }
}

impl std::error::Error for Error {}

/// Reason why a session cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitSession {
    /// The pooler refuses start-up parameters.
    #[error(
        "a pooler refuses a start-up parameter: add extra_float_digits and options to its \
         ignore_startup_parameters, and set its pool_mode to session for this database"
    )]
    Refused,
    /// Another client uses the same server process.
    #[error(
        "a pooler gives each transaction another session: set its pool_mode to session for this \
         database, or connect to Postgres directly"
    )]
    Shared,
    /// The settings have no effect.
    #[error(
        "the schema and the timeouts that were asked for are not in force: something between here and \
         Postgres drops the start-up parameter options (ignore_startup_parameters of a pooler) and \
         changes the session; connect to Postgres directly"
    )]
    NotAsAsked,
}

impl UnfitSession {
    /// Finds the reason in an error of a connect. PgBouncer has one SQLSTATE for all its errors, so the text decides.
    /// PgBouncer does not translate it.
    pub(super) fn of_connect_error(error: &sqlx::Error) -> Option<Self> {
        let error = error.as_database_error()?;
        let is_refused = error.code().is_some_and(|code| code == "08P01")
            && error.message().contains("startup parameter");
        is_refused.then_some(Self::Refused)
    }
}

/// SQLSTATEs of a server that starts or stops, or that has no free connection.
const UNREACHABLE: [&str; 4] = ["57P01", "57P02", "57P03", "53300"];

/// Oldest major version of PostgreSQL that the mirror can use.
pub(super) const OLDEST_MAJOR: i32 = 14;

/// Reason why the database cannot be opened. It is for the administrator, never for a caller. The first value of a
/// variant is the database, without its password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not that of a Postgres database, or asks for something that the mirror cannot do.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// A file that the URL names cannot be read.
    #[error("DATABASE_URL: {parameter}: cannot read {path}: {error}")]
    File {
        /// The parameter that names it.
        parameter: &'static str,
        /// Its path.
        path: String,
        /// The error of the system.
        error: std::io::Error,
    },
    /// A pooler changes the session.
    #[error("cannot use {0}: {1}")]
    Session(String, UnfitSession),
    /// There is no connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, sqlx::Error),
    /// There is a connection, but a check or a preparation failed.
    #[error("cannot use {0}: {1}")]
    Prepare(String, sqlx::Error),
    /// TLS does not work as `sslmode` requires. The text has the cause and the solution.
    #[error("cannot connect to {0} by TLS: {1}")]
    Tls(String, String),
    /// The role lacks a right. The text says which, and how to grant it.
    #[error("cannot use {0}: {1}")]
    Right(String, String),
    /// The schema is out of date, and the database is read-only.
    #[error(
        "cannot bring the schema of {0} up to date: the database is read-only, because it is a \
         standby or default_transaction_read_only is on; DATABASE_URL has to lead to one that takes writes"
    )]
    ReadOnly(String),
    /// The server is too old for the mirror's statements.
    #[error("{0} is PostgreSQL {1}; the mirror needs {OLDEST_MAJOR} or later")]
    Version(String, i32),
    /// The encoding of the database would lose texts.
    #[error("the encoding of {0} is {1}; the mirror needs a database with encoding UTF8")]
    Encoding(String, String),
    /// A migration failed.
    #[error("cannot bring the schema of {0} up to date: {1}")]
    Migrate(String, MigrateError),
    /// A table or another object has a name that the mirror needs.
    #[error(
        "cannot make the schema of {0}: {1}. That is another application's; DATABASE_SCHEMA gives \
         the mirror a schema of its own"
    )]
    Taken(String, MigrateError),
}

impl OpenError {
    /// True if the cause can be removed on the database's side while the service waits. Otherwise the service cannot
    /// use the database.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Connect(..)
            | Self::Prepare(..)
            | Self::Tls(..)
            | Self::Right(..)
            | Self::ReadOnly(_)
            | Self::Taken(..) => true,
            Self::Migrate(_, error) => matches!(
                error,
                MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)
            ),
            Self::Url(_)
            | Self::Session(..)
            | Self::File { .. }
            | Self::Version(..)
            | Self::Encoding(..) => false,
        }
    }

    /// True if the database does not answer, or not yet. Otherwise an administrator must act.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect(_, error) | Self::Prepare(_, error) => match error {
                sqlx::Error::Database(error) => error
                    .code()
                    .is_some_and(|code| UNREACHABLE.contains(&code.as_ref())),
                _ => true,
            },
            _ => false,
        }
    }
}
