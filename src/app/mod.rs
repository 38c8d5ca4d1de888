//! Composition root: builds the parts, runs them, stops them in order.

mod announce;
mod commands;
mod database;
mod reconcile;
mod rejected;
mod spool;
mod systemd;
mod webhooks;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::http::{self, Stopping};
use crate::ingest::{self, Ingest};
use crate::local_postgres;
use crate::openim;
use crate::reconcile::{self as reconciling, Background};
use crate::store::{self, OpenError, Store};
use crate::tasks::EndedEarly;
use crate::telemetry::{self, Metrics};
use database::Private;
use spool::Unusable;

pub use commands::{healthcheck, migrate, openim_config};
pub use reconcile::reconcile;
pub use rejected::rejected;
pub use spool::drain;

/// Least time for the private Postgres to end. Its wrapper goes on without us after that.
const PRIVATE_STOP: Duration = Duration::from_secs(5);

/// How long the start waits for the database, and for what an earlier process left to be in it.
/// After that callbacks are taken; they wait in the spool.
const START_PATIENCE: Duration = Duration::from_secs(3);

/// Why the service cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("cannot listen on {addr} ({setting}): {error}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The setting that says so.
        setting: &'static str,
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
         3. make .env && docker compose up"
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
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] ingest::OpenError),
    /// No folder to keep it in.
    #[error("SPOOL_DIR: expected a folder for callbacks that wait (there is no HOME to put it in)")]
    NoSpoolDir,
    /// What waits could not be written.
    #[error("the spool is not drained, {left} entries wait: {error}")]
    Drain {
        /// What is left.
        left: u64,
        /// Why.
        error: ingest::DrainError,
    },
    /// The server failed.
    #[error("serving failed: {0}")]
    Serve(std::io::Error),
    /// What has to go on beside serving did not.
    #[error("{0}")]
    Task(EndedEarly),
    /// The metrics cannot be made.
    #[error("the metrics cannot be made: {0}")]
    Metrics(#[from] telemetry::Error),
    /// The database did not do what a subcommand asked of it.
    #[error("the database: {0}")]
    Store(#[from] store::Error),
    /// A callback could not be taken in again.
    #[error("the database: {0}")]
    Ingest(#[from] ingest::Error),
    /// Nothing by that number, or something went wrong with some of them; the text says what.
    #[error("{0}")]
    Rejected(String),
    /// OpenIM's API cannot be used.
    #[error(transparent)]
    OpenIm(#[from] openim::Error),
    /// The mirror was not compared with OpenIM to the end.
    #[error("not compared to the end: {0}")]
    Reconcile(#[from] reconciling::Error),
    /// There is nothing to compare the mirror with.
    #[error("OPENIM_API_URL, OPENIM_ADMIN_USER_ID and OPENIM_SECRET are not set")]
    NoOpenIm,
    /// So many groups could not be compared, or wait for somebody to decide.
    #[error("groups that were left as they are: {0}")]
    Left(i64),
    /// A dry run has found so many values that are not as in OpenIM.
    #[error("values that are not as in OpenIM: {0}")]
    Drift(u64),
    /// The service does not answer, or not well.
    #[error("{0}")]
    Unhealthy(String),
    /// What was asked for cannot be printed.
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

async fn bind(addr: SocketAddr, setting: &'static str) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|error| Error::Listen {
        addr,
        setting,
        error,
    })
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
    let listener = bind(config.listen_addr, "LISTEN_ADDR").await?;
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
    let metrics_listener = match config.metrics_addr {
        Some(addr) => Some(bind(addr, "METRICS_ADDR").await?),
        None => None,
    };
    let metrics = Metrics::new()?;
    // Before anything is started that would have to be stopped.
    let client = match config.openim.clone() {
        Some(access) => Some(openim::Client::new(access, metrics.clone())?),
        None => None,
    };
    let start = async {
        let spool = spool::open(config, Unusable::Passes).await?;
        let (database, server) = database::find(config, Private::Own).await?;
        let store = database.store();
        let deadline = Instant::now() + START_PATIENCE;
        prepare(&store, deadline).await?;
        let ingest = Ingest::new(store.clone(), config.rejected, Some(spool));
        if timeout_at(deadline, ingest.settled()).await.is_err() {
            tracing::warn!(
                %database,
                "the database does not answer: callbacks go to the spool until it does"
            );
        }
        Ok::<_, Error>((database, server, store, ingest))
    };
    // Crash recovery, a silent host or a locked schema can take long; nobody has to wait for them
    // to stop. What was started ends with the process.
    let (database, mut server, store, ingest) = tokio::select! {
        // What has just started ends in order.
        biased;
        started = start => started?,
        () = &mut shutdown => return Ok(()),
    };
    let background = Background::start(
        client,
        config.reconcile,
        reconciling::ReconcileParts {
            store: store.clone(),
            ingest: ingest.clone(),
            metrics: metrics.clone(),
        },
    );
    let parts = http::Parts {
        ingest,
        store,
        metrics,
        stopping: Stopping::default(),
    };
    let settings = http::Settings {
        access: config.access.clone(),
        body: config.body,
        max_answer_memory: config.max_answer_memory,
        patience: config.patience,
        callback_next_code: config.callback_next_code,
        operators: config.operators.clone(),
        compares: config.openim.is_some(),
    };
    let metrics_addr = metrics_listener.as_ref().and_then(|l| l.local_addr().ok());
    // An `out` that is gone is no reason to end.
    let _ = announce::announce(
        out,
        addr,
        metrics_addr,
        &config.access,
        (&database, server.as_ref()),
    );
    tracing::info!(%addr, %database, "serving");
    warn_of_missing_keys(config, addr);

    parts.ingest.begin_housekeeping();
    let to_the_end = async {
        let tasks = parts.ingest.tasks();
        let mut deadline = None;
        let stop = async {
            tokio::select! {
                () = &mut shutdown => {}
                // Without it the mirror would become wrong, and nobody would see it.
                ended = tasks.until_one_ends_early() => tracing::error!("{ended}: ending"),
            }
            parts.stopping.begin();
            systemd::stopping();
            let delay_ms = u64::try_from(config.stop.delay.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(delay_ms, "stopping; a second signal ends it at once");
            tokio::time::sleep(config.stop.delay).await;
            deadline = Some(Instant::now() + config.stop.timeout);
        };
        let serving = http::serve(
            listener,
            metrics_listener,
            parts.clone(),
            settings,
            stop,
            config.stop.timeout,
        );
        let served = tokio::select! {
            served = serving => served,
            never = database::keep_running(&mut server, config) => match never {},
        };

        // In this order, all by one deadline: no request is open any more; then what they submitted;
        // then the database.
        let deadline = end_of(deadline, Instant::now(), config.stop.timeout);
        let close = async {
            if let Some(background) = background {
                background.end().await;
            }
            parts.ingest.close().await;
            parts.store.close().await;
        };
        if timeout_at(deadline, close).await.is_err() {
            tracing::warn!("the database does not let go; leaving it");
        }
        parts.ingest.tell_what_is_left();
        let left = deadline.saturating_duration_since(Instant::now());
        database::stop(server, left.max(PRIVATE_STOP)).await?;
        served.map_err(Error::Serve)?;
        tracing::info!("stopped");
        match parts.ingest.tasks().ended_early() {
            Some(ended) => Err(Error::Task(ended)),
            None => Ok(()),
        }
    };
    systemd::alive_while(to_the_end).await
}

/// When everything has to have ended: as a signal has set it, or as long after serving has ended by
/// itself.
fn end_of(set: Option<Instant>, now: Instant, timeout: Duration) -> Instant {
    set.unwrap_or(now + timeout)
}

/// Brings the schema up to date, if the database is there; if not, that is done when it is.
async fn prepare(store: &Store, deadline: Instant) -> Result<(), Error> {
    // A task of its own: a migration that takes longer goes on.
    let prepared = tokio::spawn({
        let store = store.clone();
        async move { store.prepare().await }
    });
    match timeout_at(deadline, prepared).await {
        Ok(Ok(Err(error))) if !error.is_away() => Err(error.into()),
        _away_or_done => Ok(()),
    }
}

/// Without keys, who may do what depends on who reaches the port.
fn warn_of_missing_keys(config: &Config, addr: SocketAddr) {
    let access = &config.access;
    let missing = match (
        access.callback_passwords.is_empty(),
        access.api_tokens.is_empty(),
    ) {
        (false, false) => return,
        (true, true) => "CALLBACK_PASSWORD and API_TOKEN are",
        (true, false) => "CALLBACK_PASSWORD is",
        (false, true) => "API_TOKEN is",
    };
    if addr.ip().is_loopback() {
        tracing::warn!(
            "{missing} not set: every program on this machine is let in, and a reverse proxy \
             would let in everybody"
        );
    } else {
        tracing::warn!("{missing} not set: everybody who reaches the port is let in");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_serving_ends_by_itself_the_rest_has_as_long_to_end_as_after_a_signal() {
        let (now, timeout) = (Instant::now(), Duration::from_secs(5));
        assert_eq!(end_of(None, now, timeout), now + timeout);
        let set = now + Duration::from_secs(2);
        assert_eq!(end_of(Some(set), now, timeout), set);
    }
}
