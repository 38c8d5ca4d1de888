//! Looks what differs, and changes nothing.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::check::{Outcome, Pass};
use super::removals::Removals;
use super::{Error, Inner, Mode, Reconciler, Tally};
use crate::domain::{Drift, GroupId, UserId};

/// A value of the mirror that is not OpenIM's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftOf {
    /// The group.
    pub group_id: GroupId,
    /// The member; `None`: the group itself.
    pub user_id: Option<UserId>,
    /// Which value, and both.
    pub drift: Drift,
}

impl DriftOf {
    /// A group that OpenIM does not know.
    pub(super) fn of_unknown(group: &GroupId) -> Self {
        Self {
            group_id: group.clone(),
            user_id: None,
            drift: Drift {
                field: "group",
                mirror: Some("present".to_owned()),
                openim: None,
            },
        }
    }
}

/// What was seen once. A callback that is under way makes a difference too, so it counts when it is
/// seen again.
pub(super) struct Pending<'a> {
    once: Vec<DriftOf>,
    tell: &'a mut (dyn FnMut(DriftOf) + Send),
}

impl Pending<'_> {
    pub(super) fn add(&mut self, drift: Vec<DriftOf>) {
        self.once.extend(drift);
    }

    /// Looks again at what was seen, after the time that a mark would wait, and tells what is still
    /// the same.
    pub(super) async fn confirm(&mut self, inner: &Inner, pass: &Pass<'_>) -> Result<(), Error> {
        if self.once.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(inner.settings.delay).await;
        let once = std::mem::take(&mut self.once);
        let mut groups: Vec<GroupId> = once.iter().map(|drift| drift.group_id.clone()).collect();
        groups.sort_unstable();
        groups.dedup();
        // What is counted is counted already.
        let tally = Tally::default();
        let again = Pass::new(pass.removals, &tally, true);
        let looks = stream::iter(groups).map(|group| {
            let again = &again;
            async move { inner.check(&group, again).await }
        });
        let mut looks = looks.buffer_unordered(inner.settings.concurrency.max(1));
        let mut still = Vec::new();
        while let Some(outcome) = looks.try_next().await? {
            if let Outcome::Equal(drift) = outcome {
                still.extend(drift);
            }
        }
        let key = |drift: &DriftOf| format!("{drift:?}");
        let still: HashSet<String> = still.iter().map(key).collect();
        for drift in once {
            if still.contains(&key(&drift)) {
                (self.tell)(drift);
            }
        }
        Ok(())
    }
}

impl Reconciler {
    /// Tells every value that differs, and is still the same after a while, of these groups or, where
    /// there are none, of all.
    ///
    /// # Errors
    /// See [`Error`]; what was told until then holds.
    pub async fn drift(
        &self,
        groups: &[GroupId],
        mode: Mode,
        tally: &Tally,
        tell: &mut (dyn FnMut(DriftOf) + Send),
    ) -> Result<(), Error> {
        let removals = Removals::new(mode.accept_removals, false);
        let pass = Pass::new(&removals, tally, true);
        let mut pending = Pending { once: vec![], tell };
        if groups.is_empty() {
            let pending = Some(&mut pending);
            return self.0.through_all(mode.is_full, &pass, pending).await;
        }
        tally.expect(groups.len() as u64);
        for group in groups {
            tally.saw(1);
            if let Outcome::Equal(drift) = self.0.check(group, &pass).await? {
                pending.add(drift);
            }
        }
        pending.confirm(&self.0, &pass).await
    }
}
