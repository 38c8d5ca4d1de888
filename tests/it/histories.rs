//! Random histories of groups, told as OpenIM would tell them: what is stored in the end is what
//! OpenIM holds, or it is known to be in doubt, or nobody could know better.

#![expect(clippy::print_stdout, reason = "the seed, and what was counted")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use futures_util::stream::{self, StreamExt};
use openim_group_mirror::domain::{DISMISSED, LATE_CALLBACK_TIMEOUT};
use openim_group_mirror::http::understand;
use openim_group_mirror::ingest::{Ingest, Retention};
use openim_group_mirror::store::Store;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::support::{
    ADMIN, CURRENT, Callback, Creation, Group, ORDINARY, OWNER, OpenIm, Operation, Random, Release,
    TestDb, Values, new_seed,
};

/// Number of each kind.
const HISTORIES: u64 = 400;
/// Histories that are told at a time.
const AT_A_TIME: usize = 64;
/// Few, so that they meet.
const USERS: [&str; 5] = ["u0", "u1", "u2", "u3", "u4"];

const DISMISS: Operation = Operation::Dismiss {
    with_members: false,
};

const KINDS: [Kind; 5] = [
    Kind::new(false, false, false),
    Kind::new(true, false, false),
    Kind::new(false, true, false),
    Kind::new(false, false, true),
    Kind::new(true, true, true),
];

#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// With operations that OpenIM tells nobody.
    is_silent: bool,
    /// Some callbacks come again at once.
    is_repeated: bool,
    /// Some neighbours come in the other order.
    is_swapped: bool,
}

impl Kind {
    pub const fn new(is_silent: bool, is_repeated: bool, is_swapped: bool) -> Self {
        Self {
            is_silent,
            is_repeated,
            is_swapped,
        }
    }
}

impl Random {
    pub fn user(&mut self) -> String {
        self.pick(&USERS).to_owned()
    }

    /// So many users at most, the first being any.
    pub fn users(&mut self, most: u64) -> Vec<String> {
        let mut users = USERS.map(str::to_owned).to_vec();
        for place in (1..users.len()).rev() {
            users.swap(
                place,
                usize::try_from(self.below(place as u64 + 1)).unwrap(),
            );
        }
        users.truncate(1 + usize::try_from(self.below(most)).unwrap());
        users
    }

    pub fn text(&mut self) -> Value {
        match self.below(4) {
            0 => json!(""),
            1 => json!("<é> & 👩‍👩‍👧"),
            _ => json!(format!("text {}", self.below(1000))),
        }
    }

    /// Mostly less than what tells a late callback from a return.
    pub fn pause(&mut self) -> Duration {
        match self.below(10) {
            0 => LATE_CALLBACK_TIMEOUT,
            1 => LATE_CALLBACK_TIMEOUT + Duration::microseconds(1),
            2 => Duration::milliseconds(15_001 + self.below(60_000).cast_signed()),
            _ => Duration::microseconds(self.below(5_000_000).cast_signed()),
        }
    }

    fn profile(&mut self) -> Values {
        let mut profile = Values::new();
        for name in ["groupName", "notification", "introduction", "faceURL", "ex"] {
            profile.insert(name, self.text());
        }
        for name in ["lookMemberInfo", "applyMemberFriend"] {
            profile.insert(name, json!(self.below(2)));
        }
        // Joins that ask nobody are the ones that are told.
        profile.insert("needVerification", json!(self.pick(&[0, 1, 2, 2, 2, 2])));
        profile
    }

    fn profile_change(&mut self) -> Values {
        let mut change = self.profile();
        change.retain(|_, _| self.one_in(3));
        change
    }

    fn member_change(&mut self) -> Values {
        let mut change = Values::new();
        for name in ["nickName", "faceURL", "ex"] {
            change.insert(name, self.text());
        }
        change.insert("roleLevel", json!(self.pick(&[ORDINARY, ADMIN])));
        change.retain(|_, _| self.one_in(2));
        change
    }

    pub fn creation(&mut self, at: OffsetDateTime) -> Creation {
        let mut members = self.users(4);
        let owner = members.remove(0);
        let admins = members.pop().into_iter().collect();
        let somebody = self.user();
        Creation {
            profile: self.profile(),
            created_millis: i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap(),
            caller: self.pick(&["imAdmin".to_owned(), owner.clone(), somebody]),
            owner,
            admins,
            members,
        }
    }

    /// Something to ask of a group, which it may refuse.
    pub fn operation(&mut self, group: &Group, kind: Kind) -> Operation {
        let user = self.user();
        match self.below(if kind.is_silent { 110 } else { 80 }) {
            0..24 => {
                let mut change = self.member_change();
                // It leaves the group without an owner.
                if group.owner() == Some(&user) && !self.one_in(20) {
                    change.remove("roleLevel");
                }
                Operation::SetMember(user, change)
            }
            24..42 => Operation::Join(user),
            42..50 => Operation::Quit(user),
            50..58 => Operation::Kick(self.users(2)),
            58..66 => Operation::Transfer {
                old_owner: group.owner().cloned().unwrap_or_else(|| self.user()),
                new_owner: user,
            },
            66..71 => Operation::SetProfile(self.profile_change()),
            71..77 => Operation::SetProfileEx(self.profile_change()),
            77..80 => Operation::Dismiss {
                with_members: self.one_in(3),
            },
            80..95 => Operation::Invite(user),
            95..102 => Operation::Approve(user),
            102..105 => Operation::Mute,
            _ => Operation::Unmute,
        }
    }
}

/// Operations of OpenIM, and their callbacks.
#[derive(Clone, Debug)]
struct Step {
    at: OffsetDateTime,
    operation: Operation,
    told: Option<Callback>,
    /// Not done again, only told.
    is_repetition: bool,
}

#[derive(Debug)]
struct History {
    kind: Kind,
    release: Release,
    group_id: String,
    steps: Vec<Step>,
    /// True if the owner's role was taken away, which always marks the group.
    takes_owners_role: bool,
    /// The group in the end.
    group: Group,
    /// The steps whose callbacks come, and when.
    arrivals: Vec<(OffsetDateTime, usize)>,
    /// Pairs of steps whose callbacks come in the other order.
    swaps: Vec<(usize, usize)>,
}

impl History {
    fn new(seed: u64, number: u64) -> Self {
        let random = &mut Random::new(seed, number);
        let kind = KINDS[usize::try_from(number % KINDS.len() as u64).unwrap()];
        let group_id = format!("h{seed}-{number}");
        let mut at = OffsetDateTime::from_unix_timestamp(1_750_000_000).unwrap();
        let mut openim = OpenIm::default();
        // The newest tells nobody of who joins.
        let releases = if kind.is_silent { 3 } else { 2 };
        openim.release = random.pick(&Release::ALL[..releases]);
        let mut takes_owners_role = false;
        let mut operation = Operation::Create(random.creation(at));
        let mut steps = Vec::new();
        for _ in 0..8 + random.below(30) {
            let before = openim.groups.get(&group_id).cloned();
            if let Ok(told) = openim.apply(&group_id, &operation) {
                takes_owners_role |=
                    before.is_some_and(|group| is_of_owners_role(&group, &operation));
                let mut told = told.into_iter();
                let step = Step {
                    at,
                    operation,
                    told: told.next(),
                    is_repetition: false,
                };
                // The push service dismisses a dismissed group once more.
                let again = told.next().map(|again| Step {
                    told: Some(again),
                    is_repetition: true,
                    ..step.clone()
                });
                if kind.is_repeated && step.told.is_some() && random.one_in(12) {
                    let repetition = Step {
                        is_repetition: true,
                        ..step.clone()
                    };
                    steps.extend([step, repetition]);
                } else {
                    steps.push(step);
                }
                steps.extend(again);
            }
            at += random.pause();
            operation = random.operation(&openim.groups[&group_id], kind);
        }
        let (arrivals, swaps) = arrivals(random, kind, &steps);
        Self {
            kind,
            release: openim.release,
            steps,
            takes_owners_role,
            group: openim.groups.remove(&group_id).unwrap(),
            group_id,
            arrivals,
            swaps,
        }
    }

    async fn tell(&self, ingest: &Ingest) {
        for (at, step) in &self.arrivals {
            let callback = self.steps[*step].told.as_ref().unwrap();
            submit(ingest, callback, *at).await;
        }
    }

    /// The group as it would be, had OpenIM done what these swaps have moved in the order in which
    /// it was told; where OpenIM would have told the same in that order.
    fn done_as_told(&self, swaps: impl Iterator<Item = (usize, usize)>) -> Option<Group> {
        let mut steps: Vec<&Step> = self.steps.iter().collect();
        for (one, other) in swaps {
            steps.swap(one, other);
        }
        let mut openim = OpenIm::default();
        openim.release = self.release;
        for step in steps {
            let before = openim.clone();
            if let (Operation::Join(user), Some(_)) = (&step.operation, &step.told)
                && let Some(group) = openim.groups.get_mut(&self.group_id)
                && group
                    .members
                    .get(user)
                    .is_some_and(|member| member.is_unheard)
            {
                // Who came in silence need not have come.
                group.members.remove(user);
            }
            let (operation, may_be_again) = match &step.operation {
                // Nobody looks at whether its members are deleted with it.
                Operation::Dismiss { .. } => (&DISMISS, true),
                operation => (operation, step.is_repetition),
            };
            let told = openim.apply(&self.group_id, operation);
            let is_told = told.is_ok_and(|told| !told.is_empty());
            match (&step.told, is_told) {
                (Some(_), false) if !may_be_again => return None,
                // An application that would have been a join: it need not have been made.
                (None, true) => openim = before,
                _ => {}
            }
        }
        openim.groups.remove(&self.group_id)
    }

    /// Every choice of swaps, but none at all.
    fn choices(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, usize)>> {
        (1_u32..1 << self.swaps.len()).map(|choice| {
            let chosen = move |(place, _): &(usize, _)| choice & (1 << place) != 0;
            let swaps = self.swaps.iter().copied().enumerate();
            swaps.filter(chosen).map(|(_, swap)| swap)
        })
    }

    /// Reason for which a stored value may differ; an error without one.
    fn explain(&self, stored: &Stored) -> Result<BTreeSet<(Why, String)>, String> {
        let wants_check = stored.check.is_some();
        let different = differences(&self.group, stored);
        let Kind {
            is_silent,
            is_repeated,
            is_swapped,
        } = self.kind;
        if !(is_silent || is_repeated || is_swapped) {
            if wants_check != self.takes_owners_role {
                return Err(format!("a check wanted: {:?}", stored.check));
            }
            if !different.is_empty() {
                return Err(format!("{different:?} differ"));
            }
        }
        if wants_check {
            let whole = |_| (Why::CheckWanted, String::new());
            return Ok(different.first().map(whole).into_iter().collect());
        }
        if let Some(why) = self.reasons(&self.group, stored) {
            return Ok(why);
        }
        // Nobody can tell histories from each other that are told in the same way.
        let mut groups = self.choices().filter_map(|swaps| self.done_as_told(swaps));
        let why = groups.find_map(|group| self.reasons(&group, stored));
        let mut why = why.ok_or_else(|| format!("{different:?} differ"))?;
        why.insert((Why::OtherOrder, String::new()));
        Ok(why)
    }

    /// Reason of the differences from this group, if there is one for all.
    fn reasons(&self, group: &Group, stored: &Stored) -> Option<BTreeSet<(Why, String)>> {
        let reason = |(subject, field): (String, String)| {
            let why = match self.swapped(stored, &subject, &field) {
                true if subject.is_empty() => Why::ProfilesSwapped,
                true => Why::PatchesSwapped,
                false => silence(group, stored, &subject, &field)?,
            };
            Some((why, subject))
        };
        differences(group, stored).into_iter().map(reason).collect()
    }

    /// True if the stored value is the earlier of two that came in the other order.
    fn swapped(&self, stored: &Stored, subject: &str, field: &str) -> bool {
        let value = |step: usize| match &self.steps[step].operation {
            Operation::SetMember(user, values) if user == subject => values.get(field),
            Operation::SetProfile(values) | Operation::SetProfileEx(values)
                if subject.is_empty() =>
            {
                values.get(field)
            }
            _ => None,
        };
        let kept = stored.facts.get(&(subject.to_owned(), field.to_owned()));
        let mut swaps = self.swaps.iter();
        swaps.any(|(one, other)| value(*other).is_some() && kept.is_some() && value(*one) == kept)
    }
}

fn is_of_owners_role(group: &Group, operation: &Operation) -> bool {
    let Operation::SetMember(user, values) = operation else {
        return false;
    };
    values.contains_key("roleLevel") && group.members[user].role() == OWNER
}

type Arrivals = (Vec<(OffsetDateTime, usize)>, Vec<(usize, usize)>);

fn arrivals(random: &mut Random, kind: Kind, steps: &[Step]) -> Arrivals {
    let steps = steps.iter().enumerate();
    let told = steps.filter(|(_, step)| step.told.is_some());
    let mut arrivals: Vec<_> = told.map(|(place, step)| (step.at, place)).collect();
    let mut swaps = Vec::new();
    let mut place = 1;
    while kind.is_swapped && place < arrivals.len() {
        if random.one_in(5) {
            let ((_, one), (_, other)) = (arrivals[place - 1], arrivals[place]);
            arrivals[place - 1].1 = other;
            arrivals[place].1 = one;
            swaps.push((one, other));
            place += 1;
        }
        place += 1;
    }
    (arrivals, swaps)
}

/// Reason for which a stored value differs from OpenIM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// And it is known that it may.
    CheckWanted,
    /// Somebody came in silence and was not named since.
    MemberUnheard,
    MuteUnheard,
    /// No longer dismissed, and nothing was told since that proves it.
    BackUnheard,
    /// Two patches of one member that both set the value.
    PatchesSwapped,
    /// Reason of a difference of the group's profile.
    ProfilesSwapped,
    /// OpenIM would have told the same, had it done in the order in which it was told what leads to
    /// what is stored.
    OtherOrder,
}

/// Values by whose they are, of the group itself where that is empty, and by their names.
type Facts = BTreeMap<(String, String), Value>;

/// A group as it is stored.
#[derive(Debug, Default)]
struct Stored {
    facts: Facts,
    check: Option<String>,
}

fn facts(group: &Group) -> Facts {
    let of_group =
        |(name, value): (&&str, &Value)| ((String::new(), (*name).to_owned()), value.clone());
    let mut facts: Facts = group.profile.iter().map(of_group).collect();
    for (name, value) in [
        ("status", json!(group.status)),
        ("createTime", json!(group.created_millis)),
        ("owner", json!(group.owner())),
    ] {
        facts.insert((String::new(), name.to_owned()), value);
    }
    for (user, member) in &group.members {
        for (name, value) in &member.values {
            facts.insert((user.clone(), (*name).to_owned()), value.clone());
        }
    }
    facts
}

/// Differences.
fn differences(group: &Group, stored: &Stored) -> Vec<(String, String)> {
    let held = facts(group);
    let keys: BTreeSet<_> = held.keys().chain(stored.facts.keys()).collect();
    let differs = |key: &&&(String, String)| held.get(**key) != stored.facts.get(**key);
    keys.iter()
        .filter(differs)
        .map(|&key| key.clone())
        .collect()
}

/// Reason of a difference of a value without a callback.
fn silence(group: &Group, stored: &Stored, subject: &str, field: &str) -> Option<Why> {
    if let Some(member) = group.members.get(subject) {
        let is_stored = stored.facts.keys().any(|(user, _)| user == subject);
        return (member.is_unheard && !is_stored).then_some(Why::MemberUnheard);
    }
    if field != "status" {
        return None;
    }
    let kept = stored.facts.get(&(String::new(), field.to_owned()));
    if group.is_dismissed() || kept != Some(&json!(DISMISSED)) {
        return (!group.is_dismissed()).then_some(Why::MuteUnheard);
    }
    group.is_back_unheard.then_some(Why::BackUnheard)
}

async fn stored(db: &TestDb) -> BTreeMap<String, Stored> {
    let groups = r#"
        select group_id, case when check_wanted_since is not null then check_reason end as "check",
               name as "groupName", notification, introduction, face_url as "faceURL", ex,
               need_verification as "needVerification", look_member_info as "lookMemberInfo",
               apply_member_friend as "applyMemberFriend", status, owner_user_id as owner,
               (extract(epoch from created_in_openim_at) * 1000)::bigint as "createTime"
          from groups"#;
    let members = format!(
        r#"select group_id, user_id, nickname as "nickName", m.face_url as "faceURL",
                  role_level as "roleLevel", m.ex
             from group_members m join groups using (group_id) where {CURRENT}"#
    );
    let mut all: BTreeMap<String, Stored> = BTreeMap::new();
    for row in db
        .rows(groups)
        .await
        .into_iter()
        .chain(db.rows(&members).await)
    {
        let Value::Object(mut row) = row else {
            unreachable!("a row is an object");
        };
        let mut id = |name| {
            row.remove(name)
                .and_then(|id| id.as_str().map(str::to_owned))
        };
        let group = all.entry(id("group_id").unwrap()).or_default();
        let subject = id("user_id").unwrap_or_default();
        group.check = group.check.take().or(id("check"));
        row.remove("check");
        let facts = row
            .into_iter()
            .map(|(name, value)| ((subject.clone(), name), value));
        group.facts.extend(facts);
    }
    all
}

async fn submit(ingest: &Ingest, callback: &Callback, at: OffsetDateTime) {
    let Callback { command, body, .. } = callback;
    let change = understand(&format!("/{command}"), body.as_bytes(), at);
    let change = change.unwrap_or_else(|why| panic!("{why}: {body}"));
    ingest.submit(change).await.unwrap();
}

async fn open() -> (TestDb, Store, Ingest) {
    let db = TestDb::new().await;
    let store = db.database().open().await.unwrap();
    let retention = Retention {
        keep_days: 1,
        max_bytes: 0,
    };
    let ingest = Ingest::new(store.clone(), retention, None);
    (db, store, ingest)
}

/// The history, for whoever has to find out what is wrong.
fn story(history: &History, stored: &Stored) -> String {
    let mut story = format!(
        "{:?}, {:?}, {}\n\nOpenIM:\n",
        history.kind, history.release, history.group_id
    );
    for (place, Step { at, operation, .. }) in history.steps.iter().enumerate() {
        writeln!(story, "{place:3} {at} {operation:?}").unwrap();
    }
    story += "\ntold:\n";
    for (at, step) in &history.arrivals {
        let body = &history.steps[*step].told.as_ref().unwrap().body;
        write!(story, "{step:3} {at} {body}").unwrap();
    }
    let held = facts(&history.group);
    let keys: BTreeSet<_> = held.keys().chain(stored.facts.keys()).collect();
    story += "\nheld, and stored:\n";
    for key in keys {
        let values = [&held, &stored.facts].map(|facts| facts.get(key));
        writeln!(story, "{key:?} {values:?}").unwrap();
    }
    story
}

pub fn seed() -> u64 {
    match std::env::var("HISTORY_SEED") {
        Ok(seed) => seed.parse().expect("HISTORY_SEED is a number"),
        Err(_) => new_seed(),
    }
}

#[tokio::test]
async fn what_is_stored_is_what_openim_holds_or_is_known_to_be_in_doubt() {
    let seed = seed();
    println!("histories: HISTORY_SEED={seed}");
    let (db, store, ingest) = open().await;
    let numbers = 0..HISTORIES * KINDS.len() as u64;
    let histories: Vec<History> = numbers.map(|number| History::new(seed, number)).collect();
    stream::iter(&histories)
        .for_each_concurrent(AT_A_TIME, |history| history.tell(&ingest))
        .await;
    ingest.close().await;
    store.close().await;

    let mut all = stored(&db).await;
    let mut differences: BTreeMap<Why, usize> = BTreeMap::new();
    let mut checks: BTreeMap<String, usize> = BTreeMap::new();
    for history in &histories {
        let stored = all.remove(&history.group_id).unwrap_or_default();
        let why = history.explain(&stored).unwrap_or_else(|what| {
            panic!("HISTORY_SEED={seed}: {what}\n{}", story(history, &stored))
        });
        for (why, _) in why {
            *differences.entry(why).or_default() += 1;
        }
        if let Some(check) = stored.check {
            *checks.entry(check).or_default() += 1;
        }
    }
    assert!(all.is_empty(), "nobody told of {:?}", all.keys());
    let callbacks: usize = histories.iter().map(|history| history.arrivals.len()).sum();
    println!(
        "histories: seed {seed}, {} histories, {callbacks} callbacks; \
         differences: {differences:?}; checks wanted: {checks:?}",
        histories.len()
    );
    // Both sides of the time that tells a late callback from a return.
    for reason in ["member_gone", "member_back"] {
        assert!(checks.contains_key(reason), "no {reason}: {checks:?}");
    }
}

#[tokio::test]
async fn a_callback_up_to_15_s_after_a_leave_is_late_and_then_the_member_is_back() {
    let (db, store, ingest) = open().await;
    let left_at = OffsetDateTime::from_unix_timestamp(1_750_000_000).unwrap();
    let user = || "u1".to_owned();
    for (group, later) in [
        ("late", Duration::seconds(15)),
        ("back", Duration::microseconds(15_000_001)),
    ] {
        let mut openim = OpenIm::default();
        let mut creation = Random::new(1, 0).creation(left_at);
        creation.owner = "u0".to_owned();
        creation.admins = vec![];
        creation.members = vec![user()];
        let patch = [("nickName", json!("Ann"))].into();
        for (at, operation) in [
            (left_at, Operation::Create(creation)),
            (left_at, Operation::Quit(user())),
            (left_at, Operation::Invite(user())),
            (left_at + later, Operation::SetMember(user(), patch)),
        ] {
            for callback in openim.apply(group, &operation).unwrap() {
                submit(&ingest, &callback, at).await;
            }
        }
    }
    ingest.close().await;
    store.close().await;
    let all = stored(&db).await;
    let nickname = ("u1".to_owned(), "nickName".to_owned());
    assert_eq!(all["late"].facts.get(&nickname), None);
    assert_eq!(all["late"].check.as_deref(), Some("member_gone"));
    assert_eq!(all["back"].facts.get(&nickname), Some(&json!("Ann")));
    assert_eq!(all["back"].check.as_deref(), Some("member_back"));
}
