//! Reads of the mirror.
//!
//! Every page starts after a key, the first one after the empty key, which is below every id. A generic
//! plan for `$n IS NULL OR ...` would read the whole group. (It does no harm as a condition on rows that
//! are read anyway.) Pages compare whole rows, `(group_id, user_id) > ($1, $2) AND group_id <= $1`,
//! and not `group_id = $1 AND user_id > $2`: with an equality the planner may take the order from the
//! other index, believe that the group's members are evenly spread in it, and read the whole table.
//!
//! A dismissal ends all memberships, and for a while the members' rows do not say so. So reads look at
//! `groups_emptying`, an index that is nearly always empty.

#[macro_use]
mod pages;
mod groups;
mod members;

pub use groups::{GroupFilter, GroupSummary, RoleCount};
pub use members::{MemberFilter, MemberState};
pub use pages::{Found, PAGE_BYTES, Page, Room, SHORT_ROW};
pub(super) use pages::{PageSql, bytes, count, page};

/// Returns all statements of this folder, with their names.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    groups::STATEMENTS
        .iter()
        .chain(groups::PAGES)
        .chain(members::PAGES)
}
