//! The settings of a session. The start-up parameter `options` has them. If a pooler drops it, a statement sets them.
//! That needs a session of its own: a pooler that gives a session to each transaction would pass the settings on to
//! other clients.
//!
//! Every new connection is checked, not only the first, because the settings of a pooler can change at any time. That
//! takes two round trips in the half hour that a connection lives.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::timeout;

use super::tls;
use crate::store::error::UnfitSession;

statements! {
    /// Reads two settings that show if the start-up parameter took effect, `lock_timeout` in milliseconds, and the
    /// server process.
    ASKED = "
SELECT current_setting('search_path'),
       (extract(epoch FROM current_setting('lock_timeout')::interval) * 1000)::bigint,
       pg_backend_pid()";
    /// Sets the settings until the session ends.
    SET = "
SELECT pg_backend_pid()
  FROM unnest($1::text[], $2::text[]) AS asked (name, value)
 WHERE set_config(name, value, false) IS NOT NULL";
    /// Reads the server process of a connection.
    PROCESS = "SELECT pg_backend_pid()";
}

/// Time limit of a second connection, which shows if the first has a session of its own. A pooler may have no free one.
pub(super) const SECOND_CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Settings that a session must have.
#[derive(Clone, Debug)]
pub(super) struct SessionSettings {
    schema: String,
    lock_timeout_ms: i64,
    settings: Vec<(&'static str, String)>,
}

impl SessionSettings {
    /// Makes settings. The schema is the whole search path. `lock_timeout_ms` limits the wait for a lock.
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

    /// Adds the settings to the start-up parameter.
    pub(super) fn options(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.options(self.settings.iter().map(|(name, value)| (*name, value)))
    }

    /// Checks a new session, and sets settings that have no effect. That needs a second connection, which has the time
    /// `timeout_of_second` for itself and for its first statement.
    pub(super) async fn ensure(
        &self,
        connection: &mut PgConnection,
        options: &PgConnectOptions,
        timeout_of_second: Duration,
    ) -> Result<Result<(), UnfitSession>, sqlx::Error> {
        let (is_as_asked, before) = self.look(connection).await?;
        if before != process(connection).await? {
            return Ok(Err(UnfitSession::Shared));
        }
        if is_as_asked {
            return Ok(Ok(()));
        }
        // There is a pooler. Check this before a statement sets settings for other clients.
        if let Err(unfit) = check_alone(connection, options, timeout_of_second).await? {
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
            (true, _) => Err(UnfitSession::Shared),
            (false, _) => Err(UnfitSession::NotAsAsked),
        })
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<(bool, i32), sqlx::Error> {
        // Not prepared, here and below: another session would not know the statement, and its error would not tell the
        // cause.
        let row = sqlx::raw_sql(ASKED).fetch_one(connection).await?;
        let is_as_asked = row.try_get::<&str, _>(0)? == self.schema
            && row.try_get::<i64, _>(1)? == self.lock_timeout_ms;
        Ok((is_as_asked, row.try_get(2)?))
    }
}

/// Checks that a connection has a server process of its own, with a second connection. A pooler that gives a process to
/// each transaction gives the first connection's, which is between two transactions, to the second; or it gives another
/// one to the first connection's next transaction.
pub(super) async fn check_alone(
    one: &mut PgConnection,
    options: &PgConnectOptions,
    timeout_of_second: Duration,
) -> Result<Result<(), UnfitSession>, sqlx::Error> {
    // Without a free second connection the question stays open. A busy pooler accepts a client, and lets its first
    // statement wait.
    let Ok(Ok(mut other)) = timeout(timeout_of_second, tls::connect(options)).await else {
        return Ok(Ok(()));
    };
    let before = process(one).await?;
    let begun = async {
        let mut transaction = other.begin().await?;
        let beside = process(&mut transaction).await?;
        Ok::<_, sqlx::Error>((transaction, beside))
    };
    let Ok(Ok((transaction, beside))) = timeout(timeout_of_second, begun).await else {
        return Ok(Ok(()));
    };
    // A second question would wait for the transaction here.
    let after = match before == beside {
        true => before,
        false => process(one).await?,
    };
    transaction.rollback().await?;
    // An error of the close does not matter.
    let _ = other.close().await;
    Ok(match before == after && before != beside {
        true => Ok(()),
        false => Err(UnfitSession::Shared),
    })
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql(PROCESS).fetch_one(connection).await?;
    row.try_get(0)
}
