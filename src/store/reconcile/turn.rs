//! Who compares: one process at a time, whatever their number.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::store::postgres::Counted;
use crate::store::{Error, Store};

statements! {
    /// Until the session ends. The second half tells the mirrors of one database apart.
    TAKE_TURN = "SELECT pg_try_advisory_lock($1, hashtext(current_schema()))";
    /// A session that was told goodbye takes its time to end.
    END_TURN = "SELECT pg_advisory_unlock($1, hashtext(current_schema()))";
}

/// How long the connection that holds a turn may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is done by one process at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnOf {
    /// To go through all groups.
    Cycle,
    /// To look after those that want a check.
    Checks,
}

impl TurnOf {
    /// Fixed for all versions of this program.
    fn number(self) -> i32 {
        match self {
            Self::Cycle => 726_301,
            Self::Checks => 726_302,
        }
    }
}

/// A turn. It ends when this is dropped, or its connection breaks.
#[derive(Debug)]
pub struct Turn {
    connection: Counted,
    of: TurnOf,
}

impl Turn {
    /// Whether it is still ours.
    pub async fn is_held(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let pinged = self
            .connection
            .run(deadline, async |c| c.ping().await)
            .await;
        pinged.is_ok()
    }

    /// Ends it, so that the next may begin at once.
    pub async fn end(mut self) {
        let unlock = async |connection: &mut PgConnection| {
            sqlx::query(END_TURN)
                .bind(self.of.number())
                .execute(connection)
                .await
        };
        // Where it cannot be told, it ends with the session.
        let _ = self.connection.run(Instant::now() + PATIENCE, unlock).await;
        self.connection.close().await;
    }
}

impl Store {
    /// Takes a turn, on a connection of its own; `None` while another process has it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn take_turn(&self, of: TurnOf) -> Result<Option<Turn>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut connection = self.lease_connector.connect(deadline).await?;
        let take = async |connection: &mut PgConnection| {
            sqlx::query_scalar(TAKE_TURN)
                .bind(of.number())
                .fetch_one(connection)
                .await
        };
        let is_ours: bool = connection.run(deadline, take).await?;
        if is_ours {
            return Ok(Some(Turn { connection, of }));
        }
        connection.close().await;
        Ok(None)
    }
}
