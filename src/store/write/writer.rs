//! A lane's connection.

use std::sync::Arc;

use sqlx::PgConnection;
use tokio::time::Instant;

use super::fence::{self, Position};
use super::{rows, write_patches};
use crate::domain::{Change, Repaired};
use crate::store::Error;
use crate::store::connections::{Connector, Counted};
use crate::store::touched::Touched;

/// A connection for writes, of one lane alone.
#[derive(Debug)]
pub struct Writer {
    connector: Arc<Connector>,
    touched: Touched,
    /// `None` until it is needed, and after it broke.
    connection: Option<Counted>,
    /// Where the lane writes down how far it is; `None` where nothing is written again.
    position: Option<Position>,
}

/// A write that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The number of this attempt in the lane's position, if it may be in nevertheless.
    pub attempt: Option<i64>,
}

/// What came of changes that were written.
#[derive(Clone, Debug, Default)]
pub struct Written(Vec<(usize, Repaired)>);

impl Written {
    /// What came of the change at this place, where it is a repair.
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
    /// `of_spool`: the number of the spool and of this lane.
    pub(in crate::store) fn new(
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

    /// Writes changes, those of a group in their order; committed when this returns. Nobody else
    /// in this process writes changes of the same groups meanwhile.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away: any of the changes may or may not be in,
    /// those that are not patches all or none. The next call makes a new connection where this one
    /// is of no more use, which does not mean that Postgres is done with the old one.
    pub async fn write(
        &mut self,
        changes: &[&Change],
        deadline: Instant,
    ) -> Result<Written, Failed> {
        let is_there = match &mut self.connection {
            Some(connection) => connection.is_there(deadline).await,
            None => true,
        };
        if !is_there && let Some(old) = self.connection.take() {
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
            let others = write_patches(connection, changes).await?;
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
            if error.is_of_connection() {
                self.connection = None;
            }
            let attempt = position.map(|position| position.seq);
            Failed { error, attempt }
        })
    }

    /// Ends the connection; the next write makes a new one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// Leaves the connection in whatever it is in the midst of.
    pub fn abandon(&mut self) {
        self.connection = None;
    }
}
