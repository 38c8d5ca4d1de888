//! What goes on beside serving until it is told to end.
//!
//! Nobody waits for such a task, so one that panics or returns early would be missed in silence. Here it is
//! told to whoever looks after all of them, who ends the process in order.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// All tasks of a process. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The first that ended early.
    ended_early: OnceLock<EndedEarly>,
    has_one: CancellationToken,
}

/// A task that ended before it was told to, or in a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedEarly {
    /// What the task does.
    pub name: &'static str,
    /// Whether it panicked; what it said then is on standard error.
    pub has_panicked: bool,
}

impl fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.has_panicked {
            true => "by a panic",
            false => "by itself",
        };
        write!(
            f,
            "the task that {} has ended before its time, {how}",
            self.name
        )
    }
}

impl Tasks {
    /// A task that is not started yet; `name` says what it does, such as "writes marks".
    pub fn task(&self, name: &'static str) -> Task {
        Task {
            name,
            tasks: self.clone(),
            running: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// The first task that has ended early.
    pub fn ended_early(&self) -> Option<EndedEarly> {
        self.0.ended_early.get().copied()
    }

    /// Waits until one has.
    pub async fn until_one_ends_early(&self) -> EndedEarly {
        loop {
            self.0.has_one.cancelled().await;
            // It is there before anybody is told.
            if let Some(ended) = self.ended_early() {
                return ended;
            }
        }
    }

    fn has_ended_early(&self, ended: EndedEarly) {
        // Only the first is told: it may be the reason of the others.
        let _ = self.0.ended_early.set(ended);
        self.0.has_one.cancel();
    }
}

/// Something that goes on until it is told to end. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Task {
    name: &'static str,
    tasks: Tasks,
    running: TaskTracker,
    closing: CancellationToken,
}

impl Task {
    /// Starts it, which may be done more than once. It has to go on until the token is cancelled.
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

    /// Tells it to end.
    pub fn close(&self) {
        self.closing.cancel();
        self.running.close();
    }

    /// Tells it to end, and waits until it has.
    pub async fn end(&self) {
        self.close();
        self.running.wait().await;
    }
}

/// Sees how a task ends: it is dropped with it.
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
        ended.expect("it is told")
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_early_is_told_by_its_name() {
        let tasks = Tasks::default();
        let going_on = tasks.task("goes on");
        going_on.start(|closing| async move { closing.cancelled().await });
        let panics = tasks.task("panics");
        panics.start(|_| async {
            tokio::task::yield_now().await;
            panic!("as it is to");
        });
        let told = ended(&tasks).await;
        assert_eq!((told.name, told.has_panicked), ("panics", true));
        assert_eq!(
            told.to_string(),
            "the task that panics has ended before its time, by a panic"
        );
        // Those that follow are not told, and the others can be ended in order.
        let returns = tasks.task("returns");
        returns.start(|_| async {});
        timeout(BOUND, returns.running.wait())
            .await
            .expect_err("it is not closed");
        assert_eq!(tasks.ended_early(), Some(told));
        for task in [going_on, panics, returns] {
            timeout(BOUND, task.end()).await.expect("it ends");
        }

        let tasks = Tasks::default();
        tasks.task("returns").start(|_| async {});
        let told = ended(&tasks).await;
        assert_eq!((told.name, told.has_panicked), ("returns", false));
    }

    #[tokio::test]
    async fn one_that_ends_when_it_is_told_to_is_no_news_unless_it_panics_then() {
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
        let told = tasks.ended_early().unwrap();
        assert_eq!((told.name, told.has_panicked), ("panics at last", true));
    }
}
