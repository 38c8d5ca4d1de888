//! Hints: OpenIM's notifications, as far as they say that something has happened to a group.
//!
//! They are kept in memory only. What is lost of them, at a restart, while the spool is open or where there
//! are too many, is made up for by a comparison of all groups.

mod marking;
mod recent;
mod table;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::domain::{GroupId, Hint};
use marking::{Mark, Marking};
use recent::Key;
use table::{Table, Taken};

pub use table::{Due, Kinds, LookEnd};

/// Most groups that are looked after, and most changes that are remembered.
const MOST: usize = 100_000;

/// What became of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hinted {
    /// The group is to be looked at.
    Due,
    /// It was to be looked at already.
    Merged,
    /// It is not kept, and all groups are compared instead.
    Dropped,
    /// The group is marked, as far as it has to be: OpenIM's API cannot be asked.
    Marked,
    /// It says nothing that callbacks do not tell; OpenIM's API cannot be asked.
    Ignored,
}

impl Hinted {
    /// Every outcome.
    pub const ALL: [Hinted; 5] = [
        Hinted::Due,
        Hinted::Merged,
        Hinted::Dropped,
        Hinted::Marked,
        Hinted::Ignored,
    ];

    /// As it is counted.
    pub fn label(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Merged => "merged",
            Self::Dropped => "dropped",
            Self::Marked => "marked",
            Self::Ignored => "ignored",
        }
    }
}

/// What is known from hints. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Hints(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    marking: Mutex<Marking>,
    hasher: RandomState,
    /// The next look may be due earlier than it was.
    changed: Notify,
    /// Whether somebody looks.
    has_looks: AtomicBool,
    wants_cycle: AtomicBool,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table::new(MOST)),
            marking: Mutex::new(Marking::new(MOST)),
            hasher: RandomState::new(),
            changed: Notify::new(),
            has_looks: AtomicBool::new(false),
            wants_cycle: AtomicBool::new(false),
        }
    }
}

/// What a hint asks of whoever has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing any more.
    Done(Hinted),
    /// To mark the group; with the key, if there is one, of a mark that may have to be taken back.
    Mark(Option<Key>),
    /// To mark it where it is dismissed.
    MarkIfDismissed,
}

impl Hints {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for the next look where it is due at another time now. Most callbacks wake
    /// nobody.
    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
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

    fn key(&self, group: &GroupId, operation_id: Option<&str>) -> Option<Key> {
        operation_id.map(|operation| self.0.hasher.hash_one((group, operation)))
    }

    /// From now on somebody looks at what is due: OpenIM's API can be asked.
    pub fn begin_looks(&self) {
        self.0.has_looks.store(true, Ordering::Relaxed);
    }

    fn has_looks(&self) -> bool {
        self.0.has_looks.load(Ordering::Relaxed)
    }

    /// Whether all groups are to be compared, for hints were dropped.
    pub fn wants_cycle(&self) -> bool {
        self.0.wants_cycle.load(Ordering::Relaxed)
    }

    /// The same, and from now on it is so no more.
    pub fn take_wants_cycle(&self) -> bool {
        self.0.wants_cycle.swap(false, Ordering::Relaxed)
    }

    fn want_cycle(&self) {
        self.0.wants_cycle.store(true, Ordering::Relaxed);
    }

    /// `is_spooling`: callbacks wait for the database, and are written before anything is looked at.
    pub(super) fn hear(&self, hint: &Hint, is_spooling: bool) -> Heard {
        let now = Instant::now();
        let key = self.key(&hint.group_id, hint.operation_id.as_deref());
        if !self.has_looks() {
            return match self.marking().hear(hint.kind, key, now) {
                Mark::Always => Heard::Mark(key),
                Mark::IfDismissed => Heard::MarkIfDismissed,
                Mark::Never => Heard::Done(Hinted::Ignored),
            };
        }
        if is_spooling {
            self.want_cycle();
            return Heard::Done(Hinted::Dropped);
        }
        let taken = self.change(|table| table.hint(&hint.group_id, hint.kind, key, now));
        Heard::Done(match taken {
            Taken::Due => Hinted::Due,
            Taken::Merged => Hinted::Merged,
            Taken::Full => {
                self.want_cycle();
                Hinted::Dropped
            }
        })
    }

    /// The mark of somebody who entered is written. Whether it is to be taken back.
    pub(super) fn marked(&self, key: Key) -> bool {
        self.marking().marked(key)
    }

    /// The callback of a join is written. Whether a mark is to be taken back.
    pub(super) fn joined(&self, group: &GroupId, operation_id: Option<&str>) -> bool {
        let key = self.key(group, operation_id).filter(|_| !self.has_looks());
        key.is_some_and(|key| self.marking().joined(key, Instant::now()))
    }

    /// Whether what does not fit in a callback of the group is seen to without a mark.
    pub(super) fn is_looked_after(&self, group: &GroupId) -> bool {
        self.has_looks() && self.table().is_looked_after(group, Instant::now())
    }

    /// A callback is written, or may be. `was_looked_after`: what did not fit has not marked the group.
    pub(super) fn written(
        &self,
        group: &GroupId,
        operation_id: Option<&str>,
        was_looked_after: bool,
    ) {
        if !self.has_looks() {
            return;
        }
        let key = self.key(group, operation_id);
        let now = Instant::now();
        let taken = self.change(|table| table.written(group, key, was_looked_after, now));
        if taken == Taken::Full {
            self.want_cycle();
        }
    }

    /// Waits until groups are due, and gives up to `most` of them. Each is to be given back by
    /// [`Hints::looked`]; until then it is not given again.
    pub async fn due(&self, most: usize) -> Vec<Due> {
        loop {
            let next = {
                let mut table = self.table();
                let due = table.take(most, Instant::now());
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

    /// A look at a group has ended.
    pub fn looked(&self, group: &GroupId, end: LookEnd) {
        self.change(|table| table.looked(group, end, Instant::now()));
    }
}
