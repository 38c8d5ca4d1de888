//! Every fault in turn, for as many minutes as asked, and what became of the callbacks: see
//! bench/soak.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program of the tests"
)]

#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "made for the tests, which use all of it"
)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::{End, Fault, Tally, abuse, damage, new_seed, suffer};

/// Duration of a fault.
const LONG: Duration = Duration::from_secs(10);
/// OpenIM gives up after 5 s; the answer should come well before.
const GOAL: Duration = Duration::from_secs(3);

const FAULTS: [(Fault, &str); 9] = [
    (Fault::Cut, "connections cut for 10 s"),
    (Fault::Silent, "the network swallows everything for 10 s"),
    (Fault::Slow, "everything takes 0.3 s longer for 10 s"),
    (Fault::PostgresKilled, "Postgres killed, back after 10 s"),
    (Fault::PostgresStopped, "Postgres stopped for 10 s"),
    (Fault::ServiceKilled, "the service killed 20 times"),
    (
        Fault::BothKilled,
        "the service and Postgres killed at once, twice",
    ),
    (Fault::SpoolFull, "the spool full"),
    (Fault::DiskFull, "the disk full"),
];
const ENDS: [(End, &str); 2] = [
    (End::Stopped, "the spool damaged after a stop"),
    (End::Killed, "the spool damaged after a kill"),
];

struct Row {
    name: &'static str,
    rounds: u32,
    tally: Tally,
}

fn main() -> ExitCode {
    let minutes = std::env::args().find_map(|argument| argument.parse::<f64>().ok());
    let long = Duration::from_secs_f64(60.0 * minutes.unwrap_or(10.0));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seed = new_seed();
    eprint(&format!("seed {seed}"));
    let rows = runtime.block_on(soak(long, seed));
    println!(
        "| fault | rounds | sent | answered | refused | unanswered | stored | lost | reordered | slowest answer |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut all = Row {
        name: "all",
        rounds: 0,
        tally: Tally::default(),
    };
    for row in &rows {
        print(row);
        all.rounds += row.rounds;
        add(&mut all.tally, &row.tally);
    }
    print(&all);
    for note in &all.tally.notes {
        println!("{note}");
    }
    if all.tally.slowest > GOAL {
        println!("the slowest answer took longer than {GOAL:?}");
    }
    let Tally {
        lost,
        reordered,
        marks,
        odd,
        ..
    } = all.tally;
    if lost + reordered + marks + odd == 0 {
        ExitCode::SUCCESS
    } else {
        println!("{lost} lost, {reordered} reordered, {marks} odd marks, {odd} odd answers");
        ExitCode::FAILURE
    }
}

fn print(row: &Row) {
    let Row {
        name,
        rounds,
        tally,
    } = row;
    println!(
        "| {name} | {rounds} | {} | {} | {} | {} | {} | {} | {} | {:.2} s |",
        tally.sent,
        tally.answered,
        tally.refused,
        tally.unanswered,
        tally.stored,
        tally.lost,
        tally.reordered,
        tally.slowest.as_secs_f64()
    );
}

async fn soak(long: Duration, seed: u64) -> Vec<Row> {
    let began = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    let mut round = 0;
    while round == 0 || began.elapsed() < long {
        let seed = seed.wrapping_add(round);
        for (fault, name) in FAULTS {
            eprint(name);
            let tally = suffer(fault, LONG, seed).await;
            count(&mut rows, name, &tally);
        }
        for (end, name) in ENDS {
            eprint(name);
            let (is_told, mut tally) = damage(end, seed).await;
            if is_told {
                // What a damaged file has lost is told, and nothing of ours.
                (tally.lost, tally.reordered, tally.marks) = (0, 0, 0);
                tally.notes.clear();
            }
            count(&mut rows, name, &tally);
        }
        let name = "odd connections, large bodies, nonsense";
        eprint(name);
        let (_peak, tally) = abuse(seed).await;
        count(&mut rows, name, &tally);
        round += 1;
    }
    rows
}

fn count(rows: &mut Vec<Row>, name: &'static str, tally: &Tally) {
    let row = rows.iter_mut().find(|row| row.name == name);
    match row {
        Some(row) => {
            row.rounds += 1;
            add(&mut row.tally, tally);
        }
        None => rows.push(Row {
            name,
            rounds: 1,
            tally: tally.clone(),
        }),
    }
}

fn add(sum: &mut Tally, other: &Tally) {
    sum.sent += other.sent;
    sum.answered += other.answered;
    sum.refused += other.refused;
    sum.odd += other.odd;
    sum.unanswered += other.unanswered;
    sum.stored += other.stored;
    sum.lost += other.lost;
    sum.reordered += other.reordered;
    sum.marks += other.marks;
    sum.slowest = sum.slowest.max(other.slowest);
    other.notes.iter().for_each(|note| sum.note(note.clone()));
}

/// Prints the progress, for people who wait.
#[allow(clippy::print_stderr, reason = "not of the table")]
fn eprint(what: &str) {
    eprintln!("{what}");
}
