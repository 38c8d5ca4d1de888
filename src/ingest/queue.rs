//! What waits to be written, and which lane writes what.
//!
//! Any lane takes any group's changes, but a group is in one lane at a time: a lane claims the
//! groups of what it takes, and what comes for these meanwhile is kept for it. So changes of one
//! group take effect in their order of arrival, while two changes that come at the same moment
//! find two lanes, whatever their groups are. (Lanes of which each has its own groups, by a hash,
//! would let one of the two wait in half of all cases.)

use std::collections::{HashMap, VecDeque};

/// Changes in the order of their arrival. `C` is a change; a group is known by a hash, so two
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
}

/// An amount of work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) changes: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Entry<C> {
    group: u64,
    bytes: usize,
    change: C,
}

#[derive(Debug)]
struct Lane<C> {
    /// Of groups that it has, in order of arrival.
    kept: VecDeque<Entry<C>>,
    /// Groups of what it writes now.
    writing: Vec<u64>,
}

impl<C> Queue<C> {
    pub(super) fn new(lanes: usize, most: Load) -> Self {
        let lane = |_| Lane {
            kept: VecDeque::new(),
            writing: Vec::new(),
        };
        Self {
            unclaimed: VecDeque::new(),
            lanes: (0..lanes).map(lane).collect(),
            claims: HashMap::new(),
            idle: Vec::new(),
            most,
        }
    }

    /// Adds a change of `bytes` bytes. Returns the lane to wake, if there is one without work.
    pub(super) fn push(&mut self, group: u64, bytes: usize, change: C) -> Option<usize> {
        let entry = Entry {
            group,
            bytes,
            change,
        };
        if let Some(lane) = self.claims.get(&group) {
            self.lanes[*lane].kept.push_back(entry);
            return None;
        }
        self.unclaimed.push_back(entry);
        self.idle.pop()
    }

    /// What `lane` writes next, in order of arrival within each group; what it wrote before is
    /// done. Nothing: it is without work, until [`Queue::push`] names it.
    pub(super) fn take(&mut self, lane: usize) -> Vec<C> {
        let Lane { kept, writing } = &mut self.lanes[lane];
        for group in writing.drain(..) {
            self.claims.remove(&group);
        }
        let mut batch = Vec::with_capacity(kept.len() + self.unclaimed.len());
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

    /// A lane without work to wake, if there is work for it.
    pub(super) fn wanted(&mut self) -> Option<usize> {
        if self.unclaimed.is_empty() {
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
