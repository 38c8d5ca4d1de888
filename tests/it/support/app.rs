//! The service in this process, on a port and a database of its own, and what one says to it.

use std::time::Duration;

use openim_group_mirror::app;
use openim_group_mirror::config::{Config, DatabaseSettings, SpoolSettings, StopSettings};
use openim_group_mirror::domain::MAX_KEPT_BYTES;
use openim_group_mirror::http::{AccessSettings, BodySettings, HttpTimeouts};
use openim_group_mirror::ingest::Retention;
use openim_group_mirror::reconcile;
use openim_group_mirror::telemetry::{LogFormat, LogSettings};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::TestDb;
use super::run::{run, search};

pub const COMMAND: &str = "callbackAfterSetGroupMemberInfoCommand";

/// A running service. It ends with the test's runtime, or by [`TestApp::stop`].
pub struct TestApp {
    pub db: TestDb,
    pub base: String,
    client: reqwest::Client,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), app::Error>>,
}

/// The answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.body
    }
}

impl TestApp {
    pub async fn start() -> TestApp {
        Self::start_on(TestDb::new().await, |_| {}).await
    }

    pub async fn start_on(db: TestDb, adjust: impl FnOnce(&mut Config)) -> TestApp {
        let mut config = Config {
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            database: DatabaseSettings {
                url: Some(db.url.clone().into()),
                schema: "public".into(),
                pool_size: 4,
                timeout: Duration::from_secs(10),
            },
            spool: SpoolSettings {
                dir: Some(run().folder("spool")),
                // Longer than a busy machine needs: a reader who asks after the answer is to see
                // what was written.
                after: Duration::from_secs(10),
                max_bytes: 64 << 20,
            },
            data_dir: None,
            search: search(),
            metrics_addr: None,
            access: AccessSettings {
                callback_username: "openim".into(),
                callback_passwords: vec![],
                api_tokens: vec![],
                allow_anonymous: false,
            },
            body: BodySettings {
                max_bytes: 16 << 20,
                max_memory: 64 << 20,
            },
            max_answer_memory: 64 << 20,
            callback_next_code: 1,
            operators: openim_group_mirror::domain::Operators::default(),
            openim: None,
            reconcile: reconcile::ReconcileSettings {
                // The model's rows are as its versions.
                settling: Duration::ZERO,
                interval: Duration::from_secs(600),
                full_interval: Duration::from_secs(86400),
                delay: Duration::from_millis(50),
                concurrency: 4,
            },
            rejected: Retention {
                keep_days: 30,
                max_bytes: 256 << 20,
            },
            stop: StopSettings {
                delay: Duration::ZERO,
                timeout: Duration::from_secs(5),
            },
            timeouts: HttpTimeouts::default(),
            log: LogSettings {
                format: LogFormat::Text,
                filter: "info".into(),
            },
        };
        adjust(&mut config);
        let listener = TcpListener::bind(config.listen_addr).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (shutdown, asked) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let shutdown = async { asked.await.unwrap_or(()) };
            app::run(&config, listener, std::io::sink(), shutdown).await
        });
        TestApp {
            db,
            base,
            client: super::web::client()
                .timeout(Duration::from_secs(30))
                .build()
                .unwrap(),
            shutdown: Some(shutdown),
            task,
        }
    }

    /// A connection of its own, to say things that no client says.
    pub async fn connect(&self) -> TcpStream {
        let address = self.base.strip_prefix("http://").unwrap();
        TcpStream::connect(address).await.unwrap()
    }

    /// A metric's value; 0 where it is not there.
    pub async fn metric(&self, line: &str) -> f64 {
        let text = self.text("/metrics").await;
        let prefix = format!("openim_group_mirror_{line} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The metrics, where they need a token.
    pub async fn metrics_with(&self, token: &str) -> String {
        let request = self.client.get(format!("{}/metrics", self.base));
        let response = request.bearer_auth(token).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    }

    /// Answer at a path, as text.
    pub async fn text(&self, path: &str) -> String {
        let url = format!("{}{path}", self.base);
        let response = self.client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap()
    }

    /// Asserts that the newest kept callback is this body, refused with this reply.
    pub async fn assert_kept(&self, body: &[u8], reply: &Reply) {
        let newest = "select *, encode(body, 'hex') as hex from rejected_callbacks
                       order by id desc limit 1";
        let rows = self.db.rows(newest).await;
        let row = &rows[0];
        let kept = &body[..body.len().min(MAX_KEPT_BYTES)];
        let hex: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(row["hex"] == hex, "another body was kept");
        assert_eq!(row["body_bytes"], json!(body.len()));
        assert_eq!(row["detail"], reply.body["errDlt"]);
        assert_eq!(row["path"], format!("/{COMMAND}"));
        let code = match reply.body["errCode"].as_u64().unwrap() {
            5101 => "body_malformed",
            5102 => "field_missing",
            5103 => "field_type",
            5104 => "id_invalid",
            5105 => "command_mismatch",
            5115 => "not_json",
            other => panic!("{other} is not kept"),
        };
        assert_eq!(row["code"], code);
    }

    /// Stops as a signal would, and gives the database back.
    pub async fn stop(mut self) -> TestDb {
        self.shutdown.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
        self.db
    }

    /// Sends a request as it is built.
    pub async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        build: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Reply {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let response = build(request).send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        Reply {
            status,
            headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(reqwest::Method::GET, path, |request| request)
            .await
    }

    /// Posts JSON text to a path.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        self.send(reqwest::Method::POST, path, |request| {
            request
                .header("content-type", "application/json; charset=utf-8")
                .body(body)
        })
        .await
    }

    /// A set-member-info callback with this body, as text.
    pub async fn callback_text(&self, body: impl Into<reqwest::Body>) -> Reply {
        self.post(&format!("/{COMMAND}"), body).await
    }

    /// A set-member-info callback with these fields beside group, user and command.
    #[track_caller]
    pub fn set(&self, group: &str, user: &str, fields: Value) -> impl Future<Output = ()> {
        let body = member_info(group, user, fields);
        async move {
            let reply = self.callback_text(body).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            assert_eq!(reply.body["actionCode"], 0, "{reply:?}");
        }
    }

    /// The values of a current member: role, nickname, face, ex.
    pub async fn member(&self, group: &str, user: &str) -> Option<[Value; 4]> {
        let (group, user) = (path_segment(group), path_segment(user));
        let reply = self.get(&format!("/groups/{group}/members/{user}")).await;
        if reply.status == 404 {
            return None;
        }
        let body = reply.ok();
        Some(["roleLevel", "nickName", "faceURL", "ex"].map(|name| body[name].clone()))
    }
}

/// Reads one answer, head and body, from a connection; a part of it if the connection ends.
pub async fn answer(connection: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async {
        while !is_whole(&answer) {
            match connection.read_buf(&mut answer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    let bound = Duration::from_secs(20);
    tokio::time::timeout(bound, read).await.expect("an answer");
    String::from_utf8(answer).unwrap()
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next());
    length.is_some_and(|length| body.len() >= length.parse().unwrap())
}

/// The head of a callback with a body of this length, as OpenIM's client writes it.
pub fn head_of_callback(length: usize) -> String {
    format!(
        "POST /{COMMAND} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {length}\r\nContent-Type: application/json; charset=utf-8\r\n\
         Operationid: op-9\r\nAccept-Encoding: gzip\r\n\r\n"
    )
}

/// A body of exactly this length.
pub fn body_of(bytes: usize) -> String {
    let frame = member_info("g", "u", json!({"ex": ""})).len();
    let body = member_info("g", "u", json!({"ex": "x".repeat(bytes - frame)}));
    assert_eq!(body.len(), bytes);
    body
}

/// Waits until it holds, for 20 s at most.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    assert!(waited.is_ok(), "not in time: {what}");
}

/// The document's sample.
pub fn sample() -> Value {
    json!({
        "callbackCommand": COMMAND,
        "groupID": "12345",
        "userID": "user789",
        "nickName": "user",
        "faceURL": "http://example.com/path/to/face/image.png",
        "roleLevel": 20,
        "ex": "Extra data"
    })
}

/// A body as OpenIM sends it: fields not given are null.
pub fn member_info(group: &str, user: &str, fields: Value) -> String {
    let mut body = json!({
        "callbackCommand": COMMAND,
        "groupID": group,
        "userID": user,
        "nickName": null,
        "faceURL": null,
        "roleLevel": null,
        "ex": null
    });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    format!("{body}\n")
}

/// Percent-encodes an id for a path.
pub fn path_segment(id: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    id.bytes().map(encode).collect()
}
