//! Holds what was read of a group against what is stored, a page of rows at a time.

use super::super::view::View;
use crate::domain::{
    DISMISSED, Drift, GroupId, Member, OpenImGroup, OpenImMember, Repair, RepairCounts, RepairKind,
    UserId, Verdict, compare_group, compare_member,
};
use crate::store::{self, Begun, KnownGroup, Store};
use tokio::sync::OwnedSemaphorePermit;

/// Members in one repair: so many rows are locked at a time.
const MOST: usize = 1000;
/// What these may hold, in bytes: a statement has to be done in the time that a callback may take.
const MOST_BYTES: usize = 1 << 20;

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Differences {
    group: Option<Box<OpenImGroup>>,
    present: Vec<(UserId, OpenImMember)>,
    absent: Vec<UserId>,
    kinds: RepairCounts,
    /// Members who were held against each other.
    pub(super) compared: u64,
    /// Members of the mirror among them.
    pub(super) current: u64,
    /// Every value, where somebody wants to see it.
    drift: Option<Vec<(Option<UserId>, Drift)>>,
    /// For as many members as are held here.
    room: Option<OwnedSemaphorePermit>,
}

impl Differences {
    pub(super) fn new(with_drift: bool) -> Self {
        Self {
            drift: with_drift.then(Vec::new),
            ..Self::default()
        }
    }

    /// How many members OpenIM does not have.
    pub(super) fn removed(&self) -> u64 {
        self.absent.len() as u64
    }

    /// How many members the mirror does not have.
    pub(super) fn added(&self) -> u64 {
        self.kinds.of(RepairKind::MemberAdded)
    }

    /// Whether the group is to be dismissed.
    pub(super) fn dismisses(&self) -> bool {
        let group = self.group.as_ref();
        group.is_some_and(|held| held.status == DISMISSED)
    }

    pub(super) fn kinds(&self) -> RepairCounts {
        self.kinds
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

    /// The group itself.
    pub(super) fn compare_group(&mut self, known: Option<&KnownGroup>, held: OpenImGroup) {
        let stored = known.map(|known| &known.group);
        if let Some(verdict) = compare_group(stored, &held) {
            self.count(None, verdict);
            self.group = Some(Box::new(held));
        }
    }

    fn compare_member(
        &mut self,
        user: UserId,
        stored: Option<&Member>,
        held: Option<OpenImMember>,
    ) {
        self.current += u64::from(stored.is_some_and(|member| !member.is_gone()));
        self.compared += 1;
        let Some(verdict) = compare_member(stored, held.as_ref()) else {
            return;
        };
        self.count(Some(&user), verdict);
        match held {
            Some(held) => self.present.push((user, held)),
            None => self.absent.push(user),
        }
    }

    /// The members, and the group itself as far as that was told.
    pub(super) async fn compare(
        &mut self,
        store: &Store,
        group: &GroupId,
        known: Option<&KnownGroup>,
        view: View,
    ) -> Result<(), store::Error> {
        let View {
            group: held,
            mut members,
            absent,
            logged_gone: _,
            unshown,
            is_whole,
            version: _,
            trouble: _,
            room,
        } = view;
        if let Some(held) = held {
            self.compare_group(known, held);
        }
        let named: Vec<UserId> = members.keys().chain(&absent).cloned().collect();
        let parts: Vec<Option<Vec<&UserId>>> = match is_whole {
            true => vec![None],
            false => {
                let parts = named.chunks(MOST);
                parts.map(|some| Some(some.iter().collect())).collect()
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
                    let held = members.remove(&row.user_id);
                    // Of the whole group, whoever may be a member whom OpenIM does not show stays as the
                    // mirror has it. Of users who were asked for by id OpenIM shows all it has.
                    if held.is_some() || !is_whole || !unshown.may_be(&row.user_id) {
                        self.compare_member(row.user_id, Some(&row.member), held);
                    }
                }
                if is_last {
                    break;
                }
            }
        }
        for (user, held) in members {
            self.compare_member(user, None, Some(held));
        }
        self.room = room;
        Ok(())
    }

    /// What makes the mirror the same, in parts.
    pub(super) fn into_repairs(self, begun: &Begun) -> impl Iterator<Item = Repair> {
        let Self {
            mut group,
            present,
            absent,
            room,
            ..
        } = self;
        let (mut present, mut absent) = (present.into_iter().peekable(), absent.into_iter());
        std::iter::from_fn(move || {
            // Held until the last is taken.
            let _room = &room;
            let (mut some, mut bytes) = (Vec::new(), 0);
            while some.len() < MOST
                && let Some((user, held)) = present.next_if(|(_, held)| {
                    bytes += held.bytes();
                    bytes <= MOST_BYTES || some.is_empty()
                })
            {
                some.push((user, held));
            }
            let repair = Repair {
                began_at: begun.at,
                fence: begun.fence.clone(),
                group: group.take(),
                absent: absent.by_ref().take(MOST - some.len()).collect(),
                present: some,
            };
            let has_any = repair.group.is_some() || repair.user_ids().next().is_some();
            has_any.then_some(repair)
        })
    }
}
