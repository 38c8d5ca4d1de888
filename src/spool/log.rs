//! The log: segments in the order of their numbers. Entries are appended to the last segment, and read and deleted from
//! the first on.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::SpoolError;
use super::entry::{BYTES_OF_ENTRY, Draft, Entry, HEADER, Usage, micros};
use super::folder::sync;
use super::legacy;
use super::segment::{self, FORMAT, NO_FOLLOW, Reader};

/// Bytes of records that are copied at once from the file of an older version.
const BYTES_COPIED: usize = 1 << 20;
/// Limits of the size at which another segment begins.
const MIN_SEGMENT: u64 = 64 << 10;
const MAX_SEGMENT: u64 = 64 << 20;

/// A file of the log.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    first: i64,
    /// Number of the next entry. Numbers of a segment have no gaps.
    next: i64,
    /// End of the last entry that was accepted. Nothing is read behind it.
    end: u64,
    /// Entries that wait.
    usage: Usage,
    is_damaged: bool,
}

/// The segments of a folder. After an error each call can be tried again.
#[derive(Debug, Default)]
pub struct Log {
    dir: PathBuf,
    /// Size at which another segment begins.
    segment_bytes: u64,
    segments: VecDeque<Segment>,
    /// The last segment, if this process made it and its end is known.
    active: Option<File>,
    /// End of the last entry that is done with, in the first segment.
    done: u64,
    /// What waits.
    pub usage: Usage,
    /// Time of receipt of the first entry, in microseconds since 1970.
    pub oldest: Option<i64>,
    /// The last number that was given. The next is larger.
    last: i64,
    /// Number of the last entry that was accepted.
    accepted: i64,
    /// True from a write that found no room until there may be some.
    pub is_disk_full: bool,
}

impl Log {
    /// Takes over the file of an older version, if there is one. Then reads all segments of a folder, and reports
    /// damage, and writes nothing: the disk may be full.
    pub(super) fn open(dir: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        Self::new(dir, u64::MAX).take_legacy()?;
        let mut log = Self::new(dir, max_bytes);
        // The beginning of a segment says where the one before it ends.
        let mut before = None;
        for first in segments(dir)?.into_iter().rev() {
            let reader = Reader::open(dir, first, u64::MAX);
            let mut reader = reader.map_err(SpoolError::at(&segment::path(dir, first)))?;
            let beginning = reader.beginning();
            if let Some((format, _)) = beginning.filter(|(format, _)| *format > FORMAT) {
                return Err(SpoolError::Newer(dir.to_owned(), format));
            }
            log.scan(first, reader, before);
            before = beginning.map(|(_, before)| before);
        }
        if log.usage.entries > 0 {
            let _ = legacy::put_barrier(dir);
        }
        // Numbers stay ahead of the positions in Postgres also in a folder that was restored.
        log.last = log.last.max(micros(OffsetDateTime::now_utc()));
        log.drop_empty_segments();
        Ok(log)
    }

    fn new(dir: &Path, max_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            segment_bytes: (max_bytes / 8).clamp(MIN_SEGMENT, MAX_SEGMENT),
            ..Self::default()
        }
    }

    /// Copies the entries of an older version, with their numbers, and deletes its file. A start that was cut short has
    /// left some of the same segments, which are overwritten.
    fn take_legacy(mut self) -> Result<(), SpoolError> {
        let dir = self.dir.clone();
        let mut copied = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        legacy::take(&dir, |entry| {
            let number = entry.as_ref().map(|(number, _)| *number);
            let is_next = number == Some(first + copied.len() as i64);
            if !is_next || bytes > BYTES_COPIED {
                let written = self.write(first, &copied);
                written.map_err(SpoolError::of_write)?;
                copied.clear();
                (first, bytes) = (number.unwrap_or(0), 0);
            }
            if let Some((_, draft)) = entry {
                bytes += draft.record.len();
                copied.push(draft);
            }
            Ok(())
        })
    }

    /// Adds a segment before the others. No entry of it after `before` was accepted.
    fn scan(&mut self, first: i64, mut reader: Reader, before: Option<i64>) {
        let mut usage = Usage::default();
        let (mut end, mut next) = (reader.end.min(HEADER as u64), first);
        let (mut lost, mut bytes, mut oldest) = (0, 0, None);
        while let Some(found) = reader.next(end) {
            let number = found.header.number;
            if before.is_some_and(|before| number > before) {
                break;
            }
            lost += number - next;
            bytes += found.start - end;
            usage.add(Usage::of(found.header.kind, found.record));
            oldest.get_or_insert(found.header.received_at);
            self.accepted = self.accepted.max(number);
            (end, next) = (found.end, number + 1);
        }
        lost += before.map_or(0, |before| (before + 1 - next).max(0));
        let path = segment::path(&self.dir, first);
        if lost > 0 || bytes > 0 {
            report_damage(&path, lost.cast_unsigned(), bytes);
        }
        let is_torn = before.is_none() && (reader.end > end || (1..HEADER as u64).contains(&end));
        if is_torn {
            tracing::warn!(
                segment = %path.display(),
                bytes = reader.end.saturating_sub(end),
                "the end of the spool is unreadable: a write that was under way when the process \
                 ended, or damage"
            );
        }
        self.oldest = oldest.or(self.oldest);
        self.last = self.last.max(next - 1);
        self.usage.add(usage);
        self.segments.push_front(Segment {
            first,
            next,
            end,
            usage,
            is_damaged: lost > 0 || bytes > 0 || is_torn,
        });
    }

    /// Appends all entries or, with an error, none. The entries are on the disk when this returns. Exception: if the
    /// disk fails, and the process ends before another segment begins, the next start may find entries that were
    /// refused.
    pub fn append(&mut self, drafts: &[Draft]) -> Result<(), SpoolError> {
        let is_long = |draft: &Draft| u32::try_from(draft.record.len()).is_err();
        if drafts.iter().any(is_long) {
            return Err(SpoolError::Full);
        }
        let written = self.write(self.last + 1, drafts);
        let written = written.map_err(SpoolError::of_write);
        self.is_disk_full = matches!(written, Err(SpoolError::DiskFull));
        written
    }

    /// Appends entries with the numbers from `first` on.
    fn write(&mut self, first: i64, drafts: &[Draft]) -> io::Result<()> {
        let Some(oldest) = drafts.first().map(|draft| draft.received_at) else {
            return Ok(());
        };
        if self.usage.entries == 0 {
            legacy::put_barrier(&self.dir)?;
        }
        let is_next = |last: &Segment| last.next == first && last.end < self.segment_bytes;
        let is_next = self.segments.back().is_some_and(is_next);
        let file = match self.active.take().filter(|_| is_next) {
            Some(file) => file,
            None => self.begin_segment(first)?,
        };
        let Some(segment) = self.segments.back_mut() else {
            return Err(io::ErrorKind::NotFound.into()); // cannot be: it has begun
        };
        let mut bytes = match segment.end {
            0 => segment::beginning(segment.first, self.accepted),
            _ => Vec::new(),
        };
        let mut usage = Usage::default();
        for (draft, number) in drafts.iter().zip(first..) {
            let offset = segment.end + bytes.len() as u64;
            draft.encode(number, segment.first, offset, &mut bytes);
            usage.add(draft.usage());
        }
        let written = file.write_all_at(&bytes, segment.end);
        let is_written = written.is_ok();
        if let Err(error) = written.and_then(|()| file.sync_data()) {
            let undone = file.set_len(segment.end).and_then(|()| file.sync_data());
            // After a sync that failed the kernel may have dropped any of the pages, so another segment is begun. Its
            // beginning says that these entries were not accepted.
            if undone.is_ok() && !is_written {
                self.active = Some(file);
            }
            return Err(error);
        }
        segment.end += bytes.len() as u64;
        segment.next = first + drafts.len() as i64;
        segment.usage.add(usage);
        self.usage.add(usage);
        self.accepted = segment.next - 1;
        self.last = self.last.max(self.accepted);
        self.oldest.get_or_insert(oldest);
        self.active = Some(file);
        Ok(())
    }

    /// Begins a segment with this number, and drops those before it that hold nothing.
    fn begin_segment(&mut self, first: i64) -> io::Result<File> {
        let path = segment::path(&self.dir, first);
        let is_same = |last: &mut Segment| last.first == first && last.usage.entries == 0;
        // An earlier process began it, and no entry of it was accepted.
        self.segments.pop_back_if(is_same);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true);
        let file = options.mode(0o600).custom_flags(NO_FOLLOW).open(&path)?;
        if let Err(error) = sync(&self.dir) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.segments.push_back(Segment {
            first,
            next: first,
            ..Segment::default()
        });
        self.drop_empty_segments();
        Ok(file)
    }

    /// The first entries: at least one, and no more than `max_count` or `max_bytes`. They end before an entry that is
    /// not understood, and with their segment. Damaged entries are skipped.
    /// [`SpoolError::Unknown`] is of the first entry only.
    pub fn first(&mut self, max_count: usize, max_bytes: usize) -> Result<Vec<Entry>, SpoolError> {
        let mut batch = Vec::new();
        while batch.is_empty() && self.usage.entries > 0 {
            let mut reader = self.read_first()?;
            let (mut offset, mut bytes) = (self.done, 0);
            while batch.len() < max_count.max(1)
                && let Some(found) = reader.as_mut().and_then(|reader| reader.next(offset))
                && let Some(record) = reader.as_ref().map(|reader| reader.record(&found))
            {
                bytes += record.len() as u64 + BYTES_OF_ENTRY;
                if bytes > max_bytes as u64 && !batch.is_empty() {
                    break;
                }
                match found.header.decode(record) {
                    Ok(entry) => batch.push(entry),
                    Err(why) if batch.is_empty() => {
                        return Err(SpoolError::Unknown(found.header.number, why));
                    }
                    Err(_) => break,
                }
                offset = found.end;
            }
            if batch.is_empty() {
                self.skip_first();
            }
        }
        Ok(batch)
    }

    /// Forgets the entries up to a position of the database, which holds them already.
    /// [`SpoolError::Foreign`]: another folder has the same id, and these entries may not be in it.
    pub fn skip_written(&mut self, position: i64) -> Result<(), SpoolError> {
        if self.usage.entries == 0 {
            // The clock may have been set back, and the folder be a new one.
            self.last = self.last.max(position);
        }
        if position > self.last {
            return Err(SpoolError::Foreign);
        }
        self.delete_to(position)
    }

    /// Forgets all entries up to a number.
    pub fn delete_to(&mut self, number: i64) -> Result<(), SpoolError> {
        while self.usage.entries > 0 {
            if let Some(mut reader) = self.read_first()? {
                while let Some(found) = reader.next(self.done) {
                    if found.header.number > number {
                        self.oldest = Some(found.header.received_at);
                        return Ok(());
                    }
                    let usage = Usage::of(found.header.kind, found.record);
                    self.segments[0].usage.remove(usage);
                    self.usage.remove(usage);
                    self.done = found.end;
                }
            }
            self.skip_first();
        }
        Ok(())
    }

    /// A reader of the first segment. `None`: its file was deleted.
    fn read_first(&self) -> Result<Option<Reader>, SpoolError> {
        let Some(segment) = self.segments.front() else {
            return Ok(None);
        };
        match Reader::open(&self.dir, segment.first, segment.end) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            reader => reader.map(Some).map_err(SpoolError::at(&self.dir)),
        }
    }

    /// Ends the first segment. Entries that were counted in it and are not found are damaged.
    fn skip_first(&mut self) {
        let mut lost = self.usage;
        if let Some(segment) = self.segments.front_mut() {
            lost = std::mem::take(&mut segment.usage);
            if lost.entries > 0 {
                segment.is_damaged = true;
                let path = segment::path(&self.dir, segment.first);
                report_damage(&path, lost.entries, segment.end.saturating_sub(self.done));
            }
            self.done = segment.end;
        }
        self.usage.remove(lost);
        if self.usage.entries == 0 {
            self.oldest = None;
        }
        if self.segments.len() <= 1 {
            // The file may be deleted: nothing is appended to it.
            self.active = self.active.take().filter(|_| lost.entries == 0);
        }
        self.drop_empty_segments();
    }

    /// Deletes first segments in which nothing waits. The last one stays, and damaged ones are renamed.
    fn drop_empty_segments(&mut self) {
        while self.segments.len() > 1
            && let Some(segment) = self.segments.pop_front_if(|first| first.usage.entries == 0)
        {
            let path = segment::path(&self.dir, segment.first);
            let dropped = match segment.is_damaged {
                true => fs::rename(&path, path.with_extension("log.damaged")),
                false => fs::remove_file(&path),
            };
            if let Err(error) = dropped.and_then(|()| sync(&self.dir)) {
                let (path, error) = (path.display().to_string(), error.to_string());
                tracing::warn!(
                    path,
                    error,
                    "a segment of the spool stays, though it is drained"
                );
            }
            self.done = 0;
            self.is_disk_full = false;
        }
    }

    /// Gives the room of an empty log back to the disk. An empty segment stays, with the next number.
    pub fn compact(&mut self) {
        if self.usage.entries > 0 {
            return;
        }
        let is_small = self.segments.iter().all(|segment| segment.end == 0);
        let compacted = match is_small {
            true => Ok(()),
            false => self
                .begin_segment(self.last + 1)
                .map(|file| self.active = Some(file)),
        };
        if let Err(error) = compacted.and_then(|()| legacy::take_barrier_away(&self.dir)) {
            let error = error.to_string();
            tracing::debug!(error, "the spool's files stay as large as they are for now");
        }
    }
}

/// First numbers of the segments in a folder, in order.
pub(super) fn segments(dir: &Path) -> Result<Vec<i64>, SpoolError> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir).map_err(SpoolError::at(dir))? {
        let file = file.map_err(SpoolError::at(dir))?;
        let first = file.file_name().to_str().and_then(segment::first_of_name);
        // A folder or a link is not ours.
        let is_file = file.file_type().is_ok_and(|kind| kind.is_file());
        found.extend(first.filter(|_| is_file));
    }
    found.sort_unstable();
    Ok(found)
}

fn report_damage(segment: &Path, entries: u64, bytes: u64) {
    tracing::error!(
        segment = %segment.display(),
        entries,
        bytes,
        "the spool was damaged: so many entries cannot be read, and are skipped; callbacks that were \
         answered may be lost"
    );
}
