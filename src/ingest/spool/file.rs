//! The spool's file: what is in it, and what is appended.

mod read;
mod renew;

use std::path::Path;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::bounds::{Bounds, Held};
use super::dir::{self, SpoolDir};
use super::record::{Entry, EntryRef};
use super::row::{INSERT, Stored, micros};
use super::verify::Unsound;
use renew::Absent;

/// A write to Postgres that may be in although nobody could tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ingest) struct Attempt {
    /// Whose it was.
    pub(in crate::ingest) lane: i16,
    /// Its number in that lane.
    pub(in crate::ingest) seq: i64,
}

/// What waits, in its place.
#[derive(Clone)]
pub(in crate::ingest) struct Spooled {
    /// Larger than that of whatever was appended before.
    pub(in crate::ingest) seq: i64,
    pub(in crate::ingest) entry: Entry,
    pub(in crate::ingest) attempt: Option<Attempt>,
}

/// Why entries were not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As much waits as may.
    #[error("as much waits as may (SPOOL_MAX_BYTES)")]
    Full,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// There is no file, and none can be made.
    #[error("its folder cannot be used: {0}")]
    Unusable(String),
    /// Something else is wrong with the disk, or the file.
    #[error("it cannot be written: {0}")]
    Disk(#[source] Unsound),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            _ => Self::Disk(error.into()),
        }
    }
}

/// The spool's file. Whatever fails, it can be tried again.
#[derive(Debug)]
pub(in crate::ingest) struct SpoolFile {
    connection: Connection,
    bounds: Bounds,
    held: Held,
    oldest: Option<OffsetDateTime>,
    last_seq: i64,
    /// Rows up to here are done with, whether they could be deleted or not: deleting needs room too,
    /// in the log, and the disk may be full.
    done: i64,
    /// Whether some could not be, or the file was to be made anew and could not be.
    has_remains: bool,
    /// Whether it was told that it cannot be made anew.
    is_told: bool,
    /// When a repair may be tried again that could not be done.
    no_repair_before: Option<Instant>,
    /// Where there is none, and the connection leads nowhere. Nothing is held then.
    absent: Option<Absent>,
    /// Its lock; after the connection, which is closed first.
    dir: Option<SpoolDir>,
}

impl SpoolFile {
    /// A file in which `held` is known to be.
    pub(super) fn new(
        connection: Connection,
        bounds: Bounds,
        held: Held,
        oldest: Option<OffsetDateTime>,
        last_seq: i64,
    ) -> Self {
        Self {
            connection,
            bounds,
            held,
            oldest,
            last_seq,
            done: i64::MIN,
            has_remains: false,
            is_told: false,
            no_repair_before: None,
            absent: None,
            dir: None,
        }
    }

    /// No file yet, of a folder that cannot be used now and in which nothing waits; `id` is to be its
    /// number.
    pub(super) fn absent(
        path: &Path,
        dir: Option<SpoolDir>,
        max_bytes: u64,
        id: i64,
        why: &dir::Error,
    ) -> rusqlite::Result<Self> {
        let nothing = Connection::open_in_memory()?;
        let bounds = Bounds::new(max_bytes);
        let mut file = Self::new(nothing, bounds, Held::default(), None, 0);
        file.absent = Some(Absent::new(path, Some(id), why));
        file.dir = dir;
        Ok(file)
    }

    /// Whether there is none.
    pub(in crate::ingest) fn is_absent(&self) -> bool {
        self.absent.is_some()
    }

    /// Keeps the folder locked for as long as the file is used.
    pub(super) fn keep(&mut self, dir: SpoolDir) {
        self.dir = Some(dir);
    }

    /// Has the log that a crash left behind done with, so that its end is not found again.
    pub(super) fn tidy(&self) {
        if let Err(error) = truncate_wal(&self.connection) {
            tracing::debug!(%error, "the spool's log could not be emptied");
        }
    }

    /// Appends all of them or, with an error, none. They are on the disk when this returns. A file that
    /// turns out to be damaged is repaired first, and one that is absent made.
    ///
    /// # Errors
    /// See [`Refused`]. Where the disk failed in the midst of a commit, and the process ends before
    /// the next, they may be found there after all.
    pub(in crate::ingest) fn append(
        &mut self,
        entries: &[(EntryRef<'_>, Option<Attempt>)],
    ) -> Result<(), Refused> {
        self.appear()?;
        match self.try_to_append(entries) {
            Err(Refused::Disk(unsound)) if self.repair(&unsound) => self.try_to_append(entries),
            done => done,
        }
    }

    fn try_to_append(
        &mut self,
        entries: &[(EntryRef<'_>, Option<Attempt>)],
    ) -> Result<(), Refused> {
        let Some((first, _)) = entries.first() else {
            return Ok(());
        };
        let mut held = self.held;
        let mut records = Vec::with_capacity(entries.len());
        for (entry, attempt) in entries {
            // It cannot fail: there are no maps with odd keys in a record.
            let record = entry.encode().map_err(|error| {
                Refused::from(rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
            })?;
            held.add(Some(entry.kind()), record.len() as u64);
            if !self.bounds.admit(&held, entry.kind(), entry.is_mark()) {
                return Err(Refused::Full);
            }
            records.push((*entry, *attempt, record));
        }
        self.roll_back()?;
        let mut seq = self.last_seq;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut insert = transaction.prepare(INSERT)?;
            for (entry, attempt, record) in &records {
                // Numbered here, for the checksum covers the number; SQLite remembers the highest.
                seq = seq.saturating_add(1);
                let stored = Stored {
                    seq,
                    kind: entry.kind().code(),
                    received_at: micros(entry.received_at()),
                    lane: attempt.map(|attempt| i64::from(attempt.lane)),
                    attempt: attempt.map(|attempt| attempt.seq),
                    record,
                };
                insert.execute(stored.values(&stored.checksum()))?;
            }
        }
        transaction.commit()?;
        self.held = held;
        self.last_seq = seq;
        self.oldest.get_or_insert(first.received_at());
        Ok(())
    }

    /// Ends what an earlier call could not: as a rule a transaction ends itself, but where the disk
    /// fails its end can fail too.
    fn roll_back(&self) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() {
            return Ok(());
        }
        self.connection.execute_batch("ROLLBACK")
    }

    /// Whether changes are well below their bound, and what was done with has really made room.
    pub(in crate::ingest) fn has_room(&self) -> bool {
        self.bounds.has_room(&self.held) && !self.has_remains
    }

    /// How many wait.
    pub(in crate::ingest) fn len(&self) -> u64 {
        self.held.rows
    }

    /// What they count against the bound.
    pub(in crate::ingest) fn bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// When the first of them came.
    pub(in crate::ingest) fn oldest(&self) -> Option<OffsetDateTime> {
        self.oldest
    }

    /// The last number that was given; the next is larger.
    pub(in crate::ingest) fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Goes on from a number, where nothing waits.
    pub(in crate::ingest) fn go_on_from(&mut self, seq: i64) {
        self.last_seq = self.last_seq.max(seq);
    }
}

/// Writes all into the file itself, and empties the log beside it.
fn truncate_wal(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

#[cfg(test)]
mod tests;
