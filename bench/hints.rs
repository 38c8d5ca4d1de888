//! Time and cost of a hint until it is in the mirror, and the effect of ordinary messages on callbacks: see
//! bench/README.md.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program of the tests"
)]

#[allow(
    dead_code,
    unused_imports,
    reason = "made for the tests, which use all of it"
)]
#[path = "../tests/it/support/mod.rs"]
mod support;

#[allow(dead_code, reason = "made for bench/reconcile too")]
mod bed;
#[path = "hints_changes.rs"]
mod changes;
#[allow(dead_code, reason = "made for bench/reconcile too")]
mod load;
#[path = "hints_messages.rs"]
mod messages;
#[allow(dead_code, reason = "made for bench/reconcile too")]
mod openim;

use std::sync::Arc;
use std::time::Duration;

use bed::{Bench, cpu_of, eprint, grouped};
use changes::{Changes, KINDS, Kind};
use load::{Latencies, Load};
use messages::{MESSAGE, Messages, UNKNOWN};
use openim::World;
use support::{Random, new_seed};

/// Groups whose members change, of as many members each, and one large one before them.
const GROUPS: usize = 1000;
const SIZE: u32 = 20;
const LARGE: u32 = 100_000;
/// Duration of changes in a round.
const LONG: Duration = Duration::from_secs(20);
const ROUNDS: usize = 3;
/// Duration of callbacks beside messages.
const BESIDE: Duration = Duration::from_secs(5);
const ROUNDS_BESIDE: usize = 16;
/// After a look, until another has been made to be sure.
const ONE_MORE: Duration = Duration::from_secs(6);

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sizes = vec![LARGE];
        sizes.extend([SIZE; GROUPS]);
        let listed = sizes.len();
        let bench = Bench::start(World::new(sizes, listed, |_| false)).await;
        println!("# Hints\n");
        println!(
            "A stand-in for OpenIM, the senders of callbacks, the service (release build, default settings) and \
             Postgres share two processors. Each change is made in the stand-in, which sends \
             callbackAfterSendGroupMsgCommand at once. The change is in the mirror when another session of \
             Postgres is notified of its commit.\n"
        );
        // For whoever works at that alone.
        if !std::env::args().any(|argument| argument == "--messages") {
            one_change(&bench).await;
            many_changes(&bench).await;
        }
        beside_messages(&bench).await;
    });
}

/// In the large group.
async fn one_change(bench: &Bench) {
    let service = bench.service(&[]);
    bench.until_run_after(0).await;
    let changes = Changes::start(&service.base, bench, 0..1).await;
    println!(
        "One change in a group of {} members:\n",
        grouped(LARGE.into())
    );
    println!(
        "| contentType | change | in the mirror after | calls | bytes of the answers, before gzip | calls and bytes of the second look, 4 s later |"
    );
    println!("| --- | --- | ---: | --- | ---: | --- |");
    let mut random = Random::new(new_seed(), 0);
    for kind in [Kind::Invited, Kind::MemberMuted, Kind::Muted] {
        eprint(&format!("a change in a large group, {}", kind.code()));
        bench.world.take_calls();
        changes.make(kind, &mut random).await;
        changes.until_seen().await;
        let took = changes.take()[&kind].quantile(500);
        let first = bench.world.take_calls();
        tokio::time::sleep(ONE_MORE).await;
        let more = bench.world.take_calls();
        println!(
            "| {} | {} | {took:.0} ms | {} | {} | {}, {} bytes |",
            kind.code(),
            kind.name(),
            first.list(),
            grouped(first.bytes as u64),
            more.list(),
            grouped(more.bytes as u64),
        );
    }
    println!();
}

/// At a steady rate, in many groups.
async fn many_changes(bench: &Bench) {
    println!(
        "{} changes a second in {} groups of {SIZE} members, {} s a round; milliseconds from the \
         notification of each change:\n",
        changes::RATE,
        grouped(GROUPS as u64),
        LONG.as_secs()
    );
    println!(
        "| round | contentType | changes | p50 | p99 | p99.9 | max | calls of OpenIM's API a second |"
    );
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut all = Latencies::default();
    let last = bench.last_id().await;
    let service = bench.service(&[]);
    bench.until_run_after(last).await;
    let changes = Changes::start(&service.base, bench, 1..=GROUPS).await;
    for round in 1..=ROUNDS {
        eprint(&format!("round {round}: many changes"));
        bench.world.take_calls();
        changes.make_all(LONG, new_seed()).await;
        let calls: u64 = bench.world.take_calls().paths.values().sum();
        changes.until_seen().await;
        let seen = changes.take();
        let mut of_round = Latencies::default();
        for kind in KINDS {
            let Some(latencies) = seen.get(&kind) else {
                continue;
            };
            println!(
                "| {round} | {} {} | {} | {} | |",
                kind.code(),
                kind.name(),
                grouped(latencies.count() as u64),
                latencies.columns(),
            );
            of_round.add(latencies);
        }
        println!(
            "| {round} | all | {} | {} | {} |",
            grouped(of_round.count() as u64),
            of_round.columns(),
            calls / LONG.as_secs(),
        );
        all.add(&of_round);
    }
    println!(
        "| all | all | {} | {} | |\n",
        grouped(all.count() as u64),
        all.columns()
    );
}

/// Callbacks alone, beside ordinary messages, and beside as many of an unknown command.
async fn beside_messages(bench: &Bench) {
    let live: Arc<Vec<usize>> = Arc::new((1..=GROUPS).collect());
    println!(
        "{} callbacks a second over 16 connections, each a new nickname, beside {} messages of 1 KiB a \
         second over {} connections; milliseconds from the time at which each callback was due. The message \
         is callbackAfterSendGroupMsgCommand with contentType 101, or the same bytes as a command that the \
         service passes over:\n",
        load::RATE,
        grouped(messages::RATE as u64),
        messages::CONNECTIONS,
    );
    println!(
        "| round | beside | messages a second | callbacks | failed | p50 | p99 | p99.9 | max | CPU of the service, a message |"
    );
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let last = bench.last_id().await;
    let service = bench.service(&[]);
    bench.until_run_after(last).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pid = service.pid().to_string();
    let names = ["nothing", "messages", "an unknown command"];
    let mut all: [Latencies; 3] = Default::default();
    let mut ratios = [Vec::new(), Vec::new()];
    let mut p99s = [Vec::new(), Vec::new(), Vec::new()];
    for round in 1..=ROUNDS_BESIDE {
        let mut of_round = [[0.0; 2]; 3];
        let mut cpu_alone = 0.0;
        // What comes last in one round comes first in the next.
        let order = if round % 2 == 0 { [0, 2, 1] } else { [0, 1, 2] };
        for place in order {
            eprint(&format!("round {round}: callbacks beside {}", names[place]));
            let messages = [None, Some(MESSAGE), Some(UNKNOWN)][place]
                .map(|command| Messages::start(&service.base, command));
            let load = Load::start(&service.base, &bench.world, &live, new_seed());
            let before = cpu_of(&pid, false);
            tokio::time::sleep(BESIDE).await;
            let cpu = cpu_of(&pid, false) - before;
            let latencies = load.end();
            let sent = messages.map_or(0, Messages::end);
            let seconds = BESIDE.as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let rate = sent as f64 / seconds;
            if place == 0 {
                cpu_alone = cpu;
            }
            let each = match place {
                0 => "–".to_owned(),
                _ => format!("{:.0} µs", (cpu - cpu_alone) / (rate * seconds) * 1e6),
            };
            println!(
                "| {round} | {} | {rate:.0} | {} | {} | {} | {each} |",
                names[place],
                grouped(latencies.count() as u64),
                latencies.failed,
                latencies.columns(),
            );
            of_round[place] = [latencies.quantile(500), latencies.quantile(990)];
            p99s[place].push(latencies.quantile(990));
            all[place].add(&latencies);
        }
        for (ratios, place) in ratios.iter_mut().zip([0, 1]) {
            ratios.push(of_round[1][place] / of_round[2][place]);
        }
    }
    for (name, latencies) in names.into_iter().zip(&all) {
        println!(
            "| all | {name} | | {} | {} | {} | |",
            grouped(latencies.count() as u64),
            latencies.failed,
            latencies.columns(),
        );
    }
    let [p50, p99] = ratios.map(median);
    let [alone, messages, unknown] = p99s.map(median);
    println!(
        "\nCallbacks beside messages have {p50:.2} x the p50 and {p99:.2} x the p99 of callbacks beside as many of \
         an unknown command (medians of the rounds' ratios). The median of the rounds' p99 is {alone:.1} ms beside \
         nothing, {messages:.1} ms beside messages, {unknown:.1} ms beside an unknown command."
    );
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2])
}
