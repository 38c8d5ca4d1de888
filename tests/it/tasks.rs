//! The supervised set of named tasks.

use std::time::Duration;

use tokio::time::timeout;

use openim_group_mirror::tasks::*;

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
    let (returning, returned) = tokio::sync::oneshot::channel::<()>();
    returns.start(|_| async move { drop(returning) });
    timeout(BOUND, returned).await.unwrap().unwrap_err();
    // The report is made when the task is dropped, which follows at once.
    tokio::task::yield_now().await;
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
