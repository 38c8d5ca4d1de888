//! What had been written when a comparison began.

use std::str::FromStr;

/// The transactions of the database that had ended at one moment, as Postgres' `pg_current_snapshot()`
/// tells them. They order what callbacks wrote against what OpenIM was asked: a clock, which can be set
/// back, does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    text: String,
    /// Every transaction before this one had ended.
    first: i64,
    /// No transaction from this one on had begun to write.
    next: i64,
    /// Those between the two that had not ended, in their order.
    under_way: Vec<i64>,
}

/// The text is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a snapshot of transactions")]
pub struct FenceError;

impl FromStr for Fence {
    type Err = FenceError;

    fn from_str(text: &str) -> Result<Self, FenceError> {
        let number = |text: &str| text.parse().map_err(|_| FenceError);
        let mut parts = text.split(':');
        let (Some(first), Some(next), Some(under_way), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FenceError);
        };
        let under_way = under_way.split(',').filter(|number| !number.is_empty());
        let mut under_way: Vec<i64> = under_way.map(number).collect::<Result<_, _>>()?;
        under_way.sort_unstable();
        Ok(Self {
            first: number(first)?,
            next: number(next)?,
            under_way,
            text: text.to_owned(),
        })
    }
}

impl Fence {
    /// Whether a transaction had ended.
    pub fn has(&self, xid: i64) -> bool {
        xid < self.first || (xid < self.next && self.under_way.binary_search(&xid).is_err())
    }

    /// As Postgres wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_ended_is_before_the_first_or_not_among_those_under_way() {
        let fence: Fence = "10:20:10,14".parse().unwrap();
        let had_ended = |xid| fence.has(xid);
        assert!([1, 9, 11, 13, 15, 19].into_iter().all(had_ended));
        assert!(![10, 14, 20, 21, i64::MAX].into_iter().any(had_ended));
        let quiet: Fence = "7:7:".parse().unwrap();
        assert!(quiet.has(6) && !quiet.has(7));
        assert_eq!(quiet.as_str(), "7:7:");
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "1", "1:2", "1:2:x", "a:2:", "1:2:3:4"] {
            assert_eq!(text.parse::<Fence>(), Err(FenceError), "{text}");
        }
    }
}
