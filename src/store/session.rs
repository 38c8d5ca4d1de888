//! The settings of a session, and whether it has them. They are asked for in the start-up parameter
//! `options`, which a pooler may drop; then they are set by a statement. That needs a session of our own:
//! a pooler that gives one to each transaction would hand them to others.

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

statements! {
    /// Whether what was asked for at the start of the session is in force; `lock_timeout` in
    /// milliseconds. The process is that of the server.
    ASKED = "
SELECT current_setting('search_path') = $1
       AND extract(epoch FROM current_setting('lock_timeout')::interval) * 1000 = $2::bigint,
       pg_backend_pid()";
    /// Until the session ends.
    SET = "
SELECT pg_backend_pid()
  FROM unnest($1::text[], $2::text[]) AS asked (name, value)
 WHERE set_config(name, value, false) IS NOT NULL";
    /// The server process behind a connection.
    PROCESS = "SELECT pg_backend_pid()";
}

/// Why a session is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The pooler lets nobody in who names settings.
    #[error(
        "a pooler refuses a start-up parameter: add extra_float_digits and options to its \
         ignore_startup_parameters, and set its pool_mode to session for this database"
    )]
    Refused,
    /// Another client uses the same server process.
    #[error(
        "a pooler gives each transaction another session: set its pool_mode to session for this \
         database, or connect to Postgres directly"
    )]
    Shared,
    /// What was set is not in force.
    #[error(
        "the schema and the timeouts that were asked for are not in force: something between here and \
         Postgres changes the session; connect to Postgres directly"
    )]
    NotAsAsked,
}

impl Unfit {
    /// PgBouncer has one SQLSTATE for all its errors, so its text has to tell; it is not translated.
    pub(super) fn of_connecting(error: &sqlx::Error) -> Option<Self> {
        let error = error.as_database_error()?;
        let is_refused = error.code().is_some_and(|code| code == "08P01")
            && error.message().contains("startup parameter");
        is_refused.then_some(Unfit::Refused)
    }
}

/// What a session is asked to be.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    schema: String,
    lock_timeout_ms: i64,
    settings: Vec<(&'static str, String)>,
}

impl Asked {
    /// The schema is alone on the search path; `lock_timeout_ms` bounds the wait for a lock.
    pub(super) fn new(
        schema: &str,
        lock_timeout_ms: i64,
        others: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        let mut settings = vec![
            ("search_path", schema.to_owned()),
            ("lock_timeout", lock_timeout_ms.to_string()),
            // Lanes and turns may have nothing to do for long.
            ("idle_session_timeout", "0".to_owned()),
        ];
        settings.extend(others);
        Self {
            schema: schema.to_owned(),
            lock_timeout_ms,
            settings,
        }
    }

    /// With the settings in the start-up parameter.
    pub(super) fn options(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.options(self.settings.iter().map(|(name, value)| (*name, value)))
    }

    /// Sets what is not in force.
    pub(super) async fn ensure(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Result<(), Unfit>, sqlx::Error> {
        let (is_as_asked, before) = self.look(connection).await?;
        if is_as_asked {
            return Ok(Ok(()));
        }
        let (names, values): (Vec<&str>, Vec<&str>) = self
            .settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .unzip();
        // Before anything is set, which would be set for others.
        if before != process(connection).await? {
            return Ok(Err(Unfit::Shared));
        }
        sqlx::query(SET)
            .bind(names)
            .bind(values)
            .persistent(false)
            .execute(&mut *connection)
            .await?;
        Ok(match self.look(connection).await? {
            (true, after) if after == before => Ok(()),
            (true, _) => Err(Unfit::Shared),
            (false, _) => Err(Unfit::NotAsAsked),
        })
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<(bool, i32), sqlx::Error> {
        sqlx::query_as(ASKED)
            .bind(&self.schema)
            .bind(self.lock_timeout_ms)
            .persistent(false)
            .fetch_one(connection)
            .await
    }
}

/// Whether each of two connections has a server process of its own. A pooler that gives one to each
/// transaction gives that of the first, which is between two, to the transaction of the second; or
/// another to the next transaction of the first.
pub(super) async fn check_alone(
    one: &mut PgConnection,
    other: &mut PgConnection,
) -> Result<Result<(), Unfit>, sqlx::Error> {
    let before = process(one).await?;
    let mut transaction = other.begin().await?;
    let beside = process(&mut transaction).await?;
    let after = process(one).await?;
    transaction.rollback().await?;
    Ok(match before == after && before != beside {
        true => Ok(()),
        false => Err(Unfit::Shared),
    })
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar(PROCESS)
        .persistent(false)
        .fetch_one(connection)
        .await
}
