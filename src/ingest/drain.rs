//! The drain: writes the entries of the spool to the database, in their order, each once.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::intake::{Spool, SpoolState};
use super::lanes::Lanes;
use crate::domain::{Change, Event, MarkReason, Rejected, to_record};
use crate::spool::{Content, Entry, SpoolError};
use crate::store::{self, Drainer, Store};

/// Path of changes that the database refused, among the rejected callbacks.
pub(super) const REFUSED_PATH: &str = "/spool";
/// Their code.
const REFUSED_CODE: &str = "database_refused";

/// Pauses between two attempts.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Interval at which an error that lasts is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Interval at which a folder is tried that could not be used.
const APPEAR_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of a connection, and of the end of the sessions before it.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Limits of a batch.
const MAX_ENTRIES: usize = 512;
const MAX_BYTES: usize = 4 << 20;
/// Longest timeout of a write. After each timeout the next one is twice as long.
const MAX_WRITE_TIMEOUT: Duration = Duration::from_secs(65);
/// Time limits while the intake is locked: no write begins after the first, and the last write gets the second on top.
/// Callbacks wait for both, and OpenIM waits for 5 s.
const LOCKED_TIMEOUT: Duration = Duration::from_millis(500);
const LOCKED_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reason why the spool is not drained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused or did not answer.
    #[error("the database: {0}")]
    Store(#[from] store::Error),
    /// The database cannot be prepared.
    #[error(transparent)]
    Open(#[from] store::OpenError),
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A bug, or a value that no library of ours can read.
    #[error("the drain panicked")]
    Panicked,
}

impl Error {
    /// True if the database does not answer. The log says that already.
    fn is_unreachable(&self) -> bool {
        match self {
            Error::Store(error) if error.is_setup_error() => false,
            Error::Store(error) => error.is_connection_error() || error.is_timeout(),
            Error::Open(error) => error.is_unreachable(),
            Error::Spool(_) | Error::Panicked => false,
        }
    }
}

/// The task that drains the spool.
pub(super) struct Drain {
    spool: Spool,
    store: Store,
    /// Lanes, which close their connections before.
    lanes: Option<Lanes>,
    drainer: Drainer,
    /// Timeout of a write if none was too long: callbacks may wait for it.
    first_timeout: Duration,
    write_timeout: Duration,
    /// Entries of the next batch: fewer after a write that took too long.
    batch_size: usize,
    /// Time at which callbacks that wait for the intake are let in again.
    locked_until: Option<Instant>,
}

impl Drain {
    pub(super) fn new(spool: Spool, store: Store, lanes: Option<Lanes>) -> Self {
        let drainer = store.drainer(spool.id());
        let first_timeout = match lanes {
            Some(_) => store.lane_timeout,
            None => MAX_WRITE_TIMEOUT,
        };
        Self {
            spool,
            store,
            lanes,
            drainer,
            first_timeout,
            write_timeout: first_timeout,
            batch_size: MAX_ENTRIES,
            locked_until: None,
        }
    }

    /// Drains the spool whenever it is diverting, until `closing`, and then as long as entries are written. Cancels
    /// `settled` at the end of the first attempt.
    pub(super) async fn run(mut self, settled: CancellationToken, closing: CancellationToken) {
        let diverting = self.spool.diverting();
        loop {
            let is_absent = self.spool.state().is_absent;
            tokio::select! {
                // Entries first: at the end too they are written if that can be.
                biased;
                () = diverting.begun() => {}
                () = closing.cancelled() => return,
                () = sleep(APPEAR_INTERVAL), if is_absent => {
                    match self.spool.renew().await {
                        Err(error @ SpoolError::Appeared(_)) => return log_end(&error),
                        // A panic is logged.
                        _ => continue,
                    }
                }
            }
            if !self.drain_until_empty(&settled, &closing).await {
                return;
            }
        }
    }

    /// Tries to drain the spool until it is empty. Returns false if the task has to end before.
    async fn drain_until_empty(
        &mut self,
        settled: &CancellationToken,
        closing: &CancellationToken,
    ) -> bool {
        let began = Instant::now();
        let before = self.spool.state();
        let mut has_failed = false;
        let (text, at) = (None, began);
        let mut log = ErrorLog { text, at };
        let mut pauses = pauses();
        loop {
            let is_last = closing.is_cancelled();
            let spool = self.spool.clone();
            let attempt = AssertUnwindSafe(self.drain_all()).catch_unwind();
            let error = tokio::select! {
                biased;
                drained = attempt => match drained {
                    Ok(Ok(())) => break,
                    Ok(Err(Error::Spool(error @ SpoolError::Appeared(_)))) => {
                        log_end(&error);
                        return false;
                    }
                    Ok(Err(error)) => error,
                    // One entry may be the reason. The others must not wait in silence.
                    Err(_panic) => Error::Panicked,
                },
                () = stalled(&spool, closing) => return false,
            };
            let text = error.to_string();
            let is_first = !settled.is_cancelled();
            if !log.is_due(&text, is_first, error.is_unreachable(), Instant::now()) {
                tracing::debug!(error = text, "the spool cannot be drained yet");
            } else if self.store.is_prepared() {
                tracing::error!(error = text, "the spool cannot be drained");
            } else {
                tracing::error!(
                    error = text,
                    "the database cannot be used: callbacks go to the spool until it can"
                );
            }
            has_failed = true;
            settled.cancel();
            if is_last {
                return false;
            }
            let pause = pauses.next().unwrap_or(MAX_PAUSE);
            // At the end there is one more attempt: the database may be back.
            let _ = timeout(pause, closing.cancelled()).await;
        }
        let after = self.spool.state();
        let drained = after.drained - before.drained;
        if has_failed || drained > 0 || settled.is_cancelled() {
            tracing::info!(
                drained,
                refused = after.refused - before.refused,
                rejected_by_database = after.rejected - before.rejected,
                seconds = began.elapsed().as_secs_f64(),
                "the spool is drained: callbacks are written to the database again"
            );
        }
        settled.cancel();
        true
    }

    /// Drains the spool and ends diverting. After an error it can be tried again.
    pub(super) async fn drain_all(&mut self) -> Result<(), Error> {
        self.locked_until = None;
        self.spool.renew().await?;
        self.store.prepare().await?;
        if let Some(lanes) = &self.lanes {
            lanes.close_connections().await;
        }
        self.drainer.begin(Instant::now() + BEGIN_TIMEOUT).await?;
        // These were committed, but the process ended before it deleted them, or the answer was lost.
        self.spool.skip_written(self.drainer.position()).await?;
        let mut before = u64::MAX;
        loop {
            let SpoolState { waiting, bytes, .. } = self.spool.state();
            let is_little = waiting <= MAX_ENTRIES as u64 && bytes <= MAX_BYTES as u64;
            // The last entries are written while the intake is locked, or there would always be some. This also holds
            // if entries come as fast as they are written. But callbacks do not wait for a write that may take long.
            let is_quick = self.write_timeout == self.first_timeout;
            let needs_lock = is_quick && (is_little || waiting >= before);
            before = waiting;
            let intake = match needs_lock {
                true => Some(self.spool.lock_intake().await),
                false => None,
            };
            let has_callers = intake.is_some() && self.lanes.is_some();
            self.locked_until = has_callers.then(|| Instant::now() + LOCKED_TIMEOUT);
            let mut is_empty = !self.write_batch().await?;
            if let Some(intake) = intake {
                while is_little && !is_empty && !self.must_unlock() {
                    is_empty = !self.write_batch().await?;
                }
                self.locked_until = None;
                if is_empty {
                    intake.stop_diverting();
                    self.drainer.close().await;
                    return self.spool.renew().await.map_err(Error::from);
                }
            }
        }
    }

    fn must_unlock(&self) -> bool {
        self.locked_until
            .is_some_and(|until| Instant::now() >= until)
    }

    /// Writes the first entries. Returns true if there are more.
    async fn write_batch(&mut self) -> Result<bool, Error> {
        let batch = self.spool.first(self.batch_size, MAX_BYTES).await?;
        if batch.is_empty() {
            (self.write_timeout, self.batch_size) = (self.first_timeout, MAX_ENTRIES);
            return Ok(false);
        }
        let written = self.write(&batch).await;
        if let Err(error) = &written
            && error.is_timeout()
        {
            self.write_timeout = (self.write_timeout * 2).min(MAX_WRITE_TIMEOUT);
            self.batch_size = (self.batch_size / 8).max(1);
        }
        let done = written?;
        self.batch_size = (self.batch_size * 2).min(MAX_ENTRIES);
        if self.batch_size == MAX_ENTRIES {
            self.write_timeout = self.first_timeout;
        }
        if let Some(done) = done {
            self.spool.delete_to(done).await?;
        }
        Ok(self.spool.state().waiting > 0)
    }

    /// Writes entries. Those that the database refuses are found by halves, or one of them would cost as many commits
    /// as there are entries. Returns the number up to which all is done: less than the last if the intake has to be
    /// unlocked.
    async fn write(&mut self, entries: &[Entry]) -> Result<Option<i64>, store::Error> {
        // The next part is the last.
        let mut parts = vec![entries];
        let mut done = None;
        while let Some(part) = parts.pop()
            && let Some(last) = part.last().map(|entry| entry.number)
            && !(done.is_some() && self.must_unlock())
        {
            match (self.write_part(part, last).await, part) {
                (Ok(()), _) => done = Some(last),
                (Err(refused @ store::Error::Permanent(_)), [entry]) => {
                    self.keep_refused(entry, &refused).await?;
                    self.spool.count_rejected();
                    done = Some(last);
                }
                (Err(store::Error::Permanent(_)), _) => {
                    let (first, rest) = part.split_at(part.len() / 2);
                    parts.extend([rest, first]);
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(done)
    }

    async fn write_part(&mut self, part: &[Entry], last: i64) -> Result<(), store::Error> {
        let (mut changes, mut rejected) = (Vec::new(), Vec::new());
        for entry in part {
            match &entry.content {
                _ if self.is_committed(entry) => {}
                Content::Change(change) => changes.push(change),
                Content::Rejected(body) => rejected.push(body),
            }
        }
        self.write_as_one(&changes, &rejected, last).await
    }

    /// True if a lane has committed the entry, and got no answer.
    fn is_committed(&self, entry: &Entry) -> bool {
        let attempt = entry.attempt.as_ref();
        attempt.is_some_and(|attempt| self.drainer.is_committed(attempt.lane, attempt.seq))
    }

    /// Keeps a change that the database refuses with the rejected callbacks, and marks its group.
    async fn keep_refused(
        &mut self,
        entry: &Entry,
        refused: &store::Error,
    ) -> Result<(), store::Error> {
        let (seq, error) = (entry.number, refused.to_string());
        tracing::error!(
            seq,
            error,
            "the database does not take an entry of the spool"
        );
        if let Content::Change(change) = &entry.content {
            let reason = Event::Mark(MarkReason::CallbackLost);
            let mark = Change::new(change.group_id.clone(), change.received_at, reason);
            let kept = kept_change(change, refused);
            for (changes, rejected) in [(vec![&mark], vec![&kept]), (vec![], vec![&kept])] {
                match self.write_as_one(&changes, &rejected, seq).await {
                    Err(store::Error::Permanent(_)) => {}
                    written => return written,
                }
            }
        }
        // Nothing of it can be kept, and nothing may wait for it for ever.
        self.write_as_one(&[], &[], seq).await
    }

    async fn write_as_one(
        &mut self,
        changes: &[&Change],
        rejected: &[&Rejected],
        number: i64,
    ) -> Result<(), store::Error> {
        let deadline = Instant::now() + self.write_timeout;
        let deadline = match self.locked_until {
            Some(until) => deadline.min(until + LOCKED_WRITE_TIMEOUT),
            None => deadline,
        };
        loop {
            let written = self
                .drainer
                .write(changes, rejected, number, deadline)
                .await;
            match written {
                Err(error) if error.is_conflict() && Instant::now() < deadline => {}
                written => return written,
            }
        }
    }
}

/// A change that the database refused, as it is kept.
fn kept_change(change: &Change, why: &store::Error) -> Rejected {
    let body = Bytes::from(to_record(change));
    let body_bytes = body.len() as u64;
    Rejected {
        received_at: change.received_at,
        path: REFUSED_PATH.into(),
        operation_id: None,
        code: REFUSED_CODE.into(),
        detail: why.to_string(),
        // Whole, however long: it was answered.
        body,
        body_bytes,
    }
}

/// Logs the end of the drain, which ends the service: the next start reads the entries first.
fn log_end(error: &SpoolError) {
    tracing::error!(error = error.to_string(), "the spool cannot be used");
}

/// Times at which the log says why the spool is not drained: at once, and at intervals while it lasts.
#[derive(Debug)]
struct ErrorLog {
    text: Option<String>,
    at: Instant,
}

impl ErrorLog {
    /// The log says already that the database does not answer, since diverting began.
    fn is_due(&mut self, text: &str, is_first: bool, is_unreachable: bool, now: Instant) -> bool {
        let is_new = !is_unreachable && self.text.as_deref() != Some(text);
        let is_due = is_first || is_new || now.duration_since(self.at) >= LOG_INTERVAL;
        if is_due {
            self.text = Some(text.to_owned());
            self.at = now;
        }
        is_due
    }
}

/// Resolves when the service is to end and no entry is written any more.
async fn stalled(spool: &Spool, closing: &CancellationToken) {
    closing.cancelled().await;
    loop {
        let before = spool.state().drained;
        sleep(MAX_PAUSE).await;
        if spool.state().drained == before {
            return;
        }
    }
}

/// Pauses with jitter: replicas that lost one database do not all come back at one moment.
fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(MIN_PAUSE)
        .with_max_delay(MAX_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Database;

    #[test]
    fn an_error_is_logged_at_once_and_again_each_minute() {
        let began = Instant::now();
        let (text, at) = (None, began);
        let mut log = ErrorLog { text, at };
        let mut logged = Vec::new();
        // An attempt every two seconds: a right is missing, then the server is away.
        for second in (0..300_u64).step_by(2) {
            let (text, is_unreachable) = match second {
                0..150 => ("no right", false),
                _ => ("refused", true),
            };
            let now = began + Duration::from_secs(second);
            if log.is_due(text, second == 0, is_unreachable, now) {
                logged.push((second, text));
            }
        }
        let expected = [
            (0, "no right"),
            (60, "no right"),
            (120, "no right"),
            (180, "refused"),
            (240, "refused"),
        ];
        assert_eq!(logged, expected);
    }

    /// The drain learns at the same moment that the spool is diverting and that the service ends.
    #[tokio::test]
    async fn at_the_end_a_diverting_spool_is_tried_each_time() {
        let wait = Duration::from_secs(1);
        let away = "postgres://nobody@127.0.0.1:1/away";
        let store = Database::new(away, "public", 2, wait, wait).unwrap();
        for round in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let spool = Spool::in_folder(dir.path(), 1 << 20).unwrap();
            let (settled, closing) = (CancellationToken::new(), CancellationToken::new());
            closing.cancel();
            let drain = Drain::new(spool, store.store(), None);
            drain.run(settled.clone(), closing).await;
            assert!(settled.is_cancelled(), "{round}");
        }
    }
}
