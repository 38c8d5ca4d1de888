//! The database of the settings, and the private Postgres if there is one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;

use super::{Error, PRIVATE_STOP_TIMEOUT};
use crate::config::Config;
use crate::local_postgres::{self, Server};
use crate::store::Database;
use crate::tasks::{Task, Tasks};

/// Interval of the checks if the private Postgres runs.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Pause after a start of the private Postgres that failed.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// Use of the private Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Private {
    /// By this process alone.
    Own,
    /// Also by a service that may run beside this process.
    Shared,
}

/// Brings the schema of the database up to date.
///
/// # Errors
/// See [`Error`].
pub async fn migrate(config: &Config) -> Result<(), Error> {
    let (database, server) = find(config, Private::Own).await?;
    let migrated = database.migrate().await;
    stop(server, PRIVATE_STOP_TIMEOUT).await?;
    migrated?;
    tracing::info!(%database, "the schema is up to date");
    Ok(())
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
        // Missing programs are reported before a missing folder.
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

/// The private Postgres of a service, and the task that starts it again after it has ended by itself. Callbacks wait in
/// the spool meanwhile.
pub(super) struct PrivatePostgres {
    server: Arc<Mutex<Option<Server>>>,
    task: Task,
}

impl PrivatePostgres {
    /// Starts the task, if there is a private Postgres.
    pub(super) fn start(server: Option<Server>, config: &Config, tasks: &Tasks) -> Self {
        let task = tasks.task("keeps the private Postgres running");
        let has_one = server.is_some();
        let server = Arc::new(Mutex::new(server));
        if has_one {
            let (server, config) = (Arc::clone(&server), config.clone());
            task.start(|closing| async move {
                let mut server = server.lock().await;
                let running = keep_running(&mut server, &config);
                closing.run_until_cancelled(running).await;
            });
        }
        Self { server, task }
    }

    /// Ends the task, and gives the server back.
    pub(super) async fn end(self) -> Option<Server> {
        self.task.end().await;
        self.server.lock().await.take()
    }
}

async fn keep_running(server: &mut Option<Server>, config: &Config) -> std::convert::Infallible {
    loop {
        while let Some(running) = server {
            if running.is_running() {
                sleep(WATCH_INTERVAL).await;
                continue;
            }
            let log = running.log().display().to_string();
            tracing::error!(
                log,
                "the private Postgres has ended by itself; starting it again"
            );
            // The next one needs its locks.
            drop(server.take());
        }
        match start(config, Private::Own).await {
            Ok(again) => *server = Some(again),
            Err(error) => {
                tracing::error!(
                    error = error.to_string(),
                    "the private Postgres does not start"
                );
                sleep(RESTART_PAUSE).await;
            }
        }
    }
}

pub(super) async fn stop(server: Option<Server>, limit: Duration) -> Result<(), Error> {
    let Some(mut server) = server else {
        return Ok(());
    };
    let stopped = tokio::task::spawn_blocking(move || server.stop(limit)).await;
    stopped
        .unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
        .map_err(Error::Private)
}
