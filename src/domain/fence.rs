//! The database's state at the begin of a comparison.

use std::str::FromStr;

/// The transactions that had ended at one moment, from Postgres' `pg_current_snapshot()`.
///
/// They put the writes of callbacks and a request to OpenIM in order. A clock cannot: it can be set back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    text: String,
    /// First transaction that may still run. All earlier ones had ended.
    first: i64,
    /// First transaction that had not begun to write.
    next: i64,
    /// Transactions between the two that still ran, in ascending order.
    running: Vec<i64>,
}

impl FromStr for Fence {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let unknown = "expected a snapshot of transactions";
        let number = |text: &str| text.parse().map_err(|_| unknown);
        let mut parts = text.split(':');
        let (Some(first), Some(next), Some(running), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown);
        };
        let running = running.split(',').filter(|number| !number.is_empty());
        let mut running: Vec<i64> = running.map(number).collect::<Result<_, _>>()?;
        running.sort_unstable();
        Ok(Self {
            first: number(first)?,
            next: number(next)?,
            running,
            text: text.to_owned(),
        })
    }
}

impl Fence {
    /// True if a transaction had ended.
    pub fn has_ended(&self, xid: i64) -> bool {
        xid < self.first || (xid < self.next && self.running.binary_search(&xid).is_err())
    }

    /// Returns Postgres' text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}
