//! Writes `left_at` of members after a dismissal. The dismissal itself writes only the group's row, so that it takes no
//! longer for a large group. Readers see the same before and after.

use sqlx::Connection;
use time::OffsetDateTime;

use super::{Error, Store};
use crate::domain::GroupId;

statements! {
    /// Walks groups_emptying.
    EMPTYING = "
SELECT group_id FROM groups WHERE emptying_at IS NOT NULL AND group_id > $1 ORDER BY group_id LIMIT 1";
    /// Locks the group, so that no join and no other dismissal is written meanwhile.
    LOCK_EMPTYING = "
SELECT dismissals, emptying_at
  FROM groups
 WHERE group_id = $1 AND emptying_at IS NOT NULL
   FOR UPDATE";
    /// Walks the primary key. `updated_at` stays: readers see no change.
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

/// Number of rows of one transaction. A callback of the group may have to wait for it.
const MAX_BATCH_ROWS: i64 = 500;

impl Store {
    /// Writes the time of the leave into the rows of all dismissed groups.
    ///
    /// # Errors
    /// See [`Error`]. Earlier batches stay written.
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
            // A stored id always parses.
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
                    let dismissal: Option<(i32, OffsetDateTime)> = sqlx::query_as(LOCK_EMPTYING)
                        .bind(group.as_str())
                        .fetch_optional(&mut *transaction)
                        .await?;
                    let Some((number, at)) = dismissal else {
                        return Ok(None);
                    };
                    let (last, count): (Option<String>, i64) = sqlx::query_as(FILL_LEFT_AT)
                        .bind(group.as_str())
                        .bind(&after)
                        .bind(number)
                        .bind(at)
                        .bind(MAX_BATCH_ROWS)
                        .fetch_one(&mut *transaction)
                        .await?;
                    let has_more = count == MAX_BATCH_ROWS;
                    if !has_more {
                        sqlx::query(END_EMPTYING)
                            .bind(group.as_str())
                            .execute(&mut *transaction)
                            .await?;
                    }
                    transaction.commit().await?;
                    Ok(last.filter(|_| has_more))
                })
                .await?;
        }
        Ok(())
    }
}
