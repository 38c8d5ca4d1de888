//! Time and cost of runs, and their effect on callbacks: see
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

mod bed;
#[allow(dead_code, reason = "made for bench/hints too")]
mod load;
#[allow(dead_code, reason = "made for bench/hints too")]
mod openim;

use std::sync::Arc;
use std::time::Duration;

use bed::{BOUND, Bench, cpu_of, eprint, grouped, peak_mib_of};
use load::{Latencies, Load, RATE};
use openim::{Calls, FIRST_GROUP, FIRST_USER, START_MILLIS, STRIDE, USERS, World};
use serde_json::Value;
use support::Service;

const GROUPS: usize = 10_000;
const MEMBERS: u64 = 1_000_000;
/// The largest of them, and the few large ones.
const LARGEST: u32 = 50_000;
const LARGE: usize = 100;
const MIDDLE: usize = 900;
/// Ratio of groups without an owner: 1 to this number.
const OWNERLESS: usize = 10;

/// Groups that are added in a round beside callbacks, of as many members on average.
const ADDED: usize = 1000;
const ROUNDS: usize = 6;
/// Duration of callbacks that have no other end.
const LONG: Duration = Duration::from_secs(5);
/// Groups that callbacks are about, of as many members each.
const LIVE: usize = 200;
/// Numbers of `--million`: all groups, and the groups that are read.
const MILLION: usize = 1_000_000;
const READ: usize = 20_000;

fn main() {
    let is_million = std::env::args().any(|argument| argument == "--million");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        if is_million {
            million().await;
        } else {
            thousands().await;
        }
    });
}

/// Result of a command, and its cost.
struct Ran {
    result: Value,
    seconds: f64,
    calls: Calls,
    peak_mib: u64,
    /// In seconds: of the command, of Postgres, of this process with its server, and of all others.
    cpu: [f64; 4],
    transactions: i64,
    wal_mib: f64,
}

impl Bench {
    /// `openim-group-mirror reconcile`.
    async fn reconcile(&self, flags: &[&str]) -> Ran {
        self.world.take_calls();
        let before = self.counts().await;
        let cpu = self.cpu();
        let variables = self.variables(&[]);
        let mut arguments = vec!["reconcile", "--json"];
        arguments.extend(flags);
        let (mut peak_mib, mut cpu_of_command) = (0, 0.0);
        let ended = tokio::task::block_in_place(|| {
            Service::spawn(&arguments, &variables).end_within(BOUND, |pid| {
                // Of a process that has just ended there is nothing.
                if let Some(peak) = peak_mib_of(pid) {
                    peak_mib = peak;
                    cpu_of_command = cpu_of(&pid.to_string(), false);
                }
            })
        });
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        let [postgres, openim, others] = self.cpu_since(cpu, cpu_of_command);
        let result: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(result["groupsLeft"], 0, "{result}");
        let after = self.counts().await;
        Ran {
            seconds: result["seconds"].as_f64().unwrap(),
            result,
            calls: self.world.take_calls(),
            peak_mib,
            cpu: [cpu_of_command, postgres, openim, others],
            transactions: after.0 - before.0,
            wal_mib: (after.1 - before.1) / 1_048_576.0,
        }
    }
}

fn is_ownerless(group: usize) -> bool {
    group < GROUPS && group % OWNERLESS == OWNERLESS - 1
}

/// Number of members of each group: one group of 50,000, some of thousands, more of hundreds, most of tens. Groups that
/// are added later are like the small ones.
fn skewed_sizes() -> Vec<u32> {
    let mut sizes: Vec<u32> = (0..GROUPS)
        .map(|group| {
            let part = group * 7 % GROUPS; // the large ones are not side by side
            let part = u32::try_from(part).unwrap();
            let (large, middle) = (
                u32::try_from(LARGE).unwrap(),
                u32::try_from(MIDDLE).unwrap(),
            );
            match part {
                0 => LARGEST,
                _ if part <= large => 1000 + part * 4000 / large,
                _ if part <= large + middle => 350,
                _ if part <= large + middle + u32::try_from(LIVE).unwrap() => 10,
                _ => 5 + part % 63,
            }
        })
        .collect();
    let total: u64 = sizes.iter().map(|size| u64::from(*size)).sum();
    let missing = i64::try_from(MEMBERS).unwrap() - i64::try_from(total).unwrap();
    // One more or less for some of the small ones.
    let step = missing.signum();
    let small = sizes.iter_mut().filter(|size| (11..100).contains(*size));
    let count = usize::try_from(missing.unsigned_abs()).unwrap();
    let mut small: Vec<&mut u32> = small.collect();
    let many = small.len();
    for turn in 0..count {
        let size = &mut small[turn % many];
        **size = u32::try_from(i64::from(**size) + step).unwrap();
    }
    let added = (0..ADDED * ROUNDS).map(|group| if group % 100 == 0 { 5050 } else { 50 });
    sizes.extend(added);
    sizes
}

async fn thousands() {
    let bench = Bench::start(World::new(skewed_sizes(), GROUPS, is_ownerless)).await;
    assert_eq!(bench.world.members(), MEMBERS);
    println!("# Runs\n");
    println!(
        "{} groups with {} members in all: one group of {}, {LARGE} of 1,000 to 5,000, {MIDDLE} of 350, the \
         rest of a few tens. {} of the groups have no owner. Release build, default settings. A stand-in for OpenIM and the \
         senders of callbacks share the two processors with the service and Postgres.\n",
        grouped(GROUPS as u64),
        grouped(MEMBERS),
        grouped(LARGEST.into()),
        grouped((GROUPS / OWNERLESS) as u64),
    );
    print_head();
    eprint("a first comparison");
    let first = bench.reconcile(&[]).await;
    assert_eq!(first.result["repairs"]["memberAdded"], MEMBERS);
    assert_eq!(bench.count("group_members").await, MEMBERS);
    first.print("the mirror is empty");
    let digest = bench.digest().await;
    let mut quiet = String::new();
    for name in ["nothing has changed", "again"] {
        eprint(name);
        let ran = bench.reconcile(&[]).await;
        ran.assert_no_repairs();
        ran.print(name);
        quiet = ran.calls.list();
    }
    for name in ["`--full`, nothing has changed", "again"] {
        eprint(name);
        let ran = bench.reconcile(&["--full"]).await;
        ran.assert_no_repairs();
        ran.print(name);
    }
    let is_same = bench.digest().await == digest;
    println!(
        "\nThe four runs without a change: {} in groups and group_members (by ctid, xmin and xmax of every \
         row).\n",
        if is_same {
            "no row was written"
        } else {
            "ROWS WERE WRITTEN"
        }
    );
    println!("Calls of the first run: {}.\n", first.calls.list());
    println!("Calls of a run in which nothing has changed: {quiet}.\n");
    callbacks(&bench).await;
}

/// Callbacks alone, beside a first comparison of many groups, and beside comparisons without a pause.
async fn callbacks(bench: &Bench) {
    let live = (0..GROUPS).filter(|group| bench.world.size(*group) == 10 && !is_ownerless(*group));
    let live: Arc<Vec<usize>> = Arc::new(live.collect());
    println!(
        "{RATE} callbacks a second over 16 connections, each a new nickname of a member of one of {} \
         groups of 10; milliseconds from the time at which each was due. The service itself makes the runs. \
         \"Adding groups\" adds {} groups: one in a hundred has 5,050 members, the others have 50. With runs \
         without a pause, each run asks for the changes of the groups that callbacks have named.\n",
        live.len(),
        grouped(ADDED as u64),
    );
    println!("| round | beside | callbacks | failed | p50 | p99 | p99.9 | max | runs |");
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |");
    let mut all: [Latencies; 3] = Default::default();
    let mut quotients: [Vec<[f64; 2]>; 2] = Default::default();
    for round in 1..=ROUNDS {
        let mut of_round = Vec::new();
        for (place, name) in ["nothing", "adding groups", "runs without a pause"]
            .into_iter()
            .enumerate()
        {
            eprint(&format!("round {round}: callbacks beside {name}"));
            let (latencies, compared) = beside(bench, &live, place).await;
            println!(
                "| {round} | {name} | {} | {} | {} | {compared} |",
                grouped(latencies.count() as u64),
                latencies.failed,
                latencies.columns(),
            );
            all[place].add(&latencies);
            of_round.push([latencies.quantile(500), latencies.quantile(990)]);
        }
        for (quotients, figures) in quotients.iter_mut().zip(&of_round[1..]) {
            let of = |place: usize| figures[place] / of_round[0][place];
            quotients.push([of(0), of(1)]);
        }
    }
    for (name, latencies) in ["nothing", "adding groups", "runs without a pause"]
        .into_iter()
        .zip(&all)
    {
        println!(
            "| all | {name} | {} | {} | {} | |",
            grouped(latencies.count() as u64),
            latencies.failed,
            latencies.columns(),
        );
    }
    println!();
    for (name, quotients) in ["adding groups", "runs without a pause"]
        .into_iter()
        .zip(quotients)
    {
        let median = |place: usize| {
            let mut all: Vec<f64> = quotients.iter().map(|pair| pair[place]).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        println!(
            "Beside {name}, callbacks have {:.2} x the p50 and {:.2} x the p99 of callbacks beside nothing \
             (medians of the rounds' ratios).",
            median(0),
            median(1)
        );
    }
}

/// A measurement: sent callbacks, and compared groups.
async fn beside(bench: &Bench, live: &Arc<Vec<usize>>, what: usize) -> (Latencies, String) {
    let seed = support::new_seed();
    let start = |service: &Service| Load::start(&service.base, &bench.world, live, seed);
    let (runs, last, ..) = bench.last_run().await;
    match what {
        0 => {
            let service = bench.service(&[]);
            bench.until_run_after(last).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let load = start(&service);
            tokio::time::sleep(LONG).await;
            (load.end(), "none".into())
        }
        1 => {
            bench.world.list(bench.world.listed() + ADDED);
            let service = bench.service(&[]);
            let load = start(&service);
            bench.until_run_after(last).await;
            let latencies = load.end();
            let (_, _, seconds, members) = bench.last_run().await;
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let rate = members as f64 / seconds;
            (
                latencies,
                format!("{} in {seconds:.1} s, {rate:.0}/s", grouped(members)),
            )
        }
        _ => {
            let service = bench.service(&[("RECONCILE_INTERVAL_SECS", "1")]);
            bench.until_run_after(last).await;
            let load = start(&service);
            tokio::time::sleep(LONG).await;
            let latencies = load.end();
            let (after, _, seconds, _) = bench.last_run().await;
            (
                latencies,
                format!("{}, the last of {seconds:.1} s", after - runs - 1),
            )
        }
    }
}

fn print_head() {
    println!(
        "| run | seconds | members/s | groups/s | calls | transactions | WAL | CPU of it | of \
         Postgres | of OpenIM's stand-in | of others on the machine | most memory |"
    );
    println!(
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
}

impl Ran {
    fn print(&self, name: &str) {
        let count = |name: &str| self.result[name].as_f64().unwrap();
        let [command, postgres, openim, others] = self.cpu;
        println!(
            "| {name} | {:.1} | {} | {} | {} | {} | {:.0} MiB | {command:.1} s | {postgres:.1} s | \
             {openim:.1} s | {others:.1} s | {} MiB |",
            self.seconds,
            rate(count("membersCompared"), self.seconds),
            rate(count("groupsSeen"), self.seconds),
            grouped(self.calls.paths.values().sum()),
            grouped(self.transactions.cast_unsigned()),
            self.wal_mib,
            self.peak_mib,
        );
    }

    fn assert_no_repairs(&self) {
        let repairs = self.result["repairs"].as_object().unwrap();
        assert!(repairs.values().all(|count| count == 0), "{}", self.result);
    }
}

fn rate(count: f64, seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people"
    )]
    grouped((count / seconds).round() as u64)
}

/// The memory of a comparison of a million groups. Reading them all would take long, and the mirror
/// is filled by SQL but for those that the first comparison reads.
async fn million() {
    let sizes = (0..MILLION).map(|group| if group % 2 == 0 { 1 } else { 2 });
    let bench = Bench::start(World::new(sizes.collect(), MILLION, |_| false)).await;
    println!("# Runs of a million groups\n");
    println!(
        "{} groups of one or two members; {} of them are in the mirror before the first run.\n",
        grouped(MILLION as u64),
        grouped((MILLION - READ) as u64),
    );
    eprint("filling the mirror");
    fill(&bench, MILLION - READ).await;
    print_head();
    eprint("a first comparison");
    let first = bench.reconcile(&[]).await;
    assert_eq!(first.result["groupsCompared"], READ, "{}", first.result);
    first.print(&format!("{} groups are missing", grouped(READ as u64)));
    let digest = bench.digest().await;
    eprint("nothing has changed");
    let ran = bench.reconcile(&[]).await;
    ran.assert_no_repairs();
    ran.print("nothing has changed");
    assert!(bench.digest().await == digest, "rows were written");
}

/// Writes the rows that a run over the first groups would have written.
async fn fill(bench: &Bench, groups: usize) {
    let last = groups - 1;
    let id = |group: &str| format!("({FIRST_GROUP} + {group})::text");
    let user = |group: &str, member: &str| {
        format!("({FIRST_USER} + ({group}::bigint * {STRIDE} + {member}) % {USERS})::text")
    };
    let (group, owner, member) = (id("g"), user("g", "0"), user("g", "m"));
    let made = format!("to_timestamp(({START_MILLIS} / 1000)::bigint + g)");
    let statements = [
        format!(
            "insert into groups (group_id, name, notification, introduction, face_url, owner_user_id,
                    ex, status, group_type, need_verification, look_member_info, apply_member_friend,
                    created_in_openim_at, created_at, updated_at)
             select {group}, 'Group ' || {group}, '', '',
                    'https://example.com/groups/' || {group} || '.png', {owner}, '', 0, 2, 0, 0, 0,
                    {made}, now(), now()
               from generate_series(0, {last}) g"
        ),
        format!(
            "insert into group_members (group_id, user_id, nickname, face_url, role_level, ex,
                    created_at, updated_at, joined_at, display_nickname, display_face_url,
                    join_source, inviter_user_id, operator_user_id)
             select {group}, {member}, null, null, case m when 0 then 100 else 20 end, '', now(), now(),
                    {made} + m * interval '1 millisecond', 'Member ' || {member},
                    'https://example.com/users/' || {member} || '.png', 2, {owner}, {owner}
               from generate_series(0, {last}) g, generate_series(0, g % 2) m"
        ),
        format!(
            "insert into group_checks (group_id, version, version_id, compared_at, read_at)
             select {group}, 1, lpad(to_hex(g), 24, '0'), now(), now()
               from generate_series(0, {last}) g"
        ),
        "analyze".to_owned(),
    ];
    for statement in statements {
        bench.db.execute(&statement).await;
    }
}
