//! What is first, until it is done with.

use rusqlite::{Connection, Rows};

use super::super::bounds::{BYTES_OF_ROW, Held};
use super::super::record::Kind;
use super::super::row::{Stored, columns, of_micros};
use super::super::verify::Unsound;
use super::{SpoolFile, Spooled};

impl SpoolFile {
    /// What waits, from the first on: at least one, and no more than `most_rows` or `most_bytes`, nor
    /// anything that comes after what is not whole or not understood.
    ///
    /// # Errors
    /// Where the first is not; [`SpoolFile::repair`] takes it out of the way. Its number, which may
    /// be any, must not decide what is done with. [`Unsound::Unknown`] where it is whole and of a newer
    /// version: nothing may take that out of the way.
    pub(in crate::ingest) fn first(
        &self,
        most_rows: usize,
        most_bytes: usize,
    ) -> Result<Vec<Spooled>, Unsound> {
        let mut batch: Vec<Spooled> = Vec::new();
        if self.held.rows == 0 {
            return Ok(batch);
        }
        let mut statement = self.connection.prepare(concat!(
            "SELECT ",
            columns!(),
            ", length(record) FROM entries WHERE seq > ?1 ORDER BY seq LIMIT ?2"
        ))?;
        let most_rows = i64::try_from(most_rows.max(1)).unwrap_or(i64::MAX);
        let mut rows = statement.query([self.done, most_rows])?;
        let (mut bytes, mut before) = (0_u64, self.done);
        loop {
            match read_next(&mut rows, before) {
                Ok(Some((spooled, more))) => {
                    bytes += more;
                    if bytes > most_bytes as u64 && !batch.is_empty() {
                        return Ok(batch);
                    }
                    before = spooled.seq;
                    batch.push(spooled);
                }
                Ok(None) if batch.is_empty() => return Err(Unsound::Missing(self.held.rows)),
                Err(unsound) if batch.is_empty() => return Err(unsound),
                _ => return Ok(batch),
            }
        }
    }

    /// Forgets all up to a number. Returns how many.
    ///
    /// # Errors
    /// Where SQLite cannot read; then nothing is forgotten.
    pub(in crate::ingest) fn delete_to(&mut self, seq: i64) -> Result<u64, Unsound> {
        if seq <= self.done || self.held.rows == 0 {
            return Ok(0);
        }
        self.roll_back()?;
        let held = left_after(&self.connection, self.held, self.done, seq)?;
        let oldest = self
            .connection
            .prepare("SELECT received_at FROM entries WHERE seq > ?1 ORDER BY seq LIMIT 1")?
            .query_map([seq], |row| row.get(0))?
            .next()
            .transpose()?;
        let forgotten = self.held.rows - held.rows;
        self.held = held;
        self.oldest = oldest.and_then(of_micros);
        self.done = seq;
        let deleted = self
            .connection
            .execute("DELETE FROM entries WHERE seq <= ?1", [seq]);
        if let Err(error) = deleted {
            self.has_remains = true;
            tracing::debug!(%error, "what is done with stays in the spool's file for now");
        }
        Ok(forgotten)
    }
}

/// The next row, of which the number is larger than `before`, and what it takes.
fn read_next(rows: &mut Rows<'_>, before: i64) -> Result<Option<(Spooled, u64)>, Unsound> {
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let stored = Stored::read(row)?.map_err(|(seq, why)| Unsound::Row(seq, why))?;
    if stored.seq <= before {
        return Err(Unsound::Order);
    }
    let spooled = stored.decode();
    let spooled = spooled.map_err(|(seq, why)| Unsound::Unknown(seq, why))?;
    let record: i64 = row.get(7)?;
    Ok(Some((spooled, record.cast_unsigned() + BYTES_OF_ROW)))
}

/// What is held when all up to a number are deleted.
fn left_after(
    connection: &Connection,
    mut held: Held,
    done: i64,
    seq: i64,
) -> rusqlite::Result<Held> {
    let mut statement = connection.prepare(
        "SELECT kind, count(*), sum(length(record)) FROM entries
          WHERE seq > ?1 AND seq <= ?2 GROUP BY kind",
    )?;
    let mut rows = statement.query([done, seq])?;
    while let Some(row) = rows.next()? {
        let (kind, count): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (count, records) = (count.cast_unsigned(), row.get::<_, i64>(2)?.cast_unsigned());
        let bytes = records.saturating_add(count * BYTES_OF_ROW);
        held.remove(Kind::of_code(kind), count, bytes);
    }
    Ok(held)
}
