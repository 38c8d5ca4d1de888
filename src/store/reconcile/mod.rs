//! Reads and records of a reconcile in Postgres. It changes rows of members and groups only through the lanes.

pub(super) mod compared;
pub(super) mod marks;
pub(super) mod runs;

pub use compared::{ComparedMember, KnownGroup};
pub use marks::{Coverage, Finished, KnownVersion, MarksByReason, Named, ReconcileStart};
pub(crate) use runs::run_counters;
pub use runs::{Lease, LeaseOf, Run, RunCounts, TOO_MANY_REMOVALS};
