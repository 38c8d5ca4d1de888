//! The supervised set of named tasks, which is all work beside requests.
//!
//! Nobody waits for such a task, so a panic or an early return would pass in silence. Here it is reported, and the
//! process stops in order.

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
    /// Timeout of a last turn at the end. With it, no turn is interrupted. `None`: the end interrupts the turn, and
    /// there is no last one.
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
        let mut failures = Failures {
            name: self.name,
            logged_at: None,
        };
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
    fn log<E: fmt::Display>(&mut self, done: Result<(), E>) {
        let Err(error) = done else {
            self.logged_at = None;
            return;
        };
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            tracing::warn!(
                error = error.to_string(),
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
