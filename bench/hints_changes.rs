//! Changes in OpenIM that a hint tells, and how long it took until each was in the mirror.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeBounds;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sqlx::postgres::PgListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::bed::Bench;
use super::load::Latencies;
use super::messages::MESSAGE;
use super::openim::{World, group_id, user_id};
use super::support::{Random, web};

/// Changes a second.
pub const RATE: u32 = 200;
const CONNECTIONS: u32 = 16;
/// All are in the mirror so soon after the last.
const BOUND: Duration = Duration::from_secs(60);
/// Interval of changes of one subject. If one look found two changes, nobody would see the first.
const APART: Duration = Duration::from_secs(5);
/// A mute that ends some time; each has another end.
const FAR: u64 = 4_000_000_000_000;
const NORMAL: u32 = 0;
const MUTED: u32 = 3;

/// Tells other sessions of what is written, once it is committed.
const TELL: &str = "
    create function tell_of_member() returns trigger language plpgsql as $$
    begin
        perform pg_notify('written', new.group_id || ' ' || new.user_id || ' '
            || coalesce((extract(epoch from new.mute_end_at) * 1000)::bigint, 0));
        return null;
    end $$;
    create function tell_of_group() returns trigger language plpgsql as $$
    begin
        perform pg_notify('written', new.group_id || ' - ' || new.status);
        return null;
    end $$;
    create trigger tell after insert or update on group_members
        for each row execute function tell_of_member();
    create trigger tell after update of status on groups
        for each row execute function tell_of_group();";

/// Changes without a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Invited,
    Entered,
    MemberMuted,
    MemberUnmuted,
    Muted,
    Unmuted,
}

pub const KINDS: [Kind; 6] = [
    Kind::Invited,
    Kind::Entered,
    Kind::MemberMuted,
    Kind::MemberUnmuted,
    Kind::Muted,
    Kind::Unmuted,
];

impl Kind {
    /// OpenIM's contentType.
    pub fn code(self) -> u32 {
        match self {
            Self::Invited => 1509,
            Self::Entered => 1510,
            Self::MemberMuted => 1512,
            Self::MemberUnmuted => 1513,
            Self::Muted => 1514,
            Self::Unmuted => 1515,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Entered => "entered",
            Self::MemberMuted => "member muted",
            Self::MemberUnmuted => "member un-muted",
            Self::Muted => "group muted",
            Self::Unmuted => "group un-muted",
        }
    }
}

/// A group's member, or the group itself.
type Subject = (usize, Option<usize>);

/// A group's id, and a user's; of the group itself "-".
type Ids = (String, String);

/// A value that was told, of which kind, and since when it is awaited.
type Value = (String, Kind, Instant);

/// Changes that were reported and are not in the mirror yet.
#[derive(Default)]
struct Awaited {
    values: HashMap<Ids, Vec<Value>>,
    seen: BTreeMap<Kind, Latencies>,
    /// Muted members, the oldest first.
    muted: VecDeque<Subject>,
    changed: HashMap<Subject, Instant>,
}

/// Changes OpenIM, reports it, and sees it in the mirror.
pub struct Changes {
    world: Arc<World>,
    groups: Vec<usize>,
    clients: Vec<reqwest::Client>,
    url: String,
    awaited: Arc<Mutex<Awaited>>,
    number: AtomicU64,
    listening: JoinHandle<()>,
}

impl Changes {
    pub async fn start(base: &str, bench: &Bench, groups: impl RangeBounds<usize>) -> Self {
        let is_told = "select 1 from pg_trigger where tgname = 'tell'";
        if bench.db.rows(is_told).await.is_empty() {
            bench.db.execute(TELL).await;
        }
        let mut listener = PgListener::connect(&bench.db.url).await.unwrap();
        listener.listen("written").await.unwrap();
        let awaited = Arc::new(Mutex::new(Awaited::default()));
        let awaiting = Arc::clone(&awaited);
        let listening = tokio::spawn(async move {
            loop {
                let told = listener.recv().await.unwrap();
                let mut words = told.payload().split(' ').map(str::to_owned);
                let [group, user, value] = std::array::from_fn(|_| words.next().unwrap());
                awaiting.lock().unwrap().see((group, user), &value);
            }
        });
        let client = |_| web::client().pool_max_idle_per_host(1).build().unwrap();
        Self {
            world: Arc::clone(&bench.world),
            groups: (0..bench.world.listed())
                .filter(|group| groups.contains(group))
                .collect(),
            clients: (0..CONNECTIONS).map(client).collect(),
            url: format!("{base}/{MESSAGE}"),
            awaited,
            number: AtomicU64::new(0),
            listening,
        }
    }

    /// Makes a change and tells of it; mutes where there is nothing that could be un-muted.
    pub async fn make(&self, kind: Kind, random: &mut Random) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (group, kind) = self.change(kind, number, random);
        let body = json!({
            "sendID": "admin",
            "callbackCommand": MESSAGE,
            "serverMsgID": format!("{number:032x}"),
            "clientMsgID": format!("{number:032x}"),
            "operationID": format!("operation-{number}"),
            "senderPlatformID": 0,
            "senderNickname": "",
            "sessionType": 3,
            "msgFrom": 200,
            "contentType": kind.code(),
            "status": 0,
            "sendTime": 1_764_200_000_002_u64,
            "createTime": 1_764_200_000_001_u64,
            "content": "",
            "seq": 0,
            "atUserList": null,
            "faceURL": "",
            "ex": "",
            "groupID": group_id(group).to_string(),
        });
        let client = usize::try_from(number % u64::from(CONNECTIONS)).unwrap();
        let request = self.clients[client]
            .post(&self.url)
            .header("content-type", "application/json")
            .body(body.to_string());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
    }

    fn change(&self, kind: Kind, number: u64, random: &mut Random) -> (usize, Kind) {
        let mut awaited = self.awaited.lock().unwrap();
        let awaited = &mut *awaited;
        let is_of_member = matches!(kind, Kind::MemberMuted | Kind::MemberUnmuted);
        let is_rested = |subject: &Subject| {
            let at = awaited.changed.get(subject);
            at.is_none_or(|at| at.elapsed() > APART)
        };
        let mut pick = || loop {
            let group = random.pick(&self.groups);
            let member = usize::try_from(random.below(self.world.size(group) as u64)).unwrap();
            let subject = (group, is_of_member.then_some(member));
            if is_rested(&subject) && !awaited.muted.contains(&subject) {
                break subject;
            }
        };
        let muted = awaited
            .muted
            .iter()
            .position(|subject| subject.1.is_some() == is_of_member && is_rested(subject));
        let (kind, (group, member)) = match (kind, muted) {
            (Kind::MemberUnmuted, None) => (Kind::MemberMuted, pick()),
            (Kind::Unmuted, None) => (Kind::Muted, pick()),
            (Kind::MemberUnmuted | Kind::Unmuted, Some(place)) => {
                (kind, awaited.muted.remove(place).unwrap())
            }
            _ => (kind, pick()),
        };
        let until = FAR + number;
        let (member, value) = match (kind, member) {
            (Kind::MemberMuted, Some(member)) => {
                self.world
                    .mute(group, member, i64::try_from(until).unwrap());
                (Some(member), until.to_string())
            }
            (Kind::MemberUnmuted, Some(member)) => {
                self.world.mute(group, member, 0);
                (Some(member), "0".to_owned())
            }
            (Kind::Muted, _) => {
                self.world.set_status(group, MUTED);
                (None, MUTED.to_string())
            }
            (Kind::Unmuted, _) => {
                self.world.set_status(group, NORMAL);
                (None, NORMAL.to_string())
            }
            _ => (Some(self.world.join(group)), "0".to_owned()),
        };
        let subject = (group, member);
        let now = Instant::now();
        awaited.changed.insert(subject, now);
        awaited.muted.retain(|other| *other != subject);
        if matches!(kind, Kind::MemberMuted | Kind::Muted) {
            awaited.muted.push_back(subject);
        }
        let user = member.map_or("-".into(), |member| user_id(group, member).to_string());
        let written = (group_id(group).to_string(), user);
        let values = awaited.values.entry(written).or_default();
        values.push((value, kind, now));
        (group, kind)
    }

    /// At a steady rate, whether the ones before were answered or not.
    pub async fn make_all(&self, long: Duration, seed: u64) {
        let began = Instant::now() + Duration::from_millis(50);
        let total = RATE * u32::try_from(long.as_secs()).unwrap();
        let senders = (0..CONNECTIONS).map(|number| async move {
            let mut random = Random::new(seed, number.into());
            for place in (number..total).step_by(CONNECTIONS as usize) {
                sleep_until(began + Duration::from_secs(1) * place / RATE).await;
                let kind = random.pick(&KINDS);
                self.make(kind, &mut random).await;
            }
        });
        futures_util::future::join_all(senders).await;
    }

    pub async fn until_seen(&self) {
        let deadline = Instant::now() + BOUND;
        loop {
            let awaited = self.awaited.lock().unwrap().values.len();
            if awaited == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{awaited} are not there");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes the measured times.
    pub fn take(&self) -> BTreeMap<Kind, Latencies> {
        std::mem::take(&mut self.awaited.lock().unwrap().seen)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Awaited {
    /// A value is there, and with it those that it has followed.
    fn see(&mut self, subject: Ids, value: &str) {
        let Some(values) = self.values.get_mut(&subject) else {
            return;
        };
        let Some(place) = values.iter().rposition(|(awaited, ..)| awaited == value) else {
            return;
        };
        for (_, kind, since) in values.drain(..=place) {
            let millis = since.elapsed().as_secs_f64() * 1000.0;
            self.seen.entry(kind).or_default().push(millis);
        }
        if values.is_empty() {
            self.values.remove(&subject);
        }
    }
}
