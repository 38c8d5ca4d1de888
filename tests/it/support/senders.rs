//! Senders that behave as OpenIM's, and what must be in the mirror after them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::openim::{ADMIN, Callback, Creation, Group, ORDINARY, OpenIm, Operation, Values};
use super::random::Random;

/// OpenIM has so many connections to a process.
const CONNECTIONS: u64 = 2;
/// It gives up after so long, and never sends a callback again.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Groups that each has at a time.
const GROUPS: usize = 5;
const USERS: [&str; 6] = ["u0", "u1", "u2", "u3", "u4", "u5"];

/// What was sent, and what became of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub sent: u64,
    /// With success.
    pub answered: u64,
    /// Answered with 503 because there was no room.
    pub refused: u64,
    /// Answered in another way.
    pub odd: u64,
    /// Neither in time: it may be in, and need not be.
    pub unanswered: u64,
    /// Members and groups that are as they were answered.
    pub stored: u64,
    /// Those that are not.
    pub lost: u64,
    /// Those of them of which something newer of the same member is there.
    pub reordered: u64,
    /// Groups that want a check though all of theirs was answered, as after a transfer that was
    /// written twice; and groups that do not though something was refused.
    pub marks: u64,
    pub slowest: Duration,
    /// The first things that are not as they should be.
    pub notes: Vec<String>,
}

/// More say nothing new.
const NOTES: usize = 10;

impl Tally {
    pub fn note(&mut self, what: String) {
        if self.notes.len() < NOTES {
            self.notes.push(what);
        }
    }
}

/// Senders at work. They end with this.
pub struct Senders {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    /// Where the service is; `None` while it is not.
    base: watch::Sender<Option<String>>,
    ending: CancellationToken,
    /// What each sender came to.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    /// Of which every callback was answered.
    sound: Vec<Group>,
    /// Users that were ever members of them.
    known: BTreeMap<String, BTreeSet<String>>,
    /// Of which the last callback was refused, and all others were answered.
    refused: BTreeSet<String>,
}

impl Senders {
    pub fn start(base: &str, seed: u64) -> Senders {
        let shared = Arc::new(Shared {
            base: watch::Sender::new(Some(base.to_owned())),
            ending: CancellationToken::new(),
            state: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..CONNECTIONS {
            let sender = Sender::new(Arc::clone(&shared), seed, number);
            tasks.spawn(sender.run());
        }
        Senders { shared, tasks }
    }

    /// The service has gone; nothing is sent until it is back.
    pub fn gone(&self) {
        self.shared.base.send_replace(None);
    }

    pub fn moved_to(&self, base: &str) {
        self.shared.base.send_replace(Some(base.to_owned()));
    }

    pub fn so_far(&self) -> Tally {
        self.shared.state.lock().unwrap().tally.clone()
    }

    /// Ends the sending, and waits for the last answers.
    pub async fn end(&mut self) {
        self.shared.ending.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// After the end: holds what was answered against what the service shows.
    pub async fn verify(&self, base: &str) -> Tally {
        let state = std::mem::take(&mut *self.shared.state.lock().unwrap());
        let mut tally = state.tally;
        for group in &state.sound {
            let shown = get(base, &format!("/groups/{}", group.id)).await;
            if shown["checkReason"] != json!(null) {
                tally.marks += 1;
                tally.note(format!("{} wants a check: {shown}", group.id));
            }
            if shown["groupName"] != group.profile["groupName"]
                || shown["ownerUserID"] != json!(group.owner())
            {
                tally.lost += 1;
                tally.note(format!("{group:?}, but {shown}"));
            } else {
                tally.stored += 1;
            }
            let path = format!("/groups/{}/members?state=current&limit=1000", group.id);
            let members = get(base, &path).await;
            let members: BTreeMap<&str, &Value> = members["members"]
                .as_array()
                .unwrap()
                .iter()
                .map(|member| (member["userID"].as_str().unwrap(), member))
                .collect();
            for user in &state.known[&group.id] {
                let shown = members.get(user.as_str()).copied();
                let held = group.members.get(user);
                let is_same = match (shown, held) {
                    (None, None) => true,
                    (Some(shown), Some(held)) => held
                        .values
                        .iter()
                        .all(|(name, value)| shown[*name] == *value),
                    _ => false,
                };
                if is_same {
                    tally.stored += 1;
                    continue;
                }
                tally.note(format!("{} {user}: {held:?}, but {shown:?}", group.id));
                tally.lost += 1;
                let newest = |value: &Value| {
                    let text = value.as_str()?.split('-').next_back()?;
                    text.parse::<u64>().ok()
                };
                let of_held = held.iter().flat_map(|held| held.values.values());
                let expected = of_held.filter_map(newest).max();
                let shown = shown
                    .into_iter()
                    .flat_map(|shown| shown.as_object().unwrap().values());
                let found = shown.filter_map(newest).max();
                tally.reordered += u64::from(found.is_some() && found >= expected);
            }
        }
        for group in &state.refused {
            let shown = get(base, &format!("/groups/{group}")).await;
            if shown["checkReason"] != "callback_lost" {
                tally.marks += 1;
                tally.note(format!("{group} wants no check: {shown}"));
            }
        }
        tally
    }
}

async fn get(base: &str, path: &str) -> Value {
    let answer = reqwest::get(format!("{base}{path}")).await.unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

/// What an answer says.
enum Outcome {
    Answered,
    Refused,
    Odd(String),
    None,
}

struct Sender {
    shared: Arc<Shared>,
    random: Random,
    number: u64,
    client: reqwest::Client,
    openim: OpenIm,
    groups: Vec<String>,
    /// Of groups and of values.
    count: u64,
    name: u64,
}

impl Sender {
    fn new(shared: Arc<Shared>, seed: u64, number: u64) -> Self {
        Self {
            shared,
            random: Random::new(seed, number),
            number,
            client: client(),
            openim: OpenIm::default(),
            groups: Vec::new(),
            count: 0,
            name: seed % 1_000_000,
        }
    }

    async fn run(mut self) {
        let ending = self.shared.ending.clone();
        let mut base = self.shared.base.subscribe();
        while !ending.is_cancelled() {
            let base = tokio::select! {
                there = base.wait_for(Option::is_some) => there.unwrap().clone().unwrap(),
                () = ending.cancelled() => break,
            };
            self.step(&base).await;
        }
        let mut state = self.shared.state.lock().unwrap();
        for group in self.groups {
            state.sound.extend(self.openim.groups.remove(&group));
        }
    }

    /// One callback, of something that happened.
    async fn step(&mut self, base: &str) {
        let (group, operation) = if self.groups.len() < GROUPS {
            self.count += 1;
            let group = format!("s{}-{}-{}", self.name, self.number, self.count);
            self.groups.push(group.clone());
            (group, self.creation())
        } else {
            let group = self.random.pick(&self.groups);
            (group.clone(), self.operation(&group))
        };
        let Ok(told) = self.openim.apply(&group, &operation) else {
            return;
        };
        {
            let users = self.openim.groups[&group].members.keys().cloned();
            let mut state = self.shared.state.lock().unwrap();
            state.known.entry(group.clone()).or_default().extend(users);
        }
        for callback in told {
            let began = Instant::now();
            let outcome = self.send(base, &callback).await;
            self.count(&group, &outcome, began.elapsed());
        }
    }

    fn count(&mut self, group: &str, outcome: &Outcome, took: Duration) {
        let mut state = self.shared.state.lock().unwrap();
        state.tally.sent += 1;
        match outcome {
            Outcome::Answered => {
                state.tally.answered += 1;
                state.tally.slowest = state.tally.slowest.max(took);
                return;
            }
            Outcome::Refused => {
                state.tally.refused += 1;
                state.tally.slowest = state.tally.slowest.max(took);
                state.refused.insert(group.to_owned());
            }
            Outcome::Odd(what) => {
                state.tally.odd += 1;
                state.tally.note(what.clone());
            }
            Outcome::None => state.tally.unanswered += 1,
        }
        // What the mirror must show of it is not known any more.
        self.groups.retain(|other| other != group);
        self.openim.groups.remove(group);
    }

    async fn send(&mut self, base: &str, callback: &Callback) -> Outcome {
        let request = self
            .client
            .post(format!("{base}/{}", callback.command))
            .header("content-type", "application/json")
            .body(callback.body.clone());
        let answer = async {
            let answer = request.send().await?;
            let status = answer.status();
            Ok::<_, reqwest::Error>((status, answer.bytes().await?))
        };
        let Ok((status, body)) = answer.await else {
            // A connection of its own for the next.
            self.client = client();
            return Outcome::None;
        };
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if body["actionCode"] == 0 {
            Outcome::Answered
        } else if status == 503 && body["errCode"] == 5205 {
            Outcome::Refused
        } else {
            Outcome::Odd(format!("{status}: {body}"))
        }
    }

    fn value(&mut self) -> Value {
        self.count += 1;
        json!(format!("{}-{}", self.number, self.count))
    }

    fn creation(&mut self) -> Operation {
        let texts = ["groupName", "notification", "introduction", "faceURL", "ex"];
        let mut profile: Values = texts.map(|name| (name, self.value())).into();
        for (name, value) in [
            ("needVerification", 2),
            ("lookMemberInfo", 0),
            ("applyMemberFriend", 0),
        ] {
            profile.insert(name, json!(value));
        }
        let [owner, admin, first, second, ..] = USERS.map(str::to_owned);
        Operation::Create(Creation {
            profile,
            created_millis: 1_751_450_000_123,
            owner,
            admins: vec![admin],
            members: vec![first, second],
            caller: "imAdmin".into(),
        })
    }

    fn operation(&mut self, group: &str) -> Operation {
        let group = &self.openim.groups[group];
        let members: Vec<String> = group.members.keys().cloned().collect();
        let owner = group.owner().cloned().unwrap();
        let user = self.random.pick(&USERS).to_owned();
        match self.random.below(12) {
            0 => Operation::Join(user),
            1 => Operation::Quit(user),
            2 => Operation::Kick(vec![user]),
            3 | 4 => Operation::Transfer {
                old_owner: owner,
                new_owner: self.random.pick(&members),
            },
            5 => {
                let name = self.value();
                Operation::SetProfileEx(Values::from([("groupName", name)]))
            }
            _ => {
                let member = self.random.pick(&members);
                let mut values = Values::new();
                for name in ["nickName", "faceURL", "ex"] {
                    if self.random.one_in(2) {
                        values.insert(name, self.value());
                    }
                }
                if member != owner && self.random.one_in(3) {
                    let role = self.random.pick(&[ORDINARY, ADMIN]);
                    values.insert("roleLevel", json!(role));
                }
                Operation::SetMember(member, values)
            }
        }
    }
}

/// With one connection.
fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(1)
        .build()
        .unwrap()
}
