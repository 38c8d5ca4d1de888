//! Faults under load: what was answered is in Postgres in the end, once and in its order.

#![expect(clippy::print_stdout, reason = "the seed, and what was counted")]

use std::time::Duration;

use crate::support::{End, Fault, TIMEOUT, Tally, abuse, damage, new_seed, suffer, tamper};

const LONG: Duration = Duration::from_secs(10);

async fn under(fault: Fault, long: Duration) -> Tally {
    let seed = new_seed();
    println!("{fault:?}: seed {seed}");
    let tally = suffer(fault, long, seed).await;
    println!("{tally:?}");
    assert_eq!(
        (tally.lost, tally.reordered, tally.marks, tally.odd),
        (0, 0, 0, 0),
        "{}",
        tally.notes.join("\n")
    );
    assert!(tally.slowest < TIMEOUT);
    tally
}

/// Faults of the database or the network to it: no client notices them.
async fn unnoticed(fault: Fault) {
    let tally = under(fault, LONG).await;
    assert_eq!((tally.refused, tally.unanswered), (0, 0));
}

/// The count sees what is lost, what is older than it should be, and what wants a check.
#[tokio::test]
async fn what_is_not_as_it_was_answered_is_counted() {
    let tally = tamper(new_seed()).await;
    assert_eq!(
        (tally.lost, tally.reordered, tally.marks),
        (2, 1, 1),
        "{}",
        tally.notes.join("\n")
    );
}

#[tokio::test]
async fn connections_are_cut() {
    unnoticed(Fault::Cut).await;
}

#[tokio::test]
async fn connections_fall_silent() {
    unnoticed(Fault::Silent).await;
}

#[tokio::test]
async fn the_way_to_postgres_is_slow() {
    unnoticed(Fault::Slow).await;
}

#[tokio::test]
async fn postgres_is_killed_and_started_again() {
    unnoticed(Fault::PostgresKilled).await;
}

#[tokio::test]
async fn postgres_is_stopped_in_its_tracks() {
    unnoticed(Fault::PostgresStopped).await;
}

/// Callbacks in progress at the kill are not answered. Every answered one is stored.
#[tokio::test]
async fn the_service_is_killed_at_random_moments() {
    let tally = under(Fault::ServiceKilled, LONG).await;
    assert_eq!(tally.refused, 0);
}

#[tokio::test]
async fn the_service_and_postgres_are_killed_at_once() {
    let tally = under(Fault::BothKilled, LONG).await;
    assert_eq!(tally.refused, 0);
}

#[tokio::test]
async fn the_spool_is_full() {
    let tally = under(Fault::SpoolFull, LONG).await;
    assert!(tally.refused >= 20 && tally.unanswered == 0, "{tally:?}");
}

#[tokio::test]
async fn the_disk_is_full() {
    let tally = under(Fault::DiskFull, LONG).await;
    assert!(tally.refused >= 20 && tally.unanswered == 0, "{tally:?}");
}

#[tokio::test]
async fn the_spool_is_damaged() {
    for end in [End::Stopped, End::Killed, End::Stopped, End::Killed] {
        let seed = new_seed();
        println!("{end:?}: seed {seed}");
        let (is_told, tally) = damage(end, seed).await;
        println!("told: {is_told}, {} lost", tally.lost);
        // Something may be missing, but never without a word.
        let missing = tally.lost + tally.marks;
        assert!(is_told || missing == 0, "{tally:?}");
    }
}

/// Slow and half-open connections, bodies of 16 MiB whole and in part, and bodies that are none:
/// whoever sends callbacks as OpenIM does is answered all the same, in memory that is bounded.
#[tokio::test]
async fn a_thousand_odd_connections_harm_nobody_else() {
    let seed = new_seed();
    println!("seed {seed}");
    let (peak, tally) = abuse(seed).await;
    println!("{} MiB, {tally:?}", peak >> 20);
    assert_eq!(
        (tally.lost, tally.marks, tally.odd),
        (0, 0, 0),
        "{}",
        tally.notes.join("\n")
    );
    assert_eq!((tally.refused, tally.unanswered), (0, 0));
    assert!(tally.slowest < TIMEOUT);
    assert!(peak <= 512 << 20, "{peak}");
}
