//! Serving: build the parts, run them, stop them in order.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};

use super::database::{self, Private};
use super::spool::{self, Unusable};
use super::{Error, PRIVATE_STOP_TIMEOUT, systemd, webhooks};
use crate::config::Config;
use crate::http::{self, Stopping};
use crate::ingest::Ingest;
use crate::reconcile::{self as reconciling, Background};
use crate::store::Store;
use crate::tasks::detached;
use crate::telemetry::Metrics;

/// Timeout of the database at the start, and of the drain of an earlier spool. After it, callbacks are taken and wait
/// in the spool.
const START_TIMEOUT: Duration = Duration::from_secs(3);

async fn bind(addr: SocketAddr, setting: &'static str) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|error| Error::Listen {
        addr,
        setting,
        error,
    })
}

/// Binds the address, starts everything, and serves until `shutdown`. Writes the addresses to `out` when the service is
/// up.
///
/// # Errors
/// See [`Error`].
pub async fn serve(
    config: &Config,
    out: impl Write,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    // A second instance on the same address ends here, before it starts anything.
    let listener = bind(config.listen_addr, "LISTEN_ADDR").await?;
    run(config, listener, out, shutdown).await
}

/// Serves like [`serve`], on a bound listener.
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
    // An error here ends the start before there is anything to stop.
    let client = match config.openim.clone() {
        Some(access) => Some(crate::openim::Client::new(access, metrics.clone())?),
        None => None,
    };
    let start = async {
        let spool = spool::open(config, Unusable::Passes).await?;
        let (database, server) = database::find(config, Private::Own).await?;
        let store = database.store();
        let deadline = Instant::now() + START_TIMEOUT;
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
    // Crash recovery, a silent host or a locked schema can take long. A stop does not wait for them; they end with the
    // process.
    let (database, server, store, ingest) = tokio::select! {
        // A start that has succeeded stops in order.
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
    let parts = http::HttpParts {
        ingest,
        store,
        metrics,
        stopping: Stopping::default(),
    };
    let settings = http::HttpSettings {
        access: config.access.clone(),
        body: config.body,
        max_answer_memory: config.max_answer_memory,
        timeouts: config.timeouts,
        callback_next_code: config.callback_next_code,
        operators: config.operators.clone(),
        compares: config.openim.is_some(),
    };
    let metrics_addr = metrics_listener.as_ref().and_then(|l| l.local_addr().ok());
    // A closed `out` is no reason to stop.
    let _ = webhooks::announce(
        out,
        addr,
        metrics_addr,
        &config.access,
        (&database, server.as_ref()),
    );
    tracing::info!(%addr, %database, "serving");
    warn_of_missing_keys(config, addr);

    let tasks = parts.ingest.tasks();
    parts.ingest.begin_housekeeping();
    let private = database::PrivatePostgres::start(server, config, tasks);
    let to_the_end = async {
        let mut deadline = None;
        let stop = async {
            tokio::select! {
                () = &mut shutdown => {}
                // Without the task the mirror would become wrong in silence.
                ended = tasks.until_one_ends_early() => tracing::error!("{ended}: stopping"),
            }
            parts.stopping.begin();
            systemd::stopping();
            let delay_ms = u64::try_from(config.stop.delay.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(delay_ms, "stopping; a second signal ends it at once");
            tokio::time::sleep(config.stop.delay).await;
            deadline = Some(Instant::now() + config.stop.timeout);
        };
        let served = http::serve(
            listener,
            metrics_listener,
            parts.clone(),
            settings,
            stop,
            config.stop.timeout,
        )
        .await;

        // All requests are closed now. Then their changes are written, then the database is closed, all before one
        // deadline.
        let deadline = end_of(deadline, Instant::now(), config.stop.timeout);
        let server = private.end().await;
        let close = async {
            if let Some(background) = background {
                background.end().await;
            }
            parts.ingest.close().await;
            parts.store.close().await;
        };
        if timeout_at(deadline, close).await.is_err() {
            tracing::warn!("the database does not finish in time; its connections are dropped");
        }
        parts.ingest.log_entries_left();
        let left = deadline.saturating_duration_since(Instant::now());
        database::stop(server, left.max(PRIVATE_STOP_TIMEOUT)).await?;
        served.map_err(Error::Serve)?;
        tracing::info!("stopped");
        match tasks.ended_early() {
            Some(ended) => Err(Error::Task(ended)),
            None => Ok(()),
        }
    };
    systemd::alive_while(to_the_end).await
}

/// Deadline of the stop: set after a signal, or counted from now if the server has failed.
fn end_of(set: Option<Instant>, now: Instant, timeout: Duration) -> Instant {
    set.unwrap_or(now + timeout)
}

/// Brings the schema up to date. If the database is away, the drain does that later.
async fn prepare(store: &Store, deadline: Instant) -> Result<(), Error> {
    // A migration that takes longer goes on.
    let prepared = detached({
        let store = store.clone();
        async move { store.prepare().await }
    });
    match timeout_at(deadline, prepared).await {
        Ok(Ok(Err(error))) if !error.is_away() => Err(error.into()),
        _away_or_done => Ok(()),
    }
}

/// Warns about missing keys, by the address of the service.
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
            "{missing} not set: every program on this machine has access, and a reverse proxy would give \
             access to everyone"
        );
    } else {
        tracing::warn!("{missing} not set: everyone who reaches the port has access");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_of_the_server_the_stop_has_as_long_as_after_a_signal() {
        let (now, timeout) = (Instant::now(), Duration::from_secs(5));
        assert_eq!(end_of(None, now, timeout), now + timeout);
        let set = now + Duration::from_secs(2);
        assert_eq!(end_of(Some(set), now, timeout), set);
    }
}
