//! What OpenIM holds of a group, and how the stored rows are made so.

use time::OffsetDateTime;

use super::apply::GroupRows;
use super::{
    CheckReason, DISMISSED, Fence, Group, Member, Profile, RepairCounts, Text, UserId,
    group_verdict, member_verdict,
};

/// A member as OpenIM holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "those of Member")]
pub struct HeldMember {
    /// Filled from the user's profile where the group-level value is empty; OpenIM does not tell
    /// which it is.
    pub display_nickname: Text,
    /// As the nickname.
    pub display_face_url: Text,
    pub role_level: i32,
    pub ex: Text,
    pub joined_at: Option<OffsetDateTime>,
    pub join_source: i32,
    pub inviter: Text,
    pub operator: Text,
    pub mute_end_at: Option<OffsetDateTime>,
}

/// A group as OpenIM holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "those of Group")]
pub struct HeldGroup {
    /// All of it is there.
    pub profile: Profile,
    pub owner: Option<UserId>,
    pub status: i32,
    pub group_type: i32,
    pub created_in_openim_at: Option<OffsetDateTime>,
}

/// A version of a group and its members: OpenIM counts their changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Of which count; a group that is dismissed for good loses its own.
    pub id: String,
    /// How far it is; any number.
    pub number: u64,
}

/// A part of a group as OpenIM holds it, where the mirror holds something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// When the comparison began, by the database's clock; no two comparisons of a group have the
    /// same.
    pub began_at: OffsetDateTime,
    /// What was written before OpenIM was asked: whatever was written since may be newer.
    pub fence: Fence,
    /// The group itself, where it differs.
    pub group: Option<Box<HeldGroup>>,
    /// Members who differ.
    pub present: Vec<(UserId, HeldMember)>,
    /// Those who are none.
    pub absent: Vec<UserId>,
}

/// What came of a repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Rows that were made what OpenIM holds. The others were so, or were named by a callback since.
    pub counts: RepairCounts,
    /// Another comparison has begun since, whose answers are newer: no row was written.
    pub is_outdated: bool,
}

impl Repair {
    /// The users whose rows it may write.
    pub fn user_ids(&self) -> impl Iterator<Item = &UserId> {
        let present = self.present.iter().map(|(user, _)| user);
        present.chain(&self.absent)
    }
}

impl HeldMember {
    /// About what it holds.
    pub fn bytes(&self) -> usize {
        let texts = [
            &self.display_nickname,
            &self.display_face_url,
            &self.ex,
            &self.inviter,
            &self.operator,
        ];
        texts.iter().map(|text| text.as_str().len()).sum()
    }

    /// What a row has to be; `stored` is what it was, if there was one.
    pub(super) fn to_be(&self, stored: Option<&Member>) -> Member {
        // Of somebody who has come anew nothing of what was before is left.
        let known = stored.filter(|member| !member.is_gone());
        // What OpenIM shows can be the profile's only where the member has none of its own.
        let own = |text: Option<&Text>, shown: &Text| {
            text.filter(|text| text.is_empty() || *text == shown)
                .cloned()
        };
        Member {
            nickname: own(
                known.and_then(|member| member.nickname.as_ref()),
                &self.display_nickname,
            ),
            face_url: own(
                known.and_then(|member| member.face_url.as_ref()),
                &self.display_face_url,
            ),
            role_level: Some(self.role_level),
            ex: Some(self.ex.clone()),
            display_nickname: Some(self.display_nickname.clone()),
            display_face_url: Some(self.display_face_url.clone()),
            joined_at: self.joined_at,
            join_source: Some(self.join_source),
            inviter: Some(self.inviter.clone()),
            operator: Some(self.operator.clone()),
            mute_end_at: self.mute_end_at,
            left_at: None,
        }
    }
}

impl HeldGroup {
    /// What the row has to be. Of a dismissal OpenIM tells no time; `at` is when it was found.
    pub(super) fn to_be(&self, stored: Option<&Group>, at: OffsetDateTime) -> Group {
        let known = stored.filter(|group| group.is_dismissed());
        let mut group = Group {
            profile: self.profile.clone(),
            // OpenIM goes on to name the owner of a group for as long as its members are there.
            owner: self.owner.clone().filter(|_| self.status != DISMISSED),
            status: Some(self.status),
            group_type: Some(self.group_type),
            created_in_openim_at: self.created_in_openim_at,
            dismissed_at: None,
        };
        if group.is_dismissed() {
            group.dismissed_at = known.and_then(|group| group.dismissed_at).or(Some(at));
        }
        group
    }
}

impl GroupRows {
    /// Makes rows what OpenIM holds, but for those that a callback has named since it was asked:
    /// these stay, and the group is checked again.
    pub(super) fn repair(&mut self, repair: &Repair) -> Repaired {
        let began_at = repair.began_at;
        let mut repaired = Repaired::default();
        if self.compared_at != Some(began_at) {
            repaired.is_outdated = true;
            return repaired;
        }
        let is_new = |heard: Option<&i64>| heard.is_some_and(|xid| !repair.fence.has(*xid));
        let mut is_left = false;
        if let Some(held) = &repair.group {
            if self.is_named || is_new(self.heard.as_ref()) {
                is_left = true;
            } else {
                self.is_new |= self.group.is_none();
                if let Some(verdict) = group_verdict(self.group.as_ref(), held) {
                    repaired.counts.add(verdict.kind);
                }
                let was_dismissed = self.group.as_ref().is_some_and(Group::is_dismissed);
                let group = held.to_be(self.group.as_ref(), began_at);
                let is_dismissed = group.is_dismissed();
                self.group = Some(group);
                self.is_repaired = true;
                if is_dismissed && !was_dismissed {
                    self.empty(began_at);
                }
            }
        } else if self.group.is_none() {
            self.group = Some(Group::default());
            self.is_new = true;
        }
        let present = repair.present.iter().map(|(user, held)| (user, Some(held)));
        let absent = repair.absent.iter().map(|user| (user, None));
        for (user, held) in present.chain(absent) {
            // Where a callback tells of a dismissal since, nobody comes back by an older answer.
            let is_over = held.is_some() && self.is_dismissed();
            if is_over || self.named.contains(user) || is_new(self.members_heard.get(user)) {
                is_left = true;
                continue;
            }
            let stored = self.members.get(user);
            if let Some(verdict) = member_verdict(stored, held) {
                repaired.counts.add(verdict.kind);
            }
            let member = match held {
                Some(held) => held.to_be(stored),
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
            self.repaired.insert(user.clone());
        }
        if is_left {
            self.want_check(CheckReason::CallbackMeanwhile);
        }
        repaired
    }
}
