//! The questions that a backend asks.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Reply, TestApp, TestDb, path_segment};

/// Ids that are easily mangled on their way. (Not "." and "..": URL libraries resolve them even
/// when they are percent-encoded, so they never get here; a membership query takes them.)
const ODD_IDS: [&str; 11] = [
    "a/b",
    "%",
    "%2F",
    "a b",
    "?x=1&y",
    "#",
    "Ünï",
    "👩‍👩‍👧",
    "A",
    "a",
    "+",
];

async fn insert(app: &TestApp, rows: &str) {
    app.db
        .execute(&format!(
            "insert into group_members (group_id, user_id, role_level, created_at, updated_at)
             select g, u, r, now(), now() from (values {rows}) v (g, u, r);
             insert into groups (group_id, created_at, updated_at)
             select distinct group_id, now(), now() from group_members
             on conflict do nothing"
        ))
        .await;
}

/// Makes groups dismissed, as of a time.
async fn dismiss(app: &TestApp, groups: &str) {
    app.db
        .execute(&format!(
            "update groups set status = 2, dismissed_at = '2026-02-03T04:05:06Z'
              where group_id in ({groups})"
        ))
        .await;
}

/// All items of a list, walked page by page; also how many pages there were.
async fn walk(app: &TestApp, path: &str, key: &str) -> (Vec<Value>, usize) {
    let (mut items, mut pages, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let body = app.get(&format!("{path}{cursor}")).await.ok();
        items.extend(body[key].as_array().unwrap().iter().cloned());
        pages += 1;
        match body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (items, pages),
        }
    }
}

fn ids(items: &[Value], name: &str) -> Vec<String> {
    items
        .iter()
        .map(|item| item[name].as_str().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn assert_problem(reply: &Reply, status: u16, code: &str, detail: &str) {
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json"),
        "{reply:?}"
    );
    assert_eq!(reply.status, status, "{reply:?}");
    assert!(reply.body.get("status").is_none(), "{reply:?}");
    assert_eq!(reply.body["code"], code, "{reply:?}");
    assert_eq!(reply.body["detail"], detail, "{reply:?}");
    assert!(!reply.body["title"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn a_member_is_served_with_null_for_what_was_never_told() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"roleLevel": 60, "ex": ""})).await;
    let mut body = app.get("/groups/g/members/u").await.ok();
    let times = ["createdAt", "updatedAt"].map(|name| body[name].take());
    assert_eq!(
        body,
        json!({
            "groupID": "g", "userID": "u", "nickName": null, "displayName": null,
            "faceURL": null, "displayFaceURL": null, "roleLevel": 60, "ex": "", "joinedAt": null,
            "joinSource": null, "inviterUserID": null, "operatorUserID": null, "muteEndAt": null,
            "leftAt": null, "createdAt": null, "updatedAt": null
        })
    );
    for time in times {
        let time = time.as_str().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    }
}

/// No two values are the same, so none can stand in another's place.
#[tokio::test]
async fn all_that_is_known_of_a_member_is_in_every_read() {
    let app = TestApp::start().await;
    insert(
        &app,
        "('g','a',20), ('g','b',60), ('g','c',20), ('h','d',20)",
    )
    .await;
    app.db
        .execute(
            "update group_members set
                 nickname = 'nick', display_nickname = 'shown', face_url = 'face',
                 display_face_url = 'shown face', ex = 'extra', joined_at = '2026-01-01Z',
                 join_source = 2, inviter_user_id = 'inviter', operator_user_id = 'operator',
                 mute_end_at = '2026-01-02Z', created_at = '2026-01-04Z',
                 updated_at = '2026-01-05Z';
             update group_members set left_at = '2026-01-03Z' where user_id = 'c'",
        )
        .await;
    dismiss(&app, "'h'").await;
    let member = |group: &str, user: &str, role_level: i32, left_at: Value| {
        json!({
            "groupID": group, "userID": user, "nickName": "nick", "displayName": "shown",
            "faceURL": "face", "displayFaceURL": "shown face", "roleLevel": role_level,
            "ex": "extra", "joinedAt": "2026-01-01T00:00:00Z", "joinSource": 2,
            "inviterUserID": "inviter", "operatorUserID": "operator",
            "muteEndAt": "2026-01-02T00:00:00Z", "leftAt": left_at,
            "createdAt": "2026-01-04T00:00:00Z", "updatedAt": "2026-01-05T00:00:00Z"
        })
    };
    let a = || member("g", "a", 20, Value::Null);
    let b = || member("g", "b", 60, Value::Null);
    let c = || member("g", "c", 20, json!("2026-01-03T00:00:00Z"));
    let d = || member("h", "d", 20, json!("2026-02-03T04:05:06Z"));
    assert_eq!(app.get("/groups/g/members/a").await.ok(), a());
    for (path, expected) in [
        ("/groups/g/members?", vec![a(), b()]),
        ("/groups/g/members?roleLevel=20", vec![a()]),
        ("/groups/g/members?roleLevel=60", vec![b()]),
        ("/groups/g/members?state=all", vec![a(), b(), c()]),
        ("/groups/g/members?state=left", vec![c()]),
        ("/groups/h/members?state=left", vec![d()]),
        ("/groups/h/members?state=all", vec![d()]),
        (
            "/groups/g/members?state=all&userID=a&userID=c",
            vec![a(), c()],
        ),
    ] {
        assert_eq!(walk(&app, path, "members").await.0, expected, "{path}");
    }
    let (groups, _) = walk(&app, "/users/b/groups?", "groups").await;
    assert_eq!(groups, [b()]);
    let pairs = json!({"pairs": [
        {"groupID": "g", "userID": "b"}, {"groupID": "g", "userID": "a"}
    ]});
    let answer = app.post("/memberships/query", pairs.to_string()).await.ok();
    for (place, expected) in [b(), a()].iter().enumerate() {
        assert_eq!(&answer["memberships"][place]["member"], expected);
    }
}

#[tokio::test]
async fn an_unknown_member_is_404_and_unknown_lists_are_empty() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({})).await;
    for path in [
        "/groups/g/members/v",
        "/groups/h/members/u",
        "/groups/G/members/u",
    ] {
        let detail = "no current member of this group has this userID";
        assert_problem(&app.get(path).await, 404, "member_unknown", detail);
    }
    let detail = "groupID: no callback has named it yet";
    assert_problem(&app.get("/groups/h").await, 404, "group_unknown", detail);
    let empty = json!({"groupID": "h", "members": [], "nextCursor": null});
    assert_eq!(app.get("/groups/h/members").await.ok(), empty);
    let empty = json!({"userID": "v", "groups": [], "nextCursor": null});
    assert_eq!(app.get("/users/v/groups").await.ok(), empty);
}

#[tokio::test]
async fn who_has_left_is_in_no_answer_unless_asked_for() {
    let app = TestApp::start().await;
    insert(
        &app,
        "('g', 'here', 20), ('g', 'gone', 20), ('h', 'gone', 60)",
    )
    .await;
    app.db
        .execute("update group_members set left_at = now() where user_id = 'gone'")
        .await;
    assert_eq!(app.get("/groups/g/members/gone").await.status, 404);
    for path in [
        "/groups/g/members?",
        "/groups/g/members?roleLevel=20",
        "/groups/g/members?userID=gone&userID=here",
    ] {
        let (members, _) = walk(&app, path, "members").await;
        assert_eq!(ids(&members, "userID"), ["here"], "{path}");
    }
    assert!(
        walk(&app, "/groups/h/members?roleLevel=60", "members")
            .await
            .0
            .is_empty()
    );
    assert!(
        walk(&app, "/users/gone/groups?", "groups")
            .await
            .0
            .is_empty()
    );
    let group = app.get("/groups/g").await.ok();
    assert_eq!(group["memberCount"], 1);
    assert_eq!(group["roles"], json!([{"roleLevel": 20, "members": 1}]));
    let group = app.get("/groups/h").await.ok();
    assert_eq!(
        (&group["memberCount"], &group["roles"]),
        (&json!(0), &json!([]))
    );
    let pairs = json!({"pairs": [{"groupID": "g", "userID": "gone"}]});
    let answer = app.post("/memberships/query", pairs.to_string()).await.ok();
    assert_eq!(answer["memberships"][0]["isMember"], false);
    for (path, expected) in [
        ("/groups/g/members?state=current", &["here"][..]),
        ("/groups/g/members?state=left", &["gone"]),
        ("/groups/g/members?state=all", &["gone", "here"]),
        ("/groups/g/members?state=left&roleLevel=20", &["gone"]),
        ("/groups/g/members?state=left&roleLevel=60", &[]),
        (
            "/groups/g/members?state=all&roleLevel=20",
            &["gone", "here"],
        ),
        (
            "/groups/g/members?state=left&userID=gone&userID=here",
            &["gone"],
        ),
        (
            "/groups/g/members?state=all&userID=gone&userID=here",
            &["gone", "here"],
        ),
        ("/groups/h/members?state=left&roleLevel=60", &["gone"]),
    ] {
        let (members, _) = walk(&app, path, "members").await;
        assert_eq!(ids(&members, "userID"), expected, "{path}");
        for member in members {
            let is_gone = member["userID"] == "gone";
            assert_eq!(member["leftAt"].is_string(), is_gone, "{path}: {member}");
        }
    }
}

#[tokio::test]
async fn a_dismissed_group_has_no_current_members_and_those_it_had_left_with_it() {
    let app = TestApp::start().await;
    insert(
        &app,
        "('g', 'a', 20), ('g', 'b', 100), ('g', 'c', 20), ('h', 'a', 20), ('h', 'b', 20)",
    )
    .await;
    let left = "update group_members set left_at = '2026-01-01T00:00:00Z'
                 where group_id = 'g' and user_id = 'c'";
    app.db.execute(left).await;
    dismiss(&app, "'g'").await;
    assert_eq!(app.get("/groups/g/members/a").await.status, 404);
    for (path, expected) in [
        ("/groups/g/members?", &[][..]),
        ("/groups/g/members?roleLevel=20", &[]),
        ("/groups/g/members?roleLevel=100", &[]),
        ("/groups/g/members?userID=a", &[]),
        ("/groups/g/members?state=left", &["a", "b", "c"]),
        ("/groups/g/members?state=left&roleLevel=20", &["a", "c"]),
        (
            "/groups/g/members?state=left&userID=a&userID=c",
            &["a", "c"],
        ),
        ("/groups/g/members?state=all", &["a", "b", "c"]),
        ("/groups/h/members?state=left", &[]),
    ] {
        let (members, _) = walk(&app, path, "members").await;
        assert_eq!(ids(&members, "userID"), expected, "{path}");
        for member in members {
            let is_earlier = member["userID"] == "c";
            let left = ["2026-02-03T04:05:06Z", "2026-01-01T00:00:00Z"][usize::from(is_earlier)];
            assert_eq!(member["leftAt"], left, "{path}: {member}");
        }
    }
    let (groups, _) = walk(&app, "/users/a/groups?", "groups").await;
    assert_eq!(ids(&groups, "groupID"), ["h"]);
    let pairs = json!({"pairs": [
        {"groupID": "g", "userID": "a"}, {"groupID": "h", "userID": "a"}
    ]});
    let answer = app.post("/memberships/query", pairs.to_string()).await.ok();
    assert_eq!(answer["memberships"][0]["isMember"], false);
    assert_eq!(answer["memberships"][1]["isMember"], true);
    let group = app.get("/groups/g").await.ok();
    assert_eq!(group["status"], 2);
    assert_eq!(group["dismissedAt"], "2026-02-03T04:05:06Z");
    assert_eq!(
        (&group["memberCount"], &group["roles"]),
        (&json!(0), &json!([]))
    );
    // Un-muted by an administrator, it is there again, without them.
    app.db.execute("update groups set status = 0").await;
    assert_eq!(app.get("/groups/g").await.ok()["memberCount"], 0);
    assert_eq!(app.get("/groups/g").await.ok()["dismissedAt"], json!(null));
    let (members, _) = walk(&app, "/groups/g/members?state=all", "members").await;
    assert_eq!(members[0]["leftAt"], "2026-02-03T04:05:06Z");
}

#[tokio::test]
async fn groups_are_paged_by_status_and_by_whether_they_are_to_be_checked() {
    let app = TestApp::start().await;
    insert(
        &app,
        "('a', 'u', 20), ('B', 'u', 20), ('c', 'u', 20), ('d', 'u', 20)",
    )
    .await;
    dismiss(&app, "'B', 'c'").await;
    app.db
        .execute(
            "update groups set check_wanted_since = now(), check_reason = 'member_unknown'
              where group_id in ('c', 'd')",
        )
        .await;
    for (path, expected) in [
        ("/groups?", &["B", "a", "c", "d"][..]),
        ("/groups?status=2", &["B", "c"]),
        ("/groups?status=0", &[]),
        ("/groups?checkWanted=true", &["c", "d"]),
        ("/groups?checkWanted=false", &["B", "a"]),
        ("/groups?checkWanted=true&status=2", &["c"]),
        ("/groups?checkWanted=false&status=2", &["B"]),
    ] {
        let (groups, _) = walk(&app, path, "groups").await;
        assert_eq!(ids(&groups, "groupID"), expected, "{path}");
        for group in groups {
            let is_wanted = ["c", "d"].contains(&group["groupID"].as_str().unwrap());
            assert_eq!(group["checkWantedSince"].is_string(), is_wanted, "{group}");
            assert_eq!(group["memberCount"], json!(null), "no counts here");
        }
    }
    for (path, detail) in [
        (
            "/groups?checkWanted=2",
            "checkWanted: expected true or false",
        ),
        (
            "/groups?status=x",
            "status: expected a whole number from -2147483648 to 2147483647",
        ),
        (
            "/groups/g/members?state=gone",
            "state: expected current, left or all",
        ),
    ] {
        assert_problem(&app.get(path).await, 400, "parameter_invalid", detail);
    }
}

#[tokio::test]
async fn odd_ids_survive_both_ways() {
    let app = TestApp::start().await;
    for id in ODD_IDS {
        app.set(id, id, json!({"nickName": id})).await;
    }
    for id in ODD_IDS {
        let segment = path_segment(id);
        let member = app
            .get(&format!("/groups/{segment}/members/{segment}"))
            .await
            .ok();
        assert_eq!(member["nickName"], id);
        let members = app
            .get(&format!("/groups/{segment}/members?userID={segment}"))
            .await
            .ok();
        assert_eq!(ids(members["members"].as_array().unwrap(), "userID"), [id]);
        let groups = app.get(&format!("/users/{segment}/groups")).await.ok();
        assert_eq!(ids(groups["groups"].as_array().unwrap(), "groupID"), [id]);
        assert_eq!(
            app.get(&format!("/groups/{segment}")).await.ok()["groupID"],
            id
        );
    }
    let pair = |id: &str| json!({"groupID": id, "userID": id});
    let pairs: Vec<Value> = ODD_IDS.iter().map(|id| pair(id)).collect();
    let body = json!({ "pairs": pairs }).to_string();
    let answer = app.post("/memberships/query", body).await.ok();
    for (id, membership) in ODD_IDS
        .iter()
        .zip(answer["memberships"].as_array().unwrap())
    {
        assert_eq!(membership["isMember"], true);
        assert_eq!(membership["member"]["nickName"], *id);
    }
}

#[tokio::test]
async fn pages_follow_in_bytewise_order_and_miss_nobody() {
    let app = TestApp::start().await;
    page_through(&app).await;
}

/// A locale in which 'a' < 'B' < 'c' and punctuation hardly counts.
#[tokio::test]
async fn pages_follow_in_bytewise_order_whatever_the_locale() {
    let db = TestDb::empty(
        "template template0 encoding 'UTF8' locale_provider icu icu_locale 'en-US' locale 'C'",
    )
    .await;
    let order = db.rows("select 'a' < 'B' as linguistic").await;
    assert_eq!(order[0]["linguistic"], true);
    let app = TestApp::start_on(db, |_| {}).await;
    page_through(&app).await;
}

async fn page_through(app: &TestApp) {
    let mut users: Vec<String> = [
        "a", "B", "c", "C", "_", "-", "~", "ä", "Z", "z", "é", "0", "👩",
    ]
    .iter()
    .flat_map(|id| ["", "1", "A", "-"].map(|end| format!("{id}{end}")))
    .collect();
    for (number, user) in users.iter().enumerate() {
        let role = [20, 20, 60, 100][number % 4];
        app.set("g", user, json!({"roleLevel": role})).await;
        app.set(user, "u", json!({"roleLevel": role})).await;
        app.set("g2", user, json!({"roleLevel": role})).await;
    }
    let of_role = |wanted: i32| -> Vec<String> {
        let with_number = users.iter().enumerate();
        let mut chosen: Vec<String> = with_number
            .filter(|(number, _)| [20, 20, 60, 100][number % 4] == wanted)
            .map(|(_, user)| user.clone())
            .collect();
        chosen.sort_unstable();
        chosen
    };
    let (ordinary, admins) = (of_role(20), of_role(60));
    users.sort_unstable();
    for limit in [1, 7, 52, 1000] {
        let expected_pages = |n: usize| n.div_ceil(limit).max(1);
        let path = format!("/groups/g/members?limit={limit}");
        let (members, pages) = walk(app, &path, "members").await;
        assert_eq!(ids(&members, "userID"), users);
        assert_eq!(pages, expected_pages(users.len()));

        for (role, expected) in [(20, &ordinary), (60, &admins)] {
            let (members, pages) = walk(app, &format!("{path}&roleLevel={role}"), "members").await;
            assert_eq!(&ids(&members, "userID"), expected);
            assert_eq!(pages, expected_pages(expected.len()));
        }
        let wanted: Vec<&String> = users.iter().step_by(3).collect();
        let filter: String = wanted
            .iter()
            .rev()
            .map(|id| format!("&userID={}", path_segment(id)))
            .collect();
        let (members, _) = walk(app, &format!("{path}{filter}&userID=nobody"), "members").await;
        assert_eq!(ids(&members, "userID").iter().collect::<Vec<_>>(), wanted);
        let (members, _) = walk(app, &format!("{path}{filter}&roleLevel=60"), "members").await;
        let both: Vec<&&String> = wanted.iter().filter(|id| admins.contains(id)).collect();
        assert_eq!(
            ids(&members, "userID").iter().collect::<Vec<_>>(),
            both.into_iter().copied().collect::<Vec<_>>()
        );

        let (groups, _) = walk(app, &format!("/users/u/groups?limit={limit}"), "groups").await;
        assert_eq!(ids(&groups, "groupID"), users);
    }
}

#[tokio::test]
async fn a_cursor_is_bound_to_its_path_and_filters() {
    let app = TestApp::start().await;
    insert(
        &app,
        "('g', 'a', 20), ('g', 'b', 20), ('h', 'a', 20), ('h', 'b', 20)",
    )
    .await;
    let first = app.get("/groups/g/members?limit=1").await.ok();
    let cursor = first["nextCursor"].as_str().unwrap();
    // Another limit is the same question.
    let second = app
        .get(&format!("/groups/g/members?limit=9&cursor={cursor}"))
        .await
        .ok();
    assert_eq!(ids(second["members"].as_array().unwrap(), "userID"), ["b"]);
    let (damaged, cut) = (cursor.replace('A', "B"), &cursor[..cursor.len() - 2]);
    for path in [
        format!("/groups/h/members?cursor={cursor}"),
        format!("/groups/g/members?roleLevel=20&cursor={cursor}"),
        format!("/groups/g/members?userID=b&cursor={cursor}"),
        format!("/users/g/groups?cursor={cursor}"),
        format!("/groups/g/members?cursor={damaged}"),
        format!("/groups/g/members?cursor={cut}"),
        "/groups/g/members?cursor=".to_owned(),
        "/groups/g/members?cursor=%FF%00".to_owned(),
    ] {
        let detail = "cursor: expected the nextCursor of the same path with the same filters";
        assert_problem(&app.get(&path).await, 400, "cursor_invalid", detail);
    }
}

#[tokio::test]
async fn a_parameter_that_cannot_be_used_is_named() {
    let app = TestApp::start().await;
    let limit = "limit: expected a whole number from 1 to 1000";
    for value in ["0", "1001", "-1", "x", "", "1.5", "99999999999"] {
        for path in ["/groups/g/members", "/users/u/groups"] {
            let reply = app.get(&format!("{path}?limit={value}")).await;
            assert_problem(&reply, 400, "parameter_invalid", limit);
        }
    }
    let role = "roleLevel: expected a whole number from -2147483648 to 2147483647";
    for value in ["x", "2147483648", "60.0"] {
        let reply = app
            .get(&format!("/groups/g/members?roleLevel={value}"))
            .await;
        assert_problem(&reply, 400, "parameter_invalid", role);
    }
    let many: String = (0..101).map(|n| format!("&userID={n}")).collect();
    let reply = app.get(&format!("/groups/g/members?{many}")).await;
    let users =
        "userID: expected 1 to 1024 bytes of UTF-8, at most 100 of them where it can be repeated";
    assert_problem(&reply, 400, "parameter_invalid", users);
    let reply = app.get("/groups/g/members?userID=").await;
    assert_problem(&reply, 400, "id_invalid", "userID: must not be empty");
    let long = "ß".repeat(513);
    for path in [
        format!("/groups/{}", path_segment(&long)),
        format!("/groups/{}/members", path_segment(&long)),
        format!("/groups/{}/members/u", path_segment(&long)),
    ] {
        let detail = "groupID: must be at most 1024 bytes of UTF-8";
        assert_problem(&app.get(&path).await, 400, "id_invalid", detail);
    }
    let detail = "userID: must not contain U+0000";
    for path in [
        "/groups/g/members/a%00",
        "/users/a%00/groups",
        "/groups/g/members?userID=%00",
    ] {
        assert_problem(&app.get(path).await, 400, "id_invalid", detail);
    }
    let detail = "path: expected percent-encoded UTF-8";
    for path in [
        "/groups/%FF",
        "/groups/g/members/%C3",
        "/users/%ED%A0%80/groups",
    ] {
        assert_problem(&app.get(path).await, 400, "parameter_invalid", detail);
    }
    assert_eq!(app.get("/groups/g/members/").await.status, 404);
    assert_eq!(app.get("/groups//members").await.status, 400);
}

#[tokio::test]
async fn an_etag_saves_sending_the_same_member_again() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({"nickName": "a"})).await;
    let path = "/groups/g/members/u";
    let ask = async |if_none_match: &str| {
        app.send(Method::GET, path, |request| {
            request.header("if-none-match", if_none_match)
        })
        .await
    };
    let etag = app.get(path).await.header("etag").unwrap().to_owned();
    let micros = etag.trim_matches('"').parse::<u64>().unwrap();
    assert!(micros > 1_700_000_000_000_000, "{etag}");
    for held in [
        etag.clone(),
        format!("\"x\", {etag}"),
        format!("W/{etag}"),
        "*".to_owned(),
    ] {
        let reply = ask(&held).await;
        assert_eq!(
            (reply.status, reply.header("etag")),
            (304, Some(etag.as_str())),
            "{held}"
        );
        assert_eq!(reply.body, Value::Null);
    }
    for other in ["\"x\"", "x", "", "\"1", "é"] {
        assert_eq!(ask(other).await.status, 200, "{other}");
    }
    // As proxies hand it on that compress answers.
    for encoding in ["gzip", "br"] {
        let held = etag.replace(&micros.to_string(), &format!("{micros}-{encoding}"));
        for held in [held.clone(), format!("W/{held}")] {
            assert_eq!(ask(&held).await.status, 304, "{held}");
        }
    }
    for order in [["\"x\"", &etag], [&etag, "\"x\""]] {
        let reply = app.send(Method::GET, path, |request| {
            order.iter().fold(request, |request, tag| {
                request.header("if-none-match", *tag)
            })
        });
        assert_eq!(reply.await.status, 304, "{order:?}");
    }
    // The same value again is no change; another one is.
    app.set("g", "u", json!({"nickName": "a"})).await;
    assert_eq!(ask(&etag).await.status, 304);
    app.set("g", "u", json!({"nickName": "b"})).await;
    let reply = ask(&etag).await;
    assert_eq!((reply.status, &reply.body["nickName"]), (200, &json!("b")));
    assert_ne!(reply.header("etag"), Some(etag.as_str()));
}

#[tokio::test]
async fn caches_on_the_way_keep_nothing_that_may_have_changed() {
    let app = TestApp::start().await;
    app.set("g", "u", json!({})).await;
    let member = "/groups/g/members/u";
    let etag = app.get(member).await.header("etag").unwrap().to_owned();
    for (path, status, expected) in [
        (member, 200, "private, no-cache"),
        ("/groups/g/members", 200, "private, no-cache"),
        ("/groups", 200, "private, no-cache"),
        ("/groups/g", 200, "private, no-cache"),
        ("/users/u/groups", 200, "private, no-cache"),
        ("/livez", 200, "no-store"),
        ("/readyz", 200, "no-store"),
        ("/metrics", 200, "no-store"),
        ("/drift", 200, "no-store"),
        ("/groups/g/members/v", 404, "no-store"),
        ("/groups?limit=x", 400, "no-store"),
        ("/no/where", 404, "no-store"),
        ("/openapi.json", 200, "no-cache"),
        ("/docs", 200, "no-cache"),
    ] {
        let reply = app.get(path).await;
        let told = (reply.status, reply.header("cache-control"));
        assert_eq!(told, (status, Some(expected)), "{path}");
    }
    let held = app.send(Method::GET, member, |request| {
        request.header("if-none-match", &etag)
    });
    let held = held.await;
    let told = (held.status, held.header("cache-control"));
    assert_eq!(told, (304, Some("private, no-cache")));
    let query = app.post("/memberships/query", r#"{"pairs":[]}"#).await;
    assert_eq!(query.header("cache-control"), Some("private, no-cache"));
}

#[tokio::test]
async fn a_group_is_counted_by_role() {
    let app = TestApp::start().await;
    let rows =
        "('g','a',20), ('g','b',20), ('g','c',60), ('g','d',null), ('g','e',-7), ('x','a',20)";
    insert(&app, rows).await;
    app.db
        .execute(
            "update group_members set updated_at = '2026-01-01Z';
             update groups set updated_at = '2026-01-01Z', created_at = '2026-01-01Z'",
        )
        .await;
    let newest = "update group_members set updated_at = '2026-01-02T03:04:05.000006Z'
                   where group_id = 'g' and user_id = 'd'";
    app.db.execute(newest).await;
    let role = |role: Value, members: i32| json!({"roleLevel": role, "members": members});
    let group = app.get("/groups/g").await.ok();
    let mut expected = json!({
        "groupID": "g",
        "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z",
        "memberCount": 5,
        "roles": [
            role(json!(-7), 1), role(json!(20), 2), role(json!(60), 1), role(Value::Null, 1)
        ],
        "newestChange": "2026-01-02T03:04:05.000006Z"
    });
    for unknown in [
        "groupName",
        "notification",
        "introduction",
        "faceURL",
        "ownerUserID",
        "ex",
        "status",
        "groupType",
        "needVerification",
        "lookMemberInfo",
        "applyMemberFriend",
        "createdInOpenIMAt",
        "dismissedAt",
        "checkWantedSince",
        "checkReason",
    ] {
        expected[unknown] = Value::Null;
    }
    assert_eq!(group, expected);
}

#[tokio::test]
async fn a_membership_query_answers_each_pair_in_order() {
    let app = TestApp::start().await;
    insert(&app, "('g','a',60), ('g','b',null), ('h','a',20)").await;
    let asked = [
        ("h", "a"),
        ("g", "z"),
        ("g", "b"),
        ("g", "a"),
        ("h", "a"),
        ("h", "b"),
    ];
    let pairs: Vec<Value> = asked
        .iter()
        .map(|(g, u)| json!({"groupID": g, "userID": u, "extra": 1}))
        .collect();
    let answer = app
        .post("/memberships/query", json!({ "pairs": pairs }).to_string())
        .await
        .ok();
    let expected = [
        (true, json!(20)),
        (false, Value::Null),
        (true, Value::Null),
        (true, json!(60)),
        (true, json!(20)),
        (false, Value::Null),
    ];
    let answers = answer["memberships"].as_array().unwrap();
    assert_eq!(answers.len(), asked.len());
    for (((group, user), (is_member, role)), answer) in asked.iter().zip(expected).zip(answers) {
        assert_eq!(
            (&answer["groupID"], &answer["userID"]),
            (&json!(group), &json!(user))
        );
        assert_eq!(
            (&answer["isMember"], &answer["roleLevel"]),
            (&json!(is_member), &role)
        );
        assert_eq!(answer["member"].is_object(), is_member);
        if is_member {
            assert_eq!(answer["member"]["userID"], *user);
        }
    }
    let none = app.post("/memberships/query", r#"{"pairs":[]}"#).await.ok();
    assert_eq!(none, json!({"memberships": []}));
    let pairs: Vec<Value> = (0..1000)
        .map(|n| json!({"groupID": "g", "userID": n.to_string()}))
        .collect();
    let body = json!({ "pairs": pairs }).to_string();
    let many = app.post("/memberships/query", body).await.ok();
    assert_eq!(many["memberships"].as_array().unwrap().len(), 1000);
}

#[tokio::test]
async fn a_membership_query_that_cannot_be_read_is_a_problem_that_names_the_place() {
    let app = TestApp::start().await;
    let thousand_and_one = format!(r#"{{"pairs":[{}]}}"#, vec!["1"; 1001].join(","));
    for (body, code, detail) in [
        (
            "",
            "body_malformed",
            "expected JSON; stopped at line 1 column 0",
        ),
        ("[]", "body_malformed", "expected a JSON object"),
        ("{}", "field_missing", "pairs: expected a value"),
        (
            r#"{"pairs":{}}"#,
            "field_type",
            "pairs: expected an array, found an object",
        ),
        (
            r#"{"pairs":[1]}"#,
            "body_malformed",
            "pairs[0]: expected a JSON object",
        ),
        (
            r#"{"pairs":[{"groupID":"g","userID":"u"},{"groupID":"g"}]}"#,
            "field_missing",
            "pairs[1]: userID: expected a value",
        ),
        (
            r#"{"pairs":[{"groupID":7,"userID":"u"}]}"#,
            "field_type",
            "pairs[0]: groupID: expected a string, found a number",
        ),
        (
            r#"{"pairs":[{"groupID":"","userID":"u"}]}"#,
            "id_invalid",
            "pairs[0]: groupID: must not be empty",
        ),
        (
            &thousand_and_one,
            "too_many",
            "pairs: expected at most 1000 items",
        ),
    ] {
        let reply = app.post("/memberships/query", body.to_owned()).await;
        assert_problem(&reply, 400, code, detail);
    }
    let reply = app
        .send(Method::POST, "/memberships/query", |request| {
            request.body("{}")
        })
        .await;
    let detail = "Content-Type: expected application/json";
    assert_problem(&reply, 415, "not_json", detail);
}

#[tokio::test]
async fn alive_and_ready() {
    let app = TestApp::start().await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(app.get(path).await.ok(), json!({"status": "ok"}));
    }
    let head = app.send(Method::HEAD, "/livez", |request| request).await;
    assert_eq!(head.status, 200);
}
