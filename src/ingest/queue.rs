//! What waits to be written, and which lane writes what.
//!
//! Any lane takes any group's changes, but a group is in one lane at a time: a lane claims the
//! groups of what it takes, and what comes for these meanwhile is kept for it. So changes of one
//! group take effect in their order of arrival, while two changes that come at the same moment
//! find two lanes, whatever their groups are. (Lanes of which each has its own groups, by a hash,
//! would let one of the two wait in half of all cases.)

use std::collections::{HashMap, VecDeque};

/// Changes in the order of their arrival here. `C` is a change; a group is known by a hash, so two
/// groups may be taken for one, which only keeps them in order too.
#[derive(Debug)]
pub(super) struct Queue<C> {
    /// Of groups that no lane has.
    unclaimed: VecDeque<Entry<C>>,
    lanes: Vec<Lane<C>>,
    /// The lane that has a group: a change of it is being written there, or kept.
    claims: HashMap<u64, usize>,
    /// Lanes without work, the last to become so last.
    idle: Vec<usize>,
    /// How much a lane takes at a time.
    most: Load,
    /// How many have come.
    count: u64,
}

/// Up to so many changes, the commit costs more than the rows.
pub(super) const FEW: usize = 4;

/// An amount of work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) changes: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Entry<C> {
    /// Of all that have come.
    number: u64,
    group: u64,
    bytes: usize,
    change: C,
}

#[derive(Debug)]
struct Lane<C> {
    /// Of groups that it has, in order of arrival.
    kept: VecDeque<Entry<C>>,
    /// Groups of what it writes now, one for each change.
    writing: Vec<u64>,
    /// Whether that takes long.
    is_slow: bool,
}

impl<C> Queue<C> {
    pub(super) fn new(lanes: usize, most: Load) -> Self {
        let lane = |_| Lane {
            kept: VecDeque::new(),
            writing: Vec::new(),
            is_slow: false,
        };
        Self {
            unclaimed: VecDeque::new(),
            lanes: (0..lanes).map(lane).collect(),
            claims: HashMap::new(),
            idle: Vec::new(),
            most,
            count: 0,
        }
    }

    /// Adds a change of `bytes` bytes. Returns the lane to wake, if there is one without work.
    pub(super) fn push(&mut self, group: u64, bytes: usize, change: C) -> Option<usize> {
        self.count += 1;
        let entry = Entry {
            number: self.count,
            group,
            bytes,
            change,
        };
        if let Some(lane) = self.claims.get(&group) {
            self.lanes[*lane].kept.push_back(entry);
            return None;
        }
        self.unclaimed.push_back(entry);
        self.wanted()
    }

    /// The number of the change that came last.
    pub(super) fn last(&self) -> u64 {
        self.count
    }

    /// Takes the change of a number out again; `None` where a lane has taken it.
    pub(super) fn take_back(&mut self, number: u64) -> Option<C> {
        let is_it = |entry: &Entry<C>| entry.number == number;
        if let Some(place) = self.unclaimed.iter().position(is_it) {
            return self.unclaimed.remove(place).map(|entry| entry.change);
        }
        self.lanes.iter_mut().find_map(|lane| {
            let place = lane.kept.iter().position(is_it)?;
            let entry = lane.kept.remove(place)?;
            let has_group = lane.writing.contains(&entry.group)
                || lane.kept.iter().any(|kept| kept.group == entry.group);
            if !has_group {
                // Nothing wakes the lane for what comes next of this group.
                self.claims.remove(&entry.group);
            }
            Some(entry.change)
        })
    }

    /// What `lane` writes next, in order of arrival within each group; what it wrote before is
    /// done. Nothing: it is without work, until [`Queue::push`] or [`Queue::wanted`] names it.
    pub(super) fn take(&mut self, lane: usize) -> Vec<C> {
        let Lane {
            kept,
            writing,
            is_slow,
        } = &mut self.lanes[lane];
        *is_slow = false;
        for group in writing.drain(..) {
            self.claims.remove(&group);
        }
        let mut batch = Vec::new();
        let mut taken = Load::default();
        // What is kept came later than the last batch, but earlier than what is unclaimed of the
        // same group.
        for source in [&mut *kept, &mut self.unclaimed] {
            while let Some(first) = source.front() {
                let is_full = taken.changes >= self.most.changes
                    || taken.bytes.saturating_add(first.bytes) > self.most.bytes;
                if is_full && taken.changes > 0 {
                    break;
                }
                let Some(entry) = source.pop_front() else {
                    break;
                };
                taken.changes += 1;
                taken.bytes = taken.bytes.saturating_add(entry.bytes);
                writing.push(entry.group);
                batch.push(entry.change);
            }
        }
        let has = writing.iter().chain(kept.iter().map(|entry| &entry.group));
        for group in has {
            self.claims.insert(*group, lane);
        }
        // Of a group that a lane has, nothing may stay where another lane would take it.
        if !self.unclaimed.is_empty() {
            let claims = &self.claims;
            let (own, others) = std::mem::take(&mut self.unclaimed)
                .into_iter()
                .partition(|entry| claims.get(&entry.group) == Some(&lane));
            kept.extend::<VecDeque<_>>(own);
            self.unclaimed = others;
        }
        if batch.is_empty() && !self.idle.contains(&lane) {
            self.idle.push(lane);
        }
        batch
    }

    /// Says that what `lane` writes takes long, so that nothing waits for it.
    pub(super) fn is_slow(&mut self, lane: usize) {
        self.lanes[lane].is_slow = true;
    }

    /// A lane without work to wake, if there is work for it.
    ///
    /// While a lane writes many changes, those that come are left to it, unless they fill a batch:
    /// a row costs little, a statement and its commit much. So two changes are written side by side
    /// by two lanes, and hundreds by one, which is the faster way for either.
    pub(super) fn wanted(&mut self) -> Option<usize> {
        let waiting = self.unclaimed.len();
        let soon_done = self.lanes.iter().filter(|lane| !lane.is_slow);
        let writing: usize = soon_done.map(|lane| lane.writing.len()).sum();
        if waiting == 0 || (writing > FEW && waiting < self.most.changes) {
            return None;
        }
        self.idle.pop()
    }

    /// How many changes wait; those that are being written are not among them.
    pub(super) fn len(&self) -> usize {
        let kept: usize = self.lanes.iter().map(|lane| lane.kept.len()).sum();
        self.unclaimed.len() + kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: Load = Load {
        changes: 3,
        bytes: 10,
    };

    #[test]
    fn two_changes_find_two_lanes_and_a_group_stays_in_its_own() {
        let mut queue = Queue::new(2, SMALL);
        assert_eq!((queue.take(0), queue.take(1)), (vec![], vec![]));
        assert_eq!(queue.push(1, 1, "a"), Some(1));
        assert_eq!(queue.take(1), ["a"]);
        // The same group: kept for the lane that has it.
        assert_eq!(queue.push(1, 1, "b"), None);
        // Another: the other lane.
        assert_eq!(queue.push(2, 1, "c"), Some(0));
        assert_eq!(queue.take(0), ["c"]);
        assert_eq!(queue.take(1), ["b"]);
        assert_eq!(queue.take(1), Vec::<&str>::new());
        // Nobody has it any more, so any lane may.
        assert_eq!(queue.push(1, 1, "d"), Some(1));
    }

    #[test]
    fn few_changes_wait_for_a_lane_that_writes_many_unless_it_is_slow() {
        let most = Load {
            changes: 20,
            bytes: 1000,
        };
        let mut queue = Queue::new(2, most);
        assert_eq!((queue.take(0), queue.take(1)), (vec![], vec![]));
        for group in 0..10 {
            queue.push(group, 1, group);
        }
        assert_eq!(queue.take(0).len(), 10);
        assert_eq!(queue.take(1).len(), 0);
        assert_eq!(queue.push(20, 1, 20), None);
        assert_eq!(queue.wanted(), None);
        queue.is_slow(0);
        assert_eq!(queue.wanted(), Some(1));
        assert_eq!(queue.take(1), [20]);
    }

    #[test]
    fn as_many_as_fill_a_batch_are_left_to_nobody() {
        let most = Load {
            changes: 20,
            bytes: 1000,
        };
        let mut queue = Queue::new(2, most);
        assert_eq!((queue.take(0), queue.take(1)), (vec![], vec![]));
        for group in 0..20 {
            queue.push(group, 1, group);
        }
        assert_eq!(queue.take(0).len(), 20);
        assert_eq!(queue.take(1).len(), 0);
        for group in 20..39 {
            assert_eq!(queue.push(group, 1, group), None, "{group}");
        }
        assert_eq!(queue.push(39, 1, 39), Some(1));
    }

    /// What happens to a queue.
    #[derive(Clone, Debug)]
    enum Event {
        Push { group: u64, bytes: usize },
        Take { lane: usize },
        TakeBack { part: usize },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0_u64..6, 0_usize..12).prop_map(|(group, bytes)| Event::Push { group, bytes }),
            2 => (0_usize..3).prop_map(|lane| Event::Take { lane }),
            1 => (0_usize..100).prop_map(|part| Event::TakeBack { part }),
        ]
    }

    proptest! {
        #[test]
        fn each_change_is_taken_once_in_order_and_its_group_by_one_lane_at_a_time(
            events in proptest::collection::vec(event(), 0..200),
        ) {
            let mut queue = Queue::new(3, SMALL);
            let mut pushed = Vec::new();
            let mut taken = Vec::new();
            let mut taken_back = Vec::new();
            let mut writing: [Vec<(u64, usize, usize)>; 3] = Default::default();
            // In the end each lane takes until there is nothing left.
            let end = (0..600).map(|n| Event::Take { lane: n % 3 });
            for event in events.into_iter().chain(end) {
                match event {
                    Event::Push { group, bytes } => {
                        let change = (group, bytes, pushed.len());
                        pushed.push(change);
                        queue.push(group, bytes, change);
                        prop_assert_eq!(queue.last(), pushed.len() as u64);
                    }
                    Event::TakeBack { part } => {
                        let number = pushed.len() * part / 100;
                        let change = pushed.get(number).copied();
                        let back = queue.take_back(number as u64 + 1);
                        let waits = change.is_some_and(|change| {
                            !taken.contains(&change) && !taken_back.contains(&change)
                        });
                        prop_assert_eq!(back, change.filter(|_| waits));
                        taken_back.extend(back);
                    }
                    Event::Take { lane } => {
                        let batch = queue.take(lane);
                        let bytes: usize = batch.iter().map(|change| change.1).sum();
                        prop_assert!(batch.len() <= SMALL.changes);
                        prop_assert!(bytes <= SMALL.bytes || batch.len() == 1);
                        for (other, theirs) in writing.iter().enumerate() {
                            for (group, ..) in theirs.iter().filter(|_| other != lane) {
                                prop_assert!(batch.iter().all(|change| change.0 != *group));
                            }
                        }
                        taken.extend(batch.clone());
                        writing[lane] = batch;
                    }
                }
                prop_assert_eq!(queue.len(), pushed.len() - taken.len() - taken_back.len());
            }
            pushed.retain(|change| !taken_back.contains(change));
            // Nothing is left that a lane would never be woken for.
            prop_assert!(queue.claims.is_empty());
            for group in 0..6 {
                let of = |changes: &[(u64, usize, usize)]| -> Vec<usize> {
                    let same = changes.iter().filter(|change| change.0 == group);
                    same.map(|change| change.2).collect()
                };
                prop_assert_eq!(of(&taken), of(&pushed));
            }
        }
    }
}
