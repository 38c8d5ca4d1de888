//! The SQLite file of older versions (format 1).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, Row};
use sha2::{Digest, Sha256};

use super::SpoolError;
use super::entry::{Attempt, Draft};
use super::folder::sync;
use super::segment::FORMAT;

const NAME: &str = "spool.sqlite";
/// The file that a repair has made, and not yet renamed.
const REPAIRED: &str = "spool.ready.sqlite";
/// Files beside it.
const BESIDE: [&str; 4] = [
    "spool.sqlite-wal",
    "spool.sqlite-journal",
    "spool.sqlite-shm",
    REPAIRED,
];
/// An empty database with format 2. Older versions stop at a folder that holds it, and do not pass over segments that
/// they do not know.
const BARRIER: &[u8] = include_bytes!("barrier.sqlite");

/// Gives the entries of the file to `take`, each with its number, `None` at the end, and then deletes the file. Entries
/// that cannot be read are skipped and reported, and the file is kept under another name.
pub(super) fn take(
    dir: &Path,
    mut take: impl FnMut(Option<(i64, Draft)>) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    let path = &dir.join(NAME);
    if !path.exists() {
        // A repair was cut short before its last step.
        let _ = fs::rename(dir.join(REPAIRED), path);
    }
    if is_absent_or_barrier(path) {
        return Ok(());
    }
    if let Some(format) = newer_format(path) {
        return Err(SpoolError::Newer(dir.to_owned(), format));
    }
    let (mut last, mut lost, mut refused) = (i64::MIN, 0, Ok(()));
    let read = each(path, |row| {
        match entry(row) {
            Ok((number, draft)) if number > last => {
                last = number;
                refused = take(Some((number, draft)));
            }
            _ => lost += 1,
        }
        refused.is_ok()
    });
    refused?;
    take(None)?;
    let why = match read {
        Err(error) if !is_damage(&error) => {
            return Err(SpoolError::at(path)(io::Error::other(error)));
        }
        read => read.err().map(|error| error.to_string()),
    };
    if lost > 0 || why.is_some() {
        let kept = dir.join("spool.damaged.sqlite");
        tracing::error!(
            kept = %kept.display(),
            entries = lost,
            why,
            "the spool was damaged: so many entries cannot be read, and perhaps others; callbacks \
             that were answered may be lost"
        );
        let _ = fs::copy(path, kept);
    }
    for path in BESIDE.map(|name| dir.join(name)).iter().chain([path]) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(SpoolError::at(path)(error));
        }
    }
    sync(dir).map_err(SpoolError::at(dir))
}

/// True if it is known that no entry of an older version waits.
pub(super) fn holds_nothing(dir: &Path) -> bool {
    let path = &dir.join(NAME);
    let is_empty = |name: &str| fs::metadata(dir.join(name)).map_or(true, |meta| meta.len() == 0);
    let has_no_row = || {
        let mut rows = 0;
        let read = each(path, |_| {
            rows += 1;
            false
        });
        read.is_ok() && rows == 0
    };
    BESIDE.into_iter().all(is_empty)
        && (is_absent_or_barrier(path) || newer_format(path).is_none() && has_no_row())
}

/// Makes older versions stop at this folder, in which entries are to wait.
pub(super) fn put_barrier(dir: &Path) -> io::Result<()> {
    let path = dir.join(NAME);
    let mut options = OpenOptions::new();
    let mut file = match options.write(true).create_new(true).mode(0o600).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    };
    let written = file.write_all(BARRIER).and_then(|()| file.sync_all());
    written.and_then(|()| sync(dir)).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Lets older versions use this folder again, in which nothing waits.
pub(super) fn take_barrier_away(dir: &Path) -> io::Result<()> {
    let path = dir.join(NAME);
    match is_absent_or_barrier(&path) && path.exists() {
        true => fs::remove_file(path).and_then(|()| sync(dir)),
        false => Ok(()),
    }
}

/// True if there is no file with entries: one is larger.
fn is_absent_or_barrier(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |meta| meta.len() <= BARRIER.len() as u64)
}

fn newer_format(path: &Path) -> Option<u32> {
    let mut header = [0; 100];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    let format = u32::from_be_bytes([header[60], header[61], header[62], header[63]]);
    // Formats are counted one by one: a large number is a flipped bit.
    let is_newer = (FORMAT + 1..100).contains(&format);
    (is_newer && header[68..72] == *b"ogms").then_some(format)
}

/// Reads rows in their order until `take` returns false.
fn each(path: &Path, mut take: impl FnMut(&Row<'_>) -> bool) -> rusqlite::Result<()> {
    let connection = if path.with_extension("sqlite-wal").exists() {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?
    } else {
        // Without a log, reading needs neither a right to write nor room.
        let name = path.to_string_lossy().replace('%', "%25");
        let name = name.replace('?', "%3f").replace('#', "%23");
        let name = format!("file:{name}?immutable=1");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(name, flags)?
    };
    // SQLite shares the index of the log in a file, unless nobody else has the database open.
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA writable_schema = ON")?;
    let mut statement = connection.prepare(
        "SELECT seq, kind, received_at, lane, attempt, record, checksum FROM entries ORDER BY seq",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if !take(row) {
            break;
        }
    }
    Ok(())
}

/// An entry whose checksum holds.
fn entry(row: &Row<'_>) -> rusqlite::Result<(i64, Draft)> {
    let [seq, kind, received_at] = [row.get(0)?, row.get(1)?, row.get(2)?];
    let (lane, attempt): (Option<i64>, Option<i64>) = (row.get(3)?, row.get(4)?);
    let record: Vec<u8> = row.get(5)?;
    let mut digest = Sha256::new();
    for number in [seq, kind, received_at] {
        digest.update(i64::to_be_bytes(number));
    }
    for number in [lane, attempt] {
        digest.update([u8::from(number.is_some())]);
        digest.update(number.unwrap_or_default().to_be_bytes());
    }
    digest.update(&record);
    if digest.finalize()[..8] != row.get::<_, Vec<u8>>(6)? {
        return Err(rusqlite::Error::InvalidQuery);
    }
    let lane = lane.and_then(|lane| i16::try_from(lane).ok());
    let draft = Draft {
        // A kind that no version has is not understood.
        kind: u8::try_from(kind).unwrap_or(u8::MAX),
        attempt: lane.zip(attempt).map(|(lane, seq)| Attempt { lane, seq }),
        received_at,
        record,
        ..Draft::default()
    };
    Ok((seq, draft))
}

/// True if the error is about the content of the file, not about the disk or another process.
fn is_damage(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
    let code = error.sqlite_error_code();
    code.is_none_or(|code| matches!(code, DatabaseCorrupt | NotADatabase | Unknown))
}
