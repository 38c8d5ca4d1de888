//! Recordings of two real servers: tests/recordings/README.md.

use std::collections::{BTreeMap, BTreeSet};

use openim_group_mirror::http::understand;
use openim_group_mirror::reconcile::Mode;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::recording::{
    Line, MAIN, MAIN_EVERYTHING, PATCH16, PATCH16_RANDOM, after_random_operations, as_read,
    recorded,
};
use crate::support::{
    ADMIN, CURRENT, Callback, Creation, ORDINARY, OpenIm, Operation, Pair, Release, TestApp,
    TestDb, Values, access,
};

const ALL: [&str; 4] = [MAIN, MAIN_EVERYTHING, PATCH16, PATCH16_RANDOM];

/// Commands that say something about a group.
const TELLING: [&str; 10] = [
    "callbackAfterCreateGroupCommand",
    "callbackAfterDisMissGroupCommand",
    "callbackAfterJoinGroupCommand",
    "callbackAfterKickGroupCommand",
    "callbackAfterQuitGroupCommand",
    "callbackAfterSetGroupInfoCommand",
    "callbackAfterSetGroupInfoExCommand",
    "callbackAfterSetGroupMemberInfoCommand",
    "callbackAfterTransferGroupOwnerCommand",
    "callbackBeforeMembersJoinGroupCommand",
];

const ACCEPTING: Mode = Mode {
    is_full: false,
    accept_removals: true,
};

fn callbacks(lines: &[Line]) -> impl Iterator<Item = &Line> {
    lines.iter().filter(|line| !line.callback.is_empty())
}

/// Sends a callback as OpenIM sent it.
async fn send(app: &TestApp, line: &Line) -> Value {
    let reply = app
        .send(reqwest::Method::POST, &line.callback, |request| {
            let headers = line.headers.as_object().unwrap().iter();
            let request = headers.fold(request, |request, (name, value)| {
                request.header(name, value.as_str().unwrap())
            });
            request.body(line.body.clone())
        })
        .await;
    assert_eq!(reply.status, 200, "{line:?}: {reply:?}");
    reply.body
}

#[tokio::test]
async fn each_callback_is_answered_as_success_and_none_is_kept_as_not_understood() {
    let app = TestApp::start().await;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for file in ALL {
        for line in callbacks(&recorded(file)) {
            let answer = send(&app, line).await;
            assert_eq!(answer["actionCode"], 0, "{line:?}");
            assert_eq!(answer["errCode"], 0, "{line:?}");
            let command = line.command();
            let is_sample = command == "callbackAfterSetGroupMemberInfoCommand";
            assert_eq!(answer["nextCode"], json!(i32::from(is_sample)), "{line:?}");
            if TELLING.contains(&command) {
                let now = OffsetDateTime::now_utc();
                let change = understand(&line.callback, line.body.as_bytes(), now);
                assert!(change.is_ok(), "{line:?}: {change:?}");
            }
            if command.starts_with("callbackBeforeSetGroupInfo") {
                // OpenIM stores what is answered.
                let sent: Value = serde_json::from_str(&line.body).unwrap();
                for name in ["groupID", "groupName", "introduction"] {
                    assert_eq!(answer[name], sent[name], "{line:?}");
                }
            }
            seen.insert(command.to_owned());
        }
    }
    for command in TELLING {
        assert!(seen.contains(command), "{command} was not recorded");
    }
    let kept = app.db.rows("select id from rejected_callbacks").await;
    assert!(kept.is_empty(), "{kept:?}");
    app.stop().await;
}

/// Kind of a line: its command, and the kind of a message.
type Key = (String, Option<u64>);

/// The names of a body's fields in their order, with those of the content of a message.
fn form(callback: &Callback) -> (Key, Vec<String>) {
    let body: Value = serde_json::from_str(&callback.body).unwrap();
    let names = |value: &Value| -> Vec<String> {
        let fields = value.as_object().into_iter().flatten();
        fields.map(|(name, _)| name.clone()).collect()
    };
    let content = body["content"].as_str().unwrap_or_default();
    let content: Value = serde_json::from_str(content).unwrap_or_default();
    let mut form = names(&body);
    form.extend(names(&content));
    let command = callback.command.clone();
    ((command, body["contentType"].as_u64()), form)
}

/// Everything that the tests' own OpenIM sends.
fn sent_by_the_model(release: Release) -> Vec<Callback> {
    let mut openim = OpenIm::default();
    openim.release = release;
    let value = |name: &'static str, value: Value| -> Values { [(name, value)].into() };
    let user = || "u1".to_owned();
    let operations = [
        Operation::Create(Creation::open("Kayaks", "boss", &["u1", "u2"])),
        Operation::Invite("u3".to_owned()),
        Operation::Join("u4".to_owned()),
        Operation::Quit("u3".to_owned()),
        Operation::Kick(vec!["u4".to_owned()]),
        Operation::SetMember(user(), value("ex", json!("e"))),
        Operation::SetMember(user(), value("roleLevel", json!(ADMIN))),
        Operation::SetMember(user(), value("roleLevel", json!(ORDINARY))),
        Operation::SetProfile(value("introduction", json!("i"))),
        Operation::SetProfileEx(value("groupName", json!("n"))),
        Operation::SetProfileEx(value("notification", json!("n"))),
        Operation::Transfer {
            old_owner: "boss".to_owned(),
            new_owner: user(),
        },
        Operation::MuteMember(user(), 1),
        Operation::UnmuteMember(user()),
        Operation::Mute,
        Operation::Unmute,
        Operation::Dismiss {
            with_members: false,
        },
    ];
    let told = operations
        .iter()
        .flat_map(|operation| openim.perform("g", operation).unwrap());
    told.map(|told| told.callback).collect()
}

#[test]
fn what_the_tests_own_openim_sends_has_the_fields_that_were_recorded_in_their_order() {
    for (release, files) in [
        (Release::Main, [MAIN, MAIN_EVERYTHING]),
        (Release::Patch16, [PATCH16, PATCH16_RANDOM]),
    ] {
        let files = files.map(recorded);
        let told = files.iter().flat_map(|lines| callbacks(lines));
        let told = told.map(|line| form(&line.told()));
        let told: BTreeMap<Key, Vec<String>> = told.collect();
        let mut compared = 0;
        for callback in sent_by_the_model(release) {
            let (key, form) = form(&callback);
            if let Some(recorded) = told.get(&key) {
                assert_eq!(form, *recorded, "{key:?} of {release:?}");
                compared += 1;
            }
        }
        assert!(compared > 15, "{compared} of {release:?}");
    }
}

/// Current members, by group and user, with their roles.
async fn roles(pair: &Pair) -> BTreeMap<(String, String), i64> {
    let sql = format!(
        "select group_id, user_id, role_level from group_members m join groups g using (group_id)
          where {CURRENT}"
    );
    let rows = pair.db.rows(&sql).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = rows.iter();
    rows.map(|row| {
        let key = (text(&row["group_id"]), text(&row["user_id"]));
        (key, row["role_level"].as_i64().unwrap())
    })
    .collect()
}

fn roles_of(openim: &OpenIm) -> BTreeMap<(String, String), i64> {
    let groups = openim.groups.values();
    let groups = groups.filter(|group| !group.is_dismissed());
    let members = groups.flat_map(|group| {
        let members = group.members.iter();
        members.map(|(user, member)| ((group.id.clone(), user.clone()), i64::from(member.role())))
    });
    members.collect()
}

/// Callbacks about the groups that were read in the end, in the order in which they came.
fn told_of(openim: &OpenIm, lines: &[Line]) -> Vec<Line> {
    let about = |line: &&Line| {
        TELLING.contains(&line.command()) && openim.groups.contains_key(&line.group())
    };
    callbacks(lines).filter(about).cloned().collect()
}

async fn tell(pair: &Pair, lines: &[Line]) {
    for line in lines {
        pair.tell(&line.told()).await;
    }
}

/// By callbacks alone the mirror has everything of which they tell.
#[tokio::test]
async fn without_an_api_only_who_came_in_silence_is_missing() {
    for (file, silent) in [
        // Invited; and on the release that tells of no join, joined.
        (MAIN, &["u11"][..]),
        (PATCH16, &["u11", "u8"][..]),
    ] {
        let lines = recorded(file);
        let read = as_read(&lines);
        let pair = Pair::new().await;
        tell(&pair, &told_of(&read, &lines)).await;
        let (mut there, here) = (roles_of(&read), roles(&pair).await);
        for user in silent {
            let unheard = there.remove(&("g1".to_owned(), (*user).to_owned()));
            assert!(unheard.is_some(), "{user}");
        }
        assert_eq!(here, there, "{file}");
        pair.close().await;
    }
}

/// Sends the callbacks up to some moment, runs with the state of the end, sends the rest, which is late then, and runs
/// again.
async fn compared_after_a_prefix(file: &str) {
    let lines = recorded(file);
    let told = told_of(&as_read(&lines), &lines);
    assert!(told.len() > 15);
    let pair = Pair::new().await;
    for length in 0..=told.len() {
        *pair.openim() = as_read(&lines);
        let (before, late) = told.split_at(length);
        tell(&pair, before).await;
        pair.compare(&[], ACCEPTING).await.unwrap();
        let differences = pair.differences().await;
        assert!(differences.is_empty(), "{file}, {length}: {differences:#?}");
        tell(&pair, late).await;
        pair.compare(&[], ACCEPTING).await.unwrap();
        let differences = pair.differences().await;
        assert!(
            differences.is_empty(),
            "{file}, {length}, late: {differences:#?}"
        );
        pair.db
            .execute("truncate groups, group_members, group_checks")
            .await;
    }
    pair.close().await;
}

#[tokio::test]
async fn after_any_part_of_what_main_told_the_mirror_is_what_was_read() {
    compared_after_a_prefix(MAIN).await;
}

#[tokio::test]
async fn after_any_part_of_what_patch_16_told_the_mirror_is_what_was_read() {
    compared_after_a_prefix(PATCH16).await;
}

/// 800 callbacks, and OpenIM's API shows the end of it from the beginning.
#[tokio::test]
async fn after_random_operations_the_mirror_is_what_was_read() {
    let pair = Pair::new().await;
    *pair.openim() = after_random_operations();
    let db = TestDb::shared(&pair.db.url);
    let app = TestApp::start_on(db, |config| config.openim = Some(access(&pair.server))).await;
    for line in callbacks(&recorded(PATCH16_RANDOM)) {
        send(&app, line).await;
    }
    app.stop().await;
    pair.compare(&[], ACCEPTING).await.unwrap();
    pair.assert_equal().await;
    let drift = pair.drift().await;
    assert!(drift.is_empty(), "{drift:?}");
    pair.close().await;
}
