//! Reconciles marked groups, each a short time after its mark. In this time more marks and late callbacks come, so that
//! one reconcile serves all of them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::group::Outcome;
use super::removals::{Removals, RemovalsSinceRun};
use super::report::Job;
use super::{Core, Error, LEASE_RETRY_INTERVAL, Report};
use crate::domain::GroupId;
use crate::store::{Lease, LeaseOf};

/// Marked groups in one read.
const PAGE: i64 = 1000;
/// Bounds of the interval of reading marks.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of counting marks for the metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);
/// Bounds of the pause after OpenIM or the database failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Pause after an incomplete group: OpenIM remembers for this time that a row is missing.
const INCOMPLETE_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause before a group that is still marked is reconciled again.
const MAX_GROUP_PAUSE: Duration = Duration::from_secs(600);

/// Next reconcile of a group that is still marked.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    failures: u32,
}

/// MarksState that is kept between reads of the marks.
#[derive(Debug, Default)]
struct MarksState {
    /// Held as long as possible.
    lease: Option<Lease>,
    retries: HashMap<GroupId, Retry>,
    removals: RemovalsSinceRun,
}

impl Core {
    /// Reconciles marked groups until `closing`.
    pub(super) async fn watch_marks(self: Arc<Self>, closing: CancellationToken) {
        let interval = (self.settings.delay / 4).clamp(MIN_POLL_INTERVAL, MAX_POLL_INTERVAL);
        let mut state = MarksState::default();
        let mut pause = interval;
        let mut failures = 0;
        while timeout(pause, closing.cancelled()).await.is_err() {
            let work = self.reconcile_marked(&mut state);
            let Some(done) = closing.run_until_cancelled(work).await else {
                break;
            };
            (pause, failures) = match done {
                Ok(()) | Err(Error::Spooling) => (interval, 0),
                Err(Error::LeaseTaken) => (LEASE_RETRY_INTERVAL.min(self.settings.interval), 0),
                Err(error) => {
                    tracing::warn!(
                        error = error.to_string(),
                        "marked groups were not reconciled"
                    );
                    let longer = FIRST_PAUSE * 2_u32.saturating_pow(failures);
                    (longer.min(MAX_PAUSE), (failures + 1).min(10))
                }
            };
        }
        if let Some(lease) = state.lease {
            lease.end().await;
        }
    }

    /// Counts the marked groups for the metrics, in every instance, until `closing`.
    pub(super) async fn count_marks(self: Arc<Self>, closing: CancellationToken) {
        let count = async {
            loop {
                // Without the database the last count stays.
                if let Ok(marks) = self.store.marks_by_reason().await {
                    let groups = marks.iter().map(|marks| marks.groups).sum();
                    let oldest = marks.iter().map(|marks| marks.since).min();
                    self.metrics.checks_wanted(groups, oldest);
                }
                sleep(COUNT_INTERVAL.min(self.settings.interval)).await;
            }
        };
        let _: Option<Infallible> = closing.run_until_cancelled(count).await;
    }

    /// Reconciles all marked groups that are due.
    async fn reconcile_marked(&self, state: &mut MarksState) -> Result<(), Error> {
        let MarksState {
            lease,
            retries,
            removals,
        } = state;
        if self.is_diverting() {
            return Err(Error::Spooling);
        }
        let holds = match lease {
            Some(lease) => lease.holds().await,
            None => false,
        };
        if !holds {
            *lease = self.store.take_lease(LeaseOf::Marks).await?;
        }
        if lease.is_none() {
            return Err(Error::LeaseTaken);
        }
        let mut after = String::new();
        let mut still_marked = HashMap::new();
        loop {
            let delay = self.settings.delay;
            let page = self.store.marked_groups(&after, PAGE, delay).await?;
            let Some(last) = page.last() else {
                break;
            };
            last.as_str().clone_into(&mut after);
            let removals = removals.current(&self.store).await?;
            let now = Instant::now();
            let mut due = HashMap::new();
            for group in page {
                match retries.get(&group) {
                    Some(retry) if retry.at > now => {
                        still_marked.insert(group, *retry);
                    }
                    retry => {
                        due.insert(group, retry.map_or(0, |retry| retry.failures));
                    }
                }
            }
            let done = self.reconcile_due(due, &removals, &mut still_marked).await;
            if done.is_err() {
                retries.extend(still_marked);
                return done;
            }
        }
        // Drops the retries of groups that are no longer marked.
        *retries = still_marked;
        Ok(())
    }

    async fn reconcile_due(
        &self,
        due: HashMap<GroupId, u32>,
        removals: &Removals,
        still_marked: &mut HashMap<GroupId, Retry>,
    ) -> Result<(), Error> {
        let report = Report::default();
        let job = Job::new(removals, &report, false);
        let groups = due.keys().cloned().collect();
        let mut all = pin!(self.reconcile_each(groups, &job));
        while let Some((group, done)) = all.next().await {
            let failures = due.get(&group).copied().unwrap_or(0);
            let failures = match done {
                Ok(Outcome::Equal) => continue,
                Ok(Outcome::Incomplete) => {
                    let at = Instant::now() + INCOMPLETE_PAUSE;
                    still_marked.insert(group, Retry { at, failures: 0 });
                    continue;
                }
                Ok(Outcome::ChangedMeanwhile | Outcome::Busy) => 0,
                Ok(Outcome::Skipped | Outcome::NeedsDecision) => failures + 1,
                Err(error @ Error::TooManyRemovals { .. }) => {
                    tracing::error!("{error}");
                    self.store.note_too_many_removals().await?;
                    failures + 1
                }
                // The other groups would fail with the same error.
                Err(error) => return Err(error),
            };
            // The delay can be 0, and OpenIM must not get the same question all the time.
            let pause = self.settings.delay.max(FIRST_PAUSE);
            let pause = pause * 2_u32.saturating_pow(failures.min(16));
            let at = Instant::now() + pause.min(MAX_GROUP_PAUSE);
            still_marked.insert(group, Retry { at, failures });
        }
        Ok(())
    }
}
