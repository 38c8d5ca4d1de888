//! The spool that the settings ask for, and draining it without serving.

use super::database::{self, Private};
use super::{Error, PRIVATE_STOP_TIMEOUT};
use crate::config::Config;
use crate::ingest::{self, Spool};

/// Behaviour if the folder cannot be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Continues without a spool until the folder can be used, if no entry waits in it.
    Passes,
    Fails,
}

/// Opens the spool. This reads every entry, which can take a while.
pub(super) async fn open(config: &Config, unusable: Unusable) -> Result<Spool, Error> {
    let dir = config.spool.dir.clone().ok_or(Error::NoSpoolDir)?;
    let max_bytes = config.spool.max_bytes;
    let open = move || match unusable {
        Unusable::Passes => Spool::in_folder_once_usable(&dir, max_bytes),
        Unusable::Fails => Spool::in_folder(&dir, max_bytes),
    };
    let opened = tokio::task::spawn_blocking(open).await;
    Ok(opened.map_err(|e| Error::Print(std::io::Error::other(e)))??)
}

/// Writes the entries of the spool to the database.
///
/// # Errors
/// [`Error::Drain`] if entries are left. See also [`Error`].
pub async fn drain(config: &Config) -> Result<(), Error> {
    let spool = open(config, Unusable::Fails).await?;
    let (database, server) = database::find(config, Private::Own).await?;
    let drained = ingest::drain(&spool, database.store()).await;
    database::stop(server, PRIVATE_STOP_TIMEOUT).await?;
    let state = spool.state();
    let drained = drained.map_err(|error| Error::Drain {
        left: state.waiting,
        error,
    });
    drained?;
    tracing::info!(drained = state.drained, %database, "the spool is drained");
    Ok(())
}
