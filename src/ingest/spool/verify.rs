//! The form of the file, and whether what is in it is whole.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use time::OffsetDateTime;

use super::bounds::{Bounds, Held};
use super::file::SpoolFile;
use super::record::Kind;
use super::row::{Stored, columns, micros, of_micros};

/// "ogms", so that `file` and others can tell what it is.
const APPLICATION: i64 = 0x6f67_6d73;
/// Of the table and of the records. A format to come, whatever it is made of, keeps a file of this name
/// with a higher number, so that earlier versions stop at it.
pub(super) const FORMAT: i64 = 1;
/// Formats are counted one by one; a number beyond this is a flipped bit.
const LAST_FORMAT: i64 = 99;
pub(super) const PAGE: u64 = 4096;

/// SQLite keeps this text, and [`check_form`] compares it.
const TABLE: &str = "CREATE TABLE entries (seq INTEGER PRIMARY KEY AUTOINCREMENT, \
     kind INTEGER NOT NULL, received_at INTEGER NOT NULL, lane INTEGER, attempt INTEGER, \
     record BLOB NOT NULL, checksum BLOB NOT NULL)";

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// SQLite cannot read or write it.
    #[error("SQLite says: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// It is something else.
    #[error("it is not a spool of format {FORMAT}")]
    OtherFormat,
    /// Of a version to come.
    #[error("it is a spool of format {0}, of a newer version of this program")]
    Newer(i64),
    /// The row of this number is what was written, by a version to come.
    #[error(
        "the entry {0} was written by a newer version of this program and is not understood ({1}); it \
         and all that came after it wait: start that version, or drain the spool with its `drain`"
    )]
    Unknown(i64, String),
    /// SQLite's own check finds something.
    #[error("its check says: {0}")]
    Check(String),
    /// The row of this number is not what was written.
    #[error("the row {0} cannot be read: {1}")]
    Row(i64, String),
    /// The rows have other numbers than they had.
    #[error("its rows are out of order")]
    Order,
    /// So many rows are not there any more.
    #[error("{0} rows are not found any more")]
    Missing(u64),
    /// Of the file that is to take its place.
    #[error("the new file cannot be written: {0}")]
    New(rusqlite::Error),
}

/// What the disk says of a part that it does not give back.
const UNREADABLE: [i32; 4] = [
    ffi::SQLITE_IOERR_READ,
    ffi::SQLITE_IOERR_SHORT_READ,
    ffi::SQLITE_IOERR_DATA,
    ffi::SQLITE_IOERR_CORRUPTFS,
];

impl Unsound {
    /// Whether it says something of the file. A disk that is full or takes nothing, too many open
    /// files, or somebody who looks into it are no reason to put it aside: it can be opened later.
    pub(super) fn is_damage(&self) -> bool {
        let error = match self {
            Unsound::Sqlite(error) => error,
            Unsound::New(_) | Unsound::Newer(_) | Unsound::Unknown(..) => return false,
            Unsound::OtherFormat
            | Unsound::Check(_)
            | Unsound::Row(..)
            | Unsound::Order
            | Unsound::Missing(_) => return true,
        };
        let extended = error.sqlite_error().map(|error| error.extended_code);
        if extended.is_some_and(|code| UNREADABLE.contains(&code)) {
            return true;
        }
        !matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::CannotOpen
                    | ErrorCode::OutOfMemory
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::FileLockingProtocolFailed
                    | ErrorCode::PermissionDenied
                    | ErrorCode::ReadOnly
                    | ErrorCode::OperationInterrupted
            )
        )
    }
}

/// Who may have a file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Others may look into it meanwhile.
    Shared,
    /// Nobody else. What connections share is a file that needs room too; this has none.
    Alone,
}

fn connect(path: &Path, flags: OpenFlags, sharing: Sharing) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::ZERO)?; // the folder is locked
    if sharing == Sharing::Alone {
        // Before anything is read.
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE")?;
    }
    // macOS' fsync leaves what is written in the disk's own memory, unless it is asked for more.
    connection.execute_batch(
        "PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY; \
         PRAGMA synchronous = FULL; PRAGMA fullfsync = ON",
    )?;
    Ok(connection)
}

/// Opens a file for use.
pub(super) fn connect_to(
    path: &Path,
    bounds: Bounds,
    sharing: Sharing,
) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::empty(), sharing)?;
    // A log is cut to what is in it when it begins anew: nothing old ever stands behind its end.
    connection.execute_batch(&format!(
        "PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = 0; \
         PRAGMA max_page_count = {}",
        bounds.pages(PAGE).clamp(1, u64::from(u32::MAX - 1))
    ))?;
    Ok(connection)
}

/// Opens a file of which nothing is known.
pub(super) fn connect_to_damaged(path: &Path) -> rusqlite::Result<Connection> {
    // Cells are not checked at once: what is whole on a page is read, and every row has a checksum.
    let connection = connect(path, OpenFlags::empty(), Sharing::Shared)?;
    // So that SQLite opens one that is shorter than it should be, too.
    connection.execute_batch("PRAGMA writable_schema = ON")?;
    Ok(connection)
}

/// Makes an empty file. It has no log beside it until it is opened, so it can be renamed alone.
pub(super) fn create(path: &Path) -> rusqlite::Result<Connection> {
    // With the mode of this one SQLite makes those beside it.
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    // SQLite says better what is wrong.
    drop(made);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE, Sharing::Shared)?;
    connection.execute_batch(&format!(
        "PRAGMA page_size = {PAGE}; BEGIN; PRAGMA application_id = {APPLICATION}; \
         PRAGMA user_version = {FORMAT}; {TABLE}; COMMIT"
    ))?;
    Ok(connection)
}

/// Whether nothing waits in a file beside which there is no log. Writes nothing, and needs no right to.
///
/// # Errors
/// Where that cannot be told.
pub(super) fn is_empty(path: &Path) -> Result<bool, Unsound> {
    let path = path.to_str().ok_or(Unsound::OtherFormat)?;
    let escaped = path.replace('%', "%25").replace('?', "%3f");
    let name = format!("file:{}?immutable=1", escaped.replace('#', "%23"));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(name, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    check_form(&connection)?;
    let mut rows = 0;
    each_row(&connection, Order::Ascending, |_, _| {
        rows += 1;
        Ok(())
    })?;
    Ok(rows == 0)
}

/// Opens a file, where all of it is whole. `frames` is set to the number of frames that SQLite
/// found in the log beside it, as soon as that is known.
///
/// # Errors
/// See [`Unsound`].
pub(super) fn open(
    path: &Path,
    max_bytes: u64,
    frames: &mut Option<u64>,
) -> Result<SpoolFile, Unsound> {
    let bounds = Bounds::new(max_bytes);
    match open_as(Sharing::Shared, path, bounds, frames) {
        // The disk may be full.
        Err(unsound @ Unsound::Sqlite(_)) if !unsound.is_damage() => {
            open_as(Sharing::Alone, path, bounds, frames)
        }
        opened => opened,
    }
}

fn open_as(
    sharing: Sharing,
    path: &Path,
    bounds: Bounds,
    frames: &mut Option<u64>,
) -> Result<SpoolFile, Unsound> {
    let connection = connect_to(path, bounds, sharing)?;
    check_form(&connection)?;
    // On a full disk it fails, and nothing is wrong with the file.
    let found = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        row.get::<_, i64>(1)
    });
    *frames = found
        .ok()
        .map(|found| u64::try_from(found).unwrap_or_default()); // -1 without a log
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Unsound::OtherFormat);
    }

    let mut held = Held::default();
    let mut oldest = None;
    let mut last = 0;
    each_row(&connection, Order::Ascending, |seq, stored| {
        let stored = stored.map_err(|(seq, why)| Unsound::Row(seq, why))?;
        if held.rows == 0 {
            oldest = of_micros(stored.received_at);
        }
        // One that is not understood waits as any, until the drain comes to it.
        held.add(Kind::of_code(stored.kind), stored.record.len() as u64);
        last = seq;
        Ok(())
    })?;
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(Unsound::Check(check));
    }
    let last = first_free(&connection, last);
    Ok(SpoolFile::new(connection, bounds, held, oldest, last))
}

/// Numbers go on from the highest that was ever given and, in any case, from the current time in
/// microseconds. So they stay ahead of those that Postgres has seen also when the folder is an
/// older copy that was restored, or the file a new one.
fn first_free(connection: &Connection, last: i64) -> i64 {
    let given = connection
        .query_row(
            "SELECT seq FROM sqlite_sequence WHERE name = 'entries'",
            [],
            |row| row.get::<_, i64>(0),
        )
        .unwrap_or_default();
    // This number has no checksum; a flipped bit could leave none for the future.
    let given = if given > i64::MAX / 2 { 0 } else { given };
    let first = given.max(last).max(micros(OffsetDateTime::now_utc()));
    // What is appended raises it too, so a full disk does no harm.
    let raised = connection
        .execute(
            "UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'entries'",
            [first],
        )
        .and_then(|rows| match rows {
            0 => connection.execute(
                "INSERT INTO sqlite_sequence VALUES ('entries', ?1)",
                [first],
            ),
            rows => Ok(rows),
        });
    if let Err(error) = raised {
        tracing::debug!(%error, "the spool's next number is not written yet");
    }
    first
}

fn check_form(connection: &Connection) -> Result<(), Unsound> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let format = pragma("user_version")?;
    if pragma("application_id")? == APPLICATION && (FORMAT + 1..=LAST_FORMAT).contains(&format) {
        return Err(Unsound::Newer(format));
    }
    let table: (i64, Option<String>) = connection.query_row(
        "SELECT count(*), max(sql) FILTER (WHERE name = 'entries') FROM sqlite_schema",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // Besides ours there is that in which SQLite keeps the highest number.
    let is_ours = table.0 == 2
        && table.1.as_deref() == Some(TABLE)
        && pragma("application_id")? == APPLICATION
        && format == FORMAT
        && pragma("page_size")?.cast_unsigned() == PAGE;
    if is_ours {
        Ok(())
    } else {
        Err(Unsound::OtherFormat)
    }
}

/// From which end rows are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// Reads rows one by one until there are no more or `take` has had enough.
///
/// # Errors
/// Those of `take` and of SQLite. Rows out of order too: a damaged tree can lead in a circle.
pub(super) fn each_row(
    connection: &Connection,
    order: Order,
    mut take: impl FnMut(i64, Result<Stored<'_>, (i64, String)>) -> Result<(), Unsound>,
) -> Result<(), Unsound> {
    let mut statement = connection.prepare(match order {
        Order::Ascending => concat!("SELECT ", columns!(), " FROM entries ORDER BY seq"),
        Order::Descending => concat!("SELECT ", columns!(), " FROM entries ORDER BY seq DESC"),
    })?;
    let mut rows = statement.query([])?;
    let mut before = None;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        let is_in_order = before.is_none_or(|before| match order {
            Order::Ascending => before < seq,
            Order::Descending => before > seq,
        });
        if !is_in_order {
            return Err(Unsound::Order);
        }
        before = Some(seq);
        take(seq, Stored::read(row)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_does_not_give_back_is_damage_and_one_that_takes_nothing_is_not() {
        let is_damage = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            Unsound::from(error).is_damage()
        };
        assert!(is_damage(ffi::SQLITE_IOERR_READ));
        assert!(is_damage(ffi::SQLITE_CORRUPT));
        assert!(is_damage(ffi::SQLITE_NOTADB));
        assert!(!is_damage(ffi::SQLITE_IOERR_WRITE));
        assert!(!is_damage(ffi::SQLITE_IOERR_FSYNC));
        assert!(!is_damage(ffi::SQLITE_FULL));
        assert!(!is_damage(ffi::SQLITE_CANTOPEN));
        assert!(!Unsound::Newer(2).is_damage());
        assert!(!Unsound::Unknown(1, String::new()).is_damage());
    }
}
