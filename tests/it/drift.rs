//! The comparing that goes on beside serving, as those see it who read.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openim_group_mirror::config::Config;
use serde_json::{Value, json};

use crate::support::{
    ADMIN, ADMIN_ID, Callback, Creation, OpenIm, OpenImServer, Operation, RestFault, SECRET,
    Service, TestApp, TestDb, access, run, until, wait_for,
};

const GROUP: &str = "g";
/// Path of the call for the version of a group and the changes since.
const CHANGES: &str = "/get_incremental_group_members";

fn openim(server: &OpenImServer) -> MutexGuard<'_, OpenIm> {
    server.openim.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has OpenIM do something; what it would tell of it.
#[track_caller]
fn act(server: &OpenImServer, operation: &Operation) -> Vec<Callback> {
    let told = openim(server).apply(GROUP, operation);
    told.unwrap_or_else(|_| panic!("OpenIM refuses {operation:?}"))
}

/// An OpenIM with a group of `boss`, `u1` and `u2`.
async fn server() -> OpenImServer {
    let server = OpenImServer::start().await;
    let creation = Creation::open("Kayaks", "boss", &["u1", "u2"]);
    act(&server, &Operation::Create(creation));
    server
}

/// A mirror of it that nobody has told anything.
async fn mirror_of(server: &OpenImServer, adjust: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::start_on(TestDb::new().await, |config| {
        config.openim = Some(access(server));
        adjust(config);
    })
    .await
}

async fn drift(app: &TestApp) -> Value {
    app.get("/drift").await.ok()
}

async fn until_compared(app: &TestApp) -> Value {
    until("all groups are compared", async || {
        drift(app).await["lastRun"] != Value::Null
    })
    .await;
    drift(app).await
}

async fn members(app: &TestApp) -> Vec<Value> {
    let reply = app.get(&format!("/groups/{GROUP}/members")).await;
    let members = reply.body["members"].as_array().cloned();
    let ids = members.unwrap_or_default().into_iter();
    ids.map(|member| member["userID"].clone()).collect()
}

/// Somebody comes in of whom OpenIM tells nothing until values of theirs are set.
fn set_one_who_was_invited(server: &OpenImServer, user: &str) -> Callback {
    act(server, &Operation::Invite(user.into()));
    let values = [("roleLevel", json!(ADMIN))].into();
    let mut told = act(server, &Operation::SetMember(user.into(), values));
    told.remove(0)
}

#[track_caller]
fn assert_done(reply: &crate::support::Reply) {
    assert_eq!((reply.status, &reply.body["actionCode"]), (200, &json!(0)));
}

#[tokio::test]
async fn without_openim_nothing_is_compared_and_marks_stay() {
    let app = TestApp::start().await;
    let nothing = json!({
        "compares": false, "lastRun": null, "currentRun": null, "checksWanted": [],
    });
    assert_eq!(drift(&app).await, nothing);
    for group in ["g", "h"] {
        app.set(group, "u", json!({})).await;
    }
    let marked = drift(&app).await;
    let [wanted] = marked["checksWanted"].as_array().unwrap().as_slice() else {
        panic!("{marked}");
    };
    assert_eq!(wanted["reason"], "group_unknown");
    assert_eq!(wanted["groups"], 2);
    assert!(wanted["since"].is_string());
    assert_eq!(app.metric("reconcile_interval_seconds").await, 0.0);
}

#[tokio::test]
async fn a_service_compares_at_its_start_and_every_interval() {
    let server = server().await;
    let app = mirror_of(&server, |config| {
        config.reconcile.interval = Duration::from_secs(1);
    })
    .await;
    until("all are there", async || members(&app).await.len() == 3).await;
    let compared = until_compared(&app).await;
    assert_eq!(compared["compares"], true);
    // There may have been another since.
    let run = &compared["lastRun"];
    assert_eq!(
        (&run["stoppedBy"], &run["isFull"]),
        (&Value::Null, &json!(false))
    );
    assert_eq!(
        (&run["groupsSeen"], &run["groupsLeft"]),
        (&json!(1), &json!(0))
    );
    assert!(
        run["endedAt"].as_str() >= run["startedAt"].as_str(),
        "{run}"
    );

    assert!(act(&server, &Operation::Invite("u9".into())).is_empty());
    until("one who was invited is there", async || {
        members(&app).await == ["boss", "u1", "u2", "u9"]
    })
    .await;
    until("it is counted", async || {
        app.metric("reconcile_repairs_total{kind=\"member_added\"}")
            .await
            == 4.0
    })
    .await;
    until("the cycle is", async || {
        app.metric("reconcile_cycles_total{outcome=\"ok\"}").await >= 2.0
    })
    .await;
    let runs = "select members_added from reconcile_runs where members_added > 0 order by id";
    let added = [json!({"members_added": 3}), json!({"members_added": 1})];
    until("and noted", async || app.db.rows(runs).await == added).await;
    for metric in [
        "reconcile_interval_seconds",
        "reconcile_last_cycle_timestamp_seconds",
        "reconcile_groups_compared_total",
        "openim_calls_total{outcome=\"ok\",path=\"/group/get_groups\"}",
    ] {
        assert!(app.metric(metric).await > 0.0, "{metric}");
    }
}

#[tokio::test]
async fn a_group_that_a_callback_marks_is_repaired_within_moments() {
    let server = server().await;
    let app = mirror_of(&server, |_| {}).await;
    until_compared(&app).await;
    let told = set_one_who_was_invited(&server, "u9");
    let mut held = server.hold(CHANGES);
    assert_done(&app.post(&format!("/{}", told.command), told.body).await);
    held.reached().await;
    let marked = drift(&app).await;
    let wanted = &marked["checksWanted"];
    assert_eq!(wanted.as_array().unwrap().len(), 1, "{marked}");
    assert_eq!(wanted[0]["reason"], "member_unknown");
    held.release();
    until("no check is wanted", async || {
        drift(&app).await["checksWanted"] == json!([])
    })
    .await;
    let path = format!("/groups/{GROUP}/members/u9");
    let member = app.get(&path).await.ok();
    assert_eq!(member["roleLevel"], ADMIN);
    // How one came only OpenIM tells.
    assert_eq!(member["joinSource"], 2);
    until("it is counted", async || {
        app.metric("reconcile_check_delay_seconds_count").await == 1.0
    })
    .await;
    // The next comparison of all is minutes away.
    assert_eq!(drift(&app).await["lastRun"]["membersCompared"], 3);
}

/// A group that OpenIM does not have waits for a decision, and the metrics show it.
#[tokio::test]
async fn marks_that_stay_are_counted() {
    let server = server().await;
    let app = mirror_of(&server, |config| {
        config.reconcile.interval = Duration::from_secs(1);
    })
    .await;
    app.set("elsewhere", "u", json!({})).await;
    until("it is left", async || {
        let drift = drift(&app).await;
        drift["checksWanted"][0]["reason"] == "not_in_openim" && drift["lastRun"]["groupsLeft"] == 1
    })
    .await;
    until("it is counted", async || {
        app.metric("reconcile_checks_wanted").await == 1.0
    })
    .await;
    let since = app.metric("reconcile_oldest_check_timestamp_seconds");
    assert!(since.await > 1e9);
}

#[tokio::test]
async fn whoever_asks_needs_the_token_of_reads() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.api_tokens = vec!["t".to_owned().into()];
    })
    .await;
    let refused = app.get("/drift").await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (401, &json!("credentials_wrong"))
    );
    let get = reqwest::Method::GET;
    let told = app.send(get, "/drift", |request| request.bearer_auth("t"));
    assert_eq!(told.await.ok()["compares"], false);
}

/// Neither a call that never ends nor the stop has a bound that would come first.
fn wait_for_long(config: &mut Config) {
    config.openim.as_mut().unwrap().timeout = Duration::from_secs(600);
    config.stop.timeout = Duration::from_secs(600);
}

#[track_caller]
fn assert_stops_soon(app: TestApp) -> impl Future<Output = Vec<Value>> {
    let at = std::panic::Location::caller();
    async move {
        let asked = Instant::now();
        let db = app.stop().await;
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(10), "{at}: {took:?}");
        let runs = "select stopped_by, ended_at is null as is_open from reconcile_runs";
        db.rows(runs).await
    }
}

#[tokio::test]
async fn a_comparison_of_all_whose_call_hangs_does_not_hold_up_the_stop() {
    let server = server().await;
    server.fail_next("/get_groups", RestFault::Hang, 1);
    let app = mirror_of(&server, wait_for_long).await;
    until("it is under way", async || {
        server.calls().contains_key("/group/get_groups")
    })
    .await;
    let drift = drift(&app).await;
    assert_eq!(drift["lastRun"], Value::Null);
    assert_eq!(drift["currentRun"]["endedAt"], Value::Null);
    assert!(drift["currentRun"]["startedAt"].is_string(), "{drift}");
    let runs = assert_stops_soon(app).await;
    assert_eq!(runs, [json!({"stopped_by": "stopped", "is_open": false})]);
}

#[tokio::test]
async fn a_check_whose_call_hangs_does_not_hold_up_the_stop() {
    let server = server().await;
    let app = mirror_of(&server, wait_for_long).await;
    until_compared(&app).await;
    server.reset_calls();
    server.fail_next(CHANGES, RestFault::Hang, 1);
    let told = set_one_who_was_invited(&server, "u9");
    assert_done(&app.post(&format!("/{}", told.command), told.body).await);
    until("it is under way", async || {
        server.calls().keys().any(|path| path.ends_with(CHANGES))
    })
    .await;
    let runs = assert_stops_soon(app).await;
    assert_eq!(runs, [json!({"stopped_by": null, "is_open": false})]);
}

/// An image can have no certificates.
#[tokio::test]
async fn a_url_without_encryption_needs_no_certificates() {
    let db = TestDb::new().await;
    let empty = run().folder("certificates").display().to_string();
    let start = |url: &'static str| {
        [
            ("DATABASE_URL", db.url.as_str()),
            ("OPENIM_API_URL", url),
            ("OPENIM_ADMIN_USER_ID", "imAdmin"),
            ("OPENIM_SECRET", "s"),
            ("SSL_CERT_FILE", ""),
            ("SSL_CERT_DIR", empty.as_str()),
        ]
    };
    drop(Service::start(&start("http://127.0.0.1:9")));
    if cfg!(target_os = "linux") {
        let ended = Service::to_end(&[], &start("https://127.0.0.1:9"));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        for part in ["OPENIM_API_URL", "No CA certificates were loaded"] {
            assert!(ended.stderr.contains(part), "{}", ended.stderr);
        }
    }
}

/// Whoever runs it without access to OpenIM is told what that means.
#[tokio::test]
async fn the_start_says_what_is_not_guaranteed_without_openim() {
    let db = TestDb::new().await;
    let said = |service: &Service| {
        service
            .log()
            .contains("the mirror is not reconciled with OpenIM")
    };
    let without = Service::start(&[("DATABASE_URL", &db.url)]);
    wait_for("it is said", Duration::from_secs(20), || said(&without));
    drop(without);
    let server = server().await;
    let with = Service::start(&[
        ("DATABASE_URL", &db.url),
        ("OPENIM_API_URL", &server.url),
        ("OPENIM_ADMIN_USER_ID", ADMIN_ID),
        ("OPENIM_SECRET", SECRET),
    ]);
    wait_for("it compares", Duration::from_secs(20), || {
        with.log()
            .contains("reconciled with OpenIM: groups: 1 seen, 1 compared")
    });
    assert!(!said(&with), "{}", with.log());
}

/// Callbacks had to wait, so others may have been lost: all groups are compared when the spool is
/// drained.
#[tokio::test]
async fn after_an_outage_all_groups_are_compared_at_once() {
    let server = server().await;
    let app = mirror_of(&server, |config| {
        config.spool.after = Duration::from_millis(200);
    })
    .await;
    let first = until_compared(&app).await["lastRun"]["startedAt"].clone();
    let holder = app.db.hold_members().await;
    app.set(GROUP, "u1", json!({"nickName": "waits"})).await;
    // Nobody tells it.
    act(&server, &Operation::Invite("u3".into()));
    holder.rollback().await.unwrap();
    until("all groups are compared again", async || {
        let run = &drift(&app).await["lastRun"];
        run["startedAt"] != first && run["stoppedBy"] == Value::Null
    })
    .await;
    assert_eq!(members(&app).await, ["boss", "u1", "u2", "u3"]);
    app.stop().await;
}

/// Two instances of one mirror: one of them looks after marks, and when it ends the other does.
#[tokio::test]
async fn of_two_instances_one_compares_and_the_other_takes_over() {
    let server = server().await;
    let one = mirror_of(&server, |_| {}).await;
    until_compared(&one).await;
    let url = one.db.url.clone();
    let two = TestApp::start_on(TestDb::shared(&url), |config| {
        config.openim = Some(access(&server));
    })
    .await;
    let marked_and_repaired = async |user: &str| {
        let told = set_one_who_was_invited(&server, user);
        assert_done(&two.post(&format!("/{}", told.command), told.body).await);
        until("it is a member as OpenIM has it", async || {
            let path = format!("/groups/{GROUP}/members/{user}");
            two.get(&path).await.body["joinSource"] == 2
        })
        .await;
    };
    marked_and_repaired("u3").await;
    // The database belongs to it.
    let db = one.stop().await;
    marked_and_repaired("u4").await;
    two.stop().await;
    drop(db);
}
