//! The database that the settings ask for, and the private server behind it if it is ours.

use std::time::Duration;

use super::Error;
use crate::config::Config;
use crate::local_postgres::{self, Server};
use crate::store::Database;

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
    let database = Database::new(&url, &settings.schema, settings.pool_size, settings.timeout)?;
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

pub(super) async fn stop(server: Option<Server>, patience: Duration) -> Result<(), Error> {
    let Some(mut server) = server else {
        return Ok(());
    };
    let stopped = tokio::task::spawn_blocking(move || server.stop(patience)).await;
    stopped
        .unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
        .map_err(Error::Private)
}
