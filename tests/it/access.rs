//! Keys and hosts that are accepted.

use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    COMMAND, Reply, Service, TestApp, TestDb, answer, head_of_callback, member_info, sample,
    wait_for, web,
};

const BASIC: &str = "Basic realm=\"openim-group-mirror\", charset=\"UTF-8\"";

async fn app_with_keys() -> TestApp {
    TestApp::start_on(TestDb::new().await, |config| {
        let secret = |text: &str| text.to_owned().into();
        config.access.callback_passwords = vec![secret("new:pässword"), secret("old")];
        config.access.api_tokens = vec![secret("new-token"), secret("old-token")];
    })
    .await
}

/// `user:password` in base64, as a header.
fn basic(pair: &str) -> String {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD;
    format!("Basic {}", engine.encode(pair))
}

async fn callback_with(app: &TestApp, authorization: &[&str]) -> Reply {
    app.send(Method::POST, &format!("/{COMMAND}"), |request| {
        let request = request
            .header("content-type", "application/json")
            .body(sample().to_string());
        authorization.iter().fold(request, |request, value| {
            request.header("authorization", *value)
        })
    })
    .await
}

#[tokio::test]
async fn callbacks_need_the_password_or_the_one_before() {
    let app = app_with_keys().await;
    let right = basic("openim:new:pässword");
    for authorization in [
        &[][..],
        &[""],
        &["Basic"],
        &["Basic !!"],
        &["Basic b3BlbmltOg="],
        &[&basic("openim")],
        &[&basic("openim:")],
        &[&basic("openim:new")],
        &[&basic("openim:new:pässword ")],
        &[&basic("OpenIM:old")],
        &[&basic("other:old")],
        &[&basic("openim:old-token")],
        &["Bearer old"],
        &["Bearer new-token"],
        &[&right, &right],
    ] {
        let reply = callback_with(&app, authorization).await;
        assert_eq!(reply.status, 401, "{authorization:?}");
        assert_eq!(reply.header("www-authenticate"), Some(BASIC));
        assert_eq!(
            reply.body,
            json!({
                "actionCode": 1, "errCode": 5111, "errMsg": "the credentials are missing or wrong",
                "errDlt": "Authorization: expected HTTP Basic with CALLBACK_USERNAME and \
                           CALLBACK_PASSWORD",
                "nextCode": 0
            })
        );
    }
    assert!(app.db.rows("select 1 from group_members").await.is_empty());
    assert!(
        app.db
            .rows("select 1 from rejected_callbacks")
            .await
            .is_empty()
    );
    for right in [
        right,
        basic("openim:old"),
        basic("openim:old").replace("Basic", "bASIC"),
    ] {
        callback_with(&app, &[&right]).await.ok();
    }
    // Whoever waits to drop the old password sees that it is still used.
    let text = app
        .send(Method::GET, "/metrics", |request| {
            request.bearer_auth("old-token")
        })
        .await;
    assert_eq!(text.status, 200);
    let older = app.metrics_with("new-token").await;
    for line in [
        "older_keys_total{door=\"callbacks\"} 2\n",
        "older_keys_total{door=\"reads\"} 1\n",
    ] {
        assert!(older.contains(line), "{older}");
    }
}

#[tokio::test]
async fn reads_need_a_token_and_what_a_browser_or_a_probe_asks_does_not() {
    let app = app_with_keys().await;
    let get = async |path: &str, authorization: Option<&str>| {
        app.send(Method::GET, path, |request| {
            let value = authorization.map(|value| ("authorization", value));
            value.into_iter().fold(request, |request, (name, value)| {
                request.header(name, value)
            })
        })
        .await
    };
    for path in [
        "/groups/g",
        "/groups/g/members",
        "/groups/g/members/u",
        "/users/u/groups",
        "/metrics",
    ] {
        let password = basic("openim:old");
        for wrong in [
            None,
            Some("Bearer"),
            Some("Bearer old"),
            Some("Bearer new-token,old-token"),
            Some("new-token"),
            Some(password.as_str()),
        ] {
            let reply = get(path, wrong).await;
            assert_eq!(reply.status, 401, "{path} {wrong:?}");
            let challenge = reply.header("www-authenticate");
            assert_eq!(challenge, Some("Bearer realm=\"openim-group-mirror\""));
            assert_eq!(reply.body["code"], "credentials_wrong");
        }
        for right in ["Bearer new-token", "Bearer old-token", "bearer new-token"] {
            let reply = get(path, Some(right)).await;
            assert!([200, 404].contains(&reply.status), "{path}: {reply:?}");
        }
    }
    // A read that is posted is a read.
    let query = app.post("/memberships/query", r#"{"pairs": []}"#).await;
    assert_eq!(query.status, 401);
    assert_eq!(query.body["code"], "credentials_wrong");
    for path in [
        "/livez",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/openapi.yaml",
    ] {
        assert_eq!(get(path, None).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn credentials_are_checked_before_the_body_is_read() {
    let app = app_with_keys().await;
    let mut connection = app.connect().await;
    // Only the head: an answer can come only from somebody who does not wait for the body.
    let head = head_of_callback(1000);
    connection.write_all(head.as_bytes()).await.unwrap();
    let answer = answer(&mut connection).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"),
        "{answer}"
    );
}

/// , with everything logged that can be.
#[tokio::test]
async fn case_74_wrong_credentials_store_nothing_and_log_no_body() {
    let db = TestDb::new().await;
    let service = Service::start(&[
        ("DATABASE_URL", &db.url),
        ("CALLBACK_PASSWORD", "hunter2"),
        ("API_TOKEN", "hunter3"),
        ("RUST_LOG", "trace"),
    ]);
    let url = format!("{}/{COMMAND}", service.base);
    let client = web::client().build().unwrap();
    let post = async |password: &str, body: String| {
        let request = client.post(&url).basic_auth("openim", Some(password));
        let request = request.header("content-type", "application/json");
        request.body(body).send().await.unwrap().status()
    };
    let secret = || member_info("SECRET-GROUP", "u", json!({"ex": "SECRET-EX"}));
    for _ in 0..2 {
        assert_eq!(post("SECRET-WRONG", secret()).await, 401);
    }
    assert_eq!(
        post(
            "hunter2",
            member_info("g", "u", json!({"ex": "SECRET-KEPT"}))
        )
        .await,
        200
    );
    assert_eq!(post("SECRET-WRONG", secret()).await, 401);
    let rows = "select group_id from group_members";
    assert_eq!(db.rows(rows).await, [json!({"group_id": "g"})]);
    assert!(db.rows("select 1 from rejected_callbacks").await.is_empty());
    let told = || service.log().matches("callback refused").count();
    wait_for("each is logged", std::time::Duration::from_secs(20), || {
        told() == 3
    });
    let log = service.log();
    // The first since somebody was let in is a warning; strangers do not fill the log.
    let warnings = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("callback refused"));
    assert_eq!(warnings.count(), 2, "{log}");
    for secret in ["SECRET", "hunter"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    assert!(!log.contains(&basic("openim:hunter2")["Basic ".len()..]));
}

async fn from_host(app: &TestApp, path: &str, host: &str) -> Reply {
    let method = if path.contains("callback") {
        Method::POST
    } else {
        Method::GET
    };
    app.send(method, path, |request| {
        request
            .header("host", host)
            .header("content-type", "application/json")
            .body(sample().to_string())
    })
    .await
}

#[tokio::test]
async fn without_keys_the_host_has_to_be_this_machine() {
    let app = TestApp::start().await;
    let callback = format!("/{COMMAND}");
    for path in [&callback, "/groups/12345", "/docs", "/livez", "/nowhere"] {
        let reply = from_host(&app, path, "mirror.evil.example").await;
        assert_eq!(reply.status, 403, "{path}");
        let detail = if path.contains("callback") {
            assert_eq!(reply.body["errCode"], 5112);
            &reply.body["errDlt"]
        } else {
            assert_eq!(reply.body["code"], "host_not_local");
            &reply.body["detail"]
        };
        let expected = "Host: expected localhost or a loopback address, as long as no key is set";
        assert_eq!(detail, expected);
    }
    assert!(app.db.rows("select 1 from group_members").await.is_empty());
    // It never reached the router, and is counted where it belongs all the same.
    let refused = format!("callbacks_total{{command=\"{COMMAND}\",outcome=\"host_not_local\"}}");
    assert_eq!(app.metric(&refused).await, 1.0);
    from_host(&app, &callback, "LOCALHOST:8080").await.ok();
    from_host(&app, "/groups/12345", "[::1]").await.ok();
}

/// A page elsewhere can send a form here without asking first; it only cannot see the answer.
#[tokio::test]
async fn without_keys_no_other_site_sends_anything() {
    let app = TestApp::start().await;
    let post = async |origin: &str| {
        app.send(Method::POST, &format!("/{COMMAND}"), |request| {
            request
                .header("origin", origin)
                .header("content-type", "text/plain")
                .body(sample().to_string())
        })
        .await
    };
    for origin in ["http://evil.example", "null", "http://localhost:3000"] {
        let reply = post(origin).await;
        assert_eq!(reply.status, 403, "{origin}");
        let expected = "Origin: expected none or this service's own, as long as no key is set";
        assert_eq!(reply.body["errDlt"], expected);
    }
    assert!(
        app.db
            .rows("select 1 from rejected_callbacks")
            .await
            .is_empty()
    );
    let own = app.base.clone();
    assert_eq!(post(&own).await.status, 415);
}

#[tokio::test]
async fn a_key_stands_in_for_the_host_at_its_own_door() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["p".to_owned().into()];
    })
    .await;
    let path = format!("/{COMMAND}");
    let reply = from_host(&app, &path, "mirror.example").await;
    assert_eq!(reply.status, 401);
    let reply = from_host(&app, "/groups/g", "mirror.example").await;
    assert_eq!(reply.status, 403);
    let anonymous = TestApp::start_on(TestDb::new().await, |config| {
        config.access.allow_anonymous = true;
    })
    .await;
    from_host(&anonymous, &path, "mirror.example").await.ok();
}

/// Lines of `openim-config` are pasted into OpenIM. OpenIM's client takes user and password from the URL, like the
/// client of this test.
#[tokio::test]
async fn the_printed_url_lets_openim_in_and_the_start_does_not_show_the_password() {
    let password = "hunter2 @:/?#[]%+&=ß\"'";
    let db = TestDb::new().await;
    let variables = [
        ("DATABASE_URL", db.url.as_str()),
        ("CALLBACK_USERNAME", "open im"),
        ("CALLBACK_PASSWORD", password),
    ];
    let service = Service::start(&variables);
    assert!(
        service
            .banner
            .contains("url: http://open%20im:***@127.0.0.1:")
    );
    assert!(!service.banner.contains("hunter2"), "{}", service.banner);
    wait_for("the warning", std::time::Duration::from_secs(20), || {
        service.log().contains("API_TOKEN is not set: every program on this machine has access, and a reverse proxy would give access to everyone")
    });

    for wrong in [
        "mirror:8080",
        "http://u:p@mirror",
        "ftp://mirror",
        "http:///x",
        "http://",
    ] {
        let out = Service::to_end(&["openim-config", "--url", wrong], &variables);
        assert_eq!(out.code, Some(2), "{wrong}");
        assert!(
            out.stderr.contains("expected http://HOST:PORT"),
            "{}",
            out.stderr
        );
    }
    let printed = Service::to_end(&["openim-config", "--url", &service.base], &variables);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let lines: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(lines.len(), 11);
    assert_eq!(
        lines[2],
        "afterSetGroupMemberInfo: { enable: true, timeout: 5 }"
    );
    let url = lines[1].strip_prefix("url: ").unwrap();
    // As OpenIM does: the command behind the URL.
    let request = web::client()
        .build()
        .unwrap()
        .post(format!("{url}/{COMMAND}"))
        .header("content-type", "application/json")
        .body(sample().to_string());
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert!(!service.log().contains("hunter2"), "{}", service.log());
}
