//! Composition root: builds the parts, runs them, stops them in order.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::config::Config;
use crate::http;
use crate::ingest::Ingest;
use crate::local_postgres::{self, Server};
use crate::store::{Database, OpenError};

/// How often the private Postgres is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Why the service cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("cannot listen on {addr} (LISTEN_ADDR): {error}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is no database.
    #[error(
        "there is no database to use: DATABASE_URL is not set, and {0}\n\
         Three ways out:\n  \
         1. install PostgreSQL's server programs (Debian: sudo apt-get install postgresql; \
         macOS: brew install postgresql), or name their folder in PG_BIN_DIR\n  \
         2. set DATABASE_URL=postgres://user:password@host:5432/database\n  \
         3. docker compose up"
    )]
    NoDatabase(local_postgres::Error),
    /// The private Postgres cannot be started.
    #[error("the private Postgres cannot be used: {0}")]
    Private(local_postgres::Error),
    /// No folder to keep the private Postgres in.
    #[error("DATA_DIR: expected a folder for the private Postgres (there is no HOME to put it in)")]
    NoDataDir,
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The private Postgres is gone.
    #[error("the private Postgres has ended by itself; its log is {0}")]
    PrivateEnded(std::path::PathBuf),
    /// The server failed.
    #[error("serving failed: {0}")]
    Serve(std::io::Error),
}

/// The database that the settings ask for, and the private server behind it if it is ours.
async fn database(config: &Config) -> Result<(Database, Option<Server>), Error> {
    let settings = &config.database;
    let (url, server) = match &settings.url {
        Some(url) => (url.expose().to_owned(), None),
        None => {
            let server = start_private(config).await?;
            let url = Database::ensure_private(|database| server.url(database)).await?;
            (url, Some(server))
        }
    };
    let database = Database::new(&url, &settings.schema, settings.pool_size, settings.timeout)?;
    Ok((database, server))
}

async fn start_private(config: &Config) -> Result<Server, Error> {
    let dir = config.data_dir.as_ref().ok_or(Error::NoDataDir)?;
    let dir = dir.join("postgres");
    let search = config.search.clone();
    tracing::info!(dir = %dir.display(), "starting the private Postgres");
    let started = tokio::task::spawn_blocking(move || Server::start(&dir, &search)).await;
    match started.unwrap_or_else(|e| Err(std::io::Error::other(e).into())) {
        Ok(server) => Ok(server),
        Err(error @ local_postgres::Error::NotInstalled) => Err(Error::NoDatabase(error)),
        Err(error) => Err(Error::Private(error)),
    }
}

async fn stop_private(server: Option<Server>) -> Result<(), Error> {
    let Some(mut server) = server else {
        return Ok(());
    };
    let stopped = tokio::task::spawn_blocking(move || server.stop()).await;
    stopped
        .unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
        .map_err(Error::Private)
}

/// Brings the database's schema up to date.
///
/// # Errors
/// See [`Error`].
pub async fn migrate(config: &Config) -> Result<(), Error> {
    let (database, server) = database(config).await?;
    let migrated = database.migrate().await;
    stop_private(server).await?;
    migrated?;
    tracing::info!(%database, "the schema is up to date");
    Ok(())
}

/// Binds the address, starts everything, and serves until `shutdown`. What is needed to use the
/// service is written to `out` once it is up.
///
/// # Errors
/// See [`Error`].
pub async fn serve(
    config: &Config,
    out: impl Write,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    // First, so that a second instance on one address ends before it starts anything.
    let addr = config.listen_addr;
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|error| Error::Listen { addr, error })?;
    run(config, listener, out, shutdown).await
}

/// As [`serve`], on a listener that is already bound.
///
/// # Errors
/// See [`Error`].
pub async fn run(
    config: &Config,
    listener: TcpListener,
    out: impl Write,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    tokio::pin!(shutdown);
    let addr = listener.local_addr().map_err(Error::Serve)?;
    let open = async {
        let (database, server) = database(config).await?;
        let store = database.open().await?;
        Ok::<_, Error>((database, server, store))
    };
    // Crash recovery, a silent host or a locked schema can take long; nobody has to wait for them
    // to stop. What was started ends with the process.
    let (database, mut server, store) = tokio::select! {
        opened = open => opened?,
        () = &mut shutdown => return Ok(()),
    };
    let ingest = Ingest::new(store.clone());
    let settings = http::Settings {
        max_body_bytes: config.max_body_bytes,
        callback_next_code: config.callback_next_code,
    };
    announce(out, addr, &database, server.as_ref());
    tracing::info!(%addr, %database, "serving");

    let log = server.as_ref().map(|server| server.log().to_path_buf());
    let mut ended = None;
    let stop = async {
        tokio::select! {
            () = &mut shutdown => tracing::info!("stopping"),
            () = private_end(server.as_mut()) => ended = log,
        }
    };
    let served = http::serve(
        listener,
        store.clone(),
        ingest.clone(),
        settings,
        stop,
        config.shutdown_timeout,
    )
    .await;

    // In this order: no request is open any more; then what they submitted; then the database.
    let close = async {
        ingest.close().await;
        store.close().await;
    };
    if tokio::time::timeout(config.shutdown_timeout, close)
        .await
        .is_err()
    {
        tracing::warn!("the database does not let go; leaving it");
    }
    stop_private(server).await?;
    if let Some(log) = ended {
        return Err(Error::PrivateEnded(log));
    }
    served.map_err(Error::Serve)?;
    tracing::info!("stopped");
    Ok(())
}

/// Resolves when the private Postgres has ended by itself; never without one.
async fn private_end(server: Option<&mut Server>) {
    let Some(server) = server else {
        return std::future::pending().await;
    };
    while server.is_running() {
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Tells, in one line each, what one needs to use the service. An `out` that is gone is no reason
/// to end.
fn announce(mut out: impl Write, addr: SocketAddr, database: &Database, server: Option<&Server>) {
    let private = match server {
        Some(_) => " (private, ends with this process)",
        None => "",
    };
    // An unspecified address (0.0.0.0) is none to go to.
    let url = if addr.ip().is_unspecified() {
        format!("http://THIS-HOST:{}", addr.port())
    } else {
        format!("http://{addr}")
    };
    let _ = write!(
        out,
        "listening on  {url}\n\
         docs          {url}/docs\n\
         database      {database}{private}\n\
         for OpenIM's config/webhooks.yml:\n\
         url: {url}\n\
         afterSetGroupMemberInfo:\n  enable: true\n"
    )
    .and_then(|()| out.flush());
}
