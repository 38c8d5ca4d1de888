//! The database away, hung or unwilling: a clear answer in time, and back to work by itself.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openim_group_mirror::local_postgres::{STOP_TIMEOUT, Server};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{TestApp, TestDb, Wire, kill, member_info, run, search, until};

/// OpenIM gives up after 5 s.
const OPENIM_TIMEOUT: Duration = Duration::from_secs(5);

async fn start(dir: &Path) -> Server {
    let dir = dir.to_owned();
    let start = move || Server::start(&dir, &search());
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

async fn app_on_own_server() -> (TestApp, Server, PathBuf) {
    let dir = run().folder("own").join("postgres");
    let server = start(&dir).await;
    let app = TestApp::start_on(TestDb::on(&server), |config| {
        config.database.timeout = Duration::from_secs(2);
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    (app, server, dir)
}

async fn assert_away(app: &TestApp) {
    let asked = Instant::now();
    let reply = app
        .callback_text(member_info("g", "u", json!({"roleLevel": 60})))
        .await;
    assert!(asked.elapsed() < OPENIM_TIMEOUT, "{:?}", asked.elapsed());
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("2"));
    assert_eq!(
        reply.body,
        json!({
            "actionCode": 1, "errCode": 5201, "errMsg": "the database is away",
            "errDlt": "try again in a moment", "nextCode": 0
        })
    );
    for path in [
        "/groups/g/members",
        "/groups/g/members/u",
        "/groups/g",
        "/users/u/groups",
    ] {
        let asked = Instant::now();
        let reply = app.get(path).await;
        assert!(
            asked.elapsed() < OPENIM_TIMEOUT,
            "{path}: {:?}",
            asked.elapsed()
        );
        assert_eq!(
            (reply.status, &reply.body["code"]),
            (503, &json!("database_away")),
            "{path}"
        );
        assert_eq!(reply.header("retry-after"), Some("2"));
    }
    let asked = Instant::now();
    let reply = app.get("/readyz").await;
    assert!(asked.elapsed() < OPENIM_TIMEOUT, "{:?}", asked.elapsed());
    assert_eq!(
        (reply.status, &reply.body["code"], &reply.body["detail"]),
        (503, &json!("not_ready"), &json!("database: away"))
    );
    assert_eq!(app.get("/livez").await.status, 200);
}

async fn assert_back(app: &TestApp) {
    let back = async {
        while app.get("/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back)
        .await
        .unwrap();
    app.set("g", "u", json!({"roleLevel": 100})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(100));
}

#[tokio::test]
async fn a_database_that_is_gone_gives_503_and_is_found_again() {
    let (app, mut server, dir) = app_on_own_server().await;
    tokio::task::spawn_blocking(move || server.stop(STOP_TIMEOUT))
        .await
        .unwrap()
        .unwrap();
    assert_away(&app).await;
    let _server = start(&dir).await;
    // Of the callback that was refused, nothing else is left.
    until("the group is marked", async || {
        let group = app.get("/groups/g").await.ok();
        group["checkReason"] == "callback_lost"
    })
    .await;
    until("no mark waits", async || {
        app.metric("marks_waiting").await == 0.0
    })
    .await;
    assert_back(&app).await;
}

#[tokio::test]
async fn a_restart_of_postgres_costs_no_callback() {
    let dir = run().folder("own").join("postgres");
    let mut server = start(&dir).await;
    let app = TestApp::start_on(TestDb::on(&server), |config| {
        config.database.timeout = Duration::from_secs(10);
    })
    .await;
    app.set("h", "u", json!({})).await;
    let restarted = AtomicBool::new(false);
    let send = async |connection: usize| {
        let mut sent = 0;
        // On past the restart, and not before something was sent.
        while !restarted.load(Ordering::SeqCst) || sent < 20 {
            sent += 1;
            let user = format!("u{connection}");
            app.set("g", &user, json!({"roleLevel": sent})).await;
        }
        assert_eq!(
            app.member("g", &format!("u{connection}")).await.unwrap()[0],
            json!(sent)
        );
        sent
    };
    let restart = async {
        until("callbacks come", async || {
            app.db.rows("select 1 as n from group_members").await.len() == 9
        })
        .await;
        // Its connections would have to end before the server does.
        app.db.pool.close().await;
        tokio::task::spawn_blocking(move || server.stop(STOP_TIMEOUT))
            .await
            .unwrap()
            .unwrap();
        let server = start(&dir).await;
        restarted.store(true, Ordering::SeqCst);
        server
    };
    let (sent, _server) = tokio::join!(futures_util::future::join_all((0..8).map(send)), restart);
    assert!(sent.iter().all(|sent| *sent >= 20), "{sent:?}");
}

/// Every process of a server, stopped in its tracks; they go on when this is dropped or when this
/// process dies: the shell waits for the end of its input.
struct Frozen(Child);

impl Frozen {
    async fn server(server: &Server, dir: &Path) -> Frozen {
        let file = std::fs::read_to_string(dir.join("data/postmaster.pid")).unwrap();
        let postmaster = file.lines().next().unwrap().trim().to_owned();
        let mut connection = PgConnection::connect(&server.url("postgres"))
            .await
            .unwrap();
        // From here on nobody new is born; one that was born just now may not be listed yet, but
        // Linux knows its children.
        kill("STOP", &postmaster);
        let listed: Vec<i32> = sqlx::query_scalar("select pid from pg_stat_activity")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let listed = listed.iter().map(i32::to_string);
        let mut pids: Vec<String> = listed
            .chain(children.split_whitespace().map(str::to_owned))
            .chain([postmaster])
            .collect();
        pids.sort();
        pids.dedup();
        let pids = pids.join(" ");
        let mut shell = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "trap '' INT TERM HUP; kill -STOP {pids}; echo; read -r _; kill -CONT {pids}"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = shell.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "\n");
        Frozen(shell)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_database_that_hangs_gives_503_in_time_and_is_found_again() {
    let (app, server, dir) = app_on_own_server().await;
    let frozen = Frozen::server(&server, &dir).await;
    // More at once than there are connections, and some of the callers hang up.
    let impatient = reqwest::Client::builder()
        .timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let url = format!("{}/groups/g/members", app.base);
    for result in futures_util::future::join_all((0..8).map(|_| impatient.get(&url).send())).await {
        assert!(result.unwrap_err().is_timeout());
    }
    assert_away(&app).await;
    drop(frozen);
    assert_back(&app).await;
}

/// Nobody says that the connections are gone, so each has to be given up on, and its place in the
/// pool with it.
#[tokio::test]
async fn connections_that_fall_silent_are_given_up_on_and_replaced() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let url = wire.url.clone();
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(url.into());
        config.database.timeout = Duration::from_secs(1);
    })
    .await;
    for round in 0..2 {
        // As many connections as the pool may have.
        let gets = (0..8).map(|_| app.get("/groups/g/members"));
        futures_util::future::join_all(gets).await;
        wire.forget_connections();
        let asked = Instant::now();
        let gets = (0..8).map(|_| app.get("/groups/g/members"));
        for reply in futures_util::future::join_all(gets).await {
            assert!([200, 503].contains(&reply.status), "{reply:?}");
        }
        assert!(
            asked.elapsed() < OPENIM_TIMEOUT,
            "{round}: {:?}",
            asked.elapsed()
        );
        assert_back(&app).await;
        // All places are there again: so many writes at once find one each.
        let set = async |n: u8| app.set("g", &format!("u{n}"), json!({})).await;
        futures_util::future::join_all((0..4).map(set)).await;
    }
}

#[tokio::test]
async fn a_statement_that_waits_too_long_gives_503_and_is_ended() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.database.timeout = Duration::from_secs(2);
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    let holder = app.db.hold_members().await;
    let asked = Instant::now();
    let reply = app
        .callback_text(member_info("g", "u", json!({"roleLevel": 60})))
        .await;
    assert_eq!((reply.status, &reply.body["errCode"]), (503, &json!(5201)));
    assert!(asked.elapsed() < OPENIM_TIMEOUT, "{:?}", asked.elapsed());
    holder.rollback().await.unwrap();
    // Postgres gave up too: what was answered as refused does not come in later.
    app.set("g", "u", json!({})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(20));
}

/// A caller who hangs up does not free a place in the pool: Postgres is still at its statement.
#[tokio::test]
async fn callers_who_hang_up_never_make_for_more_connections_than_the_pool_has() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    let mut holder = app.db.pool.begin().await.unwrap();
    let lock = "lock table group_members in access exclusive mode";
    holder.execute(lock).await.unwrap();
    let impatient = reqwest::Client::builder()
        .timeout(Duration::from_millis(150))
        .build()
        .unwrap();
    let url = format!("{}/groups/g/members", app.base);
    let ours = "select 1 from pg_stat_activity where application_name = 'openim-group-mirror'
                   and datname = current_database()";
    for _ in 0..5 {
        let asked = (0..6).map(|_| impatient.get(&url).send());
        for result in futures_util::future::join_all(asked).await {
            assert!(result.unwrap_err().is_timeout());
        }
        let connections = app.db.rows(ours).await.len();
        assert!((1..=4).contains(&connections), "{connections}");
    }
    holder.rollback().await.unwrap();
    assert_back(&app).await;
}

#[tokio::test]
async fn an_error_of_ours_tells_the_caller_nothing_of_the_inside() {
    let app = TestApp::start().await;
    app.db
        .execute("alter table group_members add constraint no_admins check (role_level < 50)")
        .await;
    let reply = app
        .callback_text(member_info("g", "u", json!({"roleLevel": 60})))
        .await;
    assert_eq!(reply.status, 500);
    assert_eq!(
        reply.body,
        json!({
            "actionCode": 1, "errCode": 5202, "errMsg": "internal error",
            "errDlt": "the log says more", "nextCode": 0
        })
    );
}
