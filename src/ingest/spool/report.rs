//! What was found where a spool was opened or repaired.

use std::path::{Path, PathBuf};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::ingest) struct Report {
    /// How many entries wait.
    pub(in crate::ingest) waiting: u64,
    /// Where a damaged file is now, or a part of one that had no file.
    pub(in crate::ingest) set_aside: Option<PathBuf>,
    /// How many rows of it were read and still wait.
    pub(in crate::ingest) recovered: u64,
    /// How many rows of it were reached, and not read.
    pub(in crate::ingest) unreadable: u64,
    /// How much of the log beside the file SQLite did not take: a commit that was under way when
    /// the process ended, or damage.
    pub(in crate::ingest) lost_tail_bytes: Option<u64>,
    /// How many whole commits stand in that.
    pub(in crate::ingest) lost_commits: u64,
    /// Where it is kept.
    pub(in crate::ingest) tail: Option<PathBuf>,
    /// What is wrong with what was set aside. Quotes nothing of what waits.
    pub(in crate::ingest) why: Option<String>,
}

impl Report {
    /// Tells of what somebody has to know.
    pub(super) fn tell(&self, folder: &Path) {
        let folder = folder.display();
        if let Some(aside) = &self.set_aside {
            tracing::error!(
                %folder,
                set_aside = %aside.display(),
                why = self.why.as_deref().unwrap_or("unknown"),
                recovered = self.recovered,
                unreadable = self.unreadable,
                "the spool was damaged: it is set aside, and what could be read of it is kept; \
                 callbacks that were answered may be lost"
            );
        }
        let Some(bytes) = self.lost_tail_bytes else {
            return;
        };
        let kept = self.tail.as_ref().map(|tail| tail.display().to_string());
        let (kept, commits) = (kept.unwrap_or_default(), self.lost_commits);
        if commits > 0 {
            tracing::error!(
                %folder,
                kept,
                bytes,
                commits,
                "the end of the spool is unreadable, and callbacks that were answered are lost: so \
                 many commits of them"
            );
        } else {
            tracing::warn!(
                %folder,
                kept,
                bytes,
                "the end of the spool is unreadable: a write that was under way when the process \
                 ended, or damage"
            );
        }
    }
}
