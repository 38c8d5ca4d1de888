//! Writes changes to the mirror. A [`Writer`] is the connection of a lane.
//!
//! Patches of current members are one statement, see `patch_set!`. All other changes are applied by `domain::apply` to
//! stored rows, which are locked first, see [`rows`].
//!
//! The fence: keeps an abandoned write from taking effect after newer ones, or twice.
//!
//! Postgres may still run a statement after its timeout here, or get it late from the network, and commit it. So each
//! session of a lane has a share of an advisory lock, one lock for each spool. After a failed write, nothing is written
//! until the session that drains the spool has the whole lock: then all earlier sessions have ended. Positions tell
//! what those sessions have committed, because they move in the same transactions.

mod drainer;
pub(super) mod rows;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::PgConnection;
use tokio::time::Instant;

use super::Error;
use super::columns::{Columns, bind_patch, bind_patches};
use super::postgres::{Connector, Counted};
use crate::domain::{
    Change, Event, Folded, FoldedPatch, GroupId, MemberPatch, Repaired, UserId, fold,
};

pub use drainer::Drainer;

/// The connection of one lane.
#[derive(Debug)]
pub struct Writer {
    connector: Arc<Connector>,
    touched: Touched,
    /// `None` until it is needed, and after it failed.
    connection: Option<Counted>,
    /// Position of the lane. `None` without a spool.
    position: Option<Position>,
}

/// A write that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    /// The error.
    pub error: Error,
    /// Number of the attempt in the lane's position, if it may be committed.
    pub attempt: Option<i64>,
}

/// Result of a write.
#[derive(Clone, Debug, Default)]
pub struct Written(Vec<(usize, Repaired)>);

impl Written {
    /// Returns the result of the change at this place. It is empty unless the change is a repair.
    pub fn repaired(&self, place: usize) -> Repaired {
        let repaired = self.0.iter().find(|(other, _)| *other == place);
        repaired.map_or_else(Repaired::default, |(_, repaired)| *repaired)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let attempt = None;
        Self { error, attempt }
    }
}

impl Writer {
    /// Makes a writer without a connection. `of_spool` has the ids of spool and lane.
    pub(super) fn new(
        connector: Arc<Connector>,
        touched: Touched,
        of_spool: Option<(i64, i16)>,
    ) -> Self {
        Self {
            connector,
            touched,
            connection: None,
            position: of_spool.map(|(spool_id, lane)| Position {
                spool_id,
                lane,
                seq: 0,
            }),
        }
    }

    /// Writes changes, those of a group in their order. They are committed when this returns. No other writer of this
    /// process may write changes of the same groups meanwhile.
    ///
    /// # Errors
    /// [`Error::Transient`] while the database is away. Each change may or may not be committed;
    /// those that are no patches all or none. The next call makes a new connection if this one
    /// failed. Postgres may still work on the old one then.
    pub async fn write(
        &mut self,
        changes: &[&Change],
        deadline: Instant,
    ) -> Result<Written, Failed> {
        let is_usable = match &mut self.connection {
            Some(connection) => connection.is_usable(deadline).await,
            None => true,
        };
        if !is_usable && let Some(old) = self.connection.take() {
            tokio::spawn(old.close());
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let mut made = self.connector.connect(deadline).await?;
                if let Some(position) = &mut self.position {
                    let positions = share_lock(&mut made, position.spool_id, deadline).await?;
                    let stored = positions.get(&position.lane).copied();
                    position.seq = position.seq.max(stored.unwrap_or(0));
                }
                none.insert(made)
            }
        };
        if let Some(position) = &mut self.position {
            position.seq += 1;
        }
        let position = self.position;
        let work = async |connection: &mut PgConnection| {
            let others = write_patches(connection, changes).await?;
            if others.is_empty() {
                return Ok(vec![]);
            }
            rows::apply_all(connection, &others, position).await
        };
        let done = connection.run(deadline, work).await;
        self.touched.add(changes);
        let place = |written: &Change| {
            let mut changes = changes.iter();
            changes.position(|change| std::ptr::eq(*change, written))
        };
        let done = done.map(|repairs| {
            let repairs = repairs.into_iter();
            Written(
                repairs
                    .filter_map(|(change, repaired)| Some((place(change)?, repaired)))
                    .collect(),
            )
        });
        done.map_err(|error| {
            if error.is_connection_error() {
                self.connection = None;
            }
            let attempt = position.map(|position| position.seq);
            Failed { error, attempt }
        })
    }

    /// Closes the connection. The next write makes a new one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// Drops the connection without waiting for its statement.
    pub fn abandon(&mut self) {
        self.connection = None;
    }
}

/// SQL that patches a row. A batch does to a row what a single patch does.
///
/// Only present fields change. `updated_at` moves only when a value does, and by a microsecond at least: the ETag of a
/// reader is made from it. `now()` can be older than the row's last change, if two callbacks of one member wait for
/// each other.
///
/// OpenIM shows a nickname or an avatar that is set. If it becomes empty, OpenIM shows the profile's, which no callback
/// tells, so the display value becomes unknown. If it was empty before, the display value stays. It becomes unknown
/// only with a change of the text itself, so `updated_at` need not compare that.
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

/// SQL condition of the rows that are patched. `domain::apply` writes the others: users who are unknown, have left or
/// may have left by a dismissal, and an owner whose role would change.
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
    /// Patches several members, each once. Returns the places, from 1, of those that it found. The connections of lanes
    /// have plans only that look for one row after the other, so rows are locked in the order of the arrays.
    PATCH_MEMBERS = concat!(patch_set!(), "
  FROM unnest($1::text[], $2::text[]", patch_columns!(array), ")
       WITH ORDINALITY AS patch (group_id, user_id", patch_columns!(plain), ", place)",
       is_patched!(), "
RETURNING patch.place");
    /// Takes a share until the session ends. Waits only while the session of a drain ends.
    SHARE = "SELECT pg_advisory_lock_shared($1)";
    TAKE_ALONE = "SELECT pg_try_advisory_lock($1)";
    /// Ends the sessions that still have a share: no one waits for their answers. `pg_locks` splits the number of the
    /// lock into two halves.
    END_OTHERS = "
SELECT count(pg_terminate_backend(pid))
  FROM pg_locks
 WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND classid::bigint = $1 >> 32 AND objid::bigint = $1 & 4294967295";
    POSITIONS = "SELECT lane, seq FROM lane_positions WHERE spool_id = $1";
    ADVANCE = "
INSERT INTO lane_positions (spool_id, lane, seq) VALUES ($1, $2, $3)
ON CONFLICT (spool_id, lane) DO UPDATE SET seq = EXCLUDED.seq";
}

/// Writes the changes that are patches of current members. Returns the other changes, which must be applied, in their
/// order.
async fn write_patches<'a>(
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

/// Writes folded patches, all or none, in one statement. Returns those whose members it did not find, in their order.
async fn write_folded<'a, 'b>(
    connection: &mut PgConnection,
    patches: &'b [FoldedPatch<'a>],
) -> Result<Vec<&'b FoldedPatch<'a>>, sqlx::Error> {
    if patches.is_empty() {
        return Ok(vec![]);
    }
    // A single row needs less time without arrays.
    if let [FoldedPatch { group_id, patch }] = patches {
        let query = sqlx::query(PATCH_MEMBER)
            .bind(group_id.as_str())
            .bind(patch.user_id.as_str());
        let done = bind_patch(query, patch).execute(connection).await?;
        let is_found = done.rows_affected() == 1;
        return Ok(patches.iter().filter(|_| !is_found).collect());
    }
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

/// New position of a lane in `lane_positions`.
#[derive(Clone, Copy, Debug)]
struct Position {
    spool_id: i64,
    lane: i16,
    seq: i64,
}

impl Position {
    /// Moves the position in the current transaction.
    async fn advance(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query(ADVANCE)
            .bind(self.spool_id)
            .bind(self.lane)
            .bind(self.seq)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Takes a share of the lock for a new session. Returns the positions of the lanes.
async fn share_lock(
    connection: &mut Counted,
    spool_id: i64,
    deadline: Instant,
) -> Result<HashMap<i16, i64>, Error> {
    let share = async |connection: &mut PgConnection| {
        sqlx::query(SHARE)
            .bind(spool_id)
            .execute(&mut *connection)
            .await?;
        positions(connection, spool_id).await
    };
    connection.run(deadline, share).await
}

/// Tries to take the whole lock, and ends sessions that have shares. `None`: some have not ended yet.
async fn take_lock(
    connection: &mut Counted,
    spool_id: i64,
    deadline: Instant,
) -> Result<Option<HashMap<i16, i64>>, Error> {
    let take = async |connection: &mut PgConnection| {
        let is_alone: bool = sqlx::query_scalar(TAKE_ALONE)
            .bind(spool_id)
            .fetch_one(&mut *connection)
            .await?;
        if is_alone {
            return positions(connection, spool_id).await.map(Some);
        }
        let ended = sqlx::query(END_OTHERS)
            .bind(spool_id)
            .execute(connection)
            .await;
        match ended {
            // Sessions of another role, from before a change of DATABASE_URL, end by themselves.
            Err(sqlx::Error::Database(error)) => {
                let error = error.message();
                tracing::debug!(error, "an earlier session cannot be ended");
            }
            ended => {
                ended?;
            }
        }
        Ok(None)
    };
    connection.run(deadline, take).await
}

async fn positions(
    connection: &mut PgConnection,
    spool_id: i64,
) -> Result<HashMap<i16, i64>, sqlx::Error> {
    let rows: Vec<(i16, i64)> = sqlx::query_as(POSITIONS)
        .bind(spool_id)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().collect())
}

/// Maximum number of users of a group that are kept one by one.
pub(super) const MAX_TOUCHED_USERS: usize = 200;
/// Stands for the group itself among user ids. No user has an empty id.
pub(super) const GROUP_ITSELF: &str = "";

/// Ids of users. `None`: too many to keep.
pub(super) type TouchedUsers = Option<BTreeSet<String>>;

/// The touched groups. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched(Arc<Mutex<HashMap<GroupId, TouchedUsers>>>);

impl Touched {
    fn groups(&self) -> MutexGuard<'_, HashMap<GroupId, TouchedUsers>> {
        // A panic cannot leave the map in a wrong state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the users of changes that were written or may have been.
    pub(super) fn add(&self, changes: &[&Change]) {
        let mut groups = self.groups();
        for change in changes {
            if matches!(change.event, Event::Repair(_)) || change.event.is_mark() {
                continue;
            }
            let named = match groups.get_mut(&change.group_id) {
                Some(named) => named,
                None => groups
                    .entry(change.group_id.clone())
                    .or_insert_with(|| Some(BTreeSet::new())),
            };
            let of_change = change.user_ids().map(UserId::as_str);
            let itself = (!change.is_only_about_members()).then_some(GROUP_ITSELF);
            add_to(named, of_change.chain(itself));
        }
    }

    /// Takes all groups.
    pub(super) fn take(&self) -> Vec<(GroupId, TouchedUsers)> {
        self.groups().drain().collect()
    }

    /// Takes one group.
    pub(super) fn take_of(&self, group: &GroupId) -> Option<(GroupId, TouchedUsers)> {
        self.groups().remove_entry(group)
    }

    pub(super) fn put_back(&self, some: Vec<(GroupId, TouchedUsers)>) {
        let mut groups = self.groups();
        for (group, users) in some {
            let named = groups.entry(group).or_insert_with(|| Some(BTreeSet::new()));
            match &users {
                Some(users) => add_to(named, users.iter().map(String::as_str)),
                None => *named = None,
            }
        }
    }
}

fn add_to<'a>(named: &mut TouchedUsers, users: impl Iterator<Item = &'a str>) {
    for user in users {
        let Some(all) = named else {
            return;
        };
        if !all.contains(user) {
            all.insert(user.to_owned());
        }
        if all.len() > MAX_TOUCHED_USERS {
            *named = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::{MarkReason, Users};

    fn group(id: &str) -> GroupId {
        GroupId::parse(id.into()).unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn change(id: &str, event: Event) -> Change {
        Change::new(group(id), OffsetDateTime::UNIX_EPOCH, event)
    }

    fn users<const N: usize>(ids: [&str; N]) -> TouchedUsers {
        Some(ids.map(str::to_owned).into())
    }

    #[test]
    fn touched_users_are_returned_once() {
        let mark = Event::Mark(MarkReason::CallbackLost);
        let touched = Touched::default();
        touched.add(&[
            &change("a", Event::Join(user("u"))),
            &change("a", Event::Dismiss),
            &change("b", mark),
        ]);
        assert_eq!(touched.take(), [(group("a"), users(["", "u"]))]);
        assert_eq!(touched.take(), []);
        touched.put_back(vec![(group("a"), users(["u"]))]);
        touched.add(&[&change("a", Event::Join(user("v")))]);
        assert_eq!(
            touched.take_of(&group("a")),
            Some((group("a"), users(["u", "v"])))
        );
        assert_eq!(touched.take_of(&group("a")), None);
    }

    #[test]
    fn too_many_users_are_not_kept() {
        let user_ids = (0..=MAX_TOUCHED_USERS)
            .map(|n| user(&format!("u{n}")))
            .collect();
        let kick = Event::Kick(Users {
            user_ids,
            is_incomplete: false,
        });
        let touched = Touched::default();
        touched.add(&[&change("a", kick), &change("a", Event::Join(user("u")))]);
        assert_eq!(touched.take(), [(group("a"), None)]);
    }
}
