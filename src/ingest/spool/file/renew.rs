//! Another file in the place of one that is done with, or damaged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::super::dir::{self, SpoolDir};
use super::super::verify::Unsound;
use super::{Refused, SpoolFile};

/// An empty file that is not larger is left as it is.
const WORTH_SHRINKING: i64 = 16 << 20;

/// How soon a repair is tried again that could not be done: all is read and written for it.
const REPAIR_PAUSE: Duration = Duration::from_secs(60);

/// How soon a file that is not there is looked for again.
const APPEAR_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no file, and where there is to be one.
#[derive(Debug)]
pub(super) struct Absent {
    path: PathBuf,
    /// The folder's number, where it may have none yet.
    id: Option<i64>,
    why: String,
    not_before: Instant,
    /// Whether the folder has come with a spool of its own, which only a start can take.
    is_anothers: bool,
}

impl Absent {
    pub(super) fn new(path: &Path, id: Option<i64>, why: &dir::Error) -> Self {
        Self {
            path: path.to_path_buf(),
            id,
            why: why.to_string(),
            not_before: Instant::now(),
            is_anothers: false,
        }
    }
}

impl SpoolFile {
    /// Gives the disk back what an empty file still takes of it, or what is left in it though it is
    /// done with: begins with a new one.
    pub(in crate::ingest) fn shrink(&mut self) {
        let is_needed = self.absent.is_some() || self.len() > 0;
        if is_needed || !(self.has_remains || self.is_large().unwrap_or(true)) {
            return;
        }
        let max_bytes = self.bounds.max_bytes();
        let was_told = self.is_told;
        if let Err(error) = self.replace(|dir| dir.begin_anew(max_bytes))
            && !was_told
        {
            self.is_told = true;
            let error = error.to_string();
            tracing::error!(error, "the spool's file cannot be made anew");
        }
    }

    /// Where `unsound` says that the file is damaged: looks at all of it as at the start, so that what
    /// is whole stays, in a new file. Whether that was done; what it was is told.
    pub(in crate::ingest) fn repair(&mut self, unsound: &Unsound) -> bool {
        let now = Instant::now();
        if !unsound.is_damage() || self.no_repair_before.is_some_and(|before| now < before) {
            return false;
        }
        let (max_bytes, done) = (self.bounds.max_bytes(), self.done);
        let repaired = self.replace(|dir| {
            let (file, report) = dir.open_file(max_bytes)?;
            report.tell(dir.path());
            Ok(file)
        });
        match repaired {
            Ok(()) => {
                // What could not be deleted is there again, and must not be written again.
                if self.delete_to(done).is_err() {
                    self.done = done;
                }
                true
            }
            Err(error) => {
                self.no_repair_before = Some(now + REPAIR_PAUSE);
                let (error, why) = (error.to_string(), unsound.to_string());
                tracing::error!(
                    error,
                    why,
                    "the spool is damaged, and cannot be repaired now"
                );
                false
            }
        }
    }

    /// Puts another file in the place of this one, which nobody must have open meanwhile. Where that
    /// fails this one goes on, if it is there still.
    fn replace(
        &mut self,
        other: impl FnOnce(&SpoolDir) -> Result<SpoolFile, dir::Error>,
    ) -> Result<(), dir::Error> {
        let Some(dir) = self.dir.take() else {
            return Ok(()); // cannot be: whoever opens it keeps the folder
        };
        let replaced = Connection::open_in_memory()
            .map_err(dir::sqlite(dir.path()))
            .and_then(|nothing| {
                self.connection = nothing;
                other(&dir)
            });
        let done = match replaced {
            Ok(mut file) => {
                // Whatever the clock says.
                file.last_seq = file.last_seq.max(self.last_seq);
                *self = file;
                Ok(())
            }
            Err(error) => {
                self.has_remains = true;
                match dir.connect(self.bounds) {
                    Ok(connection) => self.connection = connection,
                    // It was deleted, with nothing in it.
                    Err(_) if self.held.rows == 0 => {
                        self.absent = Some(Absent::new(dir.path(), None, &error));
                    }
                    Err(_) => {}
                }
                Err(error)
            }
        };
        self.keep(dir);
        done
    }

    /// Why there never will be a file in this process, where that is so.
    pub(in crate::ingest) fn given_up(&self) -> Option<&str> {
        let absent = self.absent.as_ref().filter(|absent| absent.is_anothers);
        absent.map(|absent| absent.why.as_str())
    }

    /// Where there is no file: makes one, or opens what is there, if that can be done by now.
    ///
    /// # Errors
    /// [`Refused::Unusable`] where there is none still.
    pub(in crate::ingest) fn appear(&mut self) -> Result<(), Refused> {
        match &self.absent {
            Some(absent) if Instant::now() < absent.not_before => {
                Err(Refused::Unusable(absent.why.clone()))
            }
            _ => self.appear_now(),
        }
    }

    /// The same, however short a while after the last attempt.
    ///
    /// # Errors
    /// As [`Self::appear`].
    pub(in crate::ingest) fn appear_now(&mut self) -> Result<(), Refused> {
        let Some(absent) = &mut self.absent else {
            return Ok(());
        };
        if absent.is_anothers {
            return Err(Refused::Unusable(absent.why.clone()));
        }
        absent.not_before = Instant::now() + APPEAR_PAUSE;
        let id = absent.id;
        let dir = match self.dir.take() {
            Some(dir) => Ok(dir),
            None => SpoolDir::lock(&absent.path),
        };
        let opened = dir.and_then(|dir| {
            let opened = dir.open_all(self.bounds.max_bytes(), id);
            self.dir = Some(dir);
            opened
        });
        match opened {
            Ok(opened) => {
                let folder = absent.path.display();
                opened.report.tell(&absent.path);
                tracing::info!(%folder, "the spool can be used now");
                let (dir, last_seq) = (self.dir.take(), self.last_seq);
                *self = opened.file;
                self.dir = dir;
                self.last_seq = self.last_seq.max(last_seq);
                Ok(())
            }
            Err(error) => {
                absent.why = error.to_string();
                if let dir::Error::Appeared { .. } = error {
                    absent.is_anothers = true;
                    // Others may use it.
                    self.dir = None;
                }
                Err(Refused::Unusable(absent.why.clone()))
            }
        }
    }

    fn is_large(&self) -> rusqlite::Result<bool> {
        let pragma = |name| {
            self.connection
                .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
        };
        let size = pragma("page_count")?.saturating_mul(pragma("page_size")?);
        Ok(size > WORTH_SHRINKING)
    }
}
