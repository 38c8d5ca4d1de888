//! The schema and the statements, as Postgres sees them.

#![expect(clippy::disallowed_types, reason = "statements are explained by name")]

use std::collections::HashMap;
use std::time::Duration;

use openim_group_mirror::domain::{Change, Event, GroupId, MemberPatch, Text, UserId};
use openim_group_mirror::store::{Database, Store};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use time::OffsetDateTime;

use crate::support::{TestApp, TestDb, own_server, until};

#[tokio::test]
async fn every_statement_can_be_prepared_against_the_migrated_schema() {
    let db = TestDb::new().await;
    // The list of versions before this one, from which ours is taken.
    db.execute("create table _sqlx_migrations (like openim_group_mirror_migrations)")
        .await;
    let mut connection = db.pool.acquire().await.unwrap();
    let mut count = 0;
    for (name, sql) in Store::statements() {
        let prepared = connection.prepare(sqlx::SqlStr::from_static(sql)).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
        count += 1;
    }
    assert!(count >= 10, "{count}");
}

/// No test runs the measurements.
#[test]
fn the_measurements_name_statements_that_exist() {
    let measured = include_str!("../../bench/harness/contenders.py");
    let (_, names) = measured.split_once("names = {").unwrap();
    let (names, _) = names.split_once('}').unwrap();
    let names = names
        .split(", ")
        .map(|pair| pair.split('"').nth(3).unwrap());
    let names: Vec<&str> = names.collect();
    assert_eq!(names.len(), 3);
    for wanted in names {
        assert!(
            Store::statements().any(|(name, _)| *name == wanted),
            "{wanted}"
        );
    }
}

#[tokio::test]
async fn migrating_again_changes_nothing_and_a_newer_schema_is_no_error() {
    let db = TestDb::new().await;
    let before = db
        .rows("select * from openim_group_mirror_migrations")
        .await;
    db.database().migrate().await.unwrap();
    assert_eq!(
        db.rows("select * from openim_group_mirror_migrations")
            .await,
        before
    );
    // What a newer binary leaves behind.
    db.execute(
        "insert into openim_group_mirror_migrations (version, description, success, checksum, execution_time)
         values (9999, 'of tomorrow', true, 'x', 1);
         alter table group_members add column of_tomorrow text",
    )
    .await;
    let app = TestApp::start_on(db, |_| {}).await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(60));
}

#[tokio::test]
async fn groups_that_are_known_by_their_members_get_a_stub_that_wants_a_check() {
    let db = TestDb::new().await;
    // As the version before groups left it.
    db.execute(
        "drop table groups, group_checks, reconcile_runs, transaction_origin;
         drop function group_mirror_dismissed, group_mirror_called_back cascade;
         drop index group_members_left;
         alter table group_members
            drop column joined_at, drop column display_nickname, drop column display_face_url,
            drop column join_source, drop column inviter_user_id, drop column operator_user_id,
            drop column mute_end_at, drop column last_callback_xid, drop column came_at_dismissal;
         delete from openim_group_mirror_migrations where version in (3, 5, 6);
         insert into group_members (group_id, user_id, role_level, created_at, updated_at)
         values ('g', 'u', 60, now(), now()), ('g', 'v', 20, now(), now()), ('h', 'u', 20, now(), now())",
    )
    .await;
    let app = TestApp::start_on(db, |_| {}).await;
    let groups = app.get("/groups?checkWanted=true").await.ok();
    let of = |n: usize| {
        (
            &groups["groups"][n]["groupID"],
            &groups["groups"][n]["checkReason"],
        )
    };
    assert_eq!(of(0), (&json!("g"), &json!("group_unknown")));
    assert_eq!(of(1), (&json!("h"), &json!("group_unknown")));
    assert_eq!(of(2), (&json!(null), &json!(null)));
    assert_eq!(app.get("/groups/g").await.ok()["memberCount"], 2);
}

#[tokio::test]
async fn the_tables_are_made_in_the_schema_that_is_asked_for() {
    let db = TestDb::empty("").await;
    db.execute("create table public.group_members (somebody_elses text)")
        .await;
    let app = TestApp::start_on(db, |config| config.database.schema = "im_mirror".into()).await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(60));
    let tables = "select table_schema || '.' || table_name as name from information_schema.tables
                   where table_schema in ('public', 'im_mirror') order by 1";
    let names: Vec<Value> = app
        .db
        .rows(tables)
        .await
        .iter()
        .map(|row| row["name"].clone())
        .collect();
    let expected = [
        "im_mirror.group_checks",
        "im_mirror.group_members",
        "im_mirror.groups",
        "im_mirror.lane_positions",
        "im_mirror.openim_group_mirror_migrations",
        "im_mirror.reconcile_runs",
        "im_mirror.rejected_callbacks",
        "im_mirror.transaction_origin",
        "public.group_members",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn replicas_that_start_at_once_make_the_schema_together() {
    let db = TestDb::empty("").await;
    let wait = Duration::from_secs(5);
    let database = Database::new(&db.url, "fresh", 1, wait, wait).unwrap();
    let starts = (0..8).map(|_| database.migrate());
    for started in futures_util::future::join_all(starts).await {
        started.unwrap();
    }
}

#[tokio::test]
async fn a_schema_that_is_there_needs_no_right_to_create_one() {
    let db = TestDb::empty("").await;
    db.execute(
        "drop role if exists mirror_without_create;
         create role mirror_without_create login;
         create schema im_mirror authorization mirror_without_create",
    )
    .await;
    let url = db
        .url
        .replace("postgres://postgres@", "postgres://mirror_without_create@");
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(url.into());
        config.database.schema = "im_mirror".into();
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
    let db = app.stop().await;
    db.execute("drop owned by mirror_without_create; drop role mirror_without_create")
        .await;
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let db = TestDb::empty("template template0 encoding 'LATIN1' locale 'C'").await;
    let error = db.database().migrate().await.unwrap_err().to_string();
    assert!(
        error.contains("is LATIN1; the mirror needs a database with encoding UTF8"),
        "{error}"
    );
    assert!(error.contains("postgres://postgres:***@["), "{error}");
}

/// Repeated patches touch the heap only, no index. On a server of its own: a long transaction in
/// any database of a server keeps dead rows from being cleared away in all.
#[tokio::test]
async fn patches_stay_hot() {
    let server = own_server("hot").await;
    let app = TestApp::start_on(TestDb::on(&server), |_| {}).await;
    for user in 0..50 {
        let fields = json!({"nickName": "n", "roleLevel": if user < 3 { 60 } else { 20 }});
        app.set("g", &format!("u{user}"), fields).await;
    }
    for round in 0..20 {
        for user in 0..50 {
            let fields = json!({"nickName": format!("name {round}"), "faceURL": "f", "ex": "e"});
            app.set("g", &format!("u{user}"), fields).await;
        }
    }
    // A backend tells its counts when it ends.
    let db = app.stop().await;
    let counts = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
                   where relname = 'group_members'";
    let told = async {
        loop {
            let mut rows = db.rows(counts).await;
            if rows[0]["n_tup_upd"] == 1000 {
                return rows.remove(0);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let counts = tokio::time::timeout(Duration::from_secs(20), told)
        .await
        .unwrap();
    let (all, hot) = (&counts["n_tup_upd"], &counts["n_tup_hot_upd"]);
    assert_eq!(all, &json!(1000));
    assert!(
        hot.as_f64().unwrap() >= 0.9 * all.as_f64().unwrap(),
        "{hot} of {all}"
    );
}

/// Shared buffers that one run of a statement touches.
async fn buffers(connection: &mut PgConnection, name: &str, arguments: &str) -> u64 {
    let sql = format!("explain (analyze, buffers, format json) execute {name} ({arguments})");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let of = |name: &str| plan[0]["Plan"][name].as_u64().unwrap();
    of("Shared Hit Blocks") + of("Shared Read Blocks")
}

/// Pages are counted in blocks, which no noise on the machine changes.
#[tokio::test]
async fn any_page_of_a_large_group_costs_as_much_as_the_first() {
    let db = TestDb::new().await;
    // A group of 300,000: 60 admins and an owner of every 1,000 in the middle; and the memberships
    // of one user in 300,000 groups.
    db.execute(
        "insert into group_members (group_id, user_id, role_level, created_at, updated_at)
         select 'big', 'user-' || lpad(n::text, 7, '0'),
                case when n % 5000 = 0 then 60 when n % 100000 = 1 then 100 else 20 end,
                now(), now()
           from generate_series(1, 300000) n
          union all
         select 'group-' || lpad(n::text, 7, '0'), 'joiner', 20, now(), now()
           from generate_series(1, 300000) n;
         update group_members set left_at = now()
          where group_id = 'big' and user_id like '%7777';
         insert into groups (group_id, status, check_wanted_since, created_at, updated_at)
         select 'group-' || lpad(n::text, 7, '0'),
                case when n % 3 = 0 then 2 when n % 3000 = 1 then 3 else 0 end,
                case when n % 1000 = 0 then now() end, now(), now()
           from generate_series(1, 300000) n",
    )
    .await;
    db.execute("vacuum analyze group_members, groups").await;
    let statements: HashMap<&str, &str> = Store::statements().copied().collect();
    let mut connection = db.pool.acquire().await.unwrap();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let set = format!("set plan_cache_mode = {mode}");
        connection.execute(AssertSqlSafe(set)).await.unwrap();
        for (name, arguments) in [
            (
                "PAGE_OF_GROUP",
                ["'big', '', 101", "'big', 'user-0299800', 101"],
            ),
            (
                "PAGE_OF_ORDINARY",
                ["'big', '', 101", "'big', 'user-0299800', 101"],
            ),
            (
                "PAGE_OF_ROLE",
                ["'big', '', 11, 60", "'big', 'user-0245000', 11, 60"],
            ),
            (
                "PAGE_OF_ROLE",
                ["'big', '', 1, 100", "'big', 'user-0150000', 1, 100"],
            ),
            (
                "PAGE_OF_USERS",
                [
                    "'big', '', 101, null, '{user-0000001,user-0000002}', '{false}'",
                    "'big', 'user-02', 101, 20, '{user-0299998,user-0299999}', '{true,false}'",
                ],
            ),
            (
                "PAGE_OF_ALL",
                ["'big', '', 101, null", "'big', 'user-0299800', 101, null"],
            ),
            (
                "PAGE_OF_LEFT",
                ["'big', '', 11, null", "'big', 'user-0270000', 11, null"],
            ),
            // Of a dismissed group, whose members are still there.
            (
                "PAGE_OF_LEFT",
                [
                    "'group-0000003', '', 11, null",
                    "'group-0299997', '', 11, null",
                ],
            ),
            (
                "PAGE_OF_USER",
                ["'joiner', '', 11", "'joiner', 'group-0299800', 11"],
            ),
            ("MEMBER", ["'big', 'user-0000001'", "'big', 'user-0299999'"]),
            (
                "MEMBERSHIPS",
                [
                    "'{big,big}', '{user-0000001,user-0000002}'",
                    "'{group-0299999,group-0299997}', '{joiner,joiner}'",
                ],
            ),
            (
                "PAGE_OF_GROUPS",
                ["'', 101, null", "'group-0299800', 101, null"],
            ),
            (
                "PAGE_OF_STATUS",
                ["'', 101, null, 2", "'group-0299000', 101, null, 2"],
            ),
            (
                "PAGE_OF_CHECK_WANTED",
                ["'', 11, null", "'group-0280000', 11, null"],
            ),
        ] {
            let prepare = format!("prepare {name} as {}", statements[name]);
            connection.execute(AssertSqlSafe(prepare)).await.unwrap();
            // Once before, for what the first run of a plan reads of the catalogue.
            buffers(&mut connection, name, arguments[0]).await;
            let first = buffers(&mut connection, name, arguments[0]).await;
            let last = buffers(&mut connection, name, arguments[1]).await;
            assert!(first > 0 && first <= 60, "{name}, {mode}: {first} blocks");
            assert!(
                last <= first + 20,
                "{name}, {mode}: first {first}, last {last} blocks"
            );
            let deallocate = format!("deallocate {name}");
            connection.execute(AssertSqlSafe(deallocate)).await.unwrap();
        }
    }
    connection.close().await.unwrap();
}

/// A plan that was made while the table was empty is kept when it has grown.
#[tokio::test]
async fn lanes_look_for_rows_by_their_keys_whatever_the_planner_believes() {
    let db = TestDb::new().await;
    let store = db.database().open().await.unwrap();
    let mut writer = store.writer(None);
    let patch = |user: u32, nickname: &str| {
        let patch = MemberPatch {
            nickname: Some(Text::parse(nickname.into())),
            ..MemberPatch::new(UserId::parse(format!("u{user}")).unwrap())
        };
        let group = GroupId::parse("g".into()).unwrap();
        Change::new(group, OffsetDateTime::now_utc(), Event::SetMember(patch))
    };
    let soon = || tokio::time::Instant::now() + Duration::from_secs(10);
    // All statements are prepared and planned.
    for nickname in ["a", "b"] {
        let changes = [patch(1, nickname), patch(2, nickname)];
        let both: Vec<&Change> = changes.iter().collect();
        writer.write(&both, soon()).await.unwrap();
    }
    db.execute(
        "insert into group_members (group_id, user_id, created_at, updated_at)
         select 'big', n::text, now(), now() from generate_series(1, 50000) n;
         insert into groups (group_id, created_at, updated_at)
         select n::text, now(), now() from generate_series(1, 50000) n",
    )
    .await;
    // Known ones, and one that is not.
    let changes = [patch(1, "c"), patch(2, "c"), patch(3, "c")];
    let all: Vec<&Change> = changes.iter().collect();
    writer.write(&all, soon()).await.unwrap();
    // A backend tells its counts when it ends.
    writer.close().await;
    // One after the other, in the table or in an index of it.
    let scans = "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint as read from pg_stat_user_tables
                  where relname in ('group_members', 'groups') having sum(n_tup_upd) >= 4";
    until("the counts are told", async || {
        !db.rows(scans).await.is_empty()
    })
    .await;
    let read = db.rows(scans).await[0]["read"].as_i64().unwrap();
    assert!(read < 50_000, "{read} rows read one after the other");
    store.close().await;
}
