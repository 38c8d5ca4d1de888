//! Answers that would be large: bounded by bytes, whatever somebody has put into a text.

use std::time::Duration;

use openim_group_mirror::domain::{GroupId, Text, UserId};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{TestApp, TestDb, until};

const MIB: usize = 1 << 20;

/// Six members of "g" and six groups of "u", each with so many bytes of `ex`; half of them have left.
async fn fill(app: &TestApp, bytes: usize) {
    app.db
        .execute(&format!(
            "insert into groups (group_id, ex, status, check_wanted_since, created_at, updated_at)
             select 'g' || n, repeat('x', {bytes}), 0, now(), now(), now()
               from generate_series(1, 6) n;
             insert into groups (group_id, created_at, updated_at) values ('g', now(), now());
             insert into group_members
                    (group_id, user_id, role_level, ex, left_at, created_at, updated_at)
             select g, u || s, r, repeat('x', {bytes}), l, now(), now()
               from generate_series(1, 6) n,
                    lateral (values ('g', 'o' || n, 20, '', null::timestamptz),
                                    ('g', 'a' || n, 60, '', null),
                                    ('g', 'l' || n, 20, '', now()),
                                    ('g' || n, 'u', 20, '', null)) v (g, u, r, s, l)"
        ))
        .await;
}

/// The keys of a list, page by page. No page but one of a single row has more text than fits.
async fn walk(app: &TestApp, path: &str, list: &str, key: &str) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let body = app.get(&format!("{path}{cursor}")).await.ok();
        let rows = body[list].as_array().unwrap();
        let texts = rows.iter().filter_map(|row| row["ex"].as_str());
        let bytes: usize = texts.map(str::len).sum();
        assert!(
            bytes <= 4 * MIB || rows.len() == 1,
            "{path}: {bytes} bytes on a page of {} rows",
            rows.len()
        );
        let keys = rows.iter().map(|row| row[key].as_str().unwrap().to_owned());
        pages.push(keys.collect());
        match body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
}

fn numbered(letter: &str) -> Vec<String> {
    (1..=6).map(|n| format!("{letter}{n}")).collect()
}

#[tokio::test]
async fn a_page_ends_by_bytes_and_the_rest_follows() {
    let app = TestApp::start().await;
    fill(&app, 3 * MIB / 2).await;
    let all = [numbered("a"), numbered("l"), numbered("o")].concat();
    let current = [numbered("a"), numbered("o")].concat();
    let of_users: String = all.iter().map(|id| format!("&userID={id}")).collect();
    let of_users = format!("/groups/g/members?state=all{of_users}");
    let groups = [vec!["g".to_owned()], numbered("g")].concat();
    for (path, list, key, expected) in [
        ("/groups/g/members?", "members", "userID", &current),
        (
            "/groups/g/members?roleLevel=20",
            "members",
            "userID",
            &numbered("o"),
        ),
        (
            "/groups/g/members?roleLevel=60",
            "members",
            "userID",
            &numbered("a"),
        ),
        ("/groups/g/members?state=all", "members", "userID", &all),
        (
            "/groups/g/members?state=left",
            "members",
            "userID",
            &numbered("l"),
        ),
        (&of_users, "members", "userID", &all),
        ("/users/u/groups?", "groups", "groupID", &numbered("g")),
        ("/groups?", "groups", "groupID", &groups),
        ("/groups?status=0", "groups", "groupID", &numbered("g")),
        (
            "/groups?checkWanted=true",
            "groups",
            "groupID",
            &numbered("g"),
        ),
    ] {
        let pages = walk(&app, path, list, key).await;
        // Two of 1.5 MiB fit on a page, and three do not.
        assert!(pages.len() >= expected.len() / 2, "{path}: {pages:?}");
        assert_eq!(&pages.concat(), expected, "{path}");
        // A limit ends a page too.
        let pages = walk(&app, &format!("{path}&limit=1"), list, key).await;
        assert!(
            pages.iter().all(|page| page.len() == 1),
            "{path}: {pages:?}"
        );
        assert_eq!(&pages.concat(), expected, "{path}");
    }
}

#[tokio::test]
async fn what_is_larger_than_a_page_is_served_alone() {
    let app = TestApp::start().await;
    fill(&app, 9 * MIB).await;
    app.set("g", "small", json!({"ex": "y"})).await;
    let pages = walk(&app, "/groups/g/members?roleLevel=60", "members", "userID").await;
    let each: Vec<_> = numbered("a").into_iter().map(|key| vec![key]).collect();
    assert_eq!(pages, each);
    let ex = Value::from("x".repeat(9 * MIB));
    let member = app.get("/groups/g/members/a1").await.ok();
    assert!(member["ex"] == ex, "the text is another");
    let group = app.get("/groups/g1").await.ok();
    assert!(group["ex"] == ex, "the text is another");
    assert_eq!(group["memberCount"], 1);
    assert_eq!(app.get("/groups/g/members/small").await.ok()["ex"], "y");
    until("the memory is given back", async || {
        app.metric("answer_memory_bytes").await == 0.0
    })
    .await;
}

/// In place of a long text something else stands in statements; it is never served.
#[tokio::test]
async fn a_text_is_served_as_it_is_whatever_its_length() {
    let app = TestApp::start().await;
    let lengths = [0_usize, 1, 1023, 1024, 1025, 2048, 10_240, 100_000];
    let texts: Vec<String> = lengths
        .iter()
        .flat_map(|length| {
            let quotes = "\"\\\u{1}".repeat(length.div_ceil(3));
            ["!".repeat(*length), "ß".repeat(length / 2), quotes]
        })
        .collect();
    for (n, text) in texts.iter().enumerate() {
        app.set(
            "g",
            &format!("{n:02}"),
            json!({"ex": text, "nickName": text}),
        )
        .await;
    }
    let mut served: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = app.get(&format!("/groups/g/members?{cursor}")).await.ok();
        served.extend(page["members"].as_array().unwrap().iter().cloned());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("cursor={next}"),
            None => break,
        }
    }
    assert_eq!(served.len(), texts.len());
    for (n, (text, member)) in texts.iter().zip(&served).enumerate() {
        for field in ["ex", "nickName"] {
            assert!(member[field] == **text, "{n}: {field} on the page");
        }
        let alone = app.get(&format!("/groups/g/members/{n:02}")).await.ok();
        assert!(alone == *member, "{n}: alone");
        let pairs = json!({"pairs": [{"groupID": "g", "userID": format!("{n:02}")}]});
        let asked = app.post("/memberships/query", pairs.to_string()).await.ok();
        assert!(
            asked["memberships"][0]["member"] == *member,
            "{n}: asked for"
        );
    }
}

fn pairs(users: &[&str]) -> String {
    query(&users.iter().map(|user| ("g", *user)).collect::<Vec<_>>())
}

fn query(pairs: &[(&str, impl AsRef<str>)]) -> String {
    let pair = |(group, user): &(&str, _)| json!({"groupID": group, "userID": AsRef::as_ref(user)});
    json!({"pairs": pairs.iter().map(pair).collect::<Vec<_>>()}).to_string()
}

#[tokio::test]
async fn a_membership_query_answers_all_and_leaves_out_members_that_are_too_large() {
    let app = TestApp::start().await;
    fill(&app, 5 * MIB).await;
    app.set("g", "small", json!({"roleLevel": 20})).await;
    app.set("g", "half", json!({"ex": "x".repeat(2 * MIB - 100)}))
        .await;
    let asked = [
        "a1", "small", "half", "nobody", "half", "half", "small", "a2",
    ];
    let answer = app.post("/memberships/query", pairs(&asked)).await.ok();
    let answers = answer["memberships"].as_array().unwrap();
    let told: Vec<_> = answers
        .iter()
        .map(|one| {
            let member = &one["member"];
            let is_shown = member.is_object();
            assert!(!is_shown || member["userID"] == one["userID"], "{member}");
            (one["isMember"] == true, one["roleLevel"].as_i64(), is_shown)
        })
        .collect();
    let (large, small, half) = ((true, Some(60), false), (true, Some(20), true), true);
    assert_eq!(
        told,
        [
            large,
            small,
            (true, None, half),
            (false, None, false),
            (true, None, half),
            (true, None, false),
            small,
            large
        ]
    );
    // A hundred times the same, of which one is looked up.
    let answer = app.post("/memberships/query", pairs(&["half"; 100])).await;
    let answer = answer.ok();
    let answers = answer["memberships"].as_array().unwrap();
    assert!(answers.iter().all(|one| one["isMember"] == true));
    let shown = answers.iter().filter(|one| one["member"].is_object());
    assert_eq!((answers.len(), shown.count()), (100, 2));
    let alone = app.get("/groups/g/members/a1").await.ok();
    assert_eq!(alone["ex"].as_str().unwrap().len(), 5 * MIB);
}

/// 40 MiB for answers: 30 for large ones.
#[tokio::test]
async fn answers_beyond_the_memory_wait_and_then_are_answered_503() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.max_answer_memory = 40 << 20;
        config.timeouts.memory = Duration::from_millis(300);
    })
    .await;
    fill(&app, 2 * MIB).await;
    app.set("g", "small", json!({})).await;
    let large = "insert into group_members (group_id, user_id, ex, created_at, updated_at)
                 values ('h', 'u', repeat('x', 24 << 20), now(), now())";
    app.db.execute(large).await;
    let mut stranger = app.connect().await;
    let request = "GET /groups/h/members/u HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stranger.write_all(request.as_bytes()).await.unwrap();
    // The answer is written, and nobody takes it.
    until("the answer is held", async || {
        let bytes = app.metric("answer_memory_bytes").await;
        (24.0..25.0).contains(&(bytes / MIB as f64))
    })
    .await;
    let reply = app.get("/groups/g/members").await;
    assert_eq!((reply.status, &reply.body["code"]), (503, &json!("busy")));
    assert_eq!(reply.header("retry-after"), Some("2"));
    let detail = "too many answers at a time; try again in a moment";
    assert_eq!(reply.body["detail"], detail);
    // Small ones have theirs.
    app.get("/groups/g/members/small").await.ok();
    app.get("/groups/g").await.ok();
    app.post("/memberships/query", pairs(&["small"])).await.ok();
    drop(stranger);
    until("the memory is given back", async || {
        app.metric("answer_memory_bytes").await == 0.0
    })
    .await;
    app.get("/groups/g/members").await.ok();
}

/// Each takes more for its JSON than for its rows. Whoever has rows does not wait for others who have some.
#[tokio::test]
async fn large_reads_at_the_same_time_are_all_answered() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        // They wait for each other, and never until somebody gives up.
        config.timeouts.memory = Duration::from_secs(20);
        config.max_answer_memory = 32 << 20;
    })
    .await;
    app.db
        .execute(
            "insert into group_members (group_id, user_id, ex, created_at, updated_at)
             select 'g', lpad(n::text, 4, '0'), repeat('x', 3900), now(), now()
               from generate_series(1, 1000) n
             union all
             select 'long', lpad(n::text, 4, '0'), repeat('x', 3 << 20), now(), now()
               from generate_series(1, 3) n",
        )
        .await;
    let of_many = query(
        &(1..=1000)
            .map(|n| ("g", format!("{n:04}")))
            .collect::<Vec<_>>(),
    );
    let of_long = query(
        &(1..=3)
            .map(|n| ("long", format!("{n:04}")))
            .collect::<Vec<_>>(),
    );
    let reads = (0..4).map(async |_| {
        let (page, many, long, long_page) = tokio::join!(
            app.get("/groups/g/members?limit=1000"),
            app.post("/memberships/query", of_many.clone()),
            app.post("/memberships/query", of_long.clone()),
            app.get("/groups/long/members?limit=1000"),
        );
        assert_eq!(page.ok()["members"].as_array().unwrap().len(), 1000);
        let is_shown = |one: &&Value| one["member"].is_object();
        let shown = |body: Value| {
            let all = body["memberships"].as_array().unwrap();
            all.iter().filter(is_shown).count()
        };
        assert_eq!((shown(many.ok()), shown(long.ok())), (1000, 1));
        assert_eq!(long_page.ok()["members"].as_array().unwrap().len(), 1);
    });
    futures_util::future::join_all(reads).await;
    until("the memory is given back", async || {
        app.metric("answer_memory_bytes").await == 0.0
    })
    .await;
}

/// Short texts of a page together may be more than it has bytes for.
#[tokio::test]
async fn a_page_of_many_rows_ends_by_bytes_too() {
    let app = TestApp::start().await;
    app.db
        .execute(
            "insert into group_members
                    (group_id, user_id, nickname, display_nickname, face_url, display_face_url, ex,
                     inviter_user_id, operator_user_id, role_level, created_at, updated_at)
             select 'g', lpad(n::text, 4, '0'), t, t, t, t, t, t, t, 20, now(), now()
               from generate_series(1, 1000) n, repeat('x', 1000) t",
        )
        .await;
    let path = "/groups/g/members?limit=1000";
    let first = app.get(path).await.ok();
    let members = first["members"].as_array().unwrap();
    // Seven texts of 1,000 bytes each, in 4 MiB.
    assert_eq!(members.len(), (4 * MIB) / 7000);
    let pages = walk(&app, path, "members", "userID").await;
    let all: Vec<String> = (1..=1000).map(|n| format!("{n:04}")).collect();
    assert_eq!(pages.concat(), all);
}

/// Asserts that texts of these lengths fit into one read.
#[track_caller]
fn assert_fits<'a>(texts: impl Iterator<Item = Option<&'a Text>>) {
    let lengths: Vec<usize> = texts.flatten().map(|text| text.as_str().len()).collect();
    let bytes: usize = lengths.iter().sum();
    assert!(bytes <= 4 * MIB || lengths.len() == 1, "{lengths:?}");
}

fn ids_of_20() -> Vec<String> {
    (1..=20).map(|n| format!("{n:02}")).collect()
}

#[tokio::test]
async fn a_comparison_reads_no_more_members_than_a_page_has_bytes_for() {
    let db = TestDb::new().await;
    db.execute(
        "insert into group_members (group_id, user_id, ex, created_at, updated_at)
         select 'g', lpad(n::text, 2, '0'), repeat('x', case when n = 5 then 9 else 1 end << 20),
                now(), now()
           from generate_series(1, 20) n",
    )
    .await;
    let store = db.database().open().await.unwrap();
    let group = GroupId::parse("g".into()).unwrap();
    let users: Vec<UserId> = ids_of_20()
        .into_iter()
        .map(|id| UserId::parse(id).unwrap())
        .collect();
    let mut named: Vec<&UserId> = users.iter().collect();
    let nobody = UserId::parse("nobody".into()).unwrap();
    named.insert(3, &nobody);
    for users in [None, Some(&*named)] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = store.members_to_compare(&group, users, &after).await;
            let (page, is_last) = page.unwrap();
            assert_fits(page.iter().map(|row| row.member.ex.as_ref()));
            seen.extend(page.iter().map(|row| row.user_id.as_str().to_owned()));
            if is_last {
                break;
            }
            after.clone_from(seen.last().unwrap());
        }
        assert_eq!(seen, ids_of_20());
    }
    store.close().await;
}

#[tokio::test]
async fn a_comparison_reads_no_more_groups_than_a_page_has_bytes_for() {
    let db = TestDb::new().await;
    db.execute(
        "insert into groups (group_id, ex, created_at, updated_at)
         select lpad(n::text, 2, '0'), repeat('x', case when n = 5 then 9 else 1 end << 20),
                now(), now()
           from generate_series(1, 20) n",
    )
    .await;
    let store = db.database().open().await.unwrap();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = store.groups_to_compare(&after, 1000).await.unwrap();
        assert_fits(page.iter().map(|known| known.group.profile.ex.as_ref()));
        let Some(last) = page.last() else {
            break;
        };
        after = last.group_id.as_str().to_owned();
        seen.extend(
            page.into_iter()
                .map(|known| known.group_id.as_str().to_owned()),
        );
    }
    assert_eq!(seen, ids_of_20());
    // By their ids, in the order of these; some are not known.
    let mut asked = ids_of_20();
    asked.reverse();
    asked.extend(["unknown".to_owned(), "03".to_owned(), "other".to_owned()]);
    let mut ids: Vec<GroupId> = asked
        .into_iter()
        .map(|id| GroupId::parse(id).unwrap())
        .collect();
    let mut seen = Vec::new();
    while !ids.is_empty() {
        let (known, count) = store.known_groups(&ids).await.unwrap();
        assert_fits(known.iter().map(|known| known.group.profile.ex.as_ref()));
        seen.extend(
            known
                .into_iter()
                .map(|known| known.group_id.as_str().to_owned()),
        );
        ids.drain(..count);
    }
    let mut expected = ids_of_20();
    expected.reverse();
    expected.push("03".to_owned());
    assert_eq!(seen, expected);
    store.close().await;
}
