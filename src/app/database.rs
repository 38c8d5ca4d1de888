//! The database that the settings ask for, and the private server behind it if it is ours.

use std::time::Duration;

use tokio::time::sleep;

use super::Error;
use crate::config::Config;
use crate::local_postgres::{self, Server};
use crate::store::Database;

/// How often the private Postgres is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// How soon it is started again where it does not start.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// Whose the private server may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Private {
    /// Ours alone.
    Own,
    /// That of a running service too.
    Shared,
}

pub(super) async fn find(
    config: &Config,
    private: Private,
) -> Result<(Database, Option<Server>), Error> {
    let settings = &config.database;
    let (url, server) = match &settings.url {
        Some(url) => (url.expose().to_owned(), None),
        None => {
            let server = start(config, private).await?;
            let url = Database::ensure_private(|database| server.url(database)).await?;
            (url, Some(server))
        }
    };
    let database = Database::new(
        &url,
        &settings.schema,
        settings.pool_size,
        settings.timeout,
        config.spool.after,
    )?;
    Ok((database, server))
}

async fn start(config: &Config, private: Private) -> Result<Server, Error> {
    let search = config.search.clone();
    let Some(dir) = &config.data_dir else {
        // Without the programs that is what to say first.
        return Err(match search.bin_dir(None) {
            Ok(_) => Error::NoDataDir,
            Err(error) => Error::NoDatabase(error),
        });
    };
    let dir = dir.join("postgres");
    let start = match private {
        Private::Own => {
            tracing::info!(dir = %dir.display(), "starting the private Postgres");
            Server::start
        }
        Private::Shared => Server::start_or_join,
    };
    let started = tokio::task::spawn_blocking(move || start(&dir, &search)).await;
    match started.unwrap_or_else(|e| Err(std::io::Error::other(e).into())) {
        Ok(server) => Ok(server),
        Err(error @ local_postgres::Error::NotInstalled) => Err(Error::NoDatabase(error)),
        Err(error) => Err(Error::Private(error)),
    }
}

/// Starts the private server again whenever it has ended by itself; what comes meanwhile waits in
/// the spool. For ever, and without one for nothing.
pub(super) async fn keep_running(
    server: &mut Option<Server>,
    config: &Config,
) -> std::convert::Infallible {
    loop {
        let Some(running) = server else {
            return std::future::pending().await;
        };
        while running.is_running() {
            sleep(WATCH_INTERVAL).await;
        }
        let log = running.log().display().to_string();
        tracing::error!(
            log,
            "the private Postgres has ended by itself; starting it again"
        );
        // With its locks, which the new one needs.
        drop(server.take());
        loop {
            match start(config, Private::Own).await {
                Ok(again) => {
                    *server = Some(again);
                    break;
                }
                Err(error) => {
                    let error = error.to_string();
                    tracing::error!(error, "the private Postgres does not start");
                    sleep(RESTART_PAUSE).await;
                }
            }
        }
    }
}

pub(super) async fn stop(server: Option<Server>, patience: Duration) -> Result<(), Error> {
    let Some(mut server) = server else {
        return Ok(());
    };
    let stopped = tokio::task::spawn_blocking(move || server.stop(patience)).await;
    stopped
        .unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
        .map_err(Error::Private)
}
