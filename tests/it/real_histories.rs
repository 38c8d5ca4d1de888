//! Random histories of groups over HTTP, told as each release of OpenIM tells them, badly, with both
//! sides killed at times: after one comparison the mirror is what OpenIM is.
//!
//! `HISTORIES` is how many there are of each kind, `HISTORY_SEED` brings one back.

#![expect(clippy::print_stdout, reason = "the seed, and what was counted")]

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openim_group_mirror::reconcile::Mode;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::histories::{Kind, seed};
use crate::support::{
    ADMIN_ID, Delivery, OpenIm, Operation, Pair, Random, Release, RestFault, SECRET, Service, Told,
    Way, run, until, web,
};

/// Default number.
const FEW: u64 = 20;
/// Groups of which something happens at a time.
pub const AT_A_TIME: u64 = 30;
const USERS: [&str; 5] = ["u0", "u1", "u2", "u3", "u4"];
/// Everything that OpenIM does in silence too.
const SILENT: Kind = Kind::new(true, false, false);
/// Once in so many times a user's own profile changes.
const PROFILES: u64 = 40;

const ACCEPTING: Mode = Mode {
    is_full: false,
    accept_removals: true,
};

/// Number of histories of each kind.
pub fn histories() -> u64 {
    let number = std::env::var("HISTORIES");
    number.map_or(FEW, |number| number.parse().expect("HISTORIES is a number"))
}

/// A release, and what its mirror is given.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub release: Release,
    /// The callbacks about messages.
    pub hints: bool,
    /// The API of OpenIM.
    pub api: bool,
    /// Requests that fail half-way.
    pub partial: bool,
    pub way: Way,
}

/// An OpenIM, the service as a process, and the way between them.
pub struct Bed {
    pub pair: Pair,
    pub delivery: Delivery,
    setup: Setup,
    service: Option<Service>,
    spool: String,
}

impl Bed {
    pub async fn new(setup: Setup) -> Self {
        let pair = Pair::new().await;
        pair.openim().release = setup.release;
        let mut bed = Self {
            pair,
            delivery: Delivery::new(setup.way, setup.hints),
            setup,
            service: None,
            spool: run().folder("spool").display().to_string(),
        };
        bed.start();
        bed
    }

    /// And tells OpenIM's sender where it is.
    fn start(&mut self) {
        let mut variables = vec![
            ("DATABASE_URL", self.pair.db.url.as_str()),
            ("SPOOL_DIR", &self.spool),
            ("RECONCILE_DELAY_MS", "50"),
        ];
        if self.setup.api {
            variables.extend([
                ("OPENIM_API_URL", self.pair.server.url.as_str()),
                ("OPENIM_ADMIN_USER_ID", ADMIN_ID),
                ("OPENIM_SECRET", SECRET),
            ]);
        }
        // The test's own thread has others beside it, so that it may wait.
        let service = tokio::task::block_in_place(|| Service::start(&variables));
        self.delivery.to(Some(service.base.clone()));
        self.service = Some(service);
    }

    /// Until the mirror's first comparison of all groups is over.
    pub async fn compared_once(&self) {
        let base = &self.service.as_ref().unwrap().base;
        let drift = format!("{base}/drift");
        until("all groups are compared", async || {
            let answer = web::get(&drift).await.unwrap();
            let answer = answer.bytes().await.unwrap();
            let drift: Value = serde_json::from_slice(&answer).unwrap();
            drift["lastRun"] != Value::Null
        })
        .await;
    }

    /// The mirror's process is killed, and started again.
    fn kill_mirror(&mut self) {
        self.delivery.to(None);
        self.service.take();
        self.start();
    }

    /// OpenIM's processes are killed: what was not sent is lost, and nobody answers for a moment.
    async fn kill_openim(&self) {
        self.delivery.forget();
        self.pair
            .server
            .fail_until_told("/group/", RestFault::ErrCode(14));
        sleep(Duration::from_millis(300)).await;
        self.pair.server.stop_failing();
    }

    /// Lets the mirror's process end.
    fn stop(&mut self) {
        self.delivery.to(None);
        let mut service = self.service.take().unwrap();
        service.signal("TERM");
        let status = tokio::task::block_in_place(|| service.ended());
        assert!(status.success(), "{}", service.log());
    }

    /// So many histories at a time, each of a group of its own.
    pub fn begin(&self, seed: u64, numbers: Range<u64>) -> JoinSet<()> {
        let mut histories = JoinSet::new();
        for number in numbers {
            let history = History {
                group: format!("r{seed}-{number}"),
                random: Random::new(seed, number),
                partial: self.setup.partial,
                openim: Arc::clone(&self.pair.server.openim),
                delivery: self.delivery.clone(),
            };
            histories.spawn(history.live());
        }
        histories
    }

    /// Runs once with removals accepted. Nothing differs afterwards.
    pub async fn compare(&self, story: &str) {
        self.pair.openim().uncover();
        self.pair.compare(&[], ACCEPTING).await.unwrap();
        let differences = self.pair.differences().await;
        let group = self.story_of(&differences);
        assert!(differences.is_empty(), "{story}: {differences:#?}\n{group}");
        let odd = self.pair.openim().versions_of_nothing.clone();
        assert!(odd.is_empty(), "{story}: {odd:?}");
        // Those who were there at a dismissal leave a part at a time.
        let emptying = "select group_id from groups where emptying_at is not null";
        until("the dismissed groups are emptied", async || {
            self.pair.db.rows(emptying).await.is_empty()
        })
        .await;
        // Nothing has changed, so nothing is written.
        let before = self.pair.rows_as_they_lie().await;
        self.pair.compare(&[], ACCEPTING).await.unwrap();
        self.pair.assert_nothing_written_since(&before).await;
        let drift = self.pair.drift().await;
        assert!(drift.is_empty(), "{story}: {drift:?}");
    }

    /// Differences of the first group that differs.
    pub fn story_of(&self, differences: &[String]) -> String {
        let first = differences.first();
        let group = first.and_then(|line| line.split('"').nth(1));
        group.map_or_else(String::new, |group| self.delivery.story_of(group))
    }

    pub async fn close(mut self) {
        if self.service.is_some() {
            self.stop();
        }
        self.pair.close().await;
    }
}

/// A history of a group.
struct History {
    group: String,
    random: Random,
    /// True if some members come in by a request that fails.
    partial: bool,
    openim: Arc<Mutex<OpenIm>>,
    delivery: Delivery,
}

impl History {
    async fn live(mut self) {
        for number in 0..12 + self.random.below(20) {
            if number > 0 {
                sleep(Duration::from_millis(self.random.below(200))).await;
            }
            let told = self.step();
            self.delivery.tell(told, &mut self.random);
        }
    }

    /// Callbacks of one request. None if each attempt was refused.
    fn step(&mut self) -> Vec<Told> {
        let Self {
            group,
            random,
            partial,
            ..
        } = self;
        let openim = &mut *self.openim.lock().unwrap();
        if random.one_in(PROFILES) {
            let name = random.pick(&["", "Ann", "Bob"]);
            let user = random.pick(&USERS);
            self.delivery
                .note(&format!("{user} is {name}, in all groups"));
            return openim.set_user(user, name, name);
        }
        // Much is refused, as of groups that were dismissed.
        for _ in 0..5 {
            let operation = match openim.groups.get(group.as_str()) {
                None => Operation::Create(random.creation(OffsetDateTime::now_utc())),
                Some(there) => match random.below(13) {
                    // Of which the first come in and the others do not, where one is a member.
                    2 if *partial => Operation::InviteAll(random.users(3)),
                    0 => Operation::MuteMember(random.user(), openim.now_millis + 60_000),
                    1 => Operation::UnmuteMember(random.user()),
                    _ => random.operation(there, SILENT),
                },
            };
            if let Ok(told) = openim.perform(group, &operation) {
                self.delivery.note(&format!("{group} {operation:?}"));
                return told;
            }
        }
        vec![]
    }
}

/// A part of the histories, with both sides killed once; then a comparison.
async fn told_badly_in_part(bed: &mut Bed, seed: u64, part: Range<u64>) {
    let story = format!("HISTORY_SEED={seed}, {part:?} of {:?}", bed.setup);
    let mut random = Random::new(seed, u64::MAX - part.start);
    if bed.service.is_none() {
        bed.start();
    }
    let histories = bed.begin(seed, part);
    let mirror_first = random.one_in(2);
    for is_mirror in [mirror_first, !mirror_first] {
        sleep(Duration::from_millis(random.below(800))).await;
        if is_mirror {
            bed.kill_mirror();
        } else {
            bed.kill_openim().await;
        }
    }
    histories.join_all().await;
    bed.delivery.settled().await;
    bed.stop();
    bed.compare(&story).await;
}

async fn told_badly_with(setup: Setup, seed: u64) {
    let mut bed = Bed::new(setup).await;
    if setup.api {
        bed.compared_once().await;
    }
    let step = usize::try_from(AT_A_TIME).unwrap();
    for start in (0..histories()).step_by(step) {
        let part = start..histories().min(start + AT_A_TIME);
        told_badly_in_part(&mut bed, seed, part).await;
    }
    let delivered = bed.delivery.delivered();
    println!("{setup:?}: {delivered:?}");
    assert_eq!(delivered.odd, 0);
    assert!(delivered.lost > delivered.told / 10);
    bed.close().await;
}

async fn told_badly(release: Release) {
    let seed = seed();
    println!("real histories: HISTORY_SEED={seed}");
    for (hints, api) in [(false, false), (false, true), (true, false), (true, true)] {
        let setup = Setup {
            release,
            hints,
            api,
            partial: true,
            way: Way::BAD,
        };
        told_badly_with(setup, seed).await;
    }
}

/// Nothing is lost on a way on which nothing is to go wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_well_everything_is_answered() {
    let bed = Bed::new(Setup {
        release: Release::Patch15,
        hints: true,
        api: false,
        partial: false,
        way: Way::GOOD,
    })
    .await;
    let lived = bed.begin(seed(), 0..AT_A_TIME).join_all().await;
    assert_eq!(lived.len() as u64, AT_A_TIME);
    bed.delivery.settled().await;
    let delivered = bed.delivery.delivered();
    assert!(delivered.told > 100, "{delivered:?}");
    let is_whole = delivered.answered == delivered.told;
    assert!(is_whole, "{delivered:?}");
    bed.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn main_told_badly_is_what_the_mirror_is_after_one_comparison() {
    told_badly(Release::Main).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patch_15_told_badly_is_what_the_mirror_is_after_one_comparison() {
    told_badly(Release::Patch15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patch_16_told_badly_is_what_the_mirror_is_after_one_comparison() {
    told_badly(Release::Patch16).await;
}
