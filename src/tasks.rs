//! The supervised set of named tasks, which is all work beside requests.
//!
//! Nobody waits for such a task, so a panic or an early return would pass in silence. Here it is reported, and
//! the process stops in order.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Interval at which an error that goes on is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// All tasks of a process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The first task that ended early. It may be the reason of the others.
    ended_early: OnceLock<EndedEarly>,
    has_one: CancellationToken,
}

/// A task that panicked, or returned before it had to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedEarly {
    /// Name of the task.
    pub name: &'static str,
    /// True after a panic. Its place is in the log.
    pub has_panicked: bool,
}

impl fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.has_panicked {
            true => "by a panic",
            false => "by a return",
        };
        write!(f, "the task that {} ended early, {how}", self.name)
    }
}

/// Times of a periodic task.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    /// Delay of the first turn.
    pub first: Duration,
    /// Interval after a turn that succeeded.
    pub interval: Duration,
    /// Interval after a turn that failed.
    pub retry: Duration,
    /// Timeout of a last turn at the end. With it, no turn is interrupted. `None`: the end interrupts the
    /// turn, and there is no last one.
    pub last: Option<Duration>,
}

impl Period {
    /// A turn after each interval.
    pub const fn every(interval: Duration) -> Self {
        Self {
            first: interval,
            interval,
            retry: interval,
            last: None,
        }
    }
}

impl Tasks {
    /// A task that is not started yet. `name` completes "the task that ...".
    pub fn task(&self, name: &'static str) -> Task {
        Task {
            name,
            tasks: self.clone(),
            running: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Starts a task that repeats `work`. An error is logged at once, and then once a minute.
    pub fn periodic<E: fmt::Display + Send, F: Future<Output = Result<(), E>> + Send + 'static>(
        &self,
        name: &'static str,
        period: Period,
        work: impl FnMut() -> F + Send + 'static,
    ) -> Task {
        let task = self.task(name);
        task.repeat(period, work);
        task
    }

    /// The first task that has ended early.
    pub fn ended_early(&self) -> Option<EndedEarly> {
        self.0.ended_early.get().copied()
    }

    /// Waits for a task that ends early.
    pub async fn until_one_ends_early(&self) -> EndedEarly {
        loop {
            self.0.has_one.cancelled().await;
            // It is set before the token is cancelled.
            if let Some(ended) = self.ended_early() {
                return ended;
            }
        }
    }

    fn has_ended_early(&self, ended: EndedEarly) {
        let _ = self.0.ended_early.set(ended);
        self.0.has_one.cancel();
    }
}

/// Starts work that ends by itself, and goes on if the caller stops to wait for it.
pub fn detached<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(work)
}

/// Work that goes on until it is closed. Clones share it.
#[derive(Clone, Debug)]
pub struct Task {
    name: &'static str,
    tasks: Tasks,
    running: TaskTracker,
    closing: CancellationToken,
}

impl Task {
    /// Starts `run`, which has to go on until the token is cancelled. May be called more than once.
    pub fn start<F: Future<Output = ()> + Send + 'static>(
        &self,
        run: impl FnOnce(CancellationToken) -> F,
    ) {
        let watched = Watched(self.clone());
        let run = run(self.closing.clone());
        self.running.spawn(async move {
            let _watched = watched;
            run.await;
        });
    }

    /// Starts the repetition of `work`, see [`Tasks::periodic`].
    pub fn repeat<E: fmt::Display + Send, F: Future<Output = Result<(), E>> + Send + 'static>(
        &self,
        period: Period,
        mut work: impl FnMut() -> F + Send + 'static,
    ) {
        let mut failures = Failures::new(self.name);
        self.start(|closing| async move {
            let mut pause = period.first;
            while timeout(pause, closing.cancelled()).await.is_err() {
                let done = match period.last {
                    Some(_) => Some(work().await),
                    None => closing.run_until_cancelled(work()).await,
                };
                let Some(done) = done else { return };
                pause = match done {
                    Ok(()) => period.interval,
                    Err(_) => period.retry,
                };
                failures.log(done);
            }
            if let Some(limit) = period.last
                && let Ok(done) = timeout(limit, work()).await
            {
                failures.log(done);
            }
        });
    }

    /// Asks the task to end.
    pub fn close(&self) {
        self.closing.cancel();
        self.running.close();
    }

    /// Asks the task to end, and waits for its end.
    pub async fn end(&self) {
        self.close();
        self.running.wait().await;
    }
}

/// The errors of a periodic task, for the log.
struct Failures {
    name: &'static str,
    logged_at: Option<Instant>,
}

impl Failures {
    fn new(name: &'static str) -> Self {
        let logged_at = None;
        Self { name, logged_at }
    }

    fn log<E: fmt::Display>(&mut self, done: Result<(), E>) {
        let Err(error) = done else {
            self.logged_at = None;
            return;
        };
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            let error = error.to_string();
            tracing::warn!(
                error,
                "the task that {} failed; it is tried again",
                self.name
            );
        }
    }
}

/// Reports the end of a task when it is dropped with it.
struct Watched(Task);

impl Drop for Watched {
    fn drop(&mut self) {
        let Self(task) = self;
        let has_panicked = std::thread::panicking();
        if has_panicked || !task.closing.is_cancelled() {
            task.tasks.has_ended_early(EndedEarly {
                name: task.name,
                has_panicked,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    async fn ended(tasks: &Tasks) -> EndedEarly {
        let ended = timeout(BOUND, tasks.until_one_ends_early()).await;
        ended.expect("it is reported")
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_early_is_reported_by_its_name() {
        let tasks = Tasks::default();
        let going_on = tasks.task("goes on");
        going_on.start(|closing| async move { closing.cancelled().await });
        let panics = tasks.task("panics");
        panics.start(|_| async {
            tokio::task::yield_now().await;
            panic!("as it is to");
        });
        let ended_early = ended(&tasks).await;
        assert_eq!(
            (ended_early.name, ended_early.has_panicked),
            ("panics", true)
        );
        assert_eq!(
            ended_early.to_string(),
            "the task that panics ended early, by a panic"
        );
        // Later ones are not reported, and the others end in order.
        let returns = tasks.task("returns");
        returns.start(|_| async {});
        timeout(Duration::from_millis(100), returns.running.wait())
            .await
            .expect_err("it is not closed");
        assert_eq!(tasks.ended_early(), Some(ended_early));
        for task in [going_on, panics, returns] {
            timeout(BOUND, task.end()).await.expect("it ends");
        }

        let tasks = Tasks::default();
        tasks.task("returns").start(|_| async {});
        let ended_early = ended(&tasks).await;
        assert_eq!(
            (ended_early.name, ended_early.has_panicked),
            ("returns", false)
        );
    }

    #[tokio::test]
    async fn a_task_that_ends_when_it_is_closed_is_reported_only_after_a_panic() {
        let tasks = Tasks::default();
        let task = tasks.task("goes on");
        for _ in 0..3 {
            task.start(|closing| async move { closing.cancelled().await });
        }
        timeout(BOUND, task.end()).await.expect("it ends");
        assert_eq!(tasks.ended_early(), None);
        let task = tasks.task("panics at last");
        task.start(|closing| async move {
            closing.cancelled().await;
            panic!("as it is to");
        });
        timeout(BOUND, task.end()).await.expect("it ends");
        let ended_early = tasks.ended_early().unwrap();
        assert_eq!(
            (ended_early.name, ended_early.has_panicked),
            ("panics at last", true)
        );
    }

    #[tokio::test]
    async fn a_periodic_task_retries_and_has_a_last_turn() {
        let (turns, mut turned) = tokio::sync::watch::channel(0);
        let work = move || {
            turns.send_modify(|count| *count += 1);
            let done = match *turns.borrow() {
                1 => Err("at first"),
                _ => Ok(()),
            };
            async move { done }
        };
        let tasks = Tasks::default();
        let period = Period {
            first: Duration::from_millis(1),
            interval: Duration::from_secs(3600),
            retry: Duration::from_millis(1),
            last: Some(BOUND),
        };
        let task = tasks.periodic("counts", period, work);
        let second = turned.wait_for(|count| *count == 2);
        timeout(BOUND, second).await.expect("a retry").unwrap();
        timeout(BOUND, task.end()).await.expect("it ends");
        assert_eq!(*turned.borrow(), 3);
        assert_eq!(tasks.ended_early(), None);
    }
}
