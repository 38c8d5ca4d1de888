//! Groups that are to be checked because something about them did not reach the mirror, or is about
//! to happen unheard. Nobody waits for these marks; they are written when the database can.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::lanes::Lanes;
use crate::domain::{Change, Event, GroupId, MarkReason};

/// Most groups. OpenIM can name no more than a few a second while it waits for our errors.
const MOST: usize = 100_000;
/// Marks on their way at a time; the rest of the queue is for callbacks.
const AT_ONCE: usize = 256;
/// Pause after marks that could not be written, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Marks that are not written yet. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<GroupId, MarkReason>>,
    /// Taken from there, and not known to be durable.
    under_way: AtomicUsize,
    added: Notify,
}

impl Marks {
    fn waiting(&self) -> MutexGuard<'_, HashMap<GroupId, MarkReason>> {
        // Nothing panics while it is held.
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a group, soon.
    pub(super) fn add(&self, group: GroupId, reason: MarkReason) {
        let is_full = {
            let mut waiting = self.waiting();
            let is_full = waiting.len() >= MOST && !waiting.contains_key(&group);
            if !is_full {
                waiting.insert(group, reason);
            }
            is_full
        };
        if is_full {
            tracing::error!("too many groups to be checked; one is forgotten");
        }
        self.0.added.notify_one();
    }

    /// Marks the group of a change that is not known to be written.
    pub(super) fn lost(&self, change: &Change) {
        let reason = match change.event {
            Event::Mark(reason) => reason,
            // Nobody is done with it: OpenIM is asked again.
            Event::Repair(_) => return,
            _ => MarkReason::CallbackLost,
        };
        self.add(change.group_id.clone(), reason);
    }

    /// How many are not written yet.
    pub(super) fn count(&self) -> usize {
        self.waiting().len() + self.0.under_way.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<(GroupId, MarkReason)> {
        let mut waiting = self.waiting();
        let some: Vec<GroupId> = waiting.keys().take(AT_ONCE).cloned().collect();
        self.0.under_way.store(some.len(), Ordering::Relaxed);
        some.iter()
            .filter_map(|group| waiting.remove_entry(group))
            .collect()
    }

    /// Writes marks through `lanes` until `closing`, and then those that are left, once.
    pub(super) async fn write(&self, lanes: Lanes, patience: Duration, closing: CancellationToken) {
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
                self.write_one(&lanes, group, reason, Instant::now() + patience)
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

    /// Whether it is written. What is not comes back by itself: it is a change as any other.
    async fn write_one(
        &self,
        lanes: &Lanes,
        group: GroupId,
        reason: MarkReason,
        deadline: Instant,
    ) -> bool {
        let change = Change::new(group, OffsetDateTime::now_utc(), Event::Mark(reason));
        let queued = lanes.push(change);
        lanes.answer(queued, deadline).await.is_ok()
    }
}
