//! The service in this process, on a port and a database of its own, and what one says to it.

use std::time::Duration;

use openim_group_mirror::app;
use openim_group_mirror::config::{
    AccessSettings, BodySettings, Config, DatabaseSettings, LogFormat, Patience, StopSettings,
};
use openim_group_mirror::ingest::Retention;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::TestDb;
use super::run::search;

pub const COMMAND: &str = "callbackAfterSetGroupMemberInfoCommand";

/// A running service. It ends with the test's runtime, or by [`TestApp::stop`].
pub struct TestApp {
    pub db: TestDb,
    pub base: String,
    client: reqwest::Client,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), app::Error>>,
}

/// What was answered.
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
                timeout: Duration::from_secs(2),
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
            callback_next_code: 1,
            rejected: Retention {
                keep_days: 30,
                max_bytes: 256 << 20,
            },
            stop: StopSettings {
                delay: Duration::ZERO,
                timeout: Duration::from_secs(5),
            },
            patience: Patience::default(),
            log_format: LogFormat::Text,
            log_filter: "info".into(),
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
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(30))
                .build()
                .unwrap(),
            shutdown: Some(shutdown),
            task,
        }
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
