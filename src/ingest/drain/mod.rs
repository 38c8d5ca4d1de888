//! Drains the spool: writes what waits in it, in its order, once the database is there.

mod write;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::lanes::Lanes;
use super::spool::{Broken, Spool, SpoolState};
use crate::store::{self, Drainer, Store};

pub(super) use write::REFUSED_PATH;

/// Pauses between two attempts to reach the database.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often it is told again what is in the way.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// How often a spool that is absent is looked for, where nobody needs it.
const APPEAR_INTERVAL: Duration = Duration::from_secs(5);
/// How long an attempt waits for a connection, and for the sessions before it to end.
const BEGIN: Duration = Duration::from_secs(5);
/// How much is written at a time.
const MOST_ENTRIES: usize = 512;
const MOST_BYTES: usize = 4 << 20;
/// How long one write is waited for after one that took too long; each time twice as long.
const LONGEST_WRITE: Duration = Duration::from_secs(65);
/// While nothing is let in: when no other write is begun any more, and how long the last is waited for
/// after that. Callbacks wait for both, and OpenIM for 5 s.
const HELD: Duration = Duration::from_millis(500);
const HELD_WRITE: Duration = Duration::from_secs(2);

/// Why the drain does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error("the database: {0}")]
    Store(#[from] store::Error),
    /// The database, before anything can be asked of it.
    #[error(transparent)]
    Open(#[from] store::OpenError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] Broken),
    /// A mistake of ours, or a value that nobody thought of.
    #[error("the drain panicked")]
    Panicked,
}

impl Error {
    /// Whether it is what everybody knows already: the database does not answer.
    fn is_of_absence(&self) -> bool {
        match self {
            Error::Store(error) if error.is_setup_error() => false,
            Error::Store(error) => error.is_connection_error() || error.is_timeout(),
            Error::Open(error) => error.is_unreachable(),
            Error::Spool(_) | Error::Panicked => false,
        }
    }
}

/// Writes what is in the spool.
pub(super) struct Drain {
    spool: Spool,
    store: Store,
    /// Which have to leave the database alone meanwhile.
    lanes: Option<Lanes>,
    drainer: Drainer,
    /// How long one write is waited for at first: callbacks may wait for it.
    first_patience: Duration,
    patience: Duration,
    /// How many entries are written at a time: fewer where many take too long.
    most: usize,
    /// When lanes that are kept out are let in again, if any are.
    held_until: Option<Instant>,
}

impl Drain {
    pub(super) fn new(spool: Spool, store: Store, lanes: Option<Lanes>) -> Self {
        let drainer = store.drainer(spool.id());
        let first_patience = match lanes {
            Some(_) => store.lane_timeout(),
            None => LONGEST_WRITE,
        };
        Self {
            spool,
            store,
            lanes,
            drainer,
            first_patience,
            patience: first_patience,
            most: MOST_ENTRIES,
            held_until: None,
        }
    }

    /// Drains the spool whenever it is open, until `closing`, and then for as long as it gets
    /// somewhere. `settled` is told of the end of the first attempt.
    pub(super) async fn run(mut self, settled: CancellationToken, closing: CancellationToken) {
        loop {
            let is_absent = self.spool.state().is_absent;
            tokio::select! {
                // At the end too, what waits is written if it can be.
                biased;
                () = self.spool.opened() => {}
                () = closing.cancelled() => return,
                () = sleep(APPEAR_INTERVAL), if is_absent => {
                    if let Err(error) = self.spool.renew().await {
                        return tell_of_end(&error);
                    }
                    continue;
                }
            }
            let began = Instant::now();
            let before = self.spool.state();
            let mut was_told = false;
            let mut telling = Telling::new(began);
            let mut pauses = pauses();
            loop {
                let is_last = closing.is_cancelled();
                let spool = self.spool.clone();
                let attempt = AssertUnwindSafe(self.drain_all()).catch_unwind();
                let error = tokio::select! {
                    biased;
                    drained = attempt => match drained {
                        Ok(Ok(())) => break,
                        Ok(Err(Error::Spool(error @ Broken::Anothers(_)))) => {
                            return tell_of_end(&error);
                        }
                        Ok(Err(error)) => error,
                        // Of one entry, perhaps; the others must not wait in silence.
                        Err(_panic) => Error::Panicked,
                    },
                    () = stalled(&spool, &closing) => return,
                };
                let text = error.to_string();
                let is_first = !settled.is_cancelled();
                if telling.is_due(&text, is_first, error.is_of_absence(), Instant::now()) {
                    if self.store.is_prepared() {
                        tracing::error!(error = text, "the spool cannot be drained");
                    } else {
                        tracing::error!(
                            error = text,
                            "the database cannot be used: callbacks go to the spool until it can"
                        );
                    }
                } else {
                    tracing::debug!(error = text, "the spool cannot be drained yet");
                }
                was_told = true;
                settled.cancel();
                if is_last {
                    return;
                }
                let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                // At the end it is tried once more: the database may have come back meanwhile.
                let _ = timeout(pause, closing.cancelled()).await;
            }
            let after = self.spool.state();
            let drained = after.drained - before.drained;
            if was_told || drained > 0 || settled.is_cancelled() {
                tracing::info!(
                    drained,
                    refused = after.refused - before.refused,
                    rejected_by_database = after.rejected - before.rejected,
                    seconds = began.elapsed().as_secs_f64(),
                    "the spool is drained: callbacks are written to the database again"
                );
            }
            settled.cancel();
        }
    }

    /// Drains the spool and closes it. Whatever fails can be tried again.
    pub(super) async fn drain_all(&mut self) -> Result<(), Error> {
        self.held_until = None;
        // Where it had to be made anew, and could not.
        self.spool.renew().await?;
        self.store.prepare().await?;
        if let Some(lanes) = &self.lanes {
            lanes.close_connections().await;
        }
        self.drainer.begin(Instant::now() + BEGIN).await?;
        // Written, but the answer or the deletion was not to be.
        self.spool.written_before(self.drainer.position()).await?;
        let mut before = u64::MAX;
        loop {
            let SpoolState { waiting, bytes, .. } = self.spool.state();
            let is_little = waiting <= MOST_ENTRIES as u64 && bytes <= MOST_BYTES as u64;
            // The last are written while nothing more comes in, or there would always be some. So
            // are those that do not get fewer, because as many come meanwhile. But nobody waits
            // for a write that may take long.
            let is_quick = self.patience == self.first_patience;
            let hold = is_quick && (is_little || waiting >= before);
            before = waiting;
            let held = if hold {
                Some(self.spool.hold().await)
            } else {
                None
            };
            let keeps_out = held.is_some() && self.lanes.is_some();
            self.held_until = keeps_out.then(|| Instant::now() + HELD);
            let mut is_empty = !self.write_some().await?;
            if let Some(held) = held {
                while is_little && !is_empty && !self.has_to_let_in() {
                    is_empty = !self.write_some().await?;
                }
                self.held_until = None;
                if is_empty {
                    held.close();
                    self.drainer.close().await;
                    return self.spool.renew().await.map_err(Error::from);
                }
            }
        }
    }
}

/// The drain ends, and with it the service: the next start reads first what waits.
fn tell_of_end(error: &Broken) {
    let error = error.to_string();
    tracing::error!(error, "the spool cannot be used");
}

/// When it is told what is in the way: at once, and again while it lasts.
#[derive(Debug)]
struct Telling {
    what: Option<String>,
    when: Instant,
}

impl Telling {
    fn new(began: Instant) -> Self {
        Self {
            what: None,
            when: began,
        }
    }

    /// That the database does not answer is told already by whoever opened the spool.
    fn is_due(&mut self, what: &str, is_first: bool, is_of_absence: bool, now: Instant) -> bool {
        let is_new = !is_of_absence && self.what.as_deref() != Some(what);
        let is_due = is_first || is_new || now.duration_since(self.when) >= TELL_INTERVAL;
        if is_due {
            self.what = Some(what.to_owned());
            self.when = now;
        }
        is_due
    }
}

/// Resolves once we are to end and the drain gets nowhere.
async fn stalled(spool: &Spool, closing: &CancellationToken) {
    closing.cancelled().await;
    loop {
        let before = spool.state().drained;
        sleep(LONGEST_PAUSE).await;
        if spool.state().drained == before {
            return;
        }
    }
}

/// With jitter: replicas that lost one database do not all come back at one moment.
fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::super::Spool;
    use super::*;
    use crate::store::Database;

    #[test]
    fn what_is_in_the_way_is_told_at_once_and_again_each_minute() {
        let began = Instant::now();
        let mut telling = Telling::new(began);
        let mut told = Vec::new();
        // An attempt every two seconds: a right is missing, then the server is away.
        for second in (0..300_u64).step_by(2) {
            let (what, is_of_absence) = match second {
                0..150 => ("no right", false),
                _ => ("refused", true),
            };
            let now = began + Duration::from_secs(second);
            if telling.is_due(what, second == 0, is_of_absence, now) {
                told.push((second, what));
            }
        }
        let expected = [
            (0, "no right"),
            (60, "no right"),
            (120, "no right"),
            (180, "refused"),
            (240, "refused"),
        ];
        assert_eq!(told, expected);
    }

    /// Both are known at the same moment: that it is open, and that it is the end.
    #[tokio::test]
    async fn at_the_end_an_open_spool_is_tried_each_time() {
        let wait = Duration::from_secs(1);
        let away = "postgres://nobody@127.0.0.1:1/away";
        let store = Database::new(away, "public", 2, wait, wait).unwrap();
        for round in 0..20 {
            let dir = super::super::spool::TempDir::new();
            let spool = Spool::in_folder(dir.path(), 1 << 20).unwrap();
            let (settled, closing) = (CancellationToken::new(), CancellationToken::new());
            closing.cancel();
            let drain = Drain::new(spool, store.store(), None);
            drain.run(settled.clone(), closing).await;
            assert!(settled.is_cancelled(), "{round}");
        }
    }
}
