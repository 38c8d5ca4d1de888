//! Connections that break, or are no longer what they were: nothing is written twice, nothing is
//! said to be kept that is not, and a quiet time costs nobody anything.

use std::time::Duration;

use bytes::Bytes;
use openim_group_mirror::domain::{GroupId, Rejected};
use openim_group_mirror::store::{Database, Store};
use serde_json::json;
use sqlx::Executor;
use time::OffsetDateTime;

use crate::support::{Proxy, TestApp, TestDb, Wire, until};

/// The default.
const TIMEOUT: Duration = Duration::from_secs(2);

fn store(url: &str) -> Store {
    let database = Database::new(url, "public", 4, TIMEOUT, TIMEOUT).unwrap();
    database.store()
}

fn group(id: &str) -> GroupId {
    GroupId::parse(id.into()).unwrap()
}

fn rejected(body: &str) -> Rejected {
    Rejected {
        received_at: OffsetDateTime::now_utc(),
        path: "/p".into(),
        operation_id: None,
        code: "not_json".into(),
        detail: "d".into(),
        body: Bytes::from(body.to_owned()),
        body_bytes: body.len() as u64,
    }
}

/// Its connection is then at the service's end only half way into a transaction.
#[tokio::test]
async fn what_is_kept_after_a_begin_that_was_given_up_on_is_there_for_others() {
    let db = TestDb::new().await;
    let proxy = Proxy::before(&db.url).await;
    let store = store(&proxy.url);
    store.ping().await.unwrap();
    proxy.hold_begin(Duration::from_millis(3500));
    let given_up = store.forget_versions(&[&group("g")]).await;
    assert!(given_up.unwrap_err().is_timeout());
    until("the answer comes, and nobody waits for more", async || {
        proxy.has_released() && store.connections().0 == 0
    })
    .await;
    for n in 0..6 {
        store
            .keep_rejected(&rejected(&format!("{n}")))
            .await
            .unwrap();
    }
    let kept = db.rows("select 1 from rejected_callbacks").await;
    assert_eq!(kept.len(), 6);
}

/// A statement in a transaction fails, and with it the function that began it.
#[tokio::test]
async fn a_transaction_that_failed_is_over_before_its_connection_waits_for_work() {
    let db = TestDb::new().await;
    db.execute(
        "insert into group_checks (group_id, compared_at, read_at) values ('g', now(), now())",
    )
    .await;
    let database = Database::new(&db.url, "public", 4, TIMEOUT / 10, TIMEOUT).unwrap();
    let store = database.store();
    let mut holder = db.pool.begin().await.unwrap();
    let lock = "select 1 from group_checks for update";
    holder.execute(lock).await.unwrap();
    let failed = store.forget_versions(&[&group("g")]).await;
    assert!(failed.is_err());
    holder.rollback().await.unwrap();
    let in_transaction = "select 1 from pg_stat_activity where datname = current_database()
                             and application_name = 'openim-group-mirror' and state <> 'idle'";
    until("it is over", async || {
        db.rows(in_transaction).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_rejected_callback_whose_answer_is_lost_is_kept_once() {
    let db = TestDb::new().await;
    let proxy = Proxy::before(&db.url).await;
    let url = proxy.url.clone();
    let app = TestApp::start_on(db, |config| config.database.url = Some(url.into())).await;
    // Once where the next attempt is told, and once where it goes to the spool.
    for (bodies, cuts) in [(1, &["INSERT 0 1"][..]), (2, &["INSERT 0 1", "INSERT 0 0"])] {
        for cut in cuts {
            proxy.cut_after(cut);
        }
        assert_eq!(app.callback_text("no JSON").await.status, 400);
        until("the connections are cut, and nothing waits", async || {
            proxy.has_cut() && app.metric("spool_entries").await == 0.0
        })
        .await;
        let kept = app.db.rows("select 1 from rejected_callbacks").await;
        assert_eq!(kept.len(), bodies);
    }
}

#[tokio::test]
async fn a_run_whose_beginning_is_not_answered_is_begun_once() {
    let db = TestDb::new().await;
    let proxy = Proxy::before(&db.url).await;
    let store = store(&proxy.url);
    store.ping().await.unwrap();
    proxy.cut_after("INSERT 0 1");
    let begun = store.begin_run(false).await;
    assert!(begun.is_err_and(|error| error.is_connection_error()));
    assert_eq!(db.rows("select 1 from reconcile_runs").await.len(), 1);
    // With the connection that broke nothing else is.
    store.begin_run(false).await.unwrap();
    assert_eq!(db.rows("select 1 from reconcile_runs").await.len(), 2);
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_is_not_said_to_have_found_nothing() {
    let db = TestDb::new().await;
    let proxy = Proxy::before(&db.url).await;
    let store = store(&proxy.url);
    store.keep_rejected(&rejected("b")).await.unwrap();
    let id = store.list_rejected(1).await.unwrap()[0].id;
    proxy.cut_after("DELETE 1");
    assert!(store.delete_rejected(id).await.is_err());
    assert!(!store.delete_rejected(id).await.unwrap());
}

/// Sends callbacks that use each lane, for groups that are known already.
async fn callbacks_of_all_lanes(app: &TestApp, role: i32) {
    for group in 0..8 {
        app.set(&format!("g{group}"), "u", json!({"roleLevel": role}))
            .await;
        let member = format!(
            "select role_level as role from group_members
              where group_id = 'g{group}' and user_id = 'u'"
        );
        assert_eq!(app.db.rows(&member).await, [json!({"role": role})]);
    }
}

#[tokio::test]
async fn a_callback_after_idle_connections_were_ended_is_written_before_it_is_answered() {
    let db = TestDb::new().await;
    let proxy = Proxy::before(&db.url).await;
    proxy.end_idle(Duration::from_millis(500));
    let url = proxy.url.clone();
    let app = TestApp::start_on(db, |config| config.database.url = Some(url.into())).await;
    for role in [20, 60, 20] {
        callbacks_of_all_lanes(&app, role).await;
        assert_eq!(app.get("/groups/g0/members").await.status, 200);
        until("idle connections are ended", async || proxy.open() == 0).await;
    }
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
}

/// A firewall tells nobody that it has forgotten a connection.
#[tokio::test]
async fn a_callback_after_idle_connections_were_forgotten_is_written_before_it_is_answered() {
    let db = TestDb::new().await;
    let wire = Wire::before(&db.url).await;
    let url = wire.url.clone();
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(url.into());
        config.database.timeout = TIMEOUT;
        config.spool.after = Duration::from_millis(1500);
    })
    .await;
    for role in [20, 60, 20] {
        callbacks_of_all_lanes(&app, role).await;
        assert_eq!(app.get("/groups/g0/members").await.status, 200);
        // Idle for a while: one that is at work is not looked at.
        tokio::time::sleep(Duration::from_millis(300)).await;
        wire.forget_connections();
    }
    callbacks_of_all_lanes(&app, 60).await;
    assert_eq!(app.get("/groups/g0/members").await.status, 200);
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
}

#[tokio::test]
async fn a_server_that_ends_idle_sessions_does_not_end_ours() {
    let db = TestDb::new().await;
    let name = db.rows("select current_database() as name").await;
    let name = name[0]["name"].as_str().unwrap();
    db.execute(&format!(
        "alter database {name} set idle_session_timeout = '300ms'"
    ))
    .await;
    let app = TestApp::start_on(db, |_| {}).await;
    callbacks_of_all_lanes(&app, 20).await;
    let quiet = "select pid from pg_stat_activity where datname = current_database()
                    and application_name = 'openim-group-mirror'
                    and state = 'idle' and state_change < now() - interval '1 second'";
    until("they have been idle for longer", async || {
        app.db.rows(quiet).await.len() >= 2
    })
    .await;
    callbacks_of_all_lanes(&app, 60).await;
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
}

#[tokio::test]
async fn a_column_that_gets_another_type_costs_no_answer_and_no_callback() {
    let app = TestApp::start().await;
    let known = async |role: i32| {
        callbacks_of_all_lanes(&app, role).await;
        // What is applied to rows, and read of them.
        app.set("g0", &format!("of {role}"), json!({"roleLevel": role}))
            .await;
        for path in ["/groups/g0/members", "/groups/g0/members/u", "/groups/g0"] {
            assert_eq!(app.get(path).await.status, 200, "{path}");
        }
    };
    known(20).await;
    known(60).await;
    app.db
        .execute(
            "alter table group_members alter column nickname type varchar(300);
             alter table groups alter column name type varchar(300)",
        )
        .await;
    known(20).await;
    known(60).await;
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
}

/// The effect of DISCARD ALL, which poolers send between two of their clients.
#[tokio::test]
async fn statements_that_a_pooler_has_forgotten_cost_no_answer_and_no_callback() {
    let db = TestDb::new().await;
    let proxy = Proxy::before(&db.url).await;
    let url = proxy.url.clone();
    let app = TestApp::start_on(db, |config| config.database.url = Some(url.into())).await;
    for role in [20, 60, 20] {
        callbacks_of_all_lanes(&app, role).await;
        assert_eq!(app.callback_text("no JSON").await.status, 400);
        assert_eq!(app.get("/groups/g0/members").await.status, 200);
        proxy.forget_statements();
    }
    assert_eq!(app.get("/groups/g0/members").await.status, 200);
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
    let kept = app.db.rows("select 1 from rejected_callbacks").await;
    assert_eq!(kept.len(), 3);
}
