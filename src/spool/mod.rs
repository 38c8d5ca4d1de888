//! Entries on disk that wait while the database is away: a folder with a log of changes and rejected callbacks.
//! `docs/spool-format.md` says what it promises, and the form of its files. All calls block.

mod entry;
mod folder;
mod legacy;
mod log;
mod segment;

use std::io;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use folder::Folder;
use segment::{FORMAT, Reader};

pub use entry::{Attempt, Content, Draft, Entry, Usage};
pub use log::Log;

/// Pause before a folder is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A folder, its lock, and its log.
#[derive(Debug)]
pub struct SpoolFolder {
    path: PathBuf,
    max_bytes: u64,
    /// Id of the spool, which the database knows too. Greater than 0.
    pub id: i64,
    /// `None`: the folder cannot be used yet.
    pub log: Option<Log>,
    folder: Option<Folder>,
    /// Reason for a missing log.
    why: String,
    not_before: Instant,
}

impl SpoolFolder {
    /// Opens a folder. With `may_be_absent`, one that cannot be used and holds nothing is tried again later.
    pub fn open(path: &Path, max_bytes: u64, may_be_absent: bool) -> Result<Self, SpoolError> {
        let mut folder = Self {
            path: path.to_owned(),
            max_bytes,
            id: folder::id_of_unusable(path),
            log: None,
            folder: None,
            why: String::new(),
            not_before: Instant::now(),
        };
        match folder.try_to_open(None) {
            Err(error @ SpoolError::File(..)) if may_be_absent && holds_nothing(path) => {
                folder.why = error.to_string();
                tracing::warn!(
                    error = folder.why,
                    "the spool cannot be used: callbacks are written to the database only, and \
                     refused while it is away; the folder is tried again"
                );
                Ok(folder)
            }
            opened => opened.map(|()| folder),
        }
    }

    fn try_to_open(&mut self, id: Option<i64>) -> Result<(), SpoolError> {
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => Folder::lock(&self.path)?,
        };
        let folder = self.folder.insert(folder);
        let dir = &folder.path;
        let is_new = log::segments(dir)?.is_empty() && legacy::holds_nothing(dir);
        self.id = folder.id(is_new, id.is_some() && holds_nothing(dir), id)?;
        self.log = Some(Log::open(dir, self.max_bytes)?);
        Ok(())
    }

    /// The log. A folder that could not be used is tried again, but not too soon.
    pub fn log(&mut self) -> Result<&mut Log, SpoolError> {
        if Instant::now() >= self.not_before {
            self.appear()?;
        }
        match &mut self.log {
            Some(log) => Ok(log),
            None => Err(SpoolError::Unusable(self.why.clone())),
        }
    }

    /// Tries a folder again that could not be used.
    ///
    /// # Errors
    /// [`SpoolError::Appeared`]: this process never will use the folder.
    pub fn appear(&mut self) -> Result<(), SpoolError> {
        if self.log.is_some() {
            return Ok(());
        }
        self.not_before = Instant::now() + RETRY_INTERVAL;
        match self.try_to_open(Some(self.id)) {
            Ok(()) => tracing::info!(folder = %self.path.display(), "the spool can be used now"),
            Err(error @ SpoolError::Appeared(_)) => {
                // Another process may use it.
                self.folder = None;
                return Err(error);
            }
            Err(error) => self.why = error.to_string(),
        }
        Ok(())
    }
}

/// True if it is known that nothing waits in a folder, or that there is no folder.
fn holds_nothing(dir: &Path) -> bool {
    let is_empty = |first: &i64| {
        let reader = Reader::open(dir, *first, u64::MAX);
        reader.is_ok_and(|mut reader| reader.next(0).is_none())
    };
    match log::segments(dir) {
        Ok(segments) => segments.iter().all(is_empty) && legacy::holds_nothing(dir),
        Err(SpoolError::File(_, error)) => matches!(error.kind(), NotFound | NotADirectory),
        Err(_) => false,
    }
}

/// Reason why the spool cannot be opened, appended to, or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another instance of the program uses the folder. It wrote its process id.
    #[error(
        "the spool in {} is in use by another running instance (pid {pid}); stop that one, or give \
         this one its own SPOOL_DIR",
        .0.display(), pid = .1
    )]
    InUse(PathBuf, String),
    /// A file operation failed.
    #[error("SPOOL_DIR: {}: {error}", .0.display(), error = .1)]
    File(PathBuf, io::Error),
    /// A newer version made the spool in this folder, with this format.
    #[error(
        "SPOOL_DIR: the spool in {} was written by a newer version of this program (format {format}; this \
         version reads format {FORMAT}): start that version, or drain the spool with its `drain`, or \
         give this version another SPOOL_DIR",
        .0.display(), format = .1
    )]
    Newer(PathBuf, u32),
    /// The folder could not be used at the start, and now holds a spool with entries.
    #[error(
        "SPOOL_DIR: {}: the folder has come with a spool of its own, in which something waits; a \
         restart takes it",
        .0.display()
    )]
    Appeared(PathBuf),
    /// SPOOL_MAX_BYTES is reached.
    #[error("as much waits as may (SPOOL_MAX_BYTES)")]
    Full,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// The disk does not take the entries for another reason.
    #[error("it cannot be written: {0}")]
    Disk(io::Error),
    /// The folder could not be used since the start.
    #[error("its folder cannot be used: {0}")]
    Unusable(String),
    /// A newer version wrote the entry of this number.
    #[error(
        "the spool: the entry {0} was written by a newer version of this program and is not \
         understood ({1}); it and all that came after it wait: start that version, or drain the spool \
         with its `drain`"
    )]
    Unknown(i64, String),
    /// The database has positions of numbers that this folder did not give.
    #[error(
        "the spool: the database has numbers that this folder has not given; is its spool.id that \
         of another one? (with spool.id deleted, what waits here is written, perhaps again)"
    )]
    Foreign,
    /// A bug.
    #[error("the spool: the reader panicked")]
    Panicked,
}

impl SpoolError {
    /// Adds the path to an I/O error.
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::File(path, error)
    }

    /// Error of a write.
    pub(super) fn of_write(error: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull,
            _ => Self::Disk(error),
        }
    }
}
