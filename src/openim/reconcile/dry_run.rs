//! Looks what differs, and changes nothing.

use std::collections::HashSet;

use super::pass::Pass;
use super::walk::Between;
use super::{Error, Inner, Reconciler, Tally};
use crate::domain::{Drift, GroupId, UserId};

/// A value of the mirror that is not OpenIM's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

impl Reconciler {
    /// Tells every value that differs, and is still the same after a while, of these groups or, where
    /// there are none, of all. A callback that is under way makes a difference too, so it counts when
    /// it is seen again. Groups that cannot be read are in `tally`.
    ///
    /// # Errors
    /// See [`Error`]; what was told until then holds.
    pub async fn drift(
        &self,
        groups: &[GroupId],
        tally: &Tally,
        tell: &mut (dyn FnMut(DriftOf) + Send),
    ) -> Result<(), Error> {
        let pass = Pass::dry(tally, true);
        if groups.is_empty() {
            return self.0.through_all(&pass, Between::Tell(tell)).await;
        }
        tally.expect(groups.len() as u64);
        tally.saw(groups.len() as u64);
        self.0.check_all(groups.to_vec(), &pass).await?;
        self.0.confirm(&pass, tell).await
    }
}

impl Inner {
    /// Looks again at what was seen once, after the time that a mark would wait, and tells what is
    /// still the same.
    pub(super) async fn confirm(
        &self,
        pass: &Pass<'_>,
        tell: &mut (dyn FnMut(DriftOf) + Send),
    ) -> Result<(), Error> {
        let once = pass.take_drift();
        if once.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(self.settings.delay).await;
        let mut groups: Vec<GroupId> = once.iter().map(|drift| drift.group_id.clone()).collect();
        groups.sort_unstable();
        groups.dedup();
        // What is counted is counted already.
        let tally = Tally::default();
        let again = Pass::dry(&tally, true);
        self.check_all(groups, &again).await?;
        // Of a group that is read in part both looks say so.
        let before = pass.tally.left_groups();
        let is_new = |group: &GroupId| {
            before
                .iter()
                .all(|(other, _)| other.as_ref() != Some(group))
        };
        for (group, why) in tally.left_groups() {
            if let Some(group) = group.filter(is_new) {
                pass.tally.left(&group, &why);
            }
        }
        let still: HashSet<DriftOf> = again.take_drift().into_iter().collect();
        for drift in once {
            if still.contains(&drift) {
                tell(drift);
            }
        }
        Ok(())
    }
}
