//! Rules: no I/O, no async, nothing of HTTP or SQL. Every room imports it; it imports no other room.

mod apply;
mod change;
mod drift;
mod fence;
mod fold;
mod group;
mod hint;
mod ids;
mod member;
mod operators;
mod record;

pub use apply::{GroupRows, LATE_CALLBACK_TIMEOUT, RepairRows, Repaired, apply};
pub use change::{
    Change, Creation, Event, MAX_KEPT_BYTES, Rejected, Repair, Users, first_members, to_micros,
};
use drift::Differences;
pub use drift::{Drift, RepairCounts, RepairKind, Verdict};
pub use fence::{Fence, FenceError};
pub use fold::{Folded, FoldedPatch, fold};
pub use group::{DISMISSED, Group, GroupProfile, MarkReason, OpenImGroup, Version, compare_group};
pub use hint::{Hint, HintKind};
pub use ids::{GroupId, IdError, MAX_ID_BYTES, Text, UserId, is_usable_operation_id};
pub use member::{Member, MemberPatch, ORDINARY, OWNER, OpenImMember, compare_member};
pub use operators::{Operators, may_be_operator};
pub use record::{Raw, Request, from_record, to_record};
