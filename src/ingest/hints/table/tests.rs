use proptest::prelude::*;

use super::*;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn group(id: &str) -> GroupId {
    GroupId::parse(id.into()).unwrap()
}

fn kind(code: i64) -> HintKind {
    HintKind::of_code(code).unwrap()
}

/// A table with a clock in milliseconds.
struct Clocked {
    table: LookTable,
    start: Instant,
}

impl Clocked {
    fn new() -> Self {
        Self::of(100)
    }

    fn of(max_groups: usize) -> Self {
        Self {
            table: LookTable::new(max_groups),
            start: Instant::now(),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + millis(ms)
    }

    fn hint(&mut self, ms: u64, id: &str, code: i64, key: Option<CallbackKey>) -> HintOutcome {
        let at = self.at(ms);
        self.table.hint(&group(id), kind(code), key, at)
    }

    fn written(&mut self, ms: u64, id: &str, key: Option<CallbackKey>) -> HintOutcome {
        let at = self.at(ms);
        self.table.written(&group(id), key, false, at)
    }

    /// Begins looks; returns their groups.
    fn take(&mut self, ms: u64) -> Vec<String> {
        let due = self.table.take(10, self.at(ms));
        due.iter().map(|due| due.group_id.as_str().into()).collect()
    }

    fn take_one(&mut self, ms: u64) -> DueLook {
        let mut due = self.table.take(10, self.at(ms));
        assert_eq!(due.len(), 1);
        due.remove(0)
    }

    fn looked(&mut self, ms: u64, id: &str, end: LookEnd) {
        let at = self.at(ms);
        self.table.looked(&group(id), end, at);
    }

    /// Time of the next look.
    fn next(&self) -> Option<u64> {
        let next = self.table.next()?;
        Some(u64::try_from((next - self.start).as_millis()).unwrap())
    }
}

#[test]
fn the_kind_of_a_hint_decides_when_a_look_is_due() {
    for code in 1501..=1520 {
        let mut clocked = Clocked::new();
        clocked.hint(1000, "g", code, Some(1));
        let after = match code {
            1509 | 1510 | 1512..=1515 => 0,
            1504 | 1508 => 1000,
            _ => 50,
        };
        assert_eq!(clocked.next(), Some(1000 + after), "{code}");
    }
}

#[test]
fn a_leave_waits_for_the_callback_of_its_operation() {
    for code in [1504, 1508] {
        let mut clocked = Clocked::new();
        clocked.hint(1000, "g", code, Some(1));
        clocked.written(1100, "g", Some(2));
        clocked.written(1100, "h", Some(1));
        clocked.written(1100, "g", None);
        assert_eq!(clocked.next(), Some(2000));
        clocked.written(1260, "g", Some(1));
        assert_eq!(clocked.next(), Some(1260));
        assert_eq!(clocked.take(1260), ["g"]);
    }
}

/// The callback can be faster than the notification.
#[test]
fn a_leave_whose_callback_is_written_is_due_at_once() {
    let mut clocked = Clocked::new();
    clocked.written(0, "g", Some(1));
    clocked.hint(5000, "g", 1504, Some(1));
    assert_eq!(clocked.next(), Some(5000));
    // The callback is too old.
    let mut clocked = Clocked::new();
    clocked.written(0, "g", Some(1));
    clocked.hint(5001, "g", 1504, Some(1));
    assert_eq!(clocked.next(), Some(6001));
    // Without an operation id no callback is known to be of the same change.
    clocked.hint(5001, "h", 1504, None);
    assert_eq!(clocked.take(6000), [""; 0]);
    assert_eq!(clocked.take(6001), ["g", "h"]);
}

#[test]
fn hints_of_a_group_make_one_look_at_the_earliest_time() {
    let mut clocked = Clocked::new();
    assert_eq!(clocked.hint(0, "g", 1508, Some(1)), HintOutcome::Due);
    assert_eq!(clocked.hint(10, "g", 1504, Some(2)), HintOutcome::Merged);
    assert_eq!(clocked.hint(20, "g", 1516, None), HintOutcome::Merged);
    assert_eq!(clocked.next(), Some(70));
    assert_eq!(clocked.hint(30, "g", 1509, None), HintOutcome::Merged);
    let due = clocked.take_one(30);
    assert_eq!(due.hinted_since, Some(clocked.at(0)));
    assert_eq!(due.announced_leaves, 1001);
    for code in 1501..=1520 {
        let is_of_look = [1504, 1508, 1509, 1516].contains(&code);
        assert_eq!(due.kinds.has(kind(code)), is_of_look, "{code}");
    }
    assert_eq!(clocked.next(), None);
    // A dismissal announces the leave of all members.
    clocked.looked(40, "g", LookEnd::Done);
    clocked.hint(50, "g", 1511, None);
    clocked.hint(50, "g", 1504, None);
    assert_eq!(clocked.take_one(5000).announced_leaves, u64::MAX);
}

#[test]
fn a_group_has_five_looks_a_second_and_one_at_a_time() {
    let mut clocked = Clocked::new();
    let mut looks = Vec::new();
    for ms in 0..1000 {
        clocked.hint(ms, "g", 1509, None);
        if !clocked.take(ms).is_empty() {
            looks.push(ms);
            clocked.looked(ms, "g", LookEnd::Done);
        }
    }
    assert_eq!(looks, [0, 200, 400, 600, 800]);
    // The next look waits for a slow one.
    assert_eq!(clocked.take(1000), ["g"]);
    clocked.hint(1100, "g", 1509, None);
    assert_eq!(clocked.take(5000), [""; 0]);
    clocked.looked(5000, "g", LookEnd::Done);
    assert_eq!(clocked.take(5000), ["g"]);
}

#[test]
fn a_callback_within_15_s_after_a_look_asks_for_another() {
    let mut clocked = Clocked::new();
    clocked.written(0, "g", Some(1));
    assert_eq!(clocked.next(), None, "there was no look");
    clocked.hint(100, "g", 1509, None);
    clocked.written(100, "g", Some(2));
    assert_eq!(clocked.take(100), ["g"]);
    // During the look.
    clocked.written(110, "g", Some(3));
    clocked.looked(400, "g", LookEnd::Done);
    assert_eq!(clocked.next(), Some(300));
    let due = clocked.take_one(400);
    assert_eq!((due.hinted_since, due.announced_leaves), (None, 0));
    clocked.looked(1000, "g", LookEnd::Done);
    // A second look, without a hint or callback.
    assert_eq!(clocked.next(), Some(5000));
    clocked.take(5000);
    clocked.looked(5000, "g", LookEnd::Done);
    assert_eq!(clocked.next(), None);
    // A callback before the second look.
    clocked.written(16_000, "g", Some(4));
    assert_eq!(clocked.next(), Some(16_050));
    clocked.take(16_050);
    clocked.looked(16_100, "g", LookEnd::Done);
    assert_eq!(clocked.next(), Some(20_100));
    clocked.written(16_200, "g", Some(6));
    assert_eq!(clocked.next(), Some(16_250));
    clocked.take(16_250);
    clocked.looked(16_250, "g", LookEnd::Done);
    clocked.take(20_250);
    clocked.looked(20_250, "g", LookEnd::Done);
    clocked.written(35_251, "g", Some(5));
    assert_eq!(clocked.next(), None);
}

#[test]
fn a_group_is_watched_until_15_s_after_its_last_look() {
    let mut clocked = Clocked::new();
    let is = |clocked: &Clocked, ms| clocked.table.is_watched(&group("g"), clocked.at(ms));
    assert!(!is(&clocked, 0));
    clocked.hint(0, "g", 1516, None);
    assert!(is(&clocked, 0));
    clocked.take(50);
    assert!(is(&clocked, 100_000));
    clocked.looked(100_000, "g", LookEnd::Done);
    clocked.take(104_000);
    clocked.looked(104_000, "g", LookEnd::Done);
    assert!(is(&clocked, 119_000));
    assert!(!is(&clocked, 119_001));
    // A callback came while the group was watched, so it has set no mark.
    let (group, at) = (group("g"), clocked.at(119_001));
    clocked.table.written(&group, None, true, at);
    assert_eq!(clocked.next(), Some(119_051));
}

#[test]
fn a_failed_look_is_due_again_after_growing_pauses() {
    let mut clocked = Clocked::new();
    clocked.hint(0, "g", 1508, None);
    let mut now = 1000;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        let due = clocked.take_one(now);
        assert_eq!(
            (due.announced_leaves, due.hinted_since),
            (1000, Some(clocked.at(0)))
        );
        clocked.looked(now, "g", LookEnd::Failed);
        // Another hint does not shorten the pause and keeps the announced leaves.
        clocked.hint(now, "g", 1509, None);
        assert_eq!(clocked.next(), Some(now + pause * 1000));
        now += pause * 1000;
        assert!(clocked.table.is_watched(&group("g"), clocked.at(now)));
    }
    clocked.take(now);
    clocked.looked(now, "g", LookEnd::Done);
    clocked.hint(now + 200, "g", 1509, None);
    clocked.take(now + 200);
    clocked.looked(now + 200, "g", LookEnd::Failed);
    assert_eq!(clocked.next(), Some(now + 1200));
}

#[test]
fn a_look_that_began_too_early_is_followed_by_another() {
    let mut clocked = Clocked::new();
    clocked.hint(0, "g", 1504, Some(1));
    clocked.take(1000);
    clocked.looked(1001, "g", LookEnd::Again);
    assert_eq!(clocked.next(), Some(1200));
    let due = clocked.take_one(1200);
    assert_eq!(
        (due.announced_leaves, due.hinted_since),
        (1, Some(clocked.at(0)))
    );
}

#[test]
fn the_look_that_is_due_for_longest_is_first() {
    let mut clocked = Clocked::new();
    clocked.hint(0, "c", 1516, None);
    clocked.hint(10, "b", 1509, None);
    clocked.hint(20, "a", 1509, None);
    let due = clocked.table.take(2, clocked.at(60));
    let ids: Vec<_> = due.iter().map(|due| due.group_id.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(clocked.take(60), ["c"]);
}

#[test]
fn the_table_is_bounded_and_old_groups_make_room() {
    let mut clocked = Clocked::of(2);
    assert_eq!(clocked.hint(0, "a", 1509, None), HintOutcome::Due);
    assert_eq!(clocked.hint(0, "b", 1516, None), HintOutcome::Due);
    assert_eq!(clocked.hint(0, "c", 1509, None), HintOutcome::Dropped);
    assert_eq!(clocked.hint(0, "b", 1509, None), HintOutcome::Merged);
    clocked.take(0);
    clocked.looked(0, "a", LookEnd::Done);
    clocked.take(4000);
    clocked.looked(4000, "a", LookEnd::Done);
    assert_eq!(clocked.hint(19_000, "c", 1509, None), HintOutcome::Dropped);
    assert_eq!(clocked.hint(19_001, "c", 1509, None), HintOutcome::Due);
    assert_eq!(clocked.table.groups.len(), 2);
}

/// Input of a table.
#[derive(Clone, Debug)]
enum Step {
    Hint(usize, i64, Option<CallbackKey>),
    Written(usize, Option<CallbackKey>, bool),
    Take(usize),
    Looked(usize, LookEnd),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || proptest::option::of(0_u64..4);
    let end = prop_oneof![
        4 => Just(LookEnd::Done),
        1 => Just(LookEnd::Again),
        1 => Just(LookEnd::Failed)
    ];
    prop_oneof![
        4 => (0_usize..4, 1501_i64..1521, key()).prop_map(|(g, code, key)| Step::Hint(g, code, key)),
        2 => (0_usize..4, key(), any::<bool>()).prop_map(|(g, key, was)| Step::Written(g, key, was)),
        3 => (1_usize..3).prop_map(Step::Take),
        3 => (0_usize..4, end).prop_map(|(g, end)| Step::Looked(g, end)),
        3 => (0_u64..3000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn a_look_follows_every_hint_and_every_group_is_removed_at_last(
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let ids = ["a", "b", "c", "d"].map(group);
        let mut clocked = Clocked::of(3);
        let mut ms = 0;
        let mut is_hinted = [false; 4];
        let mut is_looking = [false; 4];
        let mut began: [Option<u64>; 4] = [None; 4];
        let place = |id: &GroupId| ids.iter().position(|other| other == id).unwrap();
        for step in steps {
            match step {
                Step::Hint(g, code, key) => {
                    let taken = clocked.hint(ms, ids[g].as_str(), code, key);
                    is_hinted[g] |= taken != HintOutcome::Dropped;
                }
                Step::Written(g, key, was) => {
                    let at = clocked.at(ms);
                    clocked.table.written(&ids[g], key, was, at);
                }
                Step::Take(most) => {
                    for due in clocked.table.take(most, clocked.at(ms)) {
                        let g = place(&due.group_id);
                        prop_assert!(!is_looking[g]);
                        prop_assert!(began[g].is_none_or(|at| ms - at >= 200));
                        (is_looking[g], began[g], is_hinted[g]) = (true, Some(ms), false);
                    }
                }
                Step::Looked(g, end) if is_looking[g] => {
                    is_looking[g] = false;
                    is_hinted[g] |= end != LookEnd::Done;
                    clocked.looked(ms, ids[g].as_str(), end);
                }
                Step::Looked(..) => {}
                Step::Wait(more) => ms += more,
            }
            prop_assert!(clocked.table.groups.len() <= 3);
            for g in 0..4 {
                if is_hinted[g] || is_looking[g] {
                    prop_assert!(clocked.table.is_watched(&ids[g], clocked.at(ms)));
                }
            }
        }
        // At last there is a look at each group.
        for g in 0..4 {
            if is_looking[g] {
                clocked.looked(ms, ids[g].as_str(), LookEnd::Done);
            }
        }
        for _ in 0..10 {
            ms += 60_000;
            for due in clocked.table.take(10, clocked.at(ms)) {
                is_hinted[place(&due.group_id)] = false;
                clocked.looked(ms, due.group_id.as_str(), LookEnd::Done);
            }
        }
        prop_assert_eq!(is_hinted, [false; 4]);
        prop_assert_eq!(clocked.next(), None);
        clocked.table.expire(clocked.at(ms + 15_001));
        prop_assert!(clocked.table.groups.is_empty() && clocked.table.looked.is_empty());
    }
}
