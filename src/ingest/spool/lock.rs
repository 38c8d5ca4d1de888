//! One process uses a folder, and it has an id.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::dir::{self, Error, at};

/// How long another instance that is just ending is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// Never through a symbolic link: we may be root.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Locks a folder for as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, Error> {
    let path = &dir.join("spool.lock");
    let opened = fs::OpenOptions::new()
        .custom_flags(NO_FOLLOW)
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    // Where nothing can be written, one that is there can be locked all the same.
    let opened = opened.or_else(|error| {
        let mut reading = fs::OpenOptions::new();
        let reading = reading.custom_flags(NO_FOLLOW).read(true).open(path);
        reading
            .ok()
            .filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))
            .ok_or(error)
    });
    let mut file = opened.map_err(at(path))?;
    if !lock_within(&file, PATIENCE).map_err(at(path))? {
        let mut pid = String::new();
        file.read_to_string(&mut pid).map_err(at(path))?;
        return Err(Error::InUse {
            dir: dir.to_path_buf(),
            pid: pid.trim().to_owned(),
        });
    }
    // Only for the message above: a disk that is full is no reason not to start.
    let _ = file
        .set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Takes the lock, waiting up to `patience`; false when somebody else keeps it.
fn lock_within(file: &File, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// The id of a folder's spool; `new`, or one by chance, where there is none or none that makes sense.
/// What waits under a lost one (`has_file`) is written all the same. `new` takes the place of another
/// where nothing waits (`is_empty`).
pub(super) fn id(
    dir: &Path,
    has_file: bool,
    is_empty: bool,
    new: Option<i64>,
) -> Result<i64, Error> {
    let path = &dir.join("spool.id");
    let found = match fs::read(path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at(path)(error)),
    };
    match found.as_deref().and_then(parse) {
        Some(id) if new.is_none_or(|new| new == id) => return Ok(id),
        Some(_) if is_empty => {}
        Some(_) => {
            return Err(Error::Appeared {
                dir: dir.to_path_buf(),
            });
        }
        None if found.is_some() || has_file => tracing::error!(
            path = %path.display(),
            "the spool's number is lost, and it gets a new one: what was being written to the \
             database when the last process ended may be written again"
        ),
        None => {}
    }
    let id = match new {
        Some(id) => id,
        None => random().map_err(dir::sqlite(path))?,
    };
    let making = &dir.join("spool.id.new");
    fs::write(making, id.to_string())
        .and_then(|()| File::open(making)?.sync_all())
        .map_err(at(making))?;
    fs::rename(making, path).map_err(at(path))?;
    sync(dir)?;
    Ok(id)
}

fn parse(found: &[u8]) -> Option<i64> {
    let id = str::from_utf8(found).ok()?.trim().parse().ok()?;
    (id > 0).then_some(id)
}

/// The id of a folder that cannot be used now, if it can be read; else one by chance.
pub(super) fn id_of_unusable(dir: &Path) -> rusqlite::Result<i64> {
    let found = fs::read(dir.join("spool.id")).ok();
    found.as_deref().and_then(parse).map_or_else(random, Ok)
}

fn random() -> rusqlite::Result<i64> {
    let random: i64 =
        Connection::open_in_memory()?.query_row("SELECT random()", [], |row| row.get(0))?;
    Ok((random & i64::MAX).max(1))
}

/// Makes what was renamed in a folder last.
pub(super) fn sync(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(at(dir))
}
