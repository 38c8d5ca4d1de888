use proptest::prelude::*;

use super::{Load, Queue};

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

/// A queue of two lanes. The first writes `changes` changes, the second is idle.
fn queue_of_a_busy_lane(changes: usize) -> Queue<u64> {
    let max_batch = Load {
        changes: 20,
        bytes: 1000,
    };
    let mut queue = Queue::new(2, max_batch);
    assert_eq!((queue.take(0), queue.take(1)), (vec![], vec![]));
    for group in 0..changes as u64 {
        queue.push(group, 1, group);
    }
    assert_eq!((queue.take(0).len(), queue.take(1).len()), (changes, 0));
    queue
}

#[test]
fn few_changes_wait_for_a_lane_that_writes_many_unless_it_is_slow() {
    let mut queue = queue_of_a_busy_lane(10);
    assert_eq!(queue.push(20, 1, 20), None);
    assert_eq!(queue.lane_to_wake(), None);
    queue.lanes[0].is_slow = true;
    assert_eq!(queue.lane_to_wake(), Some(1));
    assert_eq!(queue.take(1), [20]);
}

#[test]
fn as_many_as_fill_a_batch_are_left_to_nobody() {
    let mut queue = queue_of_a_busy_lane(20);
    for group in 20..39 {
        assert_eq!(queue.push(group, 1, group), None, "{group}");
    }
    assert_eq!(queue.push(39, 1, 39), Some(1));
}

/// Call on a queue.
#[derive(Clone, Debug)]
enum Call {
    Push { group: u64, bytes: usize },
    Take { lane: usize },
    Remove { part: usize },
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => (0_u64..6, 0_usize..12).prop_map(|(group, bytes)| Call::Push { group, bytes }),
        2 => (0_usize..3).prop_map(|lane| Call::Take { lane }),
        1 => (0_usize..100).prop_map(|part| Call::Remove { part }),
    ]
}

proptest! {
    #[test]
    fn each_change_is_taken_once_in_order_and_its_group_by_one_lane_at_a_time(
        events in proptest::collection::vec(call(), 0..200),
    ) {
        let mut queue = Queue::new(3, SMALL);
        let mut pushed = Vec::new();
        let mut taken = Vec::new();
        let mut removed = Vec::new();
        let mut writing: [Vec<(u64, usize, usize)>; 3] = Default::default();
        // At the end each lane takes until the queue is empty.
        let end = (0..600).map(|n| Call::Take { lane: n % 3 });
        for event in events.into_iter().chain(end) {
            match event {
                Call::Push { group, bytes } => {
                    let change = (group, bytes, pushed.len());
                    pushed.push(change);
                    queue.push(group, bytes, change);
                    prop_assert_eq!(queue.count, pushed.len() as u64);
                }
                Call::Remove { part } => {
                    let number = pushed.len() * part / 100;
                    let change = pushed.get(number).copied();
                    let back = queue.remove(number as u64 + 1);
                    let waits = change.is_some_and(|change| {
                        !taken.contains(&change) && !removed.contains(&change)
                    });
                    prop_assert_eq!(back, change.filter(|_| waits));
                    removed.extend(back);
                }
                Call::Take { lane } => {
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
