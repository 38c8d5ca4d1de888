//! What changes the mirror.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use super::Error;
use super::connections::{Connector, Counted};
use crate::domain::{FoldedPatch, Text};

statements! {
    /// Only the present fields change: NULL in EXCLUDED stands for "leave it". A member we never
    /// heard of gets a row with what is known. `updated_at` moves only when a value does, and by
    /// a microsecond at least, for it is what a reader's ETag is made of; now() may be older than
    /// the row's last change, where two callbacks for one member wait for each other.
    UPSERT_MEMBER = "
INSERT INTO group_members AS stored
       (group_id, user_id, nickname, face_url, role_level, ex,
        created_at, updated_at, last_callback_at)
VALUES ($1, $2, $3, $4, $5, $6, now(), now(), now())
ON CONFLICT (group_id, user_id) DO UPDATE SET
    nickname   = COALESCE(EXCLUDED.nickname, stored.nickname),
    face_url   = COALESCE(EXCLUDED.face_url, stored.face_url),
    role_level = COALESCE(EXCLUDED.role_level, stored.role_level),
    ex         = COALESCE(EXCLUDED.ex, stored.ex),
    updated_at = CASE
        WHEN (COALESCE(EXCLUDED.nickname, stored.nickname),
              COALESCE(EXCLUDED.face_url, stored.face_url),
              COALESCE(EXCLUDED.role_level, stored.role_level),
              COALESCE(EXCLUDED.ex, stored.ex))
             IS DISTINCT FROM
             (stored.nickname, stored.face_url, stored.role_level, stored.ex)
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at = now()";
    /// The same for several members, each there once. Rows are locked in the order of the arrays.
    UPSERT_MEMBERS = "
INSERT INTO group_members AS stored
       (group_id, user_id, nickname, face_url, role_level, ex,
        created_at, updated_at, last_callback_at)
SELECT group_id, user_id, nickname, face_url, role_level, ex, now(), now(), now()
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::text[])
       AS patch (group_id, user_id, nickname, face_url, role_level, ex)
ON CONFLICT (group_id, user_id) DO UPDATE SET
    nickname   = COALESCE(EXCLUDED.nickname, stored.nickname),
    face_url   = COALESCE(EXCLUDED.face_url, stored.face_url),
    role_level = COALESCE(EXCLUDED.role_level, stored.role_level),
    ex         = COALESCE(EXCLUDED.ex, stored.ex),
    updated_at = CASE
        WHEN (COALESCE(EXCLUDED.nickname, stored.nickname),
              COALESCE(EXCLUDED.face_url, stored.face_url),
              COALESCE(EXCLUDED.role_level, stored.role_level),
              COALESCE(EXCLUDED.ex, stored.ex))
             IS DISTINCT FROM
             (stored.nickname, stored.face_url, stored.role_level, stored.ex)
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at = now()";
}

/// A connection for writes, of one lane alone.
#[derive(Debug)]
pub struct Writer {
    connector: Arc<Connector>,
    /// `None` until it is needed, and after it broke.
    connection: Option<Counted>,
    /// How long one write may take, seen from here.
    patience: Duration,
}

impl Writer {
    pub(super) fn new(connector: Arc<Connector>, patience: Duration) -> Self {
        Self {
            connector,
            connection: None,
            patience,
        }
    }

    /// Applies patches, all or none, in one statement; committed when this returns. There is one
    /// for each member, in bytewise order of their keys, as `domain::fold` makes them.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away: the patches may or may not be in. The next
    /// call makes a new connection where this one is of no more use.
    pub async fn patch_members(
        &mut self,
        patches: &[FoldedPatch<'_>],
        deadline: Instant,
    ) -> Result<(), Error> {
        let deadline = deadline.min(Instant::now() + self.patience);
        if self.connection.as_ref().is_some_and(Counted::is_old)
            && let Some(old) = self.connection.take()
        {
            tokio::spawn(old.close());
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.connector.connect(deadline).await?),
        };
        let work = async |connection: &mut PgConnection| match patches {
            [patch] => patch_one(connection, patch).await,
            _ => patch_many(connection, patches).await,
        };
        let done = connection.run(deadline, work).await;
        if let Err(error) = &done
            && error.is_of_connection()
        {
            self.connection = None;
        }
        done
    }

    /// Ends the connection; the next write makes a new one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

/// Arrays cost a lone row more, so it has a statement of its own.
async fn patch_one(
    connection: &mut PgConnection,
    patch: &FoldedPatch<'_>,
) -> Result<(), sqlx::Error> {
    let FoldedPatch {
        group_id,
        user_id,
        nickname,
        face_url,
        role_level,
        ex,
    } = patch;
    let query = sqlx::query(UPSERT_MEMBER)
        .bind(group_id.as_str())
        .bind(user_id.as_str())
        .bind(nickname.map(Text::as_str))
        .bind(face_url.map(Text::as_str))
        .bind(role_level)
        .bind(ex.map(Text::as_str));
    query.execute(connection).await.map(drop)
}

async fn patch_many(
    connection: &mut PgConnection,
    patches: &[FoldedPatch<'_>],
) -> Result<(), sqlx::Error> {
    fn column<'a, T>(
        patches: &'a [FoldedPatch<'_>],
        of: impl Fn(&'a FoldedPatch<'_>) -> T,
    ) -> Vec<T> {
        patches.iter().map(of).collect()
    }
    let query = sqlx::query(UPSERT_MEMBERS)
        .bind(column(patches, |patch| patch.group_id.as_str()))
        .bind(column(patches, |patch| patch.user_id.as_str()))
        .bind(column(patches, |patch| patch.nickname.map(Text::as_str)))
        .bind(column(patches, |patch| patch.face_url.map(Text::as_str)))
        .bind(column(patches, |patch| patch.role_level))
        .bind(column(patches, |patch| patch.ex.map(Text::as_str)));
    query.execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::{UPSERT_MEMBER, UPSERT_MEMBERS};

    /// A batch must do to a row what a lone change does.
    #[test]
    fn both_statements_change_a_row_in_the_same_way() {
        let [one, many] = [UPSERT_MEMBER, UPSERT_MEMBERS].map(|sql| sql.split_once("ON CONFLICT"));
        assert!(one.is_some());
        assert_eq!(one.unwrap().1, many.unwrap().1);
    }
}
