//! Effects of callbacks about groups and their members: each in OpenIM's form, and the acceptance cases without a
//! reconcile.

use std::collections::{BTreeMap, BTreeSet};

use openim_group_mirror::domain::{Operators, UserId};
use openim_group_mirror::http::{openapi_json, understand};
use openim_group_mirror::ingest::{Ingest, Retention};
use reqwest::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::support::{COMMAND as SET_MEMBER, Reply, TestApp, TestDb, member_info, until};

const CREATE: &str = "callbackAfterCreateGroupCommand";
const JOIN: &str = "callbackAfterJoinGroupCommand";
const QUIT: &str = "callbackAfterQuitGroupCommand";
const KICK: &str = "callbackAfterKickGroupCommand";
const DISMISS: &str = "callbackAfterDisMissGroupCommand";
const TRANSFER: &str = "callbackAfterTransferGroupOwnerCommand";
const SET_INFO: &str = "callbackAfterSetGroupInfoCommand";
const SET_INFO_EX: &str = "callbackAfterSetGroupInfoExCommand";
const BEFORE_MEMBERS_JOIN: &str = "callbackBeforeMembersJoinGroupCommand";
const BEFORE_MEMBER_JOIN: &str = "callbackBeforeMemberJoinGroupCommand";
const BEFORE_SET_INFO: &str = "callbackBeforeSetGroupInfoCommand";
const BEFORE_SET_INFO_EX: &str = "callbackBeforeSetGroupInfoExCommand";
const MESSAGE: &str = "callbackAfterSendGroupMsgCommand";
const PUSHED: &str = "callbackBeforeGroupOnlinePushCommand";

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/callbacks");

fn success(next_code: i32) -> Value {
    json!({"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": next_code})
}

/// JSON as Go's encoder writes it.
fn written_by_go(body: &Value) -> String {
    let mut text = format!("{body}\n");
    for escaped in ['<', '>', '&', '\u{2028}', '\u{2029}'] {
        text = text.replace(escaped, &format!("\\u{:04x}", u32::from(escaped)));
    }
    text
}

/// An object with these fields in place of its own, or beside them.
fn with(mut object: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

/// A body with these fields beside the command.
fn body(command: &str, fields: &Value) -> String {
    written_by_go(&with(json!({ "callbackCommand": command }), fields))
}

async fn post(app: &TestApp, command: &str, fields: Value) -> Reply {
    app.post(&format!("/{command}"), body(command, &fields))
        .await
}

/// Posts what is to be applied; one of set-member-info by [`TestApp::set`].
async fn tell(app: &TestApp, command: &str, fields: Value) {
    assert_eq!(post(app, command, fields).await.ok(), success(0));
}

/// A create callback as OpenIM sends it: the owner and the admins, the ordinary members, then the
/// admins and the owner again as ordinary ones, and the caller of its API, who is no member.
fn creation(group: &str, owner: &str, others: &[(&str, i32)]) -> Value {
    let (admins, ordinary): (Vec<_>, Vec<_>) = others.iter().partition(|(_, role)| *role == 60);
    let mut list = vec![json!({"userID": owner, "roleLevel": 100})];
    let as_they_are = admins.iter().chain(&ordinary);
    list.extend(as_they_are.map(|(user, role)| json!({"userID": user, "roleLevel": role})));
    let again = admins.iter().map(|(user, _)| *user);
    let again = again.chain([owner, "imAdmin"]);
    list.extend(again.map(|user| json!({"userID": user, "roleLevel": 20})));
    json!({
        "groupID": group, "groupName": "Kayaks", "notification": "", "introduction": "",
        "faceURL": "", "ownerUserID": owner, "createTime": 1_751_450_000_123_i64,
        "memberCount": others.len() + 2, "ex": "", "status": 0, "creatorUserID": "",
        "groupType": 2, "needVerification": 0, "lookMemberInfo": 0, "applyMemberFriend": 0,
        "notificationUpdateTime": 0, "notificationUserID": "", "initMemberList": list
    })
}

async fn create(app: &TestApp, group: &str, owner: &str, others: &[(&str, i32)]) {
    tell(app, CREATE, creation(group, owner, others)).await;
}

async fn join(app: &TestApp, group: &str, user: &str) {
    let fields = json!({
        "operationID": "op-9", "groupID": group, "reqMessage": "hi", "joinSource": 3,
        "inviterUserID": user
    });
    tell(app, JOIN, fields).await;
}

async fn quit(app: &TestApp, group: &str, user: &str) {
    tell(app, QUIT, json!({"groupID": group, "userID": user})).await;
}

async fn kick(app: &TestApp, group: &str, users: &[&str]) {
    let fields = json!({"groupID": group, "kickedUserIDs": users, "reason": ""});
    tell(app, KICK, fields).await;
}

/// With its members in the list, or, where OpenIM removed them first, null.
async fn dismiss(app: &TestApp, group: &str, members: Value) {
    let fields = json!({
        "groupID": group, "ownerID": "o1", "groupType": "\u{2}", "membersID": members
    });
    tell(app, DISMISS, fields).await;
}

async fn transfer(app: &TestApp, group: &str, old: &str, new: &str) {
    let fields = json!({"groupID": group, "oldOwnerUserID": old, "newOwnerUserID": new});
    tell(app, TRANSFER, fields).await;
}

/// A service that knows g1: o1 owns it, a1 is its admin, m1 and m2 are ordinary members.
async fn app_with_group() -> TestApp {
    let app = TestApp::start().await;
    create(&app, "g1", "o1", &[("a1", 60), ("m1", 20), ("m2", 20)]).await;
    assert_eq!(check(&app.db, "g1").await, None);
    app
}

async fn row(db: &TestDb, group: &str, user: &str) -> Option<Value> {
    let sql =
        format!("select * from group_members where group_id = '{group}' and user_id = '{user}'");
    db.rows(&sql).await.pop()
}

async fn group(db: &TestDb, group: &str) -> Option<Value> {
    let sql = format!("select * from groups where group_id = '{group}'");
    db.rows(&sql).await.pop()
}

/// Reason of the group's mark, if there is one.
async fn check(db: &TestDb, id: &str) -> Option<String> {
    let group = group(db, id).await.unwrap();
    let is_wanted = !group["check_wanted_since"].is_null();
    let reason = group["check_reason"].as_str().map(str::to_owned);
    assert_eq!(is_wanted, reason.is_some(), "{group}");
    assert_eq!(is_wanted, !group["check_marked_at"].is_null(), "{group}");
    reason
}

/// Marks that nobody waits for come soon.
async fn until_marked(app: &TestApp, id: &str) {
    until("the group is marked", async || {
        let group = group(&app.db, id).await;
        group.is_some_and(|group| !group["check_wanted_since"].is_null())
    })
    .await;
}

async fn rejected(db: &TestDb) -> Vec<Value> {
    let sql = "select path, code, convert_from(body, 'UTF8') as body
                 from rejected_callbacks order by id";
    db.rows(sql).await
}

/// A member with all texts empty, as a state has it.
fn here(role_level: i32) -> Value {
    json!([role_level, "", "", "", "here"])
}

fn gone(role_level: i32) -> Value {
    json!([role_level, "", "", "", "gone"])
}

/// The group that a creation makes, as a state has it.
fn kayaks(introduction: &str) -> Value {
    json!({
        "name": "Kayaks", "notification": "", "introduction": introduction, "face_url": "",
        "ex": "", "owner_user_id": "o1", "status": 0, "group_type": 2, "need_verification": 0,
        "look_member_info": 0, "apply_member_friend": 0, "created_ms": 1_751_450_000_123_i64,
        "has_been_dismissed": false, "check": null
    })
}

/// All that is stored of groups and members, but for times. A member is its role, nickname, face,
/// ex, and whether it is here.
async fn state(db: &TestDb) -> Value {
    let groups = "
        select group_id, name, notification, introduction, face_url, ex, owner_user_id, status,
               group_type, need_verification, look_member_info, apply_member_friend,
               (extract(epoch from created_in_openim_at) * 1000)::bigint as created_ms,
               dismissed_at is not null as has_been_dismissed,
               case when check_wanted_since is not null then coalesce(check_reason, '') end as check
          from groups";
    let members = "
        select group_id, user_id,
               jsonb_build_array(role_level, m.nickname, m.face_url, m.ex,
                   case when left_at is null
                         and (emptying_at is null or came_at_dismissal = dismissals)
                        then 'here' else 'gone' end) as member
          from group_members m join groups g using (group_id)";
    let mut state = json!({"groups": {}, "members": {}});
    for mut row in db.rows(groups).await {
        let group = row.as_object_mut().unwrap().remove("group_id").unwrap();
        state["groups"][group.as_str().unwrap()] = row;
    }
    for row in db.rows(members).await {
        let [group, user] = ["group_id", "user_id"].map(|name| row[name].as_str().unwrap());
        state["members"][group][user] = row["member"].clone();
    }
    state
}

/// A state in which only this is another than before.
fn changed(before: &Value, changes: &[(&str, Value)]) -> Value {
    let mut state = before.clone();
    for (path, value) in changes {
        let place = path.split('/').fold(&mut state, |at, key| &mut at[key]);
        *place = value.clone();
    }
    state
}

async fn assert_changed(db: &TestDb, before: &Value, changes: &[(&str, Value)]) {
    assert_eq!(state(db).await, changed(before, changes));
}

/// Asserts that readers see none of them as a current member.
async fn assert_not_current(app: &TestApp, group: &str, users: &[&str]) {
    for user in users {
        assert_eq!(app.member(group, user).await, None, "{user}");
    }
}

struct Expected {
    reply: Value,
    /// Changes to the rows of the create fixture.
    changes: Vec<(&'static str, Value)>,
}

/// The answer to each fixture, and its change.
fn expectations() -> BTreeMap<&'static str, Expected> {
    let group = kayaks("Rivers & lakes");
    let members = json!({"o1": here(100), "a1": here(60), "m1": here(20), "m2": here(20)});
    let ann = json!([60, "Ann <3", "", "", "here"]);
    let announced = ("groups/g77/check", json!("join_announced"));
    [
        (
            CREATE,
            success(0),
            vec![("groups/g77", group), ("members/g77", members)],
        ),
        (JOIN, success(0), vec![("members/g77/u5", here(20))]),
        (QUIT, success(0), vec![("members/g77/m1", gone(20))]),
        (
            KICK,
            success(0),
            vec![("members/g77/m1", gone(20)), ("members/g77/m2", gone(20))],
        ),
        (
            DISMISS,
            success(0),
            vec![
                ("groups/g77/status", json!(2)),
                ("groups/g77/has_been_dismissed", json!(true)),
                ("groups/g77/owner_user_id", Value::Null),
                ("members/g77/o1", gone(100)),
                ("members/g77/a1", gone(60)),
                ("members/g77/m1", gone(20)),
                ("members/g77/m2", gone(20)),
            ],
        ),
        (
            TRANSFER,
            success(0),
            vec![
                ("groups/g77/owner_user_id", json!("a1")),
                ("members/g77/a1", here(100)),
                ("members/g77/o1", here(60)),
            ],
        ),
        (SET_MEMBER, success(1), vec![("members/g77/m1", ann)]),
        (
            SET_INFO,
            success(0),
            vec![
                ("groups/g77/notification", json!("Meet at <noon>")),
                ("groups/g77/need_verification", json!(2)),
            ],
        ),
        (
            SET_INFO_EX,
            success(0),
            vec![
                ("groups/g77/name", json!("Canoes & kayaks")),
                ("groups/g77/introduction", json!("")),
                ("groups/g77/ex", json!(r#"{"colour":"blue"}"#)),
                ("groups/g77/look_member_info", json!(1)),
            ],
        ),
        (BEFORE_MEMBERS_JOIN, success(0), vec![announced.clone()]),
        (BEFORE_MEMBER_JOIN, success(0), vec![announced]),
        (
            BEFORE_SET_INFO,
            json!({
                "actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0,
                "groupID": "g77", "groupName": "Canoes & kayaks", "notification": "",
                "introduction": "", "faceURL": "", "ex": null, "needVerification": 2,
                "lookMemberInfo": null, "applyMemberFriend": null
            }),
            vec![],
        ),
        (
            BEFORE_SET_INFO_EX,
            json!({
                "actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0,
                "groupID": "g77", "groupName": null, "notification": null, "introduction": "",
                "faceURL": "https://example.com/face?a=1&b=2", "ex": null,
                "needVerification": null, "lookMemberInfo": null, "applyMemberFriend": 1
            }),
            vec![],
        ),
        (MESSAGE, success(0), vec![]),
        (PUSHED, success(0), vec![]),
    ]
    .map(|(command, reply, changes)| (command, Expected { reply, changes }))
    .into()
}

/// The bodies, by command.
fn fixtures() -> BTreeMap<String, String> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let body = std::fs::read_to_string(entry.path()).unwrap();
        (name.strip_suffix(".json").unwrap().to_owned(), body)
    };
    std::fs::read_dir(FIXTURES).unwrap().map(read).collect()
}

/// A service that knows what the body implies: for all but a creation the group.
async fn app_before(command: &str) -> TestApp {
    let app = TestApp::start().await;
    if command != CREATE {
        let body = fixtures().remove(CREATE).unwrap();
        app.post(&format!("/{CREATE}"), body).await.ok();
    }
    app
}

async fn assert_expected(command: &str, body: String, expected: &Expected) {
    let app = app_before(command).await;
    let before = state(&app.db).await;
    let reply = app.post(&format!("/{command}"), body).await;
    assert_eq!(reply.ok(), expected.reply, "{command}");
    // Stopped, it has written every mark.
    let db = app.stop().await;
    let expected = changed(&before, &expected.changes);
    assert_eq!(state(&db).await, expected, "{command}");
    assert_eq!(rejected(&db).await, [] as [Value; 0]);
}

#[test]
fn the_fixtures_are_written_as_openim_writes() {
    for (command, body) in fixtures() {
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(written_by_go(&value), body);
        assert_eq!(value["callbackCommand"], command);
    }
}

#[test]
fn every_callback_of_the_document_has_a_fixture() {
    let document: Value = serde_json::from_str(&openapi_json().unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let declared = paths.filter_map(|(path, operations)| {
        let is_callback = operations["post"]["tags"] == json!(["Callbacks"]);
        let command = path.strip_prefix("/callback").filter(|_| is_callback)?;
        Some(format!("callback{command}"))
    });
    let declared: BTreeSet<String> = declared.collect();
    assert_eq!(declared, fixtures().into_keys().collect());
}

#[tokio::test]
async fn every_fixture_is_answered_and_changes_the_mirror_as_expected() {
    let expectations = expectations();
    let fixtures = fixtures();
    let of_fixtures: Vec<&str> = fixtures.keys().map(String::as_str).collect();
    let expected: Vec<&str> = expectations.keys().copied().collect();
    assert_eq!(of_fixtures, expected);
    for (command, body) in fixtures {
        assert_expected(&command, body, &expectations[command.as_str()]).await;
    }
}

#[tokio::test]
async fn case_50_keys_that_no_callback_is_known_to_have_are_ignored_by_all() {
    let expectations = expectations();
    for (command, body) in fixtures() {
        let extra = json!({
            "displayIsRead": true, "muteBypassUserIDs": ["m1"], "GROUPID": 7,
            "nested": {"groupID": "no", "userID": ["no"], "callbackCommand": {"a": null}}
        });
        let mut value = with(serde_json::from_str(&body).unwrap(), &extra);
        // As a later OpenIM may send it.
        if command == JOIN {
            value["ex"] = json!("x");
        }
        let body = written_by_go(&value);
        assert_expected(&command, body, &expectations[command.as_str()]).await;
    }
}

#[tokio::test]
async fn cases_06_07_a_member_or_group_first_heard_of_by_a_change_is_to_be_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    app.set("g1", "u9", json!({"roleLevel": 60})).await;
    let changes = [
        ("members/g1/u9", json!([60, null, null, null, "here"])),
        ("groups/g1/check", json!("member_unknown")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    app.set("g8", "u1", json!({})).await;
    let stub = group(&app.db, "g8").await.unwrap();
    for column in ["name", "ex", "owner_user_id", "status", "last_callback_at"] {
        assert_eq!(stub[column], Value::Null, "{column}");
    }
    assert_eq!(check(&app.db, "g8").await.as_deref(), Some("group_unknown"));
    let expected = [Value::Null, Value::Null, Value::Null, Value::Null];
    assert_eq!(app.member("g8", "u1").await, Some(expected));
}

#[tokio::test]
async fn case_08_an_owners_role_that_no_transfer_gave_is_stored_and_to_be_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    app.set("g1", "m1", json!({"roleLevel": 100})).await;
    let changes = [
        ("members/g1/m1", here(100)),
        ("groups/g1/check", json!("owner_role")),
    ];
    assert_changed(&app.db, &before, &changes).await;
}

#[tokio::test]
async fn case_09_an_owner_who_is_made_an_ordinary_member_leaves_the_group_without_one() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    app.set("g1", "o1", json!({"roleLevel": 20})).await;
    let changes = [
        ("members/g1/o1", here(20)),
        ("groups/g1/owner_user_id", Value::Null),
        ("groups/g1/check", json!("owner_role")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    let owners = app.get("/groups/g1/members?roleLevel=100").await.ok();
    assert_eq!(owners["members"], json!([]));
    assert_eq!(app.get("/groups/g1").await.ok()["memberCount"], 4);
}

#[tokio::test]
async fn case_11_a_body_that_is_refused_has_its_group_checked_where_it_names_one() {
    for role_level in [json!("60"), json!(60.5), json!(1_i64 << 40)] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        let body = member_info(
            "g1",
            "m1",
            json!({"nickName": "no", "roleLevel": role_level}),
        );
        let reply = app.callback_text(body.clone()).await;
        assert_eq!((reply.status, &reply.body["errCode"]), (400, &json!(5103)));
        app.assert_kept(body.as_bytes(), &reply).await;
        until_marked(&app, "g1").await;
        let changes = [("groups/g1/check", json!("callback_rejected"))];
        assert_changed(&app.db, &before, &changes).await;
        app.set("g1", "m1", json!({"roleLevel": 60})).await;
        assert_eq!(app.member("g1", "m1").await.unwrap()[0], json!(60));
    }
}

#[tokio::test]
async fn case_11_a_body_that_is_refused_and_names_no_group_has_none_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    let body = member_info("g1", "m1", json!({"groupID": 1}));
    assert_eq!(app.callback_text(body).await.status, 400);
    // Stopped, it has written every mark.
    let db = app.stop().await;
    assert_changed(&db, &before, &[]).await;
    assert_eq!(rejected(&db).await.len(), 1);
}

#[tokio::test]
async fn case_12_a_creation_stores_the_group_and_its_true_members_and_not_the_caller() {
    let app = TestApp::start().await;
    create(&app, "g77", "o1", &[("a1", 60), ("m1", 20), ("m2", 20)]).await;
    let members = json!({"o1": here(100), "a1": here(60), "m1": here(20), "m2": here(20)});
    let expected = json!({"groups": {"g77": kayaks("")}, "members": {"g77": members}});
    assert_eq!(state(&app.db).await, expected);
    let joined = "select distinct joined_at from group_members";
    assert_eq!(
        app.db.rows(joined).await,
        [json!({"joined_at": "2025-07-02T09:53:20.123+00:00"})]
    );
    let page = app.get("/groups/g77/members").await.ok();
    assert_eq!(page["members"].as_array().unwrap().len(), 4);
    assert_not_current(&app, "g77", &["imAdmin"]).await;
}

#[tokio::test]
async fn case_14_who_creates_a_group_alone_is_its_owner_once() {
    let app = TestApp::start().await;
    let mut fields = creation("g1", "o1", &[]);
    let list = fields["initMemberList"].as_array_mut().unwrap();
    // Called by the owner.
    list.pop();
    assert_eq!(list.len(), 2);
    tell(&app, CREATE, fields).await;
    let state = state(&app.db).await;
    assert_eq!(state["members"], json!({"g1": {"o1": here(100)}}));
    assert_eq!(state["groups"]["g1"]["owner_user_id"], "o1");
    assert_eq!(check(&app.db, "g1").await, None);
}

#[tokio::test]
async fn case_16_a_creation_that_comes_again_undoes_nothing_and_is_to_be_checked() {
    let app = app_with_group().await;
    app.set("g1", "m1", json!({"roleLevel": 60})).await;
    let before = state(&app.db).await;
    assert_eq!(before["members"]["g1"]["m1"], here(60));
    assert_eq!(check(&app.db, "g1").await, None);
    create(&app, "g1", "o1", &[("a1", 60), ("m1", 20), ("m2", 20)]).await;
    let changes = [("groups/g1/check", json!("group_known"))];
    assert_changed(&app.db, &before, &changes).await;
}

#[tokio::test]
async fn case_18_a_creation_without_members_stores_the_group_to_be_checked() {
    let app = TestApp::start().await;
    for (id, list) in [
        ("null", Some(Value::Null)),
        ("missing", None),
        ("empty", Some(json!([]))),
    ] {
        let mut fields = creation(id, "o1", &[]);
        match list {
            Some(list) => fields["initMemberList"] = list,
            None => drop(fields.as_object_mut().unwrap().remove("initMemberList")),
        }
        tell(&app, CREATE, fields).await;
        let stored = group(&app.db, id).await.unwrap();
        assert_eq!(
            (&stored["name"], &stored["status"]),
            (&json!("Kayaks"), &json!(0))
        );
        assert_eq!(stored["owner_user_id"], Value::Null);
        assert_eq!(check(&app.db, id).await.as_deref(), Some("members_missing"));
    }
    assert_eq!(state(&app.db).await["members"], json!({}));
}

#[tokio::test]
async fn case_19_who_joins_is_named_as_the_inviter() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    join(&app, "g1", "u5").await;
    assert_changed(&app.db, &before, &[("members/g1/u5", here(20))]).await;
    let row = row(&app.db, "g1", "u5").await.unwrap();
    assert!(row["joined_at"].is_string(), "{row}");
    let expected = [json!(20), json!(""), json!(""), json!("")];
    assert_eq!(app.member("g1", "u5").await, Some(expected));
}

#[tokio::test]
async fn case_20_a_join_of_a_member_changes_nothing_and_is_to_be_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    join(&app, "g1", "a1").await;
    let changes = [("groups/g1/check", json!("member_present"))];
    assert_changed(&app.db, &before, &changes).await;
}

#[tokio::test]
async fn case_21_where_a_join_tells_who_joined_the_inviter_is_not_looked_at() {
    let app = app_with_group().await;
    for (number, fields) in [
        // The form of the old documents.
        json!({"userID": "j0", "ex": "x", "groupEx": ""}),
        json!({"userID": "j1", "inviterUserID": "a1"}),
        json!({"userIDs": ["j2", "j2"], "inviterUserID": "stranger"}),
        json!({"userID": "", "userIDs": [], "invitedUserIDs": ["j3"], "inviterUserID": "m1"}),
        json!({"memberList": [{"userID": "j4", "ex": ""}], "inviterUserID": ""}),
    ]
    .into_iter()
    .enumerate()
    {
        tell(&app, JOIN, with(json!({"groupID": "g1"}), &fields)).await;
        let joined = format!("j{number}");
        assert_eq!(
            current_role(&app, "g1", &joined).await,
            Some(20),
            "{fields}"
        );
    }
    assert_eq!(check(&app.db, "g1").await, None);
    assert_eq!(row(&app.db, "g1", "stranger").await, None);
    assert_eq!(current_role(&app, "g1", "a1").await, Some(60));

    let fields = json!({"groupID": "g1", "userIDs": ["j5", ""], "inviterUserID": "a1"});
    tell(&app, JOIN, fields).await;
    assert_eq!(current_role(&app, "g1", "j5").await, Some(20));
    assert_eq!(
        check(&app.db, "g1").await,
        Some("members_missing".to_owned())
    );
}

#[tokio::test]
async fn a_join_that_tells_nobody_is_refused_and_to_be_checked() {
    let app = app_with_group().await;
    let fields = json!({"groupID": "g1", "userID": "", "userIDs": null, "memberList": []});
    let reply = post(&app, JOIN, fields.clone()).await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.body["errCode"], 5102);
    assert_eq!(reply.body["errDlt"], "inviterUserID: expected a value");
    let kept = json!({
        "path": format!("/{JOIN}"), "code": "field_missing", "body": body(JOIN, &fields)
    });
    assert_eq!(rejected(&app.db).await, [kept]);
    until_marked(&app, "g1").await;
}

async fn app_with_operators() -> TestApp {
    let ids = ["imAdmin", "backend"].map(|id| UserId::parse(id.into()).unwrap());
    TestApp::start_on(TestDb::new().await, |config| {
        config.operators = Operators::new(ids);
    })
    .await
}

#[tokio::test]
async fn an_operator_that_is_told_as_inviter_has_not_joined_and_the_group_is_to_be_checked() {
    let app = app_with_operators().await;
    create(&app, "g1", "o1", &[("m1", 20)]).await;
    join(&app, "g1", "backend").await;
    assert_eq!(row(&app.db, "g1", "backend").await, None);
    assert_eq!(
        check(&app.db, "g1").await,
        Some("members_missing".to_owned())
    );
    // Where it is told as who joined, it has.
    let fields = json!({"groupID": "g1", "userID": "backend", "inviterUserID": "imAdmin"});
    tell(&app, JOIN, fields).await;
    assert_eq!(current_role(&app, "g1", "backend").await, Some(20));
    assert_eq!(row(&app.db, "g1", "imAdmin").await, None);
}

#[tokio::test]
async fn an_operator_at_the_end_of_a_list_that_names_the_owner_once_is_no_member() {
    let app = app_with_operators().await;
    let list = |last: &str| {
        json!([{"userID": "o1", "roleLevel": 100}, {"userID": "m1", "roleLevel": 20},
               {"userID": last, "roleLevel": 20}])
    };
    for (group, last) in [("g1", "backend"), ("g2", "m2")] {
        let fields = with(
            creation(group, "o1", &[]),
            &json!({"initMemberList": list(last)}),
        );
        tell(&app, CREATE, fields).await;
        assert_eq!(current_role(&app, group, "m1").await, Some(20));
    }
    assert_eq!(row(&app.db, "g1", "backend").await, None);
    assert_eq!(
        check(&app.db, "g1").await,
        Some("members_missing".to_owned())
    );
    assert_eq!(current_role(&app, "g2", "m2").await, Some(20));
    assert_eq!(check(&app.db, "g2").await, None);
    // The list that today's OpenIM sends needs no such look.
    create(&app, "g3", "o1", &[("backend", 20)]).await;
    assert_eq!(current_role(&app, "g3", "backend").await, Some(20));
    assert_eq!(check(&app.db, "g3").await, None);
}

async fn current_role(app: &TestApp, group: &str, user: &str) -> Option<i64> {
    let [role, ..] = app.member(group, user).await?;
    role.as_i64()
}

#[tokio::test]
async fn case_22_who_joins_again_starts_afresh() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    join(&app, "g1", "u5").await;
    let boss = json!({"roleLevel": 60, "nickName": "Boss", "faceURL": "f", "ex": "e"});
    app.set("g1", "u5", boss).await;
    quit(&app, "g1", "u5").await;
    let tombstone = json!([60, "Boss", "f", "e", "gone"]);
    assert_changed(&app.db, &before, &[("members/g1/u5", tombstone)]).await;
    join(&app, "g1", "u5").await;
    assert_changed(&app.db, &before, &[("members/g1/u5", here(20))]).await;
}

#[tokio::test]
async fn case_23_who_quits_unknown_leaves_a_tombstone_to_be_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    quit(&app, "g1", "u9").await;
    let changes = [
        ("members/g1/u9", json!([null, null, null, null, "gone"])),
        ("groups/g1/check", json!("member_unknown")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    assert_not_current(&app, "g1", &["u9"]).await;
}

#[tokio::test]
async fn case_24_a_change_right_after_a_leave_is_kept_and_brings_nobody_back() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    quit(&app, "g1", "m1").await;
    app.set("g1", "m1", json!({"nickName": "x"})).await;
    let changes = [
        ("members/g1/m1", json!([20, "x", "", "", "gone"])),
        ("groups/g1/check", json!("member_gone")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    assert_not_current(&app, "g1", &["m1"]).await;
}

/// State of a member who was Boss and quit, and gets a nickname `later`.
async fn changed_after_a_leave(later: Duration) -> (Value, Option<String>) {
    let db = TestDb::new().await;
    let store = db.database().open().await.unwrap();
    let retention = Retention {
        keep_days: 1,
        max_bytes: 0,
    };
    let ingest = Ingest::new(store.clone(), retention, None);
    let submit = async |command: &str, body: &str, at: OffsetDateTime| {
        let change = understand(&format!("/{command}"), body.as_bytes(), at).unwrap();
        ingest.submit(change).await.unwrap();
    };
    let left_at = OffsetDateTime::from_unix_timestamp(1_751_450_100).unwrap();
    let created = body(CREATE, &creation("g1", "o1", &[("u5", 20)]));
    submit(CREATE, &created, left_at).await;
    let boss = json!({"nickName": "Boss", "faceURL": "f", "roleLevel": 60, "ex": "e"});
    submit(SET_MEMBER, &member_info("g1", "u5", boss), left_at).await;
    let left = body(QUIT, &json!({"groupID": "g1", "userID": "u5"}));
    submit(QUIT, &left, left_at).await;
    assert_eq!(check(&db, "g1").await, None);
    let renamed = member_info("g1", "u5", json!({"nickName": "x"}));
    submit(SET_MEMBER, &renamed, left_at + later).await;
    ingest.close().await;
    store.close().await;
    let member = state(&db).await["members"]["g1"]["u5"].take();
    (member, check(&db, "g1").await)
}

#[tokio::test]
async fn cases_24_24b_a_change_more_than_15_s_after_a_leave_proves_that_the_member_is_back() {
    let (member, check) = changed_after_a_leave(Duration::seconds(15)).await;
    assert_eq!(member, json!([60, "x", "f", "e", "gone"]));
    assert_eq!(check.as_deref(), Some("member_gone"));
    let beyond = Duration::seconds(15) + Duration::microseconds(1);
    let (member, check) = changed_after_a_leave(beyond).await;
    assert_eq!(member, json!([20, "x", "", "", "here"]));
    assert_eq!(check.as_deref(), Some("member_back"));
}

#[tokio::test]
async fn case_25_of_two_leaves_the_first_counts() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    quit(&app, "g1", "m1").await;
    assert_changed(&app.db, &before, &[("members/g1/m1", gone(20))]).await;
    let first = row(&app.db, "g1", "m1").await.unwrap();
    quit(&app, "g1", "m1").await;
    // Who quits is a member; that this one was none is to be checked.
    let changes = [
        ("members/g1/m1", gone(20)),
        ("groups/g1/check", json!("member_gone")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    let second = row(&app.db, "g1", "m1").await.unwrap();
    assert!(first["left_at"].is_string(), "{first}");
    for column in ["left_at", "updated_at"] {
        assert_eq!(second[column], first[column], "{column}");
    }
}

#[tokio::test]
async fn case_26_a_kick_of_1000_is_one_change_whoever_is_among_them() {
    let app = TestApp::start().await;
    let users: Vec<String> = (0..1000).map(|n| format!("u{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let (known, unknown) = users.split_at(997);
    let members: Vec<(&str, i32)> = known.iter().map(|user| (*user, 20)).collect();
    create(&app, "g1", "o1", &members).await;
    quit(&app, "g1", "u0").await;
    assert_eq!(check(&app.db, "g1").await, None);
    let left_before = row(&app.db, "g1", "u0").await.unwrap()["left_at"].take();
    kick(&app, "g1", &users).await;
    let count = "select count(*) as members, count(left_at) as gone,
                        count(distinct xmin::text) as transactions,
                        count(distinct last_callback_at) as times,
                        count(distinct left_at) as leaves
                   from group_members where user_id <> 'o1'";
    let expected =
        json!({"members": 1000, "gone": 1000, "transactions": 1, "times": 1, "leaves": 2});
    assert_eq!(app.db.rows(count).await, [expected]);
    let left = row(&app.db, "g1", "u0").await.unwrap()["left_at"].take();
    assert_eq!(left, left_before);
    assert_not_current(&app, "g1", &["u0", "u1", "u996", unknown[0]]).await;
    assert_eq!(app.member("g1", "o1").await.unwrap()[0], json!(100));
    // Some were none who are members when they are kicked.
    assert_eq!(
        check(&app.db, "g1").await.as_deref(),
        Some("member_unknown")
    );
}

#[tokio::test]
async fn case_27_of_a_kick_what_is_no_id_is_passed_over_and_to_be_checked() {
    for (list, changes) in [
        (Some(Value::Null), vec![]),
        (None, vec![]),
        (Some(json!([])), vec![]),
        (Some(json!([""])), vec![]),
        (
            Some(json!(["", "m1", "x".repeat(1025)])),
            vec![("members/g1/m1", gone(20))],
        ),
    ] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        let mut fields = json!({"groupID": "g1", "reason": ""});
        if let Some(list) = list {
            fields["kickedUserIDs"] = list;
        }
        tell(&app, KICK, fields).await;
        let check = ("groups/g1/check", json!("members_missing"));
        let changes: Vec<_> = changes.into_iter().chain([check]).collect();
        assert_changed(&app.db, &before, &changes).await;
    }
}

#[tokio::test]
async fn case_28_who_is_kicked_is_gone_until_a_check_finds_the_invitation_that_followed() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    kick(&app, "g1", &["m1"]).await;
    assert_changed(&app.db, &before, &[("members/g1/m1", gone(20))]).await;
    assert_not_current(&app, "g1", &["m1"]).await;
}

/// Changes of a dismissal of g1, and other changes.
fn dismissed(others: &[(&'static str, Value)]) -> Vec<(&'static str, Value)> {
    let of_group = [
        ("groups/g1/status", json!(2)),
        ("groups/g1/has_been_dismissed", json!(true)),
        ("groups/g1/owner_user_id", Value::Null),
        ("members/g1/o1", gone(100)),
        ("members/g1/a1", gone(60)),
        ("members/g1/m1", gone(20)),
        ("members/g1/m2", gone(20)),
    ];
    of_group.into_iter().chain(others.iter().cloned()).collect()
}

#[tokio::test]
async fn case_80_a_dismissal_is_told_twice_and_the_members_have_left_once() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    // Of whom the mirror does not know there is no row after it either.
    dismiss(&app, "g1", json!(["o1", "a1", "m1", "m2", "stranger"])).await;
    assert_changed(&app.db, &before, &dismissed(&[])).await;
    let left = app.get("/groups/g1/members?state=left").await.ok();
    dismiss(&app, "g1", json!([])).await;
    assert_changed(&app.db, &before, &dismissed(&[])).await;
    assert_eq!(app.get("/groups/g1/members?state=left").await.ok(), left);
    // Also when an administrator has un-muted it meanwhile, of which OpenIM tells nothing.
    assert_not_current(&app, "g1", &["o1", "a1", "m1", "m2"]).await;
}

#[tokio::test]
async fn case_32_a_dismissal_that_lists_no_members_is_the_same() {
    for list in [Some(Value::Null), Some(json!([])), None] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        let mut fields = json!({"groupID": "g1", "ownerID": "o1", "groupType": "\u{2}"});
        if let Some(list) = list {
            fields["membersID"] = list;
        }
        tell(&app, DISMISS, fields).await;
        assert_changed(&app.db, &before, &dismissed(&[])).await;
        assert_not_current(&app, "g1", &["o1", "m1"]).await;
    }
}

#[tokio::test]
async fn case_33_of_two_dismissals_the_first_counts() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    dismiss(&app, "g1", json!(["o1", "a1", "m1", "m2"])).await;
    let first = group(&app.db, "g1").await.unwrap();
    dismiss(&app, "g1", Value::Null).await;
    assert_changed(&app.db, &before, &dismissed(&[])).await;
    let second = group(&app.db, "g1").await.unwrap();
    assert!(first["dismissed_at"].is_string(), "{first}");
    assert_eq!(second["dismissed_at"], first["dismissed_at"]);
    assert_not_current(&app, "g1", &["o1", "m1"]).await;
}

#[tokio::test]
async fn case_34_a_group_type_that_is_a_control_character_hinders_no_dismissal() {
    for group_type in ["\u{2}", "\u{0}"] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        let fields = json!({
            "groupID": "g1", "ownerID": "o1", "groupType": group_type, "membersID": ["o1"]
        });
        tell(&app, DISMISS, fields).await;
        assert_changed(&app.db, &before, &dismissed(&[])).await;
    }
}

#[tokio::test]
async fn case_80_a_late_change_of_a_member_of_a_dismissed_group_is_kept_and_revives_nobody() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    dismiss(&app, "g1", json!(["o1", "a1", "m1", "m2"])).await;
    app.set("g1", "m1", json!({"nickName": "x"})).await;
    let changes = [
        ("members/g1/m1", json!([20, "x", "", "", "gone"])),
        ("groups/g1/check", json!("group_dismissed")),
    ];
    assert_changed(&app.db, &before, &dismissed(&changes)).await;
    assert_not_current(&app, "g1", &["m1"]).await;
}

#[tokio::test]
async fn case_80_a_late_leave_from_a_dismissed_group_is_to_be_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    dismiss(&app, "g1", json!(["o1", "a1", "m1", "m2"])).await;
    kick(&app, "g1", &["m1"]).await;
    quit(&app, "g1", "m2").await;
    let check = ("groups/g1/check", json!("member_gone"));
    assert_changed(&app.db, &before, &dismissed(&[check])).await;
    assert_not_current(&app, "g1", &["m1", "m2"]).await;
}

#[tokio::test]
async fn case_39_a_dismissal_that_lists_100_000_members_is_taken() {
    let app = TestApp::start().await;
    let ids: Vec<String> = (0..100_000)
        .map(|n| format!("a-user-of-g9-{n:010}"))
        .collect();
    let fields = json!({
        "groupID": "g9", "ownerID": "o1", "groupType": "\u{2}", "membersID": ids
    });
    assert!(body(DISMISS, &fields).len() > 2 << 20);
    tell(&app, DISMISS, fields).await;
    let state = state(&app.db).await;
    assert_eq!(state["members"], json!({}));
    let group = &state["groups"]["g9"];
    assert_eq!(
        (&group["name"], &group["status"]),
        (&Value::Null, &json!(2))
    );
    assert_eq!(group["has_been_dismissed"], true);
    assert_eq!(check(&app.db, "g9").await.as_deref(), Some("group_unknown"));
}

#[tokio::test]
async fn cases_40_41_the_old_owner_gets_the_role_that_the_new_one_had() {
    for (new, role) in [("m1", 20), ("a1", 60)] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        transfer(&app, "g1", "o1", new).await;
        let member = format!("members/g1/{new}");
        let changes = [
            (member.as_str(), here(100)),
            ("members/g1/o1", here(role)),
            ("groups/g1/owner_user_id", json!(new)),
        ];
        assert_changed(&app.db, &before, &changes).await;
    }
}

#[tokio::test]
async fn case_43_a_transfer_to_somebody_unknown_leaves_one_owner_and_is_to_be_checked() {
    for (old, role) in [("o1", Value::Null), ("a1", json!(60))] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        transfer(&app, "g1", old, "u9").await;
        let member = format!("members/g1/{old}");
        let changes = [
            ("members/g1/u9", json!([100, null, null, null, "here"])),
            (member.as_str(), json!([role, "", "", "", "here"])),
            ("groups/g1/owner_user_id", json!("u9")),
            ("groups/g1/check", json!("owner_mismatch")),
        ];
        assert_changed(&app.db, &before, &changes).await;
    }
}

#[tokio::test]
async fn case_44_a_transfer_from_who_was_no_owner_leaves_two_until_a_check() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    transfer(&app, "g1", "m2", "a1").await;
    let changes = [
        ("members/g1/a1", here(100)),
        ("members/g1/m2", here(60)),
        ("groups/g1/owner_user_id", json!("a1")),
        ("groups/g1/check", json!("owner_mismatch")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    let owners = app.get("/groups/g1/members?roleLevel=100").await.ok();
    assert_eq!(owners["members"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn case_45_two_transfers_in_reverse_order_are_to_be_checked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    transfer(&app, "g1", "m1", "m2").await;
    transfer(&app, "g1", "o1", "m1").await;
    // In OpenIM m2 is the owner, and m1 an ordinary member.
    let changes = [
        ("members/g1/m2", here(100)),
        ("members/g1/m1", here(100)),
        ("members/g1/o1", here(20)),
        ("groups/g1/owner_user_id", json!("m1")),
        ("groups/g1/check", json!("owner_mismatch")),
    ];
    assert_changed(&app.db, &before, &changes).await;
}

#[tokio::test]
async fn case_46_text_is_kept_code_point_for_code_point() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    for text in [
        "👩‍👩‍👧‍👦",
        "\u{202E}abc\u{202C}\u{200F}",
        "e\u{301} é",
        "\u{10FFFF}𐍈",
        "<&>\u{2028}",
    ] {
        app.set("g1", "m1", json!({"nickName": text})).await;
        tell(
            &app,
            SET_INFO_EX,
            json!({"groupID": "g1", "groupName": text}),
        )
        .await;
        let changes = [
            ("members/g1/m1", json!([20, text, "", "", "here"])),
            ("groups/g1/name", json!(text)),
        ];
        assert_changed(&app.db, &before, &changes).await;
    }
}

#[tokio::test]
async fn case_48_nul_in_a_value_becomes_a_replacement() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    let texts = json!({"groupID": "g1", "groupName": "a\u{0}b", "ex": "\u{0}"});
    app.set("g1", "m1", json!({"nickName": "a\u{0}b", "ex": "\u{0}"}))
        .await;
    tell(&app, SET_INFO_EX, texts).await;
    let member = json!([20, "a\u{FFFD}b", "", "\u{FFFD}", "here"]);
    let changes = [
        ("members/g1/m1", member),
        ("groups/g1/name", json!("a\u{FFFD}b")),
        ("groups/g1/ex", json!("\u{FFFD}")),
    ];
    assert_changed(&app.db, &before, &changes).await;
    let mut fields = creation("g2", "o1", &[]);
    fields["groupName"] = json!("a\u{0}b");
    tell(&app, CREATE, fields).await;
    assert_eq!(group(&app.db, "g2").await.unwrap()["name"], "a\u{FFFD}b");
    assert_eq!(check(&app.db, "g2").await, None);
}

#[tokio::test]
async fn case_51_other_callbacks_are_answered_and_counted_and_change_nothing() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    for (command, label) in [
        (MESSAGE, MESSAGE),
        (
            "callbackAfterAddFriendCommand",
            "callbackAfterAddFriendCommand",
        ),
        ("callbackAfterInviteGroupCommand", "other"),
    ] {
        let fields = json!({"groupID": "g1", "userID": "m1", "inviterUserID": "u5"});
        tell(&app, command, fields).await;
        let reply = app.post(&format!("/{command}"), "no JSON").await;
        assert_eq!(reply.ok(), success(0));
        let count = format!("passed_over_callbacks_total{{command=\"{label}\"}}");
        assert_eq!(app.metric(&count).await, 2.0, "{command}");
    }
    // Stopped, it has written every mark.
    let db = app.stop().await;
    assert_changed(&db, &before, &[]).await;
    assert_eq!(rejected(&db).await.len(), 0);
}

#[tokio::test]
async fn case_52_a_body_sent_to_the_path_of_another_command_is_refused_and_changes_nothing() {
    let app = app_before(MESSAGE).await;
    let before = state(&app.db).await;
    let mut fixtures = fixtures();
    // Their bodies are never an error.
    fixtures.retain(|command, _| ![MESSAGE, PUSHED].contains(&command.as_str()));
    let paths = fixtures.keys().cycle().skip(1);
    let mut expected = Vec::new();
    for (body, path) in fixtures.values().zip(paths) {
        let path = format!("/{path}");
        let reply = app.post(&path, body.clone()).await;
        assert_eq!(reply.status, 400, "{path}");
        assert_eq!(reply.body["errCode"], 5105, "{path}");
        assert_eq!(reply.body["nextCode"], 0, "{path}");
        expected.push(json!({"path": path, "code": "command_mismatch", "body": body}));
    }
    // Stopped, it has written every mark.
    let db = app.stop().await;
    assert_changed(&db, &before, &[]).await;
    assert_eq!(rejected(&db).await, expected);
}

/// The fields of the older way to set a profile, with these.
fn profile(fields: Value) -> Value {
    let nothing = json!({
        "operationID": "", "groupID": "g1", "groupName": "", "notification": "",
        "introduction": "", "faceURL": "", "ex": null, "needVerification": null,
        "lookMemberInfo": null, "applyMemberFriend": null
    });
    with(nothing, &fields)
}

/// The fields of the newer way, without null.
fn profile_ex(fields: Value) -> Value {
    let nothing = json!({
        "groupName": null, "notification": null, "introduction": null, "faceURL": null
    });
    profile(with(nothing, &fields))
}

#[tokio::test]
async fn case_57_set_group_info_leaves_what_is_empty_as_it_is() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    tell(&app, SET_INFO, profile(json!({"introduction": "New"}))).await;
    let introduction = ("groups/g1/introduction", json!("New"));
    assert_changed(&app.db, &before, std::slice::from_ref(&introduction)).await;
    // It cannot be cleared in this way; ex can.
    tell(&app, SET_INFO, profile(json!({"ex": "x"}))).await;
    tell(&app, SET_INFO, profile(json!({}))).await;
    let ex = ("groups/g1/ex", json!("x"));
    assert_changed(&app.db, &before, &[introduction.clone(), ex]).await;
    tell(&app, SET_INFO, profile(json!({"ex": ""}))).await;
    assert_changed(&app.db, &before, &[introduction]).await;
}

#[tokio::test]
async fn cases_58_59_set_group_info_ex_clears_what_is_empty_and_takes_values_in_objects() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    tell(
        &app,
        SET_INFO_EX,
        profile_ex(json!({"introduction": "Old"})),
    )
    .await;
    let old = ("groups/g1/introduction", json!("Old"));
    assert_changed(&app.db, &before, &[old]).await;
    let cleared = json!({"introduction": "", "groupName": null});
    tell(&app, SET_INFO_EX, profile_ex(cleared)).await;
    assert_changed(&app.db, &before, &[]).await;
    let wrapped = json!({
        "groupName": {"value": "N"}, "needVerification": {"value": 1},
        "notification": null, "ex": null
    });
    tell(&app, SET_INFO_EX, profile_ex(wrapped)).await;
    let changes = [
        ("groups/g1/name", json!("N")),
        ("groups/g1/need_verification", json!(1)),
    ];
    assert_changed(&app.db, &before, &changes).await;
    tell(
        &app,
        SET_INFO_EX,
        profile_ex(json!({"groupName": "N", "ex": null})),
    )
    .await;
    assert_changed(&app.db, &before, &changes).await;
}

/// Sends a callback with the operation id that an administrator's program uses for all it does.
async fn send_as_im_admin(app: &TestApp, command: &str, body: String) {
    let build = |request: reqwest::RequestBuilder| {
        request
            .header("Operationid", "imAdmin")
            .header("content-type", "application/json; charset=utf-8")
            .body(body)
    };
    let path = format!("/{command}");
    app.send(Method::POST, &path, build).await.ok();
}

#[tokio::test]
async fn cases_60_61_callbacks_that_share_an_operation_id_are_all_applied() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    for user in ["a1", "m1", "m2"] {
        let body = member_info("g1", user, json!({"nickName": "three"}));
        send_as_im_admin(&app, SET_MEMBER, body).await;
    }
    let joined = json!({
        "operationID": "imAdmin", "groupID": "g1", "reqMessage": "", "joinSource": 3,
        "inviterUserID": "u5"
    });
    send_as_im_admin(&app, JOIN, body(JOIN, &joined)).await;
    let left = json!({"groupID": "g1", "userID": "m2"});
    send_as_im_admin(&app, QUIT, body(QUIT, &left)).await;
    let changes = [
        ("members/g1/a1", json!([60, "three", "", "", "here"])),
        ("members/g1/m1", json!([20, "three", "", "", "here"])),
        ("members/g1/m2", json!([20, "three", "", "", "gone"])),
        ("members/g1/u5", here(20)),
    ];
    assert_changed(&app.db, &before, &changes).await;
}

#[tokio::test]
async fn case_72_users_who_are_announced_come_in_unheard_so_the_group_is_to_be_checked() {
    for (command, users) in [
        (
            BEFORE_MEMBERS_JOIN,
            json!({"memberList": [{"userID": "u7", "ex": ""}]}),
        ),
        (BEFORE_MEMBER_JOIN, json!({"userID": "u7", "ex": ""})),
    ] {
        let app = app_with_group().await;
        let before = state(&app.db).await;
        for id in ["g1", "g9"] {
            let fields = with(json!({"groupID": id, "groupEx": ""}), &users);
            tell(&app, command, fields).await;
            until_marked(&app, id).await;
        }
        let stub = state(&app.db).await["groups"]["g9"].take();
        assert_eq!(
            (&stub["name"], &stub["check"]),
            (&Value::Null, &json!("join_announced"))
        );
        let changes = [
            ("groups/g1/check", json!("join_announced")),
            ("groups/g9", stub),
        ];
        assert_changed(&app.db, &before, &changes).await;
    }
}

#[tokio::test]
async fn case_72_other_before_callbacks_let_openim_go_on_and_change_nothing() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    for command in [
        "callbackBeforeCreateGroupCommand",
        "callbackBeforeJoinGroupCommand",
        "callbackBeforeInviteJoinGroupCommand",
        "callbackBeforeSetGroupMemberInfoCommand",
    ] {
        let fields = json!({
            "operationID": "op-1", "groupID": "g1", "userID": "m1", "nickName": "no",
            "applyID": "u7", "invitedUserIDs": ["u7"], "groupType": "\u{2}"
        });
        tell(&app, command, fields).await;
    }
    // Stopped, it has written every mark.
    let db = app.stop().await;
    assert_changed(&db, &before, &[]).await;
}

#[tokio::test]
async fn a_list_of_more_users_than_openim_can_send_is_refused_and_the_group_marked() {
    let app = app_with_group().await;
    let before = state(&app.db).await;
    let body = json!({
        "callbackCommand": KICK, "groupID": "g1", "kickedUserIDs": vec!["m1"; 100_001]
    });
    let reply = app.post(&format!("/{KICK}"), body.to_string()).await;
    assert_eq!((reply.status, &reply.body["errCode"]), (400, &json!(5108)));
    assert_eq!(
        reply.body["errDlt"],
        "kickedUserIDs: expected at most 100000 items"
    );
    until_marked(&app, "g1").await;
    let changes = [("groups/g1/check", json!("callback_rejected"))];
    assert_changed(&app.db, &before, &changes).await;
}
