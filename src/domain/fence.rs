//! The database's state at the begin of a comparison.

use std::str::FromStr;

/// The transactions that had ended at one moment, from Postgres' `pg_current_snapshot()`.
///
/// They put the writes of callbacks and a request to OpenIM in order. A clock cannot: it can be set
/// back.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_had_ended_if_it_is_before_the_first_or_not_running() {
        let fence: Fence = "10:20:10,14".parse().unwrap();
        let had_ended = |xid| fence.has_ended(xid);
        assert!([1, 9, 11, 13, 15, 19].into_iter().all(had_ended));
        assert!(![10, 14, 20, 21, i64::MAX].into_iter().any(had_ended));
        let quiet: Fence = "7:7:".parse().unwrap();
        assert!(quiet.has_ended(6) && !quiet.has_ended(7));
        assert_eq!(quiet.as_str(), "7:7:");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "1", "1:2", "1:2:x", "a:2:", "1:2:3:4"] {
            assert!(text.parse::<Fence>().is_err(), "{text}");
        }
    }
}
