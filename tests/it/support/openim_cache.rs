//! Members that OpenIM's caches hide: those who came in by a request that failed half-way.

use std::collections::{BTreeMap, BTreeSet};

/// Members who are there and not shown.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    hidden: BTreeMap<String, Hidden>,
    /// Users of whom it is kept that they have no row, because somebody has looked for it.
    without_row: BTreeSet<String>,
}

/// Part of a member that is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hidden {
    /// Everything: the ids are those of before.
    All,
    /// The row: the id is among the ids, and counted.
    Row,
}

impl Cache {
    /// In the database, and no cache was emptied for it.
    pub(super) fn hide(&mut self, user: &str) {
        self.hidden.insert(user.to_owned(), Hidden::All);
    }

    /// The ids are read anew. Who has no row in the cache still has none.
    pub(super) fn ids_forgotten(&mut self) {
        let without_row = &self.without_row;
        self.hidden.retain(|user, hidden| {
            *hidden = Hidden::Row;
            without_row.contains(user)
        });
    }

    /// A user's row is read anew.
    pub(super) fn row_forgotten(&mut self, user: &str) {
        self.without_row.remove(user);
        if self.hidden.get(user) == Some(&Hidden::Row) {
            self.hidden.remove(user);
        }
    }

    /// Somebody has looked for the row of one who has none, or of one who is hidden.
    pub(super) fn looked_for_in_vain(&mut self, user: &str) {
        self.without_row.insert(user.to_owned());
    }

    /// The entries of rows that are not there have lived for their 60 s.
    pub(super) fn entries_expire(&mut self) {
        self.without_row.clear();
        self.hidden.retain(|_, hidden| *hidden == Hidden::All);
    }

    pub(super) fn hides_anybody(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// True if the member is among the ids.
    pub(super) fn has_id(&self, user: &str) -> bool {
        self.hidden.get(user) != Some(&Hidden::All)
    }

    /// True if the member is in lists.
    pub(super) fn has_row(&self, user: &str) -> bool {
        !self.hidden.contains_key(user)
    }
}
