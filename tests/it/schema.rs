//! The schema: who may make it, what is said where it cannot be made, whose list it stands in.

#![expect(
    clippy::disallowed_types,
    reason = "what another application does is made up"
)]

use std::borrow::Cow;
use std::time::Duration;

use openim_group_mirror::store::{Database, OpenError};
use serde_json::{Value, json};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr};

use crate::support::{Service, TestApp, TestDb, member_info, until, web};

const WAIT: Duration = Duration::from_secs(10);

/// A role of this test alone, and the database's URL for it.
async fn role(db: &TestDb, name: &str) -> String {
    db.execute(&format!("create role {name} login")).await;
    db.url
        .replace("postgres://postgres@", &format!("postgres://{name}@"))
}

/// Before the role goes, what it has does.
async fn drop_role(db: &TestDb, name: &str) {
    db.execute(&format!("drop owned by {name} cascade; drop role {name}"))
        .await;
}

async fn migrate(url: &str, schema: &str) -> Result<(), OpenError> {
    let database = Database::new(url, schema, 2, WAIT, WAIT).unwrap();
    database.migrate().await
}

async fn refused(url: &str, schema: &str) -> String {
    let error = migrate(url, schema).await.unwrap_err();
    // It can be put right while we wait.
    assert!(error.is_away() && !error.is_unreachable(), "{error}");
    error.to_string()
}

async fn status(service: &Service, path: &str) -> (u16, Value) {
    let answer = web::get(format!("{}{path}", service.base)).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn callback(service: &Service) {
    let url = format!("{}/callbackAfterSetGroupMemberInfoCommand", service.base);
    let body = member_info("g", "u", json!({"roleLevel": 60}));
    let request = web::client().build().unwrap().post(url).body(body);
    let request = request.header("content-type", "application/json");
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// A service that cannot make its schema, because of `said`: it is not ready, says so once, takes
/// callbacks, and becomes ready by itself after `remedy`.
async fn assert_waits(db: &TestDb, url: String, said: &str, remedy: &str) {
    let start = move || Service::start(&[("DATABASE_URL", &url), ("RUST_LOG", "debug")]);
    let service = tokio::task::spawn_blocking(start).await.unwrap();
    until("it has tried some times", async || {
        service
            .log()
            .matches("the spool cannot be drained yet")
            .count()
            >= 4
    })
    .await;
    let log = service.log();
    assert!(log.contains(said), "{log}");
    assert_eq!(
        log.matches(said).count(),
        1 + log.matches("drained yet").count()
    );
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
    assert!(!log.contains("brought up to date"), "{log}");
    let (code, body) = status(&service, "/readyz").await;
    assert_eq!(
        (code, &body["detail"]),
        (503, &json!("schema: not up to date; callbacks: spooled"))
    );
    let (code, body) = status(&service, "/readyz?for=reads").await;
    assert_eq!(
        (code, &body["detail"]),
        (503, &json!("schema: not up to date"))
    );
    assert_eq!(status(&service, "/readyz?for=callbacks").await.0, 200);
    callback(&service).await;
    db.execute(remedy).await;
    until("the callback is there", async || {
        status(&service, "/groups/g/members/u").await.0 == 200
    })
    .await;
    until("it is ready", async || {
        status(&service, "/readyz").await.0 == 200
    })
    .await;
    let log = service.log();
    let made = log.matches("migrated the schema").count();
    assert_eq!(made, 1, "{log}");
}

#[tokio::test]
async fn a_service_that_may_not_make_its_tables_is_not_ready_and_names_the_grant() {
    let db = TestDb::empty("").await;
    // The default since PostgreSQL 15.
    db.execute("revoke create on schema public from public")
        .await;
    let url = role(&db, "r_waiting").await;
    assert_waits(
        &db,
        url,
        "GRANT CREATE ON SCHEMA public TO r_waiting",
        "grant create on schema public to r_waiting",
    )
    .await;
    drop_role(&db, "r_waiting").await;
}

#[tokio::test]
async fn a_service_on_a_read_only_database_without_tables_is_not_ready() {
    let db = TestDb::empty("").await;
    let name = db.url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap().to_owned();
    let set = format!("alter database {name} set default_transaction_read_only = on");
    db.execute(&set).await;
    let remedy = format!(
        "set default_transaction_read_only = off;
         alter database {name} reset default_transaction_read_only"
    );
    let url = db.url.clone();
    assert_waits(&db, url, "the database is read-only", &remedy).await;
}

#[tokio::test]
async fn a_read_only_database_with_tables_answers_reads_and_callbacks_wait() {
    let db = TestDb::new().await;
    db.execute(
        "insert into groups (group_id, created_at, updated_at) values ('g', now(), now());
         insert into group_members (group_id, user_id, created_at, updated_at)
         values ('g', 'u', now(), now())",
    )
    .await;
    let name = db.url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap().to_owned();
    db.execute(&format!(
        "alter database {name} set default_transaction_read_only = on"
    ))
    .await;
    let url = db.url.clone();
    let start = move || Service::start(&[("DATABASE_URL", &url)]);
    let service = tokio::task::spawn_blocking(start).await.unwrap();
    assert_eq!(status(&service, "/readyz?for=reads").await.0, 200);
    assert_eq!(status(&service, "/groups/g/members/u").await.0, 200);
    callback(&service).await;
    assert!(service.log().contains("read-only"), "{}", service.log());
    db.execute(&format!(
        "set default_transaction_read_only = off;
         alter database {name} reset default_transaction_read_only"
    ))
    .await;
    until("the callback is there", async || {
        status(&service, "/groups/g/members/u").await.1["roleLevel"] == 60
    })
    .await;
}

#[tokio::test]
async fn what_a_role_may_not_is_named_with_what_grants_it() {
    let db = TestDb::empty("").await;
    db.execute(
        "revoke create on schema public from public;
         create schema closed; create schema \"order\"",
    )
    .await;
    let url = role(&db, "r_poor").await;
    let name = db.url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap().to_owned();
    let said = refused(&url, "missing").await;
    for grant in [
        "CREATE SCHEMA missing AUTHORIZATION r_poor".to_owned(),
        format!("GRANT CREATE ON DATABASE {name} TO r_poor"),
    ] {
        assert!(said.contains(&grant), "{said}");
    }
    let said = refused(&url, "closed").await;
    assert!(
        said.contains("GRANT USAGE ON SCHEMA closed TO r_poor"),
        "{said}"
    );
    db.execute("grant usage on schema closed to r_poor").await;
    let said = refused(&url, "closed").await;
    assert!(
        said.contains("GRANT CREATE ON SCHEMA closed TO r_poor"),
        "{said}"
    );
    // A name that SQL has for itself.
    migrate(&db.url, "order").await.unwrap();
    let said = refused(&url, "order").await;
    assert!(
        said.contains("GRANT USAGE ON SCHEMA \"order\" TO r_poor"),
        "{said}"
    );
    db.execute("grant usage on schema \"order\" to r_poor")
        .await;
    let said = refused(&url, "order").await;
    let list = "GRANT SELECT ON \"order\".openim_group_mirror_migrations TO r_poor";
    assert!(said.contains(list), "{said}");
    db.execute("grant select on all tables in schema \"order\" to r_poor")
        .await;
    let said = refused(&url, "order").await;
    let tables = [
        "group_checks",
        "group_members",
        "groups",
        "lane_positions",
        "reconcile_runs",
        "rejected_callbacks",
        "transaction_origin",
    ];
    let tables = tables.map(|table| format!("\"order\".{table}")).join(", ");
    let rows = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO r_poor");
    assert!(said.contains(&rows), "{said}");
    db.execute("grant insert, update, delete on all tables in schema \"order\" to r_poor")
        .await;
    migrate(&url, "order").await.unwrap();
    // Something is due that only the owner can do.
    db.execute(
        "grant create on schema \"order\" to r_poor;
         delete from \"order\".openim_group_mirror_migrations where version = 6",
    )
    .await;
    let said = refused(&url, "order").await;
    assert!(
        said.contains("the tables belong to the role postgres"),
        "{said}"
    );
    drop_role(&db, "r_poor").await;
}

/// The block of docs/deployment.md, with names of this test.
fn rights(database: &str) -> String {
    let document = include_str!("../../docs/deployment.md");
    let (_, rest) = document.split_once("```sql\n").unwrap();
    let block = rest.split("```").next().unwrap();
    assert!(block.contains("mirror_owner"), "{block}");
    // No passwords: the test's server asks for none.
    block
        .replace("mirror_owner", "r_readme_owner")
        .replace("mirror_service", "r_readme_service")
        .replace("DATABASE mirror", &format!("DATABASE {database}"))
}

#[tokio::test]
async fn the_rights_on_rows_that_the_document_names_are_enough_to_run() {
    let db = TestDb::empty("").await;
    let name = db.url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap().to_owned();
    db.execute("revoke create on schema public from public")
        .await;
    db.execute(&rights(&name)).await;
    let of = |role: &str| {
        db.url
            .replace("postgres://postgres@", &format!("postgres://{role}@"))
    };
    migrate(&of("r_readme_owner"), "mirror").await.unwrap();
    let url = of("r_readme_service");
    let app = TestApp::start_on(db, |config| {
        config.database.url = Some(url.into());
        config.database.schema = "mirror".into();
    })
    .await;
    tell_all(&app).await;
    assert_eq!(app.get("/readyz").await.status, 200);
    let db = app.stop().await;
    drop_role(&db, "r_readme_service").await;
    drop_role(&db, "r_readme_owner").await;
}

/// Sends callbacks of a group from its creation to its dismissal, a body that is none, and reads.
async fn tell_all(app: &TestApp) {
    let tell = async |command: &str, mut body: Value| {
        body["callbackCommand"] = json!(command);
        let reply = app.post(&format!("/{command}"), body.to_string()).await;
        assert_eq!(reply.body["actionCode"], 0, "{command}: {reply:?}");
    };
    let members = json!([{"userID": "boss", "roleLevel": 100}, {"userID": "u", "roleLevel": 20},
        {"userID": "boss", "roleLevel": 20}, {"userID": "imAdmin", "roleLevel": 20}]);
    for group in ["g", "h"] {
        tell(
            "callbackAfterCreateGroupCommand",
            json!({"groupID": group, "groupName": "n", "notification": "", "introduction": "",
                "faceURL": "", "ownerUserID": "boss", "createTime": 1_751_450_000_123_i64,
                "memberCount": 2, "ex": "", "status": 0, "creatorUserID": "", "groupType": 2,
                "needVerification": 0, "lookMemberInfo": 0, "applyMemberFriend": 0,
                "notificationUpdateTime": 0, "notificationUserID": "", "initMemberList": members}),
        )
        .await;
    }
    let join = json!({"groupID": "g", "operationID": "o", "reqMessage": "", "joinSource": 3,
        "inviterUserID": "guest"});
    tell("callbackAfterJoinGroupCommand", join).await;
    // Many at once for few members: some are written together.
    let sets = (0..60).map(|n| {
        let user = if n % 2 == 0 { "u" } else { "guest" };
        app.set(
            "g",
            user,
            json!({"nickName": format!("name {n}"), "ex": n.to_string()}),
        )
    });
    futures_util::future::join_all(sets).await;
    let transfer = json!({"groupID": "g", "oldOwnerUserID": "boss", "newOwnerUserID": "u"});
    tell("callbackAfterTransferGroupOwnerCommand", transfer).await;
    let kick = json!({"groupID": "g", "kickedUserIDs": ["guest"], "reason": ""});
    tell("callbackAfterKickGroupCommand", kick).await;
    let quit = json!({"groupID": "g", "userID": "boss"});
    tell("callbackAfterQuitGroupCommand", quit).await;
    let names = (0..20).map(|n| {
        tell(
            "callbackAfterSetGroupInfoExCommand",
            json!({"groupID": "g", "groupName": format!("n {n}")}),
        )
    });
    futures_util::future::join_all(names).await;
    for _ in 0..2 {
        tell("callbackAfterDisMissGroupCommand", json!({"groupID": "g"})).await;
    }
    assert_eq!(app.callback_text("{").await.status, 400);
    until("the leaves are filled in", async || {
        let left = app.get("/groups/g/members?state=left").await.ok();
        let left = left["members"].as_array().unwrap().len();
        left == 3 && app.metric("spool_entries").await == 0.0
    })
    .await;
    assert_eq!(app.metric("spool_spooled_total").await, 0.0);
    for path in [
        "/groups",
        "/groups/h",
        "/groups/h/members",
        "/users/u/groups",
        "/drift",
    ] {
        app.get(path).await.ok();
    }
}

/// After a minor update of PostgreSQL under a running server, the server cannot load the new
/// library of PL/pgSQL.
#[tokio::test]
async fn nothing_that_runs_needs_pl_pgsql() {
    let db = TestDb::new().await;
    db.execute(
        "update pg_proc set probin = '$libdir/of_another_version'
          where proname in ('plpgsql_call_handler', 'plpgsql_inline_handler', 'plpgsql_validator')",
    )
    .await;
    let mut fresh = db.pool.acquire().await.unwrap().detach();
    let block = fresh.execute("do $$ begin end $$").await;
    assert!(block.is_err(), "PL/pgSQL is still there");
    let app = TestApp::start_on(db, |_| {}).await;
    tell_all(&app).await;
    let url = app.db.url.clone();
    let list = move || Service::to_end(&["rejected", "list"], &[("DATABASE_URL", &url)]);
    let listed = tokio::task::spawn_blocking(list).await.unwrap();
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert_eq!(listed.stdout.lines().count(), 2, "{}", listed.stdout);
}

/// The list as versions before had it: that of all sqlx applications of the schema.
async fn as_an_older_version_left_it(db: &TestDb) {
    db.execute(
        "create table if not exists _sqlx_migrations (
             version bigint primary key, description text not null,
             installed_on timestamptz not null default now(), success boolean not null,
             checksum bytea not null, execution_time bigint not null);
         insert into _sqlx_migrations
         select version, description, installed_on, success, checksum, execution_time
           from openim_group_mirror_migrations;
         drop table openim_group_mirror_migrations",
    )
    .await;
}

async fn list(db: &TestDb, table: &str) -> Vec<Value> {
    db.rows(&format!("select * from {table} order by version"))
        .await
}

/// Another application that has its migrations in sqlx's list, and takes what is not its own for
/// damage.
fn another(versions: &[i64]) -> Migrator {
    let migrations = versions.iter().map(|version| {
        let sql = format!("create table other_{version} ()");
        Migration::new(
            *version,
            Cow::Owned(format!("of another {version}")),
            MigrationType::Simple,
            AssertSqlSafe(sql).into_sql_str(),
            false,
        )
    });
    Migrator::with_migrations(migrations.collect())
}

#[tokio::test]
async fn an_older_versions_list_is_taken_over_once_and_stays_for_that_version() {
    let db = TestDb::new().await;
    as_an_older_version_left_it(&db).await;
    let before = list(&db, "_sqlx_migrations").await;
    assert!(before.len() >= 6, "{before:?}");
    for _ in 0..2 {
        db.database().migrate().await.unwrap();
        assert_eq!(list(&db, "openim_group_mirror_migrations").await, before);
        assert_eq!(list(&db, "_sqlx_migrations").await, before);
    }
    // An older version that starts again, as it would.
    let mut older = sqlx::migrate!();
    older.set_ignore_missing(true);
    older.run(&db.pool).await.unwrap();
    let app = TestApp::start_on(db, |_| {}).await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
}

#[tokio::test]
async fn another_sqlx_application_of_the_schema_is_left_alone() {
    let db = TestDb::empty("").await;
    let theirs = another(&[1, 2, 3]);
    theirs.run(&db.pool).await.unwrap();
    let before = list(&db, "_sqlx_migrations").await;
    // The same numbers are other migrations.
    db.database().migrate().await.unwrap();
    assert_eq!(list(&db, "_sqlx_migrations").await, before);
    theirs.run(&db.pool).await.unwrap();
    let app = TestApp::start_on(db, |_| {}).await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
}

#[tokio::test]
async fn what_stands_in_another_applications_list_goes_from_there() {
    let db = TestDb::new().await;
    // Theirs was there first, with other numbers; then an older version of ours came.
    let theirs = another(&[20_260_101, 20_260_102]);
    theirs.run(&db.pool).await.unwrap();
    let before = list(&db, "_sqlx_migrations").await;
    as_an_older_version_left_it(&db).await;
    // sqlx keeps its lock with the connection where it fails.
    let mut own = db.pool.acquire().await.unwrap().detach();
    let error = theirs.run(&mut own).await.unwrap_err();
    own.close().await.unwrap();
    assert!(matches!(error, MigrateError::VersionMissing(1)), "{error}");
    db.database().migrate().await.unwrap();
    assert_eq!(list(&db, "_sqlx_migrations").await, before);
    theirs.run(&db.pool).await.unwrap();
    db.database().migrate().await.unwrap();
}

/// The dump brings the older list, and nothing of ours.
#[tokio::test]
async fn a_dump_of_an_older_version_that_is_loaded_over_the_tables_is_brought_up_to_date() {
    let db = TestDb::new().await;
    db.execute(
        "create table older as select * from openim_group_mirror_migrations where version in (1, 2, 4);
         drop table groups, group_checks, reconcile_runs, transaction_origin;
         drop function group_mirror_dismissed, group_mirror_called_back cascade;
         drop index group_members_left;
         alter table group_members
            drop column joined_at, drop column display_nickname, drop column display_face_url,
            drop column join_source, drop column inviter_user_id, drop column operator_user_id,
            drop column mute_end_at, drop column last_callback_xid, drop column came_at_dismissal;
         alter table rejected_callbacks drop column key, drop column stored_at;
         alter table older rename to _sqlx_migrations",
    )
    .await;
    let app = TestApp::start_on(db, |_| {}).await;
    app.set("g", "u", json!({"roleLevel": 60})).await;
    assert_eq!(app.member("g", "u").await.unwrap()[0], json!(60));
}

#[tokio::test]
async fn tables_of_another_application_are_told_with_the_setting_that_keeps_apart() {
    let db = TestDb::empty("").await;
    db.execute("create table groups (somebody_elses text)")
        .await;
    let said = refused(&db.url, "public").await;
    assert!(
        said.contains("relation \"groups\" already exists"),
        "{said}"
    );
    assert!(
        said.contains("DATABASE_SCHEMA gives the mirror a schema of its own"),
        "{said}"
    );
}
