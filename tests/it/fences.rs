//! Writes that were given up on: what they do without the fence, and that they do nothing with it.

use std::time::Duration;

use openim_group_mirror::domain::{Change, Event, GroupId, MemberPatch, Text, UserId};
use openim_group_mirror::store::{Database, Drainer, Store, Writer};
use serde_json::json;
use sqlx::Executor;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::support::{TestDb, Wire, until};

/// The number of the spool in these tests.
const SPOOL: i64 = 7263;
const LANE: i16 = 1;
/// Time limit of a write that does not end.
const SHORT: Duration = Duration::from_millis(300);
const BOUND: Duration = Duration::from_secs(20);

fn within(time: Duration) -> Instant {
    Instant::now() + time
}

fn user(id: &str) -> UserId {
    UserId::parse(id.into()).unwrap()
}

fn change(event: Event) -> Change {
    let group = GroupId::parse("g".into()).unwrap();
    Change::new(group, OffsetDateTime::now_utc(), event)
}

fn nickname(nickname: &str) -> Change {
    change(Event::SetMember(MemberPatch {
        nickname: Some(Text::parse(nickname.into())),
        ..MemberPatch::new(user("u"))
    }))
}

fn transfer(old: &str, new: &str) -> Change {
    change(Event::Transfer {
        old_owner: user(old),
        new_owner: user(new),
    })
}

/// A database, and a lane's connection to it through a wire, which was used already.
struct Broken {
    db: TestDb,
    wire: Wire,
    /// Past the wire.
    store: Store,
    writer: Writer,
}

impl Broken {
    async fn new(of_spool: Option<(i64, i16)>) -> Broken {
        let db = TestDb::new().await;
        let wire = Wire::before(&db.url).await;
        let bound = Duration::from_secs(60);
        // What is given up on is not ended by Postgres itself.
        let open = |url: &str| {
            Database::new(url, "public", 4, bound, bound)
                .unwrap()
                .store()
        };
        let (store, of_wire) = (open(&db.url), open(&wire.url));
        let mut writer = of_wire.writer(of_spool);
        let first = [nickname("first"), nickname("first")];
        for change in &first {
            writer.write(&[change], within(BOUND)).await.unwrap();
        }
        Broken {
            db,
            wire,
            store,
            writer,
        }
    }

    async fn write(&self, change: &Change) {
        let mut writer = self.store.writer(None);
        writer.write(&[change], within(BOUND)).await.unwrap();
        writer.close().await;
    }

    async fn drainer(&self) -> Drainer {
        let mut drainer = self.store.drainer(SPOOL);
        drainer.begin(within(BOUND)).await.unwrap();
        drainer
    }

    async fn nickname(&self) -> String {
        let rows = self.db.rows("select nickname from group_members").await;
        rows[0]["nickname"].as_str().unwrap().to_owned()
    }

    /// Once so many sessions beside the test's own are left.
    async fn left(&self, sessions: usize) {
        let others = "select 1 as n from pg_stat_activity where datname = current_database()
                         and application_name = 'openim-group-mirror'";
        until("the sessions end", async || {
            self.db.rows(others).await.len() == sessions
        })
        .await;
    }
}

/// Without the fence: Postgres gets the old statement after the new one.
#[tokio::test]
async fn a_write_that_was_given_up_on_undoes_a_newer_one_where_nothing_stops_it() {
    let mut broken = Broken::new(None).await;
    broken.wire.hold();
    let given_up = broken
        .writer
        .write(&[&nickname("old")], within(SHORT))
        .await;
    assert!(given_up.is_err());
    broken.write(&nickname("new")).await;
    broken.wire.heal();
    broken.left(0).await;
    assert_eq!(broken.nickname().await, "old");
}

#[tokio::test]
async fn a_write_that_was_given_up_on_is_over_before_anything_newer_is_written() {
    let mut broken = Broken::new(Some((SPOOL, LANE))).await;
    broken.wire.hold();
    let given_up = broken
        .writer
        .write(&[&nickname("old")], within(SHORT))
        .await;
    assert!(given_up.is_err());
    let mut drainer = broken.drainer().await;
    let new = nickname("new");
    drainer.write(&[&new], &[], 1, within(BOUND)).await.unwrap();
    drainer.close().await;
    broken.wire.heal();
    broken.left(0).await;
    assert_eq!(broken.nickname().await, "new");
}

/// A session that Postgres is still at work in, as on a disk that does not answer.
#[tokio::test]
async fn a_session_that_waits_for_a_lock_is_ended_and_waited_for() {
    let mut broken = Broken::new(Some((SPOOL, LANE))).await;
    let holder = broken.db.hold_members().await;
    let given_up = broken
        .writer
        .write(&[&nickname("old")], within(SHORT))
        .await;
    assert!(given_up.is_err());
    let mut drainer = broken.drainer().await;
    holder.rollback().await.unwrap();
    let new = nickname("new");
    drainer.write(&[&new], &[], 1, within(BOUND)).await.unwrap();
    assert_eq!(broken.nickname().await, "new");
    drainer.close().await;
}

/// Lanes have their shares side by side, and whoever drains waits for all of them.
#[tokio::test]
async fn lanes_write_side_by_side_and_the_drain_alone() {
    let broken = Broken::new(Some((SPOOL, LANE))).await;
    let mut second = broken.store.writer(Some((SPOOL, LANE + 1)));
    second
        .write(&[&nickname("second")], within(BOUND))
        .await
        .unwrap();
    let mut drainer = broken.drainer().await;
    broken.left(1).await;
    // While it has the lock, no lane gets a share.
    let mut third = broken.store.writer(Some((SPOOL, LANE)));
    let kept_out = third.write(&[&nickname("third")], within(SHORT)).await;
    let failed = kept_out.unwrap_err();
    assert_eq!(failed.attempt, None, "{failed}");
    drainer.close().await;
    third
        .write(&[&nickname("third")], within(BOUND))
        .await
        .unwrap();
    assert_eq!(broken.nickname().await, "third");
    third.close().await;
}

/// A transfer that was given up on while Postgres was committing it: written again, it contradicts
/// what it has done itself.
#[tokio::test]
async fn a_transfer_that_is_in_is_known_by_its_position_and_not_written_again() {
    for is_asked in [true, false] {
        let mut broken = Broken::new(Some((SPOOL, LANE))).await;
        // A commit that waits for the test.
        let prepare = [
            "insert into group_members (group_id, user_id, role_level, created_at, updated_at)
             values ('g', 'a', 100, now(), now()), ('g', 'b', 20, now(), now())",
            "update groups set owner_user_id = 'a', check_reason = null,
                    check_wanted_since = null, check_marked_at = null",
            "create function wait() returns trigger language plpgsql as
             'begin perform pg_advisory_xact_lock(1); return null; end'",
            "create constraint trigger wait after update on group_members
             deferrable initially deferred for each row execute function wait()",
        ];
        for statement in prepare {
            broken.db.execute(statement).await;
        }
        let mut holder = broken.db.pool.begin().await.unwrap();
        holder
            .execute("select pg_advisory_xact_lock(1)")
            .await
            .unwrap();
        let change = transfer("a", "b");
        let failed = broken.writer.write(&[&change], within(SHORT)).await;
        let attempt = failed.unwrap_err().attempt.unwrap();
        holder.rollback().await.unwrap();
        let owner = "select 1 as n from group_members where user_id = 'b' and role_level = 100";
        until("it is committed", async || {
            broken.db.rows(owner).await.len() == 1
        })
        .await;
        let mut drainer = broken.drainer().await;
        assert!(drainer.is_committed(LANE, attempt));
        assert!(!drainer.is_committed(LANE, attempt + 1));
        assert!(!drainer.is_committed(LANE + 1, attempt));
        if !is_asked {
            drainer
                .write(&[&change], &[], 1, within(BOUND))
                .await
                .unwrap();
        }
        let check = broken.db.rows("select check_reason from groups").await;
        let expected = if is_asked {
            json!(null)
        } else {
            json!("owner_mismatch")
        };
        assert_eq!(check[0]["check_reason"], expected);
        drainer.close().await;
    }
}

#[tokio::test]
async fn an_attempt_that_was_rolled_back_is_not_taken_for_one_that_is_in() {
    let mut broken = Broken::new(Some((SPOOL, LANE))).await;
    let holder = broken.db.hold_members().await;
    let change = transfer("u", "v");
    let failed = broken.writer.write(&[&change], within(SHORT)).await;
    let attempt = failed.unwrap_err().attempt.unwrap();
    let drainer = broken.drainer().await;
    assert!(!drainer.is_committed(LANE, attempt));
    // The first that was not patches alone.
    assert!(drainer.is_committed(LANE, 1));
    drop(holder);
}

/// A drained batch whose answer got lost.
#[tokio::test]
async fn what_the_drain_has_written_is_told_by_its_position() {
    let broken = Broken::new(Some((SPOOL, LANE))).await;
    let mut drainer = broken.drainer().await;
    assert_eq!(drainer.position(), 0);
    let entries = [nickname("one"), nickname("two")];
    let changes: Vec<&Change> = entries.iter().collect();
    drainer
        .write(&changes, &[], 42, within(BOUND))
        .await
        .unwrap();
    drainer.close().await;
    let mut drainer = broken.drainer().await;
    assert_eq!(drainer.position(), 42);
    drainer.close().await;
    // Another spool has its own.
    let mut other = broken.store.drainer(SPOOL + 1);
    other.begin(within(BOUND)).await.unwrap();
    assert_eq!(other.position(), 0);
    other.close().await;
}
