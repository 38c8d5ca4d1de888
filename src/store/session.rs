//! The settings of a session, and whether it has them. They are asked for in the start-up parameter
//! `options`, which a pooler may drop; then they are set by a statement. That needs a session of our own:
//! a pooler that gives one to each transaction would hand them to others.
//!
//! Every new connection is looked at, not only the first of a process: a pooler can get other settings,
//! or its place, at any time. That is two round trips, once in the half hour that a connection lives.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::timeout;

use super::tls;

statements! {
    /// What tells whether what was asked for at the start of the session is in force; `lock_timeout` in
    /// milliseconds. The process is that of the server.
    ASKED = "
SELECT current_setting('search_path'),
       (extract(epoch FROM current_setting('lock_timeout')::interval) * 1000)::bigint,
       pg_backend_pid()";
    /// Until the session ends.
    SET = "
SELECT pg_backend_pid()
  FROM unnest($1::text[], $2::text[]) AS asked (name, value)
 WHERE set_config(name, value, false) IS NOT NULL";
    /// The server process behind a connection.
    PROCESS = "SELECT pg_backend_pid()";
}

/// How long a second connection is waited for at most, to tell whose the first one is: a pooler may have
/// no place for it.
pub(super) const SECOND: Duration = Duration::from_millis(500);

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
         Postgres drops the start-up parameter options (ignore_startup_parameters of a pooler) and \
         changes the session; connect to Postgres directly"
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

    /// Sets what is not in force in a session that was made with these options. Where a pooler is there,
    /// a second connection is waited for up to `patience`, and for its first statement.
    pub(super) async fn ensure(
        &self,
        connection: &mut PgConnection,
        options: &PgConnectOptions,
        patience: Duration,
    ) -> Result<Result<(), Unfit>, sqlx::Error> {
        let (is_as_asked, before) = self.look(connection).await?;
        if before != process(connection).await? {
            return Ok(Err(Unfit::Shared));
        }
        if is_as_asked {
            return Ok(Ok(()));
        }
        // A pooler is there. Before anything is set, which would be set for others.
        if let Err(unfit) = check_alone(connection, options, patience).await? {
            return Ok(Err(unfit));
        }
        let (names, values): (Vec<&str>, Vec<&str>) = self
            .settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .unzip();
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
        // Not prepared, here and below: another session would not know the statement, and its error
        // would not say why.
        let row = sqlx::raw_sql(ASKED).fetch_one(connection).await?;
        let is_as_asked = row.try_get::<&str, _>(0)? == self.schema
            && row.try_get::<i64, _>(1)? == self.lock_timeout_ms;
        Ok((is_as_asked, row.try_get(2)?))
    }
}

/// Whether a connection has a server process of its own, as far as that can be told: by a second one
/// beside it. A pooler that gives one to each transaction gives that of the first, which is between two,
/// to the transaction of the second; or another to the next transaction of the first.
pub(super) async fn check_alone(
    one: &mut PgConnection,
    options: &PgConnectOptions,
    patience: Duration,
) -> Result<Result<(), Unfit>, sqlx::Error> {
    // Where there is no place for one more, it stays open. A pooler whose places are all taken lets a
    // client in, and keeps its first statement waiting.
    let Ok(Ok(mut other)) = timeout(patience, tls::connect(options)).await else {
        return Ok(Ok(()));
    };
    let before = process(one).await?;
    let begun = async {
        let mut transaction = other.begin().await?;
        let beside = process(&mut transaction).await?;
        Ok::<_, sqlx::Error>((transaction, beside))
    };
    let Ok(Ok((transaction, beside))) = timeout(patience, begun).await else {
        return Ok(Ok(()));
    };
    // Not asked again where it would wait for the transaction.
    let after = match before == beside {
        true => before,
        false => process(one).await?,
    };
    transaction.rollback().await?;
    // Whatever is left of it.
    let _ = other.close().await;
    Ok(match before == after && before != beside {
        true => Ok(()),
        false => Err(Unfit::Shared),
    })
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql(PROCESS).fetch_one(connection).await?;
    row.try_get(0)
}
