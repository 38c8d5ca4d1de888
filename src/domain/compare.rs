//! Holds stored rows against what OpenIM holds.

use std::ops::AddAssign;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::repair::{HeldGroup, HeldMember};
use super::{Group, Member, Text, UserId};

/// A value that is not the same, by the name that the API has for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Drift {
    /// Such as `roleLevel`; `member` for whether somebody is one.
    pub field: &'static str,
    /// What the mirror has, as text; `None`: nothing.
    pub mirror: Option<String>,
    /// What OpenIM has.
    pub openim: Option<String>,
}

/// What has to happen to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepairKind {
    /// A member whom the mirror did not have.
    MemberAdded,
    /// One whom OpenIM does not have.
    MemberRemoved,
    /// A value of a member differs.
    MemberChanged,
    /// Only what no callback tells: what OpenIM shows in place of an empty nickname or avatar and, of
    /// a member whom no comparison has seen yet, when and how that one came. No drift.
    DetailsChanged,
    /// The group itself differs.
    GroupChanged,
}

impl RepairKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::MemberChanged,
        Self::DetailsChanged,
        Self::GroupChanged,
    ];

    /// As a metric has it; never renamed.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemberAdded => "member_added",
            Self::MemberRemoved => "member_removed",
            Self::MemberChanged => "member_changed",
            Self::DetailsChanged => "details_changed",
            Self::GroupChanged => "group_changed",
        }
    }
}

/// How many of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairCounts([u64; RepairKind::ALL.len()]);

impl RepairCounts {
    /// One more.
    pub fn add(&mut self, kind: RepairKind) {
        for (other, count) in RepairKind::ALL.into_iter().zip(&mut self.0) {
            *count += u64::from(other == kind);
        }
    }

    /// How many there are of a kind.
    pub fn of(&self, kind: RepairKind) -> u64 {
        let of_kind = self.kinds().find(|(other, _)| *other == kind);
        of_kind.map_or(0, |(_, count)| count)
    }

    /// The kinds of which there are any.
    pub fn kinds(&self) -> impl Iterator<Item = (RepairKind, u64)> + use<> {
        let all = RepairKind::ALL.into_iter().zip(self.0);
        all.filter(|(_, count)| *count > 0)
    }
}

impl AddAssign for RepairCounts {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

/// What came of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What has to happen.
    pub kind: RepairKind,
    /// What differs; empty where the difference is no drift.
    pub drift: Vec<Drift>,
}

/// Holds a member's row against what OpenIM holds. `None` where they are the same.
pub fn member_verdict(stored: Option<&Member>, held: Option<&HeldMember>) -> Option<Verdict> {
    let known = stored.filter(|member| !member.is_gone());
    let presence = |mirror: Option<&Member>, openim: Option<&HeldMember>| {
        let text = |is_there: bool| is_there.then(|| "present".to_owned());
        vec![Drift {
            field: "member",
            mirror: text(mirror.is_some()),
            openim: text(openim.is_some()),
        }]
    };
    let (kind, drift) = match (known, held) {
        (None, None) => return None,
        (None, Some(_)) => (RepairKind::MemberAdded, presence(known, held)),
        (Some(_), None) => (RepairKind::MemberRemoved, presence(known, held)),
        (Some(member), Some(held)) => {
            let to_be = held.to_be(stored);
            if to_be == *member {
                return None;
            }
            match drift_of_member(member, &to_be, held) {
                none if none.is_empty() => (RepairKind::DetailsChanged, none),
                drift => (RepairKind::MemberChanged, drift),
            }
        }
    };
    Some(Verdict { kind, drift })
}

/// The same of the group itself.
pub fn group_verdict(stored: Option<&Group>, held: &HeldGroup) -> Option<Verdict> {
    // The time of a dismissal is not OpenIM's, so whichever is given is none to compare.
    let to_be = held.to_be(stored, OffsetDateTime::UNIX_EPOCH);
    let nothing = Group::default();
    let group = stored.unwrap_or(&nothing);
    let mut list = List::default();
    let (mirror, openim) = (&group.profile, &to_be.profile);
    list.texts("groupName", &mirror.name, &openim.name);
    list.texts("notification", &mirror.notification, &openim.notification);
    list.texts("introduction", &mirror.introduction, &openim.introduction);
    list.texts("faceURL", &mirror.face_url, &openim.face_url);
    list.texts("ex", &mirror.ex, &openim.ex);
    list.numbers(
        "needVerification",
        mirror.need_verification,
        openim.need_verification,
    );
    list.numbers(
        "lookMemberInfo",
        mirror.look_member_info,
        openim.look_member_info,
    );
    list.numbers(
        "applyMemberFriend",
        mirror.apply_member_friend,
        openim.apply_member_friend,
    );
    let id = |owner: &Option<UserId>| owner.as_ref().map(|user| user.as_str().to_owned());
    list.add("ownerUserID", id(&group.owner), id(&to_be.owner));
    list.numbers("status", group.status, to_be.status);
    list.numbers("groupType", group.group_type, to_be.group_type);
    list.times(
        "createdInOpenIMAt",
        group.created_in_openim_at,
        to_be.created_in_openim_at,
    );
    (!list.0.is_empty() || stored.is_none()).then_some(Verdict {
        kind: RepairKind::GroupChanged,
        drift: list.0,
    })
}

fn drift_of_member(stored: &Member, to_be: &Member, held: &HeldMember) -> Vec<Drift> {
    let mut list = List::default();
    // One that is there, and that OpenIM does not show.
    for (field, mirror, openim, shown) in [
        (
            "nickName",
            &stored.nickname,
            &to_be.nickname,
            &held.display_nickname,
        ),
        (
            "faceURL",
            &stored.face_url,
            &to_be.face_url,
            &held.display_face_url,
        ),
    ] {
        if mirror != openim {
            list.texts(field, mirror, &Some(shown.clone()));
        }
    }
    list.numbers("roleLevel", stored.role_level, to_be.role_level);
    list.texts("ex", &stored.ex, &to_be.ex);
    // Only a comparison fills it.
    if stored.join_source.is_none() {
        return list.0;
    }
    list.times("joinedAt", stored.joined_at, to_be.joined_at);
    list.numbers("joinSource", stored.join_source, to_be.join_source);
    list.texts("inviterUserID", &stored.inviter, &to_be.inviter);
    list.texts("operatorUserID", &stored.operator, &to_be.operator);
    list.times("muteEndAt", stored.mute_end_at, to_be.mute_end_at);
    list.0
}

#[derive(Default)]
struct List(Vec<Drift>);

impl List {
    fn add(&mut self, field: &'static str, mirror: Option<String>, openim: Option<String>) {
        if mirror != openim {
            self.0.push(Drift {
                field,
                mirror,
                openim,
            });
        }
    }

    fn texts(&mut self, field: &'static str, mirror: &Option<Text>, openim: &Option<Text>) {
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.as_str().to_owned());
        if mirror != openim {
            self.add(field, text(mirror), text(openim));
        }
    }

    fn numbers(&mut self, field: &'static str, mirror: Option<i32>, openim: Option<i32>) {
        if mirror != openim {
            let text = |number: Option<i32>| number.map(|number| number.to_string());
            self.add(field, text(mirror), text(openim));
        }
    }

    fn times(
        &mut self,
        field: &'static str,
        mirror: Option<OffsetDateTime>,
        openim: Option<OffsetDateTime>,
    ) {
        // Years that RFC 3339 does not have are none that OpenIM's numbers are taken for.
        let text = |time: Option<OffsetDateTime>| time.and_then(|time| time.format(&Rfc3339).ok());
        if mirror != openim {
            self.add(field, text(mirror), text(openim));
        }
    }
}
