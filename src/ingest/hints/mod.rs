//! Hints: notifications of OpenIM that say that something happened to a group.
//!
//! Hints are kept in memory only. Some are lost at a restart, while diverting, or if there are too many. A run makes up
//! for them.

mod marking;
mod table;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::domain::{GroupId, Hint, named};
use marking::Marking;
use table::LookTable;

pub use table::{DueLook, Kinds, LookEnd};

/// Most groups, and most recent callbacks, in memory.
const MAX_ENTRIES: usize = 100_000;

named! {
    /// Outcome of a hint.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    HintOutcome, label:
    /// A look at the group is due.
    Due = "due";
    /// A look at the group was due already, or none is necessary.
    Merged = "merged";
    /// The hint is lost; a run follows instead.
    Dropped = "dropped";
    /// The group is marked if necessary. No access to OpenIM's API.
    Marked = "marked";
    /// Callbacks say the same. No access to OpenIM's API.
    Ignored = "ignored";
}

/// Memory of hints. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Hints(Arc<SharedHints>);

#[derive(Debug)]
struct SharedHints {
    table: Mutex<LookTable>,
    marking: Mutex<Marking>,
    hasher: RandomState,
    /// The time of the next look has changed.
    changed: Notify,
    /// True if this instance looks at groups: it has access to OpenIM's API.
    has_looks: AtomicBool,
    needs_run: AtomicBool,
}

impl Default for SharedHints {
    fn default() -> Self {
        Self {
            table: Mutex::new(LookTable::new(MAX_ENTRIES)),
            marking: Mutex::new(Marking::new(MAX_ENTRIES)),
            hasher: RandomState::new(),
            changed: Notify::new(),
            has_looks: AtomicBool::new(false),
            needs_run: AtomicBool::new(false),
        }
    }
}

/// Action that a hint asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HintAction {
    /// Nothing.
    Done(HintOutcome),
    /// Mark the group. A key is of a mark that may have to be undone.
    Mark(Option<CallbackKey>),
    /// Mark the group if it is dismissed.
    MarkIfDismissed,
}

impl Hints {
    fn table(&self) -> MutexGuard<'_, LookTable> {
        // No code panics while it holds the lock.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table. Wakes [`Self::due`] only if the next look is due at another time: most callbacks do not
    /// change that.
    fn change<T>(&self, change: impl FnOnce(&mut LookTable) -> T) -> T {
        let mut table = self.table();
        let before = table.next();
        let changed = change(&mut table);
        if table.next() != before {
            self.0.changed.notify_one();
        }
        changed
    }

    fn marking(&self) -> MutexGuard<'_, Marking> {
        self.0
            .marking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, group: &GroupId, operation_id: Option<&str>) -> Option<CallbackKey> {
        operation_id.map(|operation| self.0.hasher.hash_one((group, operation)))
    }

    /// Starts looks. From now on [`Self::due`] has to be called.
    pub fn begin_looks(&self) {
        self.0.has_looks.store(true, Ordering::Relaxed);
    }

    fn has_looks(&self) -> bool {
        self.0.has_looks.load(Ordering::Relaxed)
    }

    /// True if hints were dropped, so that a run has to make up for them.
    pub fn needs_run(&self) -> bool {
        self.0.needs_run.load(Ordering::Relaxed)
    }

    /// As [`Self::needs_run`]; false from then on.
    pub fn take_needs_run(&self) -> bool {
        self.0.needs_run.swap(false, Ordering::Relaxed)
    }

    fn set_needs_run(&self) {
        self.0.needs_run.store(true, Ordering::Relaxed);
    }

    /// Takes a hint. While diverting, hints are dropped: spooled callbacks are written before any look.
    pub(super) fn receive(&self, hint: &Hint, is_diverting: bool) -> HintAction {
        let now = Instant::now();
        let key = self.key(&hint.group_id, hint.operation_id.as_deref());
        if !self.has_looks() {
            return self.marking().receive(hint.kind, key, now);
        }
        if is_diverting {
            self.set_needs_run();
            return HintAction::Done(HintOutcome::Dropped);
        }
        let taken = self.change(|table| table.hint(&hint.group_id, hint.kind, key, now));
        if taken == HintOutcome::Dropped {
            self.set_needs_run();
        }
        HintAction::Done(taken)
    }

    /// Records that the mark of an entry is written. Returns true if it has to be undone.
    pub(super) fn marked(&self, key: CallbackKey) -> bool {
        self.marking().marked(key)
    }

    /// Records that the callback of a join is written. Returns true if a mark has to be undone.
    pub(super) fn joined(&self, group: &GroupId, operation_id: Option<&str>) -> bool {
        let key = self.key(group, operation_id).filter(|_| !self.has_looks());
        key.is_some_and(|key| self.marking().joined(key, Instant::now()))
    }

    /// True if a callback that does not fit the rows needs no mark, because a look follows.
    pub(super) fn is_watched(&self, group: &GroupId) -> bool {
        self.has_looks() && self.table().is_watched(group, Instant::now())
    }

    /// Records that a callback is written, or may be. `was_watched`: it has not marked the group.
    pub(super) fn written(&self, group: &GroupId, operation_id: Option<&str>, was_watched: bool) {
        if !self.has_looks() {
            return;
        }
        let key = self.key(group, operation_id);
        let now = Instant::now();
        let taken = self.change(|table| table.written(group, key, was_watched, now));
        if taken == HintOutcome::Dropped {
            self.set_needs_run();
        }
    }

    /// Waits until looks are due, and returns up to `limit` of them. Each has to end with [`Self::looked`]; until then
    /// no other look at its group is due.
    pub async fn due(&self, limit: usize) -> Vec<DueLook> {
        loop {
            let next = {
                let mut table = self.table();
                let due = table.take(limit, Instant::now());
                if !due.is_empty() {
                    return due;
                }
                table.next()
            };
            let changed = self.0.changed.notified();
            match next {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// Records the end of a look.
    pub fn looked(&self, group: &GroupId, end: LookEnd) {
        self.change(|table| table.looked(group, end, Instant::now()));
    }
}

/// Hash of a callback's group and operation. Two equal hashes make one look come a second too early; with a million
/// callbacks a second that happens once in some hundred years.
pub(super) type CallbackKey = u64;

/// Keys of recent callbacks, each kept for a time.
#[derive(Debug)]
struct Recent {
    kept_for: Duration,
    max_entries: usize,
    /// Sorted by time.
    order: VecDeque<(Instant, CallbackKey)>,
    /// Number of times that each key is in `order`.
    counts: HashMap<CallbackKey, u32>,
}

impl Recent {
    fn new(kept_for: Duration, max_entries: usize) -> Self {
        Self {
            kept_for,
            max_entries,
            order: VecDeque::new(),
            counts: HashMap::new(),
        }
    }

    fn add(&mut self, key: CallbackKey, now: Instant) {
        self.expire(now, self.max_entries.saturating_sub(1));
        self.order.push_back((now, key));
        *self.counts.entry(key).or_default() += 1;
    }

    fn has(&mut self, key: CallbackKey, now: Instant) -> bool {
        self.expire(now, self.max_entries);
        self.counts.contains_key(&key)
    }

    /// Removes keys that are too old, and the oldest of more than `limit`.
    fn expire(&mut self, now: Instant, limit: usize) {
        while let Some((at, key)) = self.order.front().copied() {
            if self.order.len() <= limit && now.saturating_duration_since(at) <= self.kept_for {
                return;
            }
            self.order.pop_front();
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_for_its_time() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut recent = Recent::new(5 * second, 3);
        recent.add(1, start);
        recent.add(1, start + second);
        assert!(recent.has(1, start + 6 * second));
        assert!(!recent.has(1, start + 7 * second));
        assert!(!recent.has(2, start));
    }

    #[test]
    fn the_oldest_of_too_many_keys_are_removed() {
        let start = Instant::now();
        let mut recent = Recent::new(Duration::from_secs(5), 3);
        for key in [1, 2, 2, 3] {
            recent.add(key, start);
        }
        assert!(!recent.has(1, start));
        assert!(recent.has(2, start) && recent.has(3, start));
        recent.add(4, start);
        assert!(recent.has(2, start));
        recent.add(5, start);
        assert!(!recent.has(2, start));
        assert_eq!(recent.counts.len(), 3);
    }
}
