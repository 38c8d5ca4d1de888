//! What is asked of the mirror.
//!
//! Every page starts after a key, from the empty key at first, which is below every id;
//! `$n IS NULL OR ...` would make a generic plan read the whole group. (Where it only leaves out
//! rows that are read anyway, it does no harm.) Pages compare whole rows,
//! `(group_id, user_id) > ($1, $2) AND group_id <= $1`, where `group_id = $1 AND user_id > $2`
//! says the same: with an equality the planner may take the order from the other index, which it
//! believes to hold the group's members evenly spread, and read all the table to find them.
//!
//! A member is current who has not left. At a dismissal all leave, and for a while their rows do not
//! say so: a look at `groups_emptying`, where there is nearly never anything, once where there is one
//! group.

#[macro_use]
mod bounded;
mod groups;
mod members;

pub use bounded::{Found, PAGE_BYTES, Page, Room, SHORT_ROW};
pub(super) use bounded::{PageSql, PgQuery, Texts, page};
pub use groups::{GroupFilter, GroupRow, GroupSummary, RoleCount};
pub use members::{MemberFilter, MemberRow, MemberState, SoughtMember};
pub(super) use members::{member, memberships};

/// Every statement of these files, by name.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    groups::STATEMENTS
        .iter()
        .chain(groups::PAGES)
        .chain(members::STATEMENTS)
        .chain(members::PAGES)
}
