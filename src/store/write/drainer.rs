//! The connection that drains a spool: the only one of its process that writes changes meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

use super::fence::{self, Position};
use super::{rows, write_patches};
use crate::domain::{Change, Rejected};
use crate::store::Error;
use crate::store::connections::{Connector, Counted};
use crate::store::rejected;
use crate::store::touched::Touched;

/// The drain's own lane.
const LANE: i16 = 0;
/// Between two looks whether earlier sessions are over.
const LOOK: Duration = Duration::from_millis(20);

/// Writes what waits in a spool, each entry once.
#[derive(Debug)]
pub struct Drainer {
    connector: Arc<Connector>,
    touched: Touched,
    /// `None` until [`Drainer::begin`], and after it broke.
    connection: Option<Counted>,
    spool_id: i64,
    /// How far each lane had come when the connection was made.
    positions: HashMap<i16, i64>,
}

impl Drainer {
    pub(in crate::store) fn new(
        connector: Arc<Connector>,
        touched: Touched,
        spool_id: i64,
    ) -> Self {
        Self {
            connector,
            touched,
            connection: None,
            spool_id,
            positions: HashMap::new(),
        }
    }

    /// Connects, and waits until every earlier session of this spool is over. The lanes of this
    /// process have closed theirs, or given up on them.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away, or such a session does not end.
    pub async fn begin(&mut self, deadline: Instant) -> Result<(), Error> {
        // One that is left is in the midst of something.
        self.connection = None;
        let mut made = self.connector.connect(deadline).await?;
        let positions = loop {
            if let Some(all) = fence::take_alone(&mut made, self.spool_id, deadline).await? {
                break all;
            }
            sleep(LOOK).await;
        };
        self.positions = positions;
        self.connection = Some(made);
        Ok(())
    }

    /// The number of the last entry that is in.
    pub fn position(&self) -> i64 {
        self.positions.get(&LANE).copied().unwrap_or(0)
    }

    /// Whether an attempt of a lane that nobody saw the end of came to a good end.
    pub fn is_in(&self, lane: i16, attempt: i64) -> bool {
        let position = self.positions.get(&lane);
        position.is_some_and(|position| attempt <= *position)
    }

    /// Writes entries in their order, the last of which has the number `seq`; all or none.
    ///
    /// # Errors
    /// [`Error::Transient`]: they may be in nevertheless, which [`Drainer::begin`] finds out.
    pub async fn write(
        &mut self,
        changes: &[&Change],
        rejected: &[&Rejected],
        seq: i64,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else {
            return Err(Error::gave_up()); // cannot be: who drains has begun
        };
        let position = Position {
            spool_id: self.spool_id,
            lane: LANE,
            seq,
        };
        let work = async |connection: &mut PgConnection| {
            write(connection, changes, rejected, position).await
        };
        let done = connection.run(deadline, work).await;
        self.touched.add(changes);
        done?;
        self.positions.insert(LANE, seq);
        Ok(())
    }

    /// Ends the session, so that lanes may write again.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

async fn write(
    connection: &mut PgConnection,
    changes: &[&Change],
    rejected: &[&Rejected],
    position: Position,
) -> Result<(), sqlx::Error> {
    loop {
        let mut transaction = connection.begin().await?;
        let others = write_patches(&mut transaction, changes).await?;
        let is_anew = match &others[..] {
            [] => false,
            others => rows::apply(&mut transaction, others, None).await?.is_none(),
        };
        if is_anew {
            transaction.rollback().await?;
            continue;
        }
        for rejected in rejected {
            rejected::insert(&mut transaction, rejected).await?;
        }
        position.advance(&mut transaction).await?;
        return transaction.commit().await;
    }
}
