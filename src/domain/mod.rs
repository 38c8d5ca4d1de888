//! Rules only: no I/O, no async, nothing of HTTP or SQL. Everybody imports it; it imports nobody.

mod fold;
mod ids;
mod member;
mod rejected;

pub use fold::{FoldedPatch, fold};
pub use ids::{GroupId, IdError, MAX_ID_BYTES, Text, UserId};
pub use member::{MemberPatch, ORDINARY};
pub use rejected::{MAX_KEPT_BYTES, Rejected};
