//! The file by itself.

use super::super::dir::SpoolDir;
use super::super::testing::{TempDir, at, mark, profile, rejected, same};
use super::*;
use crate::domain::Change;

const ATTEMPT: Attempt = Attempt { lane: 3, seq: 77 };

fn open(dir: &TempDir, max_bytes: u64) -> SpoolFile {
    SpoolDir::open(dir.path(), max_bytes).unwrap().file
}

fn append(file: &mut SpoolFile, changes: &[&Change]) -> Result<(), Refused> {
    let entries = changes
        .iter()
        .map(|change| (EntryRef::Change(change), None));
    file.append(&entries.collect::<Vec<_>>())
}

fn numbers(file: &SpoolFile) -> Vec<i64> {
    let batch = file.first(1000, usize::MAX).unwrap();
    batch.entries.iter().map(|spooled| spooled.seq).collect()
}

#[test]
fn what_is_appended_is_read_in_order_until_it_is_deleted() {
    let dir = TempDir::new();
    let mut file = open(&dir, 1 << 20);
    assert_eq!((file.len(), file.bytes(), file.oldest()), (0, 0, None));
    let before = file.last_seq();
    let mut later = profile("b", 50);
    later.received_at = at(1_790_000_000_000_009);
    let entries = [
        (Entry::Change(profile("a", 100)), Some(ATTEMPT)),
        (Entry::Rejected(rejected(10)), None),
        (Entry::Change(later.clone()), None),
    ];
    let borrowed = entries.each_ref().map(|(entry, at)| (entry.into(), *at));
    file.append(&borrowed).unwrap();
    file.append(&[]).unwrap();
    let records = borrowed.map(|(entry, _)| entry.encode().unwrap().len() as u64 + 128);
    assert_eq!((file.len(), file.bytes()), (3, records.iter().sum()));
    assert_eq!(file.oldest(), Some(at(1_790_000_000_000_000)));
    assert_eq!(file.last_seq(), before + 3);

    let batch = file.first(10, usize::MAX).unwrap();
    assert_eq!(batch.last_seq, Some(before + 3));
    assert!(batch.unreadable.is_empty());
    for ((spooled, (entry, attempt)), seq) in batch.entries.iter().zip(&entries).zip(before + 1..) {
        assert!(same(&spooled.entry, entry));
        assert_eq!((spooled.seq, spooled.attempt), (seq, *attempt));
    }
    // By rows and by bytes, but never none.
    let two = usize::try_from(records[0] + records[1]).unwrap();
    for (rows, bytes, most) in [(2, 9999, 2), (9, two, 2), (9, two - 1, 1), (0, 0, 1)] {
        assert_eq!(file.first(rows, bytes).unwrap().entries.len(), most);
    }

    file.delete_to(before + 2).unwrap();
    assert_eq!((file.len(), file.bytes()), (1, records[2]));
    assert_eq!(file.oldest(), Some(later.received_at));
    file.delete_to(before + 9).unwrap();
    assert_eq!((file.len(), file.bytes(), file.oldest()), (0, 0, None));
    assert_eq!(file.first(1, 1).unwrap().last_seq, None);
}

#[test]
fn changes_rejected_callbacks_and_marks_have_bounds_of_their_own() {
    let dir = TempDir::new();
    let mut file = open(&dir, 100_000);
    let reject =
        |file: &mut SpoolFile, bytes| file.append(&[(EntryRef::Rejected(&rejected(bytes)), None)]);
    reject(&mut file, 6000).unwrap(); // 8,000 as base64
    assert!(matches!(reject(&mut file, 3000), Err(Refused::Full)));
    reject(&mut file, 100).unwrap();
    append(&mut file, &[&profile("a", 89_000)]).unwrap();
    let big = profile("b", 2000);
    assert!(matches!(append(&mut file, &[&big]), Err(Refused::Full)));
    let mut marks = 0;
    while append(&mut file, &[&mark()]).is_ok() {
        marks += 1;
    }
    assert!((25..40).contains(&marks), "{marks}");
    assert!(file.bytes() > 100_000 && file.bytes() <= 106_250 + 10_000);
    // Where there is room again, all is as before.
    file.delete_to(file.last_seq()).unwrap();
    append(&mut file, &[&big]).unwrap();
}

#[test]
fn what_is_refused_leaves_all_as_it_was() {
    let dir = TempDir::new();
    let mut file = open(&dir, 100_000);
    append(&mut file, &[&profile("a", 10)]).unwrap();
    let state = |file: &SpoolFile| (file.len(), file.bytes(), file.last_seq(), numbers(file));
    let before = state(&file);
    let (small, large) = (profile("b", 10), profile("c", 100_000));
    let refused = append(&mut file, &[&small, &large]);
    assert!(matches!(refused, Err(Refused::Full)));
    assert_eq!(state(&file), before);

    // SQLite's own bound, in the midst of a transaction.
    file.connection
        .execute_batch("PRAGMA max_page_count = 5")
        .unwrap();
    let half = profile("c", 40_000);
    let refused = append(&mut file, &[&small, &half]);
    assert!(matches!(refused, Err(Refused::Full)), "{refused:?}");
    assert_eq!(state(&file), before);

    // Anything else: a transaction that an earlier call left, and a table that refuses.
    file.connection
        .execute_batch("PRAGMA max_page_count = 100; PRAGMA query_only = ON; BEGIN")
        .unwrap();
    let refused = append(&mut file, &[&small]);
    assert!(matches!(refused, Err(Refused::Disk(_))), "{refused:?}");
    assert_eq!(state(&file), before);
    file.connection
        .execute_batch("PRAGMA query_only = OFF")
        .unwrap();
    append(&mut file, &[&small]).unwrap();
    assert_eq!(file.len(), 2);
}

#[test]
fn a_row_that_is_not_what_was_written_does_not_stop_the_others() {
    let dir = TempDir::new();
    let mut file = open(&dir, 1 << 20);
    let changes = ["a", "b", "c"].map(|name| profile(name, 10));
    append(&mut file, &changes.each_ref()).unwrap();
    let last = file.last_seq();
    file.connection
        .execute("UPDATE entries SET lane = 1 WHERE seq = ?1", [last - 1])
        .unwrap();
    let batch = file.first(10, usize::MAX).unwrap();
    assert_eq!(batch.entries.len(), 2);
    assert_eq!(batch.unreadable[0].0, last - 1);
    assert_eq!(batch.last_seq, Some(last));
    file.delete_to(last).unwrap();
    assert_eq!((file.len(), file.bytes()), (0, 0));
}

#[test]
fn numbers_never_come_twice() {
    let dir = TempDir::new();
    let mut file = open(&dir, 1 << 20);
    let mut given = 0;
    // Far ahead of the clock, as after it was set back.
    file.last_seq += 1 << 50;
    for _ in 0..3 {
        append(&mut file, &[&mark(), &mark()]).unwrap();
        assert!(numbers(&file).iter().all(|number| *number > given));
        given = file.last_seq();
        file.delete_to(given).unwrap();
        drop(file);
        file = open(&dir, 1 << 20);
        assert!(file.last_seq() >= given);
    }
}

#[test]
fn an_empty_file_gives_the_disk_back() {
    let dir = TempDir::new();
    let mut file = open(&dir, 1 << 30);
    append(&mut file, &[&profile("a", 20 << 20)]).unwrap();
    let size = || std::fs::metadata(dir.path().join("spool.sqlite")).map(|meta| meta.len());
    let last = file.last_seq();
    file.shrink();
    assert_eq!(file.len(), 1);
    file.delete_to(last).unwrap();
    file.shrink();
    assert!(size().unwrap() < 1 << 20);
    append(&mut file, &[&mark()]).unwrap();
    assert!(file.last_seq() > last);
}

/// An empty file that is large is made anew; where that fails it is tried again.
#[test]
fn a_new_file_that_cannot_be_made_is_made_later() {
    let dir = TempDir::new();
    let mut file = open(&dir, 64 << 20);
    for _ in 0..18 {
        append(&mut file, &[&profile("a", 1 << 20)]).unwrap();
    }
    let last = file.last_seq();
    file.delete_to(last).unwrap();
    // No file can have this name.
    let in_the_way = dir.path().join("spool.ready.sqlite");
    std::fs::create_dir(&in_the_way).unwrap();
    file.shrink();
    assert!(append(&mut file, &[&profile("b", 10)]).is_err());
    // Nothing waits, so nothing hinders whoever drains it.
    assert_eq!(file.first(10, usize::MAX).unwrap().last_seq, None);
    assert_eq!(file.delete_to(last + 1).unwrap(), 0);
    std::fs::remove_dir(&in_the_way).unwrap();
    file.shrink();
    append(&mut file, &[&profile("b", 10)]).unwrap();
    assert!(matches!(numbers(&file)[..], [seq] if seq > last));
    // The folder was ours all the time.
    assert!(SpoolDir::open(dir.path(), 1 << 20).is_err());
}

/// As on a disk that gives back other things than it was given.
#[test]
fn what_turns_bad_while_it_is_open_is_repaired() {
    let dir = TempDir::new();
    let mut file = open(&dir, 64 << 20);
    let changes: Vec<Change> = (0..300)
        .map(|n| profile(&n.to_string(), 500 + n % 7))
        .collect();
    append(&mut file, &changes.iter().collect::<Vec<_>>()).unwrap();
    let all = numbers(&file);
    file.delete_to(all[9]).unwrap();
    file.tidy();
    file.connection
        .execute_batch("PRAGMA shrink_memory")
        .unwrap();
    let path = dir.path().join("spool.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();

    // What comes before it can be written, but no more.
    let before = numbers(&file);
    assert!(!before.is_empty() && before.len() < 290 && all[10..].starts_with(&before));
    let damage = file.delete_to(*before.last().unwrap()).unwrap_err();
    assert!(matches!(damage, Damage::Unreadable(_)), "{damage}");
    let report = file.repair().unwrap();
    assert!(report.set_aside.is_some_and(|aside| aside.exists()));
    let after = numbers(&file);
    assert!(after.starts_with(&before) && after.ends_with(&all[200..]));
    // A page has room for seven of these.
    assert!(after.len() >= 290 - 7, "{}", after.len());
    assert_eq!(report.recovered, after.len() as u64);
    append(&mut file, &[&mark()]).unwrap();
    assert!(numbers(&file).last() > all.last());
    assert_eq!(file.len(), after.len() as u64 + 1);
}
