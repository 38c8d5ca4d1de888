//! Rules only: no I/O, no async, nothing of HTTP or SQL. Everybody imports it; it imports nobody.

mod apply;
mod change;
mod compare;
mod fence;
mod fold;
mod group;
mod hint;
mod ids;
mod member;
mod operators;
mod record;
mod rejected;
mod repair;

pub use apply::{GroupRows, LATE, apply};
pub use change::{Change, Creation, Event, Users, first_members, to_micros};
pub use compare::{Drift, RepairCounts, RepairKind, Verdict, group_verdict, member_verdict};
pub use fence::{Fence, FenceError};
pub use fold::{Folded, FoldedPatch, fold};
pub use group::{CheckReason, DISMISSED, Group, Profile};
pub use hint::{Hint, HintKind};
pub use ids::{GroupId, IdError, MAX_ID_BYTES, Text, UserId};
pub use member::{Member, MemberPatch, ORDINARY, OWNER};
pub use operators::{Operators, may_be_operator};
pub use record::{Raw, Request, from_record, to_record};
pub use rejected::{MAX_KEPT_BYTES, Rejected};
pub use repair::{HeldGroup, HeldMember, Repair, Repaired, Version};
