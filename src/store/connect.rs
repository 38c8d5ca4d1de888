//! Opening the database: where it is, what is asked of it, and the pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::connections::{Connector, Pool};
use super::session::{self, Asked, Unfit};
use super::touched::Touched;
use super::url::{self, UrlError};
use super::{Store, migrate, tls};

statements! {
    /// The encoding decides whether every Unicode text can be stored.
    SERVER = "
SELECT current_setting('server_encoding'), current_setting('server_version_num')::integer,
       current_setting('fsync') <> 'off' AND current_setting('synchronous_commit') <> 'off'";
    DATABASE_EXISTS = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    /// For the private server, whose one database this is; nobody else makes one there.
    CREATE_PRIVATE_DATABASE = "CREATE DATABASE openim_group_mirror";
}

/// Name of the database on the private server.
const PRIVATE_DATABASE: &str = "openim_group_mirror";

/// SQLSTATEs of a server that is about to start or to stop, or has no place for one more.
const OF_ABSENCE: [&str; 4] = ["57P01", "57P02", "57P03", "53300"];

/// Oldest major version of PostgreSQL that the mirror runs on.
const OLDEST: i32 = 14;

/// Connections that lanes have, each one of its own, where there are twice as many in all.
const MAX_LANES: u32 = 2;

/// Of the others, those that reads leave free where there are more: a callback that could not be
/// understood has to be kept.
const RESERVED_FOR_WRITES: u32 = 1;

/// A lane waits for a lock for this part of its time: where one of many changes has to, the others
/// are written one by one in the rest of it.
const PART_FOR_LOCKS: u32 = 3;

/// How long the drain of a spool waits for one statement, and for a lock. Whoever sent what it
/// writes is answered, and a group with all its members can be one change.
const DRAIN_STATEMENT: Duration = Duration::from_secs(60);
const DRAIN_LOCK: Duration = Duration::from_secs(5);

/// Settings of every session but that of a migration.
const ALWAYS: [(&str, &str); 8] = [
    // Every statement is written for the plan that fits all values, so none is planned again and again.
    ("plan_cache_mode", "force_generic_plan"),
    // A statement sees what was committed while it waited for a lock.
    ("default_transaction_isolation", "read committed"),
    // Such a plan knows no LIMIT, so in a large table it takes a page for a tenth of the rows: worth
    // workers and a compiler, both of which take longer than a page.
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    // Lanes and turns may have nothing to do for long. Not of a migration: where PostgreSQL is too old for
    // this, that is what is to be said.
    ("idle_session_timeout", "0"),
    // Whoever forgets connections that are silent (a firewall, a NAT) hears something on ours every minute;
    // and Postgres lets go of one whose other end is gone. sqlx has no probes of its own.
    ("tcp_keepalives_idle", "60"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "6"),
];

/// Lanes look for rows by their keys, one after the other, and lock them in that order; a plan made while
/// the table was small must not read it whole later on.
const WRITING: [(&str, &str); 3] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];

/// Extra time for an answer to come back once Postgres has given up on a statement.
const NETWORK_SLACK: Duration = Duration::from_millis(500);

/// How long the start waits for an answer that needs no more than a look, and for a migration. A
/// host that falls silent would be waited for for ever.
const PREPARE: Duration = Duration::from_secs(30);
const MIGRATION: Duration = Duration::from_secs(3600);

/// Where the database is and how it is used.
#[derive(Clone)]
pub struct Database {
    options: PgConnectOptions,
    schema: String,
    pool_size: u32,
    timeout: Duration,
    timeout_of_lanes: Duration,
}

/// Why the database cannot be opened. For the operator at the start, never for a caller.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not the URL of a Postgres database that can be used as it asks for.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// A pooler is in the way.
    #[error("cannot use {database}: {unfit}")]
    Session {
        /// Where, without the password.
        database: String,
        /// Why.
        unfit: Unfit,
    },
    /// No connection.
    #[error("cannot connect to {database}: {error}")]
    Connect {
        /// Where, without the password.
        database: String,
        /// What was said.
        error: sqlx::Error,
    },
    /// There is a connection, but what has to be known or made first is refused.
    #[error("cannot use {database}: {error}")]
    Prepare {
        /// Where, without the password.
        database: String,
        /// What was said.
        error: sqlx::Error,
    },
    /// There is no connection that is encrypted as `sslmode` asks for.
    #[error("cannot connect to {database} by TLS: {why}")]
    Tls {
        /// Where, without the password.
        database: String,
        /// What is wrong, and the way out.
        why: String,
    },
    /// A file that the URL names cannot be read.
    #[error("DATABASE_URL: {parameter}: cannot read {path}: {error}")]
    File {
        /// The parameter that names it.
        parameter: &'static str,
        /// Its path.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The role may not do what is needed.
    #[error("cannot use {database}: {lack}")]
    Right {
        /// Where, without the password.
        database: String,
        /// What it may not, and what it has to be granted.
        lack: String,
    },
    /// The schema is not up to date, and cannot be made so there.
    #[error(
        "cannot bring the schema of {database} up to date: the database is read-only, because it is a \
         standby or default_transaction_read_only is on; DATABASE_URL has to lead to one that takes writes"
    )]
    ReadOnly {
        /// Where, without the password.
        database: String,
    },
    /// Statements of ours are not understood there.
    #[error("{database} is PostgreSQL {major}; the mirror needs {OLDEST} or later")]
    Version {
        /// Where, without the password.
        database: String,
        /// What it is.
        major: i32,
    },
    /// A text outside the database's encoding would be lost.
    #[error(
        "the encoding of {database} is {encoding}; the mirror needs a database with encoding UTF8"
    )]
    Encoding {
        /// Where, without the password.
        database: String,
        /// What it has instead.
        encoding: String,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring the schema of {database} up to date: {error}")]
    Migrate {
        /// Where, without the password.
        database: String,
        /// What was said.
        error: sqlx::migrate::MigrateError,
    },
    /// Something there has a name that the mirror needs.
    #[error(
        "cannot make the schema of {database}: {error}. That is another application's; DATABASE_SCHEMA \
         gives the mirror a schema of its own"
    )]
    Taken {
        /// Where, without the password.
        database: String,
        /// What was said.
        error: sqlx::migrate::MigrateError,
    },
}

impl OpenError {
    /// Whether it can be put right on the database's side while we wait. Otherwise it is not a
    /// database that we can use.
    pub fn is_away(&self) -> bool {
        use sqlx::migrate::MigrateError;
        match self {
            OpenError::Connect { .. }
            | OpenError::Prepare { .. }
            | OpenError::Tls { .. }
            | OpenError::Right { .. }
            | OpenError::ReadOnly { .. }
            | OpenError::Taken { .. } => true,
            OpenError::Migrate { error, .. } => matches!(
                error,
                MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)
            ),
            OpenError::Url(_)
            | OpenError::Session { .. }
            | OpenError::File { .. }
            | OpenError::Version { .. }
            | OpenError::Encoding { .. } => false,
        }
    }

    /// Whether the database does not answer, or not yet. Otherwise somebody has to put something
    /// right.
    pub fn is_of_absence(&self) -> bool {
        match self {
            OpenError::Connect { error, .. } | OpenError::Prepare { error, .. } => match error {
                sqlx::Error::Database(error) => error
                    .code()
                    .is_some_and(|code| OF_ABSENCE.contains(&code.as_ref())),
                _ => true,
            },
            _ => false,
        }
    }
}

impl Database {
    /// `pool_size` connections at most; `timeout` bounds the wait for one, and each statement;
    /// `timeout_of_lanes` each statement of the lanes. `schema` is the only one on the search path; the caller has checked that it is a plain
    /// lower-case name.
    ///
    /// # Errors
    /// [`OpenError::Url`], which repeats no value of the URL: it may be a password; and
    /// [`OpenError::File`].
    pub fn new(
        url: &str,
        schema: &str,
        pool_size: u32,
        timeout: Duration,
        timeout_of_lanes: Duration,
    ) -> Result<Self, OpenError> {
        let (options, passed_over) = url::parse(url)?;
        if !passed_over.is_empty() {
            let parameters = passed_over.join(", ");
            tracing::warn!(parameters, "parameters of DATABASE_URL have no effect");
        }
        let options = tls::settle(options, url)?;
        Ok(Database {
            options: options
                .application_name("openim-group-mirror")
                // Statements are ours and static; the log says what matters about them.
                .disable_statement_logging(),
            schema: schema.to_owned(),
            pool_size,
            timeout,
            timeout_of_lanes,
        })
    }

    /// The database of the private server whose URL this is, made if it is not there.
    ///
    /// # Errors
    /// When it can neither be found nor made.
    pub async fn ensure_private(url_of: impl Fn(&str) -> String) -> Result<String, OpenError> {
        let maintenance = Database::new(
            &url_of("postgres"),
            "public",
            1,
            NETWORK_SLACK,
            NETWORK_SLACK,
        )?;
        let mut connection = maintenance.connect(&maintenance.options).await?;
        let made = async {
            let exists: bool = sqlx::query_scalar(DATABASE_EXISTS)
                .bind(PRIVATE_DATABASE)
                .fetch_one(&mut connection)
                .await?;
            if !exists {
                sqlx::query(CREATE_PRIVATE_DATABASE)
                    .execute(&mut connection)
                    .await?;
            }
            connection.close().await
        };
        made.await
            .map_err(|error| maintenance.cannot_connect(error))?;
        Ok(url_of(PRIVATE_DATABASE))
    }

    /// Connects, checks the server, brings the schema up to date, and gives the store.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self) -> Result<Store, OpenError> {
        self.migrate().await?;
        Ok(self.store())
    }

    /// The store, of a database that may be away. Nothing can be asked of it before
    /// [`Database::migrate`] has succeeded once.
    pub fn store(&self) -> Store {
        // In milliseconds; 0 would be none.
        let ms = |time: Duration| i64::try_from(time.as_millis().max(1)).unwrap_or(i64::MAX);
        let asked = |statement: Duration, lock: Duration, others: &[(&'static str, &str)]| {
            let settings = ALWAYS.iter().chain(others);
            let settings = settings.map(|(name, value)| (*name, (*value).to_owned()));
            let statement = [("statement_timeout", ms(statement).to_string())];
            Asked::new(
                &self.schema,
                ms(lock),
                statement.into_iter().chain(settings),
            )
        };
        let connector = |asked: Asked, is_patient: bool| {
            Arc::new(Connector::new(self.options.clone(), asked, is_patient))
        };
        let lock = self.timeout_of_lanes / PART_FOR_LOCKS;
        let shared_settings = asked(self.timeout, self.timeout, &[]);
        let patience = self.timeout + NETWORK_SLACK;
        let lanes = (self.pool_size / 2).clamp(1, MAX_LANES);
        let shared = self.pool_size.saturating_sub(lanes).max(1);
        let reads = shared.saturating_sub(RESERVED_FOR_WRITES).max(1);
        let pool = Pool::new(connector(shared_settings.clone(), true), shared, patience);
        Store {
            database: Arc::new(self.clone()),
            prepared: Arc::default(),
            pool: Arc::new(pool),
            size: self.pool_size as usize,
            reads: Arc::new(Semaphore::new(reads as usize)),
            lookups: Arc::default(),
            of_lanes: connector(asked(self.timeout_of_lanes, lock, &WRITING), false),
            of_drain: connector(asked(DRAIN_STATEMENT, DRAIN_LOCK, &WRITING), false),
            of_turns: connector(shared_settings, false),
            touched: Touched::default(),
            lanes: lanes as usize,
            patience_of_lanes: self.timeout_of_lanes + NETWORK_SLACK,
            lock_of_lanes: lock,
            patience,
        }
    }

    /// Brings the schema up to date, on a connection of its own without a statement timeout.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn migrate(&self) -> Result<(), OpenError> {
        let statement = [("statement_timeout", "0".to_owned())];
        let asked = Asked::new(&self.schema, migrate::LOCK_TIMEOUT_MS, statement);
        let options = asked.options(self.options.clone());
        let mut connection = self.connect(&options).await?;
        let elapsed = || self.cannot_prepare(sqlx::Error::PoolTimedOut);
        let look = async {
            // Before anything is made, which would be made in another schema.
            self.check_session(&mut connection, &options, &asked)
                .await?;
            self.check_server(&mut connection).await?;
            migrate::look(&mut connection, &self.schema)
                .await
                .map_err(|error| self.cannot_migrate(error))
        };
        let due = timeout(PREPARE, look).await.map_err(|_| elapsed())??;
        let patience = if due.may_take_long() {
            MIGRATION
        } else {
            PREPARE
        };
        let migrated = timeout(patience, migrate::run(&mut connection, &self.schema, due)).await;
        migrated
            .map_err(|_| elapsed())?
            .map_err(|error| self.cannot_migrate(error))?;
        if due.is_migration() {
            tracing::info!(database = %self, "the schema is brought up to date");
        }
        // Whatever is left of the connection, the schema is up to date.
        let _ = connection.close().await;
        Ok(())
    }

    async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, OpenError> {
        // connect() has no time limit of its own; a silent host must not hang the start.
        match timeout(Duration::from_secs(10), tls::connect(options)).await {
            Ok(result) => result.map_err(|error| self.cannot_connect(error)),
            Err(_elapsed) => Err(self.cannot_connect(sqlx::Error::PoolTimedOut)),
        }
    }

    fn cannot_connect(&self, error: sqlx::Error) -> OpenError {
        let database = self.to_string();
        if let Some(unfit) = Unfit::of_connecting(&error) {
            return OpenError::Session { database, unfit };
        }
        match tls::explain(&error, self.options.get_host()) {
            Some(why) => OpenError::Tls { database, why },
            None => OpenError::Connect { database, error },
        }
    }

    fn cannot_migrate(&self, error: migrate::Error) -> OpenError {
        let database = self.to_string();
        match error {
            migrate::Error::Right(lack) => OpenError::Right { database, lack },
            migrate::Error::ReadOnly => OpenError::ReadOnly { database },
            migrate::Error::Look(error) => OpenError::Prepare { database, error },
            migrate::Error::Apply(error) if migrate::is_taken(&error) => {
                OpenError::Taken { database, error }
            }
            migrate::Error::Apply(error) => OpenError::Migrate { database, error },
        }
    }

    fn cannot_prepare(&self, error: sqlx::Error) -> OpenError {
        OpenError::Prepare {
            database: self.to_string(),
            error,
        }
    }

    /// Whether a session is as asked, and its own.
    async fn check_session(
        &self,
        connection: &mut PgConnection,
        options: &PgConnectOptions,
        asked: &Asked,
    ) -> Result<(), OpenError> {
        let refused = |unfit| OpenError::Session {
            database: self.to_string(),
            unfit,
        };
        let alone = session::check_alone(connection, options, session::SECOND).await;
        alone
            .map_err(|error| self.cannot_prepare(error))?
            .map_err(refused)?;
        let set = asked.ensure(connection, options, session::SECOND).await;
        set.map_err(|error| self.cannot_prepare(error))?
            .map_err(refused)
    }

    async fn check_server(&self, connection: &mut PgConnection) -> Result<(), OpenError> {
        let (encoding, version, is_durable): (String, i32, bool) = sqlx::query_as(SERVER)
            .fetch_one(connection)
            .await
            .map_err(|error| self.cannot_prepare(error))?;
        let major = version / 10_000;
        if major < OLDEST {
            return Err(OpenError::Version {
                database: self.to_string(),
                major,
            });
        }
        if encoding != "UTF8" {
            return Err(OpenError::Encoding {
                database: self.to_string(),
                encoding,
            });
        }
        if !is_durable {
            tracing::warn!(
                "fsync or synchronous_commit is off in the database: what it has committed, and we \
                 have answered, is lost when its machine fails"
            );
        }
        Ok(())
    }
}

impl fmt::Debug for Database {
    /// sqlx's options show their password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Database {
    /// The URL with `***` for the password and without parameters, and the schema if it is not
    /// `public`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}:***@", self.options.get_username())?;
        match self.options.get_socket() {
            Some(socket) => write!(f, "[{}]", socket.display())?,
            None => write!(f, "{}:{}", self.options.get_host(), self.options.get_port())?,
        }
        if let Some(database) = self.options.get_database() {
            write!(f, "/{database}")?;
        }
        if self.schema != "public" {
            write!(f, ", schema {}", self.schema)?;
        }
        Ok(())
    }
}
