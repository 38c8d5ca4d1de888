//! A callback that comes while its group is being compared, at each step of it, here and in another
//! replica, is never undone.

use std::time::Duration;

use openim_group_mirror::domain::{GroupId, MarkReason};
use openim_group_mirror::reconcile::{Mode, ReconcileSettings};
use serde_json::json;
use sqlx::{Executor, Postgres, Transaction};

use crate::support::{Callback, Creation, Operation, Pair, Values, ingest, settings, until};

const GROUP: &str = "g";
const LIST: &str = "/group/get_group_member_list";
const CHANGES: &str = "/group/get_incremental_group_members";

/// A number that the mirror does not use for a lock of its own.
const GATE: i64 = 990_001;

/// Whose lanes write the callback.
#[derive(Clone, Copy, Debug)]
enum Who {
    This,
    Another,
}

const BOTH: [Who; 2] = [Who::This, Who::Another];

/// A change that comes meanwhile.
#[derive(Clone, Copy, Debug)]
enum What {
    Nickname,
    Leave,
    Join,
    Profile,
}

const ALL: [What; 4] = [What::Nickname, What::Leave, What::Join, What::Profile];

impl What {
    fn operation(self) -> Operation {
        match self {
            Self::Nickname => set("u1", "nickName", "newest"),
            Self::Leave => Operation::Quit("u1".into()),
            Self::Join => Operation::Join("newcomer".into()),
            Self::Profile => Operation::SetProfileEx([("introduction", json!("newest"))].into()),
        }
    }

    /// True if it is still there, in spite of other writes.
    async fn assert_not_undone(self, pair: &Pair, context: &str) {
        let intro = "select introduction from groups";
        let (value, expected) = match self {
            Self::Nickname => (
                pair.member(GROUP, "u1").await.unwrap()["nickname"].clone(),
                json!("newest"),
            ),
            Self::Leave => (
                pair.member(GROUP, "u1").await.unwrap()["is_gone"].clone(),
                json!(true),
            ),
            Self::Join => {
                let newcomer = pair.member(GROUP, "newcomer").await;
                (newcomer.unwrap()["is_gone"].clone(), json!(false))
            }
            Self::Profile => (
                pair.db.rows(intro).await[0]["introduction"].clone(),
                json!("newest"),
            ),
        };
        assert_eq!(value, expected, "{self:?}, {context}");
    }
}

fn set(user: &str, name: &'static str, value: &str) -> Operation {
    let values: Values = [(name, json!(value))].into();
    Operation::SetMember(user.into(), values)
}

/// A group that is known, and in which nearly everything has changed unheard since.
async fn drifted() -> Pair {
    let pair = Pair::new().await;
    let creation = Creation::open("Kayaks", "boss", &["gate", "u1", "u2"]);
    pair.act_and_tell(GROUP, &Operation::Create(creation)).await;
    pair.cycle().await;
    for (user, name) in [("gate", "older"), ("u1", "older"), ("u2", "older")] {
        pair.act(GROUP, &set(user, "nickName", name));
        pair.act(GROUP, &set(user, "ex", name));
    }
    pair.act(
        GROUP,
        &Operation::SetProfileEx([("introduction", json!("older"))].into()),
    );
    pair.act(GROUP, &Operation::Invite("invited".into()));
    pair
}

/// Tells it, and waits until it is answered.
async fn tell(pair: &Pair, who: Who, callbacks: &[Callback]) {
    let other = ingest(&pair.store);
    let ingest = match who {
        Who::This => &pair.ingest,
        Who::Another => &other,
    };
    for callback in callbacks {
        let now = time::OffsetDateTime::now_utc();
        crate::support::tell(ingest, callback, now).await;
    }
    other.close().await;
}

async fn assert_equal_in_the_end(pair: &Pair, what: What, context: &str) {
    what.assert_not_undone(pair, context).await;
    pair.cycle().await;
    what.assert_not_undone(pair, context).await;
    let differences = pair.differences().await;
    assert!(
        differences.is_empty(),
        "{what:?}, {context}: {differences:#?}"
    );
    assert_eq!(pair.check(GROUP).await, None, "{what:?}, {context}");
}

async fn comes_at(what: What, who: Who, path: &'static str, nth: usize, before: bool) {
    let context = format!("{who:?}, call {nth} of {path}, before its answer: {before}");
    let pair = drifted().await;
    // So many calls of the path pass before the one that is held.
    let mut passed = Vec::new();
    for _ in 0..nth {
        passed.push(pair.server.hold(path));
    }
    let compared = pair.compare(&[GROUP], Mode::default());
    let act = async {
        for mut held in passed {
            held.reached().await;
            held.release();
        }
        // It is one that comes after those.
        let mut held = match before {
            true => pair.server.hold(path),
            false => pair.server.hold_answer(path),
        };
        held.reached().await;
        let callbacks = pair.act(GROUP, &what.operation());
        tell(&pair, who, &callbacks).await;
        what.assert_not_undone(&pair, &context).await;
        held.release();
    };
    let (compared, ()) = tokio::join!(compared, act);
    compared.unwrap();
    assert_equal_in_the_end(&pair, what, &context).await;
    pair.close().await;
}

#[tokio::test]
async fn a_callback_that_comes_before_or_after_any_answer_is_not_undone() {
    for what in ALL {
        for who in BOTH {
            // The version; the only page; the version again.
            for (path, nth) in [(CHANGES, 0), (LIST, 0), (CHANGES, 1)] {
                for before in [true, false] {
                    comes_at(what, who, path, nth, before).await;
                }
            }
        }
    }
}

/// Fault: the fence was the database's clock, and one that was set back let a comparison undo what had
/// come after OpenIM was asked.
#[tokio::test]
async fn a_clock_that_is_set_back_lets_no_comparison_undo_a_callback() {
    for what in ALL {
        let pair = drifted().await;
        let set_back = ["groups", "group_members"].map(|table| {
            format!(
                "create trigger set_back before insert or update on {table} for each row
                 when (new.last_callback_at is not null) execute function set_back();"
            )
        });
        pair.db
            .execute(&format!(
                "create function set_back() returns trigger language plpgsql as
                 'begin new.last_callback_at := now() - interval ''1 hour''; return new; end';
                 {}",
                set_back.concat()
            ))
            .await;
        let mut held = pair.server.hold_answer(LIST);
        let compared = pair.compare(&[GROUP], Mode::default());
        let act = async {
            held.reached().await;
            let callbacks = pair.act(GROUP, &what.operation());
            tell(&pair, Who::This, &callbacks).await;
            held.release();
        };
        let (compared, ()) = tokio::join!(compared, act);
        compared.unwrap();
        assert_equal_in_the_end(&pair, what, "the clock was set back").await;
        pair.close().await;
    }
}

/// A dump that is loaded on another server has numbers of transactions that are still to come there.
#[tokio::test]
async fn after_a_dump_was_loaded_elsewhere_what_differs_is_repaired() {
    let pair = drifted().await;
    pair.cycle().await;
    pair.db
        .execute(
            "update group_members set last_callback_xid = 1000000000000, ex = 'of the dump';
             update groups set last_callback_xid = 1000000000000, introduction = 'of the dump';
             update transaction_origin set system_identifier = 1",
        )
        .await;
    pair.db.database().migrate().await.unwrap();
    let result = pair.cycle().await;
    assert_eq!(result.groups_compared, 1);
    pair.assert_equal().await;
    assert_eq!(pair.check(GROUP).await, None);
    // Once is enough.
    pair.db.database().migrate().await.unwrap();
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

/// OpenIM's main told the version of a mute with the row of before: it drops a row from its caches after
/// the version has moved.
#[tokio::test]
async fn a_row_that_is_older_than_the_version_it_comes_with_is_asked_for_once_more() {
    let pair = Pair::with(ReconcileSettings {
        settling: Duration::from_millis(200),
        ..settings()
    })
    .await;
    let creation = Creation::open("Kayaks", "boss", &["u1", "u2"]);
    pair.act_and_tell(GROUP, &Operation::Create(creation)).await;
    pair.cycle().await;
    let muted_until = 1_760_000_999_000;
    let mut is_first = true;
    pair.server.on_call(move |path, _, openim| {
        if path.contains("get_incremental_group_members") && is_first {
            is_first = false;
            let mute = Operation::MuteMember("u1".into(), muted_until);
            openim.apply(GROUP, &mute).unwrap();
            let group = openim.groups.get_mut(GROUP).unwrap();
            group.members.get_mut("u1").unwrap().mute_end_millis = 0;
        }
    });
    pair.cycle().await;
    {
        let mut openim = pair.openim();
        let group = openim.groups.get_mut(GROUP).unwrap();
        group.members.get_mut("u1").unwrap().mute_end_millis = muted_until;
    }
    assert_eq!(pair.member(GROUP, "u1").await.unwrap()["is_muted"], false);
    until("it is seen", async || {
        pair.cycle().await;
        pair.differences().await.is_empty()
    })
    .await;
    until("nothing is asked any more", async || {
        pair.cycle().await.groups_compared == 0
    })
    .await;
    pair.close().await;
}

/// A callback whose transaction goes on over two comparisons is found by the one after it.
#[tokio::test]
async fn a_callback_that_is_committed_late_is_found_and_nothing_else_is_read_twice() {
    let pair = drifted().await;
    pair.cycle().await;
    let mut open = pair.db.pool.begin().await.unwrap();
    // As the service writes a callback that was overtaken by the next one.
    open.execute(
        "update group_members set ex = 'overtaken', last_callback_at = now(),
                last_callback_xid = pg_current_xact_id()::text::bigint
          where group_id = 'g' and user_id = 'u2'",
    )
    .await
    .unwrap();
    pair.act_and_tell(GROUP, &set("u1", "ex", "newest")).await;
    pair.store.note_touched().await.unwrap();
    // As `reconcile` does it beside a service: a process that has noted nothing.
    let first = pair.again().await;
    assert_eq!(first.cycle().await.groups_compared, 1);
    let second = pair.again().await;
    pair.server.reset_calls();
    assert_eq!(second.cycle().await.groups_compared, 0);
    assert_eq!(pair.server.calls().get(LIST), None);
    open.commit().await.unwrap();
    assert_eq!(pair.member(GROUP, "u2").await.unwrap()["ex"], "overtaken");
    let third = pair.again().await;
    third.cycle().await;
    pair.assert_equal().await;
    for other in [first, second, third] {
        other.close().await;
    }
    pair.close().await;
}

/// A callback in a large group does not make the run read all of it.
#[tokio::test]
async fn what_a_callback_has_named_is_asked_for_by_its_id() {
    let pair = drifted().await;
    pair.cycle().await;
    // The mirror hears it late, so no version tells of it.
    let late = pair.act(GROUP, &set("u1", "ex", "late"));
    pair.act(GROUP, &set("u1", "ex", "last"));
    pair.cycle().await;
    pair.tell(&late[0]).await;
    pair.server.reset_calls();
    pair.cycle().await;
    let calls = pair.server.calls();
    assert_eq!(calls.get(LIST), None, "{calls:?}");
    assert_eq!(calls["/group/get_group_members_info"], 1, "{calls:?}");
    pair.assert_equal().await;
    pair.server.reset_calls();
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

/// Holds up whoever writes the row of one user, with all that was locked before.
async fn close_gate_of(pair: &Pair, user: &str) -> Transaction<'static, Postgres> {
    pair.db
        .execute(&format!(
            "create or replace function gate() returns trigger language plpgsql as
             'begin perform pg_advisory_xact_lock({GATE}); return new; end';
             create or replace trigger gate before insert or update on group_members
             for each row when (new.user_id = '{user}') execute function gate()"
        ))
        .await;
    let mut gate = pair.db.pool.begin().await.unwrap();
    gate.execute(sqlx::AssertSqlSafe(format!(
        "select pg_advisory_xact_lock({GATE})"
    )))
    .await
    .unwrap();
    gate
}

async fn close_gate(pair: &Pair) -> Transaction<'static, Postgres> {
    close_gate_of(pair, "gate").await
}

async fn waiters(pair: &Pair, event: &str) -> u64 {
    let sql = format!(
        "select count(*) as n from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock' and wait_event {event}"
    );
    pair.db.rows(&sql).await[0]["n"].as_u64().unwrap()
}

#[tokio::test]
async fn a_callback_that_comes_while_the_rows_are_written_is_not_undone() {
    for what in ALL {
        for who in BOTH {
            let pair = drifted().await;
            let gate = close_gate(&pair).await;
            let compared = pair.compare(&[GROUP], Mode::default());
            let act = async {
                until("the repair is at the gate", async || {
                    waiters(&pair, "= 'advisory'").await == 1
                })
                .await;
                let callbacks = pair.act(GROUP, &what.operation());
                // It waits for the repair; one after it is none that could be undone.
                let told = tell(&pair, who, &callbacks);
                let release = async {
                    if matches!(who, Who::Another) {
                        until("the callback waits", async || {
                            waiters(&pair, "<> 'advisory'").await == 1
                        })
                        .await;
                    }
                    gate.rollback().await.unwrap();
                };
                tokio::join!(told, release);
            };
            let (compared, ()) = tokio::join!(compared, act);
            compared.unwrap();
            let context = format!("{who:?}, in the midst of the write");
            assert_equal_in_the_end(&pair, what, &context).await;
            pair.close().await;
        }
    }
}

/// After the rows were compared, and before any is locked: the transaction has to look once more.
#[tokio::test]
async fn a_callback_that_comes_between_the_comparison_and_the_write_is_not_undone() {
    // Others lock the group's row, which is held here.
    let what = What::Nickname;
    let pair = drifted().await;
    let mut holder = pair.db.pool.begin().await.unwrap();
    holder
        .execute("select from groups for update")
        .await
        .unwrap();
    let compared = pair.compare(&[GROUP], Mode::default());
    let act = async {
        until("the repair waits for the group", async || {
            waiters(&pair, "<> 'advisory'").await == 1
        })
        .await;
        let callbacks = pair.act(GROUP, &what.operation());
        tell(&pair, Who::Another, &callbacks).await;
        holder.rollback().await.unwrap();
    };
    let (compared, ()) = tokio::join!(compared, act);
    let result = compared.unwrap();
    // The row is left, the others are repaired, and the group is to be looked at again.
    let repaired = (
        result.members_added,
        result.members_changed,
        result.groups_changed,
    );
    assert_eq!((repaired, result.repairs()), ((1, 2, 1), 4), "{result:?}");
    assert_eq!(
        pair.check(GROUP).await.as_deref(),
        Some("callback_meanwhile")
    );
    let two = pair.member(GROUP, "u2").await.unwrap();
    assert_eq!(two["ex"], "older");
    let one = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(
        (&one["nickname"], &one["ex"]),
        (&json!("newest"), &json!(""))
    );
    assert_equal_in_the_end(&pair, what, "between comparison and write").await;
    pair.close().await;
}

/// A group of several batches: the callback comes after the first of them.
#[tokio::test]
async fn a_callback_that_comes_between_two_batches_of_a_group_is_not_undone() {
    for who in BOTH {
        let pair = Pair::new().await;
        let members: Vec<String> = (0..2500).map(|n| format!("u{n:04}")).collect();
        let mut names: Vec<&str> = members.iter().map(String::as_str).collect();
        names.extend(["gate", "u1"]);
        let creation = Creation::open("Kayaks", "boss", &names);
        pair.act(GROUP, &Operation::Create(creation));
        let gate = close_gate(&pair).await;
        let compared = pair.compare(&[GROUP], Mode::default());
        let act = async {
            until("a batch is at the gate", async || {
                waiters(&pair, "= 'advisory'").await == 1
            })
            .await;
            let leave = Operation::Kick(members[..50].to_vec());
            let callbacks = pair.act(GROUP, &leave);
            let told = tell(&pair, who, &callbacks);
            let release = async { gate.rollback().await.unwrap() };
            tokio::join!(told, release);
        };
        let (compared, ()) = tokio::join!(compared, act);
        compared.unwrap();
        let gone = "select count(*) as n from group_members where left_at is not null";
        assert_eq!(pair.db.rows(gone).await[0]["n"], 50, "{who:?}");
        pair.cycle().await;
        pair.assert_equal().await;
        pair.close().await;
    }
}

/// Two replicas compare the same group: the answers of the one that asked first change nothing any
/// more once the other has asked.
#[tokio::test]
async fn an_older_comparison_does_not_undo_a_newer_one() {
    let older = drifted().await;
    let mut held = older.server.hold_answer(CHANGES);
    let compared = older.compare(&[GROUP], Mode::default());
    let newer = async {
        // The second version of the first comparison is on its way: all was read.
        held.reached().await;
        held.release();
        let mut held = older.server.hold_answer(CHANGES);
        held.reached().await;
        older.act(GROUP, &set("u1", "ex", "newest"));
        older.act(GROUP, &Operation::Kick(vec!["u2".into()]));
        let other = older.again().await;
        other.compare(&[GROUP], Mode::default()).await.unwrap();
        other.assert_equal().await;
        held.release();
        other
    };
    let (compared, other) = tokio::join!(compared, newer);
    // What differed by older answers was repaired by nobody.
    let result = compared.unwrap();
    assert_eq!((result.groups_compared, result.repairs()), (1, 0));
    other.assert_equal().await;
    // The first cycle of a process looks at what another may have left.
    other.cycle().await;
    assert_eq!(other.cycle().await.groups_compared, 0);
    other.close().await;
    older.close().await;
}

/// The mark that came while the group was read stays, also where no row differs.
#[tokio::test]
async fn a_mark_that_comes_meanwhile_is_not_taken_away() {
    let pair = drifted().await;
    pair.cycle().await;
    let mark = MarkReason::JoinAnnounced;
    let group = || GroupId::parse(GROUP.into()).unwrap();
    // One that was there before goes.
    pair.ingest.mark_unwaited(group(), mark);
    pair.until_check(GROUP, mark.code()).await;
    pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!(pair.check(GROUP).await, None);
    let mut held = pair.server.hold_answer(LIST);
    let compared = pair.compare(&[GROUP], Mode::default());
    let act = async {
        held.reached().await;
        pair.ingest.mark_unwaited(group(), mark);
        pair.until_check(GROUP, mark.code()).await;
        held.release();
    };
    let (compared, ()) = tokio::join!(compared, act);
    compared.unwrap();
    assert_eq!(pair.check(GROUP).await.as_deref(), Some(mark.code()));
    pair.cycle().await;
    assert_eq!(pair.check(GROUP).await, None);
    pair.assert_equal().await;
    pair.close().await;
}

/// An announcement just before the question to OpenIM may be followed by its change just after it.
#[tokio::test]
async fn a_mark_that_came_a_moment_before_is_not_taken_away() {
    let pair = Pair::with(ReconcileSettings {
        delay: Duration::from_secs(60),
        ..settings()
    })
    .await;
    let creation = Creation::open("Kayaks", "boss", &["u1"]);
    pair.act_and_tell(GROUP, &Operation::Create(creation)).await;
    let mark = MarkReason::JoinAnnounced;
    let group = GroupId::parse(GROUP.into()).unwrap();
    pair.ingest.mark_unwaited(group, mark);
    pair.until_check(GROUP, mark.code()).await;
    pair.cycle().await;
    assert_eq!(pair.check(GROUP).await.as_deref(), Some(mark.code()));
    let long_ago = "update groups set check_marked_at = now() - interval '61 seconds'";
    pair.db.execute(long_ago).await;
    pair.cycle().await;
    assert_eq!(pair.check(GROUP).await, None);
    pair.close().await;
}

/// A late callback that was written before OpenIM was asked what has changed, and noted after: the
/// version must not be kept for it.
#[tokio::test]
async fn a_late_callback_is_found_though_it_was_noted_while_a_change_was_taken() {
    let pair = drifted().await;
    pair.cycle().await;
    let late = pair.act(GROUP, &set("u1", "ex", "late"));
    pair.act(GROUP, &set("u1", "ex", "last"));
    pair.cycle().await;
    // In silence, so that there is something to take.
    pair.act(GROUP, &Operation::Invite("another".into()));
    let other = pair.again().await;
    other.cycle().await;
    pair.act(GROUP, &Operation::Invite("one more".into()));
    let gate = close_gate_of(&pair, "one more").await;
    // Its process has not noted it when the other one begins.
    pair.tell(&late[0]).await;
    let compared = other.compare(&[], Mode::default());
    let act = async {
        until("the repair is at the gate", async || {
            waiters(&pair, "= 'advisory'").await == 1
        })
        .await;
        pair.store.note_touched().await.unwrap();
        gate.rollback().await.unwrap();
    };
    let (compared, ()) = tokio::join!(compared, act);
    compared.unwrap();
    other.cycle().await;
    other.assert_equal().await;
    other.close().await;
    pair.close().await;
}

/// A dead process leaves a comparison in the midst: the group is read again.
#[tokio::test]
async fn a_comparison_that_was_not_finished_is_done_again() {
    let pair = drifted().await;
    let mut held = pair.server.hold(LIST);
    let interrupted = pair.compare(&[GROUP], Mode::default());
    let act = async {
        held.reached().await;
    };
    // Dropped where it is.
    tokio::select! {
        _ = interrupted => panic!("it was held"),
        () = act => {}
    }
    drop(held);
    pair.cycle().await;
    pair.assert_equal().await;
    pair.close().await;
}

/// Repairs wait in no spool: what they were made of is out of date when it is drained.
#[tokio::test]
async fn nothing_is_repaired_while_callbacks_wait_in_the_spool() {
    let pair = drifted().await;
    let pair = pair.with_spool().await;
    let holder = pair.db.hold_members().await;
    let callbacks = pair.act(GROUP, &What::Nickname.operation());
    // Its row is locked, so it goes to the spool in the end.
    let spooled = tell(&pair, Who::This, &callbacks);
    let compared = async {
        // It waits for the same rows, and is not spooled.
        let left = pair.compare(&[GROUP], Mode::default()).await;
        assert_eq!(left.unwrap().groups_left, 1);
    };
    tokio::join!(spooled, compared);
    assert_eq!(pair.ingest.spool().unwrap().waiting, 1);
    let failed = pair.compare(&[GROUP], Mode::default()).await.unwrap_err();
    assert_eq!(failed.code(), "spooling");
    holder.rollback().await.unwrap();
    until("the spool is drained", async || {
        !pair.ingest.spool().unwrap().is_diverting
    })
    .await;
    assert_equal_in_the_end(&pair, What::Nickname, "out of the spool").await;
    pair.close().await;
}
