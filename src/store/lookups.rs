//! Reads of single members: those that wait at the same moment are one statement.
//!
//! Whoever asks first starts a task; what comes while it is at its statement waits, and is its next.
//! A second task starts where that is the faster way: for a few at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::read::{MemberRow, member, memberships};
use super::{Error, Store};
use crate::domain::{GroupId, UserId};

/// Most pairs of a statement, but that one question may have more.
const MOST: usize = 1000;
/// Most statements at a time.
const TASKS: usize = 2;
/// Up to so many pairs a second statement is worth its cost.
const FEW: usize = 4;
/// From so many pairs on, a statement may take so long that nobody should have to wait for it.
const MANY: usize = 300;

type Pair = (GroupId, UserId);

/// A question: the current members of these, in their order.
#[derive(Debug)]
struct Asked {
    pairs: Arc<[Pair]>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Vec<Option<MemberRow>>, Error>>,
}

/// What is asked and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Lookups(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    asked: Vec<Asked>,
    /// Pairs of these.
    pairs: usize,
    tasks: usize,
    /// Pairs that the tasks look up now.
    looked_up: usize,
}

impl Lookups {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn wants_task(&self) -> bool {
        let is_worth_it = self.looked_up <= FEW || self.looked_up >= MANY || self.pairs >= MOST;
        self.tasks == 0 || (self.tasks < TASKS && is_worth_it)
    }

    /// The next questions, of as many pairs as a statement has.
    fn take(&mut self) -> Vec<Asked> {
        let mut pairs = 0;
        let fit = self.asked.iter().take_while(|asked| {
            let is_first = pairs == 0;
            pairs += asked.pairs.len();
            is_first || pairs <= MOST
        });
        let fit = fit.count();
        let rest = self.asked.split_off(fit);
        let taken = std::mem::replace(&mut self.asked, rest);
        self.pairs -= count(&taken);
        taken
    }
}

fn count(asked: &[Asked]) -> usize {
    asked.iter().map(|asked| asked.pairs.len()).sum()
}

/// A task, counted for as long as it runs, also where it panics.
struct Task<'a> {
    lookups: &'a Lookups,
    looks_up: usize,
    is_over: bool,
}

impl Task<'_> {
    /// The next questions; those before are answered. The task is over where there are none.
    fn next(&mut self) -> Option<Vec<Asked>> {
        let mut waiting = self.lookups.waiting();
        waiting.looked_up -= self.looks_up;
        let asked = waiting.take();
        self.looks_up = count(&asked);
        waiting.looked_up += self.looks_up;
        if asked.is_empty() {
            // In the same moment, so that whoever asks next starts another.
            waiting.tasks -= 1;
            self.is_over = true;
            return None;
        }
        Some(asked)
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let mut waiting = self.lookups.waiting();
            waiting.looked_up -= self.looks_up;
            waiting.tasks -= 1;
            if waiting.tasks == 0 {
                // Nobody would answer these; they are told so.
                waiting.asked.clear();
                waiting.pairs = 0;
            }
        }
    }
}

impl Store {
    /// Looks up pairs, together with what others ask at the same moment.
    pub(super) async fn look_up(
        &self,
        pairs: Arc<[Pair]>,
    ) -> Result<Vec<Option<MemberRow>>, Error> {
        if pairs.is_empty() {
            return Ok(vec![]);
        }
        let deadline = Instant::now() + self.patience;
        let (answer, answered) = oneshot::channel();
        let starts = {
            let mut waiting = self.lookups.waiting();
            waiting.pairs += pairs.len();
            waiting.asked.push(Asked {
                pairs,
                deadline,
                answer,
            });
            let starts = waiting.wants_task();
            waiting.tasks += usize::from(starts);
            starts
        };
        if starts {
            let store = self.clone();
            tokio::spawn(async move { store.look_up_what_waits().await });
        }
        // By half as much again as a question may take, for the task has a bound; a timer for each
        // question would cost more than it does.
        // Without an answer: the task panicked.
        answered.await.unwrap_or_else(|_| Err(Error::gave_up()))
    }

    async fn look_up_what_waits(&self) {
        let mut task = Task {
            lookups: &self.lookups,
            looks_up: 0,
            is_over: false,
        };
        while let Some(asked) = task.next() {
            // For what is over there is no time.
            let now = Instant::now();
            let (asked, late): (Vec<_>, Vec<_>) =
                asked.into_iter().partition(|asked| asked.deadline > now);
            for asked in late {
                let _ = asked.answer.send(Err(Error::gave_up()));
            }
            let deadlines = asked.iter().map(|asked| asked.deadline);
            let (Some(first), Some(last)) = (deadlines.clone().min(), deadlines.max()) else {
                continue;
            };
            // The last has its full time, unless the first would wait too long for that.
            let deadline = last.min(first + self.patience / 2);
            let pairs: Vec<&Pair> = asked.iter().flat_map(|asked| &*asked.pairs).collect();
            let found = self.read_by(deadline, async |connection| match pairs[..] {
                // Arrays cost a lone one more.
                [(group, user)] => Ok(vec![member(connection, group, user).await?]),
                _ => memberships(connection, &pairs).await,
            });
            let mut found = found.await.map(Vec::into_iter);
            for Asked { pairs, answer, .. } in asked {
                let of_this = match &mut found {
                    Ok(members) => Ok(members.by_ref().take(pairs.len()).collect()),
                    Err(error) => Err(error.clone()),
                };
                // Whoever hung up does not hear of it.
                let _ = answer.send(of_this);
            }
        }
    }
}
