//! OpenIM's notifications as hints: what they make of the mirror with OpenIM's API and without it.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openim_group_mirror::config::Config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Callback, Creation, OpenIm, OpenImServer, Operation, Reply, RestFault, TestApp, TestDb, Wire,
    access, until,
};

const SENT: &str = "callbackAfterSendGroupMsgCommand";
const PUSHED: &str = "callbackBeforeGroupOnlinePushCommand";
const JOIN: &str = "callbackAfterJoinGroupCommand";
const QUIT: &str = "callbackAfterQuitGroupCommand";
const DISMISS: &str = "callbackAfterDisMissGroupCommand";

/// A message as OpenIM's newest release sends it, byte for byte but for its values.
fn sent(group: &str, content_type: i32, operation: &str, content: &str) -> String {
    let (content, group) = (json!(content), json!(group));
    format!(
        "{{\"sendID\":\"imAdmin\",\"callbackCommand\":\"{SENT}\",\
         \"serverMsgID\":\"740e7358d81577e395e45af6a33920b1\",\
         \"clientMsgID\":\"03eaf2790ce6dacf525f258a668cc976\",\"operationID\":\"{operation}\",\
         \"senderPlatformID\":0,\"senderNickname\":\"\",\"sessionType\":3,\"msgFrom\":200,\
         \"contentType\":{content_type},\"status\":0,\"sendTime\":1795755441215,\
         \"createTime\":1795755441213,\"content\":{content},\"seq\":0,\"atUserList\":null,\
         \"faceURL\":\"\",\"ex\":\"\",\"groupID\":{group}}}\n"
    )
}

/// The message in its pushed form, with the content.
fn pushed(group: &str, content_type: i32, operation: &str) -> String {
    let content = json!(json!({"group": {"groupID": "another"}, "contentType": 101}).to_string());
    format!(
        "{{\"callbackCommand\":\"{PUSHED}\",\"operationID\":\"{operation}\",\"platformID\":0,\
         \"platform\":\"\",\"clientMsgID\":\"0363ee847da776c5a9de0e98090179e5\",\
         \"sendID\":\"imAdmin\",\"groupID\":\"{group}\",\"contentType\":{content_type},\
         \"sessionType\":3,\"atUserIDList\":null,\"content\":{content}}}\n"
    )
}

/// Posts a callback as OpenIM does, with its operation in the header.
async fn post(app: &TestApp, command: &str, operation: &str, body: String) -> Reply {
    app.send(Method::POST, &format!("/{command}"), |request| {
        request
            .header("content-type", "application/json; charset=utf-8")
            .header("operationID", operation)
            .body(body)
    })
    .await
}

#[track_caller]
fn assert_done(reply: &Reply) {
    let success = json!({
        "actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0
    });
    assert_eq!((reply.status, &reply.body), (200, &success));
}

async fn hint(app: &TestApp, group: &str, content_type: i32, operation: &str) {
    let body = sent(group, content_type, operation, "");
    assert_done(&post(app, SENT, operation, body).await);
}

async fn push(app: &TestApp, group: &str, content_type: i32, operation: &str) {
    let body = pushed(group, content_type, operation);
    assert_done(&post(app, PUSHED, operation, body).await);
}

/// A callback of a group and one user.
async fn tell(app: &TestApp, command: &str, operation: &str, fields: Value) {
    let mut body = json!({"callbackCommand": command});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    assert_done(&post(app, command, operation, body.to_string()).await);
}

async fn join(app: &TestApp, group: &str, user: &str, operation: &str) {
    let fields = json!({
        "operationID": operation, "groupID": group, "reqMessage": "", "joinSource": 3,
        "inviterUserID": user
    });
    tell(app, JOIN, operation, fields).await;
}

async fn quit(app: &TestApp, group: &str, user: &str, operation: &str) {
    let fields = json!({"groupID": group, "userID": user});
    tell(app, QUIT, operation, fields).await;
}

async fn dismiss(app: &TestApp, group: &str) {
    let fields = json!({"groupID": group, "ownerID": "boss", "groupType": "", "membersID": []});
    tell(app, DISMISS, "op-0", fields).await;
}

/// Reason of a group's mark: a reason, null, or nothing without such a group.
async fn check(app: &TestApp, group: &str) -> Option<Value> {
    let sql = format!("select check_reason from groups where group_id = '{group}'");
    let mut rows = app.db.rows(&sql).await;
    rows.pop().map(|row| row["check_reason"].clone())
}

const UNMARKED: Option<Value> = Some(Value::Null);

fn notified() -> Option<Value> {
    Some(json!("notified"))
}

async fn hints(app: &TestApp, content_type: i32, outcome: &str) -> f64 {
    let line = format!("hints_total{{outcome=\"{outcome}\",type=\"{content_type}\"}}");
    app.metric(&line).await
}

async fn looks(app: &TestApp, outcome: &str) -> f64 {
    app.metric(&format!("looks_total{{outcome=\"{outcome}\"}}"))
        .await
}

/// A service without OpenIM's API that knows groups without a mark.
async fn app_with_groups(groups: &[&str]) -> TestApp {
    let app = TestApp::start().await;
    for group in groups {
        let creation = Operation::Create(Creation::open("Kayaks", "boss", &["u1", "u2"]));
        for Callback { command, body, .. } in OpenIm::default().apply(group, &creation).unwrap() {
            assert_done(&post(&app, &command, "op-0", body).await);
        }
        assert_eq!(check(&app, group).await, UNMARKED);
    }
    app
}

#[tokio::test]
async fn without_the_api_what_no_callback_tells_marks_the_group() {
    let app = app_with_groups(&["g", "h"]).await;
    for content_type in 1501..=1520 {
        if content_type != 1509 && content_type != 1510 {
            hint(&app, "g", content_type, "op-1").await;
        }
    }
    assert_eq!(check(&app, "g").await, UNMARKED);
    // There when it is answered.
    hint(&app, "g", 1509, "op-1").await;
    assert_eq!(check(&app, "g").await, notified());
    hint(&app, "h", 1510, "op-1").await;
    assert_eq!(check(&app, "h").await, notified());
    let wanted = app.get("/groups?checkWanted=true").await.ok();
    assert_eq!(wanted["groups"][1]["checkReason"], "notified");
    for (content_type, outcome) in [
        (1501, "ignored"),
        (1504, "ignored"),
        (1514, "marked"),
        (1509, "marked"),
        (1510, "marked"),
    ] {
        assert_eq!(
            hints(&app, content_type, outcome).await,
            1.0,
            "{content_type}"
        );
    }
    // Nothing of the row has changed but the mark, and the callbacks' time is theirs alone.
    let sql = "select 1 as n from groups where updated_at > created_at
                   or last_callback_at > created_at";
    assert!(app.db.rows(sql).await.is_empty());
}

#[tokio::test]
async fn without_the_api_an_unmuted_group_is_marked_where_it_was_dismissed() {
    let app = app_with_groups(&["g", "h"]).await;
    dismiss(&app, "g").await;
    for group in ["g", "h", "unheard-of"] {
        hint(&app, group, 1515, "op-1").await;
    }
    assert_eq!(check(&app, "g").await, notified());
    assert_eq!(check(&app, "h").await, UNMARKED);
    assert_eq!(check(&app, "unheard-of").await, None);
    dismiss(&app, "h").await;
    hint(&app, "h", 1514, "op-2").await;
    assert_eq!(check(&app, "h").await, notified());
}

#[tokio::test]
async fn without_the_api_one_who_entered_marks_unless_the_callback_tells_who() {
    let app = app_with_groups(&["g", "h"]).await;
    // The callback first, as it is on OpenIM's main.
    join(&app, "g", "u7", "op-1").await;
    hint(&app, "g", 1510, "op-1").await;
    assert_eq!(check(&app, "g").await, UNMARKED);
    // The notification first.
    hint(&app, "g", 1510, "op-2").await;
    assert_eq!(check(&app, "g").await, notified());
    join(&app, "g", "u8", "op-2").await;
    assert_eq!(check(&app, "g").await, UNMARKED);
    // Of another operation, or another group.
    hint(&app, "g", 1510, "op-3").await;
    join(&app, "g", "u9", "op-4").await;
    join(&app, "h", "u9", "op-3").await;
    assert_eq!(check(&app, "g").await, notified());
    assert_eq!(check(&app, "h").await, UNMARKED);
}

#[tokio::test]
async fn without_the_api_a_mark_that_is_taken_back_takes_no_other_along() {
    let app = app_with_groups(&["before", "after"]).await;
    quit(&app, "before", "stranger", "op-1").await;
    for (group, operation) in [("before", "op-2"), ("after", "op-3"), ("new", "op-4")] {
        hint(&app, group, 1510, operation).await;
        assert_eq!(check(&app, group).await, notified());
    }
    hint(&app, "after", 1509, "op-5").await;
    for (group, operation) in [("before", "op-2"), ("after", "op-3"), ("new", "op-4")] {
        join(&app, group, "u7", operation).await;
        // Of the last one nothing but this join is known.
        assert_eq!(check(&app, group).await, notified(), "{group}");
    }
}

#[tokio::test]
async fn a_notification_that_is_pushed_is_a_hint_too_and_its_answer_waits_for_nothing() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(wire.url.clone().into());
        config.spool.after = Duration::from_secs(4);
    })
    .await;
    app.set("g", "u", json!({})).await;
    app.db
        .execute("update groups set check_wanted_since = null, check_marked_at = null, check_reason = null")
        .await;
    wire.hold();
    let asked = Instant::now();
    push(&app, "g", 1509, "op-1").await;
    push(&app, "g", 1509, "op-1").await;
    push(&app, "g", 101, "op-2").await;
    let body = sent("g", 101, "op-3", "hello");
    assert_done(&post(&app, SENT, "op-3", body).await);
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert_eq!(check(&app, "g").await, UNMARKED);
    wire.heal();
    until("the mark is written", async || {
        check(&app, "g").await == notified()
    })
    .await;
    assert_eq!(hints(&app, 1509, "marked").await, 2.0);
    for command in [SENT, PUSHED] {
        let line = format!("passed_over_callbacks_total{{command=\"{command}\"}}");
        assert_eq!(app.metric(&line).await, 1.0);
    }
}

#[tokio::test]
async fn where_the_body_has_no_operation_that_of_the_header_counts() {
    let app = app_with_groups(&["g"]).await;
    join(&app, "g", "u7", "op-1").await;
    assert_done(&post(&app, SENT, "op-1", sent("g", 1510, "", "")).await);
    assert_eq!(check(&app, "g").await, UNMARKED);
    assert_done(&post(&app, SENT, "op-1", sent("g", 1510, "op-2", "")).await);
    assert_eq!(check(&app, "g").await, notified());
}

#[tokio::test]
async fn odd_bodies_are_answered_and_change_nothing() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.body.max_bytes = 2048;
    })
    .await;
    let long = "x".repeat(5000);
    for body in [
        "no JSON".to_owned(),
        String::new(),
        "[1509]".to_owned(),
        sent("g", 101, "op", "\",\"contentType\":1509"),
        json!({"ex": {"contentType": 1509}, "groupID": "g"}).to_string(),
        format!("{{\"content\":\"{long}\",\"contentType\":1509,\"groupID\":\"g\"}}"),
        sent("g", 101, "op", &long),
        "\u{0}\u{ff}".to_owned(),
    ] {
        for command in [SENT, PUSHED] {
            assert_done(&post(&app, command, "op", body.clone()).await);
        }
    }
    let line = format!("passed_over_callbacks_total{{command=\"{SENT}\"}}");
    assert_eq!(app.metric(&line).await, 8.0);
    for group in [json!(""), json!(7), json!(null), json!("x".repeat(1025))] {
        let body = json!({"contentType": 1509, "groupID": group});
        assert_done(&post(&app, SENT, "op", body.to_string()).await);
        assert_done(&post(&app, PUSHED, "op", body.to_string()).await);
    }
    assert_eq!(hints(&app, 1509, "unreadable").await, 8.0);
    let db = app.stop().await;
    assert!(db.rows("select 1 as n from groups").await.is_empty());
    assert!(
        db.rows("select 1 as n from rejected_callbacks")
            .await
            .is_empty()
    );
}

/// A body that does not fit into the first packet of a connection, with the content before the group.
#[tokio::test]
async fn of_a_notification_the_group_is_found_behind_a_long_content() {
    let app = app_with_groups(&["g"]).await;
    let content = "\"},{\\".repeat(200_000);
    assert_done(&post(&app, SENT, "op", sent("g", 1509, "op", &content)).await);
    assert_eq!(check(&app, "g").await, notified());
    assert_eq!(app.metric("body_memory_bytes").await, 0.0);
}

#[tokio::test]
async fn without_the_api_a_mark_waits_in_the_spool_as_a_callback_does() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(wire.url.clone().into());
        config.spool.after = Duration::from_millis(200);
    })
    .await;
    app.set("g", "u", json!({})).await;
    dismiss(&app, "g").await;
    let unmark =
        "update groups set check_wanted_since = null, check_marked_at = null, check_reason = null";
    app.db.execute(unmark).await;
    wire.cut();
    hint(&app, "g", 1515, "op-1").await;
    hint(&app, "h", 1509, "op-1").await;
    assert_eq!(app.metric("spool_entries").await, 2.0);
    wire.heal();
    until("the marks are written", async || {
        check(&app, "g").await == notified() && check(&app, "h").await == notified()
    })
    .await;
}

fn openim(server: &OpenImServer) -> MutexGuard<'_, OpenIm> {
    server.openim.lock().unwrap_or_else(PoisonError::into_inner)
}

#[track_caller]
fn act(server: &OpenImServer, group: &str, operation: &Operation) -> Vec<Callback> {
    let told = openim(server).apply(group, operation);
    told.unwrap_or_else(|_| panic!("OpenIM refuses {operation:?}"))
}

/// An OpenIM with a group `g` of `boss` and these.
async fn server_of(members: &[&str]) -> OpenImServer {
    let server = OpenImServer::start().await;
    let creation = Operation::Create(Creation::open("Kayaks", "boss", members));
    act(&server, "g", &creation);
    server
}

/// A mirror that is as its OpenIM. Marks stay, so that they can be seen.
async fn mirror_of(server: &OpenImServer, adjust: impl FnOnce(&mut Config)) -> TestApp {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.openim = Some(access(server));
        config.reconcile.delay = Duration::from_secs(600);
        adjust(config);
    })
    .await;
    until("all groups are compared", async || {
        app.get("/drift").await.ok()["lastRun"] != Value::Null
    })
    .await;
    app
}

async fn members(app: &TestApp, group: &str) -> Vec<String> {
    let reply = app
        .get(&format!("/groups/{group}/members?limit=1000"))
        .await;
    let members = reply.body["members"].as_array().cloned();
    let ids = members.unwrap_or_default().into_iter();
    ids.map(|member| member["userID"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn with_the_api_the_group_is_compared_at_once() {
    let server = server_of(&["u1"]).await;
    let app = mirror_of(&server, |_| {}).await;
    assert!(act(&server, "g", &Operation::Invite("u7".into())).is_empty());
    hint(&app, "g", 1509, "op-1").await;
    until("the invited one is there", async || {
        members(&app, "g").await == ["boss", "u1", "u7"]
    })
    .await;
    act(&server, "g", &Operation::Mute);
    push(&app, "g", 1514, "op-2").await;
    push(&app, "g", 1514, "op-2").await;
    until("it is muted", async || {
        app.get("/groups/g").await.body["status"] == 3
    })
    .await;
    assert_eq!(check(&app, "g").await, UNMARKED);
    until("all looks have ended", async || {
        looks(&app, "compared").await >= 2.0
    })
    .await;
    assert_eq!(hints(&app, 1509, "due").await, 1.0);
    assert!(app.metric("hint_delay_seconds_count").await >= 2.0);
    assert!(app.metric("look_calls_total").await >= 2.0);
}

/// No change of the members tells who owns the group, and the callback is lost.
#[tokio::test]
async fn a_hint_of_another_owner_has_the_group_itself_compared() {
    let server = server_of(&["u1"]).await;
    let app = mirror_of(&server, |_| {}).await;
    let transfer = Operation::Transfer {
        old_owner: "boss".into(),
        new_owner: "u1".into(),
    };
    act(&server, "g", &transfer);
    hint(&app, "g", 1507, "op-1").await;
    until("it has another owner", async || {
        app.get("/groups/g").await.body["ownerUserID"] == "u1"
    })
    .await;
    let member = app.get("/groups/g/members/boss").await.ok();
    assert_eq!(member["roleLevel"], 20);
}

/// OpenIM shows a leave before it tells of it, so a look that is wanted for something else may be the first
/// to see it.
#[tokio::test]
async fn whom_openims_log_names_as_gone_counts_for_no_limit_of_a_look() {
    let names: Vec<String> = (0..60).map(|n| format!("u{n:02}")).collect();
    let server = server_of(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let app = mirror_of(&server, |_| {}).await;
    for (lot, left) in [
        (&names[..11], 50),
        (&names[11..22], 39),
        (&names[22..33], 28),
    ] {
        act(&server, "g", &Operation::Kick(lot.to_vec()));
        hint(&app, "g", 1516, "op-1").await;
        until("they are gone", async || {
            members(&app, "g").await.len() == left
        })
        .await;
    }
    assert_eq!(
        app.get("/drift").await.ok()["lastRun"]["stoppedBy"],
        Value::Null
    );
    assert_eq!(check(&app, "g").await, UNMARKED);
}

/// A group of 100,000 behaves alike. The number keeps the test short.
#[tokio::test]
async fn what_a_hint_costs_does_not_grow_with_the_group() {
    let names: Vec<String> = (0..10_000).map(|n| format!("u{n:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let server = server_of(&names).await;
    let app = mirror_of(&server, |_| {}).await;
    let set = Operation::SetMember("u00017".into(), [("ex", json!("new"))].into());
    for (operation, content_type) in [
        (Operation::Invite("new".into()), 1509),
        (set, 1516),
        (Operation::Kick(vec!["u00042".into()]), 1508),
    ] {
        let before = looks(&app, "compared").await;
        server.reset_calls();
        let told = act(&server, "g", &operation);
        hint(&app, "g", content_type, "op-1").await;
        for Callback { command, body, .. } in told {
            let reply = post(&app, &command, "op-1", body).await;
            assert_eq!(reply.ok()["errCode"], 0);
        }
        until("it is compared", async || {
            looks(&app, "compared").await > before
        })
        .await;
        let calls: u64 = server.calls().values().sum();
        assert!(calls <= 3, "{content_type}: {:?}", server.calls());
        assert!(server.bytes() <= 64 << 10, "{} bytes", server.bytes());
    }
    let there = app.get("/groups/g").await.ok();
    assert_eq!(there["memberCount"], 10_001);
}

#[tokio::test]
async fn many_hints_of_a_group_are_few_looks() {
    let server = server_of(&["u1"]).await;
    let app = mirror_of(&server, |_| {}).await;
    let began = Instant::now();
    for number in 0..300 {
        hint(&app, "g", 1509, &format!("op-{number}")).await;
    }
    let most = began.elapsed().as_millis() / 200 + 2;
    until("all are compared", async || {
        looks(&app, "compared").await >= 2.0
    })
    .await;
    let looks = looks(&app, "compared").await;
    assert!(looks <= most as f64, "{looks} looks, {most} at most");
    let (due, merged) = (
        hints(&app, 1509, "due").await,
        hints(&app, 1509, "merged").await,
    );
    assert_eq!(due + merged, 300.0);
}

#[tokio::test]
async fn hints_of_many_groups_are_few_calls_a_second() {
    let server = server_of(&[]).await;
    let app = mirror_of(&server, |_| {}).await;
    let groups: Vec<String> = (0..100).map(|number| format!("g{number}")).collect();
    for group in &groups {
        let creation = Operation::Create(Creation::open("Kayaks", "boss", &["u1"]));
        act(&server, group, &creation);
    }
    let began = Instant::now();
    for group in &groups {
        hint(&app, group, 1501, "op-1").await;
    }
    // Each of them, not so many looks: where it takes longer than 4 s some groups have had two.
    until("all are compared", async || {
        let shown = app.get("/groups?limit=1000").await.ok();
        shown["groups"].as_array().unwrap().len() == 101 && looks(&app, "compared").await >= 100.0
    })
    .await;
    // In this order: more calls may be made meanwhile, and are allowed then.
    let calls = app.metric("look_calls_total").await;
    let most = 10.0 + 200.0 * began.elapsed().as_secs_f64();
    assert!(calls <= most, "{calls} calls, {most} at most");
}

/// However many they are, whether callbacks have named their members, and whether the groups themselves have
/// changed.
#[tokio::test]
async fn groups_that_are_due_together_are_asked_about_together() {
    let server = server_of(&["u1"]).await;
    let groups: Vec<String> = (0..40).map(|number| format!("g{number}")).collect();
    for group in &groups {
        let creation = Operation::Create(Creation::open("Kayaks", "boss", &["u1"]));
        act(&server, group, &creation);
    }
    let app = mirror_of(&server, |config| config.reconcile.concurrency = 1).await;
    // Meanwhile the others become due.
    let mut held = server.hold("get_incremental_group_members");
    hint(&app, "g", 1509, "op-0").await;
    held.reached().await;
    for (number, group) in groups.iter().enumerate() {
        let set = Operation::SetMember("u1".into(), [("ex", json!("new"))].into());
        for Callback { command, body, .. } in act(&server, group, &set) {
            assert_eq!(post(&app, &command, "op-1", body).await.ok()["errCode"], 0);
        }
        hint(&app, group, 1516, "op-1").await;
        if number % 2 == 0 {
            act(&server, group, &Operation::Mute);
            hint(&app, group, 1514, "op-2").await;
        }
        act(&server, group, &Operation::Invite("u2".into()));
    }
    server.reset_calls();
    held.release();
    until("all are compared", async || {
        looks(&app, "compared").await >= 41.0
    })
    .await;
    for (number, group) in groups.iter().enumerate() {
        let there = app.get(&format!("/groups/{group}")).await.ok();
        assert_eq!(there["status"], if number % 2 == 0 { 3 } else { 0 });
        assert_eq!(members(&app, group).await, ["boss", "u1", "u2"]);
        let u1 = format!("/groups/{group}/members/u1");
        assert_eq!(app.get(&u1).await.ok()["ex"], "new");
    }
    let calls: u64 = server.calls().values().sum();
    // Two would do; the last of them may have been due a moment later.
    assert!(calls <= 12, "{:?}", server.calls());
}

#[tokio::test]
async fn a_group_that_the_mirror_does_not_know_is_written_if_openim_does() {
    let server = server_of(&[]).await;
    let app = mirror_of(&server, |_| {}).await;
    let creation = Operation::Create(Creation::open("New", "boss", &["u3"]));
    act(&server, "new", &creation);
    server.reset_calls();
    hint(&app, "nowhere", 1509, "op-1").await;
    until("it is looked for", async || {
        looks(&app, "unknown").await == 1.0
    })
    .await;
    let calls: Vec<String> = server.calls().into_keys().collect();
    assert_eq!(calls, ["/group/get_groups_info"]);
    hint(&app, "new", 1501, "op-2").await;
    until("it is there", async || {
        members(&app, "new").await == ["boss", "u3"]
    })
    .await;
    let rows = "select group_id from groups union select group_id from group_checks order by 1";
    let expected = ["g", "new"].map(|id| json!({"group_id": id}));
    assert_eq!(app.db.rows(rows).await, expected);
}

#[tokio::test]
async fn those_whose_leave_was_announced_are_no_surprise() {
    let all: Vec<String> = (10..60).map(|n| format!("u{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let server = server_of(&all).await;
    let app = mirror_of(&server, |_| {}).await;
    let kicked: Vec<String> = all[..40].iter().map(|user| (*user).to_owned()).collect();
    // The callback is lost.
    act(&server, "g", &Operation::Kick(kicked));
    hint(&app, "g", 1508, "op-1").await;
    until("they are gone", async || {
        members(&app, "g").await.len() == 11
    })
    .await;
    // 1 of 40 is announced.
    let server = server_of(&all).await;
    let app = mirror_of(&server, |_| {}).await;
    let kicked: Vec<String> = all[..40].iter().map(|user| (*user).to_owned()).collect();
    act(&server, "g", &Operation::Kick(kicked));
    hint(&app, "g", 1504, "op-1").await;
    until("it is left to a person", async || {
        check(&app, "g").await == Some(json!("too_many_removals"))
    })
    .await;
    assert_eq!(members(&app, "g").await.len(), 51);
    assert_eq!(looks(&app, "left").await, 1.0);
}

/// A hint tells of a dismissal as a callback does, and one of another kind does not.
#[tokio::test]
async fn who_leaves_with_a_group_counts_for_no_limit_where_a_hint_has_told_of_the_dismissal() {
    let all: Vec<String> = (10..50).map(|n| format!("u{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let with_members = true;
    for content_type in [1511, 1508] {
        let server = server_of(&all).await;
        let app = mirror_of(&server, |_| {}).await;
        act(&server, "g", &Operation::Dismiss { with_members });
        hint(&app, "g", content_type, "op-1").await;
        if content_type == 1511 {
            until("it is dismissed", async || {
                app.get("/groups/g").await.body["status"] == 2
            })
            .await;
            assert_eq!(members(&app, "g").await, [""; 0]);
            continue;
        }
        until("it is left to a person", async || {
            check(&app, "g").await == Some(json!("too_many_removals"))
        })
        .await;
        assert_eq!(members(&app, "g").await.len(), 41);
        let last = app.get("/drift").await.ok()["lastRun"].clone();
        assert_eq!(last["stoppedBy"], "too_many_removals");
    }
}

#[tokio::test]
async fn a_callback_whose_effect_a_look_has_written_marks_nothing_and_is_looked_after() {
    let server = server_of(&["u1", "u2"]).await;
    let app = mirror_of(&server, |_| {}).await;
    // The look is faster than the callback.
    act(&server, "g", &Operation::Quit("u1".into()));
    hint(&app, "g", 1516, "op-1").await;
    until("who has left is gone", async || {
        members(&app, "g").await == ["boss", "u2"]
    })
    .await;
    until("the look has ended", async || {
        looks(&app, "compared").await == 1.0
    })
    .await;
    quit(&app, "g", "u1", "op-1").await;
    assert_eq!(check(&app, "g").await, UNMARKED);
    until("it is looked at again", async || {
        looks(&app, "compared").await == 2.0
    })
    .await;
    // What the callback has made wrong is right again.
    act(&server, "g", &Operation::Join("u3".into()));
    act(&server, "g", &Operation::Quit("u3".into()));
    join(&app, "g", "u3", "op-2").await;
    until("who is not there is gone", async || {
        members(&app, "g").await == ["boss", "u2"]
    })
    .await;
    assert_eq!(check(&app, "g").await, UNMARKED);
    // A group that nobody looks after is marked as ever.
    quit(&app, "other", "u1", "op-3").await;
    assert_eq!(check(&app, "other").await, Some(json!("group_unknown")));
}

#[tokio::test]
async fn a_leave_is_looked_at_once_its_callback_is_written() {
    let server = server_of(&["u1", "u2"]).await;
    let app = mirror_of(&server, |_| {}).await;
    let told = act(&server, "g", &Operation::Quit("u1".into()));
    hint(&app, "g", 1504, "op-1").await;
    for Callback { command, body, .. } in told {
        assert_done(&post(&app, &command, "op-1", body).await);
    }
    until("it is looked at", async || {
        looks(&app, "compared").await == 1.0
    })
    .await;
    // By the callback, not by the look.
    let removed = "reconcile_repairs_total{kind=\"member_removed\"}";
    assert_eq!(app.metric(removed).await, 0.0);
    assert_eq!(members(&app, "g").await, ["boss", "u2"]);
}

#[tokio::test]
async fn a_look_that_fails_stays_due() {
    let server = server_of(&["u1"]).await;
    let app = mirror_of(&server, |_| {}).await;
    act(&server, "g", &Operation::Invite("u7".into()));
    // The client itself tries so often.
    server.fail_next("", RestFault::Status(502), 5);
    hint(&app, "g", 1509, "op-1").await;
    until("it has failed", async || looks(&app, "failed").await >= 1.0).await;
    until("the invited one is there", async || {
        members(&app, "g").await == ["boss", "u1", "u7"]
    })
    .await;
}

#[tokio::test]
async fn hints_that_come_while_callbacks_are_spooled_are_followed_by_a_cycle() {
    let server = server_of(&["u1"]).await;
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let app = TestApp::start_on(db, |config| {
        config.openim = Some(access(&server));
        config.database.url = Some(wire.url.clone().into());
        config.spool.after = Duration::from_millis(200);
    })
    .await;
    until("all are there", async || {
        members(&app, "g").await.len() == 2
    })
    .await;
    wire.cut();
    // So that the spool opens.
    let body = json!({"callbackCommand": QUIT, "groupID": "h", "userID": "u"});
    assert_done(&post(&app, QUIT, "op-0", body.to_string()).await);
    act(&server, "g", &Operation::Invite("u7".into()));
    hint(&app, "g", 1509, "op-1").await;
    assert_eq!(hints(&app, 1509, "dropped").await, 1.0);
    wire.heal();
    until("the invited one is there", async || {
        members(&app, "g").await == ["boss", "u1", "u7"]
    })
    .await;
    assert_eq!(looks(&app, "compared").await, 0.0);
}
