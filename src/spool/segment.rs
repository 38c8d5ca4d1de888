//! A segment: a file with entries, of which the first says how the segment begins.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::entry::{self, ALIGNMENT, Attempt, BEGIN, Draft, Header};

/// Version of the form of segments. 1 is the SQLite file of older versions.
pub(super) const FORMAT: u32 = 2;
/// Bytes that are read at once, if an entry does not need more.
const CHUNK: usize = 256 << 10;
/// Bytes of which the disk may lose one part and give back the next.
const BLOCK: usize = 4096;
/// Never through a symbolic link: the service may be root.
pub(super) const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Path of the segment that begins with this number.
pub(super) fn path(dir: &Path, first: i64) -> PathBuf {
    dir.join(format!("{first:020}.log"))
}

/// First number of a segment, by the name of its file.
pub(super) fn first_of_name(name: &str) -> Option<i64> {
    let digits = name.strip_suffix(".log")?;
    let is_number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// Beginning of a segment. The last entry that was accepted before has the number `before`.
pub(super) fn beginning(first: i64, before: i64) -> Vec<u8> {
    let begin = Draft {
        kind: BEGIN,
        attempt: Some(Attempt {
            lane: FORMAT as i16,
            seq: 0,
        }),
        ..Draft::default()
    };
    let mut bytes = Vec::new();
    begin.encode(before, first, 0, &mut bytes);
    bytes
}

/// A sound entry, and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) start: u64,
    /// First byte after the entry and its padding.
    pub(super) end: u64,
    pub(super) record: usize,
}

/// Reads a segment in order. What the disk does not give back is read as zeros, and so is damaged.
pub(super) struct Reader {
    file: File,
    first: i64,
    pub(super) end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Reader {
    /// Opens a segment up to `end`, or to the end of its file.
    pub(super) fn open(dir: &Path, first: i64, end: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(NO_FOLLOW);
        let file = options.open(path(dir, first))?;
        Ok(Self {
            end: end.min(file.metadata()?.len()),
            file,
            first,
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// Format of the segment, and number of the last entry that was accepted before it. `None`: the beginning is
    /// damaged.
    pub(super) fn beginning(&mut self) -> Option<(u32, i64)> {
        let header = self.entry_at(0)?.header;
        let format = u32::try_from(header.attempt?.lane).ok()?;
        (header.kind == BEGIN).then_some((format, header.number))
    }

    /// The first sound entry at `offset` or after it, but for the beginning.
    pub(super) fn next(&mut self, offset: u64) -> Option<Found> {
        let mut offset = offset.max(entry::HEADER as u64);
        while offset < self.end {
            if let Some(found) = self.entry_at(offset) {
                return Some(found);
            }
            offset += ALIGNMENT as u64;
        }
        None
    }

    fn entry_at(&mut self, start: u64) -> Option<Found> {
        let length = Header::length(self.bytes(start, entry::HEADER)?)?;
        let first = self.first;
        Some(Found {
            header: Header::of(self.bytes(start, length)?, first, start)?,
            start,
            end: start + length.next_multiple_of(ALIGNMENT) as u64,
            record: length - entry::HEADER,
        })
    }

    /// Record of the entry that was found last.
    pub(super) fn record(&self, found: &Found) -> &[u8] {
        let start = (found.start - self.window_at) as usize + entry::HEADER;
        &self.window[start..start + found.record]
    }

    /// Some bytes. `None`: the segment ends before their end.
    fn bytes(&mut self, at: u64, length: usize) -> Option<&[u8]> {
        let rest = self.end.saturating_sub(at);
        if rest < length as u64 {
            return None;
        }
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + length as u64 > window_end {
            self.window_at = at;
            let chunk = length.max(CHUNK) as u64;
            self.window.resize(rest.min(chunk) as usize, 0);
            if self.file.read_exact_at(&mut self.window, at).is_err() {
                for (number, block) in self.window.chunks_mut(BLOCK).enumerate() {
                    let at = at + (number * BLOCK) as u64;
                    if self.file.read_exact_at(block, at).is_err() {
                        block.fill(0);
                    }
                }
            }
        }
        let start = (at - self.window_at) as usize;
        Some(&self.window[start..start + length])
    }
}
