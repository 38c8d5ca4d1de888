//! Marks that wait to be written: groups of which a change was lost or is announced. No request waits for them. They
//! are written when the database can take them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::domain::{Change, Event, GroupId, MarkReason};

/// Limit of groups. OpenIM names only a few a second while it waits for failing answers.
const MAX_GROUPS: usize = 100_000;
/// Limit of marks in the queue at a time, which is shared with callbacks.
const MAX_BATCH: usize = 256;
/// Shortest and longest pause after marks that could not be written.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Marks that are not written. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<GroupId, MarkReason>>,
    /// Number of marks that were taken and are not known to be durable.
    under_way: AtomicUsize,
    added: Notify,
}

impl Marks {
    fn waiting(&self) -> MutexGuard<'_, HashMap<GroupId, MarkReason>> {
        // No code panics while it holds the lock.
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a group to be marked.
    pub(super) fn add(&self, group: GroupId, reason: MarkReason) {
        let is_full = {
            let mut waiting = self.waiting();
            let is_full = waiting.len() >= MAX_GROUPS && !waiting.contains_key(&group);
            if !is_full {
                waiting.insert(group, reason);
            }
            is_full
        };
        if is_full {
            tracing::error!("too many groups wait for a mark; one of them is lost");
        }
        self.0.added.notify_one();
    }

    /// Marks the group of a change that is not known to be written.
    pub(super) fn lost(&self, change: &Change) {
        let reason = match change.event {
            Event::Mark(reason) => reason,
            // The next reconcile of the group makes it again.
            Event::Repair(_) => return,
            _ => MarkReason::CallbackLost,
        };
        self.add(change.group_id.clone(), reason);
    }

    /// Number of marks that are not written.
    pub(super) fn count(&self) -> usize {
        self.waiting().len() + self.0.under_way.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<(GroupId, MarkReason)> {
        let mut waiting = self.waiting();
        let some: Vec<GroupId> = waiting.keys().take(MAX_BATCH).cloned().collect();
        self.0.under_way.store(some.len(), Ordering::Relaxed);
        some.iter()
            .filter_map(|group| waiting.remove_entry(group))
            .collect()
    }

    /// Writes marks until `closing`, and then the rest once. `submit` writes one change and returns true if that is done; a
    /// change that is not written comes back through [`Self::lost`].
    pub(super) async fn write<F: Future<Output = bool>>(
        &self,
        submit: impl Fn(Change) -> F,
        closing: CancellationToken,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            let marks = self.take();
            if marks.is_empty() {
                tokio::select! {
                    biased;
                    () = self.0.added.notified() => continue,
                    () = closing.cancelled() => return,
                }
            }
            let is_last = closing.is_cancelled();
            let write = marks.into_iter().map(|(group, reason)| {
                let event = Event::Mark(reason);
                submit(Change::new(group, OffsetDateTime::now_utc(), event))
            });
            let done = join_all(write).await;
            self.0.under_way.store(0, Ordering::Relaxed);
            if done.into_iter().all(|done| done) {
                pause = FIRST_PAUSE;
                continue;
            }
            if is_last {
                return;
            }
            let _ = timeout(pause, closing.cancelled()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
