//! Schedule of runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Core, Error, LEASE_RETRY_INTERVAL, Mode, Report};
use crate::store::Run;

/// Interval of looking for a reason to do a run early.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// First pause after a run that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// A reason to do a run before its time.
#[derive(Clone, Copy, Debug)]
enum Missed {
    Nothing,
    /// Changes may be lost until now, at the start and after an outage. A run has to begin.
    UntilNow,
    /// Changes may be lost until the run with this id. A later run of any instance is enough.
    UntilRun(i64),
}

impl Core {
    /// Does runs at the start and at each interval, until `closing`.
    pub(super) async fn schedule_runs(self: Arc<Self>, closing: CancellationToken) {
        let mut failures = 0;
        let mut missed = Missed::UntilNow;
        let mut spooled = self.spooled();
        loop {
            // The next run makes up for hints that were dropped until now.
            if self.ingest.hints().take_needs_run() {
                missed = Missed::UntilNow;
            }
            let pause = match self.run_if_due(&mut missed, &closing).await {
                Ok(pause) => {
                    failures = 0;
                    missed = Missed::Nothing;
                    pause
                }
                Err(Error::Stopped) => return,
                Err(Error::LeaseTaken) => LEASE_RETRY_INTERVAL.min(self.settings.interval),
                Err(error) => {
                    tracing::warn!(
                        error = error.to_string(),
                        "the run did not end: the mirror may differ from OpenIM"
                    );
                    let pause = FIRST_PAUSE * 2_u32.saturating_pow(failures);
                    failures = (failures + 1).min(16);
                    pause.min(self.settings.interval)
                }
            };
            let end = Instant::now() + pause;
            while Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                let stopped = timeout(POLL_INTERVAL.min(left), closing.cancelled()).await;
                if stopped.is_ok() {
                    return;
                }
                // During an outage callbacks may be lost.
                if self.spooled() != spooled && !self.is_diverting() {
                    spooled = self.spooled();
                    missed = Missed::UntilNow;
                    break;
                }
                if self.ingest.hints().needs_run() && !self.is_diverting() {
                    break;
                }
            }
        }
    }

    /// Does a run, unless another instance has done it. Returns the time until the next run.
    async fn run_if_due(
        &self,
        missed: &mut Missed,
        closing: &CancellationToken,
    ) -> Result<Duration, Error> {
        if self.is_diverting() {
            return Err(Error::Spooling);
        }
        let (last, current) = self.store.last_runs().await?;
        if matches!(missed, Missed::UntilNow) {
            let runs = [&last, &current].into_iter().flatten();
            *missed = Missed::UntilRun(runs.map(|run| run.id).max().unwrap_or(0));
        }
        let is_complete = |run: &Run| run.stopped_by.is_none() || run.has_too_many_removals();
        if let Some(last) = last.filter(is_complete) {
            let is_too_old = matches!(missed, Missed::UntilRun(run) if last.id <= *run);
            // A negative age is of a run from before a clock was set back.
            let age = Duration::try_from_secs_f64(last.age).unwrap_or(Duration::MAX);
            let rest = self.settings.interval.saturating_sub(age);
            // Only a run of this process recovers touched users.
            let has_recovered = self.has_recovered_touched.load(Ordering::Relaxed);
            if !is_too_old && has_recovered && !rest.is_zero() {
                return Ok(rest);
            }
        }
        let report = Report::default();
        let began = Instant::now();
        self.run(Mode::default(), &report, closing).await?;
        let took = began.elapsed();
        let seconds = took.as_secs_f64();
        tracing::info!(seconds, "reconciled with OpenIM: {}", report.counts());
        // After a long run there is a pause too.
        let interval = self.settings.interval;
        Ok(interval.saturating_sub(took).max(interval / 10))
    }
}
