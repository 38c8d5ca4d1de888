//! Rules: no I/O, no async, nothing of HTTP or SQL. Every room imports it; it imports no other room.

/// Makes an enum whose values have names that never change, with a list of them.
macro_rules! named {
    (
        $(#[$meta:meta])* $enum:ident, $name:ident:
        $($(#[$doc:meta])+ $value:ident = $text:literal;)+
    ) => {
        $(#[$meta])*
        pub enum $enum {
            $($(#[$doc])+ $value,)+
        }

        impl $enum {
            /// All values.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$value),+];

            /// Returns the name in metrics, rows and answers.
            pub fn $name(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }
    };
}
pub(crate) use named;

mod apply;
mod change;
mod drift;
mod fence;
mod fields;
mod hint;
mod ids;
mod record;

pub use apply::{GroupRows, LATE_CALLBACK_TIMEOUT, RepairRows, Repaired, apply};
pub use change::{
    Change, Creation, Event, Folded, FoldedPatch, MAX_KEPT_BYTES, Operators, Rejected, Repair,
    Users, first_members, fold, may_be_operator, to_micros,
};
use drift::Differences;
pub use drift::{Drift, RepairCounts, RepairKind, Verdict};
pub use fence::Fence;
pub use fields::{
    DISMISSED, Group, GroupProfile, MarkReason, Member, MemberPatch, ORDINARY, OWNER, OpenImGroup,
    OpenImMember, Version, compare_group, compare_member,
};
pub use hint::{Hint, HintKind};
pub use ids::{GroupId, IdError, MAX_ID_BYTES, Text, UserId, is_usable_operation_id};
pub use record::{Raw, Request, from_record, to_record};
