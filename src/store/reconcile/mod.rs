//! Reads and records of a reconcile in Postgres. It changes rows of members and groups only through the lanes.

mod compared;
mod marks;
mod runs;

pub use compared::{ComparedMember, KnownGroup};
pub use marks::{Coverage, Finished, KnownVersion, MarksByReason, Named, ReconcileStart};
pub(crate) use runs::run_counters;
pub use runs::{Lease, LeaseOf, Run, RunCounts, TOO_MANY_REMOVALS};

/// Every statement of these files, by name.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    compared::STATEMENTS
        .iter()
        .chain(compared::PAGES)
        .chain(marks::STATEMENTS)
        .chain(runs::STATEMENTS)
}
