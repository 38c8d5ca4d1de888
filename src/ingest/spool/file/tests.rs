//! The file by itself.

use super::super::dir::SpoolDir;
use super::super::testing::{TempDir, at, mark, profile, rejected, renumber, same};
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
    batch.iter().map(|spooled| spooled.seq).collect()
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
    assert_eq!(batch.len(), 3);
    for ((spooled, (entry, attempt)), seq) in batch.iter().zip(&entries).zip(before + 1..) {
        assert!(same(&spooled.entry, entry));
        assert_eq!((spooled.seq, spooled.attempt), (seq, *attempt));
    }
    // By rows and by bytes, but never none.
    let two = usize::try_from(records[0] + records[1]).unwrap();
    for (rows, bytes, most) in [(2, 9999, 2), (9, two, 2), (9, two - 1, 1), (0, 0, 1)] {
        assert_eq!(file.first(rows, bytes).unwrap().len(), most);
    }

    file.delete_to(before + 2).unwrap();
    assert_eq!((file.len(), file.bytes()), (1, records[2]));
    assert_eq!(file.oldest(), Some(later.received_at));
    file.delete_to(before + 9).unwrap();
    assert_eq!((file.len(), file.bytes(), file.oldest()), (0, 0, None));
    assert!(numbers(&file).is_empty());
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
    assert!(matches!(refused, Err(Refused::DiskFull)), "{refused:?}");
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
    let all = numbers(&file);
    file.connection
        .execute("UPDATE entries SET lane = 1 WHERE seq = ?1", [all[1]])
        .unwrap();
    assert_eq!(numbers(&file), all[..1]);
    file.delete_to(all[0]).unwrap();
    let unsound = file.first(10, usize::MAX).err().unwrap();
    assert!(matches!(unsound, Unsound::Row(seq, _) if seq == all[1]));
    assert!(file.repair(&unsound));
    assert_eq!(numbers(&file), all[2..]);
    file.delete_to(all[2]).unwrap();
    assert_eq!((file.len(), file.bytes()), (0, 0));
}

/// The number of a row says what is done with, and so may not be believed where the row is not whole.
#[test]
fn a_row_that_gets_another_number_while_it_is_open_costs_no_other_row() {
    for (place, by) in [(0, 1 << 45), (20, 1 << 45), (39, 1 << 45), (39, -(1 << 45))] {
        let dir = TempDir::new();
        let mut file = open(&dir, 1 << 20);
        let changes: Vec<Change> = (0..40).map(|n| profile(&n.to_string(), 500)).collect();
        append(&mut file, &changes.iter().collect::<Vec<_>>()).unwrap();
        let all = numbers(&file);
        harm(&dir, &file, |bytes| {
            renumber(bytes, all[place], all[place] + by);
        });
        let mut found = Vec::new();
        while file.len() > 0 {
            match file.first(20, usize::MAX) {
                Ok(batch) => {
                    found.extend(batch.iter().map(|spooled| spooled.seq));
                    let done = file.delete_to(batch.last().unwrap().seq);
                    if let Err(unsound) = done {
                        file.repair(&unsound);
                        file.delete_to(batch.last().unwrap().seq).unwrap();
                    }
                }
                Err(unsound) => assert!(file.repair(&unsound), "{unsound}"),
            }
        }
        let mut expected = all.clone();
        expected.remove(place);
        assert_eq!(found, expected, "{place} {by}");
        append(&mut file, &[&mark()]).unwrap();
        assert_eq!(numbers(&file).len(), 1);
    }
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
    let in_the_way = dir.path().join("spool.making.sqlite");
    std::fs::create_dir(&in_the_way).unwrap();
    file.shrink();
    assert!(append(&mut file, &[&profile("b", 10)]).is_err());
    // Nothing waits, so nothing hinders whoever drains it.
    assert!(numbers(&file).is_empty());
    assert_eq!(file.delete_to(last + 1).unwrap(), 0);
    std::fs::remove_dir(&in_the_way).unwrap();
    file.appear_now().unwrap();
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
    harm(&dir, &file, |bytes| {
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 4096].fill(0xa5);
    });

    // What comes before it can be written, but no more.
    let before = numbers(&file);
    assert!(!before.is_empty() && before.len() < 290 && all[10..].starts_with(&before));
    let unsound = file.delete_to(*before.last().unwrap()).unwrap_err();
    assert!(file.repair(&unsound), "{unsound}");
    let names = std::fs::read_dir(dir.path()).unwrap();
    let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains("damaged")).count(), 1);
    let after = numbers(&file);
    assert!(after.starts_with(&before) && after.ends_with(&all[200..]));
    // A page has room for seven of these.
    assert!(after.len() >= 290 - 7, "{}", after.len());
    append(&mut file, &[&mark()]).unwrap();
    assert!(numbers(&file).last() > all.last());
    assert_eq!(file.len(), after.len() as u64 + 1);
    // What was done with does not come back.
    file.delete_to(after[99]).unwrap();
    assert!(file.repair(&Unsound::Order));
    assert_eq!(numbers(&file)[..10], after[100..110]);
    assert_eq!(file.len(), after.len() as u64 + 1 - 100);
}

/// A repair that finds no room leaves the file as it is, and is not tried at every turn.
#[test]
fn a_repair_that_cannot_be_done_harms_nothing() {
    let dir = TempDir::new();
    let mut file = open(&dir, 1 << 20);
    append(&mut file, &[&profile("a", 10), &profile("b", 10)]).unwrap();
    let all = numbers(&file);
    file.connection
        .execute("UPDATE entries SET lane = 1 WHERE seq = ?1", [all[1]])
        .unwrap();
    let in_the_way = dir.path().join("spool.ready.sqlite");
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(!file.repair(&Unsound::Order));
    append(&mut file, &[&profile("c", 10)]).unwrap();
    assert_eq!(numbers(&file), all[..1]);
    std::fs::remove_dir(&in_the_way).unwrap();
    assert!(!file.repair(&Unsound::Order));
    file.no_repair_before = None;
    assert!(file.repair(&Unsound::Order));
    assert_eq!(numbers(&file).len(), 2);
    assert_eq!(numbers(&file)[0], all[0]);
}

/// Changes the file behind SQLite's back.
fn harm(dir: &TempDir, file: &SpoolFile, change: impl FnOnce(&mut Vec<u8>)) {
    file.tidy();
    file.connection
        .execute_batch("PRAGMA shrink_memory")
        .unwrap();
    let path = dir.path().join("spool.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}
