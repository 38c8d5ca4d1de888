//! Another file in the place of one that is done with, or damaged.

use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::super::dir::{self, SpoolDir};
use super::super::verify::Unsound;
use super::SpoolFile;

/// An empty file that is not larger is left as it is.
const WORTH_SHRINKING: i64 = 16 << 20;

/// How soon a repair is tried again that could not be done: all is read and written for it.
const REPAIR_PAUSE: Duration = Duration::from_secs(60);

impl SpoolFile {
    /// Gives the disk back what an empty file still takes of it, or what is left in it though it is
    /// done with: begins with a new one.
    pub(in crate::ingest) fn shrink(&mut self) {
        if self.len() > 0 || !(self.has_remains || self.is_large().unwrap_or(true)) {
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
            .map_err(|error| dir.sqlite(error))
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
                if let Ok(connection) = dir.connect(self.bounds) {
                    self.connection = connection;
                }
                Err(error)
            }
        };
        self.keep(dir);
        done
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
