//! What changes the mirror.
//!
//! A patch of a member who is there and stays what it was needs no look at anything else: such
//! patches are one statement, whatever their number. All other changes are applied by
//! `domain::apply` to the rows they concern, which are locked first.

mod drainer;
mod fence;
mod patches;
mod rows;
mod writer;

use sqlx::PgConnection;

use crate::domain::{Change, Event, Folded, FoldedPatch, fold};

pub use drainer::Drainer;
pub use writer::{Failed, Writer, Written};

/// Every statement of these files, by name.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    patches::STATEMENTS
        .iter()
        .chain(rows::STATEMENTS)
        .chain(fence::STATEMENTS)
}

/// Writes those changes that are patches of members who are there. Returns the others, which have
/// to be applied, in their order.
async fn write_patches<'a>(
    connection: &mut PgConnection,
    changes: &[&'a Change],
) -> Result<Vec<&'a Change>, sqlx::Error> {
    let Folded {
        patches,
        mut others,
    } = fold(changes.iter().copied());
    let left = patches::write(connection, &patches).await?;
    if !left.is_empty() {
        // As they came, not folded: when each came counts.
        let is_left = |change: &&&Change| match &change.event {
            Event::SetMember(patch) => {
                let key = (&change.group_id, &patch.user_id);
                left.binary_search_by_key(&key, |patch: &&FoldedPatch<'_>| patch.key())
                    .is_ok()
            }
            _ => false,
        };
        // Of other groups than the others.
        others.extend(changes.iter().filter(is_left).copied());
    }
    Ok(others)
}
