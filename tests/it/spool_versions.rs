//! A spool between versions: what a newer version has left is neither damage nor passed over.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{COMMAND, Service, TestDb, kill, member_info, run, until, web};

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

fn file(folder: &Path) -> Connection {
    Connection::open(folder.join("spool.sqlite")).unwrap()
}

/// Gives an entry another kind and record, with the checksum that goes with them.
fn rewrite(folder: &Path, seq: i64, kind: i64, record: &str) {
    let file = file(folder);
    let select = "select received_at, lane, attempt from entries where seq = ?1";
    let (received_at, lane, attempt): (i64, Option<i64>, Option<i64>) = file
        .query_row(select, [seq], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    let mut digest = Sha256::new();
    for number in [seq, kind, received_at] {
        digest.update(number.to_be_bytes());
    }
    for number in [lane, attempt] {
        digest.update([u8::from(number.is_some())]);
        digest.update(number.unwrap_or_default().to_be_bytes());
    }
    digest.update(record);
    let checksum = &digest.finalize()[..8];
    let update = "update entries set kind = ?2, record = ?3, checksum = ?4 where seq = ?1";
    let changed = file.execute(update, (seq, kind, record.as_bytes(), checksum));
    assert_eq!(changed.unwrap(), 1);
}

fn numbers(folder: &Path) -> Vec<i64> {
    let file = file(folder);
    let mut select = file
        .prepare("select seq from entries order by seq")
        .unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
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
    let entries = numbers(&folder);
    file(&folder)
        .execute_batch("pragma user_version = 2; alter table entries add column more text")
        .unwrap();
    let db = TestDb::new().await;
    for arguments in [&[][..], &["drain"]] {
        let ended = Service::to_end(arguments, &variables(&db.url, &folder));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = format!(
            "openim-group-mirror: SPOOL_DIR: the spool in {} was written by a newer version of this \
             program (format 2; this version reads format 1): start that version, or drain the spool \
             with its `drain`, or give this version another SPOOL_DIR\n",
            folder.display()
        );
        assert!(ended.stderr.ends_with(&expected), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("ERROR").count(), 0, "{}", ended.stderr);
        assert_untouched(&folder, &entries);
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
    let left = numbers(&folder);
    assert_eq!(left[..2], entries[1..]);
    assert_untouched(&folder, &left);
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

/// A file that is damaged elsewhere is made anew, with what is not understood in its place.
#[tokio::test]
async fn a_repair_keeps_what_is_not_understood() {
    let folder = waiting().await;
    let entries = numbers(&folder);
    rewrite(&folder, entries[1], 7, "of tomorrow");
    let update = "update entries set checksum = x'00' where seq = ?1";
    file(&folder).execute(update, [entries[2]]).unwrap();
    let db = TestDb::new().await;
    let drain = Service::to_end(&["drain"], &variables(&db.url, &folder));
    assert_eq!(drain.code, Some(1), "{}", drain.stderr);
    let said = "the spool was damaged";
    assert!(drain.stderr.contains(said), "{}", drain.stderr);
    assert!(drain.stderr.contains("recovered=2"), "{}", drain.stderr);
    assert!(drain.stderr.contains("unreadable=1"), "{}", drain.stderr);
    assert_eq!(numbers(&folder), [entries[1]]);
    assert_eq!(nicknames(&db).await.len(), 1);
}

/// Formats are counted one by one, so a number far away is a flipped bit.
#[tokio::test]
async fn a_number_of_the_format_that_no_version_has_is_damage() {
    let folder = waiting().await;
    file(&folder)
        .execute_batch("pragma user_version = 65537")
        .unwrap();
    let db = TestDb::new().await;
    let drain = Service::to_end(&["drain"], &variables(&db.url, &folder));
    assert_eq!(drain.code, Some(0), "{}", drain.stderr);
    assert!(
        drain.stderr.contains("the spool was damaged"),
        "{}",
        drain.stderr
    );
    assert_eq!(nicknames(&db).await.len(), 3);
}
