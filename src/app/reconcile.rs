//! Comparing the mirror with OpenIM once, for somebody who asks.

use std::io::Write;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::database::{self, Private};
use super::progress::{Progress, print_drift, print_result};
use super::{Error, PRIVATE_STOP_TIMEOUT};
use crate::config::{Config, Reconcile};
use crate::ingest::Ingest;
use crate::openim::{self, Client, DriftOf, Mode, Parts, Reconciler, Tally};
use crate::telemetry::Metrics;

/// How soon somebody who waits for another's turn to end asks again.
const TURN_PAUSE: Duration = Duration::from_millis(500);

/// Compares once, until `shutdown`. What was asked for goes to `out`, how far it is to `notes`, drawn
/// where that is a terminal.
///
/// # Errors
/// [`Error::Drift`] where a dry run finds a difference, [`Error::Left`] where groups were not compared,
/// and see [`Error`].
pub async fn reconcile(
    config: &Config,
    asked: Reconcile,
    out: impl Write + Send,
    notes: impl Write,
    is_terminal: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let metrics = Metrics::new()?;
    // It is there: the settings were read for this command.
    let access = config.openim.clone().ok_or(Error::NoOpenIm)?;
    let client = Client::new(access, metrics.clone())?;
    let (database, server) = database::find(config, Private::Shared).await?;
    let store = database.open().await?;
    let ingest = Ingest::new(store.clone(), config.rejected, None);
    let parts = Parts {
        store: store.clone(),
        ingest: ingest.clone(),
        metrics,
    };
    let reconciler = Reconciler::new(client, config.reconcile, parts);
    let compare = compare(reconciler, asked, out, notes, is_terminal, shutdown);
    let compared = tokio::select! {
        compared = compare => compared,
        // It would wait for ever.
        ended = ingest.tasks().until_one_ends_early() => Err(Error::Task(ended)),
    };
    ingest.close().await;
    store.close().await;
    database::stop(server, PRIVATE_STOP_TIMEOUT).await?;
    compared
}

async fn compare(
    reconciler: Reconciler,
    asked: Reconcile,
    mut out: impl Write + Send,
    notes: impl Write,
    is_terminal: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let began = Instant::now();
    let tally = Tally::default();
    let mode = Mode {
        is_full: asked.full,
        accept_removals: asked.accept_removals,
    };
    let closing = CancellationToken::new();
    let mut progress = Progress::new(notes, is_terminal, asked.dry_run);
    let (mut found, mut printed) = (0_u64, Ok(()));
    let mut tell = |drift: DriftOf| {
        found += 1;
        if printed.is_ok() {
            printed = print_drift(&mut out, &drift, asked.json);
        }
    };
    let work = async {
        if asked.dry_run {
            let groups = &asked.groups;
            return reconciler.drift(groups, &tally, &mut tell).await;
        }
        let mut is_told = false;
        loop {
            match reconciler
                .compare(&asked.groups, mode, &tally, &closing)
                .await
            {
                Err(openim::Error::NotOurTurn) => {
                    if !is_told {
                        tracing::info!("another process compares just now; waiting for its end");
                    }
                    is_told = true;
                    if timeout(TURN_PAUSE, closing.cancelled()).await.is_ok() {
                        return Err(openim::Error::Stopped);
                    }
                }
                done => return done,
            }
        }
    };
    let done = {
        let mut work = std::pin::pin!(work);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut shutdown, if !is_stopping => {
                    is_stopping = true;
                    closing.cancel();
                    // A look changes nothing that would have to be noted.
                    if asked.dry_run {
                        break Err(openim::Error::Stopped);
                    }
                }
                () = sleep(progress.pause()) => progress.show(&tally),
            }
        }
    };
    progress.end(&tally);
    printed?;
    if !asked.dry_run {
        print_result(&mut out, &tally, began.elapsed(), asked.json)?;
    }
    done?;
    match (found, tally.counts().groups_left) {
        (0, 0) => Ok(()),
        (0, left) => Err(Error::Left(left)),
        (found, _) => Err(Error::Drift(found)),
    }
}
