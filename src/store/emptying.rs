//! The rows of those who left by a dismissal. The dismissal itself is one write of the group's row, so
//! that it takes no longer for a large group; what is filled in here is what readers see already.

use sqlx::{Connection, FromRow};
use time::OffsetDateTime;

use super::{Error, Store};
use crate::domain::GroupId;

statements! {
    /// Walks groups_emptying.
    EMPTYING = "
SELECT group_id FROM groups WHERE emptying_at IS NOT NULL AND group_id > $1 ORDER BY group_id LIMIT 1";
    /// Keeps away whoever would let somebody in meanwhile, or dismiss the group again.
    LOCK_EMPTYING = "
SELECT dismissals, emptying_at
  FROM groups
 WHERE group_id = $1 AND emptying_at IS NOT NULL
   FOR UPDATE";
    /// Walks the primary key. No updated_at moves: it is the same member for readers.
    FILL_LEFT_AT = "
WITH next AS MATERIALIZED (
    SELECT user_id
      FROM group_members
     WHERE (group_id, user_id) > ($1, $2) AND group_id <= $1 AND left_at IS NULL
       AND came_at_dismissal IS DISTINCT FROM $3
     ORDER BY group_id, user_id
     LIMIT $5
       FOR UPDATE),
filled AS (
    UPDATE group_members AS m SET left_at = $4
      FROM next
     WHERE m.group_id = $1 AND m.user_id = next.user_id)
SELECT max(user_id) AS last, count(*) AS members FROM next";
    END_EMPTYING = "UPDATE groups SET emptying_at = NULL WHERE group_id = $1";
}

/// Rows that are written at a time, for as long as a callback about the group may have to wait.
const SOME: i64 = 500;

#[derive(FromRow)]
struct Begun {
    dismissals: i32,
    emptying_at: OffsetDateTime,
}

#[derive(FromRow)]
struct Filled {
    last: Option<String>,
    members: i64,
}

impl Store {
    /// Fills in when those have left who were members of a dismissed group; goes through all such
    /// groups once.
    ///
    /// # Errors
    /// See [`Error`]; what was filled in until then is.
    pub async fn fill_in_leaves(&self) -> Result<(), Error> {
        let mut after = String::new();
        loop {
            let next: Option<String> = self
                .read(async |connection| {
                    sqlx::query_scalar(EMPTYING)
                        .bind(&after)
                        .fetch_optional(connection)
                        .await
                })
                .await?;
            let Some(group) = next else {
                return Ok(());
            };
            // They are stored as they were parsed.
            if let Ok(group) = GroupId::parse(group.clone()) {
                self.fill_in_leaves_of(&group).await?;
            }
            after = group;
        }
    }

    async fn fill_in_leaves_of(&self, group: &GroupId) -> Result<(), Error> {
        let mut last = Some(String::new());
        while let Some(after) = last {
            last = self
                .write(async |connection| {
                    let mut transaction = connection.begin().await?;
                    let begun: Option<Begun> = sqlx::query_as(LOCK_EMPTYING)
                        .bind(group.as_str())
                        .fetch_optional(&mut *transaction)
                        .await?;
                    let Some(begun) = begun else {
                        return Ok(None);
                    };
                    let filled: Filled = sqlx::query_as(FILL_LEFT_AT)
                        .bind(group.as_str())
                        .bind(&after)
                        .bind(begun.dismissals)
                        .bind(begun.emptying_at)
                        .bind(SOME)
                        .fetch_one(&mut *transaction)
                        .await?;
                    let has_more = filled.members == SOME;
                    if !has_more {
                        sqlx::query(END_EMPTYING)
                            .bind(group.as_str())
                            .execute(&mut *transaction)
                            .await?;
                    }
                    transaction.commit().await?;
                    Ok(filled.last.filter(|_| has_more))
                })
                .await?;
        }
        Ok(())
    }
}
