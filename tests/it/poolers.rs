//! Poolers before the database that change what a connection is, and URLs that ask for what we do not have.

use std::time::Duration;

use openim_group_mirror::domain::GroupId;
use openim_group_mirror::store::Database;
use serde_json::json;
use sqlx::Executor;

use crate::support::{Ended, Proxy, Service, TestApp, TestDb, Wire, member_info, until, web};

/// Starts the service in a schema of its own.
async fn start(url: &str) -> Ended {
    ended(vec![
        ("DATABASE_URL", url.to_owned()),
        ("DATABASE_SCHEMA", "mirror".to_owned()),
    ])
    .await
}

/// The proxy has to run meanwhile.
async fn ended(variables: Vec<(&'static str, String)>) -> Ended {
    let run = move || {
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Service::to_end(&["serve"], &variables)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Objects that were made, in any schema.
async fn made(db: &TestDb) -> Vec<serde_json::Value> {
    db.rows(
        "select nspname as name from pg_namespace
          where nspname !~ '^pg_' and nspname not in ('public', 'information_schema')
         union all
         select relname from pg_class where relnamespace = 'public'::regnamespace",
    )
    .await
}

#[track_caller]
fn assert_refused(ended: &Ended, code: i32, expected: &str) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    let told: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| line.contains(expected))
        .collect();
    assert_eq!(told.len(), 1, "{expected}: {}", ended.stderr);
}

#[tokio::test]
async fn through_a_pooler_that_drops_the_options_everything_is_in_the_schema_of_the_setting() {
    let db = TestDb::empty("").await;
    let pooler = Proxy::before(&db.url).await;
    pooler.drop_options();
    let url = pooler.url.clone();
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(url.into());
        config.database.schema = "mirror".into();
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(60));
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
    assert_eq!(made(&app.db).await, [json!({"name": "mirror"})]);
}

/// Not only the schema counts: without its timeouts a statement may hang for ever.
#[tokio::test]
async fn through_a_pooler_that_drops_the_options_statements_have_their_timeouts() {
    let db = TestDb::new().await;
    db.execute(
        "insert into group_checks (group_id, compared_at, read_at) values ('g', now(), now())",
    )
    .await;
    let pooler = Proxy::before(&db.url).await;
    pooler.drop_options();
    let short = Duration::from_millis(200);
    let database = Database::new(&pooler.url, "public", 4, short, short).unwrap();
    let store = database.store();
    until("there is a connection", async || store.ping().await.is_ok()).await;
    let mut holder = db.pool.begin().await.unwrap();
    let lock = "select 1 from group_checks for update";
    holder.execute(lock).await.unwrap();
    let group = GroupId::parse("g".into()).unwrap();
    let failed = store.forget_versions(&[&group]).await.unwrap_err();
    // Postgres has ended it; we have not given up on it.
    assert!(failed.to_string().starts_with("SQLSTATE "), "{failed}");
    holder.rollback().await.unwrap();
}

#[tokio::test]
async fn a_pooler_that_switches_backends_ends_the_start_before_anything_is_made() {
    for drops in [false, true] {
        let db = TestDb::empty("").await;
        let pooler = Proxy::before(&db.url).await;
        pooler.switch_backends();
        if drops {
            pooler.drop_options();
        }
        let ended = start(&pooler.url).await;
        assert_refused(&ended, 1, "set its pool_mode to session");
        assert_eq!(made(&db).await, [json!(null); 0]);
    }
}

/// Somebody changes the pooler's settings under a running service.
#[tokio::test]
async fn a_pooler_that_begins_to_switch_backends_sends_callbacks_to_the_spool_and_is_named() {
    let db = TestDb::new().await;
    let pooler = Proxy::before(&db.url).await;
    let url = pooler.url.clone();
    let service = tokio::task::spawn_blocking(move || Service::start(&[("DATABASE_URL", &url)]));
    let service = service.await.unwrap();
    let post = async |user: &str| {
        let url = format!("{}/callbackAfterSetGroupMemberInfoCommand", service.base);
        let body = member_info("g", user, json!({"roleLevel": 20}));
        let request = web::client().build().unwrap().post(url).body(body);
        let request = request.header("content-type", "application/json");
        assert_eq!(request.send().await.unwrap().status(), 200);
    };
    post("before").await;
    pooler.drop_options();
    pooler.switch_backends();
    // Whoever connects from now on meets the new settings. It waits for their end.
    let end = "select pg_terminate_backend(pid, 20000) from pg_stat_activity
                where datname = current_database() and application_name = 'openim-group-mirror'";
    db.rows(end).await;
    post("after").await;
    let sentence = "set its pool_mode to session";
    until("the log names it", async || {
        let log = service.log();
        let is_told = |line: &str| line.contains("cannot be drained") && line.contains(sentence);
        log.lines().any(is_told)
    })
    .await;
    let users = db.rows("select user_id from group_members").await;
    assert_eq!(users, [json!({"user_id": "before"})]);
}

/// The values of parameters that sqlx does not know are none of the log's business.
#[tokio::test]
async fn no_value_of_a_parameter_of_the_url_is_logged() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    for name in [
        "sslpassword",
        "scram_client_key",
        "oauth_client_secret",
        "keepalives_idle",
        "of_tomorrow",
    ] {
        let url = format!("{}&{name}=hunter2", wire.url);
        let run = move || {
            let service = Service::start(&[("DATABASE_URL", &url), ("RUST_LOG", "trace")]);
            service.log()
        };
        let log = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(!log.contains("hunter2"), "{log}");
        let told = log.lines().filter(|line| line.contains(name)).count();
        assert_eq!(told, 1, "{name}: {log}");
    }
}

#[tokio::test]
async fn a_url_that_asks_for_more_safety_than_there_is_ends_the_start() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    for (parameter, way_out) in [
        ("channel_binding=require", "sslmode=verify-full"),
        ("require_auth=scram-sha-256", "sslmode=verify-full"),
        ("target_session_attrs=read-write", "primary"),
        ("gssencmode=require", "sslmode=verify-full"),
        ("ssl_min_protocol_version=TLSv1.3", "TLSv1.2"),
        ("sslcrl=/hunter2/root.crl", "verify-full"),
        ("requirepeer=hunter2", "folder"),
        ("sslmode=hunter2", "verify-full"),
        ("sslmod=hunter2", "sslmode"),
        ("ssl=hunter2", "sslmode"),
        ("service=hunter2", "DATABASE_URL"),
    ] {
        let url = format!(
            "{}&{parameter}",
            wire.url.replace("?sslmode=disable", "?port=1")
        );
        let ended = ended(vec![("DATABASE_URL", url)]).await;
        let (name, _) = parameter.split_once('=').unwrap();
        assert_refused(&ended, 2, name);
        assert!(
            ended.stderr.contains("DATABASE_URL: expected"),
            "{}",
            ended.stderr
        );
        assert!(
            ended.stderr.contains(way_out),
            "{parameter}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

/// libpq reads them, so who sets them counts on them.
#[tokio::test]
async fn a_variable_of_libpq_that_asks_for_more_safety_than_there_is_ends_the_start() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let without = wire.url.replace("?sslmode=disable", "");
    for (variable, value) in [
        ("PGCHANNELBINDING", "require"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGTARGETSESSIONATTRS", "primary"),
        ("PGGSSENCMODE", "require"),
        ("PGSSLMODE", "verify_full"),
        ("PGSERVICE", "mirror"),
    ] {
        let variables = vec![
            ("DATABASE_URL", without.clone()),
            (variable, value.to_owned()),
        ];
        let ended = ended(variables).await;
        assert_refused(&ended, 2, &format!("{variable}: expected"));
    }
    // What the URL says goes before.
    let url = wire.url.clone();
    let run = move || {
        let variables = [("DATABASE_URL", url.as_str()), ("PGSSLMODE", "verify_full")];
        drop(Service::start(&variables));
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

/// PostgreSQL 19 warns of an MD5 password at every connection. Any other warning at the start of a
/// session is told by the same message.
#[tokio::test]
async fn a_warning_that_every_connection_brings_is_told_once() {
    let db = TestDb::new().await;
    let name = db.rows("select current_database() as name").await;
    let name = name[0]["name"].as_str().unwrap();
    db.execute(&format!(
        "alter database {name} set default_text_search_config = 'of_tomorrow'"
    ))
    .await;
    let url = db.url.clone();
    let run = move || Service::start(&[("DATABASE_URL", &url)]);
    let service = tokio::task::spawn_blocking(run).await.unwrap();
    let connections = "select 1 from pg_stat_activity where datname = current_database()
                          and application_name = 'openim-group-mirror'";
    until("there are several connections", async || {
        let gets = (0..8).map(|_| web::get(format!("{}/groups/g", service.base)));
        futures_util::future::join_all(gets).await;
        db.rows(connections).await.len() >= 3
    })
    .await;
    let log = service.log();
    let told = log
        .lines()
        .filter(|line| line.contains("of_tomorrow"))
        .count();
    assert_eq!(told, 1, "{log}");
}
