//! The way of a change through the lanes: folded, batched, retried, and the same as one by one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use openim_group_mirror::domain::{
    Change, Creation, Event, Group, GroupId, GroupProfile, GroupRows, LATE_CALLBACK_TIMEOUT,
    MarkReason, Member, MemberPatch, Text, UserId, Users, apply, to_micros,
};
use openim_group_mirror::ingest::{Ingest, Retention, Spool};
use openim_group_mirror::store::{Database, Store};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::{Value, json};
use sqlx::Executor;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::support::{TestApp, TestDb, member_info, run, until};

/// Statements that wait for a lock, of the database that the test is in.
const LOCKED: &str = "select pid from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'";

fn change(group: &str, patch: MemberPatch) -> Change {
    let group = GroupId::parse(group.into()).unwrap();
    Change::new(group, OffsetDateTime::now_utc(), Event::SetMember(patch))
}

fn set_nickname(group: &str, user: &str, nickname: &str) -> Change {
    let patch = MemberPatch {
        nickname: Some(Text::parse(nickname.into())),
        ..MemberPatch::new(UserId::parse(user.into()).unwrap())
    };
    change(group, patch)
}

fn text() -> impl Strategy<Value = Option<Text>> {
    option::of(prop_oneof![Just(String::new()), "\\PC{1,4}"].prop_map(Text::parse))
}

fn role_level() -> impl Strategy<Value = Option<i32>> {
    option::of(prop_oneof![Just(20), Just(60), Just(100), any::<i32>()])
}

fn patch_of(user: impl Strategy<Value = &'static str>) -> impl Strategy<Value = MemberPatch> {
    (user, text(), text(), role_level(), text()).prop_map(
        |(user, nickname, face_url, role_level, ex)| MemberPatch {
            nickname,
            face_url,
            role_level,
            ex,
            ..MemberPatch::new(UserId::parse(user.into()).unwrap())
        },
    )
}

fn any_patch() -> impl Strategy<Value = Change> {
    let id = || prop_oneof![Just("a"), Just("B"), Just("a "), Just("é")];
    (id(), patch_of(id())).prop_map(|(group, patch)| change(group, patch))
}

/// Writes changes in batches of `size`, and gives what is stored then.
async fn written(store: &Store, db: &TestDb, changes: &[Change], size: usize) -> Vec<Value> {
    db.execute("truncate group_members, groups").await;
    let mut writer = store.writer(None);
    for batch in changes.chunks(size) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let batch: Vec<&Change> = batch.iter().collect();
        writer.write(&batch, deadline).await.unwrap();
    }
    writer.close().await;
    let members = "select group_id, user_id, nickname, face_url, m.role_level, m.ex,
                          owner_user_id, check_wanted_since is not null as is_marked,
                          m.updated_at > m.created_at as has_changed
                     from group_members m join groups using (group_id) order by 1, 2"
        .replace("nickname, face_url", "nickname, m.face_url");
    db.rows(&members).await
}

/// Runs `check` on values of `strategy`, each with an empty mirror to write to.
fn on_postgres<S: Strategy>(
    strategy: S,
    cases: u32,
    check: impl AsyncFn(&Store, &TestDb, &S::Value),
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (db, store) = runtime.block_on(async {
        let db = TestDb::new().await;
        let store = db.database().open().await.unwrap();
        (db, store)
    });
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&strategy, |value| {
        runtime.block_on(check(&store, &db, &value));
        Ok(())
    });
    if let Err(TestError::Fail(why, value)) = outcome {
        panic!("{why}\n{value:#?}");
    }
    outcome.unwrap();
    runtime.block_on(async {
        store.close().await;
        // Ends its connections in the runtime that they are of.
        drop(db);
    });
}

#[test]
fn postgres_stores_a_folded_batch_as_it_stores_the_patches_one_by_one() {
    let strategy = (vec(any_patch(), 1..30), 2_usize..30);
    on_postgres(strategy, 40, async |store, db, (changes, size)| {
        let one_by_one = written(store, db, changes, 1).await;
        let in_batches = written(store, db, changes, *size).await;
        let values = |rows: &[Value]| -> Vec<Value> {
            let without = |row: &Value| {
                let mut row = row.clone();
                row.as_object_mut().unwrap().remove("has_changed");
                row
            };
            rows.iter().map(without).collect()
        };
        assert_eq!(values(&one_by_one), values(&in_batches));
        // What no patch of a batch changed has not changed.
        for (one, many) in one_by_one.iter().zip(&in_batches) {
            assert!(
                one["has_changed"] == true || many["has_changed"] == false,
                "{one} {many}"
            );
        }
    });
}

/// The statement for patches says in SQL what the rules say, or leaves a patch to them.
#[test]
fn a_patch_is_written_as_the_rules_say_whatever_is_stored() {
    let now = to_micros(OffsetDateTime::now_utc());
    let left = option::of(prop_oneof![
        Just(LATE_CALLBACK_TIMEOUT),
        Just(LATE_CALLBACK_TIMEOUT * 2),
        Just(LATE_CALLBACK_TIMEOUT / 3)
    ]);
    let shown = (text(), text());
    let member = (text(), text(), role_level(), text(), shown, left).prop_map(
        move |(nickname, face_url, role_level, ex, shown, left)| Member {
            nickname,
            face_url,
            role_level,
            ex,
            display_nickname: shown.0,
            display_face_url: shown.1,
            left_at: left.map(|ago| now - ago),
            ..Member::default()
        },
    );
    let is_owner = any::<bool>();
    // One is a statement of its own, as against several.
    let strategy = (
        option::of(member),
        is_owner,
        patch_of(Just("u")),
        any::<bool>(),
    );
    on_postgres(
        strategy,
        300,
        async |store, db, (member, is_owner, patch, alone)| {
            db.execute("truncate group_members, groups").await;
            let mut rows = GroupRows {
                group: Some(Group {
                    owner: is_owner.then(|| UserId::parse("u".into()).unwrap()),
                    ..Group::default()
                }),
                ..GroupRows::default()
            };
            let user = UserId::parse("u".into()).unwrap();
            let now_at = OffsetDateTime::now_utc();
            let group = rows.group.clone().unwrap();
            let owner = group.owner.as_ref().map(UserId::as_str);
            sqlx::query("insert into groups (group_id, owner_user_id, created_at, updated_at) values ('g', $1, $2, $2)")
            .bind(owner).bind(now_at).execute(&db.pool).await.unwrap();
            if let Some(member) = member {
                rows.members.insert(user.clone(), member.clone());
                sqlx::query("insert into group_members (group_id, user_id, nickname, face_url, role_level, ex, display_nickname,
                                                    display_face_url, left_at, created_at, updated_at)
                         values ('g', 'u', $1, $2, $3, $4, $5, $6, $7, $8, $8)")
                .bind(member.nickname.as_ref().map(Text::as_str))
                .bind(member.face_url.as_ref().map(Text::as_str))
                .bind(member.role_level)
                .bind(member.ex.as_ref().map(Text::as_str))
                .bind(member.display_nickname.as_ref().map(Text::as_str))
                .bind(member.display_face_url.as_ref().map(Text::as_str))
                .bind(member.left_at)
                .bind(now_at)
                .execute(&db.pool).await.unwrap();
            }
            let group = GroupId::parse("g".into()).unwrap();
            let change = Change::new(group, now, Event::SetMember(patch.clone()));
            apply(&mut rows, &change);
            let other = set_nickname("h", "v", "x");
            let batch = if *alone {
                vec![&change]
            } else {
                vec![&other, &change]
            };
            let mut writer = store.writer(None);
            let deadline = Instant::now() + Duration::from_secs(10);
            writer.write(&batch, deadline).await.unwrap();
            writer.close().await;
            let stored = db
                .rows(
                    "select nickname, m.face_url, role_level, m.ex, display_nickname, display_face_url,
                    left_at is not null as is_gone, owner_user_id, check_reason
               from group_members m join groups using (group_id) where group_id = 'g'",
                )
                .await;
            let member = &rows.members[&user];
            let text = |text: &Option<Text>| text.as_ref().map(|text| text.as_str().to_owned());
            let owner = rows.group.as_ref().unwrap().owner.as_ref();
            let expected = json!({
                "nickname": text(&member.nickname),
                "face_url": text(&member.face_url),
                "role_level": member.role_level,
                "ex": text(&member.ex),
                "display_nickname": text(&member.display_nickname),
                "display_face_url": text(&member.display_face_url),
                "is_gone": member.is_gone(),
                "owner_user_id": owner.map(UserId::as_str),
                "check_reason": rows.mark.map(|reason| reason.code()),
            });
            assert_eq!(stored, [expected]);
        },
    );
}

/// Any change but a patch or a repair, of users of whom some are stored.
fn any_event() -> impl Strategy<Value = Event> {
    let user = || prop_oneof![Just("u"), Just("v"), Just("w")].prop_map(user_id);
    let users = || {
        vec(user(), 1..3).prop_map(|user_ids| Users {
            user_ids,
            is_incomplete: false,
        })
    };
    let profile = || {
        (text(), text(), text()).prop_map(|(name, face_url, ex)| GroupProfile {
            name,
            face_url,
            ex,
            ..GroupProfile::default()
        })
    };
    prop_oneof![
        2 => user().prop_map(Event::Quit),
        2 => users().prop_map(Event::Kick),
        2 => user().prop_map(Event::Join),
        1 => users().prop_map(Event::JoinAll),
        2 => prop_oneof![patch_of(Just("u")), patch_of(Just("v"))].prop_map(Event::SetMember),
        2 => profile().prop_map(Event::SetProfile),
        1 => (user(), user()).prop_map(|(old_owner, new_owner)| Event::Transfer {
            old_owner,
            new_owner,
        }),
        1 => Just(Event::Dismiss),
        1 => Just(Event::Mark(MarkReason::JoinAnnounced)),
        1 => (profile(), user()).prop_map(|(profile, owner)| Event::Create(Creation {
            profile,
            members: vec![(owner.clone(), 100)],
            owner: Some(owner),
            status: None,
            group_type: None,
            created_at: None,
            may_be_operator: None,
            is_incomplete: false,
        })),
    ]
}

fn user_id(id: &str) -> UserId {
    UserId::parse(id.into()).unwrap()
}

fn texts_of(member: &Member) -> Value {
    let text = |text: &Option<Text>| text.as_ref().map(|text| text.as_str().to_owned());
    json!([
        text(&member.nickname),
        text(&member.display_nickname),
        text(&member.face_url),
        text(&member.display_face_url),
        text(&member.ex),
        text(&member.inviter),
        text(&member.operator),
    ])
}

/// Members who leave, and a group that is not changed itself, are written without a read of their texts, which may be
/// long.
#[test]
fn texts_are_what_the_rules_say_whether_they_were_read_or_not() {
    // Each comes a moment or a long time after the one before.
    let event = (any_event(), any::<bool>());
    let strategy = (vec(event, 1..14), 1_usize..14, any::<bool>());
    on_postgres(
        strategy,
        150,
        async |store, db, (events, size, has_name)| {
            db.execute(&format!(
            "truncate group_members, groups;
             insert into groups (group_id, name, notification, introduction, face_url, ex, owner_user_id,
                                 created_at, updated_at)
             values ('g', {name}, 'o', 'i', 'f', {name}, 'u', now(), now());
             insert into group_members
                    (group_id, user_id, nickname, display_nickname, face_url, display_face_url, ex,
                     inviter_user_id, operator_user_id, role_level, created_at, updated_at)
             select 'g', u, u || 1, u || 2, u || 3, u || 4, u || 5, u || 6, u || 7, r, now(), now()
               from (values ('u', 100), ('v', 20)) as stored (u, r)",
            name = if *has_name { "'n'" } else { "null" },
        ))
        .await;
            let some = |text: String| Some(Text::parse(text));
            let stored = |id: &str, role_level| {
                let member = Member {
                    nickname: some(format!("{id}1")),
                    display_nickname: some(format!("{id}2")),
                    face_url: some(format!("{id}3")),
                    display_face_url: some(format!("{id}4")),
                    ex: some(format!("{id}5")),
                    inviter: some(format!("{id}6")),
                    operator: some(format!("{id}7")),
                    role_level: Some(role_level),
                    ..Member::default()
                };
                (user_id(id), member)
            };
            let mut group = Some(Group {
                profile: GroupProfile {
                    name: has_name.then(|| Text::parse("n".into())),
                    notification: some("o".into()),
                    introduction: some("i".into()),
                    face_url: some("f".into()),
                    ex: has_name.then(|| Text::parse("n".into())),
                    ..GroupProfile::default()
                },
                owner: Some(user_id("u")),
                ..Group::default()
            });
            let mut members = BTreeMap::from([stored("u", 100), stored("v", 20)]);
            let mut at = to_micros(OffsetDateTime::now_utc());
            let id = GroupId::parse("g".into()).unwrap();
            let changes = events.iter().map(|(event, is_later)| {
                at += if *is_later {
                    LATE_CALLBACK_TIMEOUT * 2
                } else {
                    LATE_CALLBACK_TIMEOUT / 100
                };
                Change::new(id.clone(), at, event.clone())
            });
            let changes: Vec<Change> = changes.collect();
            for change in &changes {
                let mut rows = GroupRows {
                    group: group.take(),
                    members: members.into_iter().collect(),
                    ..GroupRows::default()
                };
                apply(&mut rows, change);
                (group, members) = (rows.group, rows.members.into_iter().collect());
            }
            let mut writer = store.writer(None);
            for batch in changes.chunks(*size) {
                let deadline = Instant::now() + Duration::from_secs(10);
                let batch: Vec<&Change> = batch.iter().collect();
                writer.write(&batch, deadline).await.unwrap();
            }
            writer.close().await;
            let stored = "select user_id, role_level,
                             json_build_array(nickname, display_nickname, face_url, display_face_url,
                                              ex, inviter_user_id, operator_user_id) as texts
                        from group_members order by user_id";
            let expected = members.iter().map(|(user, member)| {
            let role_level = member.role_level;
            json!({"user_id": user.as_str(), "role_level": role_level, "texts": texts_of(member)})
        });
            assert_eq!(db.rows(stored).await, expected.collect::<Vec<_>>());
            let stored = "select name, notification, introduction, face_url, ex from groups";
            let profile = group.unwrap().profile;
            let text = |text: &Option<Text>| text.as_ref().map(|text| text.as_str().to_owned());
            let expected = json!({
                "name": text(&profile.name), "notification": text(&profile.notification),
                "introduction": text(&profile.introduction), "face_url": text(&profile.face_url),
                "ex": text(&profile.ex),
            });
            assert_eq!(db.rows(stored).await, [expected]);
        },
    );
}

/// Lets `callbacks` come while each lane is at a change of its own and can do no other, until so
/// many wait.
async fn while_the_lanes_are_held<T>(
    app: &TestApp,
    many: u32,
    callbacks: impl Future<Output = T>,
) -> T {
    let mut holder = app.db.pool.begin().await.unwrap();
    holder
        .execute("lock table group_members in exclusive mode")
        .await
        .unwrap();
    let hold = async |group: &str| app.set(group, "holds", json!({})).await;
    let held = async |lanes: usize| {
        until("a lane is held", async || {
            app.db.rows(LOCKED).await.len() == lanes
        })
        .await;
    };
    let release = async {
        held(2).await;
        let release = async {
            until("the others wait", async || {
                app.metric("changes_waiting").await == f64::from(many)
            })
            .await;
            holder.rollback().await.unwrap();
        };
        tokio::join!(callbacks, release).0
    };
    // One after the other, or one lane would take both.
    let second = async {
        held(1).await;
        tokio::join!(hold("two"), release).1
    };
    tokio::join!(hold("one"), second).1
}

#[tokio::test]
async fn what_comes_while_the_lanes_write_is_written_together() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    app.db
        .execute(
            "create table statements (rows bigint);
             create function note() returns trigger language plpgsql as
             'begin insert into statements select count(*) from patched; return null; end';
             create trigger note after insert on group_members
             referencing new table as patched for each statement execute function note()",
        )
        .await;
    let set = async |n: u32| {
        let (group, user) = (format!("g{}", n % 7), format!("u{n}"));
        app.set(&group, &user, json!({"nickName": n.to_string()}))
            .await;
    };
    while_the_lanes_are_held(&app, 60, join_all((0..60).map(set))).await;
    let statements = app.db.rows("select count(*) as n from statements").await;
    let statements = statements[0]["n"].as_u64().unwrap();
    // Two that held the lanes, and one batch or two.
    assert!((3..=4).contains(&statements), "{statements}");
    for n in [0, 30, 59] {
        let member = app.member(&format!("g{}", n % 7), &format!("u{n}")).await;
        assert!(member.unwrap().contains(&json!(n.to_string())));
    }
    assert_eq!(app.metric("changes_waiting").await, 0.0);
}

#[tokio::test]
async fn one_bad_change_of_a_batch_gets_its_error_and_the_others_are_kept() {
    let app = TestApp::start().await;
    app.db
        .execute("alter table group_members add constraint no_admins check (role_level <> 60)")
        .await;
    let send = async |n: u32| {
        let role = if n == 20 { 60 } else { 20 };
        let fields = json!({"roleLevel": role, "nickName": n.to_string()});
        app.callback_text(member_info("g", &format!("u{n}"), fields))
            .await
    };
    let replies = while_the_lanes_are_held(&app, 40, join_all((0..40).map(send))).await;
    for (n, reply) in replies.iter().enumerate() {
        let expected = if n == 20 { 500 } else { 200 };
        assert_eq!(reply.status, expected, "{n}: {reply:?}");
    }
    let rows = app
        .db
        .rows("select count(*) as n from group_members where group_id = 'g'")
        .await;
    assert_eq!(rows[0]["n"], 39);
}

#[tokio::test]
async fn a_row_that_somebody_has_locked_holds_up_itself_alone() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.spool.after = Duration::from_millis(2250);
    })
    .await;
    for user in ["locked", "u0", "u1"] {
        app.set("g", user, json!({"roleLevel": 20})).await;
    }
    let mut holder = app.db.pool.begin().await.unwrap();
    holder
        .execute("select 1 from group_members where user_id = 'locked' for update")
        .await
        .unwrap();
    let began = Instant::now();
    let to_locked = member_info("g", "locked", json!({"roleLevel": 60}));
    let others = async {
        until("it waits", async || app.db.rows(LOCKED).await.len() == 1).await;
        // Of other groups: the other lane has them. Of the same: behind it, and then at last.
        let set = async |n: u8| app.set(&format!("h{n}"), "u", json!({"ex": "x"})).await;
        let elsewhere = (0..20).map(set);
        join_all(elsewhere).await;
        let reached = began.elapsed();
        join_all([app.set("g", "u0", json!({})), app.set("g", "u1", json!({}))]).await;
        reached
    };
    let (reply, elsewhere) = tokio::join!(app.callback_text(to_locked), others);
    // In the spool, in the end.
    assert_eq!(reply.status, 200);
    // Its lock is waited for 0.75 s, three times.
    assert!(elsewhere < Duration::from_millis(1400), "{elsewhere:?}");
    assert_eq!(app.member("g", "locked").await.unwrap()[0], json!(20));
    holder.rollback().await.unwrap();
    until("it is written", async || {
        app.member("g", "locked").await.unwrap()[0] == json!(60)
    })
    .await;
}

#[tokio::test]
async fn connections_that_postgres_ended_are_replaced_and_nobody_notices() {
    let app = TestApp::start().await;
    for round in 0..3 {
        let set = async |n: u8| {
            app.set(&format!("g{n}"), "u", json!({"roleLevel": round}))
                .await
        };
        join_all((0..4).map(set)).await;
        // Those whose connection was ended in the round before may have taken the longer way.
        until("all is written", async || {
            app.metric("spool_entries").await == 0.0
        })
        .await;
        join_all((0..4).map(|_| app.get("/groups/g0/members"))).await;
        // That of the drain may be at its own end just now, and be gone before it is told.
        let end = "select pid, pg_terminate_backend(pid) from pg_stat_activity
                    where application_name = 'openim-group-mirror'
                      and datname = current_database()";
        let told = app.db.rows(end).await;
        assert!(!told.is_empty());
        let pids: Vec<String> = told.iter().map(|row| row["pid"].to_string()).collect();
        let left = format!(
            "select pid from pg_stat_activity where pid in ({})",
            pids.join(", ")
        );
        until("they end", async || app.db.rows(&left).await.is_empty()).await;
        let get = async |n: u8| app.get(&format!("/groups/g{n}/members/u")).await.ok();
        let pages = (0..2).map(|_| app.get("/groups/g0/members"));
        let (_, members, pages) = tokio::join!(
            join_all((0..4).map(set)),
            join_all((0..4).map(get)),
            join_all(pages),
        );
        assert!(members.iter().all(|member| member["roleLevel"] == round));
        assert!(pages.iter().all(|page| page.status == 200), "{pages:?}");
    }
}

/// Their batches hold the same members in any order of arrival.
#[tokio::test]
async fn two_services_on_one_database_neither_deadlock_nor_lose_a_field() {
    let db = TestDb::new().await;
    let url = db.url.clone();
    let one = TestApp::start_on(db, |_| {}).await;
    let two = TestApp::start_on(TestDb::new().await, |config| {
        config.database.url = Some(url.into());
    })
    .await;
    let user = |n: usize| (format!("g{}", n % 3), format!("u{}", n % 10));
    let rounds = 40;
    let work = async |app: &TestApp, field: &str, step: usize| {
        for round in 0..rounds {
            // Another order each time, and each member twice.
            let set = async |n: usize| {
                let (group, user) = user(n * step + round);
                let fields = json!({field: format!("{round}")});
                app.set(&group, &user, fields).await;
            };
            join_all((0..60).map(set)).await;
        }
    };
    tokio::join!(work(&one, "nickName", 7), work(&two, "ex", 11));
    let rows = one
        .db
        .rows("select nickname, ex, count(*) as n from group_members group by 1, 2")
        .await;
    let last = (rounds - 1).to_string();
    assert_eq!(rows, [json!({"nickname": last, "ex": last, "n": 30})]);
    let deadlocks =
        "select deadlocks as n from pg_stat_database where datname = current_database()";
    // The count is told a moment later; where there is none, none comes.
    assert_eq!(one.db.rows(deadlocks).await[0]["n"], 0);
}

/// Rows that neither has seen are not there to be locked.
#[tokio::test]
async fn two_services_that_hear_of_a_group_at_once_keep_what_each_was_told() {
    let db = TestDb::new().await;
    let url = db.url.clone();
    let one = TestApp::start_on(db, |_| {}).await;
    let two = TestApp::start_on(TestDb::new().await, |config| {
        config.database.url = Some(url.into());
    })
    .await;
    let create = async |n: u32| {
        let body = json!({
            "callbackCommand": "callbackAfterCreateGroupCommand",
            "groupID": format!("g{n}"), "groupName": "Kayaks", "ownerUserID": "o",
            "initMemberList": [{"userID": "o", "roleLevel": 100}, {"userID": "u", "roleLevel": 20}]
        });
        let path = "/callbackAfterCreateGroupCommand";
        one.post(path, body.to_string()).await.ok()
    };
    let patch = async |n: u32| {
        let fields = json!({"nickName": "Ann"});
        two.set(&format!("g{n}"), "u", fields).await;
    };
    for round in 0..20 {
        let groups = || round * 20..(round + 1) * 20;
        tokio::join!(
            join_all(groups().map(create)),
            join_all(groups().map(patch))
        );
    }
    let rows = one
        .db
        .rows(
            "select name, owner_user_id, nickname, m.face_url, role_level, count(*) as n
               from groups join group_members m using (group_id)
              where user_id = 'u' group by 1, 2, 3, 4, 5",
        )
        .await;
    let expected = json!({
        "name": "Kayaks", "owner_user_id": "o", "nickname": "Ann", "face_url": "",
        "role_level": 20, "n": 400
    });
    assert_eq!(rows, [expected]);
}

#[tokio::test]
async fn more_than_the_queue_holds_waits_and_is_answered_in_time() {
    let db = TestDb::new().await;
    let wait = Duration::from_secs(1);
    let store = Database::new(&db.url, "public", 4, wait, wait);
    let store = store.unwrap().open().await.unwrap();
    let spool = Spool::in_folder(&run().folder("spool"), 64 << 20).unwrap();
    let ingest = Arc::new(Ingest::new(store.clone(), none_kept(), Some(spool)));
    ingest.settled().await;
    let mut holder = db.pool.begin().await.unwrap();
    holder
        .execute("lock table group_members in exclusive mode")
        .await
        .unwrap();
    let submit = |round: &'static str| {
        let ingest = Arc::clone(&ingest);
        move |n: u32| {
            let ingest = Arc::clone(&ingest);
            let change = set_nickname(&format!("g{}", n % 50), &format!("u{n}"), round);
            tokio::spawn(async move { ingest.submit(change).await })
        }
    };
    let began = Instant::now();
    let submitted: Vec<_> = (0..3000).map(submit("one")).collect();
    for answer in join_all(submitted).await {
        answer.unwrap().unwrap();
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(ingest.spool().unwrap().waiting, 3000);
    // Those that come now line up behind them.
    holder.rollback().await.unwrap();
    let again: Vec<_> = (0..3000).map(submit("two")).collect();
    for answer in join_all(again).await {
        answer.unwrap().unwrap();
    }
    until("the spool is drained", async || {
        !ingest.spool().unwrap().is_diverting
    })
    .await;
    let state = ingest.spool().unwrap();
    assert_eq!((state.waiting, state.drained), (0, state.spooled));
    let rows = db
        .rows("select nickname, count(*) as n from group_members group by 1")
        .await;
    assert_eq!(rows, [json!({"nickname": "two", "n": 3000})]);
    let closed = async {
        ingest.close().await;
        store.close().await;
    };
    timeout(Duration::from_secs(5), closed).await.unwrap();
    let left = "select 1 as n from pg_stat_activity where datname = current_database()
                  and application_name = 'openim-group-mirror'";
    until("the connections end", async || {
        db.rows(left).await.is_empty()
    })
    .await;
}

fn none_kept() -> Retention {
    Retention {
        keep_days: 1,
        max_bytes: 0,
    }
}

/// Every second change is followed by one that sets the same member; the others have 2,500 changes
/// between them and the next of their member.
fn member_of(change: u32) -> String {
    let n = change / 2;
    match change % 2 {
        0 => format!("near{}", n / 2),
        _ => format!("far{}", n % 2500),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_changes_of_one_group_keep_their_order_and_no_newcomer_overtakes() {
    let db = TestDb::new().await;
    let wait = Duration::from_secs(30);
    let store = Database::new(&db.url, "public", 8, wait, wait).unwrap();
    let store = store.open().await.unwrap();
    let spool = Spool::in_folder(&run().folder("spool"), 64 << 20).unwrap();
    let ingest = Ingest::new(store.clone(), none_kept(), Some(spool));
    until("the spool is closed", async || {
        !ingest.spool().unwrap().is_diverting
    })
    .await;
    let mut holder = db.pool.begin().await.unwrap();
    let lock = "lock table group_members in exclusive mode";
    holder.execute(lock).await.unwrap();
    let mut last = BTreeMap::new();
    let mut answers = Vec::new();
    let mut submit = |member: String, number: u32| {
        let number = number.to_string();
        let mut answer = Box::pin(ingest.submit(set_nickname("g", &member, &number)));
        last.insert(member, number);
        // Taken, in this order.
        let taken = answer.as_mut().now_or_never();
        answers.push(async move {
            match taken {
                Some(answer) => answer,
                None => answer.await,
            }
        });
    };
    for number in 0..10_000 {
        submit(member_of(number), number);
    }
    holder.rollback().await.unwrap();
    for number in 0..2500 {
        // Those who wait at the end of the queue first.
        submit(format!("far{}", 2499 - number), 10_000 + number);
        tokio::task::yield_now().await;
    }
    for answer in join_all(answers).await {
        answer.unwrap();
    }
    assert_eq!(ingest.spool().unwrap().spooled, 0);
    let rows = db.rows("select user_id, nickname from group_members").await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found: BTreeMap<String, String> = rows
        .iter()
        .map(|row| (text(&row["user_id"]), text(&row["nickname"])))
        .collect();
    assert_eq!(found.len(), last.len());
    let wrong: Vec<_> = last
        .iter()
        .filter(|(member, number)| found.get(*member) != Some(number))
        .map(|(member, number)| (member, number, found.get(member)))
        .collect();
    assert!(wrong.is_empty(), "{} of them: {wrong:?}", wrong.len());
    ingest.close().await;
    store.close().await;
}

#[tokio::test]
async fn whoever_waits_too_long_is_told_and_is_not_written_later() {
    let db = TestDb::new().await;
    let wait = Duration::from_millis(500);
    let store = Database::new(&db.url, "public", 4, wait, wait).unwrap();
    let store = store.open().await.unwrap();
    let ingest = Ingest::new(store.clone(), none_kept(), None);
    let mut holder = db.pool.begin().await.unwrap();
    let lock = "lock table group_members in exclusive mode";
    holder.execute(lock).await.unwrap();
    let changes = (0..6000).map(|n| set_nickname("g", &format!("u{n}"), "late"));
    let began = Instant::now();
    let answers = changes.map(async |change| (ingest.submit(change).await, began.elapsed()));
    let answers = join_all(answers).await;
    let longest = store.lane_timeout * 2 + Duration::from_secs(2);
    for (answer, took) in &answers[4000..] {
        assert!(answer.is_err(), "{answer:?}");
        assert!(*took < longest, "{took:?}");
    }
    assert!(answers.iter().all(|(answer, _)| answer.is_err()));
    holder.rollback().await.unwrap();
    until("their group is marked", async || {
        let groups = "select check_reason from groups where check_wanted_since is not null";
        db.rows(groups).await == [json!({"check_reason": "callback_lost"})]
    })
    .await;
    // Their place in the queue is free, and their group is nobody's.
    ingest
        .submit(set_nickname("g", "v", "later"))
        .await
        .unwrap();
    ingest.close().await;
    let rows = db.rows("select nickname from group_members").await;
    assert_eq!(rows, [json!({"nickname": "later"})]);
    store.close().await;
}
