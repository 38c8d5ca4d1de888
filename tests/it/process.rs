//! The binary as users run it: started, stopped, killed.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    ADMIN_ID, COMMAND, OpenImServer, SECRET, Service, TestDb, Wire, kill, member_info, run, until,
    wait_for, web,
};

const SOON: Duration = Duration::from_secs(20);

/// OpenIM's switches, as it is told to set them.
const SWITCHES: [&str; 9] = [
    "afterSetGroupMemberInfo",
    "afterCreateGroup",
    "afterJoinGroup",
    "afterQuitGroup",
    "afterKickGroupMember",
    "afterDismissGroup",
    "afterTransferGroupOwner",
    "afterSetGroupInfo",
    "afterSetGroupInfoEx",
];

/// The line that names both kinds of OpenIM.
const CHOICE: &str = "# OpenIM v3.8.2 to v3.8.3-patch.16 needs one line more, or joins stay unheard: \
                      openim-config --openim patch; others need these: openim-config --openim main\n";

/// Sends a callback; the reply, or what kept it away.
async fn callback(service: &str, body: String) -> Result<Value, reqwest::Error> {
    let url = format!("{service}/callbackAfterSetGroupMemberInfoCommand");
    let request = web::client().build().unwrap().post(url).body(body);
    let response = request
        .header("content-type", "application/json")
        .send()
        .await?;
    Ok(serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null))
}

async fn get(service: &str, path: &str) -> Value {
    let response = web::get(format!("{service}{path}")).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// True if no process uses the data: every process of the server holds a lock on this file.
fn is_idle(data_dir: &Path) -> bool {
    let lock = std::fs::File::open(data_dir.join("postgres/pg.lock")).unwrap();
    lock.try_lock().is_ok()
}

fn postmaster(data_dir: &Path) -> String {
    let file = std::fs::read_to_string(data_dir.join("postgres/data/postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().to_owned()
}

/// Messages to systemd's socket until `is_enough`, within a bound.
fn told_to_systemd(
    socket: &UnixDatagram,
    told: &mut Vec<String>,
    is_enough: impl Fn(&[String]) -> bool,
) {
    let end = Instant::now() + SOON;
    while !is_enough(told) {
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "not told in time: {told:?}");
        socket.set_read_timeout(Some(left)).unwrap();
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap_or(0);
        let message = String::from_utf8(message[..length].to_vec()).unwrap();
        told.extend(message.lines().map(str::to_owned));
    }
}

/// The private Postgres, which has a word for systemd as well, is not heard.
#[tokio::test]
async fn systemd_is_told_that_the_service_is_up_alive_and_stopping() {
    let folder = run().folder("systemd");
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    let data_dir = run().folder("data");
    let mut service = Service::start(&[
        ("DATA_DIR", data_dir.to_str().unwrap()),
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "200000"),
    ]);
    let mut told = Vec::new();
    let beats = |told: &[String]| told.iter().filter(|line| *line == "WATCHDOG=1").count();
    told_to_systemd(&socket, &mut told, |told| beats(told) >= 3);
    assert_eq!(told[0], "READY=1");
    get(&service.base, "/readyz").await;
    service.signal("TERM");
    told_to_systemd(&socket, &mut told, |told| {
        told.iter().any(|line| line == "STOPPING=1")
    });
    assert!(service.ended().success());
    socket.set_nonblocking(true).unwrap();
    let mut message = [0; 256];
    while let Ok(length) = socket.recv(&mut message) {
        told.push(String::from_utf8(message[..length].to_vec()).unwrap());
    }
    told.retain(|line| !line.starts_with("WATCHDOG=1"));
    assert_eq!(told, ["READY=1", "STOPPING=1"]);
}

#[tokio::test]
async fn what_was_answered_survives_kill_9_and_the_next_start_recovers_by_itself() {
    let data_dir = run().folder("data");
    let mut service = Service::private(&data_dir);
    let reply = callback(
        &service.base,
        member_info("g", "u1", json!({"nickName": "Ann"})),
    )
    .await;
    assert_eq!(reply.unwrap()["actionCode"], 0);
    service.signal("KILL");
    service.ended();
    wait_for("the private Postgres ends with its service", SOON, || {
        is_idle(&data_dir)
    });

    let service = Service::private(&data_dir);
    let member = get(&service.base, "/groups/g/members/u1").await;
    assert_eq!(member["nickName"], "Ann");
    let reply = callback(
        &service.base,
        member_info("g", "u1", json!({"roleLevel": 60})),
    )
    .await;
    assert_eq!(reply.unwrap()["actionCode"], 0);
    let member = get(&service.base, "/groups/g/members/u1").await;
    assert_eq!(
        (&member["nickName"], &member["roleLevel"]),
        (&json!("Ann"), &json!(60))
    );
}

/// Asserts the answered changes. A change more may be committed, because its answer was cut off.
async fn assert_kept(service: &str, answered: &Value) {
    for (user, role) in answered.as_object().unwrap() {
        let member = get(service, &format!("/groups/g/members/{user}")).await;
        let more = member["roleLevel"].as_i64().unwrap() - role.as_i64().unwrap();
        assert!((0..=1).contains(&more), "{user}: {member}, answered {role}");
    }
}

#[tokio::test(flavor = "multi_thread")] // the senders go on while the test waits for the end
async fn a_signal_stops_the_service_and_its_postgres_and_loses_nothing_answered() {
    let data_dir = run().folder("data");
    let mut expected = json!({});
    for signal in ["TERM", "INT"] {
        let mut service = Service::private(&data_dir);
        assert_kept(&service.base, &expected).await;
        // Senders that go on until nobody answers; each remembers what was answered last.
        let answered = Arc::new(AtomicI32::new(0));
        let senders: Vec<_> = (0..4)
            .map(|number| {
                let (base, answered) = (service.base.clone(), Arc::clone(&answered));
                tokio::spawn(async move {
                    let mut last = 0;
                    for role in 1.. {
                        let user = format!("{signal}{number}");
                        let body = member_info("g", &user, json!({"roleLevel": role}));
                        match callback(&base, body).await {
                            Ok(reply) if reply["actionCode"] == 0 => last = role,
                            _ => break,
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    (format!("{signal}{number}"), last)
                })
            })
            .collect();
        let under_way = async {
            while answered.load(Ordering::Relaxed) < 100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(SOON, under_way).await.unwrap();
        service.signal(signal);
        assert!(service.ended().success(), "{}", service.log());
        assert!(is_idle(&data_dir));
        for sender in senders {
            let (user, last) = sender.await.unwrap();
            expected[user] = json!(last);
        }
    }
    let service = Service::private(&data_dir);
    assert_kept(&service.base, &expected).await;
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_hold_up_the_stop() {
    let db = TestDb::new().await;
    let mut service = Service::start(&[("DATABASE_URL", &db.url), ("SHUTDOWN_TIMEOUT_SECS", "1")]);
    let address = service.base.strip_prefix("http://").unwrap();
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    let half = "POST /callbackAfterSetGroupMemberInfoCommand HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nContent-Length: 100\r\n\
                Expect: 100-continue\r\n\r\n";
    connection.write_all(half.as_bytes()).unwrap();
    // "100 Continue" says that the service waits for the body.
    let mut asked_for_more = [0; 12];
    connection.read_exact(&mut asked_for_more).unwrap();
    assert_eq!(&asked_for_more, b"HTTP/1.1 100");
    let asked = Instant::now();
    service.signal("TERM");
    assert!(service.ended().success(), "{}", service.log());
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn it_says_what_one_needs_to_use_it() {
    let data_dir = run().folder("data");
    let service = Service::private(&data_dir);
    let base = &service.base;
    assert!(base.starts_with("http://127.0.0.1:") && !base.ends_with(":0"));
    let postgres = data_dir.join("postgres");
    let expected = format!(
        "listening on  {base}\n\
         docs          {base}/docs\n\
         database      postgres://postgres:***@[{}]/openim_group_mirror \
         (private, ends with this process)\n\
         for OpenIM's config/webhooks.yml:\n\
         {CHOICE}url: {base}\n\
         {}",
        postgres.display(),
        SWITCHES
            .map(|switch| format!("{switch}: {{ enable: true, timeout: 5 }}\n"))
            .concat()
    );
    assert_eq!(service.banner, expected);
    // It syncs what it commits.
    assert!(!service.log().contains("fsync"), "{}", service.log());
}

#[tokio::test]
async fn when_the_private_postgres_dies_it_is_started_again_and_nothing_is_lost() {
    let data_dir = run().folder("data");
    let service = Service::private(&data_dir);
    let ok = |reply: Value| assert_eq!(reply["actionCode"], 0, "{reply}");
    ok(callback(
        &service.base,
        member_info("g", "u", json!({"roleLevel": 20})),
    )
    .await
    .unwrap());
    let first = postmaster(&data_dir);
    kill("KILL", &first);
    let said = format!(
        "the private Postgres has ended by itself; starting it again log=\"{}\"",
        data_dir.join("postgres/postgres.log").display()
    );
    // Whatever of it is still there when this comes.
    ok(callback(
        &service.base,
        member_info("g", "u", json!({"roleLevel": 60})),
    )
    .await
    .unwrap());
    until("it is there again", async || {
        let member = web::get(format!("{}/groups/g/members/u", service.base)).await;
        let member = member.unwrap().text().await.unwrap();
        member.contains("\"roleLevel\":60") && postmaster(&data_dir) != first
    })
    .await;
    assert!(service.log().contains(&said), "{}", service.log());
}

#[tokio::test]
async fn a_second_instance_on_the_same_data_is_refused_and_harms_nobody() {
    let data_dir = run().folder("data");
    let service = Service::private(&data_dir);
    let variables = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("DATA_DIR", data_dir.to_str().unwrap()),
    ];
    let second = Service::to_end(&[], &variables);
    assert_eq!(second.code, Some(1));
    let said = second.stderr;
    let pid = service.pid();
    assert!(
        said.contains(&format!("in use by another running instance (pid {pid})")),
        "{said}"
    );
    assert_eq!(get(&service.base, "/readyz").await["status"], "ok");
}

#[test]
fn without_postgres_and_without_a_url_there_are_three_ways_out() {
    let nowhere = run().folder("nowhere");
    let out = Service::to_end(
        &[],
        &[
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("DATA_DIR", run().folder("data").to_str().unwrap()),
            ("PG_BIN_DIR", nowhere.to_str().unwrap()),
        ],
    );
    assert_eq!(out.code, Some(1));
    let said = out.stderr;
    for way in [
        "sudo apt-get install postgresql",
        "set DATABASE_URL=",
        "docker compose up",
    ] {
        assert!(said.contains(way), "{said}");
    }
    assert_eq!(said.matches("openim-group-mirror: ").count(), 1, "{said}");
    assert_eq!(out.stdout, "");
}

/// A database that takes the connection and says nothing.
#[test]
fn a_signal_during_the_start_ends_it_at_once() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://me@{}/mirror", silent.local_addr().unwrap());
    let variables = [("LISTEN_ADDR", "127.0.0.1:0"), ("DATABASE_URL", &url)];
    let mut starting = Service::spawn(&[], &variables);
    let _connection = silent.accept().unwrap();
    starting.signal("TERM");
    let asked = Instant::now();
    assert!(starting.ended().success());
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let out = Service::to_end(&[], &[("LISTEN_ADDR", &addr)]);
    assert_eq!(out.code, Some(1));
    let said = out.stderr;
    assert!(
        said.contains(&format!("cannot listen on {addr} (LISTEN_ADDR)")),
        "{said}"
    );
}

#[tokio::test]
async fn with_a_database_url_that_database_is_used_and_no_private_one_started() {
    let db = TestDb::empty("").await;
    let data_dir = run().folder("data");
    let variables = [
        ("DATABASE_URL", db.url.as_str()),
        ("DATA_DIR", data_dir.to_str().unwrap()),
    ];
    let migrated = Service::to_end(&["migrate"], &variables);
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert!(db.rows("select * from group_members").await.is_empty());

    let service = Service::start(&variables);
    let body = member_info("g", "u", json!({"ex": "SECRET-EX"}));
    assert_eq!(
        callback(&service.base, body).await.unwrap()["actionCode"],
        0
    );
    assert_eq!(
        db.rows("select * from group_members").await[0]["ex"],
        "SECRET-EX"
    );
    assert!(
        service
            .banner
            .contains("database      postgres://postgres:***@[")
    );
    assert!(!service.banner.contains("private"), "{}", service.banner);
    // The run's server syncs nothing.
    let said = "fsync or synchronous_commit is off in the database";
    assert!(service.log().contains(said), "{}", service.log());
    let made = std::fs::read_dir(&data_dir).unwrap();
    let made: Vec<_> = made.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(made, ["spool"]);
}

#[tokio::test]
async fn it_starts_without_its_database_which_is_named_without_its_password() {
    // Nobody listens on port 1.
    let url = "postgres://me:hunter2@127.0.0.1:1/mirror";
    let spool = run().folder("spool");
    let variables = [
        ("DATABASE_URL", url),
        ("SPOOL_DIR", spool.to_str().unwrap()),
    ];
    let mut service = Service::start(&variables);
    let reply = callback(
        &service.base,
        member_info("g", "u", json!({"roleLevel": 20})),
    )
    .await;
    assert_eq!(reply.unwrap()["actionCode"], 0);
    let read = web::get(format!("{}/groups/g", service.base)).await;
    assert_eq!(read.unwrap().status(), 503);
    let ready = web::get(format!("{}/readyz", service.base)).await;
    let ready: Value = serde_json::from_slice(&ready.unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(ready["detail"], "database: away; callbacks: spooled");
    service.signal("TERM");
    assert!(service.ended().success());
    let said = service.log();
    let place = "cannot connect to postgres://me:***@127.0.0.1:1/mirror: ";
    assert!(said.contains(place), "{said}");
    assert!(said.contains("the spool is not empty"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");

    // Still away: nothing is drained.
    let drain = Service::to_end(&["drain"], &variables);
    assert_eq!(drain.code, Some(1), "{}", drain.stderr);
    assert!(drain.stderr.contains("1 entries wait"), "{}", drain.stderr);
    // On a database that is there, though nobody has made its tables.
    let db = TestDb::empty("").await;
    let variables = [("DATABASE_URL", db.url.as_str()), variables[1]];
    let drain = Service::to_end(&["drain"], &variables);
    assert_eq!(drain.code, Some(0), "{}", drain.stderr);
    let rows = db.rows("select role_level from group_members").await;
    assert_eq!(rows, [json!({"role_level": 20})]);
}

/// The database is there only when a third process runs, which has made no tables yet; each process has
/// another number of lanes.
#[tokio::test]
async fn what_waits_is_written_when_the_database_appears_whatever_the_number_of_lanes() {
    let db = TestDb::empty("").await;
    let wire = Wire::before(&db.url).await;
    wire.cut();
    let spool = run().folder("spool").display().to_string();
    let start = async |lanes: &str| {
        // As many as half of these, and two at most.
        let size = if lanes == "one lane" { "2" } else { "10" };
        let (url, spool) = (wire.url.clone(), spool.clone());
        let start = move || {
            Service::start(&[
                ("DATABASE_URL", url.as_str()),
                ("SPOOL_DIR", spool.as_str()),
                ("DATABASE_POOL_SIZE", size),
            ])
        };
        // The wire has to answer meanwhile.
        tokio::task::spawn_blocking(start).await.unwrap()
    };
    let send = async |service: &Service, nickname: &str| {
        for group in 0..10 {
            let body = member_info(&format!("g{group}"), "u", json!({"nickName": nickname}));
            let reply = callback(&service.base, body).await.unwrap();
            assert_eq!(reply["actionCode"], 0, "{reply}");
        }
    };
    for lanes in ["one lane", "two lanes"] {
        let service = start(lanes).await;
        send(&service, lanes).await;
        // As kill -9.
        drop(service);
    }
    let service = start("one lane").await;
    send(&service, "before it appears").await;
    wire.heal();
    until("the spool is empty", async || {
        let ready = web::get(format!("{}/readyz", service.base)).await;
        let metrics = web::get(format!("{}/metrics", service.base)).await;
        let metrics = metrics.unwrap().text().await.unwrap();
        ready.unwrap().status() == 200 && metrics.contains("spool_drained_total 30\n")
    })
    .await;
    let nicknames = "select nickname, count(*) as n from group_members group by 1";
    assert_eq!(
        db.rows(nicknames).await,
        [json!({"nickname": "before it appears", "n": 10})]
    );
    send(&service, "after").await;
    for group in 0..10 {
        let member = get(&service.base, &format!("/groups/g{group}/members/u")).await;
        assert_eq!(member["nickName"], "after");
    }
}

#[tokio::test]
async fn two_instances_do_not_share_a_spool() {
    let db = TestDb::new().await;
    let spool = run().folder("spool");
    let variables = [
        ("DATABASE_URL", db.url.as_str()),
        ("SPOOL_DIR", spool.to_str().unwrap()),
    ];
    let first = Service::start(&variables);
    for arguments in [&[][..], &["drain"]] {
        let second = Service::to_end(arguments, &variables);
        assert_eq!(second.code, Some(1));
        let expected = format!(
            "the spool in {} is in use by another running instance (pid {})",
            spool.display(),
            first.pid()
        );
        assert!(second.stderr.contains(&expected), "{}", second.stderr);
    }
}

#[test]
fn settings_come_from_dotenv_in_this_folder_only_and_all_errors_are_told_at_once() {
    let folder = run().folder("dotenv");
    std::fs::write(
        folder.join(".env"),
        "MAX_BODY_BYTES=many\nLOG_FORMAT=xml\nRUST_LOG=\n",
    )
    .unwrap();
    let inner = folder.join("inner");
    std::fs::create_dir(&inner).unwrap();
    let in_folder = |folder: &Path| {
        let out = Service::to_end_in(folder, &[], &[("DATABASE_POOL_SIZE", "0")]);
        assert_eq!(out.code, Some(2));
        out.stderr
    };
    assert_eq!(
        in_folder(&folder),
        "openim-group-mirror: the settings are not valid:\n  \
         DATABASE_POOL_SIZE: expected a whole number from 2 to 1000\n  \
         MAX_BODY_BYTES: expected a whole number from 1024 to 1073741824\n  \
         LOG_FORMAT: expected text or json\n"
    );
    assert_eq!(
        in_folder(&inner),
        "openim-group-mirror: the settings are not valid:\n  \
         DATABASE_POOL_SIZE: expected a whole number from 2 to 1000\n"
    );
    std::fs::write(
        folder.join(".env"),
        "DATABASE_URL='postgres://me:hunter2@h/d",
    )
    .unwrap();
    let said = in_folder(&folder);
    assert!(
        said.contains("./.env: expected lines of the form NAME=value"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_misspelt_name_in_dotenv_is_told() {
    let folder = run().folder("dotenv");
    let file = "CALLBACK_PASSWORD=a\nCALLBACK_PASWORD_PREVIOUS=hunter2\nPOSTGRES_PASSWORD=b\n";
    std::fs::write(folder.join(".env"), file).unwrap();
    let out = Service::to_end_in(&folder, &["openim-config"], &[("RUST_LOG", "warn")]);
    assert_eq!(out.code, Some(0));
    let told = "./.env: not settings of this program names=\"CALLBACK_PASWORD_PREVIOUS\"\n";
    assert!(out.stderr.ends_with(told), "{}", out.stderr);
}

#[test]
fn what_openim_is_to_be_told_depends_on_its_version_and_comes_in_three_forms() {
    let config = |arguments: &[&str]| {
        let url = ["openim-config", "--url", "https://mirror.example/a$b/"];
        let variables = [("CALLBACK_PASSWORD", "p@ss $1\"")];
        let out = Service::to_end(&[&url[..], arguments].concat(), &variables);
        assert_eq!(
            (out.code, out.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
        out.stdout
    };
    let url = "https://openim:p%40ss%20%241%22@mirror.example/a$b";
    let lines = SWITCHES.map(|switch| format!("{switch}: {{ enable: true, timeout: 5 }}\n"));
    let main = format!("url: {url}\n{}", lines.concat());
    let notifications =
        "afterSendGroupMsg: { enable: true, timeout: 5, allowedTypes: [\"1501-1520\"] }\n";
    assert_eq!(config(&[]), format!("{CHOICE}{main}"));
    assert_eq!(config(&["--openim", "main"]), main);
    assert_eq!(config(&["--openim", "main", "--format", "yaml"]), main);
    assert_eq!(config(&["--openim", "patch"]), main + notifications);

    let variable = |name: &str, value: &str| {
        let name = format!("IMENV_WEBHOOKS_{}", name.to_uppercase());
        (name, value.to_owned())
    };
    let mut main = vec![variable("url", url)];
    for switch in SWITCHES {
        main.push(variable(&format!("{switch}_enable"), "true"));
        main.push(variable(&format!("{switch}_timeout"), "5"));
    }
    let mut patch = main.clone();
    for (name, value) in [
        ("enable", "true"),
        ("timeout", "5"),
        ("allowedTypes", "1501-1520"),
    ] {
        patch.push(variable(&format!("afterSendGroupMsg_{name}"), value));
    }
    for (openim, expected) in [("main", main), ("patch", patch)] {
        let printed = config(&["--openim", openim, "--format", "env"]);
        let lines: Vec<String> = expected.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(printed.lines().collect::<Vec<_>>(), lines);

        let printed = config(&["--openim", openim, "--format", "compose"]);
        let map: Value = serde_yaml::from_str(&printed).unwrap();
        let expected = expected.into_iter().map(|(name, value)| {
            // What compose makes a dollar of again.
            (name, json!(value.replace('$', "$$")))
        });
        assert_eq!(
            map,
            json!({"environment": Value::Object(expected.collect())})
        );
    }
    let commented = config(&["--format", "compose"]);
    assert!(commented.starts_with(CHOICE), "{commented}");
}

#[test]
fn help_is_the_reference_and_shows_no_value_of_the_environment() {
    let help = Service::to_end(
        &["--help"],
        &[("DATABASE_URL", "postgres://me:hunter2@h/d")],
    );
    assert_eq!(help.code, Some(0));
    let help = help.stdout;
    for line in include_str!("../../.env.example")
        .lines()
        .filter(|line| !line.starts_with("# "))
    {
        let name = line.trim_start_matches('#').split('=').next().unwrap();
        assert!(help.contains(name), "{name} is not in --help");
    }
    assert!(!help.contains("hunter2"), "{help}");
}

#[tokio::test]
async fn log_lines_are_json_with_the_operation_id_and_without_the_body() {
    let db = TestDb::new().await;
    let service = Service::start(&[
        ("DATABASE_URL", &db.url),
        ("LOG_FORMAT", "json"),
        ("RUST_LOG", "debug"),
    ]);
    let url = format!(
        "{}/callbackAfterSetGroupMemberInfoCommand?key=SECRET-QUERY",
        service.base
    );
    let request = web::client()
        .build()
        .unwrap()
        .post(url)
        .header("operationID", "op-77");
    let body = member_info(
        "g",
        "u",
        json!({"roleLevel": "SECRET-ROLE", "ex": "SECRET-EX"}),
    );
    let response = request
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await;
    assert_eq!(response.unwrap().status(), 400);
    let found = AtomicBool::new(false);
    wait_for("the refusal is logged", SOON, || {
        for line in service.log().lines() {
            let line: Value = serde_json::from_str(line).expect("a log line is JSON");
            if line["code"] == "field_type" {
                let span = &line["span"];
                assert_eq!(line["level"], "WARN");
                assert_eq!(span["operation_id"], "op-77");
                assert_eq!(span["route"], "/callbackAfterSetGroupMemberInfoCommand");
                found.store(true, Ordering::Relaxed);
            }
        }
        found.load(Ordering::Relaxed)
    });
    assert!(!service.log().contains("SECRET"), "{}", service.log());
}

#[test]
fn the_health_check_asks_the_service_that_listens() {
    // Something listens and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let out = Service::to_end(&["healthcheck"], &[("LISTEN_ADDR", &silent)]);
    assert_eq!(out.code, Some(1));
    assert!(out.stderr.contains(&silent), "{}", out.stderr);

    let data_dir = run().folder("data");
    let service = Service::private(&data_dir);
    let address = service.base.strip_prefix("http://").unwrap();
    let out = Service::to_end(&["healthcheck"], &[("LISTEN_ADDR", address)]);
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    // As in a container, where it listens on all addresses, and where a proxy may be set.
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    let variables = [
        ("LISTEN_ADDR", everywhere.as_str()),
        ("http_proxy", "http://127.0.0.1:1"),
    ];
    let out = Service::to_end(&["healthcheck"], &variables);
    assert_eq!(out.code, Some(0), "{}", out.stderr);
}

/// The folder of the spool is the service's alone; those above it are not, for the private Postgres,
/// which is another account's where the service is root's, has to pass.
#[tokio::test]
async fn a_data_folder_is_made_with_all_above_it() {
    /// Files that it makes here belong to it alone, and the run could not delete them.
    struct Made(PathBuf);
    impl Drop for Made {
        fn drop(&mut self) {
            // Postgres may still be at its end, and write there.
            let deadline = Instant::now() + SOON;
            while self.0.exists() && Instant::now() < deadline {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }
    let made = Made(run().folder("above").join("not"));
    let data_dir = made.0.join("there");
    let service = Service::private(&data_dir);
    assert_eq!(get(&service.base, "/readyz").await["status"], "ok");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data_dir.join("spool")), 0o700);
    assert_ne!(mode(&data_dir), 0o700);
}

/// Fault: what compares the mirror with OpenIM ended in silence, and nothing was compared any more.
#[tokio::test]
async fn a_task_that_ends_early_is_named_and_ends_the_service() {
    let (db, openim) = (TestDb::new().await, OpenImServer::start().await);
    let mut service = Service::start(&[
        ("DATABASE_URL", &db.url),
        ("OPENIM_API_URL", &openim.url),
        ("OPENIM_ADMIN_USER_ID", ADMIN_ID),
        ("OPENIM_SECRET", SECRET),
        ("RECONCILE_INTERVAL_SECS", "1"),
    ]);
    let group =
        "insert into groups (group_id, check_reason, check_wanted_since, created_at, updated_at)
                 values ('g', 'callback_lost', 'infinity', now(), now())";
    // Of such a time the library for Postgres makes a panic, and not an error.
    db.execute(group).await;
    assert_eq!(service.ended().code(), Some(1));
    let log = service.log();
    let told = "openim-group-mirror: the task that ";
    // Whichever reads the group first.
    let named = [
        "counts marked groups",
        "reconciles marked groups",
        "reconciles all groups",
    ];
    let is_named = |name: &&str| log.contains(&format!("{told}{name} ended early"));
    assert!(named.iter().any(is_named), "{log}");
    // In order, as at a signal.
    assert!(log.contains("stopping"), "{log}");
    let next = "select pid from pg_stat_activity
                 where datname = current_database() and application_name = 'openim-group-mirror'";
    until("its sessions have ended", async || {
        db.rows(next).await.is_empty()
    })
    .await;
}

/// Fault: as long as it was not noted whom callbacks have named, no comparison asked for them, and nobody
/// was told.
#[tokio::test]
async fn what_cannot_be_noted_beside_serving_is_told() {
    let db = TestDb::new().await;
    let service = Service::start(&[("DATABASE_URL", &db.url)]);
    db.execute("alter table group_checks rename to elsewhere")
        .await;
    let client = web::client().build().unwrap();
    let callback = client
        .post(format!("{}/{COMMAND}", service.base))
        .header("content-type", "application/json")
        .body(member_info("g", "u", json!({})));
    assert_eq!(callback.send().await.unwrap().status(), 200);
    let told = "the task that notes touched groups failed; it is tried again";
    wait_for("it is told", SOON, || service.log().contains(told));
}

/// A user may put megabytes into a text; what is done with its row needs none of it.
#[tokio::test]
async fn who_leaves_a_group_takes_no_memory_for_long_texts() {
    let db = TestDb::new().await;
    db.execute(
        "insert into groups (group_id, ex, created_at, updated_at)
         select 'g' || n, repeat('x', 4 << 20), now(), now() from generate_series(0, 40) n;
         insert into group_members (group_id, user_id, ex, created_at, updated_at)
         select 'g0', 'u' || n, repeat('x', 4 << 20), now(), now() from generate_series(1, 40) n",
    )
    .await;
    let service = Service::start(&[("DATABASE_URL", &db.url), ("SPOOL_AFTER_MS", "4000")]);
    let peak = || service.peak_memory() >> 20;
    let before = peak();
    let client = web::client().build().unwrap();
    let send = async |command: &str, body: Value| {
        let body = body.to_string();
        let request = client
            .post(format!("{}/{command}", service.base))
            .body(body);
        let request = request.header("content-type", "application/json");
        assert_eq!(request.send().await.unwrap().status(), 200, "{command}");
    };
    let users: Vec<String> = (1..=40).map(|n| format!("u{n}")).collect();
    let kick = json!({
        "callbackCommand": "callbackAfterKickGroupCommand", "groupID": "g0", "kickedUserIDs": users,
        "reason": "",
    });
    send("callbackAfterKickGroupCommand", kick).await;
    let quits = (1..=40).map(|n| {
        let quit = json!({
            "callbackCommand": "callbackAfterQuitGroupCommand", "groupID": format!("g{n}"), "userID": "u",
        });
        send("callbackAfterQuitGroupCommand", quit)
    });
    futures_util::future::join_all(quits).await;
    // A slow machine may have put some into the spool.
    until("all have left", async || {
        let gone = "select user_id from group_members where left_at is not null";
        db.rows(gone).await.len() == 80
    })
    .await;
    let kept = "select (select count(*) from group_members where length(ex) = 4 << 20) as members,
                       (select count(*) from groups where length(ex) = 4 << 20) as groups";
    assert_eq!(db.rows(kept).await, [json!({"members": 40, "groups": 41})]);
    let grown = peak() - before;
    assert!(grown < 64, "{grown} MiB more");
}
