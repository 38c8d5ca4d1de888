//! Groups that want a check, each looked at a little after it was marked: so many marks are one
//! look, and what is under way between OpenIM and us has come.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::check::Outcome;
use super::pass::Pass;
use super::removals::Removals;
use super::{Error, Inner, Tally};
use crate::domain::GroupId;
use crate::store::{Turn, TurnOf};

/// Groups at a time.
const SOME: i64 = 1000;
/// Longest pause of the looks for marks.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Shortest one.
const SHORTEST_LOOK: Duration = Duration::from_millis(20);
/// How often they are counted.
const COUNT: Duration = Duration::from_secs(15);
/// How soon the next try is to take over from another process.
const TURN_PAUSE: Duration = Duration::from_secs(5);
/// Pauses after OpenIM or the database did not answer.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How soon a group is looked at again of which OpenIM does not give all: as long as OpenIM keeps in
/// mind that there is no such row.
const IN_PART_PAUSE: Duration = Duration::from_secs(60);
/// Longest wait for another look at a group whose mark stays.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// When a group whose mark has stayed is looked at again.
#[derive(Clone, Copy, Debug)]
struct Again {
    at: Instant,
    failures: u32,
}

/// What is kept from one look to the next.
#[derive(Debug, Default)]
struct Marks {
    /// Held for as long as it can be.
    turn: Option<Turn>,
    again: HashMap<GroupId, Again>,
    /// Since the run of this number.
    removals: (Option<i64>, Arc<Removals>),
}

impl Inner {
    pub(super) async fn run_checks(&self, closing: &CancellationToken) {
        let look = (self.settings.delay / 4).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let mut marks = Marks::default();
        let mut pause = look;
        let mut failures = 0;
        while timeout(pause, closing.cancelled()).await.is_err() {
            let pass = self.look_after_marks(&mut marks);
            let done = tokio::select! {
                done = pass => done,
                () = closing.cancelled() => break,
            };
            pause = match done {
                Ok(()) => look,
                Err(Error::NotOurTurn) => TURN_PAUSE.min(self.settings.interval),
                Err(Error::Spooling) => look,
                Err(error) => {
                    let longer = FIRST_PAUSE * 2_u32.saturating_pow(failures);
                    failures = (failures + 1).min(10);
                    let error = error.to_string();
                    tracing::warn!(
                        error,
                        "groups that want a check were not compared with OpenIM"
                    );
                    pause = longer.min(LONGEST_PAUSE);
                    continue;
                }
            };
            failures = 0;
        }
        if let Some(turn) = marks.turn {
            turn.end().await;
        }
    }

    /// Counts them for the metrics, whoever looks after them.
    pub(super) async fn run_counts(&self, closing: &CancellationToken) {
        closing.run_until_cancelled(self.count_checks()).await;
    }

    async fn count_checks(&self) -> Infallible {
        loop {
            // Where the database does not tell, the last count stays.
            if let Ok(wanted) = self.store.checks_wanted().await {
                let groups = wanted.iter().map(|wanted| wanted.groups).sum();
                let oldest = wanted.iter().map(|wanted| wanted.since).min();
                self.metrics.checks_wanted(groups, oldest);
            }
            sleep(COUNT.min(self.settings.interval)).await;
        }
    }

    /// Once through all of them that are due.
    async fn look_after_marks(&self, marks: &mut Marks) -> Result<(), Error> {
        let Marks {
            turn,
            again,
            removals,
        } = marks;
        if self.is_spooling() {
            return Err(Error::Spooling);
        }
        let is_held = match turn {
            Some(turn) => turn.is_held().await,
            None => false,
        };
        if !is_held {
            *turn = self.store.take_turn(TurnOf::Checks).await?;
        }
        if turn.is_none() {
            return Err(Error::NotOurTurn);
        }
        let mut after = String::new();
        let mut still = HashMap::new();
        loop {
            let delay = self.settings.delay;
            let page = self.store.groups_wanting_check(&after, SOME, delay).await?;
            let Some(last) = page.last() else {
                break;
            };
            last.as_str().clone_into(&mut after);
            self.begin_anew_after_a_cycle(removals).await?;
            let now = Instant::now();
            let mut due = HashMap::new();
            for group in page {
                match again.get(&group) {
                    Some(entry) if entry.at > now => {
                        still.insert(group, *entry);
                    }
                    entry => {
                        due.insert(group, entry.map_or(0, |entry| entry.failures));
                    }
                }
            }
            let checked = self.check_due(due, &removals.1, &mut still).await;
            if checked.is_err() {
                again.extend(still);
                return checked;
            }
        }
        // Those whose marks are gone are gone from here too.
        *again = still;
        Ok(())
    }

    async fn check_due(
        &self,
        due: HashMap<GroupId, u32>,
        removals: &Removals,
        still: &mut HashMap<GroupId, Again>,
    ) -> Result<(), Error> {
        let tally = Tally::default();
        let pass = Pass::new(removals, &tally, false);
        let groups = due.keys().cloned().collect();
        let mut checks = pin!(self.check_each(groups, &pass));
        while let Some((group, checked)) = checks.next().await {
            let failures = due.get(&group).copied().unwrap_or(0);
            let failures = match checked {
                Ok(Outcome::Compared) => continue,
                Ok(Outcome::InPart) => {
                    let at = Instant::now() + IN_PART_PAUSE;
                    still.insert(group, Again { at, failures: 0 });
                    continue;
                }
                Ok(Outcome::Meanwhile | Outcome::Skipped) => 0,
                Ok(Outcome::Left | Outcome::ToDecide) => failures + 1,
                Err(error @ Error::TooManyRemovals { .. }) => {
                    tracing::error!("{error}");
                    self.store.note_too_many_removals().await?;
                    failures + 1
                }
                // Those that are under way are of the same fate.
                Err(error) => return Err(error),
            };
            // However short the delay, nobody is asked for the same again and again.
            let pause = self.settings.delay.max(FIRST_PAUSE);
            let pause = pause * 2_u32.saturating_pow(failures.min(16));
            let at = Instant::now() + pause.min(LONGEST_WAIT);
            still.insert(group, Again { at, failures });
        }
        Ok(())
    }

    /// What checks remove is counted from one cycle to the next, of whichever process.
    pub(super) async fn begin_anew_after_a_cycle(
        &self,
        (since, removals): &mut (Option<i64>, Arc<Removals>),
    ) -> Result<(), Error> {
        let (last, _) = self.store.last_runs().await?;
        // One that did not come to its end has told nothing.
        if let Some(last) = last
            && *since != Some(last.id)
            && (last.stopped_by.is_none() || last.has_too_many_removals())
        {
            let is_exceeded = last.has_too_many_removals();
            let anew = Removals::new(false, is_exceeded, 0);
            (*since, *removals) = (Some(last.id), Arc::new(anew));
        }
        Ok(())
    }
}
