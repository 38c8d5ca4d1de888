//! An entry of the spool, and its form in a segment. `docs/spool-format.md` describes the form.

use serde::Serialize;
use time::OffsetDateTime;

use crate::domain::{Change, Rejected, Request, from_record, to_record};

/// First bytes of an entry. Records are UTF-8 text, in which 0xFF and 0xFE never stand.
const MARKER: [u8; 4] = [0xff, b'O', b'G', 0xfe];
/// Bytes of an entry before its record.
pub(super) const HEADER: usize = 40;
/// Bytes that count for each entry besides its record.
pub(super) const BYTES_OF_ENTRY: u64 = 128;
/// Entries begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

// Kinds of entries. The numbers lie on disks and never change.
/// First entry of a segment, without a record. Its lane is the format, its number the last accepted one.
pub(super) const BEGIN: u8 = 0;
pub(super) const CHANGE: u8 = 1;
pub(super) const REJECTED: u8 = 2;
pub(super) const REQUEST: u8 = 3;

/// A write to Postgres that may be committed although no answer came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The lane that wrote.
    pub lane: i16,
    /// Number of the write in that lane.
    pub seq: i64,
}

/// An entry that is read from the spool.
pub struct Entry {
    /// Larger than the numbers of all entries before.
    pub number: i64,
    /// The write that may have committed it.
    pub attempt: Option<Attempt>,
    /// Content of the entry.
    pub content: Content,
}

/// Content of an entry.
pub enum Content {
    /// A change to be written to the mirror.
    Change(Change),
    /// A rejected callback to be kept.
    Rejected(Rejected),
}

/// An entry that has no number yet.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub(super) kind: u8,
    /// True for a change that only marks a group.
    pub is_mark: bool,
    pub(super) attempt: Option<Attempt>,
    /// Microseconds since 1970.
    pub(super) received_at: i64,
    pub(super) record: Vec<u8>,
}

impl Draft {
    /// An entry for a change.
    pub fn change(change: &Change, attempt: Option<Attempt>) -> Self {
        Self {
            is_mark: change.event.is_mark(),
            attempt,
            ..Self::new(CHANGE, change.received_at, change)
        }
    }

    /// An entry for a rejected callback.
    pub fn rejected(rejected: &Rejected) -> Self {
        Self::new(REJECTED, rejected.received_at, rejected)
    }

    /// An entry for the forwarding of callbacks, which comes later.
    pub fn request(request: &Request) -> Self {
        Self::new(REQUEST, request.received_at, request)
    }

    fn new(kind: u8, received_at: OffsetDateTime, content: &impl Serialize) -> Self {
        Self {
            kind,
            received_at: micros(received_at),
            record: to_record(content),
            ..Self::default()
        }
    }

    /// Part of SPOOL_MAX_BYTES that the entry uses.
    pub fn usage(&self) -> Usage {
        Usage::of(self.kind, self.record.len())
    }

    /// True for a rejected callback.
    pub fn is_rejected(&self) -> bool {
        self.kind == REJECTED
    }

    /// Appends the entry to `to`. Its place is `offset` in the segment that begins with `segment`.
    pub(super) fn encode(&self, number: i64, segment: i64, offset: u64, to: &mut Vec<u8>) {
        let start = to.len();
        let attempt = self.attempt.unwrap_or_default();
        // The log refuses longer records before.
        let length = u32::try_from(self.record.len()).unwrap_or(u32::MAX);
        to.extend(MARKER);
        to.extend([0; 4]);
        to.extend(length.to_le_bytes());
        to.extend([self.kind, u8::from(self.attempt.is_some())]);
        to.extend(attempt.lane.to_le_bytes());
        for field in [number, attempt.seq, self.received_at] {
            to.extend(field.to_le_bytes());
        }
        to.extend(&self.record);
        let sum = checksum(segment, offset, &to[start..]);
        to[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
        to.resize(to.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// CRC32C of an entry after its first eight bytes. It covers the place too: an entry is sound nowhere else.
fn checksum(segment: i64, offset: u64, entry: &[u8]) -> u32 {
    let place = [segment.to_le_bytes(), offset.to_le_bytes()].concat();
    crc32c::crc32c_append(crc32c::crc32c(&place), &entry[8..])
}

/// Entries and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries.
    pub entries: u64,
    /// Bytes of changes, and of kinds that only newer versions know.
    pub changes: u64,
    /// Bytes of rejected callbacks.
    pub rejected: u64,
}

impl Usage {
    pub(super) fn of(kind: u8, record: usize) -> Self {
        let bytes = record as u64 + BYTES_OF_ENTRY;
        let is_rejected = kind == REJECTED;
        Self {
            entries: 1,
            changes: if is_rejected { 0 } else { bytes },
            rejected: if is_rejected { bytes } else { 0 },
        }
    }

    /// Adds what another entry uses.
    pub fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.changes += other.changes;
        self.rejected += other.rejected;
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.entries -= other.entries.min(self.entries);
        self.changes -= other.changes.min(self.changes);
        self.rejected -= other.rejected.min(self.rejected);
    }
}

/// Header of an entry whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) number: i64,
    pub(super) kind: u8,
    pub(super) received_at: i64,
    pub(super) attempt: Option<Attempt>,
}

impl Header {
    /// Length of an entry without its padding, by its header. `None`: no entry begins here.
    pub(super) fn length(header: &[u8]) -> Option<usize> {
        let record = u32::from_le_bytes(array(header, 8)) as usize;
        (header[..4] == MARKER).then_some(HEADER + record)
    }

    /// Header of a whole entry. `None`: the checksum does not hold.
    pub(super) fn of(entry: &[u8], segment: i64, offset: u64) -> Option<Self> {
        let attempt = Attempt {
            lane: i16::from_le_bytes(array(entry, 14)),
            seq: i64::from_le_bytes(array(entry, 24)),
        };
        let sum = u32::from_le_bytes(array(entry, 4));
        (sum == checksum(segment, offset, entry)).then(|| Self {
            number: i64::from_le_bytes(array(entry, 16)),
            kind: entry[12],
            received_at: i64::from_le_bytes(array(entry, 32)),
            attempt: (entry[13] != 0).then_some(attempt),
        })
    }

    /// The entry with its record.
    ///
    /// # Errors
    /// The entry is not understood, so a newer version wrote it. The text quotes nothing of the record.
    pub(super) fn decode(&self, record: &[u8]) -> Result<Entry, String> {
        let content = match self.kind {
            CHANGE => Content::Change(from_record(record)?),
            REJECTED => Content::Rejected(from_record(record)?),
            REQUEST => return Err("this version forwards no request".into()),
            _ => return Err("the kind is unknown".into()),
        };
        Ok(Entry {
            number: self.number,
            attempt: self.attempt,
            content,
        })
    }
}

/// Microseconds since 1970.
pub(super) fn micros(time: OffsetDateTime) -> i64 {
    // The year 9999 is far from the limit.
    (time.unix_timestamp_nanos() / 1000) as i64
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|place| bytes[at + place])
}
