//! The queue of changes, and the choice of a lane for each.
//!
//! Any lane takes the changes of any group, but one group is in one lane at a time. A lane claims the groups of its
//! batch, and later changes of these groups are kept for it. So the changes of one group take effect in their order of
//! arrival, and two changes of two groups are written at the same time. With a fixed lane for each group, by a hash,
//! one of two such changes would wait for the other in half of all cases with two lanes.

use std::collections::{HashMap, VecDeque};

/// Changes in their order of arrival. `C` is a change. A group is known by a hash: two groups with the same hash only
/// keep their common order.
#[derive(Debug)]
pub(super) struct Queue<C> {
    /// Changes of groups that no lane has claimed.
    unclaimed: VecDeque<Item<C>>,
    lanes: Vec<LaneState<C>>,
    /// The lane that has claimed a group: a change of the group is in its batch or kept for it.
    claims: HashMap<u64, usize>,
    /// Lanes without work, the latest at the end.
    idle: Vec<usize>,
    /// Limit of a batch.
    max_batch: Load,
    /// Number of changes that were ever added.
    count: u64,
}

/// Up to this number of changes, the commit costs more than the rows.
pub(super) const SMALL_BATCH: usize = 4;

/// An amount of work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) changes: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Item<C> {
    /// Number of the change, from 1.
    number: u64,
    group: u64,
    bytes: usize,
    change: C,
}

#[derive(Debug)]
struct LaneState<C> {
    /// Later changes of claimed groups, in order of arrival.
    kept: VecDeque<Item<C>>,
    /// Group of each change in the batch.
    writing: Vec<u64>,
    /// True if the batch takes long.
    is_slow: bool,
}

impl<C> Queue<C> {
    pub(super) fn new(lanes: usize, max_batch: Load) -> Self {
        let lane = |_| LaneState {
            kept: VecDeque::new(),
            writing: Vec::new(),
            is_slow: false,
        };
        Self {
            unclaimed: VecDeque::new(),
            lanes: (0..lanes).map(lane).collect(),
            claims: HashMap::new(),
            idle: Vec::new(),
            max_batch,
            count: 0,
        }
    }

    /// Adds a change of `bytes` bytes. Returns the lane to wake, if any.
    pub(super) fn push(&mut self, group: u64, bytes: usize, change: C) -> Option<usize> {
        self.count += 1;
        let entry = Item {
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
        self.lane_to_wake()
    }

    /// Number of the last change that was added.
    pub(super) fn last_number(&self) -> u64 {
        self.count
    }

    /// Removes a change by its number. `None` if a lane has taken it.
    pub(super) fn remove(&mut self, number: u64) -> Option<C> {
        let is_it = |entry: &Item<C>| entry.number == number;
        if let Some(place) = self.unclaimed.iter().position(is_it) {
            return self.unclaimed.remove(place).map(|entry| entry.change);
        }
        self.lanes.iter_mut().find_map(|lane| {
            let place = lane.kept.iter().position(is_it)?;
            let entry = lane.kept.remove(place)?;
            let has_group = lane.writing.contains(&entry.group)
                || lane.kept.iter().any(|kept| kept.group == entry.group);
            if !has_group {
                // The lane is not woken for later changes of this group.
                self.claims.remove(&entry.group);
            }
            Some(entry.change)
        })
    }

    /// Next batch of `lane`, in order of arrival within each group. Ends the batch before. If the batch is empty, the lane
    /// is idle until [`Queue::push`] or [`Queue::lane_to_wake`] returns it.
    pub(super) fn take(&mut self, lane: usize) -> Vec<C> {
        let LaneState {
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
        // Kept changes are older than unclaimed changes of the same group.
        for source in [&mut *kept, &mut self.unclaimed] {
            while let Some(first) = source.front() {
                let is_full = taken.changes >= self.max_batch.changes
                    || taken.bytes.saturating_add(first.bytes) > self.max_batch.bytes;
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
        // No unclaimed change of a claimed group may stay: another lane would take it.
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

    /// Notes that the batch of `lane` is slow.
    pub(super) fn note_slow(&mut self, lane: usize) {
        self.lanes[lane].is_slow = true;
    }

    /// Idle lane to wake, if there is work for it.
    ///
    /// While a lane writes many changes, new changes are left to it unless they fill a batch: a row costs little, a
    /// statement and its commit cost much. So two changes are written in parallel by two lanes, and hundreds by one lane.
    /// Each is the faster way for its number of changes.
    pub(super) fn lane_to_wake(&mut self) -> Option<usize> {
        let waiting = self.unclaimed.len();
        let fast = self.lanes.iter().filter(|lane| !lane.is_slow);
        let writing: usize = fast.map(|lane| lane.writing.len()).sum();
        if waiting == 0 || (writing > SMALL_BATCH && waiting < self.max_batch.changes) {
            return None;
        }
        self.idle.pop()
    }

    /// Number of changes that are in no batch.
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
        // A change of the same group is kept for the lane of the group.
        assert_eq!(queue.push(1, 1, "b"), None);
        // Another group: the other lane.
        assert_eq!(queue.push(2, 1, "c"), Some(0));
        assert_eq!(queue.take(0), ["c"]);
        assert_eq!(queue.take(1), ["b"]);
        assert_eq!(queue.take(1), Vec::<&str>::new());
        // The group is free again: any lane may take it.
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
        assert_eq!(queue.lane_to_wake(), None);
        queue.note_slow(0);
        assert_eq!(queue.lane_to_wake(), Some(1));
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

    /// Call on a queue.
    #[derive(Clone, Debug)]
    enum Event {
        Push { group: u64, bytes: usize },
        Take { lane: usize },
        Remove { part: usize },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0_u64..6, 0_usize..12).prop_map(|(group, bytes)| Event::Push { group, bytes }),
            2 => (0_usize..3).prop_map(|lane| Event::Take { lane }),
            1 => (0_usize..100).prop_map(|part| Event::Remove { part }),
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
            let mut removed = Vec::new();
            let mut writing: [Vec<(u64, usize, usize)>; 3] = Default::default();
            // At the end each lane takes until the queue is empty.
            let end = (0..600).map(|n| Event::Take { lane: n % 3 });
            for event in events.into_iter().chain(end) {
                match event {
                    Event::Push { group, bytes } => {
                        let change = (group, bytes, pushed.len());
                        pushed.push(change);
                        queue.push(group, bytes, change);
                        prop_assert_eq!(queue.last_number(), pushed.len() as u64);
                    }
                    Event::Remove { part } => {
                        let number = pushed.len() * part / 100;
                        let change = pushed.get(number).copied();
                        let back = queue.remove(number as u64 + 1);
                        let waits = change.is_some_and(|change| {
                            !taken.contains(&change) && !removed.contains(&change)
                        });
                        prop_assert_eq!(back, change.filter(|_| waits));
                        removed.extend(back);
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
                prop_assert_eq!(queue.len(), pushed.len() - taken.len() - removed.len());
            }
            pushed.retain(|change| !removed.contains(change));
            // No claim is left for which a lane would never be woken.
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
