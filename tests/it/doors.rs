//! Effects of our answers in OpenIM. It reads no status: from a JSON answer to a before-callback it takes over every
//! field with a known name, in upper or lower case. So no answer at any path has such a field, except the two that
//! repeat the fields of the callback.

use std::collections::BTreeSet;
use std::time::Duration;

use openim_group_mirror::http;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{COMMAND, Reply, TestApp, TestDb, answer, body_of, head_of_callback, until};

/// Fields of every answer that OpenIM reads.
const COMMON: [&str; 5] = ["actioncode", "errcode", "errmsg", "errdlt", "nextcode"];

/// Other fields that it takes over from the answers to its before-callbacks, in lower case: all fields of
/// pkg/callbackstruct, v3.8.0 to v3.8.3-patch.16 and main.
const TAKEN_OVER: [&str; 40] = [
    "applymemberfriend",
    "atuseridlist",
    "attachedinfo",
    "burnduration",
    "clientmsgid",
    "content",
    "contenttype",
    "creatoruserid",
    "ex",
    "faceurl",
    "frienduserids",
    "groupattype",
    "groupid",
    "groupname",
    "grouptype",
    "introduction",
    "ispinned",
    "isprivatechat",
    "lookmemberinfo",
    "membercallbacklist",
    "msgdatalist",
    "msgfrom",
    "needverification",
    "nickname",
    "notification",
    "offlinepushinfo",
    "options",
    "owneruserid",
    "recvid",
    "recvmsgopt",
    "refusedmembersaccount",
    "remark",
    "rolelevel",
    "senderfaceurl",
    "sendernickname",
    "senderplatformid",
    "servermsgid",
    "sessiontype",
    "status",
    "useridlist",
];

/// These are answered with what was sent, which OpenIM then stores.
const ECHOES: [&str; 2] = [
    "/callbackBeforeSetGroupInfoCommand",
    "/callbackBeforeSetGroupInfoExCommand",
];

/// Paths of callbacks, each with a body that it accepts.
fn callbacks() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&http::openapi_json().unwrap()).unwrap();
    let mut all = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let schema = &operations["post"]["requestBody"]["content"]["application/json"]["schema"];
        if operations["post"]["tags"] == json!(["Callbacks"]) && schema.is_object() {
            let name = schema["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            let example = &document["components"]["schemas"][name]["example"];
            all.push((path.clone(), example.to_string()));
        }
    }
    assert_eq!(all.len(), 15);
    // Not looked at; OpenIM takes a status from the answers to both.
    for command in [
        "callbackBeforeCreateGroupCommand",
        "callbackBeforeMsgModifyCommand",
    ] {
        let body = json!({"callbackCommand": command, "groupID": "g", "status": 0});
        all.push((format!("/{command}"), body.to_string()));
    }
    let unheard_of = "callbackBeforeUnheardOfCommand";
    let body = json!({"callbackCommand": unheard_of}).to_string();
    for path in [
        format!("/{unheard_of}"),
        format!("/x/{unheard_of}"),
        format!("/callback?k=1/{unheard_of}"),
    ] {
        all.push((path, body.clone()));
    }
    let body = json!({"callbackCommand": "callbackAfterQuitGroupCommand", "groupID": "g77", "userID": "u"});
    for path in ["/", "/?k=1/callbackAfterQuitGroupCommand", "/x/y"] {
        all.push((path.to_owned(), body.to_string()));
    }
    all
}

/// The answers that were seen.
#[derive(Default)]
struct Seen(BTreeSet<u16>);

impl Seen {
    /// Looks at an answer as OpenIM does.
    #[track_caller]
    fn look(&mut self, place: &str, status: u16, body: &[u8]) {
        self.0.insert(status);
        if body.is_empty() {
            return;
        }
        let body: Value = serde_json::from_slice(body).unwrap();
        let fields = body.as_object().unwrap();
        for name in fields.keys().map(|name| name.to_lowercase()) {
            let is_taken_over = TAKEN_OVER.contains(&name.as_str());
            assert!(!is_taken_over, "{place}, {status}: {name} in {body}");
        }
        // "Go on"; the only other answer is one to an after-callback.
        let stops = body["nextCode"] == 1 && body["actionCode"] == 0;
        let is_success_of_set_member = place.ends_with(COMMAND) && status == 200;
        assert_eq!(stops, is_success_of_set_member, "{place}, {status}: {body}");
    }

    #[track_caller]
    fn reply(&mut self, place: &str, reply: &Reply) {
        assert!(reply.body.is_object(), "{place}: {reply:?}");
        self.look(place, reply.status, reply.body.to_string().as_bytes());
    }

    /// An answer as it came over the wire.
    fn raw(&mut self, place: &str, answer: &str) {
        let status = answer.split(' ').nth(1).unwrap_or_default();
        let status = status
            .parse()
            .unwrap_or_else(|_| panic!("{place}: {answer:?}"));
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        self.look(place, status, body.as_bytes());
    }
}

async fn post(app: &TestApp, path: &str, password: &str, content_type: &str, body: &str) -> Reply {
    app.send(Method::POST, path, |request| {
        request
            .basic_auth("openim", Some(password))
            .header("content-type", content_type)
            .body(body.to_owned())
    })
    .await
}

/// A callback whose body begins and does not go on.
async fn half(app: &TestApp, path: &str, announced: usize, sent: usize) -> TcpStream {
    let mut connection = app.connect().await;
    let head = head_of_callback(announced);
    let head = head.replacen(&format!("/{COMMAND}"), path, 1);
    connection.write_all(head.as_bytes()).await.unwrap();
    let part = &body_of(announced)[..sent];
    connection.write_all(part.as_bytes()).await.unwrap();
    connection
}

/// Answer to bytes that no client sends.
async fn answer_to(app: &TestApp, bytes: String) -> String {
    let mut connection = app.connect().await;
    connection.write_all(bytes.as_bytes()).await.unwrap();
    answer(&mut connection).await
}

#[tokio::test]
async fn no_answer_to_a_callback_has_a_field_that_openim_takes_over() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["p".to_owned().into()];
        config.body.max_bytes = 20_000;
    })
    .await;
    let mut seen = Seen::default();
    let large = body_of(20_001);
    for (path, body) in callbacks() {
        let json = "application/json";
        let reply = post(&app, &path, "p", json, &body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        if ECHOES.contains(&path.as_str()) {
            let sent: Value = serde_json::from_str(&body).unwrap();
            for (name, value) in reply.body.as_object().unwrap() {
                let is_common = COMMON.contains(&name.to_lowercase().as_str());
                let expected = if is_common { &json!(0) } else { &sent[name] };
                assert!(
                    value == expected || value == "",
                    "{path}: {name} is {value}"
                );
            }
        } else {
            seen.reply(&path, &reply);
        }
        for (password, content_type, body) in [
            ("wrong", json, body.as_str()),
            ("p", json, &body[..body.len() - 1]),
            ("p", json, "{}"),
            ("p", json, "[]"),
            ("p", "text/plain", &body),
            ("p", json, &large),
        ] {
            let reply = post(&app, &path, password, content_type, body).await;
            if !(ECHOES.contains(&path.as_str()) && reply.status == 200) {
                seen.reply(&path, &reply);
            }
        }
        // A redirect makes a GET of a POST.
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let reply = app.send(method, &path, |request| request).await;
            // The page for people, and the way to it, are no JSON.
            let is_json = reply
                .header("content-type")
                .is_some_and(|t| t.contains("json"));
            let is_root = path.split('?').next() == Some("/");
            if is_json || !is_root {
                seen.reply(&path, &reply);
            }
        }
        // hyper answers these itself, and closes the connection.
        let head = head_of_callback(0).replacen(&format!("/{COMMAND}"), &path, 1);
        let many = "X: y\r\n".repeat(200);
        let with_many = head.replacen("\r\n\r\n", &format!("\r\n{many}\r\n"), 1);
        seen.raw(&path, &answer_to(&app, with_many).await);
        let odd = head.replacen("Host: ", "Ho st: ", 1);
        seen.raw(&path, &answer_to(&app, odd).await);
    }
    // A group's path takes no POST.
    for path in ["/groups/g", "/livez", "/metrics"] {
        let reply = post(&app, path, "p", "application/json", "{}").await;
        assert_eq!(reply.status, 405, "{path}");
        seen.reply(path, &reply);
    }
    // A read that is posted.
    for body in ["{}", "{"] {
        let path = "/memberships/query";
        seen.reply(path, &app.post(path, body).await);
    }
    let all = [200, 400, 401, 404, 405, 413, 415, 431];
    assert_eq!(seen.0, BTreeSet::from(all));
}

#[tokio::test]
async fn no_answer_to_a_stranger_or_a_slow_sender_has_a_field_that_openim_takes_over() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.timeouts.body = Duration::from_millis(300);
    })
    .await;
    let mut seen = Seen::default();
    let strangers = callbacks();
    for (path, body) in &strangers {
        let reply = app
            .send(Method::POST, path, |request| {
                let request = request.header("host", "mirror.evil.example");
                request
                    .header("content-type", "application/json")
                    .body(body.clone())
            })
            .await;
        seen.reply(path, &reply);
    }
    // All at once: each is waited for.
    let mut slow = Vec::new();
    for (path, _) in &strangers {
        slow.push((path, half(&app, path, 1000, 500).await));
    }
    for (path, mut connection) in slow {
        let answer = answer(&mut connection).await;
        seen.raw(path, &answer);
    }
    assert_eq!(seen.0, BTreeSet::from([200, 403, 408]));
}

#[tokio::test]
async fn no_answer_for_want_of_memory_or_of_the_database_has_a_field_that_openim_takes_over() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.body.max_bytes = 1 << 20;
        config.body.max_memory = 4 << 20;
        config.timeouts.memory = Duration::from_millis(10);
    })
    .await;
    let mut seen = Seen::default();
    let path = format!("/{COMMAND}");
    let held = [
        half(&app, &path, 1 << 20, 100 << 10).await,
        half(&app, &path, 1 << 20, 100 << 10).await,
    ];
    until("their memory is taken", async || {
        app.metric("body_memory_bytes").await == f64::from(2 << 20)
    })
    .await;
    let large = body_of(600 << 10);
    for (path, _) in callbacks() {
        let reply = app.post(&path, large.clone()).await;
        seen.reply(&path, &reply);
    }
    drop(held);
    until("it is given back", async || {
        app.metric("body_memory_bytes").await == 0.0
    })
    .await;
    // What the database refuses for good is answered 500.
    app.db
        .execute(
            "alter table groups add check (false) not valid;
             alter table group_members add check (false) not valid",
        )
        .await;
    for (path, body) in callbacks() {
        if !ECHOES.contains(&path.as_str()) {
            seen.reply(&path, &app.post(&path, body).await);
        }
    }
    assert_eq!(seen.0, BTreeSet::from([200, 500, 503]));
}
