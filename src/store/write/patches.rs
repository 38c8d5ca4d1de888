//! Patches of members who are there.

use sqlx::PgConnection;

use crate::domain::{FoldedPatch, Text};

statements! {
    /// Only the present fields change: NULL stands for "leave it". `updated_at` moves only when a
    /// value does, and by a microsecond at least, for it is what a reader's ETag is made of; now()
    /// may be older than the row's last change, where two callbacks for one member wait for each
    /// other.
    ///
    /// A nickname or an avatar is what OpenIM shows from now on. One that becomes empty gives way to
    /// the profile's, which no callback tells, so what is shown is unknown then; where it was empty
    /// before, the profile's is shown as before. What is shown becomes unknown only where the value
    /// itself changes, so `updated_at` need not look for that.
    ///
    /// Nothing happens to a member who is unknown or gone, or may be gone by a dismissal, or whose role
    /// is the owner's and would change: that is for `domain::apply`.
    PATCH_MEMBER = "
UPDATE group_members AS stored SET
    nickname   = COALESCE(patch.nickname, stored.nickname),
    face_url   = COALESCE(patch.face_url, stored.face_url),
    role_level = COALESCE(patch.role_level, stored.role_level),
    ex         = COALESCE(patch.ex, stored.ex),
    display_nickname = CASE
        WHEN patch.nickname <> '' THEN patch.nickname
        WHEN patch.nickname IS NULL OR stored.nickname = '' THEN stored.display_nickname
    END,
    display_face_url = CASE
        WHEN patch.face_url <> '' THEN patch.face_url
        WHEN patch.face_url IS NULL OR stored.face_url = '' THEN stored.display_face_url
    END,
    updated_at = CASE
        WHEN (COALESCE(patch.nickname, stored.nickname),
              COALESCE(patch.face_url, stored.face_url),
              COALESCE(patch.role_level, stored.role_level),
              COALESCE(patch.ex, stored.ex),
              COALESCE(NULLIF(patch.nickname, ''), stored.display_nickname),
              COALESCE(NULLIF(patch.face_url, ''), stored.display_face_url))
             IS DISTINCT FROM
             (stored.nickname, stored.face_url, stored.role_level, stored.ex,
              stored.display_nickname, stored.display_face_url)
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at = now(),
    last_callback_xid = pg_current_xact_id()::text::bigint
  FROM (VALUES ($1::text, $2::text, $3::text, $4::text, $5::integer, $6::text))
       AS patch (group_id, user_id, nickname, face_url, role_level, ex)
 WHERE stored.group_id = patch.group_id AND stored.user_id = patch.user_id
   AND stored.left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g
                    WHERE g.group_id = patch.group_id AND g.emptying_at IS NOT NULL)
   AND (patch.role_level IS NULL OR stored.role_level IS DISTINCT FROM 100)";
    /// The same for several members, each there once; tells which it found, by their places from 1.
    /// Lanes' connections know no other plan than to look for one row after the other, so these are
    /// locked in the order of the arrays.
    PATCH_MEMBERS = "
UPDATE group_members AS stored SET
    nickname   = COALESCE(patch.nickname, stored.nickname),
    face_url   = COALESCE(patch.face_url, stored.face_url),
    role_level = COALESCE(patch.role_level, stored.role_level),
    ex         = COALESCE(patch.ex, stored.ex),
    display_nickname = CASE
        WHEN patch.nickname <> '' THEN patch.nickname
        WHEN patch.nickname IS NULL OR stored.nickname = '' THEN stored.display_nickname
    END,
    display_face_url = CASE
        WHEN patch.face_url <> '' THEN patch.face_url
        WHEN patch.face_url IS NULL OR stored.face_url = '' THEN stored.display_face_url
    END,
    updated_at = CASE
        WHEN (COALESCE(patch.nickname, stored.nickname),
              COALESCE(patch.face_url, stored.face_url),
              COALESCE(patch.role_level, stored.role_level),
              COALESCE(patch.ex, stored.ex),
              COALESCE(NULLIF(patch.nickname, ''), stored.display_nickname),
              COALESCE(NULLIF(patch.face_url, ''), stored.display_face_url))
             IS DISTINCT FROM
             (stored.nickname, stored.face_url, stored.role_level, stored.ex,
              stored.display_nickname, stored.display_face_url)
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at = now(),
    last_callback_xid = pg_current_xact_id()::text::bigint
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::text[])
       WITH ORDINALITY AS patch (group_id, user_id, nickname, face_url, role_level, ex, place)
 WHERE stored.group_id = patch.group_id AND stored.user_id = patch.user_id
   AND stored.left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g
                    WHERE g.group_id = patch.group_id AND g.emptying_at IS NOT NULL)
   AND (patch.role_level IS NULL OR stored.role_level IS DISTINCT FROM 100)
RETURNING patch.place";
}

/// Writes patches, all or none, in one statement; committed when this returns. There is one for
/// each member, in bytewise order of their keys, as `domain::fold` makes them. Those that have to
/// be applied in another way are left, and returned in their order.
pub(super) async fn write<'a, 'b>(
    connection: &mut PgConnection,
    patches: &'b [FoldedPatch<'a>],
) -> Result<Vec<&'b FoldedPatch<'a>>, sqlx::Error> {
    match patches {
        [] => Ok(vec![]),
        // Arrays cost a lone row more, so it has a statement of its own.
        [patch] => Ok(if write_one(connection, patch).await? {
            vec![]
        } else {
            vec![patch]
        }),
        _ => write_many(connection, patches).await,
    }
}

async fn write_one(
    connection: &mut PgConnection,
    patch: &FoldedPatch<'_>,
) -> Result<bool, sqlx::Error> {
    let FoldedPatch {
        group_id,
        user_id,
        nickname,
        face_url,
        role_level,
        ex,
    } = patch;
    let query = sqlx::query(PATCH_MEMBER)
        .bind(group_id.as_str())
        .bind(user_id.as_str())
        .bind(nickname.map(Text::as_str))
        .bind(face_url.map(Text::as_str))
        .bind(role_level)
        .bind(ex.map(Text::as_str));
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

async fn write_many<'a, 'b>(
    connection: &mut PgConnection,
    patches: &'b [FoldedPatch<'a>],
) -> Result<Vec<&'b FoldedPatch<'a>>, sqlx::Error> {
    fn column<'a, T>(
        patches: &'a [FoldedPatch<'_>],
        of: impl Fn(&'a FoldedPatch<'_>) -> T,
    ) -> Vec<T> {
        patches.iter().map(of).collect()
    }
    let found: Vec<i64> = sqlx::query_scalar(PATCH_MEMBERS)
        .bind(column(patches, |patch| patch.group_id.as_str()))
        .bind(column(patches, |patch| patch.user_id.as_str()))
        .bind(column(patches, |patch| patch.nickname.map(Text::as_str)))
        .bind(column(patches, |patch| patch.face_url.map(Text::as_str)))
        .bind(column(patches, |patch| patch.role_level))
        .bind(column(patches, |patch| patch.ex.map(Text::as_str)))
        .fetch_all(connection)
        .await?;
    if found.len() == patches.len() {
        return Ok(vec![]);
    }
    let mut is_found = vec![false; patches.len()];
    for place in found {
        let index = usize::try_from(place - 1).ok();
        if let Some(is_found) = index.and_then(|index| is_found.get_mut(index)) {
            *is_found = true;
        }
    }
    let left = patches.iter().zip(is_found).filter(|(_, found)| !found);
    Ok(left.map(|(patch, _)| patch).collect())
}

#[cfg(test)]
mod tests {
    use super::{PATCH_MEMBER, PATCH_MEMBERS};

    /// A batch must do to a row what a lone change does.
    #[test]
    fn both_statements_change_a_row_in_the_same_way() {
        let parts = |sql: &'static str| {
            let (set, rest) = sql.split_once("  FROM ").unwrap();
            let (_, condition) = rest.split_once(" WHERE ").unwrap();
            (set, condition.trim_end_matches("\nRETURNING patch.place"))
        };
        assert_eq!(parts(PATCH_MEMBER), parts(PATCH_MEMBERS));
    }
}
