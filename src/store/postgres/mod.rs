//! Connections to Postgres: the address, the settings of sessions, checks at the start.

mod connections;
pub(super) mod migrate;
pub(super) mod session;
mod tls;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::timeout;

use self::session::SessionSettings;
use super::Store;
use super::error::{OLDEST_MAJOR, OpenError, UnfitSession};
use super::write::Touched;

pub(super) use connections::{Connector, Counted, Kind, Pool};
pub use url::{UrlError, check_url};

statements! {
    /// Reads encoding, version and durability. Only some encodings can store every Unicode text.
    SERVER = "
SELECT current_setting('server_encoding'), current_setting('server_version_num')::integer,
       current_setting('fsync') <> 'off' AND current_setting('synchronous_commit') <> 'off'";
    DATABASE_EXISTS = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    /// Makes the one database of the private server. No other program makes one there.
    CREATE_PRIVATE_DATABASE = "CREATE DATABASE openim_group_mirror";
}

/// Name of the private server's database.
const PRIVATE_DATABASE: &str = "openim_group_mirror";

/// Number of lanes if there are at least twice as many connections. Each lane has one.
const MAX_LANES: u32 = 2;

/// Number of other connections that reads leave free: a rejected callback must be kept.
const RESERVED_FOR_WRITES: u32 = 1;

/// Part of a lane's time in which it waits for a lock. In the rest it writes the other changes of the batch one by one.
const LOCK_TIMEOUT_DIVISOR: u32 = 3;

/// Time limit of one statement of a drain. The callbacks of spooled changes have answers, and one change can be a group
/// with all its members.
const DRAIN_STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of a drain's wait for a lock.
const DRAIN_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every session except that of a migration.
const COMMON_SETTINGS: [(&str, &str); 8] = [
    // Every statement is written for a plan that fits all values, so Postgres need not plan it again.
    ("plan_cache_mode", "force_generic_plan"),
    // A statement sees commits from its wait for a lock.
    ("default_transaction_isolation", "read committed"),
    // A generic plan does not know the LIMIT, so for a page of a large table it expects a tenth of the rows, and starts
    // workers and a compiler. Both take longer than a page.
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    // Lanes and leases can be idle for long. A migration does not set this: it must tell that a PostgreSQL is too old,
    // and one too old does not know the setting.
    ("idle_session_timeout", "0"),
    // Firewalls and NATs forget silent connections, so send a probe every minute. Postgres ends a connection whose
    // other end is gone. sqlx has no probes of its own.
    ("tcp_keepalives_idle", "60"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "6"),
];

/// Settings of lanes and drain. They look up rows by their keys, one after the other, and lock them in that order. A
/// plan that was made for a small table must not read the whole table later.
const WRITER_SETTINGS: [(&str, &str); 3] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];

/// Extra time for Postgres' answer about a statement that it has ended.
const NETWORK_SLACK: Duration = Duration::from_millis(500);

/// Time limit of a connect at the start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of checks at the start. A silent host would stop it for ever.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit of migrations.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3600);

/// Address of the database, and limits of its use.
#[derive(Clone)]
pub struct Database {
    options: PgConnectOptions,
    schema: String,
    pool_size: u32,
    timeout: Duration,
    lane_timeout: Duration,
}

impl Database {
    /// Makes a database with at most `pool_size` connections. `timeout` limits the wait for a connection and each
    /// statement, `lane_timeout` each statement of the lanes. `schema` is the whole search path; the caller has checked
    /// that it is a plain lower-case name.
    ///
    /// # Errors
    /// [`OpenError::Url`], which quotes no value of the URL because it can be a password, and
    /// [`OpenError::File`].
    pub fn new(
        url: &str,
        schema: &str,
        pool_size: u32,
        timeout: Duration,
        lane_timeout: Duration,
    ) -> Result<Self, OpenError> {
        let (options, ignored) = url::parse(url)?;
        if !ignored.is_empty() {
            let parameters = ignored.join(", ");
            tracing::warn!(parameters, "parameters of DATABASE_URL have no effect");
        }
        let options = tls::apply_rules(options, url)?;
        Ok(Database {
            options: options
                .application_name("openim-group-mirror")
                // The statements are static. The service logs their errors.
                .disable_statement_logging(),
            schema: schema.to_owned(),
            pool_size,
            timeout,
            lane_timeout,
        })
    }

    /// Makes the database of the private server if it is missing. Returns its URL.
    ///
    /// # Errors
    /// [`OpenError`] if it can neither be found nor made.
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

    /// Makes the store of a database that may be away. It connects when it is used.
    /// [`Database::migrate`] must succeed once before the first read or write.
    pub fn store(&self) -> Store {
        // In milliseconds; 0 would be no limit.
        let ms = |time: Duration| i64::try_from(time.as_millis().max(1)).unwrap_or(i64::MAX);
        let settings = |statement: Duration, lock: Duration, more: &[(&'static str, &str)]| {
            let settings = COMMON_SETTINGS.iter().chain(more);
            let settings = settings.map(|(name, value)| (*name, (*value).to_owned()));
            let statement = [("statement_timeout", ms(statement).to_string())];
            let settings = statement.into_iter().chain(settings);
            SessionSettings::new(&self.schema, ms(lock), settings)
        };
        let connector = |settings: SessionSettings, waits_for_server: bool| {
            Connector::new(self.options.clone(), settings, waits_for_server)
        };
        let lane_lock = self.lane_timeout / LOCK_TIMEOUT_DIVISOR;
        let lane = settings(self.lane_timeout, lane_lock, &WRITER_SETTINGS);
        let drain = settings(
            DRAIN_STATEMENT_TIMEOUT,
            DRAIN_LOCK_TIMEOUT,
            &WRITER_SETTINGS,
        );
        let shared = settings(self.timeout, self.timeout, &[]);
        let timeout = self.timeout + NETWORK_SLACK;
        let lane_count = (self.pool_size / 2).clamp(1, MAX_LANES);
        let size = self.pool_size.saturating_sub(lane_count).max(1);
        let max_reads = size.saturating_sub(RESERVED_FOR_WRITES).max(1);
        let pool = Pool::new(connector(shared.clone(), true), size, max_reads, timeout);
        Store {
            database: Arc::new(self.clone()),
            prepared: Arc::default(),
            pool: Arc::new(pool),
            lookups: Arc::default(),
            lane_connector: Arc::new(connector(lane, false)),
            drain_connector: Arc::new(connector(drain, false)),
            lease_connector: Arc::new(connector(shared, false)),
            touched: Touched::default(),
            lanes: lane_count as usize,
            lane_timeout: self.lane_timeout + NETWORK_SLACK,
            lane_lock_timeout: lane_lock,
            max_connections: self.pool_size as usize,
            timeout,
        }
    }

    /// Migrates the schema, on a connection of its own without a statement timeout.
    pub async fn migrate(&self) -> Result<(), OpenError> {
        let statement = [("statement_timeout", "0".to_owned())];
        let settings = SessionSettings::new(&self.schema, migrate::LOCK_TIMEOUT_MS, statement);
        let options = settings.options(self.options.clone());
        let mut connection = self.connect(&options).await?;
        let elapsed = || self.cannot_prepare(sqlx::Error::PoolTimedOut);
        let check = async {
            // Check the schema on the search path before tables are made in it.
            self.check_session(&mut connection, &options, &settings)
                .await?;
            self.check_server(&mut connection).await?;
            migrate::find_due(&mut connection, &self.schema)
                .await
                .map_err(|error| self.cannot_migrate(error))
        };
        let due = timeout(PREPARE_TIMEOUT, check)
            .await
            .map_err(|_| elapsed())??;
        let limit = if due.may_take_long() {
            MIGRATION_TIMEOUT
        } else {
            PREPARE_TIMEOUT
        };
        let migrated = timeout(limit, migrate::run(&mut connection, &self.schema, due)).await;
        migrated
            .map_err(|_| elapsed())?
            .map_err(|error| self.cannot_migrate(error))?;
        if due.migrations {
            tracing::info!(database = %self, "migrated the schema");
        }
        // The schema is up to date, also if the close fails.
        let _ = connection.close().await;
        Ok(())
    }

    async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, OpenError> {
        // sqlx has no time limit for this. A silent host must not stop the start.
        match timeout(CONNECT_TIMEOUT, tls::connect(options)).await {
            Ok(result) => result.map_err(|error| self.cannot_connect(error)),
            Err(_elapsed) => Err(self.cannot_connect(sqlx::Error::PoolTimedOut)),
        }
    }

    fn cannot_connect(&self, error: sqlx::Error) -> OpenError {
        let database = self.to_string();
        if let Some(unfit) = UnfitSession::of_connect_error(&error) {
            return OpenError::Session(database, unfit);
        }
        match tls::explain(&error, self.options.get_host()) {
            Some(why) => OpenError::Tls(database, why),
            None => OpenError::Connect(database, error),
        }
    }

    fn cannot_migrate(&self, error: migrate::Error) -> OpenError {
        let database = self.to_string();
        match error {
            migrate::Error::Right(lack) => OpenError::Right(database, lack),
            migrate::Error::ReadOnly => OpenError::ReadOnly(database),
            migrate::Error::Check(error) => OpenError::Prepare(database, error),
            migrate::Error::Apply(error) if migrate::is_taken(&error) => {
                OpenError::Taken(database, error)
            }
            migrate::Error::Apply(error) => OpenError::Migrate(database, error),
        }
    }

    fn cannot_prepare(&self, error: sqlx::Error) -> OpenError {
        OpenError::Prepare(self.to_string(), error)
    }

    /// Checks that a session has its settings and a server process of its own.
    async fn check_session(
        &self,
        connection: &mut PgConnection,
        options: &PgConnectOptions,
        settings: &SessionSettings,
    ) -> Result<(), OpenError> {
        let refused = |unfit| OpenError::Session(self.to_string(), unfit);
        let alone =
            session::check_alone(connection, options, session::SECOND_CONNECTION_TIMEOUT).await;
        alone
            .map_err(|error| self.cannot_prepare(error))?
            .map_err(refused)?;
        let set = settings
            .ensure(connection, options, session::SECOND_CONNECTION_TIMEOUT)
            .await;
        set.map_err(|error| self.cannot_prepare(error))?
            .map_err(refused)
    }

    async fn check_server(&self, connection: &mut PgConnection) -> Result<(), OpenError> {
        let (encoding, version, is_durable): (String, i32, bool) = sqlx::query_as(SERVER)
            .fetch_one(connection)
            .await
            .map_err(|error| self.cannot_prepare(error))?;
        let major = version / 10_000;
        if major < OLDEST_MAJOR {
            return Err(OpenError::Version(self.to_string(), major));
        }
        if encoding != "UTF8" {
            return Err(OpenError::Encoding(self.to_string(), encoding));
        }
        if !is_durable {
            tracing::warn!(
                "fsync or synchronous_commit is off in the database: committed and answered callbacks are \
                 lost when its machine fails"
            );
        }
        Ok(())
    }
}

impl fmt::Debug for Database {
    /// Hides the password, which sqlx's options show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Database {
    /// Writes the URL with `***` for the password and without parameters, and the schema if it is not `public`.
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
