//! Random histories of groups, told badly: the mirror is what OpenIM is after one comparison.

#![expect(clippy::print_stdout, reason = "the seed, and what was counted")]

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt};
use openim_group_mirror::reconcile::Mode;
use time::OffsetDateTime;

use crate::histories::{Kind, seed};
use crate::support::{Callback, OWNER, Operation, Pair, Random};

const HISTORIES: u64 = 600;
/// After each, all is compared.
const ROUNDS: usize = 3;
/// Groups that are told of at a time.
const AT_A_TIME: usize = 64;
const USERS: [&str; 5] = ["u0", "u1", "u2", "u3", "u4"];

/// Everything that OpenIM does in silence too.
const SILENT: Kind = Kind::new(true, false, false);

/// A group whose callbacks come badly.
struct History {
    group_id: String,
    random: Random,
    at: OffsetDateTime,
    /// Callbacks that come only in the next round.
    delayed: Vec<(OffsetDateTime, Callback)>,
    /// For whoever has to find out what is wrong.
    story: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    operations: usize,
    told: usize,
    dropped: usize,
    swapped: usize,
    repeated: usize,
    delayed: usize,
}

impl History {
    fn new(seed: u64, number: u64) -> Self {
        Self {
            group_id: format!("e{seed}-{number}"),
            random: Random::new(seed, number),
            at: OffsetDateTime::now_utc(),
            delayed: vec![],
            story: vec![],
        }
    }

    /// Some operations; what is told of them.
    fn act(&mut self, pair: &Pair, counts: &mut Counts) -> Vec<(OffsetDateTime, Callback)> {
        let mut openim = pair.openim();
        let mut told = Vec::new();
        for _ in 0..4 + self.random.below(10) {
            self.at += self.random.pause();
            let operation = match openim.groups.get(&self.group_id) {
                None => Operation::Create(self.random.creation(self.at)),
                Some(group) => match self.random.below(12) {
                    0 => {
                        let until = openim.now_millis + 60_000;
                        Operation::MuteMember(self.random.user(), until)
                    }
                    1 => Operation::UnmuteMember(self.random.user()),
                    _ => self.random.operation(group, SILENT),
                },
            };
            if let Ok(callbacks) = openim.apply(&self.group_id, &operation) {
                counts.operations += 1;
                self.story.push(format!("{} {operation:?}", self.at));
                told.extend(callbacks.into_iter().map(|callback| (self.at, callback)));
            }
        }
        told
    }

    /// Callbacks that arrive, in the order of arrival.
    fn arrivals(
        &mut self,
        told: Vec<(OffsetDateTime, Callback)>,
        is_last: bool,
        counts: &mut Counts,
    ) -> Vec<(OffsetDateTime, Callback)> {
        let mut arrivals = std::mem::take(&mut self.delayed);
        for (at, callback) in told {
            counts.told += 1;
            match self.random.below(100) {
                0..30 => counts.dropped += 1,
                30..40 if !is_last => {
                    counts.delayed += 1;
                    self.delayed.push((at, callback));
                }
                40..48 => {
                    counts.repeated += 1;
                    arrivals.push((at, callback.clone()));
                    arrivals.push((at, callback));
                }
                _ => arrivals.push((at, callback)),
            }
        }
        let mut place = 1;
        while place < arrivals.len() {
            if self.random.one_in(3) {
                counts.swapped += 1;
                arrivals.swap(place - 1, place);
                place += 1;
            }
            place += 1;
        }
        for (at, callback) in &arrivals {
            self.story
                .push(format!("    comes {at} {}", callback.body.trim_end()));
        }
        arrivals
    }
}

async fn tell_all(pair: &Pair, arrivals: Vec<Vec<(OffsetDateTime, Callback)>>) {
    stream::iter(arrivals)
        .for_each_concurrent(AT_A_TIME, |arrivals| async move {
            for (at, callback) in arrivals {
                crate::support::tell(&pair.ingest, &callback, at).await;
            }
        })
        .await;
}

/// Mode for small groups. Many of these lose a member without a callback.
const ACCEPTING: Mode = Mode {
    is_full: false,
    accept_removals: true,
};

async fn told_badly(tells_group_with_members: bool) {
    let seed = seed();
    println!("equality: HISTORY_SEED={seed}");
    let pair = Pair::new().await;
    pair.openim().tells_group_with_members = tells_group_with_members;
    pair.server.fail_sometimes(seed, 50);
    let mut profiles = Random::new(seed, u64::MAX);
    let mut histories: Vec<_> = (0..HISTORIES).map(|n| History::new(seed, n)).collect();
    let mut counts = Counts::default();
    for round in 1..=ROUNDS {
        let is_last = round == ROUNDS;
        let mut arrivals = Vec::new();
        for history in &mut histories {
            let told = history.act(&pair, &mut counts);
            arrivals.push(history.arrivals(told, is_last, &mut counts));
            if profiles.one_in(50) {
                let (user, name) = (profiles.pick(&USERS), profiles.below(3));
                let name = ["", "Ann", "Bob"][usize::try_from(name).unwrap()];
                pair.openim().set_user(user, name, name);
            }
        }
        if is_last {
            tell_all(&pair, arrivals).await;
            pair.compare(&[], ACCEPTING).await.unwrap();
        } else {
            // Beside each other.
            let (_, compared) =
                tokio::join!(tell_all(&pair, arrivals), pair.compare(&[], ACCEPTING));
            compared.unwrap();
        }
    }
    let differences = pair.differences().await;
    if let Some(first) = differences.first() {
        let history = histories.iter().find(|h| first.contains(&h.group_id));
        let story = history.map(|history| history.story.join("\n"));
        panic!(
            "HISTORY_SEED={seed}: {} differences, {first}\n{}",
            differences.len(),
            story.unwrap_or_default()
        );
    }
    // Nothing has changed, so nothing is written.
    let before = pair.rows_as_they_lie().await;
    let result = pair.compare(&[], ACCEPTING).await.unwrap();
    pair.assert_nothing_written_since(&before).await;
    // Also where all groups are read; the first time that is the rest of dismissed ones.
    let full = Mode {
        is_full: true,
        ..ACCEPTING
    };
    pair.compare(&[], full).await.unwrap();
    let before = pair.rows_as_they_lie().await;
    let read = pair.compare(&[], full).await.unwrap();
    pair.assert_nothing_written_since(&before).await;
    {
        let openim = pair.openim();
        let there = openim.groups.values().filter(|group| !group.is_dismissed());
        let (ownerless, owned): (Vec<_>, Vec<_>) = there.partition(|group| group.owner().is_none());
        // A group without an owner has no version that OpenIM would tell.
        let is_possible = |compared: i64| compared.unsigned_abs() <= ownerless.len() as u64;
        assert!(is_possible(result.groups_compared), "{result:?}");
        assert!(
            read.groups_compared.unsigned_abs() >= owned.len() as u64,
            "{read:?}"
        );
        let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
        for group in openim.groups.values() {
            let count = group.members.values().filter(|m| m.role() == OWNER).count();
            *owners.entry(count).or_default() += 1;
        }
        println!(
            "equality: seed {seed}, {HISTORIES} histories, {counts:?}; groups by owners: {owners:?}"
        );
        assert!(counts.dropped > counts.told / 4 && counts.swapped > 0 && counts.delayed > 0);
    }
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_one_comparison_the_mirror_is_what_openim_is_however_badly_it_was_told() {
    told_badly(false).await;
}

/// The way of newer versions of OpenIM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_where_the_group_is_told_with_every_change_of_a_member() {
    told_badly(true).await;
}
