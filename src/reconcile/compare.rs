//! Compares a group in OpenIM with its rows, a page of rows at a time. Does not ask OpenIM and writes nothing.

use tokio::sync::OwnedSemaphorePermit;

use crate::domain::{
    DISMISSED, Drift, GroupId, Member, OpenImGroup, OpenImMember, Repair, RepairCounts, RepairKind,
    UserId, Verdict, Version, compare_group, compare_member,
};
use crate::openim::{GroupSnapshot, GroupState, Incomplete};
use crate::store::{self, Coverage, KnownGroup, ReconcileStart, Store};

/// Most members in one repair, which locks their rows.
const MAX_MEMBERS: usize = 1000;
/// Most bytes in one repair: its statement has the time limit of a callback.
const MAX_BYTES: usize = 1 << 20;

/// GroupDifferences between a group in OpenIM and its rows.
#[derive(Debug, Default)]
pub(super) struct GroupDifferences {
    group: Option<Box<OpenImGroup>>,
    present: Vec<(UserId, OpenImMember)>,
    absent: Vec<UserId>,
    kinds: RepairCounts,
    /// Members that were compared.
    pub(super) compared: u64,
    /// Members of the mirror among them.
    pub(super) current: u64,
    /// Leaves among the removals that OpenIM's log of changes names.
    pub(super) logged_leaves: u64,
    /// Version of the group in OpenIM.
    pub(super) version: Option<Version>,
    /// The reason, if some of the group is not compared.
    pub(super) incomplete: Option<Incomplete>,
    is_of_changes: bool,
    /// All values that differ, for a dry run.
    drift: Option<Vec<(Option<UserId>, Drift)>>,
    /// Permit for the members in memory.
    permit: Option<OwnedSemaphorePermit>,
}

/// Compares a group with its rows. A group that OpenIM does not know is dismissed if `accepts_removals`. `None`: an
/// operator has to decide about it.
pub(super) async fn compare(
    store: &Store,
    group: &GroupId,
    known: Option<&KnownGroup>,
    state: GroupState,
    accepts_removals: bool,
    with_drift: bool,
) -> Result<Option<GroupDifferences>, store::Error> {
    let mut differences = GroupDifferences {
        drift: with_drift.then(Vec::new),
        ..GroupDifferences::default()
    };
    match (state, known) {
        (GroupState::Present(snapshot), known) => {
            differences
                .compare_snapshot(store, group, known, *snapshot)
                .await?;
        }
        // A profile that cannot be read stays as the mirror has it.
        (GroupState::Dismissed(openim), known) => {
            if let Some(openim) = openim.or_else(|| known.map(dismissed)) {
                differences.compare_group(known, openim);
            }
        }
        (GroupState::Unknown, Some(known)) if !known.group.is_dismissed() => {
            if !accepts_removals {
                return Ok(None);
            }
            differences.compare_group(Some(known), dismissed(known));
        }
        (GroupState::Unknown, _) => {}
    }
    Ok(Some(differences))
}

/// The group as the mirror has it, but dismissed.
fn dismissed(known: &KnownGroup) -> OpenImGroup {
    let group = known.group.clone();
    OpenImGroup {
        profile: group.profile,
        owner: group.owner,
        status: DISMISSED,
        group_type: group.group_type.unwrap_or_default(),
        created_in_openim_at: group.created_in_openim_at,
    }
}

impl GroupDifferences {
    /// Number of members that OpenIM does not have.
    pub(super) fn removed(&self) -> u64 {
        self.absent.len() as u64
    }

    /// Number of members that the mirror does not have.
    pub(super) fn added(&self) -> u64 {
        self.kinds.of(RepairKind::MemberAdded)
    }

    /// True if the group differs by being dismissed.
    pub(super) fn dismisses(&self) -> bool {
        let group = self.group.as_ref();
        group.is_some_and(|group| group.status == DISMISSED)
    }

    pub(super) fn kinds(&self) -> RepairCounts {
        self.kinds
    }

    pub(super) fn coverage(&self) -> Coverage {
        match (self.incomplete, self.is_of_changes) {
            (Some(_), _) => Coverage::Incomplete,
            (None, true) => Coverage::Changes,
            (None, false) => Coverage::Whole,
        }
    }

    pub(super) fn take_drift(&mut self) -> Vec<(Option<UserId>, Drift)> {
        self.drift.take().unwrap_or_default()
    }

    fn count(&mut self, user: Option<&UserId>, verdict: Verdict) {
        self.kinds.add(verdict.kind);
        if let Some(drift) = &mut self.drift {
            let all = verdict.drift.into_iter();
            drift.extend(all.map(|drift| (user.cloned(), drift)));
        }
    }

    fn compare_group(&mut self, known: Option<&KnownGroup>, openim: OpenImGroup) {
        let stored = known.map(|known| &known.group);
        if let Some(verdict) = compare_group(stored, &openim) {
            self.count(None, verdict);
            self.group = Some(Box::new(openim));
        }
    }

    fn compare_member(
        &mut self,
        user: UserId,
        stored: Option<&Member>,
        openim: Option<OpenImMember>,
    ) {
        self.current += u64::from(stored.is_some_and(|member| !member.is_gone()));
        self.compared += 1;
        let Some(verdict) = compare_member(stored, openim.as_ref()) else {
            return;
        };
        self.count(Some(&user), verdict);
        match openim {
            Some(openim) => self.present.push((user, openim)),
            None => self.absent.push(user),
        }
    }

    async fn compare_snapshot(
        &mut self,
        store: &Store,
        group: &GroupId,
        known: Option<&KnownGroup>,
        snapshot: GroupSnapshot,
    ) -> Result<(), store::Error> {
        let GroupSnapshot {
            group: openim,
            mut members,
            absent,
            logged_leaves,
            unlisted,
            is_whole,
            version,
            incomplete,
            permit,
        } = snapshot;
        if let Some(openim) = openim {
            self.compare_group(known, openim);
        }
        let named: Vec<UserId> = members.keys().chain(&absent).cloned().collect();
        let parts: Vec<Option<Vec<&UserId>>> = match is_whole {
            true => vec![None],
            false => {
                let parts = named.chunks(MAX_MEMBERS);
                parts.map(|part| Some(part.iter().collect())).collect()
            }
        };
        for users in parts {
            let mut after = String::new();
            loop {
                let users = users.as_deref();
                let (page, is_last) = store.members_to_compare(group, users, &after).await?;
                if let Some(last) = page.last() {
                    last.user_id.as_str().clone_into(&mut after);
                }
                for row in page {
                    let openim = members.remove(&row.user_id);
                    // In a whole snapshot a member that OpenIM may have and does not list stays. For users that were
                    // asked for by id OpenIM sends all that it has.
                    if openim.is_some() || !is_whole || !unlisted.may_be(&row.user_id) {
                        self.compare_member(row.user_id, Some(&row.member), openim);
                    }
                }
                if is_last {
                    break;
                }
            }
        }
        for (user, openim) in members {
            self.compare_member(user, None, Some(openim));
        }
        self.logged_leaves = logged_leaves;
        (self.version, self.incomplete) = (version, incomplete);
        self.is_of_changes = !is_whole;
        self.permit = permit;
        Ok(())
    }

    /// Makes the repairs, each of a bounded size.
    pub(super) fn into_repairs(self, begun: &ReconcileStart) -> impl Iterator<Item = Repair> {
        let Self {
            mut group,
            present,
            absent,
            permit,
            ..
        } = self;
        let (mut present, mut absent) = (present.into_iter().peekable(), absent.into_iter());
        std::iter::from_fn(move || {
            // The permit is for the members that are left.
            let _permit = &permit;
            let (mut some, mut bytes) = (Vec::new(), 0);
            while some.len() < MAX_MEMBERS
                && let Some((user, member)) = present.next_if(|(_, member)| {
                    bytes += member.bytes();
                    bytes <= MAX_BYTES || some.is_empty()
                })
            {
                some.push((user, member));
            }
            let repair = Repair {
                began_at: begun.at,
                fence: begun.fence.clone(),
                group: group.take(),
                absent: absent.by_ref().take(MAX_MEMBERS - some.len()).collect(),
                present: some,
            };
            let has_any = repair.group.is_some() || repair.user_ids().next().is_some();
            has_any.then_some(repair)
        })
    }
}
