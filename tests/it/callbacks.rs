//! callbackAfterSetGroupMemberInfoCommand: what it changes, and every answer it can get.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{
    TestApp, TestDb, answer, body_of, head_of_callback, member_info, sample, until,
};

const PATH: &str = "/callbackAfterSetGroupMemberInfoCommand";
const EMPTY: Value = Value::Null;

/// A member with every field known: role 20, "old", "f", "e".
async fn app_with_member() -> TestApp {
    let app = TestApp::start().await;
    let fields = json!({"nickName": "old", "faceURL": "f", "roleLevel": 20, "ex": "e"});
    app.set("g1", "u1", fields).await;
    app
}

async fn stored(app: &TestApp) -> Value {
    let mut rows = app
        .db
        .rows("select * from group_members order by group_id, user_id")
        .await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

#[tokio::test]
async fn the_documents_sample_gives_the_documents_reply_and_the_row() {
    let app = TestApp::start().await;
    let path = format!("{PATH}?contenttype=json");
    let reply = app.post(&path, sample().to_string()).await;
    assert_eq!(
        reply.ok(),
        json!({"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 1})
    );
    let row = stored(&app).await;
    for (column, value) in [
        ("group_id", json!("12345")),
        ("user_id", json!("user789")),
        ("nickname", json!("user")),
        (
            "face_url",
            json!("http://example.com/path/to/face/image.png"),
        ),
        ("role_level", json!(20)),
        ("ex", json!("Extra data")),
        ("left_at", EMPTY),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
    assert_eq!(row["created_at"], row["updated_at"]);
    assert_eq!(row["created_at"], row["last_callback_at"]);
}

#[tokio::test]
async fn a_body_as_openim_sends_it_is_applied() {
    let app = TestApp::start().await;
    let body = include_str!("../fixtures/callbacks/callbackAfterSetGroupMemberInfoCommand.json");
    app.callback_text(body).await.ok();
    let expected = [json!(60), json!("Ann <3"), EMPTY, EMPTY];
    assert_eq!(app.member("g77", "m1").await, Some(expected));
}

#[tokio::test]
async fn case_01_all_null_changes_nothing_but_the_time_of_the_last_callback() {
    let app = app_with_member().await;
    let before = stored(&app).await;
    app.set("g1", "u1", json!({})).await;
    let mut after = stored(&app).await;
    assert!(after["last_callback_at"].as_str() > before["last_callback_at"].as_str());
    for of_callback in ["last_callback_at", "last_callback_xid"] {
        after[of_callback] = before[of_callback].clone();
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn cases_02_03_05_present_fields_change_and_an_empty_text_is_a_value() {
    let app = app_with_member().await;
    let mut expected = [json!(20), json!("old"), json!("f"), json!("e")];
    for (field, index, value) in [
        ("nickName", 1, json!("Ann")),
        ("nickName", 1, json!("")),
        ("ex", 3, json!("x")),
        ("ex", 3, json!("")),
        ("faceURL", 2, json!("")),
        ("roleLevel", 0, json!(60)),
        ("faceURL", 2, json!("http://f")),
    ] {
        app.set("g1", "u1", json!({ field: value })).await;
        expected[index] = value;
        assert_eq!(
            app.member("g1", "u1").await.as_ref(),
            Some(&expected),
            "{field}"
        );
    }
}

#[tokio::test]
async fn a_value_that_is_set_is_shown_at_once_and_what_an_empty_one_gives_way_to_is_not_known() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({})).await;
    let member = async || app.get("/groups/g/members/u").await.ok();
    for (stored, shown, told, expected) in [
        (None, None, Some("a"), Some("a")),
        (Some(""), Some("profile's"), Some("a"), Some("a")),
        (Some("a"), Some("a"), Some("b"), Some("b")),
        (Some("a"), Some("a"), Some("a"), Some("a")),
        (Some("a"), None, Some("a"), Some("a")),
        (Some("a"), Some("b"), Some("a"), Some("a")),
        (Some("a"), Some("a"), Some(""), None),
        (None, Some("profile's"), Some(""), None),
        (None, None, Some(""), None),
        (Some(""), Some("profile's"), Some(""), Some("profile's")),
        (Some(""), None, Some(""), None),
        (Some(""), Some("profile's"), None, Some("profile's")),
        (Some("a"), Some("a"), None, Some("a")),
        (None, None, None, None),
    ] {
        for (column, name, shown_column, shown_name) in [
            ("nickname", "nickName", "display_nickname", "displayName"),
            ("face_url", "faceURL", "display_face_url", "displayFaceURL"),
        ] {
            let case = format!("{name} {told:?} where {stored:?} is shown as {shown:?}");
            let sql = |text: Option<&str>| match text {
                Some(text) => format!("'{}'", text.replace('\'', "''")),
                None => "null".to_owned(),
            };
            let (stored_sql, shown_sql) = (sql(stored), sql(shown));
            app.db
                .execute(&format!(
                    "update group_members set nickname = null, display_nickname = null,
                                              face_url = null, display_face_url = null;
                     update group_members set {column} = {stored_sql}, {shown_column} = {shown_sql}"
                ))
                .await;
            let before = member().await;
            app.set("g", "u", json!({ name: told })).await;
            let after = member().await;
            assert_eq!(after[name], json!(told.or(stored)), "{case}");
            assert_eq!(after[shown_name], json!(expected), "{case}");
            let has_changed = (told.or(stored), expected) != (stored, shown);
            let has_moved = after["updatedAt"] != before["updatedAt"];
            assert_eq!(has_moved, has_changed, "{case}");
        }
    }
}

#[tokio::test]
async fn case_04_a_missing_key_is_as_null() {
    let app = app_with_member().await;
    let body = json!({
        "callbackCommand": "callbackAfterSetGroupMemberInfoCommand",
        "groupID": "g1", "userID": "u1", "nickName": "Ann"
    });
    app.callback_text(body.to_string()).await.ok();
    let expected = [json!(20), json!("Ann"), json!("f"), json!("e")];
    assert_eq!(app.member("g1", "u1").await, Some(expected));
}

#[tokio::test]
async fn cases_06_07_a_member_never_heard_of_gets_a_row_with_what_is_known() {
    let app = app_with_member().await;
    app.set("g1", "u9", json!({"roleLevel": 60})).await;
    app.set("g8", "u1", json!({})).await;
    assert_eq!(
        app.member("g1", "u9").await,
        Some([json!(60), EMPTY, EMPTY, EMPTY])
    );
    assert_eq!(
        app.member("g8", "u1").await,
        Some([EMPTY, EMPTY, EMPTY, EMPTY])
    );
}

#[tokio::test]
async fn cases_08_09_10_any_int32_is_stored_as_role_level() {
    let app = app_with_member().await;
    for role in [100, 20, 1, 0, -1, i32::MAX, i32::MIN] {
        app.set("g1", "u1", json!({"roleLevel": role})).await;
        assert_eq!(app.member("g1", "u1").await.unwrap()[0], json!(role));
    }
}

#[tokio::test]
async fn case_11_a_field_of_another_type_is_refused_and_named() {
    let app = app_with_member().await;
    let before = stored(&app).await;
    let integer = "expected a whole number from -2147483648 to 2147483647";
    for (field, value, expected) in [
        (
            "roleLevel",
            json!("60"),
            format!("{integer}, found a string"),
        ),
        (
            "roleLevel",
            json!(60.5),
            format!("{integer}, found a number"),
        ),
        (
            "roleLevel",
            json!(1_i64 << 40),
            format!("{integer}, found a number"),
        ),
        (
            "roleLevel",
            json!(true),
            format!("{integer}, found a boolean"),
        ),
        (
            "roleLevel",
            json!({}),
            format!("{integer}, found an object"),
        ),
        (
            "nickName",
            json!(5),
            "expected a string, found a number".into(),
        ),
        (
            "nickName",
            json!(["a"]),
            "expected a string, found an array".into(),
        ),
        (
            "ex",
            json!({"a": 1}),
            "expected a string, found an object".into(),
        ),
        (
            "faceURL",
            json!(false),
            "expected a string, found a boolean".into(),
        ),
        (
            "groupID",
            json!(12345),
            "expected a string, found a number".into(),
        ),
        (
            "userID",
            json!([]),
            "expected a string, found an array".into(),
        ),
        (
            "callbackCommand",
            json!(0),
            "expected a string, found a number".into(),
        ),
    ] {
        let body = member_info("g1", "u1", json!({ field: value, "nickName": "no" }));
        let body = if field == "nickName" {
            member_info("g1", "u1", json!({ field: value }))
        } else {
            body
        };
        let reply = app.callback_text(body.clone()).await;
        assert_eq!(reply.status, 400);
        assert_eq!(
            reply.body,
            json!({
                "actionCode": 1,
                "errCode": 5103,
                "errMsg": "a field has the wrong type",
                "errDlt": format!("{field}: {expected}"),
                "nextCode": 0
            })
        );
        app.assert_kept(body.as_bytes(), &reply).await;
    }
    assert_eq!(stored(&app).await, before);
}

#[tokio::test]
async fn case_46_text_is_kept_code_point_for_code_point() {
    let app = TestApp::start().await;
    for text in [
        "👩‍👩‍👧‍👦",
        "\u{202E}abc\u{202C}",
        "e\u{301} é",
        "\u{10FFFF}𐍈",
        " \t\r\n ",
        "\u{1}\u{7F}\u{FFFD}\u{FEFF}",
        "'; DROP TABLE group_members; --",
        "\\u0041 \\ \" %s $1",
    ] {
        app.set(
            "g",
            "u",
            json!({"nickName": text, "faceURL": text, "ex": text}),
        )
        .await;
        let text = json!(text);
        let expected = [EMPTY, text.clone(), text.clone(), text];
        assert_eq!(app.member("g", "u").await, Some(expected));
    }
}

#[tokio::test]
async fn case_48_nul_becomes_a_replacement_in_a_value_and_is_refused_in_an_id() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"nickName": "a\u{0}b", "ex": "\u{0}"}))
        .await;
    let expected = [EMPTY, json!("a\u{FFFD}b"), EMPTY, json!("\u{FFFD}")];
    assert_eq!(app.member("g", "u").await, Some(expected));
    for (field, body) in [
        ("groupID", member_info("g\u{0}", "u", json!({}))),
        ("userID", member_info("g", "u\u{0}", json!({}))),
    ] {
        let reply = app.callback_text(body).await;
        assert_eq!(reply.status, 400);
        assert_eq!(reply.body["errCode"], 5104);
        assert_eq!(
            reply.body["errDlt"],
            format!("{field}: must not contain U+0000")
        );
    }
}

#[tokio::test]
async fn case_50_unknown_keys_are_ignored_whatever_they_hold() {
    let app = TestApp::start().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!(
        r#"{{"displayIsRead":true,"deep":{deep},"muteBypassUserIDs":["a"],"x":{{"groupID":"no"}},
            "callbackCommand":"callbackAfterSetGroupMemberInfoCommand","GROUPID":"no",
            "groupID":"g","userID":"u","nickName":"Ann","operationID":null}}"#
    );
    app.callback_text(body).await.ok();
    assert_eq!(app.member("g", "u").await.unwrap()[1], json!("Ann"));
    assert_eq!(app.db.rows("select 1 from group_members").await.len(), 1);
}

#[tokio::test]
async fn case_54_a_body_that_is_no_json_object_is_refused() {
    let app = TestApp::start().await;
    let surrogate =
        member_info("g", "u", json!({"nickName": "SURROGATE"})).replace("SURROGATE", "\\ud800");
    let invalid = member_info("g", "u", json!({"nickName": "INVALID"})).into_bytes();
    let invalid = [b"\xff\xfe".as_slice(), &invalid].concat();
    let trailing = format!("{} x", sample());
    for body in [
        b"".as_slice(),
        b" \n",
        b"null",
        b"[]",
        b"\"text\"",
        b"17",
        b"{",
        &sample().to_string().into_bytes()[..60],
        trailing.as_bytes(),
        surrogate.as_bytes(),
        &invalid,
        b"{'groupID':'g'}",
        "[".repeat(1_000_000).as_bytes(),
        r#"{"groupID":"#.repeat(200_000).as_bytes(),
    ] {
        let reply = app.callback_text(body.to_vec()).await;
        assert_eq!(reply.status, 400, "{:?}", &body[..body.len().min(50)]);
        assert_eq!(reply.body["actionCode"], 1);
        assert_eq!(reply.body["errCode"], 5101);
        assert_eq!(reply.body["nextCode"], 0);
        assert!(reply.body["errDlt"].as_str().unwrap().contains("expected"));
        app.assert_kept(body, &reply).await;
    }
    assert!(app.db.rows("select 1 from group_members").await.is_empty());
}

#[tokio::test]
async fn case_55_ids_are_required_and_have_1_to_1024_bytes() {
    let app = TestApp::start().await;
    let long = "ß".repeat(513);
    for (body, code, detail) in [
        (
            member_info("", "u", json!({})),
            5104,
            "groupID: must not be empty",
        ),
        (
            member_info("g", "", json!({})),
            5104,
            "userID: must not be empty",
        ),
        (
            member_info("g", &long, json!({})),
            5104,
            "userID: must be at most 1024 bytes of UTF-8",
        ),
        (
            member_info("g", "u", json!({"userID": null})),
            5102,
            "userID: expected a value",
        ),
        (
            json!({"callbackCommand": "callbackAfterSetGroupMemberInfoCommand", "userID": "u"})
                .to_string(),
            5102,
            "groupID: expected a value",
        ),
        (
            json!({"groupID": "g", "userID": "u"}).to_string(),
            5102,
            "callbackCommand: expected a value",
        ),
    ] {
        let reply = app.callback_text(body.clone()).await;
        assert_eq!(reply.status, 400);
        assert_eq!(reply.body["errCode"], code);
        assert_eq!(reply.body["errDlt"], detail);
        app.assert_kept(body.as_bytes(), &reply).await;
    }
    assert!(app.db.rows("select 1 from group_members").await.is_empty());
    // The longest there is, as group and as user: the index holds both.
    let id = "x".repeat(1024);
    app.set(&id, &id, json!({"roleLevel": 60})).await;
    assert_eq!(app.member(&id, &id).await.unwrap()[0], json!(60));
}

#[tokio::test]
async fn cases_60_61_callbacks_that_share_an_operation_id_are_all_applied() {
    let app = TestApp::start().await;
    let send = async |user: &str, fields: Value| {
        let body = member_info("g", user, fields);
        app.send(Method::POST, PATH, |request| {
            request
                .header("Operationid", "imAdmin")
                .header("content-type", "application/json; charset=utf-8")
                .body(body)
        })
        .await
        .ok();
    };
    for user in ["u1", "u2", "u3"] {
        send(user, json!({"roleLevel": 60})).await;
    }
    send("u1", json!({"roleLevel": 20})).await;
    for (user, role) in [("u1", 20), ("u2", 60), ("u3", 60)] {
        assert_eq!(app.member("g", user).await.unwrap()[0], json!(role));
    }
}

#[tokio::test]
async fn the_time_of_change_moves_only_with_a_value_and_always_forward() {
    let app = app_with_member().await;
    let mut before = stored(&app).await;
    // As if the last change had come from a clock that is ahead.
    app.db
        .execute("update group_members set updated_at = '2100-01-01T00:00:00Z'")
        .await;
    app.set(
        "g1",
        "u1",
        json!({"nickName": "old", "roleLevel": 20, "ex": "e"}),
    )
    .await;
    assert_eq!(
        stored(&app).await["updated_at"],
        "2100-01-01T00:00:00+00:00"
    );
    for (nickname, updated_at) in [
        ("new", "2100-01-01T00:00:00.000001+00:00"),
        ("new", "2100-01-01T00:00:00.000001+00:00"),
        ("newer", "2100-01-01T00:00:00.000002+00:00"),
    ] {
        app.set("g1", "u1", json!({"nickName": nickname})).await;
        before["updated_at"] = json!(updated_at);
        assert_eq!(stored(&app).await["updated_at"], before["updated_at"]);
        assert_eq!(stored(&app).await["created_at"], before["created_at"]);
    }
}

#[tokio::test]
async fn patches_of_one_member_at_the_same_time_lose_no_field() {
    let app = TestApp::start().await;
    let both = |fields: Value| app.set("g", "u", fields);
    for round in 0..20 {
        tokio::join!(
            both(json!({"nickName": format!("n{round}")})),
            both(json!({"faceURL": format!("f{round}")})),
            both(json!({"ex": format!("e{round}")})),
            both(json!({"roleLevel": round})),
        );
        let expected = [
            json!(round),
            json!(format!("n{round}")),
            json!(format!("f{round}")),
            json!(format!("e{round}")),
        ];
        assert_eq!(app.member("g", "u").await, Some(expected));
    }
}

#[tokio::test]
async fn every_form_of_the_path_and_any_query_reach_the_route() {
    let app = TestApp::start().await;
    for (number, path) in [
        PATH.to_owned(),
        format!("{PATH}?contenttype=json"),
        format!("{PATH}?%zz&=&a=b&a=%FF"),
        format!("/{PATH}"),
        format!("///{PATH}"),
        format!("{PATH}/"),
        format!("//{PATH}//?contenttype=json"),
    ]
    .into_iter()
    .enumerate()
    {
        let role = i32::try_from(number).unwrap();
        let reply = app
            .post(&path, member_info("g", "u", json!({"roleLevel": role})))
            .await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(
            app.member("g", "u").await.unwrap()[0],
            json!(role),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_operation_id_comes_back_if_it_is_short_and_visible() {
    let app = TestApp::start().await;
    let long = "x".repeat(129);
    let longest = "y".repeat(128);
    for (sent, expected) in [
        ("op-1", Some("op-1")),
        (longest.as_str(), Some(longest.as_str())),
        (long.as_str(), None),
        ("with space", None),
        ("ümlaut", None),
        ("", None),
    ] {
        for (path, status) in [(PATH, 400), ("/callbackXCommand", 200), ("/groups/g", 405)] {
            let reply = app
                .send(Method::POST, path, |request| {
                    request
                        .header("operationID", sent.as_bytes())
                        .header("content-type", "application/json")
                        .body("{}")
                })
                .await;
            assert_eq!(reply.status, status);
            assert_eq!(reply.header("operationID"), expected);
            assert_eq!(
                reply.headers.contains_key("operationID"),
                expected.is_some()
            );
        }
    }
}

#[tokio::test]
async fn case_52_a_command_that_does_not_match_the_path_is_refused() {
    let app = TestApp::start().await;
    let body = json!({"callbackCommand": "callbackAfterQuitGroupCommand"});
    let body = member_info("g", "u", body);
    let reply = app.callback_text(body.clone()).await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.body["errCode"], 5105);
    app.assert_kept(body.as_bytes(), &reply).await;
    assert_eq!(
        reply.body["errDlt"],
        "callbackCommand: expected callbackAfterSetGroupMemberInfoCommand, as in the path"
    );
    assert!(app.db.rows("select 1 from group_members").await.is_empty());
}

#[tokio::test]
async fn what_is_not_json_by_its_type_is_refused() {
    let app = TestApp::start().await;
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let reply = app
            .send(Method::POST, PATH, |request| {
                let request = request.body(sample().to_string());
                match content_type {
                    Some(content_type) => request.header("content-type", content_type),
                    None => request,
                }
            })
            .await;
        assert_eq!(reply.status, 415);
        assert_eq!(reply.body["errCode"], 5115);
        assert_eq!(
            reply.body["errDlt"],
            "Content-Type: expected application/json"
        );
        app.assert_kept(sample().to_string().as_bytes(), &reply)
            .await;
    }
}

#[tokio::test]
async fn every_error_to_a_post_is_the_package_and_to_others_a_problem() {
    let app = TestApp::start().await;
    // What is a callback for POST is nothing for others.
    let reply = app.post("/nowhere", "{}").await;
    assert_eq!((reply.status, &reply.body["errCode"]), (400, &json!(5102)));
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let reply = app
            .send(method.clone(), "/nowhere", |request| request)
            .await;
        assert_eq!(reply.status, 404, "{method}");
        assert_eq!(reply.body["code"], "path_unknown");
    }
    let reply = app.post("/groups/g/members", "{}").await;
    assert_eq!(reply.status, 405);
    assert_eq!(reply.body["errCode"], 5122);
    assert_eq!(reply.header("allow"), Some("GET, HEAD"));
    // Also where a read without parameters has the path.
    for path in ["/livez", "/readyz", "/metrics"] {
        let reply = app.post(path, "{}").await;
        assert_eq!(
            (reply.status, &reply.body["errCode"]),
            (405, &json!(5122)),
            "{path}"
        );
        assert_eq!(reply.header("allow"), Some("GET, HEAD"), "{path}");
        let head = app.send(Method::HEAD, path, |request| request).await;
        assert_eq!(head.status, 200, "{path}");
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
        let reply = app.send(method.clone(), PATH, |request| request).await;
        assert_eq!(reply.status, 405, "{method}");
        assert_eq!(reply.header("allow"), Some("POST"));
        assert_eq!(
            reply.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(reply.body["code"], "method_not_allowed");
    }
}

#[tokio::test]
async fn callback_next_code_can_be_0_for_old_servers() {
    let app = TestApp::start_on(TestDb::new().await, |config| config.callback_next_code = 0).await;
    assert_eq!(
        app.callback_text(sample().to_string()).await.ok()["nextCode"],
        0
    );
}

/// The body in chunks, so without a Content-Length.
fn chunked(body: String) -> reqwest::Body {
    let (sender, body_receiver) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let mut sender = sender;
        // The service may stop reading; that is what is tested.
        let _ = sender.write_all(body.as_bytes()).await;
    });
    reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(body_receiver))
}

#[tokio::test]
async fn bodies_up_to_the_limit_are_taken_announced_or_chunked() {
    let app = TestApp::start_on(TestDb::new().await, |config| config.body.max_bytes = 20_000).await;
    app.callback_text(body_of(20_000)).await.ok();
    app.callback_text(chunked(body_of(20_000))).await.ok();
    for body in [
        reqwest::Body::from(body_of(20_001)),
        chunked(body_of(20_001)),
    ] {
        let reply = app.callback_text(body).await;
        assert_eq!(reply.status, 413);
        assert_eq!(reply.body["errCode"], 5113);
        assert_eq!(
            reply.body["errDlt"],
            "expected at most 20000 bytes (MAX_BODY_BYTES)"
        );
    }
}

#[tokio::test]
async fn a_body_of_16_mib_is_stored_whole() {
    let app = TestApp::start().await;
    app.callback_text(body_of(16 << 20)).await.ok();
    let length = &app
        .db
        .rows("select length(ex) as n from group_members")
        .await[0]["n"];
    assert!(length.as_u64().unwrap() > (16 << 20) - 300);
}

#[tokio::test]
async fn callbacks_follow_each_other_on_one_kept_connection() {
    let app = TestApp::start().await;
    let mut connection = app.connect().await;
    for role in 1..=3 {
        let body = member_info("g", "u", json!({"roleLevel": role}));
        let request = head_of_callback(body.len()) + &body;
        connection.write_all(request.as_bytes()).await.unwrap();
        let answer = answer(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(app.member("g", "u").await.unwrap()[0], json!(role));
    }
}

/// With one connection to the database, which somebody else has: the write has not begun when its
/// sender hangs up.
#[tokio::test]
async fn a_callback_whose_sender_hangs_up_is_applied_all_the_same() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.database.pool_size = 2;
        config.database.timeout = Duration::from_secs(30);
    })
    .await;
    app.set("g", "u", json!({"roleLevel": 20})).await;
    let holder = app.db.hold_members().await;
    let body = member_info("g", "u", json!({"roleLevel": 60}));
    let request = head_of_callback(body.len()) + &body;
    let mut bodies = body.len();
    let mut first = app.connect().await;
    first.write_all(request.as_bytes()).await.unwrap();
    let waiting = "select 1 from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    until("the first write waits for the row", async || {
        !app.db.rows(waiting).await.is_empty()
    })
    .await;
    let mut second = app.connect().await;
    let body = member_info("g", "u", json!({"ex": "later"}));
    bodies += body.len();
    let request = head_of_callback(body.len()) + &body;
    second.write_all(request.as_bytes()).await.unwrap();
    // Bodies are held until the answer, so this is when the second has been read.
    until("both bodies are read", async || {
        app.metric("body_memory_bytes").await == bodies as f64
    })
    .await;
    drop((first, second));
    holder.rollback().await.unwrap();
    until("both are applied", async || {
        let [role, _, _, ex] = app.member("g", "u").await.unwrap();
        [role, ex] == [json!(60), json!("later")]
    })
    .await;
}
