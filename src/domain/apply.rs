//! Applies a change to the stored rows of its group.
//!
//! Each callback says something about the state before it: a user who quits was a member, a user who joins was none. If
//! that contradicts the mirror, a callback was lost or reordered. Then the safe part of the change is applied and the
//! group is marked.

use std::collections::{BTreeMap, BTreeSet};

use time::{Duration, OffsetDateTime};

use super::{
    Change, Creation, DISMISSED, Event, Group, GroupProfile, MarkReason, Member, MemberPatch,
    OWNER, Repair, RepairCounts, UserId, Users, compare_group, compare_member,
};

/// Time after a leave in which a callback that names the member counts as late. A later one means that the member has
/// joined again without a callback. OpenIM guarantees no limit; 15 s is a guess.
pub const LATE_CALLBACK_TIMEOUT: Duration = Duration::seconds(15);

/// Rows of a group that its changes need. Changes are applied to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRows {
    /// `None`: the group is unknown.
    pub group: Option<Group>,
    /// Known members that the changes name.
    pub members: BTreeMap<UserId, Member>,
    /// Members that a callback has named, with or without a new value.
    pub named: BTreeSet<UserId>,
    /// True if a callback has named the group itself.
    pub is_named: bool,
    /// True if the group had no row before.
    pub is_new: bool,
    /// Reason of a new mark: the last one.
    pub mark: Option<MarkReason>,
    /// Time of a dismissal by one of the changes. All members have left then, including those who are not in `members`.
    pub emptied_at: Option<OffsetDateTime>,
    /// Input and result of repairs.
    pub repair: RepairRows,
}

/// The part of [`GroupRows`] that only repairs use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairRows {
    /// Begin of the last comparison with OpenIM.
    pub compared_at: Option<OffsetDateTime>,
    /// Transaction of the last callback about the group itself.
    pub group_xid: Option<i64>,
    /// Transactions of the last callback about each member.
    pub member_xids: BTreeMap<UserId, i64>,
    /// Members that a repair has written.
    pub repaired_members: BTreeSet<UserId>,
    /// True if a repair has written the group itself.
    pub is_group_repaired: bool,
}

/// Result of a repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Rows that were made equal to OpenIM. The others were equal, or a callback has named them since.
    pub counts: RepairCounts,
    /// True if a newer comparison has begun: no row was written.
    pub is_outdated: bool,
}

/// Applies a change. `rows` has the stored rows of all users that the change names. The result is empty unless the
/// change is a repair.
pub fn apply(rows: &mut GroupRows, change: &Change) -> Repaired {
    if let Event::Repair(repair) = &change.event {
        return rows.repair(repair);
    }
    let before = rows.mark;
    apply_event(rows, change);
    if change.is_reconciled_soon && !change.event.is_mark() {
        rows.mark = before;
    }
    Repaired::default()
}

fn apply_event(rows: &mut GroupRows, change: &Change) {
    let at = change.received_at;
    if let Event::Create(creation) = &change.event {
        rows.create(creation, at);
        return rows.keep_dismissed_group_empty(at);
    }
    if let Event::MarkIfDismissed(reason) = &change.event {
        if rows.is_dismissed() {
            rows.mark(*reason);
        }
        return;
    }
    let is_unknown = rows.group.is_none();
    if is_unknown {
        rows.group = Some(Group::default());
        rows.is_new = true;
    }
    match &change.event {
        // Handled above.
        Event::Create(_) | Event::Repair(_) | Event::MarkIfDismissed(_) => {}
        Event::Join(user) => rows.join(user, at),
        Event::JoinAll(users) => rows.for_each(users, |rows, user| rows.join(user, at)),
        Event::Quit(user) => rows.leave(user, at),
        Event::Kick(users) => rows.for_each(users, |rows, user| rows.leave(user, at)),
        Event::Dismiss => rows.dismiss(at),
        Event::Transfer {
            old_owner,
            new_owner,
        } => rows.transfer(old_owner, new_owner, at),
        Event::SetProfile(profile) => rows.set_profile(profile),
        Event::SetMember(patch) => rows.set_member(patch, at),
        Event::Mark(reason) => return rows.mark(*reason),
    }
    rows.keep_dismissed_group_empty(at);
    // This reason explains all other contradictions.
    if is_unknown {
        rows.mark(MarkReason::GroupUnknown);
    }
}

impl GroupRows {
    /// Returns the group, which a callback has named.
    fn group(&mut self) -> &mut Group {
        self.is_named = true;
        self.group.get_or_insert_default()
    }

    fn owner(&self) -> Option<&UserId> {
        self.group.as_ref()?.owner.as_ref()
    }

    /// Returns a member, which a callback has named.
    fn member(&mut self, user: &UserId) -> &mut Member {
        self.named.insert(user.clone());
        self.members.entry(user.clone()).or_default()
    }

    fn mark(&mut self, reason: MarkReason) {
        // A mark by a notification can be taken back. It must not replace another reason.
        if reason != MarkReason::Notified || self.mark.is_none() {
            self.mark = Some(reason);
        }
    }

    /// Marks a dismissed group: OpenIM refuses joins and changes of one.
    fn expect_not_dismissed(&mut self) {
        if self.is_dismissed() {
            self.mark(MarkReason::GroupDismissed);
        }
    }

    fn is_dismissed(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_dismissed)
    }

    /// Ends memberships of a dismissed group. A late callback sets a member's values and makes no one a member.
    fn keep_dismissed_group_empty(&mut self, at: OffsetDateTime) {
        let Some(group) = self.group.as_mut().filter(|group| group.is_dismissed()) else {
            return;
        };
        group.owner = None;
        let left_at = group.dismissed_at.unwrap_or(at);
        for user in &self.named {
            if let Some(member) = self.members.get_mut(user) {
                member.left_at.get_or_insert(left_at);
            }
        }
    }

    /// Makes a user a member who must be one, because OpenIM refuses the change otherwise. One who has left a moment
    /// ago stays a tombstone.
    fn expect_member(&mut self, user: &UserId, at: OffsetDateTime) {
        let Some(known) = self.members.get(user) else {
            self.member(user);
            return self.mark(MarkReason::MemberUnknown);
        };
        let Some(left_at) = known.left_at else {
            return;
        };
        if self.is_dismissed() {
            // No one joins a dismissed group.
            self.mark(MarkReason::GroupDismissed);
        } else if at - left_at <= LATE_CALLBACK_TIMEOUT {
            self.mark(MarkReason::MemberGone);
        } else {
            // OpenIM deleted the record at the leave.
            *self.member(user) = Member::fresh(None);
            self.mark(MarkReason::MemberBack);
        }
    }

    fn set_member(&mut self, patch: &MemberPatch, at: OffsetDateTime) {
        let MemberPatch {
            user_id,
            role_level,
            ..
        } = patch;
        self.expect_member(user_id, at);
        let member = self.member(user_id);
        let was_owner = member.role_level == Some(OWNER);
        member.apply_texts(patch);
        let Some(role_level) = *role_level else {
            return;
        };
        member.role_level = Some(role_level);
        let is_current = !member.is_gone();
        if role_level != OWNER && !was_owner {
            return;
        }
        // A before-hook or an app administrator can set the owner's role.
        self.mark(MarkReason::OwnerRole);
        let is_owner = self.owner() == Some(user_id);
        if role_level == OWNER && self.owner().is_none() && is_current {
            self.group().owner = Some(user_id.clone());
        } else if role_level != OWNER && is_owner {
            self.group().owner = None;
        }
    }

    fn join(&mut self, user: &UserId, at: OffsetDateTime) {
        self.expect_not_dismissed();
        let fresh = Member::fresh(Some(at));
        match self.members.get(user) {
            Some(known) if !known.is_gone() => {
                // The join was repeated, or another callback of the member came first. Then the join fills the other
                // values.
                self.member(user).fill(&fresh);
                self.mark(MarkReason::MemberPresent);
            }
            // OpenIM makes a new record.
            _ => *self.member(user) = fresh,
        }
    }

    fn leave(&mut self, user: &UserId, at: OffsetDateTime) {
        let known = self.members.get(user).map(Member::is_gone);
        let member = self.member(user);
        if known != Some(true) {
            member.left_at = Some(at);
        }
        let was_owner = known == Some(false) && member.role_level == Some(OWNER);
        match known {
            None => self.mark(MarkReason::MemberUnknown),
            Some(true) => self.mark(MarkReason::MemberGone),
            Some(false) => {}
        }
        let is_owner = self.owner() == Some(user);
        if is_owner {
            self.group().owner = None;
        }
        if was_owner || is_owner {
            self.mark(MarkReason::OwnerLeft);
        }
    }

    /// Does the same to each user of a list.
    fn for_each(&mut self, users: &Users, change: impl Fn(&mut Self, &UserId)) {
        if users.is_incomplete {
            self.mark(MarkReason::MembersMissing);
        }
        for user in &users.user_ids {
            change(self, user);
        }
    }

    /// Dismisses the group. OpenIM sends two callbacks within a second: its push service sees the first dismissal and
    /// repeats it with the members removed.
    fn dismiss(&mut self, at: OffsetDateTime) {
        let group = self.group();
        if !group.is_dismissed() {
            group.status = Some(DISMISSED);
            group.dismissed_at = Some(at);
            self.empty(at);
        }
    }

    /// Ends all memberships. The store fills in the rows that no change names.
    fn empty(&mut self, at: OffsetDateTime) {
        if let Some(group) = &mut self.group {
            group.owner = None;
        }
        for member in self.members.values_mut() {
            member.left_at.get_or_insert(at);
        }
        self.emptied_at = Some(at);
    }

    /// Swaps the roles of two members, like OpenIM. A repeated swap would make the old owner owner again, so it needs a
    /// new owner whose known role is another one.
    fn transfer(&mut self, old_owner: &UserId, new_owner: &UserId, at: OffsetDateTime) {
        self.expect_not_dismissed();
        self.expect_member(new_owner, at);
        let new = self.member(new_owner);
        let is_current = !new.is_gone();
        let previous = new.role_level.replace(OWNER).filter(|_| is_current);
        let handed_on = previous.filter(|role_level| *role_level != OWNER);
        let mut fits = handed_on.is_some();
        if old_owner != new_owner {
            let known = self.members.get(old_owner).cloned();
            let old = self.member(old_owner);
            match known {
                None => {
                    old.role_level = handed_on;
                    self.mark(MarkReason::MemberUnknown);
                }
                // A leave after the transfer came first.
                Some(known) if known.is_gone() => self.mark(MarkReason::MemberGone),
                Some(known) => {
                    fits &= known.role_level == Some(OWNER);
                    // The role stays if the new owner's is not known. Only one member is owner.
                    let kept = known.role_level.filter(|role_level| *role_level != OWNER);
                    old.role_level = handed_on.or(kept);
                }
            }
        }
        if !fits {
            self.mark(MarkReason::OwnerMismatch);
        }
        self.group().owner = is_current.then(|| new_owner.clone());
    }

    fn set_profile(&mut self, profile: &GroupProfile) {
        self.expect_not_dismissed();
        self.group().profile.update(profile);
    }

    /// Fills unknown values. The creation of a known group is late or repeated: it brings no member back and undoes
    /// nothing.
    fn create(&mut self, creation: &Creation, at: OffsetDateTime) {
        let Creation {
            profile,
            owner,
            status,
            group_type,
            created_at,
            members,
            may_be_operator: _,
            is_incomplete,
        } = creation;
        if self.group.is_some() {
            self.mark(MarkReason::GroupKnown);
        } else {
            self.is_new = true;
        }
        if *is_incomplete {
            self.mark(MarkReason::MembersMissing);
        }
        let group = self.group();
        group.profile.fill(profile);
        group.status = group.status.or(*status);
        if group.is_dismissed() {
            group.dismissed_at = group.dismissed_at.or(Some(at));
        }
        group.group_type = group.group_type.or(*group_type);
        group.created_in_openim_at = group.created_in_openim_at.or(*created_at);
        for (user, role_level) in members {
            // A transfer that came first has told another owner.
            let is_over = *role_level == OWNER && self.owner().is_some_and(|owner| owner != user);
            let role_level = (!is_over).then_some(*role_level);
            let record = Member::created(role_level, created_at.or(Some(at)));
            match self.members.get(user) {
                Some(known) if known.is_gone() => {
                    self.member(user);
                }
                Some(_) => self.member(user).fill(&record),
                None => *self.member(user) = record,
            }
        }
        let is_owner = |user: &&UserId| {
            let member = self.members.get(user);
            member.is_some_and(|member| !member.is_gone() && member.role_level == Some(OWNER))
        };
        let owner = owner.as_ref().filter(is_owner).cloned();
        let group = self.group();
        group.owner = group.owner.take().or(owner);
    }

    /// Makes rows equal to OpenIM. Rows that a callback has named since OpenIM was asked stay, and the group is marked
    /// again.
    fn repair(&mut self, repair: &Repair) -> Repaired {
        let began_at = repair.began_at;
        let mut repaired = Repaired::default();
        if self.repair.compared_at != Some(began_at) {
            repaired.is_outdated = true;
            return repaired;
        }
        let is_newer = |xid: Option<&i64>| xid.is_some_and(|xid| !repair.fence.has_ended(*xid));
        let mut is_skipped = false;
        if let Some(openim) = &repair.group {
            if self.is_named || is_newer(self.repair.group_xid.as_ref()) {
                is_skipped = true;
            } else {
                self.is_new |= self.group.is_none();
                if let Some(verdict) = compare_group(self.group.as_ref(), openim) {
                    repaired.counts.add(verdict.kind);
                }
                let was_dismissed = self.group.as_ref().is_some_and(Group::is_dismissed);
                let group = openim.to_row(self.group.as_ref(), began_at);
                let is_dismissed = group.is_dismissed();
                self.group = Some(group);
                self.repair.is_group_repaired = true;
                if is_dismissed && !was_dismissed {
                    self.empty(began_at);
                }
            }
        } else if self.group.is_none() {
            self.group = Some(Group::default());
            self.is_new = true;
        }
        let present = repair
            .present
            .iter()
            .map(|(user, member)| (user, Some(member)));
        let absent = repair.absent.iter().map(|user| (user, None));
        for (user, openim) in present.chain(absent) {
            // After a dismissal, an older answer of OpenIM brings no member back.
            let is_over = openim.is_some() && self.is_dismissed();
            let xid = self.repair.member_xids.get(user);
            if is_over || self.named.contains(user) || is_newer(xid) {
                is_skipped = true;
                continue;
            }
            let stored = self.members.get(user);
            if let Some(verdict) = compare_member(stored, openim) {
                repaired.counts.add(verdict.kind);
            }
            let member = match openim {
                Some(openim) => openim.to_row(stored),
                None => {
                    let Some(stored) = stored.filter(|member| !member.is_gone()) else {
                        continue;
                    };
                    Member {
                        left_at: Some(began_at),
                        ..stored.clone()
                    }
                }
            };
            self.members.insert(user.clone(), member);
            self.repair.repaired_members.insert(user.clone());
        }
        if is_skipped {
            self.mark(MarkReason::CallbackMeanwhile);
        }
        repaired
    }
}
