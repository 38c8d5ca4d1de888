//! Comparisons of all groups: when, whose turn it is, and what is noted of each.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::pass::Pass;
use super::removals::Removals;
use super::walk::Between;
use super::{Error, Inner, Mode, Tally};
use crate::store::{Run, TOO_MANY_REMOVALS, Turn, TurnOf};

/// How often a service looks whether something asks for a cycle before its time.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a cycle that failed, at first.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// How soon whoever has no turn asks again.
const TURN_PAUSE: Duration = Duration::from_secs(5);
/// How long it may take to note how a cycle ended.
const LAST_NOTE: Duration = Duration::from_secs(2);

/// Whether a cycle is due before its time.
#[derive(Clone, Copy, Debug)]
enum Missed {
    Nothing,
    /// At the start, and after an outage, a cycle has to begin.
    Now,
    /// One that has begun after the run of this number will do, whoever did it.
    After(i64),
}

impl Inner {
    pub(super) async fn run_cycles(&self, closing: &CancellationToken) {
        let mut failures = 0;
        // Something may have been missed until now.
        let mut missed = Missed::Now;
        let mut spooled = self.spooled();
        loop {
            // What was dropped until now the next one makes up for.
            if self.ingest.hints().take_wants_cycle() {
                missed = Missed::Now;
            }
            let pause = match self.cycle_if_due(&mut missed, closing).await {
                Ok(pause) => {
                    failures = 0;
                    missed = Missed::Nothing;
                    pause
                }
                Err(Error::Stopped) => return,
                Err(Error::NotOurTurn) => TURN_PAUSE.min(self.settings.interval),
                Err(error) => {
                    let error = error.to_string();
                    tracing::warn!(error, "the mirror was not compared with OpenIM to the end");
                    let pause = FIRST_PAUSE * 2_u32.saturating_pow(failures);
                    failures = (failures + 1).min(16);
                    pause.min(self.settings.interval)
                }
            };
            let end = Instant::now() + pause;
            while Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                if timeout(LOOK.min(left), closing.cancelled()).await.is_ok() {
                    return;
                }
                // Where callbacks had to wait, others may have been lost.
                if self.spooled() != spooled && !self.is_spooling() {
                    spooled = self.spooled();
                    missed = Missed::Now;
                    break;
                }
                if self.ingest.hints().wants_cycle() && !self.is_spooling() {
                    break;
                }
            }
        }
    }

    /// A cycle, unless another process has done it; how long it is to the next.
    async fn cycle_if_due(
        &self,
        missed: &mut Missed,
        closing: &CancellationToken,
    ) -> Result<Duration, Error> {
        if self.is_spooling() {
            return Err(Error::Spooling);
        }
        let (last, going_on) = self.store.last_runs().await?;
        if matches!(missed, Missed::Now) {
            let runs = [&last, &going_on].into_iter().flatten();
            *missed = Missed::After(runs.map(|run| run.id).max().unwrap_or(0));
        }
        let is_over = |run: &Run| run.stopped_by.is_none() || run.has_too_many_removals();
        if let Some(last) = last.filter(is_over) {
            let was_before = matches!(missed, Missed::After(run) if last.id <= *run);
            // A run that begins in the future was noted before a clock was set back.
            let age = Duration::try_from_secs_f64(last.age).unwrap_or(Duration::MAX);
            let rest = self.settings.interval.saturating_sub(age);
            // What an earlier process left undone only this one looks for.
            let was_before = was_before || !self.has_looked_back.load(Ordering::Relaxed);
            if !was_before && !rest.is_zero() {
                return Ok(rest);
            }
        }
        let tally = Tally::default();
        let began = Instant::now();
        self.cycle(Mode::default(), &tally, closing).await?;
        let took = began.elapsed();
        let seconds = took.as_secs_f64();
        tracing::info!(seconds, "compared with OpenIM: {}", tally.counts());
        // However long one takes, there is a pause.
        let interval = self.settings.interval;
        Ok(interval.saturating_sub(took).max(interval / 10))
    }

    /// Compares all groups, in our turn.
    pub(super) async fn cycle(
        &self,
        mode: Mode,
        tally: &Tally,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let Some(mut turn) = self.store.take_turn(TurnOf::Cycle).await? else {
            return Err(Error::NotOurTurn);
        };
        let done = self.cycle_and_note(mode, tally, &mut turn, closing).await;
        turn.end().await;
        done
    }

    async fn cycle_and_note(
        &self,
        mode: Mode,
        tally: &Tally,
        turn: &mut Turn,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let (last, _) = self.store.last_runs().await?;
        let is_exceeded = last.is_some_and(|last| last.has_too_many_removals());
        let removed = self.store.removed_since_last_end().await?;
        let removals = Removals::new(mode.accept_removals, is_exceeded, removed);
        let run = self.store.begin_run(mode.is_full).await?;
        let pass = Pass::new(&removals, tally, mode.is_full);
        let done = tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::Stopped),
            done = self.through_all(&pass, Between::Keep(turn)) => done,
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
        let dismissed = tally.members_dismissed();
        let note = self.store.end_run(run, stopped_by, &counts, dismissed);
        let _ = timeout(LAST_NOTE, note).await;
        done
    }
}
