//! Comparisons of all groups: when, whose turn it is, and what is noted of each.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::check::Pass;
use super::removals::Removals;
use super::{Error, Inner, Mode, Tally};
use crate::store::{TOO_MANY_REMOVALS, TurnOf};

/// How often a service looks whether something asks for a cycle before its time.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a cycle that failed, at first.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// How long it may take to note how a cycle ended.
const LAST_NOTE: Duration = Duration::from_secs(2);

impl Inner {
    pub(super) async fn run_cycles(&self, closing: &CancellationToken) {
        let mut failures = 0;
        // At the start, and after an outage.
        let mut is_wanted = true;
        loop {
            let turn = self.cycle_in_turn(is_wanted, closing);
            let pause = match turn.await {
                Ok(()) => {
                    failures = 0;
                    is_wanted = false;
                    self.settings.interval
                }
                Err(Error::Stopped) => return,
                // It is done already, only not by us.
                Err(Error::NotOurTurn) => self.settings.interval,
                Err(error) => {
                    let error = error.to_string();
                    tracing::warn!(error, "the mirror was not compared with OpenIM to the end");
                    let pause = FIRST_PAUSE * 2_u32.saturating_pow(failures);
                    failures = (failures + 1).min(16);
                    pause.min(self.settings.interval)
                }
            };
            // Where callbacks had to wait, others may have been lost.
            let spooled = self.spooled();
            let end = Instant::now() + pause;
            while Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                if timeout(LOOK.min(left), closing.cancelled()).await.is_ok() {
                    return;
                }
                if self.spooled() != spooled && !self.is_spooling() {
                    is_wanted = true;
                    break;
                }
            }
        }
    }

    /// A cycle, unless another process has just done one.
    async fn cycle_in_turn(
        &self,
        is_wanted: bool,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        if self.is_spooling() {
            return Err(Error::Spooling);
        }
        if !is_wanted
            && let (Some(last), _) = self.store.last_runs().await?
            && last.stopped_by.is_none()
            && self.store.clock().await? - last.started_at < self.settings.interval * 9 / 10
        {
            return Err(Error::NotOurTurn);
        }
        let tally = Tally::default();
        let began = Instant::now();
        let done = self.cycle(Mode::default(), &tally, closing).await;
        if done.is_ok() {
            let seconds = began.elapsed().as_secs_f64();
            tracing::info!(seconds, "compared with OpenIM: {}", tally.counts());
        }
        done
    }

    /// Compares all groups, in our turn.
    pub(super) async fn cycle(
        &self,
        mode: Mode,
        tally: &Tally,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let Some(turn) = self.store.take_turn(TurnOf::Cycle).await? else {
            return Err(Error::NotOurTurn);
        };
        let done = self.cycle_and_note(mode, tally, closing).await;
        turn.end().await;
        done
    }

    async fn cycle_and_note(
        &self,
        mode: Mode,
        tally: &Tally,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let (last, _) = self.store.last_runs().await?;
        let is_exceeded = last.is_some_and(|last| last.has_too_many_removals());
        let removals = Removals::new(mode.accept_removals, is_exceeded);
        let run = self.store.begin_run(mode.is_full).await?;
        let pass = Pass::new(&removals, tally, false);
        let done = tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::Stopped),
            done = self.through_all(mode.is_full, &pass, None) => done,
        };
        let stopped_by = match &done {
            // Above all, for it is what the next one has to know.
            _ if removals.stays_exceeded(done.is_ok()) => Some(TOO_MANY_REMOVALS),
            Err(error) => Some(error.code()),
            Ok(()) => None,
        };
        self.metrics.cycle_done(stopped_by.unwrap_or("ok"));
        // Where the database is away, the row stays without an end.
        let counts = tally.counts();
        let note = self.store.end_run(run, stopped_by, &counts);
        let _ = timeout(LAST_NOTE, note).await;
        done
    }
}
