//! The end of SQLite's write-ahead log. After a crash SQLite takes from it what is whole, and drops
//! without a word whatever follows: a commit that was under way, or many that were damaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Of the log.
const HEADER: u64 = 32;
/// A page of the file and what is said of it.
const FRAME: u64 = 24 + 4096;
/// A larger log is not copied.
const MOST_COPIED: u64 = 64 << 20;

/// The log as it was found, before SQLite saw it.
pub(super) struct Found {
    bytes: u64,
    /// What SQLite drops is overwritten when the log is used again.
    copy: Option<PathBuf>,
}

impl Found {
    /// Looks at the log, and copies it to `copy` where it is not empty.
    pub(super) fn look(log: &Path, copy: PathBuf) -> Self {
        let bytes = fs::metadata(log).map_or(0, |meta| meta.len());
        let is_copied = 0 < bytes && bytes <= MOST_COPIED && fs::copy(log, &copy).is_ok();
        if !is_copied {
            // Half of one, or an old one.
            let _ = fs::remove_file(&copy);
        }
        Self {
            bytes,
            copy: is_copied.then_some(copy),
        }
    }

    /// Whether there was anything in it.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// How much stands behind the frames that SQLite took, where it could say how many. Where the
    /// header is broken it takes none. A log never holds old frames behind its end, see `journal_size_limit`.
    pub(super) fn lost(&self, frames: Option<u64>) -> Option<u64> {
        let taken = match frames? {
            0 if self.bytes == HEADER => HEADER,
            0 => 0,
            frames => HEADER + frames * FRAME,
        };
        self.bytes.checked_sub(taken).filter(|bytes| *bytes > 0)
    }

    /// How many commits stand in that: none in the one that was under way when the process ended.
    pub(super) fn lost_commits(&self, frames: u64) -> u64 {
        let Some(Ok(log)) = self.copy.as_ref().map(fs::read) else {
            return 0;
        };
        let behind = usize::try_from(HEADER + frames * FRAME).unwrap_or(usize::MAX);
        let Some(lost) = log.get(behind..) else {
            return 0;
        };
        // The log's own mark, which each frame bears too: either place may be what is damaged.
        let marks = [log.get(16..24), lost.get(8..16)];
        let is_commit = |frame: &&[u8]| {
            let is_last_of_one = frame[4..8] != [0; 4];
            is_last_of_one && marks.contains(&frame.get(8..16))
        };
        let frames = lost.chunks_exact(FRAME as usize);
        frames.filter(is_commit).count() as u64
    }

    /// Keeps the copy under this name.
    pub(super) fn keep(self, name: &Path) -> io::Result<()> {
        self.copy.map_or(Ok(()), |copy| fs::rename(copy, name))
    }

    /// Forgets the copy.
    pub(super) fn forget(self) {
        if let Some(copy) = self.copy {
            let _ = fs::remove_file(copy);
        }
    }
}
