//! Migrates the schema. Migrations are additive, so an older binary also runs on a newer schema.
//!
//! If nothing is due, nothing is made: a role with rights on rows only can run the service.

use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::{Connection, FromRow, PgConnection};

/// Time limit of a migration's wait for a lock. Every later statement waits behind it, so it gives up and tries again.
pub(super) const LOCK_TIMEOUT_MS: i64 = 3000;
const MAX_ATTEMPTS: u32 = 20;
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// Table with the applied migrations. It has not sqlx's name: all applications of a schema would share that table, and
/// each would take the others' migrations for its own.
const LIST: &str = "openim_group_mirror_migrations";

/// SQLSTATE insufficient_privilege.
const NO_RIGHT: &str = "42501";
/// SQLSTATE lock_not_available.
const LOCKED: &str = "55P03";

statements! {
    /// Reads the role's rights in a schema, which may be missing, and names in the form of SQL.
    PLACE = "
SELECT schema IS NOT NULL AS has_schema,
       COALESCE(has_schema_privilege(schema, 'USAGE'), false) AS may_use,
       COALESCE(has_schema_privilege(schema, 'CREATE'), false) AS may_create,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
       current_setting('transaction_read_only')::boolean AS is_read_only, quote_ident($1) AS schema,
       quote_ident(current_user) AS role, quote_ident(current_database()) AS database
  FROM (SELECT to_regnamespace(quote_ident($1))) AS place(schema)";
    /// Reads tables: if the role owns them, their owner, if the role may read them, their comment.
    TABLES = "
SELECT relname::text AS name, pg_has_role(relowner, 'USAGE') AS is_ours,
       quote_ident(pg_get_userbyid(relowner)) AS owner, has_table_privilege(oid, 'SELECT') AS may_read,
       obj_description(oid, 'pg_class') AS note
  FROM pg_class
 WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relname = ANY($2)";
    APPLIED = "SELECT version, checksum, success FROM openim_group_mirror_migrations";
    /// Reads the tables on whose rows the role lacks a right.
    LACKING = "
SELECT string_agg(format('%I.%I', $1::text, name), ', ' ORDER BY name)
  FROM (VALUES ('group_checks'), ('group_members'), ('groups'), ('lane_positions'),
               ('reconcile_runs'), ('rejected_callbacks'), ('transaction_origin')) AS tables(name)
 WHERE NOT (has_table_privilege(to_regclass(name), 'SELECT')
            AND has_table_privilege(to_regclass(name), 'INSERT')
            AND has_table_privilege(to_regclass(name), 'UPDATE')
            AND has_table_privilege(to_regclass(name), 'DELETE'))";
    /// True if the list that all sqlx applications share has migrations of the mirror.
    IS_IN_SHARED_LIST = "
SELECT EXISTS (SELECT FROM _sqlx_migrations
                 JOIN unnest($1::bigint[], $2::bytea[]) AS ours(version, checksum)
                USING (version, checksum))";
    /// Empties the own list: after the load of an older dump, the shared list is the newer one.
    EMPTY_LIST = "DELETE FROM openim_group_mirror_migrations";
    TAKE_FROM_SHARED_LIST = "
INSERT INTO openim_group_mirror_migrations
       (version, description, installed_on, success, checksum, execution_time)
SELECT version, description, installed_on, success, checksum, execution_time
  FROM _sqlx_migrations
  JOIN unnest($1::bigint[], $2::bytea[]) AS ours(version, checksum) USING (version, checksum)";
    HAS_OTHERS = "
SELECT EXISTS (SELECT FROM _sqlx_migrations
                WHERE (version, checksum) NOT IN
                      (SELECT * FROM unnest($1::bigint[], $2::bytea[])))";
    LEAVE_SHARED_LIST = "
DELETE FROM _sqlx_migrations
 USING unnest($1::bigint[], $2::bytea[]) AS ours(version, checksum)
 WHERE _sqlx_migrations.version = ours.version AND _sqlx_migrations.checksum = ours.checksum";
    NOTE_OF_MOVE = "
COMMENT ON TABLE _sqlx_migrations IS 'moved to openim_group_mirror_migrations'";
    /// True if the numbers of transactions come from another server, by a loaded dump. Fails if the role may not ask.
    IS_FROM_ELSEWHERE = "
SELECT system_identifier <> (SELECT system_identifier FROM pg_control_system())
  FROM transaction_origin
 WHERE system_identifier IS NOT NULL";
    /// Deletes numbers of transactions. Numbers that this server has not reached would count as callbacks that are
    /// newer than any answer of OpenIM.
    FORGET_TRANSACTIONS = "
WITH of_members AS (
    UPDATE group_members SET last_callback_xid = NULL
     WHERE last_callback_xid >= pg_current_xact_id()::text::bigint),
of_groups AS (
    UPDATE groups SET last_callback_xid = NULL, check_marked_xid = NULL
     WHERE last_callback_xid IS NOT NULL OR check_marked_xid IS NOT NULL),
checks AS (
    UPDATE group_checks SET version = NULL, version_id = NULL, fence = NULL)
UPDATE transaction_origin SET system_identifier = (SELECT system_identifier FROM pg_control_system())";
}

/// Comment on the shared list after the mirror's part was copied. The part stays for older versions.
const MOVED: &str = "moved to openim_group_mirror_migrations";

/// Reason why the schema cannot be migrated.
#[derive(Debug)]
pub(super) enum Error {
    /// The role lacks a right. The text says which, and how to grant it.
    Right(String),
    /// The database is read-only.
    ReadOnly,
    /// A check failed, before any migration.
    Check(sqlx::Error),
    /// A migration failed.
    Apply(MigrateError),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Check(error)
    }
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        Self::Apply(error)
    }
}

/// Work that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    schema: bool,
    pub(super) migrations: bool,
    transactions: bool,
}

impl Due {
    /// True if whole tables may be written.
    pub(super) fn may_take_long(self) -> bool {
        self.migrations || self.transactions
    }
}

/// Versions and checksums of the known migrations.
#[derive(Debug)]
struct Ours {
    versions: Vec<i64>,
    checksums: Vec<Vec<u8>>,
}

impl Ours {
    fn new() -> Self {
        let migrator = sqlx::migrate!();
        Self {
            versions: migrator.iter().map(|one| one.version).collect(),
            checksums: migrator.iter().map(|one| one.checksum.to_vec()).collect(),
        }
    }
}

/// State of the schema, and rights of the role.
#[derive(Debug, FromRow)]
struct SchemaState {
    has_schema: bool,
    may_use: bool,
    may_create: bool,
    may_create_schema: bool,
    is_read_only: bool,
    schema: String,
    role: String,
    database: String,
}

#[derive(Debug, FromRow)]
struct Table {
    name: String,
    is_ours: bool,
    owner: String,
    may_read: bool,
    note: Option<String>,
}

/// Tables that show the state of the migrations.
#[derive(Debug, Default)]
struct Tables {
    list: Option<Table>,
    shared_list: Option<Table>,
    /// Made by the first migration.
    members: Option<Table>,
}

impl Tables {
    async fn find(connection: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
        let names = [LIST, "_sqlx_migrations", "group_members"];
        let found: Vec<Table> = sqlx::query_as(TABLES)
            .bind(schema)
            .bind(names.as_slice())
            .fetch_all(connection)
            .await?;
        let mut tables = Self::default();
        for table in found {
            let place = match table.name.as_str() {
                LIST => &mut tables.list,
                "group_members" => &mut tables.members,
                _ => &mut tables.shared_list,
            };
            *place = Some(table);
        }
        Ok(tables)
    }

    /// True if the mirror's part must still be copied from the shared list.
    async fn is_shared(
        &self,
        connection: &mut PgConnection,
        ours: &Ours,
    ) -> Result<bool, sqlx::Error> {
        let (Some(shared), Some(_members)) = (&self.shared_list, &self.members) else {
            return Ok(false);
        };
        // With an own list, a shared list that the role may not read belongs to another application.
        let is_foreign = self.list.is_some() && !shared.may_read;
        if is_foreign || shared.note.as_deref() == Some(MOVED) {
            return Ok(false);
        }
        sqlx::query_scalar(IS_IN_SHARED_LIST)
            .bind(&ours.versions)
            .bind(&ours.checksums)
            .fetch_one(connection)
            .await
    }
}

/// Finds the work that is due in `schema`. Fails if it cannot be done, before any of it.
pub(super) async fn find_due(connection: &mut PgConnection, schema: &str) -> Result<Due, Error> {
    let place: SchemaState = sqlx::query_as(PLACE)
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
    let (role, name) = (&place.role, &place.schema);
    if place.has_schema && !place.may_use {
        return Err(Error::Right(format!(
            "the role {role} may not use the schema {name}: GRANT USAGE ON SCHEMA {name} TO {role}"
        )));
    }
    let tables = Tables::find(connection, schema).await?;
    if let Some(list) = &tables.list
        && !list.may_read
    {
        return Err(Error::Right(format!(
            "the role {role} may not read its list of migrations: GRANT SELECT ON {name}.{LIST} TO {role}"
        )));
    }
    let ours = Ours::new();
    let migrations = !is_applied(connection, &tables, &ours).await?
        || tables.is_shared(connection, &ours).await?;
    if migrations {
        check_rights(&place, &tables)?;
        return Ok(Due {
            schema: !place.has_schema,
            migrations,
            transactions: false,
        });
    }
    let lacking: Option<String> = sqlx::query_scalar(LACKING)
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
    if let Some(names) = lacking {
        return Err(Error::Right(format!(
            "the role {role} may not read and write the rows of all tables: GRANT SELECT, INSERT, UPDATE, \
             DELETE ON {names} TO {role}"
        )));
    }
    Ok(Due {
        schema: false,
        migrations,
        transactions: is_from_elsewhere(connection).await?,
    })
}

/// True if the list has all known migrations. Fails if it has another form of one.
async fn is_applied(
    connection: &mut PgConnection,
    tables: &Tables,
    ours: &Ours,
) -> Result<bool, Error> {
    if tables.list.is_none() {
        return Ok(false);
    }
    let applied: Vec<(i64, Vec<u8>, bool)> = sqlx::query_as(APPLIED).fetch_all(connection).await?;
    let mut count = 0;
    for (version, checksum) in ours.versions.iter().zip(&ours.checksums) {
        let Some((_, found, is_done)) = applied.iter().find(|(found, ..)| found == version) else {
            continue;
        };
        if !is_done {
            return Err(Error::Apply(MigrateError::Dirty(*version)));
        }
        if found != checksum {
            return Err(Error::Apply(MigrateError::VersionMismatch(*version)));
        }
        count += 1;
    }
    Ok(count == ours.versions.len())
}

fn check_rights(place: &SchemaState, tables: &Tables) -> Result<(), Error> {
    let (role, schema, database) = (&place.role, &place.schema, &place.database);
    let with_another = "or run `openim-group-mirror migrate` once with a role that may";
    if place.is_read_only {
        return Err(Error::ReadOnly);
    }
    let lack = if !place.has_schema && !place.may_create_schema {
        format!(
            "there is no schema {schema}, and the role {role} may not make it: CREATE SCHEMA {schema} \
             AUTHORIZATION {role}, or GRANT CREATE ON DATABASE {database} TO {role}, {with_another}"
        )
    } else if place.has_schema && !place.may_create {
        format!(
            "the role {role} may not create tables in the schema {schema}: GRANT CREATE ON SCHEMA \
             {schema} TO {role}, {with_another}"
        )
    } else if let Some(members) = &tables.members
        && !members.is_ours
    {
        format!(
            "the tables belong to the role {}: run `openim-group-mirror migrate` once with that role",
            members.owner
        )
    } else if let (None, Some(shared), Some(_)) =
        (&tables.list, &tables.shared_list, &tables.members)
        && !shared.may_read
    {
        format!(
            "the role {role} may not read the list of migrations: GRANT SELECT ON \
             {schema}._sqlx_migrations TO {role}"
        )
    } else {
        return Ok(());
    };
    Err(Error::Right(lack))
}

async fn is_from_elsewhere(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match sqlx::query_scalar(IS_FROM_ELSEWHERE)
        .fetch_optional(connection)
        .await
    {
        Ok(is_from_elsewhere) => Ok(is_from_elsewhere.unwrap_or(false)),
        Err(error) if has_code(&error, NO_RIGHT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Does the work that is due. One replica at a time applies migrations, older versions included: sqlx takes an advisory
/// lock.
pub(super) async fn run(
    connection: &mut PgConnection,
    schema: &str,
    due: Due,
) -> Result<(), Error> {
    if due.migrations {
        let mut attempt = 1;
        loop {
            match migrate(connection, schema, due).await {
                Err(Error::Apply(error)) if attempt < MAX_ATTEMPTS && code_of(&error, LOCKED) => {
                    tracing::warn!(attempt, "the schema is locked by others; trying again");
                    attempt += 1;
                    tokio::time::sleep(ATTEMPT_INTERVAL).await;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
    }
    let is_from_elsewhere = if due.migrations {
        is_from_elsewhere(connection).await?
    } else {
        due.transactions
    };
    if is_from_elsewhere {
        tracing::info!("the tables come from another server; all groups will be compared again");
        sqlx::query(FORGET_TRANSACTIONS).execute(connection).await?;
    }
    Ok(())
}

async fn migrate(connection: &mut PgConnection, schema: &str, due: Due) -> Result<(), Error> {
    let mut migrator: Migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    migrator.dangerous_set_table_name(LIST);
    if due.schema {
        migrator.create_schema(format!("\"{}\"", schema.replace('"', "\"\"")));
    } else {
        // The lock is taken twice, and released twice. It ends with the connection after an error.
        connection.lock().await?;
        let taken = take_from_shared_list(connection, schema).await;
        taken.map_err(|error| match code_of(&error, NO_RIGHT) {
            true => Error::Right(format!(
                "the list of migrations, {schema}._sqlx_migrations, is another role's and is to be changed: \
                 run `openim-group-mirror migrate` once with the role that owns it"
            )),
            false => error.into(),
        })?;
    }
    migrator.run_direct(None, connection, false).await?;
    if !due.schema {
        connection.unlock().await?;
    }
    Ok(())
}

/// Copies the mirror's migrations from the list that all sqlx applications of a schema share, where older versions
/// stored them. They also stay there for older versions, unless the list has migrations of another application: that
/// one does not start while the mirror's are there.
async fn take_from_shared_list(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<(), MigrateError> {
    let ours = Ours::new();
    let mut transaction = connection.begin().await?;
    let tables = Tables::find(&mut transaction, schema).await?;
    // Another replica may have done it before this one got the lock.
    if tables.is_shared(&mut transaction, &ours).await? {
        transaction.ensure_migrations_table(LIST).await?;
        sqlx::query(EMPTY_LIST).execute(&mut *transaction).await?;
        sqlx::query(TAKE_FROM_SHARED_LIST)
            .bind(&ours.versions)
            .bind(&ours.checksums)
            .execute(&mut *transaction)
            .await?;
        let has_others: bool = sqlx::query_scalar(HAS_OTHERS)
            .bind(&ours.versions)
            .bind(&ours.checksums)
            .fetch_one(&mut *transaction)
            .await?;
        if has_others {
            sqlx::query(LEAVE_SHARED_LIST)
                .bind(&ours.versions)
                .bind(&ours.checksums)
                .execute(&mut *transaction)
                .await?;
        } else {
            sqlx::query(NOTE_OF_MOVE).execute(&mut *transaction).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

/// True if a migration makes an object that exists already, from another application.
pub(super) fn is_taken(error: &MigrateError) -> bool {
    // duplicate_table, duplicate_object, duplicate_function, duplicate_column
    ["42P07", "42710", "42723", "42701"]
        .iter()
        .any(|code| code_of(error, code))
}

fn code_of(error: &MigrateError, code: &str) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    has_code(error, code)
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    let found = error.as_database_error().and_then(|error| error.code());
    found.is_some_and(|found| found == code)
}
