//! A spool between versions: what a newer version has left is neither damage nor passed over.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{COMMAND, Service, TestDb, kill, member_info, run, until, web};

/// Bytes of an entry before its record.
const HEADER: usize = 40;

/// Nobody listens on port 1.
const AWAY: &str = "postgres://me@127.0.0.1:1/mirror";

async fn callback(service: &Service, user: &str, nickname: &str) {
    let body = member_info("g", user, json!({"nickName": nickname}));
    let url = format!("{}/{COMMAND}", service.base);
    let request = web::client().build().unwrap().post(url).body(body);
    let request = request.header("content-type", "application/json");
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["errCode"], 0, "{answer}");
}

async fn text(service: &Service, path: &str) -> (u16, String) {
    let answer = web::get(format!("{}{path}", service.base)).await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.text().await.unwrap())
}

async fn metric(service: &Service, name: &str) -> Option<f64> {
    let (_, text) = text(service, "/metrics").await;
    let prefix = format!("openim_group_mirror_{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    value.map(|value| value.parse().unwrap())
}

/// A folder in which changes of u0, u1 and u2 wait, as the service leaves it.
async fn waiting() -> PathBuf {
    let folder = run().folder("spool");
    let mut service = Service::start(&variables(AWAY, &folder));
    for user in 0..3 {
        callback(&service, &format!("u{user}"), "waited").await;
    }
    kill("TERM", &service.pid().to_string());
    assert!(service.ended().success());
    assert!(service.log().contains("the spool is not empty"));
    folder
}

fn variables<'a>(url: &'a str, folder: &'a Path) -> [(&'static str, &'a str); 3] {
    [
        ("DATABASE_URL", url),
        ("SPOOL_DIR", folder.to_str().unwrap()),
        ("SPOOL_AFTER_MS", "4000"),
    ]
}

/// The first segment of a folder.
fn segment(folder: &Path) -> (PathBuf, Vec<u8>) {
    let files = std::fs::read_dir(folder).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|name| name == "log"));
    let path = segments.min().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

/// Places of the entries in a segment, behind its beginning.
fn entries(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut entries = Vec::new();
    let mut at = HEADER;
    while at < bytes.len() {
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        let end = at + HEADER + length as usize;
        entries.push(at..end);
        at = end.next_multiple_of(8);
    }
    entries
}

/// Sets the checksum that goes with an entry.
fn seal(path: &Path, bytes: &mut [u8], entry: std::ops::Range<usize>) {
    let first: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let place = [first.to_le_bytes(), (entry.start as i64).to_le_bytes()].concat();
    let start = entry.start;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&place), &bytes[start + 8..entry.end]);
    bytes[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Gives an entry another kind and record, of the same length but for spaces.
fn rewrite(folder: &Path, number: i64, kind: u8, record: &str) {
    let (path, mut bytes) = segment(folder);
    let of_number =
        |entry: &std::ops::Range<usize>| bytes[entry.start + 16..][..8] == number.to_le_bytes();
    let entry = entries(&bytes).into_iter().find(of_number).unwrap();
    bytes[entry.start + 12] = kind;
    let mut record = record.as_bytes().to_vec();
    record.resize(entry.len() - HEADER, b' ');
    bytes[entry.start + HEADER..entry.end].copy_from_slice(&record);
    seal(&path, &mut bytes, entry);
    std::fs::write(path, bytes).unwrap();
}

/// Numbers of the entries in the first segment, those that are done with too.
fn numbers(folder: &Path) -> Vec<i64> {
    let (_, bytes) = segment(folder);
    let number = |at: usize| i64::from_le_bytes(bytes[at + 16..at + 24].try_into().unwrap());
    entries(&bytes)
        .into_iter()
        .map(|entry| number(entry.start))
        .collect()
}

/// Nothing is set aside, nor lost.
fn assert_untouched(folder: &Path, entries: &[i64]) {
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
    let aside: Vec<_> = names.filter(|name| name.contains("damaged")).collect();
    assert!(aside.is_empty(), "{aside:?}");
    assert_eq!(numbers(folder), entries);
}

async fn nicknames(db: &TestDb) -> Vec<Value> {
    db.rows("select user_id, nickname from group_members order by 1")
        .await
}

#[tokio::test]
async fn a_spool_of_a_newer_format_stops_the_start_in_one_sentence_and_is_left_as_it_is() {
    let folder = waiting().await;
    let (path, mut bytes) = segment(&folder);
    bytes[14] = 3;
    bytes[HEADER + 16..].fill(0xa5);
    seal(&path, &mut bytes, 0..HEADER);
    std::fs::write(&path, &bytes).unwrap();
    let db = TestDb::new().await;
    for arguments in [&[][..], &["drain"]] {
        let ended = Service::to_end(arguments, &variables(&db.url, &folder));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = format!(
            "openim-group-mirror: SPOOL_DIR: the spool in {} was written by a newer version of this \
             program (format 3; this version reads format 2): start that version, or drain the spool \
             with its `drain`, or give this version another SPOOL_DIR\n",
            folder.display()
        );
        assert!(ended.stderr.ends_with(&expected), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("ERROR").count(), 0, "{}", ended.stderr);
        assert_eq!(segment(&folder), (path.clone(), bytes.clone()));
    }
    assert!(nicknames(&db).await.is_empty());
}

#[tokio::test]
async fn an_entry_of_a_newer_version_stops_the_drain_and_nothing_is_written_past_it() {
    let folder = waiting().await;
    let entries = numbers(&folder);
    let known = r#"{"group_id":"g","received_at":1790000000000000,"event":{"set_member":{"user_id":"u1","nickname":"of the newer version"}}}"#;
    let unknown = known.replace("set_member", "mute_member");
    rewrite(&folder, entries[1], 1, &unknown);
    let db = TestDb::new().await;
    let variables = variables(&db.url, &folder);
    let mut service = Service::start(&variables);
    until("what came before it is written", async || {
        metric(&service, "spool_entries").await == Some(2.0)
    })
    .await;
    callback(&service, "u3", "came later").await;
    assert_eq!(metric(&service, "spool_entries").await, Some(3.0));
    assert_eq!(metric(&service, "spool_blocked").await, Some(1.0));
    assert_eq!(metric(&service, "spool_rejected_total").await, Some(0.0));
    let (status, ready) = text(&service, "/readyz").await;
    assert_eq!(status, 503, "{ready}");
    assert!(
        ready.contains("spool: blocked; callbacks: spooled"),
        "{ready}"
    );
    assert_eq!(text(&service, "/readyz?for=callbacks").await.0, 200);
    assert_eq!(text(&service, "/readyz?for=reads").await.0, 200);
    let expected = format!(
        "the spool: the entry {} was written by a newer version of this program and is not understood \
         (Data at column ",
        entries[1]
    );
    let said = service.log();
    assert!(said.contains(&expected), "{said}");
    assert!(!said.contains("damage"), "{said}");
    kill("TERM", &service.pid().to_string());
    assert!(service.ended().success());
    let drain = Service::to_end(&["drain"], &variables);
    assert_eq!(drain.code, Some(1), "{}", drain.stderr);
    assert!(drain.stderr.contains("3 entries wait"), "{}", drain.stderr);
    assert!(drain.stderr.contains(&expected), "{}", drain.stderr);
    // Files are deleted whole.
    assert_untouched(&folder, &entries);
    let of_u0 = json!({"user_id": "u0", "nickname": "waited"});
    assert_eq!(nicknames(&db).await, [of_u0]);

    // What the newer version makes of it.
    rewrite(&folder, entries[1], 1, known);
    let drain = Service::to_end(&["drain"], &variables);
    assert_eq!(drain.code, Some(0), "{}", drain.stderr);
    let expected = ["waited", "of the newer version", "waited", "came later"];
    let found = nicknames(&db).await;
    let found: Vec<&Value> = found.iter().map(|row| &row["nickname"]).collect();
    assert_eq!(found, expected);
}

/// A reason and a kind that are not known are no more than an event that is not.
#[tokio::test]
async fn reasons_and_kinds_of_a_newer_version_wait_too() {
    let reason =
        r#"{"group_id":"g","received_at":1790000000000000,"event":{"want_check":"of_tomorrow"}}"#;
    for (kind, record) in [(1, reason), (3, "anything at all")] {
        let folder = waiting().await;
        let entries = numbers(&folder);
        rewrite(&folder, entries[0], kind, record);
        let db = TestDb::new().await;
        let variables = variables(&db.url, &folder);
        let drain = Service::to_end(&["drain"], &variables);
        assert_eq!(drain.code, Some(1), "{}", drain.stderr);
        assert!(drain.stderr.contains("3 entries wait"), "{}", drain.stderr);
        let said = "was written by a newer version of this program";
        assert!(drain.stderr.contains(said), "{}", drain.stderr);
        assert_untouched(&folder, &entries);
    }
}

/// Damaged entries are skipped, and entries that are not understood stay in their place.
#[tokio::test]
async fn damage_takes_nothing_with_it_that_is_not_understood() {
    let folder = waiting().await;
    let numbers = numbers(&folder);
    rewrite(&folder, numbers[2], 7, "of tomorrow");
    let (path, mut bytes) = segment(&folder);
    let damaged = entries(&bytes)[1].start;
    bytes[damaged + 20] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let db = TestDb::new().await;
    for round in 0..2 {
        let drain = Service::to_end(&["drain"], &variables(&db.url, &folder));
        assert_eq!(drain.code, Some(1), "{}", drain.stderr);
        let said = "the spool was damaged";
        assert!(drain.stderr.contains(said), "{}", drain.stderr);
        assert!(drain.stderr.contains("entries=1"), "{}", drain.stderr);
        assert!(
            drain.stderr.contains("1 entries wait"),
            "{round}: {}",
            drain.stderr
        );
        assert_eq!(nicknames(&db).await.len(), 1);
    }
}

/// The format has a checksum too.
#[tokio::test]
async fn a_flipped_bit_in_the_format_is_not_taken_for_a_newer_version() {
    let folder = waiting().await;
    let (path, mut bytes) = segment(&folder);
    bytes[14] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
    let db = TestDb::new().await;
    let drain = Service::to_end(&["drain"], &variables(&db.url, &folder));
    assert_eq!(drain.code, Some(0), "{}", drain.stderr);
    assert_eq!(nicknames(&db).await.len(), 3);
}
