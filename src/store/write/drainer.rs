//! The connection that drains a spool. It is the only one of its process that writes changes meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

use super::{Position, Touched, rows, take_lock, write_patches};
use crate::domain::{Change, Rejected};
use crate::store::postgres::{Connector, Counted};
use crate::store::{Error, rejected};

/// Number of the drain among the lanes.
const LANE: i16 = 0;
/// Interval of attempts to take the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Writes the entries of a spool, each once.
#[derive(Debug)]
pub struct Drainer {
    connector: Arc<Connector>,
    touched: Touched,
    /// `None` until [`Drainer::begin`], and after it failed.
    connection: Option<Counted>,
    spool_id: i64,
    /// Positions of the lanes at the begin of the drain.
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

    /// Connects and waits until every earlier session of the spool has ended. The lanes of this process have closed or
    /// dropped their connections before.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away, or if a session does not end.
    pub async fn begin(&mut self, deadline: Instant) -> Result<(), Error> {
        // The last drain failed if there is still a connection.
        self.connection = None;
        let mut made = self.connector.connect(deadline).await?;
        let positions = loop {
            if let Some(all) = take_lock(&mut made, self.spool_id, deadline).await? {
                break all;
            }
            sleep(LOCK_INTERVAL).await;
        };
        self.positions = positions;
        self.connection = Some(made);
        Ok(())
    }

    /// Returns the number of the last committed entry.
    pub fn position(&self) -> i64 {
        self.positions.get(&LANE).copied().unwrap_or(0)
    }

    /// True if an attempt of a lane was committed.
    pub fn is_committed(&self, lane: i16, attempt: i64) -> bool {
        let position = self.positions.get(&lane);
        position.is_some_and(|position| attempt <= *position)
    }

    /// Writes entries in their order, all or none. `seq` is the number of the last one.
    ///
    /// # Errors
    /// [`Error::Transient`]: they may be committed, which [`Drainer::begin`] finds out.
    pub async fn write(
        &mut self,
        changes: &[&Change],
        rejected: &[&Rejected],
        seq: i64,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else {
            return Err(Error::gave_up()); // impossible: `begin` has made it
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

    /// Ends the session, so that the lanes can write again.
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
        let must_retry = match &others[..] {
            [] => false,
            others => rows::apply(&mut transaction, others, None).await?.is_none(),
        };
        if must_retry {
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
