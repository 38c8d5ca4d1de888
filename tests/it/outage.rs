//! The database away, hung or unwilling: a clear answer in time, and back to work by itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openim_group_mirror::domain::Change;
use openim_group_mirror::http::understand;
use openim_group_mirror::ingest::{Ingest, Retention, Spool, drain};
use openim_group_mirror::local_postgres::{STOP_TIMEOUT, Server};
use openim_group_mirror::store::Database;
use serde_json::json;
use sqlx::Executor;
use time::OffsetDateTime;

use crate::support::{
    Frozen, Service, TestApp, TestDb, Wire, member_info, run, search, until, web,
};

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
        config.spool.after = Duration::from_millis(500);
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    (app, server, dir)
}

/// Callbacks go to the spool and reads are refused, all in time.
async fn assert_away(app: &TestApp) {
    for role in [60, 61] {
        let asked = Instant::now();
        app.set("g", "u", json!({"roleLevel": role})).await;
        assert!(asked.elapsed() < OPENIM_TIMEOUT, "{:?}", asked.elapsed());
    }
    assert_eq!(app.metric("spool_entries").await, 2.0);
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
        (
            503,
            &json!("not_ready"),
            &json!("database: away; callbacks: spooled")
        )
    );
    assert_eq!(app.get("/readyz?for=callbacks").await.status, 200);
    assert_eq!(app.get("/readyz?for=reads").await.status, 503);
    assert_eq!(app.get("/livez").await.status, 200);
}

/// Everything is in the database, in its order.
async fn drained(app: &TestApp) {
    until("it is ready, and the spool is empty", async || {
        app.get("/readyz").await.status == 200 && app.metric("spool_entries").await == 0.0
    })
    .await;
}

async fn assert_caught_up(app: &TestApp) {
    drained(app).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(61));
    assert_eq!(app.metric("spool_drained_total").await, 2.0);
    // As before: nothing of it was missed.
    let group = app.get("/groups/g").await.ok();
    assert_eq!(group["checkReason"], "group_unknown");
    assert_back(app).await;
}

async fn assert_back(app: &TestApp) {
    drained(app).await;
    // Directly again: whoever asks after the answer sees it.
    until("callbacks are written directly", async || {
        let before = app.metric("spool_spooled_total").await;
        app.set("g", "u", json!({"roleLevel": 100})).await;
        app.metric("spool_spooled_total").await == before
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 30})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(30));
}

#[tokio::test]
async fn callbacks_wait_for_a_database_that_is_gone_and_are_written_when_it_is_back() {
    let (app, mut server, dir) = app_on_own_server().await;
    tokio::task::spawn_blocking(move || server.stop(STOP_TIMEOUT))
        .await
        .unwrap()
        .unwrap();
    assert_away(&app).await;
    let _server = start(&dir).await;
    assert_caught_up(&app).await;
}

#[tokio::test]
async fn a_restart_of_postgres_costs_no_callback() {
    let dir = run().folder("own").join("postgres");
    let mut server = start(&dir).await;
    let app = TestApp::start_on(TestDb::on(&server), |_| {}).await;
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
    drained(&app).await;
    for (connection, sent) in sent.iter().enumerate() {
        let member = app.member("g", &format!("u{connection}")).await;
        assert_eq!(member.unwrap()[0], json!(sent));
    }
}

#[tokio::test]
async fn callbacks_wait_for_a_database_that_hangs_and_are_written_when_it_goes_on() {
    let (app, server, dir) = app_on_own_server().await;
    let frozen = Frozen::server(&server, &dir).await;
    // More at once than there are connections, and some of the callers hang up.
    let impatient = web::client()
        .timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let url = format!("{}/groups/g/members", app.base);
    for result in futures_util::future::join_all((0..8).map(|_| impatient.get(&url).send())).await {
        assert!(result.unwrap_err().is_timeout());
    }
    assert_away(&app).await;
    drop(frozen);
    assert_caught_up(&app).await;
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
        config.spool.after = Duration::from_millis(500);
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
async fn a_change_whose_row_is_locked_for_long_waits_in_the_spool() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.spool.after = Duration::from_millis(500);
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    let holder = app.db.hold_members().await;
    for role in [60, 61] {
        let asked = Instant::now();
        app.set("g", "u", json!({"roleLevel": role})).await;
        assert!(asked.elapsed() < OPENIM_TIMEOUT, "{:?}", asked.elapsed());
    }
    // The database is there, only the callbacks wait.
    assert_eq!(app.get("/readyz").await.status, 200);
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(20));
    holder.rollback().await.unwrap();
    assert_caught_up(&app).await;
}

/// A caller who hangs up does not free a place in the pool: Postgres is still at its statement.
#[tokio::test]
async fn callers_who_hang_up_never_make_for_more_connections_than_the_pool_has() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    let mut holder = app.db.pool.begin().await.unwrap();
    let lock = "lock table group_members in access exclusive mode";
    holder.execute(lock).await.unwrap();
    let impatient = web::client()
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

/// A change that the database refuses for good is answered at once. If it comes from the spool, it is kept with the
/// rejected callbacks, its group is marked, and the others are written.
#[tokio::test]
async fn what_the_database_refuses_for_good_holds_up_nothing() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.spool.after = Duration::from_millis(500);
    })
    .await;
    for group in ["g", "h", "i"] {
        app.set(group, "u", json!({"roleLevel": 20})).await;
    }
    let constraint =
        "alter table group_members add constraint no_admins check (role_level <> 60) not valid";
    app.db.execute(constraint).await;
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
    let holder = app.db.hold_members().await;
    for (group, user, role) in [
        ("g", "u", 21),
        ("h", "bad", 60),
        ("h", "u", 22),
        ("i", "u", 23),
    ] {
        app.set(group, user, json!({"roleLevel": role})).await;
    }
    holder.rollback().await.unwrap();
    drained(&app).await;
    for (group, role) in [("g", 21), ("h", 22), ("i", 23)] {
        assert_eq!(app.member(group, "u").await.unwrap()[0], json!(role));
    }
    let kept = "select id, path, code, detail from rejected_callbacks";
    let kept = app.db.rows(kept).await;
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(
        (&kept[0]["path"], &kept[0]["code"]),
        (&json!("/spool"), &json!("database_refused"))
    );
    assert!(kept[0]["detail"].as_str().unwrap().contains("23514"));
    assert_eq!(
        app.get("/groups/h").await.ok()["checkReason"],
        "callback_lost"
    );
    // When the database takes it, it can be sent in again.
    app.db
        .execute("alter table group_members drop constraint no_admins")
        .await;
    let variables = [("DATABASE_URL", app.db.url.as_str())];
    let replayed = Service::to_end(&["rejected", "replay", "--all"], &variables);
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(app.member("h", "bad").await.unwrap()[0], json!(60));
}

/// Among many those that the database refuses are found, wherever they are, and no other is left out
/// or comes out of its order.
#[tokio::test]
async fn of_many_that_wait_those_that_the_database_refuses_are_found() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.spool.after = Duration::from_millis(500);
    })
    .await;
    for user in 0..90 {
        app.set("g", &format!("u{user}"), json!({"roleLevel": 20}))
            .await;
    }
    let constraint =
        "alter table group_members add constraint no_admins check (role_level <> 60) not valid";
    app.db.execute(constraint).await;
    let holder = app.db.hold_members().await;
    let bad = [0, 1, 2, 30, 57, 58, 89];
    for user in 0..90 {
        let id = format!("u{user}");
        let role = if bad.contains(&user) { 60 } else { 21 };
        for values in [
            json!({"ex": "old"}),
            json!({"roleLevel": role}),
            json!({"ex": "new"}),
        ] {
            app.set("g", &id, values).await;
        }
    }
    holder.rollback().await.unwrap();
    drained(&app).await;
    assert_eq!(app.metric("spool_drained_total").await, 270.0);
    for user in 0..90 {
        let role = if bad.contains(&user) { 20 } else { 21 };
        let shown = app.get(&format!("/groups/g/members/u{user}")).await.ok();
        assert_eq!(
            (&shown["roleLevel"], &shown["ex"]),
            (&json!(role), &json!("new")),
            "{user}"
        );
    }
    let kept = "select id from rejected_callbacks where code = 'database_refused'";
    assert_eq!(app.db.rows(kept).await.len(), bad.len());
    assert_eq!(app.metric("spool_rejected_total").await, 7.0);
}

/// A value that no library of ours can read makes the drain panic, not end.
#[tokio::test]
async fn a_panic_of_the_drain_is_not_its_end() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.spool.after = Duration::from_millis(500);
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    app.set("h", "u", json!({"roleLevel": 20})).await;
    app.db
        .execute("update group_members set left_at = 'infinity' where group_id = 'g'")
        .await;
    let mut holder = app.db.pool.begin().await.unwrap();
    let lock = "lock table groups, group_members in exclusive mode";
    holder.execute(lock).await.unwrap();
    app.set("g", "u", json!({"roleLevel": 60})).await;
    app.set("h", "u", json!({"roleLevel": 60})).await;
    holder.rollback().await.unwrap();
    // Whatever it is at: it goes on when the value is one.
    let fix = "update group_members set left_at = null where group_id = 'g'";
    until("the drain has tried", async || {
        let sessions = "select 1 as n from pg_stat_activity
             where datname = current_database() and query like '%FROM unnest%JOIN group_members%'";
        !app.db.rows(sessions).await.is_empty()
    })
    .await;
    app.db.execute(fix).await;
    drained(&app).await;
    for group in ["g", "h"] {
        assert_eq!(app.member(group, "u").await.unwrap()[0], json!(60));
    }
}

const NONE_KEPT: Retention = Retention {
    keep_days: 1,
    max_bytes: 0,
};

/// A patch of a member, as a callback has it.
fn change(user: &str) -> Change {
    let body = member_info("g", user, json!({"roleLevel": 60}));
    let path = "/callbackAfterSetGroupMemberInfoCommand";
    understand(path, body.as_bytes(), OffsetDateTime::now_utc()).unwrap()
}

#[tokio::test]
async fn at_a_stop_the_spool_is_drained_each_time_the_database_is_there() {
    let db = TestDb::new().await;
    let wait = Duration::from_secs(5);
    let away = "postgres://nobody@127.0.0.1:1/away";
    let away = Database::new(away, "public", 4, wait, wait).unwrap();
    for round in 0..12 {
        let spool = Spool::in_folder(&run().folder("spool"), 1 << 20).unwrap();
        let ingest = Ingest::new(away.store(), NONE_KEPT, Some(spool.clone()));
        ingest.submit(change("u")).await.unwrap();
        ingest.close().await;
        assert_eq!(spool.state().waiting, 1);
        let store = db.database().store();
        // It is told to end before it has begun.
        Ingest::new(store.clone(), NONE_KEPT, Some(spool.clone()))
            .close()
            .await;
        store.close().await;
        assert_eq!(spool.state().waiting, 0, "{round}");
    }
}

#[tokio::test]
async fn a_stop_in_a_pause_of_the_drain_tries_once_more() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let wait = Duration::from_secs(5);
    for round in 0..3 {
        let store = Database::new(&wire.url, "public", 4, wait, wait).unwrap();
        let store = store.store();
        let spool = Spool::in_folder(&run().folder("spool"), 1 << 20).unwrap();
        wire.cut();
        let ingest = Ingest::new(store.clone(), NONE_KEPT, Some(spool.clone()));
        ingest.submit(change("u")).await.unwrap();
        let before = wire.made();
        // Pauses are short at first.
        until("the drain has tried some times", async || {
            wire.made() >= before + 6
        })
        .await;
        assert_eq!(spool.state().waiting, 1);
        wire.heal();
        ingest.close().await;
        assert_eq!(spool.state().waiting, 0, "{round}");
        store.close().await;
    }
}

/// With a copy of another's folder, or of its number, nothing is taken for written that is not.
#[tokio::test]
async fn what_waits_is_not_given_up_for_numbers_of_another_spool() {
    let folder = run().folder("spool");
    let spool = Spool::in_folder(&folder, 1 << 20).unwrap();
    let wait = Duration::from_secs(5);
    let away = "postgres://nobody@127.0.0.1:1/away";
    let away = Database::new(away, "public", 4, wait, wait)
        .unwrap()
        .store();
    let ingest = Ingest::new(away, NONE_KEPT, Some(spool.clone()));
    ingest.submit(change("u")).await.unwrap();
    ingest.close().await;
    assert_eq!(spool.state().waiting, 1);

    let db = TestDb::new().await;
    let id = std::fs::read_to_string(folder.join("spool.id")).unwrap();
    let id: i64 = id.trim().parse().unwrap();
    sqlx::query("insert into lane_positions values ($1, 0, $2)")
        .bind(id)
        .bind(i64::MAX / 2)
        .execute(&db.pool)
        .await
        .unwrap();
    let refused = drain(&spool, db.database().store()).await.unwrap_err();
    assert!(refused.to_string().contains("spool.id"), "{refused}");
    assert_eq!(spool.state().waiting, 1);
    db.execute("delete from lane_positions").await;
    drain(&spool, db.database().store()).await.unwrap();
    assert_eq!(spool.state().waiting, 0);
    let rows = db.rows("select role_level from group_members").await;
    assert_eq!(rows, [json!({"role_level": 60})]);
}
