//! What a change does to the stored rows of its group.
//!
//! A callback implies something of the time before it: who quits was a member, who joins was none.
//! Where the mirror knows it otherwise, callbacks were missed or came in another order, and which
//! of it nobody can tell from here. Then what is safe is done, and the group is marked to be checked
//! against OpenIM.

use std::collections::{BTreeMap, BTreeSet};

use time::{Duration, OffsetDateTime};

use super::{
    Change, CheckReason, Creation, DISMISSED, Event, Group, Member, MemberPatch, OWNER, Profile,
    Repaired, UserId, Users,
};

/// How long after a leave a callback about the member is taken for one that was overtaken by it.
/// A guess: OpenIM sets no bound to that. Later, the member has come back unheard.
pub const LATE: Duration = Duration::seconds(15);

/// What is stored of a group, as far as the changes of it need, and what they make of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRows {
    /// `None`: never heard of.
    pub group: Option<Group>,
    /// Those that the changes name, where they are known.
    pub members: BTreeMap<UserId, Member>,
    /// Members that a change has named, whether or not a value differs.
    pub named: BTreeSet<UserId>,
    /// Whether a change has said something of the group itself.
    pub is_named: bool,
    /// Whether there was no row of the group before.
    pub is_new: bool,
    /// Why the group is to be checked: the last reason.
    pub check: Option<CheckReason>,
    /// The transaction of the last callback about the group itself.
    pub heard: Option<i64>,
    /// The same of the members.
    pub members_heard: BTreeMap<UserId, i64>,
    /// When a change has dismissed the group: whoever was a member then has left, those who are not
    /// among `members` too.
    pub emptied_at: Option<OffsetDateTime>,
    /// When the last comparison with OpenIM began.
    pub compared_at: Option<OffsetDateTime>,
    /// Members that a repair has changed.
    pub repaired: BTreeSet<UserId>,
    /// Whether a repair has changed the group itself.
    pub is_repaired: bool,
}

/// What of a member was stored when a callback implied that there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Current,
    Unknown,
    Gone,
    Back,
}

/// Does to `rows` what `change` says. There are the rows of all whom the change names, as far as
/// they are stored. What is returned is of a repair alone.
pub fn apply(rows: &mut GroupRows, change: &Change) -> Repaired {
    if let Event::Repair(repair) = &change.event {
        return rows.repair(repair);
    }
    let before = rows.check;
    apply_event(rows, change);
    if change.is_looked_after && !change.event.is_mark() {
        rows.check = before;
    }
    Repaired::default()
}

fn apply_event(rows: &mut GroupRows, change: &Change) {
    let at = change.received_at;
    if let Event::Create(creation) = &change.event {
        rows.create(creation, at);
        return rows.leave_nobody_in_a_dismissed_group(at);
    }
    if let Event::WantCheckIfDismissed(reason) = &change.event {
        if rows.group.as_ref().is_some_and(Group::is_dismissed) {
            rows.want_check(*reason);
        }
        return;
    }
    let is_unknown = rows.group.is_none();
    if is_unknown {
        rows.group = Some(Group::default());
        rows.is_new = true;
    }
    match &change.event {
        // Above.
        Event::Create(_) | Event::Repair(_) | Event::WantCheckIfDismissed(_) => {}
        Event::Join(user) => rows.join(user, at),
        Event::JoinAll(users) => rows.join_all(users, at),
        Event::Quit(user) => rows.leave(user, at),
        Event::Kick(users) => rows.kick(users, at),
        Event::Dismiss => rows.dismiss(at),
        Event::Transfer {
            old_owner,
            new_owner,
        } => rows.transfer(old_owner, new_owner, at),
        Event::SetProfile(profile) => rows.set_profile(profile),
        Event::SetMember(patch) => rows.set_member(patch, at),
        Event::WantCheck(reason) => return rows.want_check(*reason),
    }
    rows.leave_nobody_in_a_dismissed_group(at);
    // Which explains whatever else does not fit.
    if is_unknown {
        rows.want_check(CheckReason::GroupUnknown);
    }
}

impl GroupRows {
    /// The group, about which a callback says something; `apply` has made one where there was none.
    fn group(&mut self) -> &mut Group {
        self.is_named = true;
        self.group.get_or_insert_default()
    }

    fn owner(&self) -> Option<&UserId> {
        self.group.as_ref()?.owner.as_ref()
    }

    /// The member, now named by a callback.
    fn member(&mut self, user: &UserId) -> &mut Member {
        self.named.insert(user.clone());
        self.members.entry(user.clone()).or_default()
    }

    pub(super) fn want_check(&mut self, reason: CheckReason) {
        // That of a notification may be taken back, and must not take another along.
        if reason != CheckReason::Notified || self.check.is_none() {
            self.check = Some(reason);
        }
    }

    /// OpenIM refuses to let anyone into, or to change, a dismissed group.
    fn expect_not_dismissed(&mut self) {
        if self.is_dismissed() {
            self.want_check(CheckReason::GroupDismissed);
        }
    }

    pub(super) fn is_dismissed(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_dismissed)
    }

    /// What comes late about a member of a dismissed group is kept as a value; nobody is one by it.
    fn leave_nobody_in_a_dismissed_group(&mut self, at: OffsetDateTime) {
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

    /// OpenIM takes what follows only where the user is a member.
    fn expect_member(&mut self, user: &UserId, at: OffsetDateTime) -> Found {
        let Some(known) = self.members.get(user) else {
            self.member(user);
            self.want_check(CheckReason::MemberUnknown);
            return Found::Unknown;
        };
        match known.left_at {
            None => Found::Current,
            // Nobody comes back to a group that is dismissed.
            Some(_) if self.is_dismissed() => {
                self.want_check(CheckReason::GroupDismissed);
                Found::Gone
            }
            Some(left_at) if at - left_at <= LATE => {
                self.want_check(CheckReason::MemberGone);
                Found::Gone
            }
            Some(_) => {
                // The record that OpenIM had before is gone with the leave.
                *self.member(user) = Member::fresh(None);
                self.want_check(CheckReason::MemberBack);
                Found::Back
            }
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
        member.set_texts(patch);
        let Some(role_level) = *role_level else {
            return;
        };
        member.role_level = Some(role_level);
        let is_current = !member.is_gone();
        if role_level != OWNER && !was_owner {
            return;
        }
        // By a before-hook, or by an administrator, who may take the owner's role from anyone.
        self.want_check(CheckReason::OwnerRole);
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
                // A repetition; or something was heard of the member before the join was: then the
                // join tells the rest.
                let filled = filled(known, &fresh);
                *self.member(user) = filled;
                self.want_check(CheckReason::MemberPresent);
            }
            // OpenIM makes a new record.
            _ => *self.member(user) = fresh,
        }
    }

    fn join_all(&mut self, users: &Users, at: OffsetDateTime) {
        if users.is_incomplete {
            self.want_check(CheckReason::MembersMissing);
        }
        for user in &users.user_ids {
            self.join(user, at);
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
            None => self.want_check(CheckReason::MemberUnknown),
            Some(true) => self.want_check(CheckReason::MemberGone),
            Some(false) => {}
        }
        let is_owner = self.owner() == Some(user);
        if is_owner {
            self.group().owner = None;
        }
        if was_owner || is_owner {
            self.want_check(CheckReason::OwnerLeft);
        }
    }

    fn kick(&mut self, users: &Users, at: OffsetDateTime) {
        if users.is_incomplete {
            self.want_check(CheckReason::MembersMissing);
        }
        for user in &users.user_ids {
            self.leave(user, at);
        }
    }

    /// OpenIM tells it twice: its push service sees the first dismissal and makes it one with the
    /// members, within a second.
    fn dismiss(&mut self, at: OffsetDateTime) {
        let group = self.group();
        if !group.is_dismissed() {
            group.status = Some(DISMISSED);
            group.dismissed_at = Some(at);
            self.empty(at);
        }
    }

    /// Whoever is a member leaves. Rows that no change names are for the store to see to.
    pub(super) fn empty(&mut self, at: OffsetDateTime) {
        if let Some(group) = &mut self.group {
            group.owner = None;
        }
        for member in self.members.values_mut() {
            member.left_at.get_or_insert(at);
        }
        self.emptied_at = Some(at);
    }

    /// OpenIM gives the old owner the role that the new one had. Done twice, that would be the
    /// owner's; so it is done only where the new one's role is known to be another.
    fn transfer(&mut self, old_owner: &UserId, new_owner: &UserId, at: OffsetDateTime) {
        self.expect_not_dismissed();
        let found = self.expect_member(new_owner, at);
        let new = self.member(new_owner);
        let previous = match found {
            Found::Current | Found::Back => new.role_level,
            Found::Unknown | Found::Gone => None,
        };
        new.role_level = Some(OWNER);
        let is_current = !new.is_gone();
        let handed_on = previous.filter(|role_level| *role_level != OWNER);
        let mut fits = handed_on.is_some();
        if old_owner != new_owner {
            let known = self.members.get(old_owner).cloned();
            let old = self.member(old_owner);
            match known {
                None => {
                    old.role_level = handed_on;
                    self.want_check(CheckReason::MemberUnknown);
                }
                // Who has left stays away: a leave after the transfer has overtaken it.
                Some(known) if known.is_gone() => self.want_check(CheckReason::MemberGone),
                Some(known) => {
                    fits &= known.role_level == Some(OWNER);
                    // As it was, where the new owner's is not known; but there is one owner only.
                    let kept = known.role_level.filter(|role_level| *role_level != OWNER);
                    old.role_level = handed_on.or(kept);
                }
            }
        }
        if !fits {
            self.want_check(CheckReason::OwnerMismatch);
        }
        self.group().owner = is_current.then(|| new_owner.clone());
    }

    fn set_profile(&mut self, profile: &Profile) {
        self.expect_not_dismissed();
        self.group().profile.update(profile);
    }

    /// Fills in what is unknown. Of a group that is known it comes late or again: then it brings
    /// nobody back, and undoes nothing.
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
            self.want_check(CheckReason::GroupKnown);
        } else {
            self.is_new = true;
        }
        if *is_incomplete {
            self.want_check(CheckReason::MembersMissing);
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
            // A transfer that has overtaken the creation has told another owner.
            let is_over = *role_level == OWNER && self.owner().is_some_and(|owner| owner != user);
            let told = Member {
                role_level: (!is_over).then_some(*role_level),
                joined_at: created_at.or(Some(at)),
                ..Member::default()
            }
            .without_unknown_texts();
            match self.members.get(user) {
                Some(known) if known.is_gone() => {
                    self.member(user);
                }
                Some(known) => *self.member(user) = filled(known, &told),
                None => *self.member(user) = told,
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
}

/// A member with what was unknown taken from `told`.
fn filled(member: &Member, told: &Member) -> Member {
    let text = |known: &Option<_>, told: &Option<_>| known.as_ref().or(told.as_ref()).cloned();
    Member {
        nickname: text(&member.nickname, &told.nickname),
        face_url: text(&member.face_url, &told.face_url),
        role_level: member.role_level.or(told.role_level),
        ex: text(&member.ex, &told.ex),
        joined_at: member.joined_at.or(told.joined_at),
        // The rest no callback tells.
        ..member.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::GroupId;
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn change(event: Event, is_looked_after: bool) -> Change {
        let group = GroupId::parse("g".into()).unwrap();
        Change {
            is_looked_after,
            ..Change::new(group, OffsetDateTime::UNIX_EPOCH, event)
        }
    }

    fn group(status: i32) -> GroupRows {
        let group = Group {
            status: Some(status),
            ..Group::default()
        };
        GroupRows {
            group: Some(group),
            ..GroupRows::default()
        }
    }

    #[test]
    fn of_a_group_that_is_looked_after_everything_is_done_but_the_mark() {
        for (mut rows, event) in [
            (group(0), Event::Quit(user("u"))),
            (group(DISMISSED), Event::Join(user("u"))),
            (GroupRows::default(), Event::Dismiss),
        ] {
            let mut marked = rows.clone();
            apply(&mut marked, &change(event.clone(), false));
            assert!(marked.check.is_some());
            apply(&mut rows, &change(event, true));
            assert_eq!(rows.check, None);
            marked.check = None;
            assert_eq!(rows, marked);
        }
    }

    #[test]
    fn a_mark_stays_one_and_so_do_those_of_other_changes() {
        let mut rows = group(0);
        let lost = CheckReason::CallbackLost;
        apply(&mut rows, &change(Event::WantCheck(lost), true));
        assert_eq!(rows.check, Some(lost));
        apply(&mut rows, &change(Event::Quit(user("u")), true));
        assert_eq!(rows.check, Some(lost));
        apply(&mut rows, &change(Event::Quit(user("v")), false));
        assert_eq!(rows.check, Some(CheckReason::MemberUnknown));
    }

    #[test]
    fn that_a_group_may_have_come_back_marks_one_that_is_dismissed_and_makes_none() {
        let came_back = Event::WantCheckIfDismissed(CheckReason::Notified);
        for (mut rows, expected) in [
            (group(DISMISSED), Some(CheckReason::Notified)),
            (group(0), None),
            (GroupRows::default(), None),
        ] {
            let before = rows.clone();
            apply(&mut rows, &change(came_back.clone(), false));
            assert_eq!(rows.check, expected);
            rows.check = None;
            assert_eq!(rows, before);
        }
    }

    /// It may be taken back.
    #[test]
    fn a_notification_takes_no_other_mark_of_the_same_moment_away() {
        let notified = Event::WantCheck(CheckReason::Notified);
        for is_first in [true, false] {
            let mut rows = group(0);
            let quit = change(Event::Quit(user("u")), false);
            let hint = change(notified.clone(), false);
            let changes = match is_first {
                true => [hint, quit],
                false => [quit, hint],
            };
            for change in &changes {
                apply(&mut rows, change);
            }
            assert_eq!(rows.check, Some(CheckReason::MemberUnknown));
        }
    }
}
