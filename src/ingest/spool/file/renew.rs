//! Another file in the place of one that is done with, or damaged.

use std::mem;

use rusqlite::Connection;

use super::super::dir::{self, SpoolDir};
use super::super::report::Report;
use super::SpoolFile;

/// An empty file that is not larger is left as it is.
const WORTH_SHRINKING: i64 = 16 << 20;

impl SpoolFile {
    /// Gives the disk back what an empty file still takes of it, or what is left in it though it is
    /// done with: begins with a new one.
    pub(in crate::ingest) fn shrink(&mut self) {
        if self.len() > 0 || !(self.has_remains || self.is_large().unwrap_or(true)) {
            return;
        }
        let max_bytes = self.bounds.max_bytes();
        let made = self.replace(|dir| dir.begin_anew(max_bytes).map(|file| (file, ())));
        if let Err(error) = made
            && !mem::replace(&mut self.is_told, true)
        {
            let error = error.to_string();
            tracing::error!(error, "the spool's file cannot be made anew");
        }
    }

    /// Looks at all of it as at the start, where it turned out to be damaged: what is whole stays, in
    /// a new file. What was done with may be there again.
    ///
    /// # Errors
    /// When there can be no new file either. Nothing is lost by that, and it can be tried again.
    pub(in crate::ingest) fn repair(&mut self) -> Result<Report, dir::Error> {
        let max_bytes = self.bounds.max_bytes();
        self.replace(|dir| dir.open_file(max_bytes))
    }

    /// Puts another file in the place of this one, which nobody must have open meanwhile. Where that
    /// fails nothing can be appended until it is called again and succeeds.
    fn replace<T: Default>(
        &mut self,
        other: impl FnOnce(&SpoolDir) -> Result<(SpoolFile, T), dir::Error>,
    ) -> Result<T, dir::Error> {
        let Some(dir) = self.dir.take() else {
            return Ok(T::default()); // cannot be: whoever opens it keeps the folder
        };
        let (last_seq, is_told) = (self.last_seq, self.is_told);
        let replaced = Connection::open_in_memory()
            .map_err(|error| dir.sqlite(error))
            .and_then(|nothing| {
                self.connection = nothing;
                self.has_remains = true;
                other(&dir)
            });
        let done = replaced.map(|(mut file, done)| {
            // Whatever the clock says.
            file.last_seq = file.last_seq.max(last_seq);
            *self = file;
            done
        });
        self.is_told = is_told && done.is_err();
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
