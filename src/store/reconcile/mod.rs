//! What a comparison with OpenIM asks of the database, and what it notes there. Rows of members and
//! groups it changes through the lanes alone.

mod checks;
mod compared;
mod runs;
mod turn;

pub use checks::{Begun, Finished, Named, Noted, WantedByReason, WasRead};
pub use compared::{ComparedMember, KnownGroup};
pub use runs::{Run, RunCounts, TOO_MANY_REMOVALS};
pub use turn::{Turn, TurnOf};

/// Every statement of these files, by name.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    checks::STATEMENTS
        .iter()
        .chain(compared::STATEMENTS)
        .chain(compared::PAGES)
        .chain(runs::STATEMENTS)
        .chain(turn::STATEMENTS)
}
