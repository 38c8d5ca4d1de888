//! The spool's folder: whose it is, and a file in it that can be used, whatever was found.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::bounds::Bounds;
use super::file::SpoolFile;
use super::report::Report;
use super::salvage::{self, Aside, JOURNAL, LOG, beside};
use super::verify::{FORMAT, Sharing, Unsound};
use super::wal::Found;
use super::{lock, verify};

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another instance of the program runs on the same folder.
    #[error(
        "the spool in {} is in use by another running instance (pid {pid}); stop that one, or give this one its own SPOOL_DIR",
        dir.display()
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The other instance's process id, as it wrote it.
        pid: String,
    },
    /// A file operation failed.
    #[error("SPOOL_DIR: {}: {error}", path.display())]
    File {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No file can be made, or one that was just made cannot be used. What was there before is
    /// there still.
    #[error("SPOOL_DIR: {}: {error}", path.display())]
    Sqlite {
        /// What was touched.
        path: PathBuf,
        /// What SQLite said.
        error: rusqlite::Error,
    },
    /// A newer version made the file.
    #[error(
        "SPOOL_DIR: the spool in {} was written by a newer version of this program (format {format}; \
         this version reads format {FORMAT}): start that version, or drain the spool with its `drain`, \
         or give this version another SPOOL_DIR",
        dir.display()
    )]
    Newer {
        /// The folder.
        dir: PathBuf,
        /// Of the file.
        format: i64,
    },
    /// The folder could not be used at the start, and now something waits in it.
    #[error(
        "SPOOL_DIR: {}: the folder has come with a spool of its own, in which something waits; a restart takes it",
        dir.display()
    )]
    Appeared {
        /// The folder.
        dir: PathBuf,
    },
    /// The file cannot be opened, which says nothing of what is in it.
    #[error("SPOOL_DIR: {}: the file cannot be opened: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Names the path in an I/O error, which by itself does not.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::File {
        path: path.to_path_buf(),
        error,
    }
}

/// Names the path in an error of SQLite.
pub(super) fn sqlite(path: &Path) -> impl FnOnce(rusqlite::Error) -> Error {
    move |error| Error::Sqlite {
        path: path.to_path_buf(),
        error,
    }
}

impl Error {
    /// Whether the folder can be used once somebody has made room or given a right.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::File { .. } | Self::Sqlite { .. } | Self::Unusable { .. } => true,
            Self::InUse { .. } | Self::Newer { .. } | Self::Appeared { .. } => false,
        }
    }
}

/// Whether it is known that nothing waits in a folder, be it that there is none.
pub(super) fn holds_nothing(dir: &Path) -> bool {
    let length = |path: &Path| match fs::symlink_metadata(path) {
        Ok(meta) => Some(meta.len()),
        Err(error) => {
            use io::ErrorKind::{NotADirectory, NotFound};
            matches!(error.kind(), NotFound | NotADirectory).then_some(0)
        }
    };
    let path = &dir.join("spool.sqlite");
    let ready = &dir.join("spool.ready.sqlite");
    let others = [ready, &beside(path, LOG), &beside(path, JOURNAL)];
    let are_none = others.into_iter().all(|other| length(other) == Some(0));
    are_none && (length(path) == Some(0) || verify::is_empty(path).unwrap_or(false))
}

/// A folder that this process uses alone, for as long as the value lives.
#[derive(Debug)]
pub(in crate::ingest) struct SpoolDir {
    path: PathBuf,
    _lock: File,
}

/// A spool that is ready.
#[derive(Debug)]
pub(in crate::ingest) struct Opened {
    /// It keeps the folder locked.
    pub(in crate::ingest) file: SpoolFile,
    /// Of the folder, for good; greater than 0.
    pub(in crate::ingest) id: i64,
    pub(in crate::ingest) report: Report,
}

impl SpoolDir {
    /// Opens the spool in `dir`, making it the first time. All of it is read; what is damaged goes
    /// aside, and what can be read of it into a new file. Blocks.
    ///
    /// # Errors
    /// See [`Error`]: only where there cannot be a file at all.
    pub(in crate::ingest) fn open(dir: &Path, max_bytes: u64) -> Result<Opened, Error> {
        let dir = Self::lock(dir)?;
        let mut opened = dir.open_all(max_bytes, None)?;
        opened.file.keep(dir);
        Ok(opened)
    }

    /// Locks the folder, and makes it the first time. Blocks.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn lock(dir: &Path) -> Result<Self, Error> {
        let path = std::path::absolute(dir).map_err(at(dir))?;
        // Others have to pass through those above, such as the private Postgres.
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(at(above))?;
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => path.parent().map_or(Ok(()), lock::sync)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&path)(error)),
        }
        Ok(Self {
            _lock: lock::lock(&path)?,
            path,
        })
    }

    /// Opens what is in the folder; `id` is its number where it has none. The file does not keep the
    /// folder locked yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn open_all(&self, max_bytes: u64, id: Option<i64>) -> Result<Opened, Error> {
        let has_file = fs::symlink_metadata(self.path.join("spool.sqlite")).is_ok();
        let is_empty = id.is_some() && holds_nothing(&self.path);
        let id = lock::id(&self.path, has_file, is_empty, id)?;
        let (file, mut report) = self.open_file(max_bytes)?;
        report.waiting = file.len();
        Ok(Opened { file, id, report })
    }

    /// Throws the file away, of which nothing is needed any more and which nobody has open, and makes
    /// a new one.
    pub(super) fn begin_anew(&self, max_bytes: u64) -> Result<SpoolFile, Error> {
        let path = &self.path.join("spool.sqlite");
        let ready = &self.path.join("spool.ready.sqlite");
        salvage::delete(path).map_err(at(path))?;
        self.make(ready, None)?;
        self.install(ready, path)?;
        let opened = verify::open(path, max_bytes, &mut None);
        opened.map_err(|unsound| self.unusable(path, &unsound))
    }

    fn unusable(&self, path: &Path, unsound: &Unsound) -> Error {
        match unsound {
            Unsound::Newer(format) => Error::Newer {
                dir: self.path.clone(),
                format: *format,
            },
            unsound => Error::Unusable {
                path: path.to_path_buf(),
                why: unsound.to_string(),
            },
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Connects to the file as it is.
    pub(super) fn connect(&self, bounds: Bounds) -> rusqlite::Result<Connection> {
        verify::connect_to(&self.path.join("spool.sqlite"), bounds, Sharing::Shared)
    }

    /// Opens the file as it is found, with a report of that. Nobody has it open.
    pub(super) fn open_file(&self, max_bytes: u64) -> Result<(SpoolFile, Report), Error> {
        let path = &self.path.join("spool.sqlite");
        let ready = &self.path.join("spool.ready.sqlite");
        let mut report = Report::default();
        let mut aside = Aside::new(&self.path);
        if fs::symlink_metadata(path).is_err() {
            self.set_up(path, ready, &mut aside, &mut report)?;
        }

        let log = Found::look(&beside(path, LOG), self.path.join("spool.log-copy"));
        let mut frames = None;
        let opened = verify::open(path, max_bytes, &mut frames);
        report.lost_tail_bytes = report.lost_tail_bytes.or(log.lost(frames));
        let file = match opened {
            Ok(file) => {
                if !log.is_empty() {
                    file.tidy();
                }
                // Of a repair that was cut short before it took the place of anything.
                salvage::delete(ready).map_err(at(ready))?;
                Ok(file)
            }
            Err(unsound) if path.is_file() && !unsound.is_damage() => Err(unsound),
            Err(unsound) => {
                report.why = Some(unsound.to_string());
                self.replace(path, ready, &mut aside, &mut report)?;
                verify::open(path, max_bytes, &mut None)
            }
        };
        if report.lost_tail_bytes.is_some() {
            report.lost_commits += frames.map_or(0, |frames| log.lost_commits(frames));
            // For whoever looks into it; nothing depends on it.
            let tail = aside.name_of_log();
            match log.keep(&tail) {
                Ok(()) => report.tail = Some(tail),
                Err(error) => tracing::debug!(%error, "the spool's log could not be kept"),
            }
        } else {
            log.forget();
        }
        let file = file.map_err(|unsound| self.unusable(path, &unsound))?;
        Ok((file, report))
    }

    /// Puts a file where there is none: the first time, or when a repair was cut short between its
    /// two last steps.
    fn set_up(
        &self,
        path: &Path,
        ready: &Path,
        aside: &mut Aside,
        report: &mut Report,
    ) -> Result<(), Error> {
        let log = fs::metadata(beside(path, LOG)).map_or(0, |meta| meta.len());
        if log > 0 {
            report.set_aside = Some(aside.name());
            report.lost_tail_bytes = Some(log);
            report.why = Some("there was no file to this log".into());
        }
        // A new file must not be taken together with the log of another.
        aside.put(path).map_err(at(path))?;
        if fs::symlink_metadata(ready).is_err() {
            self.make(ready, None)?;
        } else {
            report.why = Some("an earlier repair was cut short; it is done now".into());
        }
        self.install(ready, path)
    }

    /// Replaces a damaged file by a new one with what can be read of it. The new one is complete
    /// before the other goes, so a process that ends in between loses nothing.
    fn replace(
        &self,
        path: &Path,
        ready: &Path,
        aside: &mut Aside,
        report: &mut Report,
    ) -> Result<(), Error> {
        let salvaged = self.make(ready, Some(path))?;
        report.recovered = salvaged.recovered;
        report.unreadable = salvaged.unreadable;
        if let (Some(why), Some(broke_off)) = (&mut report.why, salvaged.broke_off) {
            why.push_str("; reading it broke off: ");
            why.push_str(&broke_off);
        }
        report.set_aside = Some(aside.put(path).map_err(at(path))?);
        self.install(ready, path)
    }

    /// Makes the file `ready`, with what can be read of another. It has that name only when it is
    /// complete.
    fn make(&self, ready: &Path, damaged: Option<&Path>) -> Result<salvage::Salvaged, Error> {
        let making = &self.path.join("spool.making.sqlite");
        salvage::delete(making).map_err(at(making))?;
        salvage::delete(ready).map_err(at(ready))?;
        let copy = || {
            let new = verify::create(making)?;
            let salvaged = damaged.map(|damaged| self.salvage(damaged, making, &new));
            let salvaged = salvaged.transpose()?;
            new.close().map_err(|(_, error)| error)?;
            Ok(salvaged)
        };
        let salvaged = copy().map_err(|error| {
            // The disk may be full of it.
            let _ = salvage::delete(making);
            sqlite(making)(error)
        })?;
        fs::rename(making, ready).map_err(at(making))?;
        lock::sync(&self.path)?;
        Ok(salvaged.unwrap_or_default())
    }

    /// What can be read of a file, if need be with another head.
    fn salvage(
        &self,
        damaged: &Path,
        making: &Path,
        new: &Connection,
    ) -> rusqlite::Result<salvage::Salvaged> {
        let salvaged = salvage::copy(damaged, new)?;
        if salvaged.recovered > 0 || salvaged.broke_off.is_none() {
            return Ok(salvaged);
        }
        let copy = &self.path.join("spool.head.sqlite");
        let again = salvage::with_sound_head(damaged, making, copy)
            .ok()
            .map(|()| salvage::copy(copy, new));
        // It is of no more use, or never was.
        let _ = salvage::delete(copy);
        again.unwrap_or(Ok(salvaged))
    }

    fn install(&self, ready: &Path, path: &Path) -> Result<(), Error> {
        fs::rename(ready, path).map_err(at(ready))?;
        lock::sync(&self.path)
    }
}

#[cfg(test)]
mod tests;
