//! The stop of the service.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{COMMAND, Service, TestDb, member_info, run, until, wait_for, web};

async fn ready(service: &Service) -> (u16, Value) {
    let response = web::get(format!("{}/readyz", service.base)).await.unwrap();
    let status = response.status().as_u16();
    let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (status, body)
}

fn callback(
    service: &Service,
    user: &str,
) -> impl Future<Output = reqwest::Result<reqwest::Response>> + use<> {
    let url = format!("{}/{COMMAND}", service.base);
    let request = web::client()
        .build()
        .unwrap()
        .post(url)
        .header("content-type", "application/json");
    request.body(member_info("g", user, json!({}))).send()
}

#[tokio::test]
async fn while_load_balancers_take_notice_everything_is_answered_and_a_second_signal_ends_it() {
    let data_dir = run().folder("data");
    let mut service = Service::start(&[
        ("DATA_DIR", data_dir.to_str().unwrap()),
        ("SHUTDOWN_DELAY_MS", "600000"),
    ]);
    assert_eq!(ready(&service).await, (200, json!({"status": "ok"})));
    service.signal("TERM");
    until("it is not ready", async || ready(&service).await.0 == 503).await;
    let (_, body) = ready(&service).await;
    assert_eq!(body["code"], "not_ready");
    assert_eq!(body["detail"], "service: stopping");
    assert_eq!(callback(&service, "u").await.unwrap().status(), 200);
    let asked = Instant::now();
    service.signal("INT");
    assert_eq!(service.ended().code(), Some(1));
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked.elapsed()
    );
    assert!(service.log().contains("a second signal: ending at once"));
    // The private Postgres ends by itself, and what was answered is there.
    wait_for("the private Postgres ends", Duration::from_secs(20), || {
        let lock = std::fs::File::open(data_dir.join("postgres/pg.lock")).unwrap();
        lock.try_lock().is_ok()
    });
    let service = Service::private(&data_dir);
    let member = format!("{}/groups/g/members/u", service.base);
    assert_eq!(web::get(member).await.unwrap().status(), 200);
}

#[tokio::test]
async fn after_the_delay_it_stops_by_itself() {
    let db = TestDb::new().await;
    let mut service = Service::start(&[("DATABASE_URL", &db.url), ("SHUTDOWN_DELAY_MS", "300")]);
    let asked = Instant::now();
    service.signal("TERM");
    assert!(service.ended().success(), "{}", service.log());
    assert!(asked.elapsed() >= Duration::from_millis(300));
}

/// A write that Postgres does not finish keeps the request open, then the queue, then the pool;
/// they have one deadline, not one each.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_let_go_does_not_hold_up_the_stop() {
    let db = TestDb::new().await;
    let mut service = Service::start(&[
        ("DATABASE_URL", &db.url),
        ("SPOOL_AFTER_MS", "4000"),
        ("SHUTDOWN_TIMEOUT_SECS", "2"),
    ]);
    assert_eq!(callback(&service, "u").await.unwrap().status(), 200);
    let holder = db.hold_members().await;
    let waiting = "select 1 from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    let write = callback(&service, "u");
    let stop = async {
        until("the write waits", async || {
            !db.rows(waiting).await.is_empty()
        })
        .await;
        let asked = Instant::now();
        service.signal("TERM");
        tokio::task::block_in_place(|| assert!(service.ended().success()));
        asked.elapsed()
    };
    let (answer, took) = tokio::join!(write, stop);
    assert!(answer.is_err());
    let bounds = Duration::from_secs(2)..Duration::from_secs(7);
    assert!(bounds.contains(&took), "{took:?}");
    drop(holder);
}

/// Requests that are under way are answered, and new ones are not taken.
#[tokio::test]
async fn what_is_under_way_is_finished() {
    let db = TestDb::new().await;
    let mut service = Service::start(&[("DATABASE_URL", &db.url), ("SPOOL_AFTER_MS", "4000")]);
    assert_eq!(callback(&service, "u").await.unwrap().status(), 200);
    let holder = db.hold_members().await;
    let waiting = "select 1 from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    let address = service.base.strip_prefix("http://").unwrap().to_owned();
    let write = callback(&service, "u");
    let stop = async {
        until("the write waits", async || {
            !db.rows(waiting).await.is_empty()
        })
        .await;
        service.signal("TERM");
        until("nobody new is let in", async || {
            tokio::net::TcpStream::connect(&address).await.is_err()
        })
        .await;
        holder.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(write, stop);
    assert_eq!(answer.unwrap().status(), 200);
    assert!(service.ended().success());
}
