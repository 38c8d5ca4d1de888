//! Lookups of single members. Lookups that wait at the same moment become one statement.
//!
//! The first lookup starts a task. Later ones wait while its statement runs, and are its next statement. A second task
//! starts when that is faster, which is for few lookups at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::columns::{Columns, MemberRow, PageRow, SHORT_ROW, count, is_marked};
use super::postgres::Kind;
use super::{Error, Store};
use crate::domain::{GroupId, UserId};

/// SQL of the rows of current members, by pairs of ids. LIMIT 1 makes the planner use the index for each pair.
macro_rules! from_pairs {
    ($row:expr) => {
        concat!(
            " CROSS JOIN LATERAL
       (SELECT ",
            $row,
            "
          FROM group_members
         WHERE group_id = asked_group AND user_id = asked_user AND left_at IS NULL
           AND NOT EXISTS (SELECT FROM groups AS g
                            WHERE g.group_id = asked_group AND g.emptying_at IS NOT NULL
                              AND came_at_dismissal IS DISTINCT FROM g.dismissals)
         LIMIT 1) AS m"
        )
    };
}

statements! {
    /// Looks up one member in the primary key.
    MEMBER = concat!("
SELECT ", member_row!(short), "
  FROM group_members
 WHERE group_id = $1 AND user_id = $2 AND left_at IS NULL
   AND ((SELECT g.dismissals FROM groups AS g
          WHERE g.group_id = $1 AND g.emptying_at IS NOT NULL) IS NULL
     OR came_at_dismissal = (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1))");
    /// Looks up each pair in the primary key. Returns the places of the pairs, from 1.
    MEMBERSHIPS = concat!("
SELECT ", member_row!(short), ", place
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (asked_group, asked_user, place)
", from_pairs!(member_row!(plain)));
    /// Also reads the bytes of each member, and the texts of those who have at most as many bytes as allowed.
    MEMBERSHIPS_SIZED = concat!("
SELECT ", member_row!((texts_if "bytes <= allowed")), ", bytes, place
  FROM unnest($1::text[], $2::text[], $3::bigint[])
       WITH ORDINALITY AS asked (asked_group, asked_user, allowed, place)
", from_pairs!(concat!(member_row!(plain), ", ", member_row!(bytes), " AS bytes")));
}

/// Maximum number of pairs of a statement. One lookup alone can have more.
const MAX_PAIRS: usize = 1000;
/// Maximum number of statements at a time.
const MAX_TASKS: usize = 2;
/// Statement of at most this number of pairs: a second one beside it is worth its cost.
const SMALL_STATEMENT: usize = 4;
/// Statement of at least this number of pairs: it may take so long that others should not wait for it.
const LARGE_STATEMENT: usize = 300;

type Pair = (GroupId, UserId);

/// A lookup of the current members of some pairs, in their order.
#[derive(Debug)]
struct Lookup {
    pairs: Arc<[Pair]>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Vec<Option<MemberRow>>, Error>>,
}

/// The lookups without an answer.
#[derive(Debug, Default)]
pub(super) struct Lookups(Mutex<LookupQueue>);

#[derive(Debug, Default)]
struct LookupQueue {
    waiting: Vec<Lookup>,
    /// Number of pairs that wait.
    pairs: usize,
    tasks: usize,
    /// Number of pairs in statements that run now.
    looked_up: usize,
}

impl Lookups {
    fn queue(&self) -> MutexGuard<'_, LookupQueue> {
        // No code panics with the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LookupQueue {
    /// True if a task should start.
    fn needs_task(&self) -> bool {
        let is_worth_it = self.looked_up <= SMALL_STATEMENT
            || self.looked_up >= LARGE_STATEMENT
            || self.pairs >= MAX_PAIRS;
        self.tasks == 0 || (self.tasks < MAX_TASKS && is_worth_it)
    }

    /// Takes the next lookups, up to the pairs of a statement.
    fn take(&mut self) -> Vec<Lookup> {
        let mut pairs = 0;
        let fit = self.waiting.iter().take_while(|lookup| {
            let is_first = pairs == 0;
            pairs += lookup.pairs.len();
            is_first || pairs <= MAX_PAIRS
        });
        let fit = fit.count();
        let rest = self.waiting.split_off(fit);
        let taken = std::mem::replace(&mut self.waiting, rest);
        self.pairs -= count_pairs(&taken);
        taken
    }
}

fn count_pairs(lookups: &[Lookup]) -> usize {
    lookups.iter().map(|lookup| lookup.pairs.len()).sum()
}

/// A task that makes statements. It is counted until it ends or panics.
struct LookupTask<'a> {
    lookups: &'a Lookups,
    looks_up: usize,
    is_over: bool,
}

impl LookupTask<'_> {
    /// Takes the next lookups; those before have answers. The task ends if there are none.
    fn next(&mut self) -> Option<Vec<Lookup>> {
        let mut queue = self.lookups.queue();
        queue.looked_up -= self.looks_up;
        let lookups = queue.take();
        self.looks_up = count_pairs(&lookups);
        queue.looked_up += self.looks_up;
        if lookups.is_empty() {
            // With the same lock, so that the next lookup starts another task.
            queue.tasks -= 1;
            self.is_over = true;
            return None;
        }
        Some(lookups)
    }
}

impl Drop for LookupTask<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let mut queue = self.lookups.queue();
            queue.looked_up -= self.looks_up;
            queue.tasks -= 1;
            if queue.tasks == 0 {
                // No task would answer these. To drop them is their error.
                queue.waiting.clear();
                queue.pairs = 0;
            }
        }
    }
}

/// Result of a lookup of a member.
#[derive(Clone, Debug)]
pub struct SoughtMember {
    /// The row.
    pub row: MemberRow,
    /// Bytes of texts and ids.
    pub bytes: usize,
    /// False if there was no room for the texts. They are absent then.
    pub has_texts: bool,
}

impl SoughtMember {
    /// Frees the memory of texts and ids.
    pub fn forget_texts(&mut self) {
        self.row.forget_texts();
        self.has_texts = false;
    }
}

impl Store {
    /// Looks up pairs, together with other lookups of the same moment.
    async fn look_up(&self, pairs: Arc<[Pair]>) -> Result<Vec<Option<MemberRow>>, Error> {
        if pairs.is_empty() {
            return Ok(vec![]);
        }
        let deadline = Instant::now() + self.timeout;
        let (answer, answered) = oneshot::channel();
        let starts = {
            let mut queue = self.lookups.queue();
            queue.pairs += pairs.len();
            queue.waiting.push(Lookup {
                pairs,
                deadline,
                answer,
            });
            let starts = queue.needs_task();
            queue.tasks += usize::from(starts);
            starts
        };
        if starts {
            let store = self.clone();
            tokio::spawn(async move { store.answer_lookups().await });
        }
        // This ends after one and a half timeouts, because the task has a limit. A timer for each lookup would cost
        // more than the lookup. There is no answer if the task panicked.
        answered.await.unwrap_or_else(|_| Err(Error::gave_up()))
    }

    async fn answer_lookups(&self) {
        let mut task = LookupTask {
            lookups: &self.lookups,
            looks_up: 0,
            is_over: false,
        };
        while let Some(lookups) = task.next() {
            let now = Instant::now();
            let (lookups, late): (Vec<_>, Vec<_>) = lookups
                .into_iter()
                .partition(|lookup| lookup.deadline > now);
            for lookup in late {
                let _ = lookup.answer.send(Err(Error::gave_up()));
            }
            let deadlines = lookups.iter().map(|lookup| lookup.deadline);
            let (Some(first), Some(last)) = (deadlines.clone().min(), deadlines.max()) else {
                continue;
            };
            // The last lookup has its full time, unless the first would wait too long.
            let deadline = last.min(first + self.timeout / 2);
            let pairs: Vec<&Pair> = lookups.iter().flat_map(|lookup| &*lookup.pairs).collect();
            let found = self
                .pool
                .run(Kind::Read, deadline, async |connection| match pairs[..] {
                    // A single row needs less time without arrays.
                    [(group, user)] => Ok(vec![member(connection, group, user).await?]),
                    _ => memberships(connection, &pairs).await,
                });
            let mut found = found.await.map(Vec::into_iter);
            for Lookup { pairs, answer, .. } in lookups {
                let answers = match &mut found {
                    Ok(members) => Ok(members.by_ref().take(pairs.len()).collect()),
                    Err(error) => Err(error.clone()),
                };
                // The caller may have gone.
                let _ = answer.send(answers);
            }
        }
    }

    /// Looks up the current member of each pair, in the order of the pairs. A member has its texts if they have at most
    /// [`SHORT_ROW`] bytes.
    pub async fn memberships(
        &self,
        pairs: Arc<[(GroupId, UserId)]>,
    ) -> Result<Vec<Option<SoughtMember>>, Error> {
        let mut found = self.look_up(Arc::clone(&pairs)).await?;
        let marked: Vec<usize> = (0..found.len())
            .filter(|at| found[*at].as_ref().is_some_and(is_marked))
            .collect();
        let asked: Vec<_> = marked.iter().map(|at| (&pairs[*at], SHORT_ROW)).collect();
        // These rows are read again. Free the memory first.
        for at in &marked {
            found[*at] = None;
        }
        let sized = self.long_members(&asked).await?;
        let whole = |row: MemberRow| SoughtMember {
            bytes: row.bytes(),
            row,
            has_texts: true,
        };
        let mut sought: Vec<_> = found.into_iter().map(|row| row.map(whole)).collect();
        for (at, member) in marked.into_iter().zip(sized) {
            sought[at] = member;
        }
        Ok(sought)
    }

    /// Looks up members whose texts may be long. Each has a number of bytes that is allowed for its texts.
    pub async fn long_members(
        &self,
        pairs: &[(&(GroupId, UserId), usize)],
    ) -> Result<Vec<Option<SoughtMember>>, Error> {
        if pairs.is_empty() {
            return Ok(vec![]);
        }
        let groups: Vec<&str> = pairs.iter().map(|((group, _), _)| group.as_str()).collect();
        let users: Vec<&str> = pairs.iter().map(|((_, user), _)| user.as_str()).collect();
        let allowed: Vec<i64> = pairs.iter().map(|(_, bytes)| count(*bytes)).collect();
        let found = self
            .read(async |connection| {
                sqlx::query(MEMBERSHIPS_SIZED)
                    .bind(&groups)
                    .bind(&users)
                    .bind(&allowed)
                    .try_map(|row: PgRow| {
                        let mut columns = Columns::of(&row);
                        let member = MemberRow::read(&mut columns)?;
                        let bytes: i64 = columns.take()?;
                        Ok((columns.take()?, bytes, member))
                    })
                    .fetch_all(connection)
                    .await
            })
            .await?;
        let found = found.into_iter().map(|(place, bytes, row)| {
            let allowed = at(place).and_then(|at| allowed.get(at));
            let member = SoughtMember {
                row,
                bytes: usize::try_from(bytes).unwrap_or(0),
                has_texts: allowed.is_some_and(|allowed| bytes <= *allowed),
            };
            (place, member)
        });
        Ok(in_places(found, pairs.len()))
    }
}

/// Converts a place, which counts from 1, to an index.
fn at(place: i64) -> Option<usize> {
    usize::try_from(place - 1).ok()
}

/// Puts each value at its place, of `count` places.
fn in_places<T: Clone>(found: impl Iterator<Item = (i64, T)>, count: usize) -> Vec<Option<T>> {
    let mut all = vec![None; count];
    for (place, one) in found {
        if let Some(slot) = at(place).and_then(|at| all.get_mut(at)) {
            *slot = Some(one);
        }
    }
    all
}

async fn member(
    connection: &mut PgConnection,
    group: &GroupId,
    user: &UserId,
) -> Result<Option<MemberRow>, sqlx::Error> {
    sqlx::query(MEMBER)
        .bind(group.as_str())
        .bind(user.as_str())
        .try_map(|row: PgRow| MemberRow::read(&mut Columns::of(&row)))
        .fetch_optional(connection)
        .await
}

async fn memberships(
    connection: &mut PgConnection,
    pairs: &[&(GroupId, UserId)],
) -> Result<Vec<Option<MemberRow>>, sqlx::Error> {
    let (groups, users): (Vec<&str>, Vec<&str>) = pairs
        .iter()
        .map(|(group, user)| (group.as_str(), user.as_str()))
        .unzip();
    let found = sqlx::query(MEMBERSHIPS)
        .bind(groups)
        .bind(users)
        .try_map(|row: PgRow| {
            let mut columns = Columns::of(&row);
            let member = MemberRow::read(&mut columns)?;
            Ok((columns.take()?, member))
        })
        .fetch_all(connection)
        .await?;
    Ok(in_places(found.into_iter(), pairs.len()))
}
