//! Senders that behave as OpenIM's, and what must be in the mirror after them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::openim::{ADMIN, Creation, Group, ORDINARY, OpenIm, Operation, Values};
use super::openim_callbacks::Callback;
use super::random::Random;

/// OpenIM has so many connections to a process.
const CONNECTIONS: u64 = 2;
/// It gives up after so long, and never sends a callback again.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Groups that each has at a time.
const GROUPS: usize = 5;
/// After so many callbacks a group is left as it is: what came last must not hide what was lost.
const CALLBACKS: u32 = 30;
const USERS: [&str; 6] = ["u0", "u1", "u2", "u3", "u4", "u5"];

/// Sent callbacks, and their results.
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
    /// Members and groups that are not stored as answered. If the last callback of a group was not answered with
    /// success, the states before and after it are both right.
    pub lost: u64,
    /// Lost ones for which something newer of the same member is stored.
    pub reordered: u64,
    /// Groups that want a check though nothing of theirs was refused, as after a transfer that was
    /// written twice; and groups that do not though something was.
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
    /// Address of the service; `None` while it is away.
    base: watch::Sender<Option<String>>,
    ending: CancellationToken,
    /// Result of each sender.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    /// To which nothing is sent any more.
    left: Vec<Left>,
    /// Users that were ever members of a group.
    known: BTreeMap<String, BTreeSet<String>>,
}

/// Allowed states of a group.
struct Left {
    id: String,
    /// All that was answered, and perhaps the last that was not. `None`: it was never created.
    states: Vec<Option<Group>>,
    /// True if it was refused.
    is_refused: bool,
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
        let client = client();
        for left in &state.left {
            let shown = get(&client, base, &format!("/groups/{}", left.id)).await;
            let path = format!("/groups/{}/members?state=current&limit=1000", left.id);
            let members = get(&client, base, &path).await;
            let expected = if left.is_refused {
                json!("callback_lost")
            } else {
                json!(null)
            };
            if shown["checkReason"] != expected {
                tally.marks += 1;
                tally.note(format!("{}: expected {expected} in {shown}", left.id));
            }
            let of_state = |held| compare(held, &state.known[&left.id], &shown, &members);
            let found = left.states.iter().map(|held| of_state(held.as_ref()));
            let found = found.min_by_key(|found| found.lost).unwrap();
            tally.stored += found.stored;
            tally.lost += found.lost;
            tally.reordered += found.reordered;
            for note in found.notes {
                tally.note(format!("{}: {note}", left.id));
            }
        }
        tally
    }
}

/// A group and its members as they are shown against what they should be.
fn compare(
    held: Option<&Group>,
    known: &BTreeSet<String>,
    shown: &Value,
    members: &Value,
) -> Tally {
    let mut tally = Tally::default();
    let name = held.map(|group| group.profile["groupName"].clone());
    let owner = held.and_then(Group::owner);
    if shown["groupName"] == name.unwrap_or_default() && shown["ownerUserID"] == json!(owner) {
        tally.stored += 1;
    } else {
        tally.lost += 1;
        tally.note(format!("{held:?}, but {shown}"));
    }
    let members: BTreeMap<&str, &Value> = members["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (member["userID"].as_str().unwrap(), member))
        .collect();
    for user in known {
        let shown = members.get(user.as_str()).copied();
        let held = held.and_then(|group| group.members.get(user));
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
        tally.note(format!("{user}: {held:?}, but {shown:?}"));
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
    tally
}

async fn get(client: &reqwest::Client, base: &str, path: &str) -> Value {
    let answer = client.get(format!("{base}{path}")).send().await.unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

/// Meaning of an answer.
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
    /// With the number of callbacks of each.
    groups: Vec<(String, u32)>,
    /// Numbers for groups and for values.
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
        while let Some((group, _)) = self.groups.pop() {
            let state = self.openim.groups.remove(&group);
            self.leave(group, vec![state], false);
        }
    }

    /// A callback about a change.
    async fn step(&mut self, base: &str) {
        let is_new = self.groups.len() < GROUPS && self.random.one_in(2);
        let (group, operation) = if is_new || self.groups.is_empty() {
            self.count += 1;
            let group = format!("s{}-{}-{}", self.name, self.number, self.count);
            self.groups.push((group.clone(), 0));
            (group, self.creation())
        } else {
            let (group, _) = self.random.pick(&self.groups);
            (group.clone(), self.operation(&group))
        };
        let before = self.openim.groups.get(&group).cloned();
        let Ok(told) = self.openim.apply(&group, &operation) else {
            return;
        };
        {
            let users = self.openim.groups[&group].members.keys().cloned();
            let mut state = self.shared.state.lock().unwrap();
            state.known.entry(group.clone()).or_default().extend(users);
        }
        assert!(told.len() <= 1, "{operation:?} is one change");
        for callback in told {
            let began = Instant::now();
            let outcome = self.send(base, &callback).await;
            self.count(&group, before.clone(), &outcome, began.elapsed());
        }
    }

    fn count(&mut self, group: &str, before: Option<Group>, outcome: &Outcome, took: Duration) {
        {
            let tally = &mut self.shared.state.lock().unwrap().tally;
            tally.sent += 1;
            match outcome {
                Outcome::Answered => tally.answered += 1,
                Outcome::Refused => tally.refused += 1,
                Outcome::Odd(what) => {
                    tally.odd += 1;
                    tally.note(what.clone());
                }
                Outcome::None => tally.unanswered += 1,
            }
            if matches!(outcome, Outcome::Answered | Outcome::Refused) {
                tally.slowest = tally.slowest.max(took);
            }
        }
        let place = self.groups.iter().position(|(id, _)| id == group).unwrap();
        self.groups[place].1 += 1;
        let is_answered = matches!(outcome, Outcome::Answered);
        if is_answered && self.groups[place].1 < CALLBACKS {
            return;
        }
        self.groups.swap_remove(place);
        let mut states = vec![self.openim.groups.remove(group)];
        if !is_answered {
            states.push(before);
        }
        self.leave(
            group.to_owned(),
            states,
            matches!(outcome, Outcome::Refused),
        );
    }

    fn leave(&self, id: String, states: Vec<Option<Group>>, is_refused: bool) {
        let mut state = self.shared.state.lock().unwrap();
        state.left.push(Left {
            id,
            states,
            is_refused,
        });
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
    super::web::client()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(1)
        .build()
        .unwrap()
}
