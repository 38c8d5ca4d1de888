//! What can be read of a damaged file goes into a new one, and the damaged one aside.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use time::OffsetDateTime;

use super::row::{INSERT, Stored};
use super::verify::{self, Order, PAGE, Unsound, each_row};

/// Rows of a transaction.
const AT_ONCE: u64 = 1000;

/// What SQLite keeps beside a file.
pub(super) const LOG: &str = "-wal";
pub(super) const JOURNAL: &str = "-journal";
const BESIDE: [&str; 3] = [LOG, "-shm", JOURNAL];

/// The path of a file beside another.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Salvaged {
    pub(super) recovered: u64,
    pub(super) unreadable: u64,
    /// What the copy ended with, where it did not reach the end.
    pub(super) broke_off: Option<String>,
}

/// Copies what can be read of `damaged` to `new`, an empty file: from the first row until one that
/// cannot be reached, and from the last back to that.
///
/// # Errors
/// Where `new` cannot be written, so that nothing may take its place.
pub(super) fn copy(damaged: &Path, new: &Connection) -> rusqlite::Result<Salvaged> {
    let mut salvaged = Salvaged::default();
    match try_to_copy(damaged, new, &mut salvaged) {
        Ok(()) => {}
        Err(Unsound::New(error)) => return Err(error),
        Err(error) => salvaged.broke_off = Some(error.to_string()),
    }
    // The last rows.
    if !new.is_autocommit() {
        new.execute_batch("COMMIT")?;
    }
    // What is really there, whatever failed.
    salvaged.recovered = new
        .query_row("SELECT count(*) FROM entries", [], |row| {
            row.get::<_, i64>(0)
        })
        .unwrap_or_default()
        .cast_unsigned();
    Ok(salvaged)
}

/// Makes a copy of a damaged file with the first page of a sound one, on which all others depend and
/// which is the same in every spool but for the number of pages.
pub(super) fn with_sound_head(damaged: &Path, sound: &Path, copy: &Path) -> io::Result<()> {
    let mut head = vec![0; PAGE as usize];
    File::open(sound)?.read_exact(&mut head)?;
    delete(copy)?;
    fs::copy(damaged, copy)?;
    if beside(damaged, LOG).exists() {
        fs::copy(beside(damaged, LOG), beside(copy, LOG))?;
    }
    let file = OpenOptions::new().write(true).open(copy)?;
    let pages = u32::try_from(file.metadata()?.len() / PAGE).unwrap_or(u32::MAX);
    // "With a log", and how many pages there are.
    head[18..20].copy_from_slice(&[2, 2]);
    head[28..32].copy_from_slice(&pages.to_be_bytes());
    file.write_all_at(&head, 0)
}

fn try_to_copy(damaged: &Path, new: &Connection, salvaged: &mut Salvaged) -> Result<(), Unsound> {
    let damaged = verify::connect_to_damaged(damaged)?;
    let mut insert = new.prepare(INSERT).map_err(Unsound::New)?;
    let mut done = 0_u64;
    let mut last = i64::MIN;
    let mut take = |salvaged: &mut Salvaged, stored: Result<Stored<'_>, _>| {
        // What is whole is kept, be it understood or not: a newer version understands it.
        let Ok(stored) = stored else {
            salvaged.unreadable += 1;
            return Ok(());
        };
        if done.is_multiple_of(AT_ONCE) {
            if !new.is_autocommit() {
                new.execute_batch("COMMIT").map_err(Unsound::New)?;
            }
            new.execute_batch("BEGIN").map_err(Unsound::New)?;
        }
        done += 1;
        insert
            .execute(stored.values(&stored.checksum()))
            .map_err(Unsound::New)?;
        Ok::<_, Unsound>(())
    };
    let Err(error) = each_row(&damaged, Order::Ascending, |seq, stored| {
        // The number of a row that is not whole can be any.
        if stored.is_ok() {
            last = seq;
        }
        take(salvaged, stored)
    }) else {
        return Ok(());
    };
    if matches!(error, Unsound::New(_)) {
        return Err(error);
    }
    let mut is_met = false;
    let from_the_end = each_row(&damaged, Order::Descending, |seq, stored| {
        if stored.is_ok() && seq <= last {
            is_met = true;
            return Err(Unsound::Order); // only to end it
        }
        take(salvaged, stored)
    });
    match from_the_end {
        // All rows are there, or those between are not.
        Ok(()) => Err(error),
        Err(_) if is_met => Err(error),
        Err(other) => Err(other),
    }
}

/// A name under which a damaged file is kept, chosen when it is first needed.
pub(super) struct Aside {
    dir: PathBuf,
    name: Option<PathBuf>,
}

impl Aside {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            name: None,
        }
    }

    /// That of the file; those beside it follow from it.
    pub(super) fn name(&mut self) -> PathBuf {
        let dir = &self.dir;
        self.name.get_or_insert_with(|| free_name(dir)).clone()
    }

    /// The log of a file, as it was found.
    pub(super) fn name_of_log(&mut self) -> PathBuf {
        beside(&self.name(), "-wal-tail")
    }

    /// Renames a file and those beside it. The file goes first: as long as it is in its place, what
    /// is beside it must be too.
    pub(super) fn put(&mut self, file: &Path) -> io::Result<PathBuf> {
        let name = self.name();
        rename(file, &name)?;
        for suffix in BESIDE {
            rename(&beside(file, suffix), &beside(&name, suffix))?;
        }
        Ok(name)
    }
}

/// Whether it is there does not matter.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Deletes a file and those beside it, where they are there.
pub(super) fn delete(file: &Path) -> io::Result<()> {
    let beside = BESIDE.map(|suffix| beside(file, suffix));
    for path in beside.iter().map(PathBuf::as_path).chain([file]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn free_name(dir: &Path) -> PathBuf {
    let now = OffsetDateTime::now_utc();
    let (date, time) = (now.date(), now.time());
    let stamp = format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    let name = |number: u64| match number {
        0 => dir.join(format!("spool.damaged-{stamp}.sqlite")),
        number => dir.join(format!("spool.damaged-{stamp}-{number}.sqlite")),
    };
    let is_free = |name: &PathBuf| {
        let suffixes = BESIDE.iter().chain(&["", "-wal-tail"]);
        suffixes.into_iter().all(|suffix| {
            // Also a link that leads nowhere.
            fs::symlink_metadata(beside(name, suffix)).is_err()
        })
    };
    (0..).map(name).find(is_free).unwrap_or_else(|| name(0))
}
