//! The log of a spool: what is appended comes back, whatever happens to its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use openim_group_mirror::domain::{
    Change, Event, GroupId, GroupProfile, MarkReason, Raw, Rejected, Request, Text,
};
use openim_group_mirror::spool::{Attempt, Content, Draft, Entry, Log, SpoolError, SpoolFolder};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rusqlite::Connection;
use tempfile::TempDir;
use time::OffsetDateTime;

const MAX: u64 = 64 << 20;
const ATTEMPT: Attempt = Attempt { lane: 3, seq: 77 };
/// Bytes of an entry before its record, and of the beginning of a segment.
const HEADER: usize = 40;

fn at(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap()
}

fn change(event: Event) -> Change {
    let group = GroupId::parse("g".into()).unwrap();
    Change::new(group, at(1_790_000_000_000_000), event)
}

/// A change of about so many bytes.
fn profile(name: &str, bytes: usize) -> Change {
    change(Event::SetProfile(GroupProfile {
        name: Some(Text::parse(name.into())),
        introduction: Some(Text::parse("x".repeat(bytes))),
        ..GroupProfile::default()
    }))
}

fn mark() -> Change {
    change(Event::Mark(MarkReason::CallbackLost))
}

fn rejected(body: usize) -> Rejected {
    Rejected {
        received_at: at(1_790_000_000_000_000),
        path: "/openim/callback".into(),
        operation_id: None,
        code: "bad_json".into(),
        detail: "at 1:1".into(),
        body: vec![7; body].into(),
        body_bytes: body as u64,
    }
}

fn draft(change: &Change) -> Draft {
    Draft::change(change, None)
}

/// The number of an entry, and what is appended under it.
fn shown(number: usize) -> (Draft, String) {
    let attempt = number.is_multiple_of(3).then_some(ATTEMPT);
    let (draft, content) = match number % 10 {
        0 => {
            let rejected = rejected(number * 3);
            (Draft::rejected(&rejected), Content::Rejected(rejected))
        }
        1 => (Draft::change(&mark(), attempt), Content::Change(mark())),
        name => {
            let bytes = if name == 2 { 6000 } else { number };
            let change = profile(&number.to_string(), bytes);
            (Draft::change(&change, attempt), Content::Change(change))
        }
    };
    let attempt = attempt.filter(|_| matches!(content, Content::Change(_)));
    (draft, text(&content, attempt))
}

fn text(content: &Content, attempt: Option<Attempt>) -> String {
    match content {
        Content::Change(change) => format!("{change:?} {attempt:?}"),
        Content::Rejected(rejected) => {
            let Rejected {
                code,
                body,
                body_bytes,
                ..
            } = rejected;
            format!("{code} {body:?} {body_bytes} {attempt:?}")
        }
    }
}

fn open(dir: &Path, max_bytes: u64) -> SpoolFolder {
    SpoolFolder::open(dir, max_bytes, false).unwrap()
}

/// Reads all that waits, and deletes it as the drain does.
fn drained(log: &mut Log) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let batch = log.first(7, 1 << 20).unwrap();
        let Some(last) = batch.last() else {
            assert_eq!(log.usage, Default::default());
            assert_eq!(log.oldest, None);
            return all;
        };
        log.delete_to(last.number).unwrap();
        all.extend(batch);
    }
}

fn numbers(log: &mut Log) -> Vec<i64> {
    let batch = log.first(1000, usize::MAX).unwrap();
    batch.iter().map(|entry| entry.number).collect()
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect();
    files.sort();
    files
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in files(from, "") {
        fs::copy(&file, to.path().join(file.file_name().unwrap())).unwrap();
    }
    to
}

#[test]
fn what_is_appended_is_read_in_order_until_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path(), 1 << 20);
    let log = folder.log().unwrap();
    let mut later = profile("b", 50);
    later.received_at = at(1_790_000_000_000_009);
    let contents = [
        (Content::Change(profile("a", 100)), Some(ATTEMPT)),
        (Content::Rejected(rejected(10)), None),
        (Content::Change(later), None),
    ];
    let drafts = contents.each_ref().map(|(content, attempt)| match content {
        Content::Change(change) => Draft::change(change, *attempt),
        Content::Rejected(rejected) => Draft::rejected(rejected),
    });
    let mut sizes = Vec::new();
    for draft in &drafts {
        let before = log.usage;
        log.append(std::slice::from_ref(draft)).unwrap();
        let after = log.usage;
        sizes.push(after.changes + after.rejected - before.changes - before.rejected);
    }
    log.append(&[]).unwrap();
    assert_eq!(log.usage.entries, 3);
    assert_eq!(log.oldest, Some(1_790_000_000_000_000));
    let batch = log.first(10, usize::MAX).unwrap();
    let found = batch
        .iter()
        .map(|entry| text(&entry.content, entry.attempt));
    let expected = contents
        .iter()
        .map(|(content, attempt)| text(content, *attempt));
    assert!(found.eq(expected));
    let first = batch[0].number;
    assert_eq!(numbers(log), [first, first + 1, first + 2]);
    // By entries and by bytes, but never none.
    let two = usize::try_from(sizes[0] + sizes[1]).unwrap();
    for (entries, bytes, most) in [(2, 9999, 2), (9, two, 2), (9, two - 1, 1), (0, 0, 1)] {
        assert_eq!(log.first(entries, bytes).unwrap().len(), most);
    }
    log.delete_to(first + 1).unwrap();
    assert_eq!((log.usage.entries, log.usage.changes), (1, sizes[2]));
    assert_eq!(log.oldest, Some(1_790_000_000_000_009));
    log.delete_to(first + 9).unwrap();
    assert!(drained(log).is_empty());
}

#[test]
fn numbers_never_come_twice_and_room_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut given = 0;
    for round in 0..4 {
        let mut folder = open(dir.path(), 1 << 20);
        let log = folder.log().unwrap();
        // Far ahead of the clock, as after it was set back.
        log.skip_written(given.max(1 << 60)).unwrap();
        for _ in 0..5 {
            log.append(&[draft(&profile("a", 50_000)), draft(&mark())])
                .unwrap();
        }
        assert!(files(dir.path(), ".log").len() > 1);
        let found = drained(log);
        assert_eq!(found.len(), 10);
        for entry in found {
            assert!(entry.number > given, "{round}");
            given = entry.number;
        }
        log.compact();
        let left = files(dir.path(), ".log");
        assert_eq!(left.len(), 1);
        assert_eq!(fs::metadata(&left[0]).unwrap().len(), 0);
        assert!(matches!(log.append(&[draft(&mark())]), Ok(())));
        assert_eq!(numbers(log), [given + 1]);
        log.delete_to(given + 1).unwrap();
        given += 1;
    }
    let mut folder = open(dir.path(), 1 << 20);
    let log = folder.log().unwrap();
    log.skip_written(given).unwrap();
    log.append(&[draft(&mark())]).unwrap();
    assert!(matches!(
        log.skip_written(i64::MAX / 2),
        Err(SpoolError::Foreign)
    ));
    assert!(numbers(log)[0] > given);
}

/// The process ends when a part of a write is on the disk.
#[test]
fn a_crash_at_any_byte_costs_no_entry_that_was_answered() {
    let whole = tempfile::tempdir().unwrap();
    let mut folder = open(whole.path(), MAX);
    let log = folder.log().unwrap();
    let mut answered = vec![(0, 0)];
    for number in 3..9 {
        log.append(&[shown(number).0, draft(&mark())]).unwrap();
        let file = &files(whole.path(), ".log")[0];
        let length = fs::metadata(file).unwrap().len();
        answered.push((length, numbers(log).len()));
    }
    let all = numbers(log);
    for length in 0..=answered.last().unwrap().0 {
        let dir = copy(whole.path());
        let file = &files(dir.path(), ".log")[0];
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(length).unwrap();
        let mut folder = open(dir.path(), MAX);
        let log = folder.log().unwrap();
        let found = numbers(log);
        let least = answered
            .iter()
            .filter(|(end, _)| *end <= length)
            .map(|(_, count)| *count);
        assert!(found.len() >= least.max().unwrap(), "{length}");
        assert!(all.starts_with(&found), "{length}");
        log.append(&[draft(&mark())]).unwrap();
        // The end that was not written whole is not read as a part of the next entry.
        drop(folder);
        let mut folder = open(dir.path(), MAX);
        assert_eq!(
            drained(folder.log().unwrap()).len(),
            found.len() + 1,
            "{length}"
        );
    }
}

/// A write that failed can be on the disk all the same. The next segment says that it was refused.
#[test]
fn what_was_refused_does_not_appear_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path(), MAX);
    let log = folder.log().unwrap();
    log.append(&[draft(&mark())]).unwrap();
    let first = numbers(log)[0];
    let other = copy(dir.path());
    log.append(&[draft(&profile("refused", 10)), draft(&mark())])
        .unwrap();
    let mut folder = open(other.path(), MAX);
    folder.log().unwrap().append(&[draft(&mark())]).unwrap();
    drop(folder);
    let segment = &files(dir.path(), ".log")[0];
    fs::copy(segment, other.path().join(segment.file_name().unwrap())).unwrap();
    let mut folder = open(other.path(), MAX);
    let found = drained(folder.log().unwrap());
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].number, first);
    assert!(found[1].number > first + 2);
}

/// Something that happens to a file.
#[derive(Clone, Debug)]
enum Harm {
    Flip {
        at: Vec<(u64, u8)>,
    },
    Zero {
        at: u64,
        bytes: u64,
    },
    Cut {
        at: u64,
    },
    /// A part of it stands in another place too.
    Copy {
        from: u64,
        to: u64,
        bytes: u64,
    },
    /// Its whole content has another name too.
    Twice,
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = || prop_oneof![4 => any::<u64>().boxed(), 1 => (0..200_u64).boxed()];
    let copy = (any::<u64>(), any::<u64>(), 1..20_000_u64);
    prop_oneof![
        6 => proptest::collection::vec((at(), 1..=255_u8), 1..8).prop_map(|at| Harm::Flip { at }),
        2 => (at(), 1..5000_u64).prop_map(|(at, bytes)| Harm::Zero { at, bytes }),
        2 => at().prop_map(|at| Harm::Cut { at }),
        2 => copy.prop_map(|(from, to, bytes)| Harm::Copy { from: from / 8 * 8, to: to / 8 * 8, bytes }),
        1 => Just(Harm::Twice),
    ]
}

impl Harm {
    fn apply(&self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let length = bytes.len();
        let place = |at: u64| usize::try_from(at % length as u64).unwrap();
        let end = |from: usize, bytes: u64| length.min(from + usize::try_from(bytes).unwrap());
        match self {
            Self::Flip { at } => at.iter().for_each(|(at, bits)| bytes[place(*at)] ^= bits),
            Self::Zero { at, bytes: count } => {
                let from = place(*at);
                bytes[from..end(from, *count)].fill(0);
            }
            Self::Cut { at } => bytes.truncate(place(*at)),
            Self::Copy {
                from,
                to,
                bytes: count,
            } => {
                let part = bytes[place(*from)..end(place(*from), *count)].to_vec();
                let to = place(*to);
                let fits = part.len().min(length - to);
                bytes[to..to + fits].copy_from_slice(&part[..fits]);
            }
            Self::Twice => {
                let name = path.file_stem().unwrap().to_str().unwrap();
                let other = name.parse::<u64>().unwrap() + 1;
                fs::copy(path, path.with_file_name(format!("{other:020}.log"))).unwrap();
            }
        }
        fs::write(path, &bytes).unwrap();
    }
}

/// Places of the entries in a segment, by their lengths.
fn places(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut places = Vec::new();
    let mut at = HEADER;
    while at + HEADER <= bytes.len() {
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        let end = at + HEADER + length as usize;
        places.push(at..end);
        at = end.next_multiple_of(8);
    }
    places
}

#[test]
fn a_damaged_segment_gives_every_whole_entry_and_nothing_else() {
    let whole = tempfile::tempdir().unwrap();
    let mut folder = open(whole.path(), 1 << 20);
    let log = folder.log().unwrap();
    let mut appended = BTreeMap::new();
    for number in 0..300 {
        let (draft, text) = shown(number);
        log.append(&[draft]).unwrap();
        appended.insert(number, text);
    }
    let first = numbers(log)[0];
    drop(folder);
    let segments = files(whole.path(), ".log");
    assert!(segments.len() > 2, "{segments:?}");
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let strategy = (harm(), any::<prop::sample::Index>());
    let run = |(harm, which): (Harm, prop::sample::Index)| {
        let dir = copy(whole.path());
        let path = &files(dir.path(), ".log")[which.index(segments.len())];
        let before = fs::read(path).unwrap();
        harm.apply(path);
        let after = fs::read(path).unwrap();
        let mut lost = Vec::new();
        let start: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        for (place, number) in places(&before).into_iter().zip(start - first..) {
            if after.get(place.clone()) != Some(&before[place]) {
                lost.push(usize::try_from(number).unwrap());
            }
        }
        let mut folder = open(dir.path(), 1 << 20);
        let log = folder.log().unwrap();
        let waiting = log.usage.entries;
        let found = drained(log);
        assert_eq!(found.len() as u64, waiting);
        let mut expected = appended.clone();
        expected.retain(|number, _| !lost.contains(number));
        let found = found.iter().map(|entry| {
            let number = usize::try_from(entry.number - first).unwrap();
            (number, text(&entry.content, entry.attempt))
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
        // What is damaged is kept for somebody who looks into it.
        log.append(&[draft(&mark())]).unwrap();
        drained(log);
        log.compact();
        let is_smooth =
            matches!(harm, Harm::Cut { .. }) && (after.is_empty() || after.len() <= HEADER);
        if !lost.is_empty() && !is_smooth {
            // A cut in the padding behind an entry leaves no damaged byte.
            let at_end = places(&before)
                .iter()
                .any(|place| (place.end..=place.end.next_multiple_of(8)).contains(&after.len()));
            assert!(at_end || !files(dir.path(), ".damaged").is_empty());
        }
        Ok(())
    };
    TestRunner::new(config).run(&strategy, run).unwrap();
}

#[test]
fn what_is_damaged_while_it_is_open_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path(), MAX);
    let log = folder.log().unwrap();
    let changes: Vec<_> = (0..30)
        .map(|n| draft(&profile(&n.to_string(), 500)))
        .collect();
    log.append(&changes).unwrap();
    let all = numbers(log);
    log.delete_to(all[3]).unwrap();
    let path = &files(dir.path(), ".log")[0];
    let mut bytes = fs::read(path).unwrap();
    for number in [5, 6, 29] {
        let start = places(&bytes)[number].start;
        bytes[start + 50] ^= 1;
    }
    fs::write(path, bytes).unwrap();
    let found: Vec<_> = drained(log).iter().map(|entry| entry.number).collect();
    assert_eq!(found, [&all[4..5], &all[7..29]].concat());
    log.append(&[draft(&mark())]).unwrap();
    assert_eq!(drained(log).len(), 1);
    log.compact();
    assert_eq!(files(dir.path(), ".damaged").len(), 1);
    // Somebody deletes all.
    log.append(&changes).unwrap();
    for path in files(dir.path(), ".log") {
        fs::remove_file(path).unwrap();
    }
    assert!(drained(log).is_empty());
    log.append(&[draft(&mark())]).unwrap();
    assert_eq!(drained(log).len(), 1);
}

/// An entry that is whole and not understood holds up those behind it, and is never damage.
#[test]
fn a_request_is_kept_and_holds_up_what_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path(), MAX);
    let log = folder.log().unwrap();
    let request = Request {
        received_at: at(1),
        path: "/".into(),
        query: None,
        headers: Vec::new(),
        body: Raw(vec![0xff, b'O', b'G', 0xfe].into()),
    };
    log.append(&[draft(&mark()), Draft::request(&request), draft(&mark())])
        .unwrap();
    assert_eq!(numbers(log).len(), 1);
    let first = numbers(log)[0];
    log.delete_to(first).unwrap();
    for _ in 0..2 {
        let blocked = log.first(10, usize::MAX);
        assert!(matches!(blocked, Err(SpoolError::Unknown(number, _)) if number == first + 1));
        assert_eq!(log.usage.entries, 2);
    }
}

#[test]
fn a_segment_of_a_newer_format_stops_the_start_and_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path(), MAX);
    folder.log().unwrap().append(&[draft(&mark())]).unwrap();
    drop(folder);
    let path = &files(dir.path(), ".log")[0];
    let mut bytes = fs::read(path).unwrap();
    newer(&mut bytes, path);
    fs::write(path, &bytes).unwrap();
    let error = SpoolFolder::open(dir.path(), MAX, true).unwrap_err();
    assert!(matches!(error, SpoolError::Newer(_, 3)), "{error}");
    assert_eq!(fs::read(path).unwrap(), bytes);
}

/// Makes a segment one of format 3.
fn newer(bytes: &mut [u8], path: &Path) {
    let first: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    bytes[14] = 3;
    let place = [first.to_le_bytes(), 0_i64.to_le_bytes()].concat();
    let sum = crc32c::crc32c_append(crc32c::crc32c(&place), &bytes[8..HEADER]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_folder_has_one_id_and_is_used_by_one() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let first = open(&dir, MAX);
    assert!(first.id > 0);
    let error = SpoolFolder::open(&dir, MAX, true).unwrap_err().to_string();
    let pid = format!("(pid {})", std::process::id());
    assert!(error.contains("in use") && error.contains(&pid), "{error}");
    let id = first.id;
    drop(first);
    assert_eq!(open(&dir, MAX).id, id);
    let path = dir.join("spool.id");
    fs::write(&path, "-7").unwrap();
    let new = open(&dir, MAX).id;
    assert!(new > 0 && new != id);
    // One that cannot be read may be as it was.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = SpoolFolder::open(&dir, MAX, false).unwrap_err().to_string();
    assert!(error.contains("spool.id"), "{error}");
    fs::remove_dir(&path).unwrap();
    assert!(open(&dir, MAX).id > 0);
}

/// A row of a spool of format 1: its number, kind, attempt, and record.
type Row = (i64, i64, Option<(i64, i64)>, Vec<u8>);

/// A spool of format 1, as the last version with SQLite left it, with these entries.
fn legacy(dir: &Path, entries: &[Row]) -> Connection {
    let file = Connection::open(dir.join("spool.sqlite")).unwrap();
    file.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA application_id = 1869049203; PRAGMA user_version = 1;
         PRAGMA journal_mode = WAL; CREATE TABLE entries (seq INTEGER PRIMARY KEY AUTOINCREMENT, \
         kind INTEGER NOT NULL, received_at INTEGER NOT NULL, lane INTEGER, attempt INTEGER, \
         record BLOB NOT NULL, checksum BLOB NOT NULL)",
    )
    .unwrap();
    for (seq, kind, attempt, record) in entries {
        use sha2::{Digest, Sha256};
        let mut digest = Sha256::new();
        for number in [*seq, *kind, 1_790_000_000_000_000] {
            digest.update(number.to_be_bytes());
        }
        let (lane, number) = attempt.unzip();
        for number in [lane, number] {
            digest.update([u8::from(number.is_some())]);
            digest.update(number.unwrap_or_default().to_be_bytes());
        }
        digest.update(record);
        let checksum = &digest.finalize()[..8];
        let insert = "INSERT INTO entries VALUES (?1, ?2, 1790000000000000, ?3, ?4, ?5, ?6)";
        file.execute(insert, (seq, kind, lane, number, record, checksum))
            .unwrap();
    }
    file
}

fn record(name: &str) -> Vec<u8> {
    serde_json::to_vec(&profile(name, 10)).unwrap()
}

#[test]
fn a_spool_of_an_older_version_is_taken_over_with_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = [5, 6, 7, 100, 101, 102]
        .map(|number| (number, 1, Some((2, 9)), record(&number.to_string())))
        .into();
    let file = legacy(dir.path(), &entries);
    let damage = "UPDATE entries SET kind = 2 WHERE seq = 101";
    file.execute(damage, []).unwrap();
    // As after a kill: all is in the log beside the file.
    let killed = copy(dir.path());
    assert!(
        fs::metadata(killed.path().join("spool.sqlite-wal"))
            .unwrap()
            .len()
            > 0
    );
    drop(file);
    for dir in [killed, dir] {
        // Twice, as if the first start was cut short before it deleted the file.
        let again = copy(dir.path());
        drop(open(dir.path(), MAX));
        assert!(dir.path().join("spool.damaged.sqlite").exists());
        assert!(!dir.path().join("spool.sqlite-wal").exists());
        for (name, to) in [("spool.sqlite", &dir), ("spool.sqlite-wal", &dir)] {
            let _ = fs::copy(again.path().join(name), to.path().join(name));
        }
        let mut folder = open(dir.path(), MAX);
        let log = folder.log().unwrap();
        let found = log.first(1, usize::MAX).unwrap();
        assert_eq!(found[0].attempt, Some(Attempt { lane: 2, seq: 9 }));
        let found: Vec<_> = drained(log)
            .into_iter()
            .map(|entry| (entry.number, entry.content))
            .collect();
        let expected: Vec<_> = entries.iter().filter(|entry| entry.0 != 101).collect();
        assert_eq!(found.len(), expected.len());
        for ((number, content), expected) in found.iter().zip(expected) {
            assert_eq!(*number, expected.0);
            let name = number.to_string();
            assert_eq!(
                text(content, None),
                text(&Content::Change(profile(&name, 10)), None)
            );
        }
        log.append(&[draft(&mark())]).unwrap();
        assert!(numbers(log)[0] > 102);
    }
}

/// Older versions do not know segments. They must not begin a spool of their own beside them.
#[test]
fn an_older_version_stops_at_a_folder_with_entries_and_only_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = open(dir.path(), MAX);
    let log = folder.log().unwrap();
    let path = dir.path().join("spool.sqlite");
    for _ in 0..2 {
        assert!(!path.exists());
        log.append(&[draft(&mark())]).unwrap();
        let file = Connection::open(&path).unwrap();
        let pragma = |name| {
            file.pragma_query_value(None, name, |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(
            (pragma("application_id"), pragma("user_version")),
            (0x6f67_6d73, 2)
        );
        drained(log);
        log.compact();
    }
    // A file of a version to come is no older one.
    drop(folder);
    legacy(dir.path(), &[])
        .execute_batch("PRAGMA user_version = 3")
        .unwrap();
    let error = SpoolFolder::open(dir.path(), MAX, false).unwrap_err();
    assert!(matches!(error, SpoolError::Newer(_, 3)), "{error}");
}
