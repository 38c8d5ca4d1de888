//! The way of a change through the lanes: folded, batched, retried, and the same as one by one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openim_group_mirror::domain::{GroupId, MemberPatch, Text, UserId, fold};
use openim_group_mirror::ingest::{Ingest, Retention};
use openim_group_mirror::store::Store;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::{Value, json};
use sqlx::Executor;
use tokio::time::{Instant, timeout};

use crate::support::{TestApp, TestDb, member_info, until};

/// Statements that wait for a lock, of the database that the test is in.
const LOCKED: &str = "select pid from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'";

fn patch(group: &str, user: &str, nickname: Option<&str>, role_level: Option<i32>) -> MemberPatch {
    MemberPatch {
        group_id: GroupId::parse(group.into()).unwrap(),
        user_id: UserId::parse(user.into()).unwrap(),
        nickname: nickname.map(|text| Text::parse(text.into())),
        face_url: None,
        role_level,
        ex: None,
    }
}

fn any_patch() -> impl Strategy<Value = MemberPatch> {
    let id = || prop_oneof![Just("a"), Just("B"), Just("a "), Just("é")];
    let text = || option::of(prop_oneof![Just(String::new()), "\\PC{1,4}"].prop_map(Text::parse));
    let role_level = option::of(prop_oneof![Just(20), Just(60), any::<i32>()]);
    (id(), id(), text(), text(), role_level, text()).prop_map(
        |(group, user, nickname, face_url, role_level, ex)| MemberPatch {
            nickname,
            face_url,
            ex,
            ..patch(group, user, None, role_level)
        },
    )
}

/// Writes patches in batches of `size`, and gives what is stored then.
async fn written(store: &Store, db: &TestDb, patches: &[MemberPatch], size: usize) -> Vec<Value> {
    db.execute("truncate group_members").await;
    let mut writer = store.writer();
    for batch in patches.chunks(size) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let folded = fold(batch);
        writer.patch_members(&folded, deadline).await.unwrap();
    }
    writer.close().await;
    let members = "select group_id, user_id, nickname, face_url, role_level, ex,
                          updated_at > created_at as has_changed
                     from group_members order by 1, 2";
    db.rows(members).await
}

#[test]
fn postgres_stores_a_folded_batch_as_it_stores_the_patches_one_by_one() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (db, store) = runtime.block_on(async {
        let db = TestDb::new().await;
        let store = db.database().open().await.unwrap();
        (db, store)
    });
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(
        &(vec(any_patch(), 1..30), 2_usize..30),
        |(patches, size)| {
            let (one_by_one, in_batches) = runtime.block_on(async {
                (
                    written(&store, &db, &patches, 1).await,
                    written(&store, &db, &patches, size).await,
                )
            });
            let values = |rows: &[Value]| -> Vec<Value> {
                let without = |row: &Value| {
                    let mut row = row.clone();
                    row.as_object_mut().unwrap().remove("has_changed");
                    row
                };
                rows.iter().map(without).collect()
            };
            assert_eq!(values(&one_by_one), values(&in_batches));
            // What no patch of a batch changed has not changed.
            for (one, many) in one_by_one.iter().zip(&in_batches) {
                assert!(
                    one["has_changed"] == true || many["has_changed"] == false,
                    "{one} {many}"
                );
            }
            Ok(())
        },
    );
    if let Err(TestError::Fail(why, (patches, size))) = outcome {
        panic!("{why}\nbatches of {size}: {patches:#?}");
    }
    outcome.unwrap();
    runtime.block_on(async {
        store.close().await;
        // Ends its connections in the runtime that they are of.
        drop(db);
    });
}

/// Lets `callbacks` come while each lane is at a change of its own and can do no other, until so
/// many wait.
async fn while_the_lanes_are_held<T>(
    app: &TestApp,
    many: u32,
    callbacks: impl Future<Output = T>,
) -> T {
    let mut holder = app.db.pool.begin().await.unwrap();
    holder
        .execute("lock table group_members in exclusive mode")
        .await
        .unwrap();
    let hold = async |group: &str| app.set(group, "holds", json!({})).await;
    let held = async |lanes: usize| {
        until("a lane is held", async || {
            app.db.rows(LOCKED).await.len() == lanes
        })
        .await;
    };
    let release = async {
        held(2).await;
        let release = async {
            until("the others wait", async || {
                app.metric("changes_waiting").await == f64::from(many)
            })
            .await;
            holder.rollback().await.unwrap();
        };
        tokio::join!(callbacks, release).0
    };
    // One after the other, or one lane would take both.
    let second = async {
        held(1).await;
        tokio::join!(hold("two"), release).1
    };
    tokio::join!(hold("one"), second).1
}

#[tokio::test]
async fn what_comes_while_the_lanes_write_is_written_together() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    app.db
        .execute(
            "create table statements (rows bigint);
             create function note() returns trigger language plpgsql as
             'begin insert into statements select count(*) from patched; return null; end';
             create trigger note after insert on group_members
             referencing new table as patched for each statement execute function note()",
        )
        .await;
    let set = async |n: u32| {
        let (group, user) = (format!("g{}", n % 7), format!("u{n}"));
        app.set(&group, &user, json!({"nickName": n.to_string()}))
            .await;
    };
    while_the_lanes_are_held(&app, 60, join_all((0..60).map(set))).await;
    let statements = app.db.rows("select count(*) as n from statements").await;
    let statements = statements[0]["n"].as_u64().unwrap();
    // Two that held the lanes, and one batch or two.
    assert!((3..=4).contains(&statements), "{statements}");
    for n in [0, 30, 59] {
        let member = app.member(&format!("g{}", n % 7), &format!("u{n}")).await;
        assert!(member.unwrap().contains(&json!(n.to_string())));
    }
    assert_eq!(app.metric("changes_waiting").await, 0.0);
}

#[tokio::test]
async fn one_bad_change_of_a_batch_gets_its_error_and_the_others_are_kept() {
    let app = TestApp::start().await;
    app.db
        .execute("alter table group_members add constraint no_admins check (role_level <> 60)")
        .await;
    let send = async |n: u32| {
        let role = if n == 20 { 60 } else { 20 };
        let fields = json!({"roleLevel": role, "nickName": n.to_string()});
        app.callback_text(member_info("g", &format!("u{n}"), fields))
            .await
    };
    let replies = while_the_lanes_are_held(&app, 40, join_all((0..40).map(send))).await;
    for (n, reply) in replies.iter().enumerate() {
        let expected = if n == 20 { 500 } else { 200 };
        assert_eq!(reply.status, expected, "{n}: {reply:?}");
    }
    let rows = app
        .db
        .rows("select count(*) as n from group_members where group_id = 'g'")
        .await;
    assert_eq!(rows[0]["n"], 39);
}

#[tokio::test]
async fn a_row_that_somebody_has_locked_holds_up_itself_alone() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.database.timeout = Duration::from_secs(3);
    })
    .await;
    for user in ["locked", "u0", "u1"] {
        app.set("g", user, json!({"roleLevel": 20})).await;
    }
    let mut holder = app.db.pool.begin().await.unwrap();
    holder
        .execute("select 1 from group_members where user_id = 'locked' for update")
        .await
        .unwrap();
    let began = Instant::now();
    let to_locked = member_info("g", "locked", json!({"roleLevel": 60}));
    let others = async {
        until("it waits", async || app.db.rows(LOCKED).await.len() == 1).await;
        // Of other groups: the other lane has them. Of the same: behind it, and then at last.
        let set = async |n: u8| app.set(&format!("h{n}"), "u", json!({"ex": "x"})).await;
        let elsewhere = (0..20).map(set);
        join_all(elsewhere).await;
        let reached = began.elapsed();
        join_all([app.set("g", "u0", json!({})), app.set("g", "u1", json!({}))]).await;
        reached
    };
    let (reply, elsewhere) = tokio::join!(app.callback_text(to_locked), others);
    assert_eq!((reply.status, &reply.body["errCode"]), (503, &json!(5201)));
    // Its lock is waited for 0.75 s, twice.
    assert!(elsewhere < Duration::from_millis(1400), "{elsewhere:?}");
    holder.rollback().await.unwrap();
    assert_eq!(app.member("g", "locked").await.unwrap()[0], json!(20));
}

#[tokio::test]
async fn connections_that_postgres_ended_are_replaced_and_nobody_notices() {
    let app = TestApp::start().await;
    for round in 0..3 {
        let set = async |n: u8| {
            app.set(&format!("g{n}"), "u", json!({"roleLevel": round}))
                .await
        };
        join_all((0..4).map(set)).await;
        join_all((0..4).map(|_| app.get("/groups/g0/members"))).await;
        let ended = "select pg_terminate_backend(pid, 5000) as ended from pg_stat_activity
                     where application_name = 'openim-group-mirror'
                       and datname = current_database()";
        let ended = app.db.rows(ended).await;
        assert!(
            ended.len() >= 2 && ended.iter().all(|row| row["ended"] == true),
            "{ended:?}"
        );
        let get = async |n: u8| app.get(&format!("/groups/g{n}/members/u")).await.ok();
        let pages = (0..2).map(|_| app.get("/groups/g0/members"));
        let (_, members, pages) = tokio::join!(
            join_all((0..4).map(set)),
            join_all((0..4).map(get)),
            join_all(pages),
        );
        assert!(members.iter().all(|member| member["roleLevel"] == round));
        assert!(pages.iter().all(|page| page.status == 200), "{pages:?}");
    }
}

/// Their batches hold the same members in any order of arrival.
#[tokio::test]
async fn two_services_on_one_database_neither_deadlock_nor_lose_a_field() {
    let db = TestDb::new().await;
    let url = db.url.clone();
    let one = TestApp::start_on(db, |_| {}).await;
    let two = TestApp::start_on(TestDb::new().await, |config| {
        config.database.url = Some(url.into());
    })
    .await;
    let user = |n: usize| (format!("g{}", n % 3), format!("u{}", n % 10));
    let rounds = 40;
    let work = async |app: &TestApp, field: &str, step: usize| {
        for round in 0..rounds {
            // Another order each time, and each member twice.
            let set = async |n: usize| {
                let (group, user) = user(n * step + round);
                let fields = json!({field: format!("{round}")});
                app.set(&group, &user, fields).await;
            };
            join_all((0..60).map(set)).await;
        }
    };
    tokio::join!(work(&one, "nickName", 7), work(&two, "ex", 11));
    let rows = one
        .db
        .rows("select nickname, ex, count(*) as n from group_members group by 1, 2")
        .await;
    let last = (rounds - 1).to_string();
    assert_eq!(rows, [json!({"nickname": last, "ex": last, "n": 30})]);
    let deadlocks =
        "select deadlocks as n from pg_stat_database where datname = current_database()";
    // The count is told a moment later; where there is none, none comes.
    assert_eq!(one.db.rows(deadlocks).await[0]["n"], 0);
}

#[tokio::test]
async fn more_than_the_queue_holds_waits_and_is_told_in_time() {
    let db = TestDb::new().await;
    let store =
        openim_group_mirror::store::Database::new(&db.url, "public", 4, Duration::from_secs(2));
    let store = store.unwrap().open().await.unwrap();
    let retention = Retention {
        keep_days: 1,
        max_bytes: 0,
    };
    let ingest = Arc::new(Ingest::new(store.clone(), retention));
    let mut holder = db.pool.begin().await.unwrap();
    holder
        .execute("lock table group_members in exclusive mode")
        .await
        .unwrap();
    let submit = |n: u32| {
        let ingest = Arc::clone(&ingest);
        let patch = patch(&format!("g{}", n % 50), &format!("u{n}"), Some("n"), None);
        tokio::spawn(async move { ingest.submit(patch).await })
    };
    let began = Instant::now();
    let submitted: Vec<_> = (0..3000).map(submit).collect();
    let answers = join_all(submitted).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap().is_err())
    );
    // Their places are free again.
    holder.rollback().await.unwrap();
    let again: Vec<_> = (0..3000).map(submit).collect();
    for answer in join_all(again).await {
        answer.unwrap().unwrap();
    }
    let closed = async {
        ingest.close().await;
        store.close().await;
    };
    timeout(Duration::from_secs(5), closed).await.unwrap();
    let left = "select 1 as n from pg_stat_activity where datname = current_database()
                  and application_name = 'openim-group-mirror'";
    until("the connections end", async || {
        db.rows(left).await.is_empty()
    })
    .await;
}
