//! A row of the spool: how it is read, and how it is known to be what was written.

use rusqlite::Row;
use rusqlite::types::ValueRef;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::file::{Attempt, Spooled};
use super::record::{Entry, Kind};

/// In the order in which [`Stored::read`] expects them.
macro_rules! columns {
    () => {
        "seq, kind, received_at, lane, attempt, record, checksum"
    };
}
pub(super) use columns;

/// With [`Stored::values`].
pub(super) const INSERT: &str = concat!(
    "INSERT INTO entries (",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
);

/// A row as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) seq: i64,
    pub(super) kind: i64,
    /// Microseconds since the epoch.
    pub(super) received_at: i64,
    pub(super) lane: Option<i64>,
    pub(super) attempt: Option<i64>,
    pub(super) record: &'a [u8],
}

/// What stands in a row. The other is its number and what is wrong with it, which quotes nothing of it.
pub(super) type Read<T> = Result<T, (i64, String)>;

impl<'a> Stored<'a> {
    /// SQLite's pages have no checksum: without one of ours a flipped bit would be taken for data.
    pub(super) fn checksum(&self) -> [u8; 8] {
        let mut digest = Sha256::new();
        for number in [self.seq, self.kind, self.received_at] {
            digest.update(number.to_be_bytes());
        }
        for number in [self.lane, self.attempt] {
            digest.update([u8::from(number.is_some())]);
            digest.update(number.unwrap_or_default().to_be_bytes());
        }
        digest.update(self.record);
        let digest: [u8; 32] = digest.finalize().into();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        first
    }

    /// For [`INSERT`].
    pub(super) fn values(&self, checksum: &'a [u8; 8]) -> impl rusqlite::Params {
        (
            self.seq,
            self.kind,
            self.received_at,
            self.lane,
            self.attempt,
            self.record,
            checksum.as_slice(),
        )
    }

    /// The row as it was written.
    ///
    /// # Errors
    /// SQLite's own only; a row that is not as it was written is the other side of [`Read`].
    pub(super) fn read(row: &'a Row<'_>) -> rusqlite::Result<Read<Self>> {
        let seq: i64 = row.get(0)?;
        let integer = |column| -> rusqlite::Result<Option<Option<i64>>> {
            Ok(match row.get_ref(column)? {
                ValueRef::Integer(number) => Some(Some(number)),
                ValueRef::Null => Some(None),
                _ => None,
            })
        };
        let (kind, received_at) = (integer(1)?.flatten(), integer(2)?.flatten());
        let (lane, attempt) = (integer(3)?, integer(4)?);
        let (record, checksum) = (row.get_ref(5)?, row.get_ref(6)?);
        let (
            Some(kind),
            Some(received_at),
            Some(lane),
            Some(attempt),
            ValueRef::Blob(record),
            ValueRef::Blob(checksum),
        ) = (kind, received_at, lane, attempt, record, checksum)
        else {
            return Ok(Err((seq, "a column is of the wrong type".into())));
        };
        let stored = Self {
            seq,
            kind,
            received_at,
            lane,
            attempt,
            record,
        };
        if stored.checksum() != checksum {
            return Ok(Err((seq, "the checksum is wrong".into())));
        }
        Ok(Ok(stored))
    }

    /// What it says. A record that is whole and not understood is of a newer version.
    pub(super) fn decode(&self) -> Read<Spooled> {
        let bad = |what: String| (self.seq, what);
        let kind = Kind::of_code(self.kind).ok_or_else(|| bad("the kind is unknown".into()))?;
        let entry = Entry::decode(kind, self.record).map_err(|error| {
            // Its text may quote what it found.
            let (class, column) = (error.classify(), error.column());
            bad(format!("{class:?} at column {column}"))
        })?;
        let attempt = match (self.lane, self.attempt) {
            (None, None) => None,
            (Some(lane), Some(seq)) => {
                let lane = i16::try_from(lane).map_err(|_| bad("the lane is none".into()))?;
                Some(Attempt { lane, seq })
            }
            _ => return Err(bad("half an attempt".into())),
        };
        Ok(Spooled {
            seq: self.seq,
            entry,
            attempt,
        })
    }
}

/// Microseconds since the epoch.
pub(super) fn micros(time: OffsetDateTime) -> i64 {
    // Even the year 9999 is far from the end.
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

pub(super) fn of_micros(micros: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()
}
