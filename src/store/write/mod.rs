//! What changes the mirror.
//!
//! A patch of a member who is there and stays what it was needs no look at anything else: such
//! patches are one statement, whatever their number. All other changes are applied by
//! `domain::apply` to the rows they concern, which are locked first.

mod patches;
mod rows;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use super::Error;
use super::connections::{Connector, Counted};
use crate::domain::{Change, Event, Folded, FoldedPatch, fold};

/// Every statement of these files, by name.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    patches::STATEMENTS.iter().chain(rows::STATEMENTS)
}

/// A connection for writes, of one lane alone.
#[derive(Debug)]
pub struct Writer {
    connector: Arc<Connector>,
    /// `None` until it is needed, and after it broke.
    connection: Option<Counted>,
    /// How long one write may take, seen from here.
    patience: Duration,
}

impl Writer {
    pub(super) fn new(connector: Arc<Connector>, patience: Duration) -> Self {
        Self {
            connector,
            connection: None,
            patience,
        }
    }

    /// Writes changes, those of a group in their order; committed when this returns. Nobody else
    /// in this process writes changes of the same groups meanwhile.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away: any of the changes may or may not be in,
    /// those that are not patches all or none. The next call makes a new connection where this one
    /// is of no more use.
    pub async fn write(&mut self, changes: &[&Change], deadline: Instant) -> Result<(), Error> {
        let deadline = deadline.min(Instant::now() + self.patience);
        if self.connection.as_ref().is_some_and(Counted::is_old)
            && let Some(old) = self.connection.take()
        {
            tokio::spawn(old.close());
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.connector.connect(deadline).await?),
        };
        let work = async |connection: &mut PgConnection| write(connection, changes).await;
        let done = connection.run(deadline, work).await;
        if let Err(error) = &done
            && error.is_of_connection()
        {
            self.connection = None;
        }
        done
    }

    /// Ends the connection; the next write makes a new one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

async fn write(connection: &mut PgConnection, changes: &[&Change]) -> Result<(), sqlx::Error> {
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
    if others.is_empty() {
        return Ok(());
    }
    rows::apply_all(connection, &others).await
}
