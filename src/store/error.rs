//! What can go wrong at the wall, told apart by SQLSTATE and never by the message's text.

use std::fmt;
use std::sync::Arc;

use super::session::Unfit;

/// An error of the store.
#[derive(Clone, Debug)]
pub enum Error {
    /// The database is away, slow, or will not let us work: the same call may succeed later.
    Transient(Cause),
    /// The same call can never succeed: the database refused the values.
    Permanent(Cause),
    /// What came back cannot be read: a mistake of ours, or somebody else's row. It can be put
    /// right, so for a write it is as if the database were away.
    Unreadable(Cause),
}

/// What the database or the way to it said. Never shown to a caller.
#[derive(Clone, Debug)]
pub enum Cause {
    /// sqlx's account of it; several may have asked.
    Sqlx(Arc<sqlx::Error>),
    /// Nothing came back in time.
    GaveUp,
    /// The session is not as it was asked for: see [`super::session`].
    Session(Unfit),
}

impl Error {
    /// Nothing came back in time.
    pub fn gave_up() -> Self {
        Error::Transient(Cause::GaveUp)
    }

    fn cause(&self) -> &Cause {
        let (Error::Transient(cause) | Error::Permanent(cause) | Error::Unreadable(cause)) = self;
        cause
    }

    /// Whether it failed for what others do at the same moment.
    pub fn is_of_lock(&self) -> bool {
        self.has_code(&OF_LOCK)
    }

    /// Whether it was chosen to give way to others, and can be tried again at once.
    pub fn is_of_conflict(&self) -> bool {
        self.has_code(&OF_CONFLICT)
    }

    /// Whether it took too long, which others may have been the cause of, or what was asked.
    pub fn is_of_time(&self) -> bool {
        matches!(self.cause(), Cause::GaveUp) || self.has_code(&["57014"]) // query_canceled
    }

    /// Whether nothing came back, so that what was asked may still be done.
    pub(super) fn is_open_ended(&self) -> bool {
        matches!(self.cause(), Cause::GaveUp)
    }

    /// Whether it failed for what the session had become, and did nothing: on another it may go
    /// well.
    pub fn is_of_session(&self) -> bool {
        self.has_code(&OF_SESSION)
    }

    /// Whether somebody has to see to how we reach the database.
    pub fn is_of_setup(&self) -> bool {
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

    /// Whether the connection is gone or silent, or leads to a server that takes no writes (any
    /// more), so that a new one may do better.
    pub fn is_of_connection(&self) -> bool {
        let error = match self.cause() {
            Cause::GaveUp | Cause::Session(_) => return true,
            Cause::Sqlx(error) => error,
        };
        if self.is_of_session() {
            return true;
        }
        match &**error {
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                let is = |start: &&str| code.starts_with(start);
                OF_CONNECTION.iter().any(is)
            }),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
            // A transaction was open already, or had failed.
            sqlx::Error::BeginFailed => true,
            _ => false,
        }
    }
}

/// SQLSTATE classes that no retry can cure: cardinality, data, constraint, program limit.
/// Everything else, a revoked right or a missing table included, can be put right on the
/// database's side.
const PERMANENT_CLASSES: [&str; 4] = ["21", "22", "23", "54"];

/// SQLSTATEs, or what they start with, after which there is no connection, or none of any use: it
/// broke; the server ends it (a shutdown, a restart after a crash, an idle session, a transaction
/// that takes too long) or has no place for it; we are not let in; it is read-only, as a server that
/// was the primary once.
const OF_CONNECTION: [&str; 8] = [
    "08", "25006", "25P03", "25P04", "28", "3D000", "53300", "57P",
];

/// SQLSTATEs of a statement that could not begin in its session: the type of a column has changed
/// since it was prepared (0A000); it is not prepared any more, or another is by its name, because
/// a pooler has cleared the session or given us another (26000, 42P05); a transaction that failed
/// is still open (25P02).
const OF_SESSION: [&str; 4] = ["0A000", "26000", "42P05", "25P02"];

/// SQLSTATEs of a statement that another's locks were in the way of.
const OF_LOCK: [&str; 3] = ["55P03", "40P01", "40001"];
/// Those of them that a new attempt does not run into again.
const OF_CONFLICT: [&str; 2] = ["40P01", "40001"];

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Self {
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
            // A column that is not there or has another type.
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
    /// For the log: SQLSTATE and Postgres' own message, without its detail, which quotes values.
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
