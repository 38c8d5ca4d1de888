//! Comparisons of single groups: when each began, what it came to, whom callbacks have named since,
//! and which are wanted.

use std::time::Duration;

use sqlx::{Connection, FromRow, PgConnection};
use time::OffsetDateTime;

use crate::domain::{Fence, FenceError, GroupId, MarkReason, UserId, Version};
use crate::store::touched::{GROUP_ITSELF, TouchedUsers};
use crate::store::{Error, Store};

statements! {
    /// What is known of the group stays until the end: where there is none, all of it is to be read.
    /// The identity of a comparison is its time, later than that of the one before whatever the clock
    /// says.
    BEGIN_CHECK = "
INSERT INTO group_checks AS stored (group_id, compared_at, read_at)
VALUES ($1, clock_timestamp(), clock_timestamp())
ON CONFLICT (group_id) DO UPDATE SET
    compared_at = greatest(EXCLUDED.compared_at, stored.compared_at + interval '1 microsecond')
RETURNING compared_at, version, version_id, fence, read_at, touched, touches";
    /// The same where OpenIM was asked already what has changed since a version, unless another
    /// comparison has begun since that was known.
    BEGIN_UPDATE = "
UPDATE group_checks AS stored SET
    compared_at = greatest(clock_timestamp(), stored.compared_at + interval '1 microsecond')
 WHERE group_id = $1 AND compared_at = $2 AND version = $3 AND version_id = $4
RETURNING compared_at, version, version_id, fence, read_at, touched, touches";
    FENCE = "SELECT pg_current_snapshot()::text";
    /// Groups before their checks, as lanes lock them.
    LOCK_MARK = "SELECT FROM groups WHERE group_id = $1 AND check_wanted_since IS NOT NULL FOR UPDATE";
    /// Before that which is to see what others have written meanwhile: whoever touches a check has the
    /// row before or after, but not between. In the order of the ids, as everybody who locks several.
    LOCK_CHECKS = "SELECT FROM group_checks WHERE group_id = ANY($1) ORDER BY group_id FOR UPDATE";
    /// Notes the version, unless another comparison has begun since; that of changes only after another
    /// comparison some time later, which asks for the same changes once more. Whom callbacks have named since
    /// stays noted. Takes the mark away, unless the group was marked again since, or so shortly before
    /// that what it announced may have come after. (A mark of the future is one of a clock that was set
    /// back.)
    FINISH_CHECK = "
WITH marked AS MATERIALIZED (
    SELECT check_wanted_since, check_marked_at, check_marked_xid
      FROM groups
     WHERE group_id = $1 AND check_wanted_since IS NOT NULL),
last AS MATERIALIZED (
    SELECT group_id FROM group_checks WHERE group_id = $1 AND compared_at = $2),
noted AS (
    UPDATE group_checks AS c SET
        version = CASE
            WHEN $8 OR $10 = 0 OR version IS NULL OR version_id IS DISTINCT FROM $4 THEN $3
            WHEN later_at <= clock_timestamp() - $10 * interval '1 millisecond' THEN later_version
            ELSE version
        END,
        later_version = CASE
            WHEN $8 OR $10 = 0 OR version IS NULL OR version_id IS DISTINCT FROM $4 THEN NULL
            WHEN later_at > clock_timestamp() - $10 * interval '1 millisecond' THEN later_version
            ELSE NULLIF($3, COALESCE(later_version, version))
        END,
        later_at = CASE
            WHEN $8 OR $10 = 0 OR version IS NULL OR version_id IS DISTINCT FROM $4 THEN NULL
            WHEN later_at > clock_timestamp() - $10 * interval '1 millisecond' THEN later_at
            WHEN $3 <> COALESCE(later_version, version) THEN clock_timestamp()
        END,
        version_id = $4, fence = $6,
        read_at = CASE WHEN $8 THEN $2 ELSE read_at END,
        touched = CASE WHEN touches = $7 THEN '{}' ELSE touched END,
        is_touched = false
      FROM last
     WHERE c.group_id = last.group_id),
cleared AS (
    UPDATE groups AS g SET
        check_wanted_since = NULL, check_marked_at = NULL, check_marked_xid = NULL, check_reason = NULL
      FROM marked, last
     WHERE g.group_id = $1 AND $9
       AND (marked.check_marked_at < $2 - $5 * interval '1 millisecond'
         OR marked.check_marked_at > clock_timestamp())
       AND (marked.check_marked_xid IS NULL
         OR pg_visible_in_snapshot(marked.check_marked_xid::text::xid8, $6::pg_snapshot))
    RETURNING g.group_id)
SELECT (SELECT check_wanted_since FROM marked) AS wanted_since,
       clock_timestamp() AS finished_at,
       EXISTS (SELECT FROM cleared) AS is_cleared";
    /// Where nothing else has marked the group, before or since, nor the mark made its row: of a group that
    /// is known by it alone nothing else is known.
    TAKE_BACK_MARK = "
UPDATE groups SET
    check_wanted_since = NULL, check_marked_at = NULL, check_marked_xid = NULL, check_reason = NULL
 WHERE group_id = $1 AND check_reason = $2 AND check_marked_at = check_wanted_since
   AND created_at < check_wanted_since";
    /// Walks groups_check_wanted.
    WANTED = "
SELECT group_id
  FROM groups
 WHERE group_id > $1 AND check_wanted_since IS NOT NULL
   AND (check_wanted_since <= now() - $3 * interval '1 millisecond' OR check_wanted_since > now())
 ORDER BY group_id
 LIMIT $2";
    /// Walks groups_check_wanted.
    WANTED_BY_REASON = "
SELECT check_reason AS reason, count(*) AS groups, min(check_wanted_since) AS since
  FROM groups
 WHERE check_wanted_since IS NOT NULL
 GROUP BY check_reason
 ORDER BY check_reason";
    /// Notes whom callbacks have named. NULL stands for too many to say.
    TOUCH = "
UPDATE group_checks AS c SET
    touches = c.touches + 1,
    touched = CASE
        WHEN told.has_all AND cardinality(c.touched) + told.count <= $3
        THEN c.touched || told.users
    END
  FROM (SELECT group_id, array_agg(user_id) AS users, count(*) AS count,
               bool_and(user_id IS NOT NULL) AS has_all
          FROM unnest($1::text[], $2::text[]) AS named (group_id, user_id)
         GROUP BY group_id) AS told
 WHERE c.group_id = told.group_id";
    FORGET = "UPDATE group_checks SET version = NULL, version_id = NULL WHERE group_id = ANY($1)";
    /// Whom callbacks have named in a group since its version was noted, by what is stored. Reads the
    /// whole group.
    NAMED_SINCE = "
SELECT user_id
  FROM group_members
 WHERE group_id = $1
   AND last_callback_xid >= pg_snapshot_xmin($2::pg_snapshot)::text::bigint
   AND NOT pg_visible_in_snapshot(last_callback_xid::text::xid8, $2::pg_snapshot)
 LIMIT $3";
    /// The same of several groups. As a join the planner might read all members.
    NAMED_SINCE_ALL = "
WITH noted AS MATERIALIZED (
    SELECT group_id, fence::pg_snapshot AS fence,
           pg_snapshot_xmin(fence::pg_snapshot)::text::bigint AS first
      FROM group_checks
     WHERE group_id = ANY($1) AND version IS NOT NULL AND fence IS NOT NULL)
SELECT c.group_id, m.user_id
  FROM noted AS c
 CROSS JOIN LATERAL
       (SELECT user_id
          FROM group_members AS m
         WHERE m.group_id = c.group_id AND m.last_callback_xid >= c.first
           AND NOT pg_visible_in_snapshot(m.last_callback_xid::text::xid8, c.fence)
         LIMIT $2) AS m
 UNION ALL
SELECT c.group_id, ''
  FROM noted AS c
 WHERE (SELECT true
          FROM groups AS g
         WHERE g.group_id = c.group_id AND g.last_callback_xid >= c.first
           AND NOT pg_visible_in_snapshot(g.last_callback_xid::text::xid8, c.fence))";
}

/// Groups at a time of which it is noted whom callbacks have named.
const SOME: usize = 1000;
/// Users of a group that are kept by their ids.
const MOST_TOUCHED: usize = 1000;
/// Users of a group who are looked for where too many were named to say. If there are more, to read
/// the group is no more work.
const MOST_NAMED: usize = 5000;

/// A comparison of a group that has begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// When, by the database's clock; no other of the group has the same.
    pub at: OffsetDateTime,
    /// What was written before OpenIM was asked.
    pub fence: Fence,
    /// What is known of the group; `None`: all of it has to be read.
    pub known: Option<Noted>,
    touches: i64,
}

/// Up to which version a group is known to be as in OpenIM.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The version.
    pub version: Version,
    /// When all of the group was read last.
    pub read_at: OffsetDateTime,
    /// Whom callbacks have named since; `None`: too many to say.
    pub touched: Option<Named>,
    fence: Fence,
}

impl Noted {
    /// Whether callbacks have named anybody since.
    pub fn is_touched(&self) -> bool {
        self.touched != Some(Named::default())
    }
}

/// What was read of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WasRead {
    /// All of it.
    Whole,
    /// What has changed since a version.
    Changes,
    /// What OpenIM gives of it.
    InPart,
}

/// Whom callbacks have named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Members, or users who were.
    pub users: Vec<UserId>,
    /// Whether the group itself was.
    pub has_group: bool,
}

impl Named {
    fn of(ids: Vec<String>) -> Self {
        let has_group = ids.iter().any(|id| id == GROUP_ITSELF);
        let mut users: Vec<UserId> = ids
            .into_iter()
            .filter_map(|id| UserId::parse(id).ok())
            .collect();
        users.sort_unstable();
        users.dedup();
        Self { users, has_group }
    }
}

#[derive(FromRow)]
struct BegunRow {
    compared_at: OffsetDateTime,
    version: Option<i64>,
    version_id: Option<String>,
    fence: Option<String>,
    read_at: OffsetDateTime,
    touched: Option<Vec<String>>,
    touches: i64,
}

impl BegunRow {
    fn begun(self, fence_of_answers: Fence) -> Result<Begun, sqlx::Error> {
        let fence: Option<Fence> = self
            .fence
            .map(|fence| fence.parse())
            .transpose()
            .map_err(unreadable)?;
        let known = match (self.version, self.version_id, fence) {
            (Some(number), Some(id), Some(fence)) => Some(Noted {
                version: Version {
                    id,
                    number: number.cast_unsigned(),
                },
                read_at: self.read_at,
                touched: self.touched.map(Named::of),
                fence,
            }),
            _ => None,
        };
        Ok(Begun {
            at: self.compared_at,
            fence: fence_of_answers,
            known,
            touches: self.touches,
        })
    }
}

/// What is written by now.
pub(super) async fn fence(connection: &mut PgConnection) -> Result<Fence, sqlx::Error> {
    let text: String = sqlx::query_scalar(FENCE).fetch_one(connection).await?;
    text.parse().map_err(unreadable)
}

/// What the database wrote down itself, and is not as it writes it.
fn unreadable(error: FenceError) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// How a comparison ended.
#[derive(Clone, Copy, Debug, FromRow)]
pub struct Finished {
    /// Since when the group wanted a check before.
    pub wanted_since: Option<OffsetDateTime>,
    /// By the database's clock.
    pub finished_at: OffsetDateTime,
    /// Whether it wants none any more.
    pub is_cleared: bool,
}

/// Groups that want a check for one reason.
#[derive(Clone, Debug, FromRow)]
pub struct WantedByReason {
    /// Its code; the last one of each group.
    pub reason: Option<String>,
    /// How many.
    pub groups: i64,
    /// Since when the first of them does.
    pub since: OffsetDateTime,
}

/// Milliseconds as a statement takes them.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Begins a comparison of a group: OpenIM is to be asked after this.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_check(&self, group: &GroupId) -> Result<Begun, Error> {
        // Whom this process has written of and not noted yet is known to it alone.
        self.note_touched_of(&[group]).await?;
        self.write(async |connection| {
            let row: BegunRow = sqlx::query_as(BEGIN_CHECK)
                .bind(group.as_str())
                .fetch_one(&mut *connection)
                .await?;
            // After that: who is noted as touched is before the fence, so that whoever is looked at need
            // not stay noted.
            row.begun(fence(connection).await?)
        })
        .await
    }

    /// Begins one with what OpenIM, asked after `fence`, has told of changes since `version`. `None`
    /// where another comparison has begun after the one of `compared_at`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_update(
        &self,
        group: &GroupId,
        compared_at: OffsetDateTime,
        version: &Version,
        fence: &Fence,
    ) -> Result<Option<Begun>, Error> {
        self.note_touched_of(&[group]).await?;
        self.write(async |connection| {
            let row: Option<BegunRow> = sqlx::query_as(BEGIN_UPDATE)
                .bind(group.as_str())
                .bind(compared_at)
                .bind(version.number.cast_signed())
                .bind(&version.id)
                .fetch_optional(connection)
                .await?;
            row.map(|row| row.begun(fence.clone())).transpose()
        })
        .await
    }

    /// Whom callbacks have named in a group since its version was noted; `None`: more than are worth
    /// being asked for one by one. `is_noted`: whether it is noted whom an earlier process has written
    /// of; else the rows are looked at.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn named_since(
        &self,
        group: &GroupId,
        noted: &Noted,
        is_noted: bool,
    ) -> Result<Option<Named>, Error> {
        if let Some(named) = &noted.touched
            && is_noted
        {
            return Ok(Some(named.clone()));
        }
        let most = i64::try_from(MOST_NAMED).unwrap_or(i64::MAX);
        let found = self
            .housekeep(async |connection| {
                sqlx::query_scalar(NAMED_SINCE)
                    .bind(group.as_str())
                    .bind(noted.fence.as_str())
                    .bind(most + 1)
                    .fetch_all(connection)
                    .await
            })
            .await;
        let mut found: Vec<String> = match found {
            // So large that to read OpenIM's is no more work.
            Err(error) if error.is_timeout() => return Ok(None),
            found => found?,
        };
        if let Some(named) = &noted.touched {
            found.extend(named.users.iter().map(|user| user.as_str().to_owned()));
        }
        let named = Named {
            has_group: true,
            ..Named::of(found)
        };
        Ok((named.users.len() <= MOST_NAMED).then_some(named))
    }

    /// Ends a comparison: the group is as it was at `version` or, where there is none, all of it is to
    /// be read by the next. A version of less than `settling` ago is not taken for all that is to be seen
    /// at it. A mark that came less than `delay` before stays, and so does that of a group
    /// that was read in part.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn finish_check(
        &self,
        group: &GroupId,
        begun: &Begun,
        version: Option<&Version>,
        read: WasRead,
        (delay, settling): (Duration, Duration),
    ) -> Result<Finished, Error> {
        self.write(async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK_MARK)
                .bind(group.as_str())
                .execute(&mut *transaction)
                .await?;
            sqlx::query(LOCK_CHECKS)
                .bind([group.as_str()])
                .execute(&mut *transaction)
                .await?;
            let finished = sqlx::query_as(FINISH_CHECK)
                .bind(group.as_str())
                .bind(begun.at)
                .bind(version.map(|version| version.number.cast_signed()))
                .bind(version.map(|version| &version.id))
                .bind(millis(delay))
                .bind(begun.fence.as_str())
                .bind(begun.touches)
                .bind(read != WasRead::Changes)
                .bind(read != WasRead::InPart)
                .bind(millis(settling))
                .fetch_one(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(finished)
        })
        .await
    }

    /// Takes away the mark of a notification that told nothing new.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn take_back_mark(&self, group: &GroupId) -> Result<(), Error> {
        self.write(async |connection| {
            sqlx::query(TAKE_BACK_MARK)
                .bind(group.as_str())
                .bind(MarkReason::Notified.code())
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
    }

    /// Up to `limit` groups after the group id `after` that have wanted a check for `delay` at
    /// least, in bytewise order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups_wanting_check(
        &self,
        after: &str,
        limit: i64,
        delay: Duration,
    ) -> Result<Vec<GroupId>, Error> {
        let ids: Vec<String> = self
            .read(async |connection| {
                sqlx::query_scalar(WANTED)
                    .bind(after)
                    .bind(limit)
                    .bind(millis(delay))
                    .fetch_all(connection)
                    .await
            })
            .await?;
        // They are stored as they were parsed.
        let ids = ids.into_iter();
        Ok(ids.filter_map(|id| GroupId::parse(id).ok()).collect())
    }

    /// How many groups want a check, and why.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn checks_wanted(&self) -> Result<Vec<WantedByReason>, Error> {
        self.read(async |connection| sqlx::query_as(WANTED_BY_REASON).fetch_all(connection).await)
            .await
    }

    /// Notes whom callbacks have named since the last call: a callback that OpenIM sent before the
    /// group was compared may have come after it, and then the version says nothing of these members.
    ///
    /// # Errors
    /// See [`Error`]; what could not be done is done by the next call.
    pub async fn note_touched(&self) -> Result<(), Error> {
        let mut rest = self.touched.take();
        while !rest.is_empty() {
            let others = rest.split_off(rest.len().min(SOME));
            if let Err(error) = self.note(&rest).await {
                self.touched.put_back(rest);
                self.touched.put_back(others);
                return Err(error);
            }
            rest = others;
        }
        Ok(())
    }

    /// The same of these groups alone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn note_touched_of(&self, groups: &[&GroupId]) -> Result<(), Error> {
        let touched = groups
            .iter()
            .filter_map(|group| self.touched.take_of(group));
        let touched: Vec<(GroupId, TouchedUsers)> = touched.collect();
        if touched.is_empty() {
            return Ok(());
        }
        let noted = self.note(&touched).await;
        if noted.is_err() {
            self.touched.put_back(touched);
        }
        noted
    }

    async fn note(&self, groups: &[(GroupId, TouchedUsers)]) -> Result<(), Error> {
        let (mut ids, mut users) = (Vec::new(), Vec::new());
        for (group, named) in groups {
            match named {
                Some(named) => {
                    ids.extend(named.iter().map(|_| group.as_str()));
                    users.extend(named.iter().map(|user| Some(user.as_str())));
                }
                None => {
                    ids.push(group.as_str());
                    users.push(None);
                }
            }
        }
        self.write(async |connection| {
            let mut transaction = connection.begin().await?;
            touch(&mut transaction, &ids, &users).await?;
            transaction.commit().await
        })
        .await
    }

    /// Forgets the versions of groups, so that all of them is read by the next comparison.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn forget_versions(&self, groups: &[&GroupId]) -> Result<(), Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        self.write(async |connection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK_CHECKS)
                .bind(&ids)
                .execute(&mut *transaction)
                .await?;
            sqlx::query(FORGET)
                .bind(&ids)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        })
        .await
    }

    /// The same for these groups, by what is stored: for what an earlier process did not come to. Reads
    /// all of their members.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn note_touched_before(&self, groups: &[&GroupId]) -> Result<(), Error> {
        let ids: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let most = i64::try_from(MOST_TOUCHED).unwrap_or(i64::MAX);
        self.housekeep(async |connection| {
            let named: Vec<(String, String)> = sqlx::query_as(NAMED_SINCE_ALL)
                .bind(&ids)
                .bind(most + 1)
                .fetch_all(&mut *connection)
                .await?;
            if named.is_empty() {
                return Ok(());
            }
            let groups: Vec<&str> = named.iter().map(|(group, _)| group.as_str()).collect();
            let users: Vec<Option<&str>> =
                named.iter().map(|(_, user)| Some(user.as_str())).collect();
            touch(connection, &groups, &users).await
        })
        .await
    }
}

/// Notes whom callbacks have named, in the transaction that the connection is in.
async fn touch(
    connection: &mut PgConnection,
    groups: &[&str],
    users: &[Option<&str>],
) -> Result<(), sqlx::Error> {
    sqlx::query(LOCK_CHECKS)
        .bind(groups)
        .execute(&mut *connection)
        .await?;
    sqlx::query(TOUCH)
        .bind(groups)
        .bind(users)
        .bind(i32::try_from(MOST_TOUCHED).unwrap_or(i32::MAX))
        .execute(connection)
        .await?;
    Ok(())
}
