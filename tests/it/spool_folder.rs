//! A spool's folder that cannot be used when the service starts, and can be later.

use std::path::{Path, PathBuf};

use openim_group_mirror::ingest::Spool;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::support::{
    COMMAND, Service, TestDb, Wire, hand_over_spool, member_info, run, until, web,
};

/// Starts it; the wire has to carry meanwhile. With `kib`, its files cannot grow beyond that, as on a
/// disk that is full.
async fn start(wire: &Wire, folder: &Path, kib: Option<u32>) -> Service {
    let (url, folder) = (wire.url.clone(), folder.to_owned());
    let start = move || {
        let variables = [
            ("DATABASE_URL", url.as_str()),
            ("SPOOL_DIR", folder.to_str().unwrap()),
            ("SPOOL_AFTER_MS", "1000"),
        ];
        Service::start_within(&variables, kib)
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// The state after the disk has room again.
fn make_room(service: &Service) {
    let pid = Pid::from_raw(service.pid().cast_signed());
    let maximum = rustix::process::getrlimit(Resource::Fsize).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    prlimit(pid, Resource::Fsize, all).unwrap();
}

/// A file where a folder should be.
fn file_in_the_way() -> PathBuf {
    let place = run().folder("place").join("file");
    std::fs::write(&place, "no folder").unwrap();
    place
}

/// Sets the nickname of `u`; the `errCode` of the answer.
async fn set(service: &Service, nickname: &str) -> Value {
    let body = member_info("g", "u", json!({"nickName": nickname}));
    let url = format!("{}/{COMMAND}", service.base);
    let request = web::client().build().unwrap().post(url).body(body);
    let request = request.header("content-type", "application/json");
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    answer["errCode"].clone()
}

async fn text(service: &Service, path: &str) -> (u16, String) {
    let answer = web::get(format!("{}{path}", service.base)).await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.text().await.unwrap())
}

async fn metric(service: &Service, name: &str) -> f64 {
    let (_, text) = text(service, "/metrics").await;
    let prefix = format!("openim_group_mirror_{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    value.unwrap_or("-1").parse().unwrap()
}

async fn nickname(db: &TestDb) -> Vec<Value> {
    let rows = db.rows("select nickname from group_members").await;
    rows.into_iter()
        .map(|row| row["nickname"].clone())
        .collect()
}

/// Without a spool everything works while the database is there, and 5205 says when it is not. Once
/// `repair` has made the folder usable the spool is there, without a restart.
async fn goes_on_without(folder: &Path, kib: Option<u32>, repair: impl FnOnce(&Service)) {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let service = start(&wire, folder, kib).await;
    assert_eq!(set(&service, "directly").await, 0);
    assert_eq!(nickname(&db).await, ["directly"]);
    assert_eq!(metric(&service, "spool_usable").await, 0.0);
    assert_eq!(metric(&service, "spool_entries").await, 0.0);
    assert_eq!(text(&service, "/readyz").await.0, 200);

    wire.cut();
    assert_eq!(set(&service, "refused").await, 5205);
    until("both are told", async || {
        let (status, ready) = text(&service, "/readyz").await;
        status == 503 && ready.contains("database: away; callbacks: refused")
    })
    .await;
    assert_eq!(text(&service, "/readyz?for=callbacks").await.0, 503);
    wire.heal();
    until("callbacks are written again", async || {
        set(&service, "again").await == 0
    })
    .await;
    assert_eq!(nickname(&db).await, ["again"]);
    let said = service.log();
    let expected = "the spool cannot be used: callbacks are written to the database only";
    assert_eq!(said.matches(expected).count(), 1, "{said}");

    repair(&service);
    until("the spool is there", async || {
        metric(&service, "spool_usable").await == 1.0
    })
    .await;
    let said = service.log();
    assert!(said.contains("the spool can be used now"), "{said}");
    wire.cut();
    assert_eq!(set(&service, "spooled").await, 0);
    assert_eq!(metric(&service, "spool_entries").await, 1.0);
    wire.heal();
    until("the spool is drained", async || {
        metric(&service, "spool_entries").await == 0.0 && nickname(&db).await == ["spooled"]
    })
    .await;
    // Refused ones are not forgotten: their group is marked.
    let marked = "select 1 as n from groups where check_wanted_since is not null";
    assert_eq!(db.rows(marked).await.len(), 1);
}

#[tokio::test]
async fn a_start_with_a_full_disk_goes_on_without_a_spool_and_has_one_when_there_is_room() {
    goes_on_without(&run().folder("spool"), Some(0), make_room).await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_as_good_as_a_full_disk() {
    let place = file_in_the_way();
    let folder = place.join("spool");
    goes_on_without(&folder, None, |_| {
        // Made by the service, it would be its alone, and stay when the run deletes its own.
        let made = run().folder("made");
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(&made, &place).unwrap();
        hand_over_spool(&place);
    })
    .await;
}

/// A volume that is mounted late, after a stop that left nothing in it.
#[tokio::test]
async fn a_folder_that_comes_with_an_empty_spool_is_taken() {
    let place = file_in_the_way();
    let folder = place.join("spool");
    goes_on_without(&folder, None, |_| {
        let volume = run().folder("volume");
        hand_over_spool(&volume);
        drop(Spool::in_folder(&volume.join("spool"), 1 << 20).unwrap());
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(&volume, &place).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_cannot_be_made_is_as_good_as_a_full_disk() {
    let folder = run().folder("spool");
    let lock = folder.join("spool.lock");
    std::fs::create_dir(&lock).unwrap();
    goes_on_without(&folder, None, |_| std::fs::remove_dir(&lock).unwrap()).await;
}

/// The file of an earlier run is there, and nothing waits in it.
#[tokio::test]
async fn an_empty_spool_that_cannot_be_opened_holds_up_nobody() {
    let folder = run().folder("spool");
    drop(Spool::in_folder(&folder, 1 << 20).unwrap());
    let lock = folder.join("spool.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    goes_on_without(&folder, None, |_| std::fs::remove_dir(&lock).unwrap()).await;
}

/// Waiting entries are read without a right to write, after a stop and after a kill.
#[tokio::test]
async fn what_waits_on_a_full_disk_is_written_to_the_database() {
    for signal in ["TERM", "KILL"] {
        let folder = run().folder("spool");
        let db = TestDb::new().await;
        let wire = Wire::before(&db.url).await;
        wire.cut();
        let mut service = start(&wire, &folder, None).await;
        for nickname in ["one", "two", "three"] {
            assert_eq!(set(&service, nickname).await, 0);
        }
        service.signal(signal);
        tokio::task::spawn_blocking(move || service.ended())
            .await
            .unwrap();
        wire.heal();
        let service = start(&wire, &folder, Some(0)).await;
        until("it is written", async || nickname(&db).await == ["three"]).await;
        until("the spool is empty", async || {
            metric(&service, "spool_entries").await == 0.0
        })
        .await;
        assert_eq!(set(&service, "directly").await, 0);
        assert_eq!(nickname(&db).await, ["directly"]);
        make_room(&service);
        wire.cut();
        until("there is a spool again", async || {
            set(&service, "spooled").await == 0
        })
        .await;
        wire.heal();
        until("the spool is drained", async || {
            nickname(&db).await == ["spooled"]
        })
        .await;
    }
}

/// A volume that is mounted late: what waits in it was answered before what came meanwhile.
#[tokio::test]
async fn a_folder_that_comes_with_a_spool_of_its_own_ends_the_service_and_is_read_by_the_next_start()
 {
    let (db, volume) = (TestDb::new().await, run().folder("volume"));
    let variables = |url: &str, folder: &Path| {
        [
            ("DATABASE_URL", url.to_owned()),
            ("SPOOL_DIR", folder.to_str().unwrap().to_owned()),
        ]
    };
    let start = |variables: [(&'static str, String); 2]| {
        let variables = variables
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        Service::start(&variables)
    };
    hand_over_spool(&volume);
    let folder = volume.join("spool");
    let mut service = start(variables("postgres://me@127.0.0.1:1/mirror", &folder));
    assert_eq!(set(&service, "waits").await, 0);
    service.signal("TERM");
    assert!(service.ended().success());

    let place = file_in_the_way();
    let of_place = variables(&db.url, &place.join("spool"));
    let mut service = start(of_place.clone());
    assert_eq!(metric(&service, "spool_usable").await, 0.0);
    std::fs::remove_file(&place).unwrap();
    std::fs::rename(&volume, &place).unwrap();
    assert_eq!(service.ended().code(), Some(1));
    let log = service.log();
    let why =
        "the folder has come with a spool of its own, in which something waits; a restart takes it";
    assert_eq!(log.matches(why).count(), 1, "{log}");
    assert!(nickname(&db).await.is_empty());
    let _service = start(of_place);
    until("it is written", async || nickname(&db).await == ["waits"]).await;
}

/// Waiting entries are written before anything else, so the start ends if they cannot be read.
#[tokio::test]
async fn where_something_waits_that_cannot_be_read_the_start_ends() {
    let folder = run().folder("spool");
    let away = "postgres://me@127.0.0.1:1/mirror";
    let variables = |url| {
        [
            ("DATABASE_URL", url),
            ("SPOOL_DIR", folder.to_str().unwrap()),
        ]
    };
    let mut service = Service::start(&variables(away));
    assert_eq!(set(&service, "waits").await, 0);
    service.signal("TERM");
    assert!(service.ended().success());
    let lock = folder.join("spool.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let db = TestDb::new().await;
    for arguments in [&[][..], &["drain"]] {
        let ended = Service::to_end(arguments, &variables(&db.url));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = format!("SPOOL_DIR: {}: Is a directory", lock.display());
        assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    }
    assert!(nickname(&db).await.is_empty());
    std::fs::remove_dir(&lock).unwrap();
    let drain = Service::to_end(&["drain"], &variables(&db.url));
    assert_eq!(drain.code, Some(0), "{}", drain.stderr);
    assert_eq!(nickname(&db).await, ["waits"]);
}

#[test]
fn a_drain_of_a_folder_that_cannot_be_used_does_not_say_that_it_is_drained() {
    let place = file_in_the_way();
    let folder = place.join("spool");
    let variables = [
        ("DATABASE_URL", "postgres://me@127.0.0.1:1/mirror"),
        ("SPOOL_DIR", folder.to_str().unwrap()),
    ];
    let ended = Service::to_end(&["drain"], &variables);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("SPOOL_DIR: "), "{}", ended.stderr);
}
