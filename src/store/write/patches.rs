//! Writes patches of current members.
//!
//! A patch of a current member that does not change the owner needs no stored rows: all such patches
//! of a batch are one statement.

use sqlx::PgConnection;

use super::super::columns::{Columns, bind_patch, bind_patches};
use crate::domain::{Change, Event, Folded, FoldedPatch, MemberPatch, fold};

/// SQL that patches a row. A batch does to a row what a single patch does.
///
/// Only present fields change. `updated_at` moves only when a value does, and by a microsecond at
/// least: the ETag of a reader is made from it. `now()` can be older than the row's last change, if two
/// callbacks of one member wait for each other.
///
/// OpenIM shows a nickname or an avatar that is set. If it becomes empty, OpenIM shows the profile's,
/// which no callback tells, so the display value becomes unknown. If it was empty before, the display
/// value stays. It becomes unknown only with a change of the text itself, so `updated_at` need not
/// compare that.
macro_rules! patch_set {
    () => {
        concat!(
            "
UPDATE group_members AS stored SET
    display_nickname = CASE
        WHEN patch.nickname <> '' THEN patch.nickname
        WHEN patch.nickname IS NULL OR stored.nickname = '' THEN stored.display_nickname
    END,
    display_face_url = CASE
        WHEN patch.face_url <> '' THEN patch.face_url
        WHEN patch.face_url IS NULL OR stored.face_url = '' THEN stored.display_face_url
    END", patch_columns!(set_patched), ",
    updated_at = CASE
        WHEN (COALESCE(NULLIF(patch.nickname, ''), stored.display_nickname),
              COALESCE(NULLIF(patch.face_url, ''), stored.display_face_url)",
              patch_columns!(patched), ")
             IS DISTINCT FROM
             (stored.display_nickname, stored.display_face_url", patch_columns!((of "stored")), ")
        THEN greatest(now(), stored.updated_at + interval '1 microsecond')
        ELSE stored.updated_at
    END,
    last_callback_at = now(),
    last_callback_xid = pg_current_xact_id()::text::bigint"
        )
    };
}

/// SQL condition of the rows that are patched. `domain::apply` writes the others: users who are unknown,
/// have left or may have left by a dismissal, and an owner whose role would change.
macro_rules! is_patched {
    () => {
        "
 WHERE stored.group_id = patch.group_id AND stored.user_id = patch.user_id
   AND stored.left_at IS NULL
   AND NOT EXISTS (SELECT FROM groups AS g
                    WHERE g.group_id = patch.group_id AND g.emptying_at IS NOT NULL)
   AND (patch.role_level IS NULL OR stored.role_level IS DISTINCT FROM 100)"
    };
}

statements! {
    /// Patches one member.
    PATCH_MEMBER = concat!(patch_set!(), "
  FROM (VALUES ($1::text, $2::text", patch_columns!(value), "))
       AS patch (group_id, user_id", patch_columns!(plain), ")", is_patched!());
    /// Patches several members, each once. Returns the places, from 1, of those that it found. The
    /// connections of lanes have plans only that look for one row after the other, so rows are locked in
    /// the order of the arrays.
    PATCH_MEMBERS = concat!(patch_set!(), "
  FROM unnest($1::text[], $2::text[]", patch_columns!(array), ")
       WITH ORDINALITY AS patch (group_id, user_id", patch_columns!(plain), ", place)",
       is_patched!(), "
RETURNING patch.place");
}

/// Writes the changes that are patches of current members. Returns the other changes, which must be
/// applied, in their order.
pub(super) async fn write<'a>(
    connection: &mut PgConnection,
    changes: &[&'a Change],
) -> Result<Vec<&'a Change>, sqlx::Error> {
    let Folded {
        patches,
        mut others,
    } = fold(changes.iter().copied());
    let unwritten = write_folded(connection, &patches).await?;
    if !unwritten.is_empty() {
        // The original changes, not the folded ones: the time of each counts.
        let is_unwritten = |change: &&&Change| match &change.event {
            Event::SetMember(patch) => {
                let key = (&change.group_id, &patch.user_id);
                let found = unwritten.binary_search_by(|patch| patch.key().cmp(&key));
                found.is_ok()
            }
            _ => false,
        };
        // Their groups are not among those of the others.
        others.extend(changes.iter().filter(is_unwritten).copied());
    }
    Ok(others)
}

/// Writes folded patches, all or none, in one statement. Returns those whose members it did not find,
/// in their order.
async fn write_folded<'a, 'b>(
    connection: &mut PgConnection,
    patches: &'b [FoldedPatch<'a>],
) -> Result<Vec<&'b FoldedPatch<'a>>, sqlx::Error> {
    match patches {
        [] => Ok(vec![]),
        // A single row needs less time without arrays.
        [FoldedPatch { group_id, patch }] => {
            let query = sqlx::query(PATCH_MEMBER)
                .bind(group_id.as_str())
                .bind(patch.user_id.as_str());
            let done = bind_patch(query, patch).execute(connection).await?;
            let is_found = done.rows_affected() == 1;
            Ok(patches.iter().filter(|_| !is_found).collect())
        }
        _ => write_many(connection, patches).await,
    }
}

async fn write_many<'a, 'b>(
    connection: &mut PgConnection,
    patches: &'b [FoldedPatch<'a>],
) -> Result<Vec<&'b FoldedPatch<'a>>, sqlx::Error> {
    let groups: Vec<&str> = patches.iter().map(|one| one.group_id.as_str()).collect();
    let values: Vec<&MemberPatch> = patches.iter().map(|one| &*one.patch).collect();
    let users: Vec<&str> = values.iter().map(|one| one.user_id.as_str()).collect();
    let query = sqlx::query(PATCH_MEMBERS).bind(groups).bind(users);
    let found: Vec<i64> = bind_patches(query, &values)
        .try_map(|row| Columns::of(&row).take())
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
    let unwritten = patches.iter().zip(is_found).filter(|(_, found)| !found);
    Ok(unwritten.map(|(patch, _)| patch).collect())
}
