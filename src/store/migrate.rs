//! Brings the schema up to date. Migrations are additive, so an older binary runs on a newer
//! schema too.
//!
//! Nothing is made where nothing is due: a role with rights on rows alone can run the service.

use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::{Connection, PgConnection};

/// A migration that waits for a lock makes every later statement wait behind it, so it gives way
/// and tries again.
pub(super) const LOCK_TIMEOUT_MS: i64 = 3000;
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_secs(1);

/// The list of what was applied. Not sqlx's own name: all applications of a schema would share that
/// list, and each would take the others' migrations for its own.
const LIST: &str = "openim_group_mirror_migrations";

/// insufficient_privilege
const NO_RIGHT: &str = "42501";
/// lock_not_available
const LOCKED: &str = "55P03";

statements! {
    /// What our role may do in a schema, which may be missing. The names are as SQL has them.
    PLACE = "
SELECT schema IS NOT NULL, COALESCE(has_schema_privilege(schema, 'USAGE'), false),
       COALESCE(has_schema_privilege(schema, 'CREATE'), false),
       has_database_privilege(current_database(), 'CREATE'),
       current_setting('transaction_read_only')::boolean,
       quote_ident($1), quote_ident(current_user), quote_ident(current_database())
  FROM (SELECT to_regnamespace(quote_ident($1))) AS place(schema)";
    /// Tables that are there: whether our role owns them, who does, whether we may read them, and
    /// what is noted of them.
    TABLES = "
SELECT relname::text, pg_has_role(relowner, 'USAGE'), quote_ident(pg_get_userbyid(relowner)),
       has_table_privilege(oid, 'SELECT'), obj_description(oid, 'pg_class')
  FROM pg_class
 WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relname = ANY($2)";
    APPLIED = "SELECT version, checksum, success FROM openim_group_mirror_migrations";
    /// Which rights on rows our role lacks.
    LACKING = "
SELECT string_agg(format('%I.%I', $1::text, name), ', ' ORDER BY name)
  FROM (VALUES ('group_checks'), ('group_members'), ('groups'), ('lane_positions'),
               ('reconcile_runs'), ('rejected_callbacks'), ('transaction_origin')) AS tables(name)
 WHERE NOT (has_table_privilege(to_regclass(name), 'SELECT')
            AND has_table_privilege(to_regclass(name), 'INSERT')
            AND has_table_privilege(to_regclass(name), 'UPDATE')
            AND has_table_privilege(to_regclass(name), 'DELETE'))";
    /// Whether the shared list of all sqlx applications holds migrations of ours.
    IS_IN_SHARED_LIST = "
SELECT EXISTS (SELECT FROM _sqlx_migrations
                 JOIN unnest($1::bigint[], $2::bytea[]) AS ours(version, checksum)
                USING (version, checksum))";
    /// The shared list tells more than our own where a dump of an older version was loaded.
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
    /// Whether the numbers of transactions are of another server: this is a dump that was loaded. Fails
    /// where our role may not ask.
    IS_FROM_ELSEWHERE = "
SELECT system_identifier <> (SELECT system_identifier FROM pg_control_system())
  FROM transaction_origin
 WHERE system_identifier IS NOT NULL";
    /// Numbers that this server has not come to yet would be taken for callbacks that are newer than any
    /// answer of OpenIM.
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

/// What is noted of the shared list once ours is taken from it, and stays there for older versions.
const MOVED: &str = "moved to openim_group_mirror_migrations";

/// Why the schema is not up to date and cannot be made so.
#[derive(Debug)]
pub(super) enum Error {
    /// Our role may not; the sentence says what and how it may.
    Right(String),
    /// Nothing can be written there.
    ReadOnly,
    /// Before anything was applied.
    Look(sqlx::Error),
    /// In the midst of it.
    Apply(MigrateError),
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        Self::Apply(error)
    }
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    schema: bool,
    migrations: bool,
    transactions: bool,
}

impl Due {
    /// Whether the schema is to be changed.
    pub(super) fn is_migration(self) -> bool {
        self.migrations
    }

    /// Whether whole tables may be written.
    pub(super) fn may_take_long(self) -> bool {
        self.migrations || self.transactions
    }
}

/// The migrations that we know, as the lists have them.
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

/// What there is.
#[derive(Debug)]
struct Place {
    has_schema: bool,
    may_use: bool,
    may_create: bool,
    may_create_schema: bool,
    is_read_only: bool,
    schema: String,
    role: String,
    database: String,
}

#[derive(Debug)]
struct Table {
    is_ours: bool,
    owner: String,
    may_read: bool,
    note: Option<String>,
}

/// Those tables that say how far the schema is.
#[derive(Debug, Default)]
struct Tables {
    list: Option<Table>,
    shared_list: Option<Table>,
    /// Of the first migration.
    members: Option<Table>,
}

impl Tables {
    async fn find(connection: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
        let names = [LIST, "_sqlx_migrations", "group_members"];
        let rows: Vec<(String, bool, String, bool, Option<String>)> = sqlx::query_as(TABLES)
            .bind(schema)
            .bind(names.as_slice())
            .fetch_all(connection)
            .await?;
        let mut tables = Self::default();
        for (name, is_ours, owner, may_read, note) in rows {
            let table = Some(Table {
                is_ours,
                owner,
                may_read,
                note,
            });
            match name.as_str() {
                LIST => tables.list = table,
                "group_members" => tables.members = table,
                _ => tables.shared_list = table,
            }
        }
        Ok(tables)
    }

    /// Whether ours is still to be taken from the shared list.
    async fn is_shared(
        &self,
        connection: &mut PgConnection,
        ours: &Ours,
    ) -> Result<bool, sqlx::Error> {
        let (Some(shared), Some(_members)) = (&self.shared_list, &self.members) else {
            return Ok(false);
        };
        // With a list of our own, the other one is a stranger's where we may not even read it.
        let is_strangers = self.list.is_some() && !shared.may_read;
        if is_strangers || shared.note.as_deref() == Some(MOVED) {
            return Ok(false);
        }
        sqlx::query_scalar(IS_IN_SHARED_LIST)
            .bind(&ours.versions)
            .bind(&ours.checksums)
            .fetch_one(connection)
            .await
    }
}

/// What is due in `schema`. Fails where that cannot be done, so that nothing is begun then.
pub(super) async fn look(connection: &mut PgConnection, schema: &str) -> Result<Due, Error> {
    let place = place(connection, schema).await.map_err(Error::Look)?;
    let (role, name) = (&place.role, &place.schema);
    if place.has_schema && !place.may_use {
        return Err(Error::Right(format!(
            "the role {role} may not use the schema {name}: GRANT USAGE ON SCHEMA {name} TO {role}"
        )));
    }
    let tables = Tables::find(connection, schema)
        .await
        .map_err(Error::Look)?;
    if let Some(list) = &tables.list
        && !list.may_read
    {
        return Err(Error::Right(format!(
            "the role {role} may not read its list of migrations: GRANT SELECT ON {name}.{LIST} TO {role}"
        )));
    }
    let ours = Ours::new();
    let migrations = !is_applied(connection, &tables, &ours).await?
        || tables
            .is_shared(connection, &ours)
            .await
            .map_err(Error::Look)?;
    if migrations {
        may_migrate(&place, &tables)?;
        return Ok(Due {
            schema: !place.has_schema,
            migrations,
            transactions: false,
        });
    }
    let lacking: Option<String> = sqlx::query_scalar(LACKING)
        .bind(schema)
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::Look)?;
    if let Some(names) = lacking {
        return Err(Error::Right(format!(
            "the role {role} may not read and write the rows of all tables: GRANT SELECT, INSERT, UPDATE, \
             DELETE ON {names} TO {role}"
        )));
    }
    Ok(Due {
        schema: false,
        migrations,
        transactions: is_from_elsewhere(connection).await.map_err(Error::Look)?,
    })
}

async fn place(connection: &mut PgConnection, schema: &str) -> Result<Place, sqlx::Error> {
    let row: (bool, bool, bool, bool, bool, String, String, String) = sqlx::query_as(PLACE)
        .bind(schema)
        .fetch_one(connection)
        .await?;
    let (has_schema, may_use, may_create, may_create_schema, is_read_only, schema, role, database) =
        row;
    Ok(Place {
        has_schema,
        may_use,
        may_create,
        may_create_schema,
        is_read_only,
        schema,
        role,
        database,
    })
}

/// Whether our list has all that we know. What it has must be what we know.
async fn is_applied(
    connection: &mut PgConnection,
    tables: &Tables,
    ours: &Ours,
) -> Result<bool, Error> {
    if tables.list.is_none() {
        return Ok(false);
    }
    let applied: Vec<(i64, Vec<u8>, bool)> = sqlx::query_as(APPLIED)
        .fetch_all(connection)
        .await
        .map_err(Error::Look)?;
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

fn may_migrate(place: &Place, tables: &Tables) -> Result<(), Error> {
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

/// Does what is due. Applies what is missing, one replica at a time: sqlx holds an advisory lock
/// meanwhile, older versions too.
pub(super) async fn run(
    connection: &mut PgConnection,
    schema: &str,
    due: Due,
) -> Result<(), Error> {
    if due.migrations {
        let mut attempt = 1;
        loop {
            match migrate(connection, schema, due).await {
                Err(Error::Apply(error)) if attempt < ATTEMPTS && is_lock_timeout(&error) => {
                    tracing::warn!(attempt, "the schema is locked by others; trying again");
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
    }
    let is_from_elsewhere = if due.migrations {
        is_from_elsewhere(connection).await.map_err(Error::Look)?
    } else {
        due.transactions
    };
    if is_from_elsewhere {
        tracing::info!("the tables are of another server; all groups are to be compared anew");
        sqlx::query(FORGET_TRANSACTIONS)
            .execute(connection)
            .await
            .map_err(Error::Look)?;
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
        // The lock counts how often it is taken. It ends with the connection where something fails.
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

/// Takes what is ours from the list that all sqlx applications of a schema share, where versions
/// before this one noted it. It stays there too for these, unless another application has
/// something in the list: that one does not start while ours is there.
async fn take_from_shared_list(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<(), MigrateError> {
    let ours = Ours::new();
    let mut transaction = connection.begin().await?;
    let tables = Tables::find(&mut transaction, schema).await?;
    // Somebody else may have done it while we waited for the lock.
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

fn is_lock_timeout(error: &MigrateError) -> bool {
    code_of(error, LOCKED)
}

/// Whether a migration makes what is there already: another application's.
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
