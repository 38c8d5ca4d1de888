//! Writes changes to the mirror. A [`Writer`] is the connection of a lane.
//!
//! Patches of current members are one statement, see [`patches`]. All other changes are applied by
//! `domain::apply` to stored rows, which are locked first, see [`rows`].

mod drainer;
mod fence;
mod patches;
mod rows;

use std::sync::Arc;

use sqlx::PgConnection;
use tokio::time::Instant;

use self::fence::Position;
use super::Error;
use super::postgres::{Connector, Counted};
use super::touched::Touched;
use crate::domain::{Change, Repaired};

pub use drainer::Drainer;

/// Returns all statements of this folder, with their names.
pub(super) fn statements() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    patches::STATEMENTS
        .iter()
        .chain(rows::STATEMENTS)
        .chain(fence::STATEMENTS)
}

/// The connection of one lane.
#[derive(Debug)]
pub struct Writer {
    connector: Arc<Connector>,
    touched: Touched,
    /// `None` until it is needed, and after it failed.
    connection: Option<Counted>,
    /// Position of the lane. `None` without a spool.
    position: Option<Position>,
}

/// A write that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    /// The error.
    pub error: Error,
    /// Number of the attempt in the lane's position, if it may be committed.
    pub attempt: Option<i64>,
}

/// Result of a write.
#[derive(Clone, Debug, Default)]
pub struct Written(Vec<(usize, Repaired)>);

impl Written {
    /// Returns the result of the change at this place. It is empty unless the change is a repair.
    pub fn repaired(&self, place: usize) -> Repaired {
        let repaired = self.0.iter().find(|(other, _)| *other == place);
        repaired.map_or_else(Repaired::default, |(_, repaired)| *repaired)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let attempt = None;
        Self { error, attempt }
    }
}

impl Writer {
    /// Makes a writer without a connection. `of_spool` has the ids of spool and lane.
    pub(super) fn new(
        connector: Arc<Connector>,
        touched: Touched,
        of_spool: Option<(i64, i16)>,
    ) -> Self {
        Self {
            connector,
            touched,
            connection: None,
            position: of_spool.map(|(spool_id, lane)| Position {
                spool_id,
                lane,
                seq: 0,
            }),
        }
    }

    /// Writes changes, those of a group in their order. They are committed when this returns. No
    /// other writer of this process may write changes of the same groups meanwhile.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away. Each change may or may not be committed;
    /// those that are no patches all or none. The next call makes a new connection if this one
    /// failed. Postgres may still work on the old one then.
    pub async fn write(
        &mut self,
        changes: &[&Change],
        deadline: Instant,
    ) -> Result<Written, Failed> {
        let is_usable = match &mut self.connection {
            Some(connection) => connection.is_usable(deadline).await,
            None => true,
        };
        if !is_usable && let Some(old) = self.connection.take() {
            tokio::spawn(old.close());
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let mut made = self.connector.connect(deadline).await?;
                if let Some(position) = &mut self.position {
                    let positions = fence::share(&mut made, position.spool_id, deadline).await?;
                    let stored = positions.get(&position.lane).copied();
                    position.seq = position.seq.max(stored.unwrap_or(0));
                }
                none.insert(made)
            }
        };
        if let Some(position) = &mut self.position {
            position.seq += 1;
        }
        let position = self.position;
        let work = async |connection: &mut PgConnection| {
            let others = patches::write(connection, changes).await?;
            if others.is_empty() {
                return Ok(vec![]);
            }
            rows::apply_all(connection, &others, position).await
        };
        let done = connection.run(deadline, work).await;
        self.touched.add(changes);
        let place = |written: &Change| {
            let mut changes = changes.iter();
            changes.position(|change| std::ptr::eq(*change, written))
        };
        let done = done.map(|repairs| {
            let repairs = repairs.into_iter();
            Written(
                repairs
                    .filter_map(|(change, repaired)| Some((place(change)?, repaired)))
                    .collect(),
            )
        });
        done.map_err(|error| {
            if error.is_connection_error() {
                self.connection = None;
            }
            let attempt = position.map(|position| position.seq);
            Failed { error, attempt }
        })
    }

    /// Closes the connection. The next write makes a new one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// Drops the connection without waiting for its statement.
    pub fn abandon(&mut self) {
        self.connection = None;
    }
}
