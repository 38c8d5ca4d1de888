//! Folders as they can be found.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::super::file::Attempt;
use super::super::record::{Entry, EntryRef};
use super::super::testing::{TempDir, mark, profile, rejected, renumber, same};
use super::*;

const MAX: u64 = 64 << 20;
const ROUNDS: u32 = 150;

/// What was appended, by number.
type Appended = HashMap<i64, (Entry, Option<Attempt>)>;

fn entry(number: usize) -> (Entry, Option<Attempt>) {
    let entry = match number % 10 {
        0 => Entry::Rejected(rejected(number * 3)),
        1 => Entry::Change(mark()),
        // Some on pages of their own.
        2 => Entry::Change(profile(&number.to_string(), 6000)),
        _ => Entry::Change(profile(&number.to_string(), number)),
    };
    let attempt = number.is_multiple_of(3).then_some(Attempt {
        lane: 2,
        seq: number as i64,
    });
    (entry, attempt)
}

/// Appends some, a few at a time; each time is a commit.
fn append(file: &mut SpoolFile, count: usize, at_once: usize, appended: &mut Appended) {
    let entries: Vec<_> = (0..count).map(entry).collect();
    for entries in entries.chunks(at_once) {
        let first = file.last_seq() + 1;
        let borrowed = entries.iter().map(|(entry, at)| (entry.into(), *at));
        let borrowed: Vec<(EntryRef<'_>, _)> = borrowed.collect();
        file.append(&borrowed).unwrap();
        appended.extend((first..).zip(entries.iter().cloned()));
    }
}

/// A folder with so many entries in its file and nothing in the log, which nobody uses.
fn filled(count: usize, at_once: usize) -> (TempDir, Appended) {
    let dir = TempDir::new();
    let mut appended = Appended::new();
    let mut opened = SpoolDir::open(dir.path(), MAX).unwrap();
    append(&mut opened.file, count, at_once, &mut appended);
    (dir, appended)
}

fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// How many are there; each is what was appended with its number.
fn check(opened: &Opened, appended: &Appended) -> usize {
    let batch = opened.file.first(100_000, usize::MAX).unwrap();
    for spooled in &batch {
        let (entry, attempt) = &appended[&spooled.seq];
        assert!(same(&spooled.entry, entry));
        assert_eq!(spooled.attempt, *attempt);
    }
    assert_eq!(opened.report.waiting, batch.len() as u64);
    assert_eq!(opened.file.len(), batch.len() as u64);
    batch.len()
}

/// What happens to a file.
#[derive(Clone, Debug)]
enum Harm {
    Flip { at: Vec<(u64, u8)> },
    Zero { at: u64, bytes: u64 },
    Cut { at: u64 },
}

fn harm() -> impl Strategy<Value = Harm> {
    // Within the first page now and then: there is what all depends on.
    let at = || prop_oneof![4 => any::<u64>().boxed(), 1 => (0..u64::from(u16::MAX / 16)).boxed()];
    prop_oneof![
        6 => proptest::collection::vec((at(), 1..=255_u8), 1..8).prop_map(|at| Harm::Flip { at }),
        2 => (at(), 1..5000_u64).prop_map(|(at, bytes)| Harm::Zero { at, bytes }),
        2 => at().prop_map(|at| Harm::Cut { at }),
    ]
}

impl Harm {
    /// The file after it.
    fn apply(&self, path: &Path) -> Vec<u8> {
        let mut bytes = fs::read(path).unwrap();
        let length = bytes.len() as u64;
        let place = |at: u64| usize::try_from(at % length).unwrap();
        match self {
            Self::Flip { at } => {
                for (at, bits) in at {
                    bytes[place(*at)] ^= bits;
                }
            }
            Self::Zero { at, bytes: count } => {
                let from = place(*at);
                let to = bytes.len().min(from + usize::try_from(*count).unwrap());
                bytes[from..to].fill(0);
            }
            Self::Cut { at } => bytes.truncate(place(*at)),
        }
        fs::write(path, &bytes).unwrap();
        bytes
    }
}

/// Runs rounds; a failure is told with the harm that led to it, and `seed` repeats it.
fn rounds(seed: u8, test: impl Fn(Harm)) {
    let config = Config {
        cases: ROUNDS,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&harm(), |harm| {
        test(harm);
        Ok(())
    });
    if let Err(error) = result {
        panic!("seed {seed}: {error}");
    }
}

/// Any seed; a failure names it.
fn seed() -> u8 {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    now.subsec_nanos().to_le_bytes()[1]
}

#[test]
fn a_harmed_file_gives_what_is_whole_and_a_report_of_what_is_not() {
    let (whole, appended) = filled(400, 20);
    assert!(!whole.path().join("spool.sqlite-wal").exists());
    rounds(seed(), |harm| {
        let dir = TempDir::new();
        copy_files(whole.path(), dir.path());
        let harmed = harm.apply(&dir.path().join("spool.sqlite"));
        let opened = match SpoolDir::open(dir.path(), MAX) {
            // No file tells a flipped bit of this number from a version to come.
            Err(Error::Newer { format, .. }) => {
                let number: [u8; 4] = harmed[60..64].try_into().unwrap();
                return assert_eq!(format, i64::from(u32::from_be_bytes(number)));
            }
            opened => opened.unwrap(),
        };
        let there = check(&opened, &appended);
        let report = &opened.report;
        if there < appended.len() {
            assert!(report.set_aside.is_some(), "{there}: {report:?}");
        }
        if let Some(aside) = &report.set_aside {
            assert!(aside.exists() && report.why.is_some());
            assert_eq!(report.recovered, there as u64);
        }
        drop(opened);
        // The next time all is well.
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        assert_eq!(check(&opened, &appended), there);
        let waiting = there as u64;
        let report = Report {
            waiting,
            ..Report::default()
        };
        assert_eq!(opened.report, report);
    });
}

#[test]
fn a_harmed_log_gives_what_is_whole_and_a_report_of_what_is_not() {
    let (whole, mut appended) = filled(100, 20);
    let mut opened = SpoolDir::open(whole.path(), MAX).unwrap();
    append(&mut opened.file, 150, 5, &mut appended);
    // As if the process were killed here.
    let killed = TempDir::new();
    copy_files(whole.path(), killed.path());
    let log = "spool.sqlite-wal";
    assert!(fs::metadata(killed.path().join(log)).unwrap().len() > 100_000);
    rounds(seed(), |harm| {
        let dir = TempDir::new();
        copy_files(killed.path(), dir.path());
        let length = harm.apply(&dir.path().join(log)).len();
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        let there = check(&opened, &appended);
        let report = &opened.report;
        // Where the log ends with a whole frame, or with nothing, there is nothing to see.
        let is_smooth = matches!(harm, Harm::Cut { .. })
            && (length == 0 || length >= 32 && (length - 32) % (4096 + 24) == 0);
        if there < appended.len() && !is_smooth {
            let is_told = report.set_aside.is_some() || report.lost_tail_bytes.is_some();
            assert!(is_told, "{there}: {report:?}");
        }
        drop(opened);
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        assert_eq!(check(&opened, &appended), there);
        assert_eq!(opened.report.lost_tail_bytes, None);
        assert_eq!(opened.report.set_aside, None);
    });
}

/// All depends on the first page, which is the same in every spool.
#[test]
fn a_file_without_its_head_or_its_end_gives_the_rest() {
    for (head, is_cut, least) in [(32, false, 400), (4096, false, 400), (0, true, 100)] {
        let (dir, appended) = filled(400, 20);
        let path = dir.path().join("spool.sqlite");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..head].fill(0);
        if is_cut {
            bytes.truncate(bytes.len() / 2);
        }
        fs::write(&path, bytes).unwrap();
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        let there = check(&opened, &appended);
        assert!(there >= least, "{there}: {:?}", opened.report);
        assert!(!dir.path().join("spool.head.sqlite").exists());
    }
}

/// Commits that were answered are told from the one that was under way.
#[test]
fn commits_that_are_lost_in_a_log_are_counted() {
    let (whole, mut appended) = filled(10, 10);
    let mut opened = SpoolDir::open(whole.path(), MAX).unwrap();
    append(&mut opened.file, 40, 2, &mut appended);
    let frame = |number: usize| 32 + number * (24 + 4096);
    // In a page, in the mark of a frame, in the log's own.
    for (turned, lost) in [
        (Some(frame(7) + 1000), 11..=20),
        (Some(frame(7) + 8), 11..=20),
        // With that in which the next number was written, at the start.
        (Some(16), 21..=21),
        (None, 0..=0),
    ] {
        let dir = TempDir::new();
        copy_files(whole.path(), dir.path());
        let log = dir.path().join("spool.sqlite-wal");
        let mut bytes = fs::read(&log).unwrap();
        if let Some(place) = turned {
            bytes[place] ^= 1;
        } else {
            // The last commit's last frame is not whole.
            bytes.truncate(bytes.len() - 100);
        }
        fs::write(&log, bytes).unwrap();
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        let report = &opened.report;
        assert!(lost.contains(&report.lost_commits), "{report:?}");
        assert!(report.tail.as_ref().is_some_and(|tail| tail.exists()));
    }
}

#[test]
fn what_was_committed_is_there_after_a_kill() {
    let dir = TempDir::new();
    let mut appended = Appended::new();
    let mut opened = SpoolDir::open(dir.path(), MAX).unwrap();
    // Many times round the log, which begins anew every thousand pages.
    append(&mut opened.file, 2000, 10, &mut appended);
    let killed = TempDir::new();
    copy_files(dir.path(), killed.path());
    let again = SpoolDir::open(killed.path(), MAX).unwrap();
    assert_eq!(check(&again, &appended), 2000);
    assert_eq!(again.id, opened.id);
    let waiting = Report {
        waiting: 2000,
        ..Report::default()
    };
    assert_eq!(again.report, waiting);
}

#[test]
fn a_folder_has_one_id_and_is_used_by_one() {
    let parent = TempDir::new();
    let dir = parent.path().join("a/b");
    let first = SpoolDir::open(&dir, MAX).unwrap();
    assert!(first.id > 0);
    assert_eq!(first.report, Report::default());
    let mode = fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let error = SpoolDir::open(&dir, MAX).unwrap_err().to_string();
    let pid = format!("(pid {})", std::process::id());
    assert!(error.contains("in use") && error.contains(&pid), "{error}");
    let id = first.id;
    drop(first);
    assert_eq!(SpoolDir::open(&dir, MAX).unwrap().id, id);
    let path = dir.join("spool.id");
    fs::write(&path, "-7").unwrap();
    let new = SpoolDir::open(&dir, MAX).unwrap().id;
    assert!(new > 0 && new != id);
    // One that cannot be read may be as it was.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = SpoolDir::open(&dir, MAX).unwrap_err().to_string();
    assert!(error.contains("spool.id"), "{error}");
    fs::remove_dir(&path).unwrap();
    assert!(SpoolDir::open(&dir, MAX).unwrap().id > 0);
}

/// The number of a row decides where the others are looked for.
#[test]
fn a_row_with_another_number_costs_no_other_row() {
    for raised in [true, false] {
        let (dir, appended) = filled(200, 20);
        let harmed = appended.keys().max().unwrap() - 100;
        let path = dir.path().join("spool.sqlite");
        let mut bytes = fs::read(&path).unwrap();
        let (from, to) = if raised {
            (harmed, harmed + (1 << 45))
        } else {
            (harmed, harmed - (1 << 45))
        };
        renumber(&mut bytes, from, to);
        fs::write(&path, bytes).unwrap();
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        assert!(opened.report.set_aside.is_some());
        assert_eq!(check(&opened, &appended), 199, "{:?}", opened.report);
    }
}

#[test]
fn whatever_lies_in_the_place_of_the_file_goes_aside() {
    let dir = TempDir::new();
    let path = dir.path().join("spool.sqlite");
    for round in 0..4 {
        let _ = fs::remove_file(&path);
        match round {
            0 => fs::create_dir(&path).unwrap(),
            1 => fs::write(&path, "").unwrap(),
            2 => fs::write(&path, "no database, and longer than its header is, by far").unwrap(),
            // Somebody else's.
            _ => {
                let other = rusqlite::Connection::open(&path).unwrap();
                let sql = "CREATE TABLE entries (a, b); PRAGMA user_version = 2";
                other.execute_batch(sql).unwrap();
            }
        }
        let opened = SpoolDir::open(dir.path(), MAX).unwrap();
        assert!(opened.report.set_aside.unwrap().exists());
        assert_eq!(opened.report.waiting, 0);
    }
    let names = fs::read_dir(dir.path()).unwrap();
    let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
    let aside = names.filter(|name| name.starts_with("spool.damaged-") && name.ends_with("sqlite"));
    assert_eq!(aside.count(), 4);
}

/// One byte of the head says it, whatever else is in the file.
#[test]
fn a_file_of_a_version_to_come_is_left_as_it_is() {
    let (dir, _) = filled(30, 10);
    let path = dir.path().join("spool.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    bytes[63] = 2;
    bytes[4096..].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    let ready = dir.path().join("spool.ready.sqlite");
    fs::write(&ready, "of that version").unwrap();
    let error = SpoolDir::open(dir.path(), MAX).unwrap_err();
    assert!(matches!(error, Error::Newer { format: 2, .. }), "{error}");
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(fs::read(&ready).unwrap(), b"of that version");
}

#[test]
fn a_repair_that_was_cut_short_is_done_at_the_next_start() {
    let (dir, appended) = filled(30, 10);
    let path = |name: &str| dir.path().join(name);
    // Before the new file took the place of the damaged one, which is aside but for its log.
    fs::rename(path("spool.sqlite"), path("spool.ready.sqlite")).unwrap();
    fs::write(path("spool.sqlite-wal"), [1; 5000]).unwrap();
    fs::write(path("spool.making.sqlite"), "half").unwrap();
    let opened = SpoolDir::open(dir.path(), MAX).unwrap();
    assert_eq!(check(&opened, &appended), 30);
    assert_eq!(opened.report.lost_tail_bytes, Some(5000));
}

/// A file that cannot be opened now is as good as it was.
#[test]
fn what_only_cannot_be_opened_is_left_alone() {
    let (dir, appended) = filled(50, 10);
    let path = dir.path().join("spool.sqlite");
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")
        .unwrap();
    assert!(matches!(
        SpoolDir::open(dir.path(), MAX),
        Err(Error::Unusable { .. })
    ));
    drop(other);
    let opened = SpoolDir::open(dir.path(), MAX).unwrap();
    assert_eq!(opened.report.set_aside, None);
    assert_eq!(check(&opened, &appended), 50);
}

/// A new file that cannot be written takes nobody's place.
#[test]
fn a_repair_without_room_leaves_all_as_it_was() {
    let (dir, appended) = filled(50, 10);
    let path = dir.path().join("spool.sqlite");
    let new = verify::create(&dir.path().join("new.sqlite")).unwrap();
    new.execute_batch("PRAGMA max_page_count = 4").unwrap();
    assert!(salvage::copy(&path, &new).is_err());
    let opened = SpoolDir::open(dir.path(), MAX).unwrap();
    assert_eq!(check(&opened, &appended), 50);
}
