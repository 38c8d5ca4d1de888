//! The folder of a spool: its lock, and its id.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::SpoolError;
use super::segment::NO_FOLLOW;

/// Time limit of the wait for another instance that is about to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// A folder that only this process uses, as long as the value lives.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Locks a folder, and makes it the first time. Blocks.
    pub(super) fn lock(dir: &Path) -> Result<Self, SpoolError> {
        let path = std::path::absolute(dir).map_err(SpoolError::at(dir))?;
        // Others have to pass through the folders above, such as the private Postgres.
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(SpoolError::at(above))?;
        }
        let is_made = match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            made => made.map(|()| true).map_err(SpoolError::at(&path))?,
        };
        if let Some(above) = path.parent().filter(|_| is_made) {
            sync(above).map_err(SpoolError::at(above))?;
        }
        Ok(Self {
            _lock: lock(&path)?,
            path,
        })
    }

    /// Id of the spool, greater than 0. A spool without a sound id gets `new`, or a random one. `new` replaces another
    /// id if nothing waits (`is_empty`).
    pub(super) fn id(
        &self,
        is_new: bool,
        is_empty: bool,
        new: Option<i64>,
    ) -> Result<i64, SpoolError> {
        let path = &self.path.join("spool.id");
        let found = match fs::read(path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(SpoolError::at(path)(error)),
        };
        match found.as_deref().and_then(parse) {
            Some(id) if new.is_none_or(|new| new == id) => return Ok(id),
            Some(_) if is_empty => {}
            Some(_) => return Err(SpoolError::Appeared(self.path.clone())),
            None if found.is_some() || !is_new => tracing::error!(
                path = %path.display(),
                "the spool's number is lost, and it gets a new one: what was being written to the \
                 database when the last process ended may be written again"
            ),
            None => {}
        }
        let id = new.unwrap_or_else(random);
        let making = &self.path.join("spool.id.new");
        fs::write(making, id.to_string())
            .and_then(|()| File::open(making)?.sync_all())
            .map_err(SpoolError::at(making))?;
        fs::rename(making, path).map_err(SpoolError::at(path))?;
        sync(&self.path).map_err(SpoolError::at(&self.path))?;
        Ok(id)
    }
}

fn lock(dir: &Path) -> Result<File, SpoolError> {
    let path = &dir.join("spool.lock");
    let mut options = fs::OpenOptions::new();
    let options = options.custom_flags(NO_FOLLOW).read(true);
    let opened = options.clone().write(true).create(true).open(path);
    // A lock that exists can be taken also if nothing can be written.
    let opened = opened.or_else(|error| {
        let file = options.open(path).ok();
        file.filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))
            .ok_or(error)
    });
    let mut file = opened.map_err(SpoolError::at(path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(error) = file.try_lock() {
        if let TryLockError::Error(error) = error {
            return Err(SpoolError::at(path)(error));
        }
        if Instant::now() >= deadline {
            let pid = io::read_to_string(&file).map_err(SpoolError::at(path))?;
            return Err(SpoolError::InUse(dir.to_owned(), pid.trim().to_owned()));
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
    // Only for the message above: a full disk is no reason not to start.
    let _ = file
        .set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Id of a folder that cannot be used now, or a random one.
pub(super) fn id_of_unusable(dir: &Path) -> i64 {
    let found = fs::read(dir.join("spool.id")).ok();
    found.as_deref().and_then(parse).unwrap_or_else(random)
}

fn parse(found: &[u8]) -> Option<i64> {
    let id = str::from_utf8(found).ok()?.trim().parse().ok()?;
    (id > 0).then_some(id)
}

fn random() -> i64 {
    // The keys of a hasher are random numbers of the system.
    let random = RandomState::new().hash_one(std::process::id());
    (random.cast_signed() & i64::MAX).max(1)
}

/// Makes changes of a folder durable: created, renamed and deleted files.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
