//! Metrics and logs of the service.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::json;

use crate::support::{
    COMMAND, OpenImServer, Service, TestApp, TestDb, access, member_info, until, web,
};

/// A service that compares itself with an OpenIM that holds nothing.
async fn comparing(server: &OpenImServer) -> TestApp {
    let db = TestDb::new().await;
    TestApp::start_on(db, |config| config.openim = Some(access(server))).await
}

#[tokio::test]
async fn callbacks_and_reads_are_counted_and_timed() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    app.set("g", "v", json!({"roleLevel": 20})).await;
    app.callback_text(member_info("g", "u", json!({"roleLevel": "no"})))
        .await;
    app.get("/groups/g/members/u").await;
    app.get("/groups/g/members/nobody").await;
    app.get("/groups/a%2Fb/members?limit=5000").await;
    app.get("/no/such/path").await;
    for (line, expected) in [
        (
            format!("callbacks_total{{command=\"{COMMAND}\",outcome=\"ok\"}}"),
            2.0,
        ),
        (
            format!("callbacks_total{{command=\"{COMMAND}\",outcome=\"field_type\"}}"),
            1.0,
        ),
        (
            format!("callback_duration_seconds_count{{command=\"{COMMAND}\"}}"),
            3.0,
        ),
        (
            format!("callback_duration_seconds_bucket{{command=\"{COMMAND}\",le=\"+Inf\"}}"),
            3.0,
        ),
        (
            "reads_total{route=\"/groups/{groupID}/members/{userID}\",status=\"200\"}".into(),
            1.0,
        ),
        (
            "reads_total{route=\"/groups/{groupID}/members/{userID}\",status=\"404\"}".into(),
            1.0,
        ),
        (
            "reads_total{route=\"/groups/{groupID}/members\",status=\"400\"}".into(),
            1.0,
        ),
        ("reads_total{route=\"other\",status=\"404\"}".into(), 1.0),
        (
            "read_duration_seconds_count{route=\"/groups/{groupID}/members/{userID}\"}".into(),
            2.0,
        ),
        (
            "rejected_callbacks_total{code=\"field_type\",kept=\"yes\"}".into(),
            1.0,
        ),
        ("database_connections_max".into(), 4.0),
        (
            format!("build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")),
            1.0,
        ),
    ] {
        assert_eq!(app.metric(&line).await, expected, "{line}");
    }
    let text = app.text("/metrics").await;
    let connections = |state: &str| -> f64 {
        let line = format!("openim_group_mirror_database_connections{{state=\"{state}\"}} ");
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap().parse().unwrap()
    };
    assert!((1.0..=4.0).contains(&(connections("used") + connections("idle"))));
    if cfg!(target_os = "linux") {
        assert!(
            app.text("/metrics")
                .await
                .contains("\nprocess_resident_memory_bytes ")
        );
    }
}

/// Prometheus sees an increase only from a value that it has seen, so the first failure would ring
/// no alert.
#[tokio::test]
async fn what_alerts_ask_for_is_there_before_it_happens() {
    let server = OpenImServer::start().await;
    let app = comparing(&server).await;
    let text = app.text("/metrics").await;
    for line in [
        &format!("callbacks_total{{command=\"{COMMAND}\",outcome=\"database_away\"}} 0\n"),
        &format!("callbacks_total{{command=\"{COMMAND}\",outcome=\"ok\"}} 0\n"),
        "callbacks_total{command=\"other\",outcome=\"credentials_wrong\"} 0\n",
        "rejected_callbacks_total{code=\"field_type\",kept=\"no\"} 0\n",
        "http_accept_errors_total 0\n",
        "reads_total{route=\"/groups/{groupID}/members\",status=\"503\"} 0\n",
        "reads_total{route=\"/memberships/query\",status=\"500\"} 0\n",
        "reads_total{route=\"other\",status=\"500\"} 0\n",
        "reconcile_cycles_total{outcome=\"too_many_removals\"} 0\n",
        "reconcile_interval_seconds 600\n",
        "hints_total{outcome=\"due\",type=\"1509\"} 0\n",
        "looks_total{outcome=\"failed\"} 0\n",
    ] {
        assert!(
            text.contains(&format!("\nopenim_group_mirror_{line}")),
            "{line}"
        );
    }
}

/// Whoever chooses paths, methods and commands could otherwise make a time series of each.
#[tokio::test]
async fn no_caller_chooses_the_value_of_a_label() {
    let app = TestApp::start().await;
    let series = async || app.text("/metrics").await.lines().count();
    app.post("/callbackBeforeZero", "{}").await;
    app.get("/x/0").await;
    app.get("/groups/0/members/0").await;
    series().await; // which is a read itself
    let before = series().await;
    for n in 1..50 {
        app.post(&format!("/callbackBefore{n}"), "{}").await;
        app.get(&format!("/x/{n}")).await;
        app.get(&format!("/groups/{n}/members/{n}")).await;
    }
    assert_eq!(series().await, before);
}

#[tokio::test]
async fn metrics_can_have_a_listener_of_their_own_without_a_token() {
    let db = TestDb::new().await;
    let service = Service::start(&[
        ("DATABASE_URL", &db.url),
        ("API_TOKEN", "t"),
        ("METRICS_ADDR", "127.0.0.1:0"),
    ]);
    let line = service
        .banner
        .lines()
        .find_map(|line| line.strip_prefix("metrics "));
    let url = line.unwrap().trim();
    let client = web::client().build().unwrap();
    let get = async |url: &str, token: &str| {
        let response = client.get(url).bearer_auth(token).send().await.unwrap();
        let status = response.status().as_u16();
        let content_type = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (status, content_type, response.text().await.unwrap())
    };
    let read = format!("{}/groups/g", service.base);
    assert_eq!(get(&read, "t").await.0, 404);
    let (status, content_type, text) = get(url, "none").await;
    assert_eq!(status, 200);
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let counted = "_reads_total{route=\"/groups/{groupID}\",status=\"404\"} 1\n";
    assert!(text.contains(counted), "{text}");
    let again = client.get(url).send().await.unwrap();
    assert_eq!(again.headers()["cache-control"], "no-store");
    // On loopback only those who name this machine, as at every door without a key.
    let rebound = client.get(url).header("host", "evil.example").send().await;
    assert_eq!(rebound.unwrap().status(), 403);
    // Nothing else is there, and they are no longer where everybody asks.
    assert_eq!(get(&url.replace("/metrics", "/groups/g"), "t").await.0, 404);
    let old = format!("{}/metrics", service.base);
    assert_eq!(get(&old, "none").await.0, 401);
    let (status, _, text) = get(&old, "t").await;
    assert_eq!(status, 404);
    assert!(
        text.contains("METRICS_ADDR: the metrics are served there"),
        "{text}"
    );
}

/// Names in the dashboard and the alert rules that the service does not have would show nothing
/// and never ring.
#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let server = OpenImServer::start().await;
    let app = comparing(&server).await;
    until("the first comparison is done", async || {
        app.metric("reconcile_cycles_total{outcome=\"ok\"}").await == 1.0
    })
    .await;
    app.set("g", "u", json!({})).await;
    app.callback_text("no JSON").await;
    app.get("/groups/g").await;
    let served = app.text("/metrics").await;
    let name = Regex::new(r"\b(?:openim_group_mirror|process)_[a-z_]+").unwrap();
    let of = |text: &str| -> BTreeSet<String> {
        name.find_iter(text)
            .map(|found| found.as_str().to_owned())
            .collect()
    };
    let there = of(&served);
    let dashboard = include_str!("../../deploy/grafana-dashboard.json");
    let parsed: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() >= 8);
    let alerts = include_str!("../../deploy/prometheus-alerts.yml");
    for (what, text) in [("dashboard", dashboard), ("alerts", alerts)] {
        let mut asked = of(text);
        if cfg!(not(target_os = "linux")) {
            asked.retain(|name| !name.starts_with("process_")); // read from /proc
        }
        assert!(asked.len() >= 5, "{what}: {asked:?}");
        let missing: Vec<&String> = asked.difference(&there).collect();
        assert!(missing.is_empty(), "{what}: {missing:?}");
    }
    // And for values of labels that there are: every outcome is a code of the document, or one of
    // comparisons or hints.
    let document: serde_json::Value =
        serde_json::from_str(&openim_group_mirror::http::openapi_json().unwrap()).unwrap();
    let operations = document["paths"].as_object().unwrap().values();
    let outcomes: BTreeSet<&String> = operations
        .filter_map(|path| path["post"]["responses"].as_object())
        .flat_map(|responses| responses.values())
        .filter_map(|response| response["content"]["application/json"]["examples"].as_object())
        .flat_map(|examples| examples.keys())
        .collect();
    let values = Regex::new(r#"outcome=~?"([^"]*)""#).unwrap();
    let mut count = 0;
    for asked in values.captures_iter(alerts).flat_map(|found| {
        let values = found.get(1).unwrap().as_str();
        values.split('|').map(str::to_owned).collect::<Vec<_>>()
    }) {
        let of_others = ["reconcile_cycles", "hints", "looks"]
            .map(|name| format!("_{name}_total{{outcome=\"{asked}\""))
            .into_iter()
            .any(|series| served.contains(&series));
        let is_there = asked == "unanswered" || outcomes.contains(&asked) || of_others;
        assert!(is_there, "{asked}");
        count += 1;
    }
    assert!(count >= 5, "{count}");
    assert!(served.contains("_database_connections{state=\"used\"}"));
}

#[test]
fn each_alert_names_its_runbook() {
    let alerts = include_str!("../../deploy/prometheus-alerts.yml");
    let mut count = 0;
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap().to_lowercase();
        let runbook = format!("runbook: docs/operations.md#{name}\n");
        assert!(alert.contains(&runbook), "{name}");
        count += 1;
    }
    assert!(count >= 15, "{count}");
}
