//! So many calls a second: hints come when they come, and OpenIM serves its users first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task_local;
use tokio::time::{Instant, sleep_until};

/// Calls that may be made at one moment, where none were for a while.
const AT_ONCE: u32 = 10;
/// From one call to the next where there are many: with those at once, 200 in any second.
const APART: Duration = Duration::from_micros(1_000_000 / 190);

/// A turn for each call.
#[derive(Debug)]
pub(super) struct Pace {
    apart: Duration,
    at_once: u32,
    /// When the next call would be made if none were made at once.
    next: Mutex<Option<Instant>>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            apart: APART,
            at_once: AT_ONCE,
            next: Mutex::default(),
        }
    }
}

impl Pace {
    fn next(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a call may be made that is wanted now.
    fn turn(&self, now: Instant) -> Instant {
        let mut next = self.next();
        let planned = next.unwrap_or(now).max(now);
        *next = Some(planned + self.apart);
        self.turn_of(planned, now)
    }

    fn turn_of(&self, planned: Instant, now: Instant) -> Instant {
        // So far ahead of the plan are those that are made at once.
        let ahead = self.apart * (self.at_once - 1);
        planned.checked_sub(ahead).unwrap_or(now).max(now)
    }

    /// Waits until a call would not have to wait. Whoever gathers what to ask does it meanwhile, so that one
    /// call is about more.
    pub(super) async fn until_free(&self) {
        loop {
            let now = Instant::now();
            let planned = self.next().unwrap_or(now);
            let turn = self.turn_of(planned, now);
            if turn <= now {
                return;
            }
            sleep_until(turn).await;
        }
    }
}

task_local! {
    static PACE: Arc<Pace>;
}

/// Does something whose calls each wait for a turn, whoever in it makes them.
pub(super) async fn paced<T>(pace: &Arc<Pace>, work: impl Future<Output = T>) -> T {
    PACE.scope(Arc::clone(pace), work).await
}

/// Waits for a turn, if there is something to wait for; whether there is.
pub(super) async fn turn() -> bool {
    let Ok(turn) = PACE.try_with(|pace| pace.turn(Instant::now())) else {
        return false;
    };
    sleep_until(turn).await;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_200_calls_in_any_second_and_few_wait_for_none() {
        let pace = Pace::default();
        let start = Instant::now();
        let turns: Vec<Instant> = (0..1000).map(|_| pace.turn(start)).collect();
        assert!(turns[..10].iter().all(|turn| *turn == start));
        let second = Duration::from_secs(1);
        for (place, turn) in turns.iter().enumerate() {
            let within = turns[place..].iter().take_while(|t| **t < *turn + second);
            assert!(within.count() <= 200);
        }
        assert!(
            turns[999] < start + 6 * second,
            "it is not slower than that"
        );
        // After a pause, no more at once than before.
        let later = start + 60 * second;
        let turns: Vec<Instant> = (0..11).map(|_| pace.turn(later)).collect();
        assert!(turns[9] == later && turns[10] > later);
    }

    #[tokio::test]
    async fn where_it_is_free_a_call_need_not_wait() {
        let pace = Pace::default();
        let start = Instant::now();
        while pace.turn(Instant::now()) <= start {}
        pace.until_free().await;
        let now = Instant::now();
        assert!(start < now, "it was not free before");
        assert_eq!(pace.turn(now), now);
    }

    #[tokio::test]
    async fn only_what_is_paced_waits() {
        assert!(!turn().await);
        let pace = Arc::new(Pace::default());
        assert!(paced(&pace, turn()).await);
        assert!(pace.next.lock().unwrap().is_some());
    }
}
