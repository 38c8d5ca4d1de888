//! Callbacks that could not be understood are kept, within bounds, and can be looked at, taken in
//! again and deleted.

use std::time::{Duration, Instant};

use openim_group_mirror::domain::Rejected;
use openim_group_mirror::ingest::{Ingest, Retention, Spool, drain};
use openim_group_mirror::store::Database;
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{
    COMMAND, Ended, Reply, Service, TestApp, TestDb, body_of, member_info, run, sample, until,
    wait_for, web,
};

const ALL: &str =
    "select id, path, operation_id, code, detail, body_bytes, octet_length(body) as kept,
                          received_at > now() - interval '1 minute' as fresh
                     from rejected_callbacks order by id";

async fn post(app: &TestApp, content_type: &str, body: String) -> Reply {
    app.send(
        Method::POST,
        &format!("//{COMMAND}/?contenttype=json&key=SECRET"),
        |request| {
            request
                .header("content-type", content_type)
                .header("operationID", "op-1")
                .body(body)
        },
    )
    .await
}

#[tokio::test]
async fn what_cannot_be_understood_is_kept_with_what_is_known_of_it() {
    let app = TestApp::start().await;
    let body = member_info("g", "u", json!({"roleLevel": "60"}));
    assert_eq!(
        post(&app, "application/json", body.clone()).await.status,
        400
    );
    assert_eq!(
        post(&app, "text/plain", sample().to_string()).await.status,
        415
    );
    let path = format!("/{COMMAND}");
    let expected = [
        json!({
            "id": 1, "path": path, "operation_id": "op-1", "code": "field_type",
            "detail": "roleLevel: expected a whole number from -2147483648 to 2147483647, found a string",
            "body_bytes": body.len(), "kept": body.len(), "fresh": true,
        }),
        json!({
            "id": 2, "path": path, "operation_id": "op-1", "code": "not_json",
            "detail": "Content-Type: expected application/json",
            "body_bytes": sample().to_string().len(), "kept": sample().to_string().len(), "fresh": true,
        }),
    ];
    assert_eq!(app.db.rows(ALL).await, expected);
    let kept = "rejected_callbacks_total{code=\"field_type\",kept=\"yes\"}";
    assert_eq!(app.metric(kept).await, 1.0);
}

#[tokio::test]
async fn what_is_refused_for_another_reason_is_counted_only() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["p".to_owned().into()];
        config.body.max_bytes = 10_000;
    })
    .await;
    let send = async |method: Method, path: &str, password: &str, body: String| {
        let reply = app
            .send(method, path, |request| {
                request
                    .basic_auth("openim", Some(password))
                    .header("content-type", "application/json")
                    .body(body)
            })
            .await;
        reply.status
    };
    let path = format!("/{COMMAND}");
    let refused = || member_info("g", "u", json!({"roleLevel": "60"}));
    assert_eq!(send(Method::POST, &path, "wrong", refused()).await, 401);
    assert_eq!(
        send(Method::POST, "/no/where", "wrong", refused()).await,
        401
    );
    assert_eq!(send(Method::POST, "/groups/g", "p", refused()).await, 405);
    assert_eq!(send(Method::POST, &path, "p", body_of(10_001)).await, 413);
    // Reads are asked again by whoever asked.
    assert_eq!(
        send(Method::POST, "/memberships/query", "p", refused()).await,
        400
    );
    assert!(app.db.rows(ALL).await.is_empty());
    for (command, outcome) in [
        (COMMAND, "credentials_wrong"),
        ("other", "credentials_wrong"),
        ("other", "method_not_allowed"),
        (COMMAND, "body_too_large"),
    ] {
        let line = format!("callbacks_total{{command=\"{command}\",outcome=\"{outcome}\"}}");
        assert_eq!(app.metric(&line).await, 1.0, "{line}");
    }
}

#[tokio::test]
async fn the_first_mib_of_a_long_body_is_kept() {
    let app = TestApp::start().await;
    let body = body_of(3 << 20).replace(COMMAND, &"x".repeat(COMMAND.len()));
    let reply = app.callback_text(body.clone()).await;
    assert_eq!(reply.body["errCode"], 5105);
    app.assert_kept(body.as_bytes(), &reply).await;
    let rows = app.db.rows(ALL).await;
    assert_eq!(rows[0]["kept"], json!(1 << 20));
    assert_eq!(rows[0]["body_bytes"], json!(3 << 20));
}

#[tokio::test]
async fn what_cannot_be_kept_now_waits_until_it_can() {
    let app = TestApp::start().await;
    app.db
        .execute("alter table rejected_callbacks rename to not_there")
        .await;
    let reply = app.callback_text("no JSON").await;
    assert_eq!((reply.status, &reply.body["errCode"]), (400, &json!(5101)));
    let kept = "rejected_callbacks_total{code=\"body_malformed\",kept=\"yes\"}";
    assert_eq!(app.metric(kept).await, 1.0);
    assert_eq!(app.metric("spool_entries").await, 1.0);
    app.db
        .execute("alter table not_there rename to rejected_callbacks")
        .await;
    until("it is kept", async || app.db.rows(ALL).await.len() == 1).await;
    app.assert_kept(b"no JSON", &reply).await;
}

#[tokio::test]
async fn the_oldest_go_when_there_is_no_room() {
    let retention = Retention {
        keep_days: 30,
        max_bytes: 64 << 10,
    };
    let app = TestApp::start_on(TestDb::new().await, |config| config.rejected = retention).await;
    let size = "select coalesce(sum(octet_length(body) + 256), 0) as bytes, count(*) as n,
                       coalesce(max(id) - min(id) + 1, 0) as span
                  from rejected_callbacks";
    for _ in 0..20 {
        app.callback_text("x".repeat(10_000)).await;
        let row = &app.db.rows(size).await[0];
        assert!(row["bytes"].as_u64().unwrap() <= 64 << 10, "{row}");
        assert_eq!(row["n"], row["span"], "{row}");
    }
    let row = &app.db.rows(size).await[0];
    assert_eq!(row["n"], json!(6), "{row}");
    let newest = "select max(id) as id from rejected_callbacks";
    assert_eq!(app.db.rows(newest).await, [json!({"id": 20})]);
}

/// OpenIM has two connections; one that waits for our housekeeping takes no callbacks.
#[tokio::test]
async fn nobody_waits_for_a_deletion_that_takes_long() {
    let retention = Retention {
        keep_days: 30,
        max_bytes: 64 << 10,
    };
    let app = TestApp::start_on(TestDb::new().await, |config| config.rejected = retention).await;
    for _ in 0..6 {
        app.callback_text("x".repeat(10_000)).await;
    }
    // Whoever deletes these has to wait; whoever adds one has not.
    let mut holder = app.db.pool.begin().await.unwrap();
    let lock = "select 1 from rejected_callbacks for update";
    sqlx::query(lock).fetch_all(&mut *holder).await.unwrap();
    let asked = Instant::now();
    assert_eq!(app.callback_text("x".repeat(10_000)).await.status, 400);
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    let count = "select count(*) as n from rejected_callbacks";
    assert_eq!(app.db.rows(count).await[0]["n"], json!(7));
    holder.rollback().await.unwrap();
    until("the oldest is gone", async || {
        app.db.rows(count).await[0]["n"] == json!(6)
    })
    .await;
}

#[tokio::test]
async fn none_are_kept_where_there_is_no_room_at_all() {
    let retention = Retention {
        keep_days: 30,
        max_bytes: 0,
    };
    let app = TestApp::start_on(TestDb::new().await, |config| config.rejected = retention).await;
    assert_eq!(app.callback_text("no JSON").await.status, 400);
    assert!(app.db.rows(ALL).await.is_empty());
}

#[tokio::test]
async fn those_that_are_kept_too_long_are_gone_after_a_start() {
    let db = TestDb::new().await;
    db.execute(
        "insert into rejected_callbacks
                (received_at, stored_at, path, code, detail, body, body_bytes)
         select now() - n * interval '1 hour', now() - n * interval '1 hour', '/p', 'c', 'd', '', 0
           from generate_series(5000, 1, -1) n",
    )
    .await;
    let app = TestApp::start_on(db, |config| config.rejected.keep_days = 2).await;
    let count = "select count(*) as n from rejected_callbacks";
    until("the old ones are gone", async || {
        app.db.rows(count).await[0]["n"] == json!(47)
    })
    .await;
}

/// Nobody has seen it before it is in the table: its days begin there.
#[tokio::test]
async fn one_that_waited_in_the_spool_for_longer_than_they_are_kept_is_kept() {
    let retention = Retention {
        keep_days: 2,
        max_bytes: 1 << 20,
    };
    let spool = Spool::in_folder(&run().folder("spool"), 1 << 20).unwrap();
    let wait = Duration::from_secs(5);
    let away = "postgres://nobody@127.0.0.1:1/away";
    let away = Database::new(away, "public", 4, wait, wait).unwrap();
    let ingest = Ingest::new(away.store(), retention, Some(spool.clone()));
    let received_at = OffsetDateTime::now_utc() - Duration::from_secs(3 * 86400);
    let rejected = Rejected {
        received_at,
        path: "/p".into(),
        operation_id: None,
        code: "body_malformed".into(),
        detail: "d".into(),
        body: "no JSON".into(),
        body_bytes: 7,
    };
    assert!(ingest.keep_rejected(rejected).await.unwrap());
    ingest.close().await;
    let db = TestDb::new().await;
    drain(&spool, db.database().store()).await.unwrap();
    // As an instance of an earlier version keeps one.
    db.execute(
        "insert into rejected_callbacks (received_at, path, code, detail, body, body_bytes)
         values (now() - interval '3 days', '/p', 'c', 'd', '', 0)",
    )
    .await;
    let store = db.database().open().await.unwrap();
    let purge = async || store.purge_rejected(2, u64::MAX).await.unwrap();
    assert_eq!(purge().await, 0);
    let days = |ago: u32| {
        format!(
            "update rejected_callbacks set stored_at = now() - {ago} * interval '1 day'
              where id = 1"
        )
    };
    db.execute(&days(1)).await;
    assert_eq!(purge().await, 0);
    db.execute(&days(3)).await;
    assert_eq!(purge().await, 1);
    assert_eq!(db.rows("select id from rejected_callbacks").await.len(), 1);
    store.close().await;
}

fn ended(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let all: Vec<&str> = ["rejected"].iter().chain(arguments).copied().collect();
    Service::to_end(&all, variables)
}

/// A 415 is the sender's mistake about the type; the body can be applied as it is. The same
/// command line works beside a running service, here on its private Postgres.
#[tokio::test]
async fn they_can_be_listed_shown_taken_in_again_and_deleted_beside_a_running_service() {
    let data_dir = run().folder("data");
    let service = Service::private(&data_dir);
    let client = web::client().build().unwrap();
    let post = async |content_type: &str, body: String| {
        let url = format!("{}/{COMMAND}", service.base);
        let request = client.post(url).header("content-type", content_type);
        let request = request.header("operationID", "op-7").body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let sample = sample().to_string();
    assert_eq!(post("text/plain", sample.clone()).await, 415);
    assert_eq!(post("application/json", "{\u{1}".into()).await, 400);
    let later = member_info("12345", "user789", json!({"nickName": "later"}));
    assert_eq!(post("text/plain", later).await, 415);
    let big = "x".repeat((1 << 20) + 1);
    assert_eq!(post("text/plain", big).await, 415);

    let variables = [("DATA_DIR", data_dir.to_str().unwrap())];
    let rejected = |arguments: &[&str]| ended(arguments, &variables);
    let listed = rejected(&["list", "--json"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let lines: Vec<Value> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ids: Vec<&Value> = lines.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, [4, 3, 2, 1]);
    assert_eq!(lines[2]["code"], "body_malformed");
    assert_eq!(lines[2]["operationID"], "op-7");
    assert_eq!(lines[3]["bodyBytes"], json!(sample.len()));
    let listed = rejected(&["list", "--limit", "1"]);
    assert_eq!(listed.stdout.lines().count(), 2, "{}", listed.stdout);

    let shown = rejected(&["show", "1"]);
    assert_eq!(shown.stdout, sample);
    assert!(
        shown.stderr.contains("code         not_json\n"),
        "{}",
        shown.stderr
    );
    let missing = rejected(&["show", "9"]);
    assert_eq!(missing.code, Some(1));
    assert!(
        missing
            .stderr
            .ends_with("openim-group-mirror: there is no rejected callback 9\n")
    );

    // In order of arrival, so that the later one counts.
    let replayed = rejected(&["replay", "3", "1"]);
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(replayed.stdout, "1: applied\n3: applied\n");
    let member = format!("{}/groups/12345/members/user789", service.base);
    let member = client.get(&member).send().await.unwrap();
    let member: Value = serde_json::from_slice(&member.bytes().await.unwrap()).unwrap();
    assert_eq!(member["nickName"], "later");
    assert_eq!(member["ex"], "Extra data");

    let replayed = rejected(&["replay", "--all"]);
    assert_eq!(replayed.code, Some(1));
    assert_eq!(
        replayed.stdout,
        "2: still not understood: body_malformed: expected JSON; stopped at line 1 column 2\n\
         4: still not understood: the body was cut when it was kept\n"
    );
    assert!(
        replayed.stderr.ends_with("2 could not be applied\n"),
        "{}",
        replayed.stderr
    );
    assert_eq!(rejected(&["delete", "2"]).stdout, "deleted 1\n");
    assert_eq!(rejected(&["delete", "--all"]).stdout, "deleted 1\n");
    assert_eq!(rejected(&["list", "--json"]).stdout, "");
    // One has to say which.
    assert_eq!(rejected(&["delete"]).code, Some(2));
    assert_eq!(rejected(&["delete", "--all", "3"]).code, Some(2));

    // The service went on all the while, and its Postgres too.
    let url = format!("{}/readyz", service.base);
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    drop(service);
    // Without a service they have the private Postgres to themselves, and end it.
    let alone = rejected(&["list"]);
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    wait_for("the private Postgres ends", Duration::from_secs(20), || {
        let lock = std::fs::File::open(data_dir.join("postgres/pg.lock")).unwrap();
        lock.try_lock().is_ok()
    });
}

/// In the wrong folder, or without the service's settings, "nothing was rejected" would be a lie.
#[test]
fn without_the_services_database_they_say_so_and_make_none() {
    let data_dir = run().folder("data");
    let out = ended(&["list"], &[("DATA_DIR", data_dir.to_str().unwrap())]);
    assert_eq!(out.code, Some(1));
    let expected = "there is no private database in ";
    assert!(out.stderr.contains(expected), "{}", out.stderr);
    assert!(!data_dir.join("postgres").exists());
}
