//! Drift, and the kinds of repairs that end it.

use std::ops::AddAssign;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Text, UserId};

/// A value that differs between the mirror and OpenIM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Drift {
    /// Name in the API, for example `roleLevel`. `member` stands for the presence of a member.
    pub field: &'static str,
    /// Value in the mirror, as text. `None`: there is no value.
    pub mirror: Option<String>,
    /// Value in OpenIM.
    pub openim: Option<String>,
}

named! {
    /// Kind of the repair of a row.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    RepairKind, name:
    /// The mirror did not have the member.
    MemberAdded = "member_added";
    /// OpenIM does not have the member.
    MemberRemoved = "member_removed";
    /// A value of a member differs.
    MemberChanged = "member_changed";
    /// Only values that no callback tells differ. They are no drift: the text that OpenIM shows in place of an empty
    /// nickname or avatar and, of a member who was never compared, time and way of the join.
    DetailsChanged = "details_changed";
    /// The group itself differs.
    GroupChanged = "group_changed";
}

/// Number of repairs of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairCounts([u64; RepairKind::ALL.len()]);

impl RepairCounts {
    /// Counts one repair.
    pub fn add(&mut self, kind: RepairKind) {
        for (other, count) in RepairKind::ALL.into_iter().zip(&mut self.0) {
            *count += u64::from(other == kind);
        }
    }

    /// Returns the count of a kind.
    pub fn of(&self, kind: RepairKind) -> u64 {
        let of_kind = self.kinds().find(|(other, _)| *other == kind);
        of_kind.map_or(0, |(_, count)| count)
    }

    /// Returns the kinds whose count is not zero.
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

/// Result of a comparison that found a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Kind of the repair.
    pub kind: RepairKind,
    /// Values that differ. Empty: the difference is no drift.
    pub drift: Vec<Drift>,
}

/// Collects the values that differ.
#[derive(Default)]
pub(super) struct Differences(pub(super) Vec<Drift>);

/// A value that can differ.
pub(super) trait Shown: PartialEq {
    /// Returns the text in a report.
    fn shown(&self) -> Option<String>;
}

impl Shown for Text {
    fn shown(&self) -> Option<String> {
        Some(self.as_str().to_owned())
    }
}

impl Shown for UserId {
    fn shown(&self) -> Option<String> {
        Some(self.as_str().to_owned())
    }
}

impl Shown for i32 {
    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Shown for OffsetDateTime {
    fn shown(&self) -> Option<String> {
        // RFC 3339 has no years above 9999; OpenIM's numbers are never read as such a time.
        self.format(&Rfc3339).ok()
    }
}

impl Differences {
    pub(super) fn add<T: Shown>(
        &mut self,
        field: &'static str,
        mirror: &Option<T>,
        openim: &Option<T>,
    ) {
        let shown = |value: &Option<T>| value.as_ref().and_then(Shown::shown);
        if mirror == openim {
            return;
        }
        let (mirror, openim) = (shown(mirror), shown(openim));
        if mirror != openim {
            self.0.push(Drift {
                field,
                mirror,
                openim,
            });
        }
    }
}
