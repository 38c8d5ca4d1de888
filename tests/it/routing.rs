//! Which operation takes a callback. OpenIM appends "/" and the command to its `url`: behind a path
//! that is the last segment, behind a query string a part of that, and a proxy may cut it off.

use std::collections::BTreeMap;

use openim_group_mirror::http;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{
    COMMAND, Reply, Service, TestApp, TestDb, answer, body_of, head_of_callback, member_info,
    sample, until,
};

/// Paths that do not say the command.
const WITHOUT_COMMAND: [&str; 10] = [
    "/",
    "//",
    "/callback",
    "/callbacks",
    "/callbackCommand",
    "/a/b/",
    "/docs",
    "/groups/g/members/u/x",
    "/%FF",
    "/callback%41fterQuitGroupCommand",
];

const KEPT: &str = "select path, code, detail, convert_from(body, 'UTF8') as body, operation_id
                      from rejected_callbacks order by id";

#[tokio::test]
async fn a_callback_behind_a_prefix_or_a_query_is_applied() {
    let app = TestApp::start().await;
    let with_command = [
        format!("/x/{COMMAND}"),
        format!("/x/{COMMAND}?contenttype=json"),
        format!("/a//b%2F/{COMMAND}/"),
        format!("/groups/{COMMAND}"),
        format!("/callback?k=1/{COMMAND}"),
        // What OpenIM's main makes of the same for messages.
        format!("/callback?k=1%2F{COMMAND}&key=Zw%3D%3D"),
        format!("/?k=1/{COMMAND}"),
    ];
    let without = WITHOUT_COMMAND.map(str::to_owned);
    for (number, path) in with_command.into_iter().chain(without).enumerate() {
        let body = member_info("g", "u", json!({"roleLevel": number}));
        let reply = app.post(&path, body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert_eq!(reply.body["nextCode"], 1, "{path}");
        let stored = app.member("g", "u").await.unwrap();
        assert_eq!(stored[0], json!(number), "{path}");
    }
    // Counted by the command that it is.
    let counted = format!("callbacks_total{{command=\"{COMMAND}\",outcome=\"ok\"}}");
    assert_eq!(app.metric(&counted).await, 17.0);
    assert!(app.db.rows(KEPT).await.is_empty());
}

/// The path's command counts, as it always has: a body of another one is refused.
#[tokio::test]
async fn behind_a_prefix_the_body_has_to_be_of_the_paths_command() {
    let app = TestApp::start().await;
    let path = "/secret/callbackAfterQuitGroupCommand";
    let reply = app.post(path, sample().to_string()).await;
    assert_eq!((reply.status, &reply.body["errCode"]), (400, &json!(5105)));
    let kept = &app.db.rows(KEPT).await[0];
    // By this path it can be taken in again; and a prefix may be somebody's secret.
    assert_eq!(kept["path"], "/callbackAfterQuitGroupCommand");
}

#[tokio::test]
async fn every_command_that_is_served_is_found_by_the_body() {
    let app = TestApp::start().await;
    let document: Value = serde_json::from_str(&http::openapi_json().unwrap()).unwrap();
    let mut commands = BTreeMap::new();
    for schema in document["components"]["schemas"]
        .as_object()
        .unwrap()
        .values()
    {
        if let Some(command) = schema["example"]["callbackCommand"].as_str() {
            commands.insert(command.to_owned(), schema["example"].clone());
        }
    }
    assert_eq!(commands.len(), 15);
    for (number, (command, example)) in commands.iter().enumerate() {
        let mut body = example.clone();
        body["groupID"] = json!(format!("g{number}"));
        let reply = app
            .post(&format!("/callback?k=1/{command}"), body.to_string())
            .await;
        let by_path = app.post(&format!("/{command}"), body.to_string()).await;
        assert_eq!(reply.status, 200, "{command}: {reply:?}");
        assert_eq!(reply.body, by_path.body, "{command}");
        let counted = format!("callbacks_total{{command=\"{command}\",outcome=\"ok\"}}");
        assert_eq!(app.metric(&counted).await, 2.0, "{command}");
    }
    assert!(app.db.rows(KEPT).await.is_empty());
    // A notification too: its body is looked at.
    assert_eq!(
        app.metric("hints_total{outcome=\"marked\",type=\"1509\"}")
            .await
            + app
                .metric("hints_total{outcome=\"known\",type=\"1509\"}")
                .await,
        2.0
    );
}

#[tokio::test]
async fn a_callback_that_cannot_be_routed_is_kept_and_its_group_marked() {
    let app = TestApp::start().await;
    app.set("known", "u", json!({})).await;
    let of = |command: Value| json!({"callbackCommand": command, "groupID": "known"}).to_string();
    let expected = "callbackCommand: expected a command of OpenIM, such as \
                    callbackAfterQuitGroupCommand";
    let mut kept = Vec::new();
    for (content_type, body, number, code, detail) in [
        (
            "application/json",
            "{".to_owned(),
            5101,
            "body_malformed",
            "expected JSON; stopped at line 1 column 1",
        ),
        (
            "application/json",
            String::new(),
            5101,
            "body_malformed",
            "expected JSON; stopped at line 1 column 0",
        ),
        (
            "application/json",
            "[]".into(),
            5101,
            "body_malformed",
            "expected a JSON object",
        ),
        (
            "application/json",
            "{}".into(),
            5102,
            "field_missing",
            "callbackCommand: expected a value",
        ),
        (
            "application/json",
            of(json!(5)),
            5103,
            "field_type",
            "callbackCommand: expected a string, found a number",
        ),
        // A command of OpenIM 3.6, which says something of a group.
        (
            "application/json",
            of(json!("callbackAfterTransferGroupOwner")),
            5114,
            "command_unknown",
            expected,
        ),
        (
            "application/json",
            of(json!("")),
            5114,
            "command_unknown",
            expected,
        ),
        (
            "application/json",
            of(json!("callbackCommand/../x")),
            5114,
            "command_unknown",
            expected,
        ),
        (
            "text/plain",
            sample().to_string(),
            5115,
            "not_json",
            "Content-Type: expected application/json",
        ),
    ] {
        let reply = app
            .send(Method::POST, "/hooks/?k=1", |request| {
                let request = request.header("content-type", content_type);
                request.header("operationID", "op-1").body(body.clone())
            })
            .await;
        let status = if code == "not_json" { 415 } else { 400 };
        assert_eq!(reply.status, status, "{body}");
        assert_eq!(reply.body["errCode"], number, "{body}");
        assert_eq!(reply.body["errDlt"], detail, "{body}");
        assert_eq!(reply.body["nextCode"], 0, "{body}");
        kept.push(json!({
            "path": "/hooks", "code": code, "detail": detail, "body": body, "operation_id": "op-1"
        }));
        assert_eq!(app.db.rows(KEPT).await, kept, "{body}");
        if code == "command_unknown" {
            let counted = format!("callbacks_total{{command=\"other\",outcome=\"{code}\"}}");
            assert!(app.metric(&counted).await > 0.0);
        }
    }
    until("the group is marked", async || {
        app.get("/groups/known").await.body["checkReason"] == "callback_rejected"
    })
    .await;
}

/// Many come where OpenIM's one URL has a query string, and a user may wait.
#[tokio::test]
async fn a_command_of_no_concern_is_answered_and_counted_wherever_it_stands() {
    let app = TestApp::start().await;
    let passed = async |label: &str| {
        let line = format!("passed_over_callbacks_total{{command=\"{label}\"}}");
        app.metric(&line).await
    };
    let command = "callbackAfterMsgSaveDBCommand";
    let body = json!({"callbackCommand": command, "content": "hello"}).to_string();
    for path in [
        format!("/{command}"),
        format!("/x/{command}"),
        format!("/callback?k=1/{command}"),
    ] {
        app.post(&path, body.clone()).await.ok();
    }
    assert_eq!(passed(command).await, 3.0);
    // Where the path says it, nobody looks at the body, whatever is in it.
    for body in ["", "no JSON", "{\"callbackCommand\": 5}"] {
        let path = "/x/callbackBeforeUnheardOfCommand";
        let reply = app
            .send(Method::POST, path, |request| request.body(body))
            .await;
        assert_eq!(reply.ok()["nextCode"], 0);
    }
    let unheard_of = json!({"callbackCommand": "callbackBeforeUnheardOfCommand"}).to_string();
    app.post("/", unheard_of).await.ok();
    // A user of OpenIM 3.6 waits for this one, and is told an error by any answer that is one.
    app.post("/callbackBeforeSetFriendRemark", "{}").await.ok();
    assert_eq!(passed("callbackBeforeSetFriendRemark").await, 1.0);
    assert_eq!(passed("other").await, 4.0);
    assert!(app.db.rows(KEPT).await.is_empty());
}

#[tokio::test]
async fn routing_by_the_body_asks_for_the_password_before_it_reads() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["p".to_owned().into()];
        config.access.api_tokens = vec!["t".to_owned().into()];
    })
    .await;
    let mut connection = app.connect().await;
    let head = head_of_callback(1000).replacen(&format!("/{COMMAND}"), "/", 1);
    connection.write_all(head.as_bytes()).await.unwrap();
    let answer = answer(&mut connection).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.contains("\"errCode\":5111"), "{answer}");
    let send = async |authorize: fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder| -> Reply {
        app.send(Method::POST, "/", |request| {
            let request = request.header("content-type", "application/json");
            authorize(request).body(sample().to_string())
        })
        .await
    };
    // The key of reads is none here.
    let reply = send(|request| request.bearer_auth("t")).await;
    assert_eq!(reply.status, 401);
    let reply = send(|request| request.basic_auth("openim", Some("p"))).await;
    assert_eq!((reply.status, reply.header("connection")), (200, None));
}

#[tokio::test]
async fn routing_by_the_body_has_the_bounds_of_every_callback() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.body.max_bytes = 1 << 20;
        config.body.max_memory = 4 << 20;
    })
    .await;
    let reply = app.post("/", body_of((1 << 20) + 1)).await;
    assert_eq!((reply.status, &reply.body["errCode"]), (413, &json!(5113)));
    app.set("g", "u", json!({})).await;
    // Until it is answered it takes the memory of one body, and none afterwards.
    let holder = app.db.hold_members().await;
    let length = 700 << 10;
    let sent = app.post("/", body_of(length));
    let look = async {
        let waiting = "select 1 from pg_stat_activity
                        where datname = current_database() and wait_event_type = 'Lock'";
        until("its write waits", async || {
            !app.db.rows(waiting).await.is_empty()
        })
        .await;
        assert_eq!(
            app.metric("body_memory_bytes").await,
            f64::from(length as u32)
        );
        holder.rollback().await.unwrap();
    };
    let (reply, ()) = tokio::join!(sent, look);
    reply.ok();
    until("the memory is given back", async || {
        app.metric("body_memory_bytes").await == 0.0
    })
    .await;
}

/// Reads keep what is theirs.
#[tokio::test]
async fn the_path_of_a_read_is_no_callbacks() {
    let app = TestApp::start().await;
    for path in [
        "/groups",
        "/groups/g",
        "/groups/g/members/u",
        "/livez",
        "/drift",
    ] {
        let reply = app.post(path, sample().to_string()).await;
        assert_eq!(
            (reply.status, &reply.body["errCode"]),
            (405, &json!(5122)),
            "{path}"
        );
        assert!(reply.header("allow").is_some(), "{path}");
    }
    let query = json!({"pairs": [], "callbackCommand": COMMAND}).to_string();
    let reply = app.post("/memberships/query", query).await;
    assert_eq!(reply.ok(), json!({"memberships": []}));
    assert!(app.db.rows("select 1 from group_members").await.is_empty());
}

#[tokio::test]
async fn what_was_kept_of_any_path_can_be_taken_in_again() {
    let app = TestApp::start().await;
    for (path, user) in [("/hooks?k=1", "u1"), (&*format!("/x/{COMMAND}"), "u2")] {
        let body = member_info("g", user, json!({"roleLevel": 60}));
        let reply = app
            .send(Method::POST, path, |request| request.body(body))
            .await;
        assert_eq!(reply.status, 415, "{path}");
    }
    // An older version has kept it under the path it came to.
    let body = member_info("g", "u3", json!({})).replace('\'', "''");
    app.db
        .execute(&format!(
            "insert into rejected_callbacks (received_at, path, code, detail, body, body_bytes)
             values (now(), '/old/{COMMAND}', 'c', 'd', convert_to('{body}', 'UTF8'), {})",
            body.len()
        ))
        .await;
    let other = json!({"callbackCommand": "callbackKillGroupCommand", "groupID": "g"}).to_string();
    app.send(Method::POST, "/hooks", |request| request.body(other))
        .await;
    // What runs on this thread does not go on while the command is waited for.
    let db = app.stop().await;
    let variables = [("DATABASE_URL", db.url.as_str())];
    let replayed = Service::to_end(&["rejected", "replay", "--all"], &variables);
    assert_eq!(
        replayed.stdout,
        "1: applied\n2: applied\n3: applied\n\
         4: still not understood: command_unknown: callbackCommand: expected one that says \
         something of a group\n",
        "{}",
        replayed.stderr
    );
    let users = "select user_id from group_members order by user_id";
    let expected = ["u1", "u2", "u3"].map(|user| json!({"user_id": user}));
    assert_eq!(db.rows(users).await, expected);
}
