//! Limits of senders: memory, time, connections. A sender beyond a limit harms only itself.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    COMMAND, TestApp, TestDb, answer, body_of, head_of_callback, member_info, until,
};

const SHORT: Duration = Duration::from_millis(300);

/// A callback whose body begins and does not go on.
async fn half(app: &TestApp, announced: usize, sent: usize) -> TcpStream {
    let mut connection = app.connect().await;
    let head = head_of_callback(announced);
    connection.write_all(head.as_bytes()).await.unwrap();
    let part = &body_of(announced)[..sent];
    connection.write_all(part.as_bytes()).await.unwrap();
    connection
}

/// Sends a part of a body as a chunk, without an announced length.
async fn half_chunked(app: &TestApp, sent: usize) -> TcpStream {
    let mut connection = app.connect().await;
    let head = format!(
        "POST /{COMMAND} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{sent:x}\r\n{}\r\n",
        &body_of(sent + 100)[..sent]
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection
}

#[tokio::test]
async fn a_body_has_to_arrive_in_time() {
    let app = TestApp::start_on(TestDb::new().await, |config| config.timeouts.body = SHORT).await;
    let mut connection = half(&app, 1000, 500).await;
    let answer = answer(&mut connection).await;
    assert!(
        answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{answer}"
    );
    let body: serde_json::Value =
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["errCode"], 5110);
    assert_eq!(body["errDlt"], "expected the whole body within 0.3 s");
    // Lost on the way, not misunderstood.
    assert!(
        app.db
            .rows("select 1 from rejected_callbacks")
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn what_arrived_of_a_body_that_stops_is_kept() {
    let app = TestApp::start().await;
    let mut connection = half(&app, 1000, 500).await;
    connection.shutdown().await.unwrap();
    until("it is kept", async || {
        let kept = "select code, body_bytes from rejected_callbacks";
        app.db.rows(kept).await == [json!({"code": "body_incomplete", "body_bytes": 500})]
    })
    .await;
}

/// Bodies of 1 MiB, 4 MiB together. Of these reads have 1 MiB and callbacks 3, three quarters of
/// which are for bodies that announce more than 64 KiB.
async fn app_with_little_memory(patience: Duration) -> TestApp {
    TestApp::start_on(TestDb::new().await, |config| {
        config.body.max_bytes = 1 << 20;
        config.body.max_memory = 4 << 20;
        config.timeouts.memory = patience;
    })
    .await
}

async fn memory_is(app: &TestApp, bytes: usize) {
    until("the memory is as expected", async || {
        app.metric("body_memory_bytes").await == bytes as f64
    })
    .await;
}

/// Two large bodies under way, after which there is no room for a third.
async fn two_large(app: &TestApp) -> [TcpStream; 2] {
    let two = [
        half(app, 1 << 20, 100 << 10).await,
        half(app, 1 << 20, 100 << 10).await,
    ];
    // Beyond the first 64 KiB the whole of what is announced is counted.
    memory_is(app, 2 << 20).await;
    two
}

fn query_of(bytes: usize) -> String {
    format!("{{\"pairs\": [{}]}}", " ".repeat(bytes - 13))
}

#[tokio::test]
async fn bodies_beyond_the_memory_wait_and_then_are_answered_503() {
    let app = app_with_little_memory(SHORT).await;
    let two = two_large(&app).await;
    let asked = Instant::now();
    let reply = app.callback_text(body_of(500 << 10)).await;
    assert!(asked.elapsed() >= SHORT, "{:?}", asked.elapsed());
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("2"));
    assert_eq!(
        reply.body,
        json!({
            "actionCode": 1, "errCode": 5203, "errMsg": "too much at a time",
            "errDlt": "too many bodies at a time; try again in a moment", "nextCode": 0
        })
    );
    // Neither small ones nor reads have to wait for large callbacks.
    app.set("g", "u", json!({})).await;
    app.post("/memberships/query", query_of(500 << 10))
        .await
        .ok();
    drop(two);
    memory_is(&app, 0).await;
    app.callback_text(body_of(500 << 10)).await.ok();
}

#[tokio::test]
async fn a_body_that_waited_for_memory_is_taken_when_there_is_some() {
    let app = app_with_little_memory(Duration::from_secs(20)).await;
    let two = two_large(&app).await;
    let waiting = app.callback_text(body_of(500 << 10));
    let give_back = async {
        until("the third has begun", async || {
            app.metric("body_memory_bytes").await > f64::from(2 << 20)
        })
        .await;
        drop(two);
    };
    let (reply, ()) = tokio::join!(waiting, give_back);
    reply.ok();
}

#[tokio::test]
async fn reads_cannot_take_the_memory_of_callbacks() {
    let app = app_with_little_memory(SHORT).await;
    let mut connection = app.connect().await;
    let begun = format!(
        "POST /memberships/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{}",
        700 << 10,
        &query_of(700 << 10)[..100 << 10]
    );
    connection.write_all(begun.as_bytes()).await.unwrap();
    memory_is(&app, 700 << 10).await;
    let reply = app.post("/memberships/query", query_of(400 << 10)).await;
    assert_eq!((reply.status, &reply.body["code"]), (503, &json!("busy")));
    let reply = app.post("/memberships/query", query_of(800 << 10)).await;
    assert_eq!(reply.status, 413);
    assert_eq!(reply.body["detail"], "expected at most 786432 bytes");
    app.callback_text(body_of(1 << 20)).await.ok();
}

#[tokio::test]
async fn large_chunked_bodies_count_as_the_largest_until_their_end_is_known() {
    let app = app_with_little_memory(SHORT).await;
    let _first = half_chunked(&app, 60 << 10).await;
    memory_is(&app, 60 << 10).await;
    let _second = half_chunked(&app, 700 << 10).await;
    memory_is(&app, (60 << 10) + (1 << 20)).await;
    app.callback_text(body_of(1000 << 10)).await.ok();
    let _third = half_chunked(&app, 100 << 10).await;
    memory_is(&app, (60 << 10) + (2 << 20)).await;
    app.callback_text(body_of(100 << 10)).await.ok();
    let reply = app.callback_text(body_of(500 << 10)).await;
    assert_eq!(reply.status, 503);
}

/// More than all the memory is announced, and hardly anything comes.
#[tokio::test]
async fn those_who_announce_much_and_send_little_hold_up_nobody() {
    let app = app_with_little_memory(SHORT).await;
    let mut slow = Vec::new();
    for _ in 0..16 {
        slow.push(half(&app, 1 << 20, 1 << 10).await);
    }
    memory_is(&app, 16 << 10).await;
    app.callback_text(body_of(500 << 10)).await.ok();
}

/// The parts for short and small ones are less than such a body then.
#[tokio::test]
async fn with_the_least_memory_bodies_of_every_size_are_taken() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.body.max_bytes = 16 << 10;
        config.body.max_memory = 32 << 10;
    })
    .await;
    for size in [1 << 10, 3 << 10, 4 << 10, 5 << 10, 9 << 10, 16 << 10] {
        app.callback_text(body_of(size)).await.ok();
    }
    memory_is(&app, 0).await;
}

/// They are more than there is memory for their kind, and nobody gives up on them.
#[tokio::test]
async fn half_open_bodies_leave_room_for_shorter_callbacks() {
    for sent in [63 << 10, 70 << 10] {
        let half = async |app: &TestApp| half(app, 1 << 20, sent).await;
        let app = app_with_half_open(700 << 10, half).await;
        app.callback_text(body_of(60 << 10)).await.ok();
        app.set("g", "u", json!({})).await;
    }
    let half_small = async |app: &TestApp| half(app, 64 << 10, 63 << 10).await;
    let app = app_with_half_open(6 * (63 << 10), half_small).await;
    app.set("g", "u", json!({})).await;
    let half_chunked = async |app: &TestApp| half_chunked(app, 60 << 10).await;
    let app = app_with_half_open(700 << 10, half_chunked).await;
    app.callback_text(body_of(60 << 10)).await.ok();
    app.set("g", "u", json!({})).await;
}

async fn app_with_half_open(bytes: u32, half: impl AsyncFn(&TestApp) -> TcpStream) -> TestApp {
    let app = app_with_little_memory(Duration::from_secs(600)).await;
    for _ in 0..16 {
        // It stays open for as long as the runtime.
        let mut connection = half(&app).await;
        tokio::spawn(async move { connection.read(&mut [0; 1]).await });
    }
    until("there is no more memory for such bodies", async || {
        app.metric("body_memory_bytes").await >= f64::from(bytes)
    })
    .await;
    app
}

#[tokio::test]
async fn slow_half_open_and_garbage_connections_cost_only_themselves() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.timeouts.head = Duration::from_secs(2);
    })
    .await;
    // One that is kept open between two requests, as OpenIM does it.
    let mut kept = app.connect().await;
    let body = member_info("g", "u", json!({"roleLevel": 20}));
    let request = head_of_callback(body.len()) + &body;
    kept.write_all(request.as_bytes()).await.unwrap();
    assert!(answer(&mut kept).await.starts_with("HTTP/1.1 200 OK\r\n"));

    let mut strangers = Vec::new();
    for said in [
        b"".as_slice(),
        b"G",
        b"POST /callbackAfterSetGroupMemberInfoCommand HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS
        b"\0\0\0\0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\nGET /livez HT",
    ] {
        for _ in 0..30 {
            let mut stranger = app.connect().await;
            stranger.write_all(said).await.unwrap();
            strangers.push(stranger);
        }
    }
    app.set("g", "u", json!({"roleLevel": 60})).await;
    // A second request of which only the beginning comes.
    let mut slow = app.connect().await;
    slow.write_all(request.as_bytes()).await.unwrap();
    answer(&mut slow).await;
    slow.write_all(b"POST /call").await.unwrap();
    strangers.push(slow);
    for (number, mut stranger) in strangers.into_iter().enumerate() {
        let mut said = Vec::new();
        let end = stranger.read_to_end(&mut said);
        let end = tokio::time::timeout(Duration::from_secs(20), end).await;
        assert!(end.is_ok(), "number {number} was not closed: {said:?}");
    }
    // All of them have been closed for waiting; the kept one has waited longer and is there.
    kept.write_all(request.as_bytes()).await.unwrap();
    assert!(answer(&mut kept).await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_answer_that_nobody_takes_ends_its_connection() {
    let app = TestApp::start_on(TestDb::new().await, |config| config.timeouts.answer = SHORT).await;
    app.db
        .execute(
            "insert into group_members (group_id, user_id, ex, created_at, updated_at, last_callback_at)
             values ('g', 'u', repeat('x', 20000000), now(), now(), now())",
        )
        .await;
    let mut stranger = app.connect().await;
    let request = "GET /groups/g/members HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stranger.write_all(request.as_bytes()).await.unwrap();
    until("the answer is begun", async || {
        app.metric("reads_total{route=\"/groups/{groupID}/members\",status=\"200\"}")
            .await
            == 1.0
    })
    .await;
    // Only the connection that asks for the metrics is left.
    until("its connection is closed", async || {
        app.metric("http_connections").await == 1.0
    })
    .await;
    let mut said = Vec::new();
    let _ = stranger.read_to_end(&mut said).await;
    assert!(said.len() < 20_000_000, "the whole answer was taken");
}

/// HTTP/2's preface, and an empty SETTINGS frame.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Reads on until the connection ends, which has to be soon.
async fn end_of(connection: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let end = connection.read_to_end(&mut said);
    let end = tokio::time::timeout(Duration::from_secs(20), end).await;
    assert!(end.is_ok(), "it was not closed: {said:?}");
    said
}

/// Nobody waits for long here, so what is closed is closed for what it said.
async fn patient_app() -> TestApp {
    TestApp::start_on(TestDb::new().await, |config| {
        config.timeouts.head = Duration::from_secs(600);
        config.stop.timeout = Duration::from_secs(600);
    })
    .await
}

#[tokio::test]
async fn the_preface_of_http2_is_refused_however_it_is_cut() {
    let app = patient_app().await;
    for part in [HTTP2.len(), 24, 18, 17, 1] {
        let mut stranger = app.connect().await;
        stranger.set_nodelay(true).unwrap();
        for part in HTTP2.chunks(part) {
            // It may be closed before it has said all.
            if stranger.write_all(part).await.is_err() {
                break;
            }
        }
        let mut said = Vec::new();
        let end = stranger.read_to_end(&mut said);
        let end = tokio::time::timeout(Duration::from_secs(20), end).await;
        // What it says after the end may be answered by a reset.
        assert!(end.is_ok(), "in parts of {part}: not closed, {said:?}");
        assert_eq!(said, b"", "in parts of {part}: HTTP/2 was spoken");
    }
}

#[tokio::test]
async fn http2_is_refused_after_requests_of_http1_too() {
    let app = patient_app().await;
    let mut stranger = app.connect().await;
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stranger.write_all(request).await.unwrap();
    assert!(
        answer(&mut stranger)
            .await
            .starts_with("HTTP/1.1 200 OK\r\n")
    );
    stranger.write_all(&HTTP2[..18]).await.unwrap();
    assert_eq!(end_of(&mut stranger).await, b"");
    // Only the connection that asks for the metrics is left.
    until("its place is free", async || {
        app.metric("http_connections").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_stop_is_not_held_by_who_began_http2() {
    let app = patient_app().await;
    let mut whole = app.connect().await;
    whole.write_all(HTTP2).await.unwrap();
    // The end, where it is refused; else what HTTP/2 answers.
    let _ = whole.read(&mut [0; 1024]).await;
    let mut begun = app.connect().await;
    begun.write_all(&HTTP2[..10]).await.unwrap();
    until("both are let in", async || {
        app.metric("http_connections").await >= 2.0
    })
    .await;
    let stop = tokio::time::timeout(Duration::from_secs(20), app.stop());
    assert!(stop.await.is_ok(), "the stop waits for them");
}

#[tokio::test]
async fn an_offer_to_go_on_with_http2_is_passed_over() {
    let app = TestApp::start().await;
    let mut connection = app.connect().await;
    let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    for _ in 0..2 {
        connection.write_all(request.as_bytes()).await.unwrap();
        let answer = answer(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.to_lowercase().contains("upgrade"), "{answer}");
    }
}

/// A client of HTTP/1.0 that wants to keep its connection gets one answer.
#[tokio::test]
async fn who_speaks_http_1_0_is_told_either_to_close_or_to_keep() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["p".to_owned().into()];
        config.access.api_tokens = vec!["t".to_owned().into()];
    })
    .await;
    let mut connection = app.connect().await;
    let told = |answer: &str| -> Vec<String> {
        let lines = answer.lines().map(str::to_lowercase);
        lines
            .filter_map(|line| line.strip_prefix("connection: ").map(str::to_owned))
            .collect()
    };
    let with_key = "GET /groups HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\
                    Authorization: Bearer t\r\n\r\n";
    for _ in 0..2 {
        connection.write_all(with_key.as_bytes()).await.unwrap();
        assert_eq!(told(&answer(&mut connection).await), ["keep-alive"]);
    }
    let without = "GET /groups HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
    connection.write_all(without.as_bytes()).await.unwrap();
    let said = String::from_utf8(end_of(&mut connection).await).unwrap();
    assert!(said.starts_with("HTTP/1.0 401 "), "{said}");
    assert_eq!(told(&said), ["close"]);
}

#[tokio::test]
async fn a_head_has_an_end() {
    let app = TestApp::start().await;
    let mut stranger = app.connect().await;
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(200 << 10));
    // It may be cut off while it is still speaking.
    let _ = stranger.write_all(endless.as_bytes()).await;
    let mut said = Vec::new();
    let end = stranger.read_to_end(&mut said);
    let end = tokio::time::timeout(Duration::from_secs(10), end).await;
    assert!(end.is_ok(), "it was listened to: {said:?}");
}

/// With keys, those who have shown none are told to close, so that they cannot hold all the places
/// there are by being silent; the others keep their connections.
#[tokio::test]
async fn strangers_do_not_keep_connections() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["p".to_owned().into()];
        config.access.api_tokens = vec!["t".to_owned().into()];
    })
    .await;
    for path in ["/livez", "/docs", "/groups/g", "/nowhere"] {
        assert_eq!(
            app.get(path).await.header("connection"),
            Some("close"),
            "{path}"
        );
    }
    let reply = app
        .send(reqwest::Method::GET, "/groups/g", |request| {
            request.bearer_auth("t")
        })
        .await;
    assert_eq!((reply.status, reply.header("connection")), (404, None));
    let reply = app
        .send(reqwest::Method::POST, &format!("/{COMMAND}"), |request| {
            request.basic_auth("openim", Some("p")).body("no JSON")
        })
        .await;
    assert_eq!((reply.status, reply.header("connection")), (415, None));
    assert_eq!(
        TestApp::start()
            .await
            .get("/livez")
            .await
            .header("connection"),
        None
    );
}
