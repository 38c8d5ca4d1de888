//! A fresh, migrated database for each test, copied from a template.

#![expect(clippy::disallowed_types, reason = "databases are made by name")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use openim_group_mirror::local_postgres::Server;
use openim_group_mirror::store::Database;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres,
    Transaction,
};

use super::run;

const TEMPLATE: &str = "template_mirror";
/// For every statement.
const WAIT: Duration = Duration::from_secs(5);
static COUNT: AtomicU32 = AtomicU32::new(0);
static DONE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A database of the test's own, and a pool to look into it.
pub struct TestDb {
    pub pool: PgPool,
    pub url: String,
    /// Name of a database to drop.
    name: Option<String>,
}

impl TestDb {
    /// Database of a server that only this test uses.
    pub fn on(server: &Server) -> TestDb {
        Self::at(server.url("postgres"), None)
    }

    /// Another's, who has to outlive this one.
    pub fn shared(url: &str) -> TestDb {
        Self::at(url.to_owned(), None)
    }

    fn at(url: String, name: Option<String>) -> TestDb {
        TestDb {
            // Lazy, so that a test that needs no connection makes none.
            pool: PgPoolOptions::new()
                .max_connections(2)
                .connect_lazy_with(options_of(&url)),
            url,
            name,
        }
    }

    /// Migrated.
    pub async fn new() -> TestDb {
        let mut admin = connect("postgres").await;
        ensure_template(&mut admin).await;
        // file_copy takes half the time of the default where nothing is ever synced.
        let db = Self::create(
            &mut admin,
            &format!("template {TEMPLATE} strategy file_copy"),
        )
        .await;
        admin.close().await.unwrap();
        db
    }

    /// Empty, made with these options of CREATE DATABASE.
    pub async fn empty(options: &str) -> TestDb {
        let mut admin = connect("postgres").await;
        let db = Self::create(&mut admin, options).await;
        admin.close().await.unwrap();
        db
    }

    async fn create(admin: &mut PgConnection, options: &str) -> TestDb {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t_{}_{count}", std::process::id());
        execute(admin, &format!("create database {name} {options}")).await;
        let done: Vec<String> = DONE.lock().unwrap().drain(..).collect();
        for old in done {
            execute(
                admin,
                &format!("drop database if exists {old} with (force)"),
            )
            .await;
        }
        Self::at(run().database_url(&name), Some(name))
    }

    /// The database as the service sees it.
    pub fn database(&self) -> Database {
        Database::new(&self.url, "public", 4, WAIT, WAIT).unwrap()
    }

    pub async fn execute(&self, sql: &str) {
        let mut connection = self.pool.acquire().await.unwrap();
        execute(&mut connection, sql).await;
    }

    /// Locks every member until the transaction ends, so that writes wait.
    pub async fn hold_members(&self) -> Transaction<'static, Postgres> {
        let mut holder = self.pool.begin().await.unwrap();
        let lock = "select 1 from group_members for update";
        holder.execute(lock).await.unwrap();
        holder
    }

    /// The rows of a query, as JSON.
    pub async fn rows(&self, sql: &str) -> Vec<serde_json::Value> {
        let sql = format!("select to_jsonb(r)::text from ({sql}) r");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&self.pool)
            .await
            .unwrap();
        rows.iter()
            .map(|row| serde_json::from_str(row).unwrap())
            .collect()
    }
}

impl Drop for TestDb {
    /// The next test to start drops the database: a drop cannot wait for one.
    fn drop(&mut self) {
        DONE.lock().unwrap().extend(self.name.take());
    }
}

fn options_of(url: &str) -> PgConnectOptions {
    let options: PgConnectOptions = url.parse().unwrap();
    options.disable_statement_logging()
}

async fn connect(database: &str) -> PgConnection {
    // The first call starts the server, which blocks.
    let url = tokio::task::spawn_blocking({
        let database = database.to_owned();
        move || run().database_url(&database)
    });
    options_of(&url.await.unwrap()).connect().await.unwrap()
}

/// Makes the migrated database that the tests' ones are copies of, unless another process of the
/// run has.
async fn ensure_template(admin: &mut PgConnection) {
    execute(admin, "select pg_advisory_lock(7263001)").await;
    let there: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(TEMPLATE)
            .fetch_one(&mut *admin)
            .await
            .unwrap();
    if !there {
        execute(admin, "drop database if exists making").await;
        execute(admin, "create database making").await;
        let url = run().database_url("making");
        let database = Database::new(&url, "public", 1, WAIT, WAIT).unwrap();
        database.migrate().await.unwrap();
        execute(
            admin,
            &format!("alter database making rename to {TEMPLATE}"),
        )
        .await;
    }
    execute(admin, "select pg_advisory_unlock(7263001)").await;
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    connection
        .execute(AssertSqlSafe(sql))
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
}
