//! What changes the mirror.

use super::{Error, Store};
use crate::domain::MemberPatch;

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
}

impl Store {
    /// Applies a patch, in one statement; committed when this returns.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away: the patch may or may not be in.
    pub async fn patch_member(&self, patch: &MemberPatch) -> Result<(), Error> {
        let MemberPatch {
            group_id,
            user_id,
            nickname,
            face_url,
            role_level,
            ex,
        } = patch;
        self.write(async |connection| {
            sqlx::query(UPSERT_MEMBER)
                .bind(group_id.as_str())
                .bind(user_id.as_str())
                .bind(nickname.as_ref().map(|text| text.as_str()))
                .bind(face_url.as_ref().map(|text| text.as_str()))
                .bind(role_level)
                .bind(ex.as_ref().map(|text| text.as_str()))
                .execute(connection)
                .await
        })
        .await?;
        Ok(())
    }
}
