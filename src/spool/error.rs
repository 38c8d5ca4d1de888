//! Errors of the spool.

use std::io;
use std::path::{Path, PathBuf};

use super::segment::FORMAT;

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
