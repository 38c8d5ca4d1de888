//! A dismissal is one write, whatever the size of the group; whoever was there then has left, for every
//! reader, callback and comparison.

use serde_json::{Value, json};

use crate::support::{Creation, Operation, Pair, TestApp, TestDb, until};

const GROUP: &str = "g";
const DISMISS: Operation = Operation::Dismiss {
    with_members: false,
};

/// Keeps the rows of members as they are at a dismissal: nobody fills in when they left.
async fn hold_up_filling_in(db: &TestDb) {
    db.execute(
        "create function hold_up() returns trigger language plpgsql as
         'begin raise exception ''held up''; end';
         create trigger hold_up before update on group_members for each row
         when (new.left_at is not null and old.left_at is null
               and new.updated_at = old.updated_at and new.last_callback_at is not distinct from old.last_callback_at)
         execute function hold_up()",
    )
    .await;
}

async fn until_filled_in(db: &TestDb) {
    until("the leaves are filled in", async || {
        db.rows("select group_id from groups where emptying_at is not null")
            .await
            .is_empty()
    })
    .await;
}

async fn tell(app: &TestApp, command: &str, fields: Value) {
    let mut body = fields;
    body["callbackCommand"] = json!(command);
    app.post(&format!("/{command}"), body.to_string())
        .await
        .ok();
}

async fn dismiss(app: &TestApp) {
    let fields =
        json!({"groupID": GROUP, "ownerID": "o", "groupType": "\u{2}", "membersID": ["o"]});
    tell(app, "callbackAfterDisMissGroupCommand", fields).await;
}

async fn join(app: &TestApp, user: &str) {
    let fields = json!({"groupID": GROUP, "inviterUserID": user, "joinSource": 3});
    tell(app, "callbackAfterJoinGroupCommand", fields).await;
}

/// A group of so many, of whom the first owns it.
async fn fill(db: &TestDb, members: usize) {
    db.execute(&format!(
        "insert into groups (group_id, name, status, owner_user_id, created_at, updated_at)
         values ('{GROUP}', 'Kayaks', 0, 'u000000', now(), now());
         insert into group_members (group_id, user_id, role_level, created_at, updated_at)
         select '{GROUP}', 'u' || lpad(n::text, 6, '0'), case n when 0 then 100 else 20 end, now(), now()
           from generate_series(0, {members} - 1) as n"
    ))
    .await;
}

async fn ids(app: &TestApp, path: &str) -> Vec<String> {
    let answer = app.get(path).await.ok();
    let list = answer["members"].as_array().or(answer["groups"].as_array());
    let id = |member: &Value| member["userID"].as_str().unwrap().to_owned();
    list.unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn a_dismissal_of_a_large_group_writes_the_group_alone_and_the_rest_follows() {
    let app = TestApp::start().await;
    fill(&app.db, 20_000).await;
    let etag = "select max(updated_at)::text as at from group_members";
    let before = app.db.rows(etag).await;
    let holder = app.db.hold_members().await;
    // Its members' rows are locked, and it is done nevertheless.
    dismiss(&app).await;
    holder.rollback().await.unwrap();
    assert_eq!(ids(&app, "/groups/g/members").await, [""; 0]);
    let group = app.get("/groups/g").await.ok();
    assert_eq!(
        (
            &group["status"],
            &group["ownerUserID"],
            &group["memberCount"]
        ),
        (&json!(2), &Value::Null, &json!(0))
    );
    until_filled_in(&app.db).await;
    let rows =
        "select count(*) as n, count(left_at) as gone, min(left_at) = max(left_at) as at_once
                  from group_members";
    assert_eq!(
        app.db.rows(rows).await,
        [json!({"n": 20_000, "gone": 20_000, "at_once": true})]
    );
    // For readers nothing has changed by that.
    assert_eq!(app.db.rows(etag).await, before);
    let left = app.get("/groups/g/members?state=left&limit=1").await.ok();
    assert_eq!(left["members"][0]["leftAt"], group["dismissedAt"]);
}

/// Before and after the rows say so.
#[tokio::test]
async fn who_was_there_has_left_also_after_a_revival_and_a_new_join() {
    for is_filled_in in [false, true] {
        let app = TestApp::start().await;
        if !is_filled_in {
            hold_up_filling_in(&app.db).await;
        }
        fill(&app.db, 4).await;
        app.db
            .execute("update group_members set role_level = 60 where user_id = 'u000001'")
            .await;
        dismiss(&app).await;
        let dismissed_at = app.get("/groups/g").await.ok()["dismissedAt"].clone();
        if is_filled_in {
            until_filled_in(&app.db).await;
        }
        // As a comparison finds it.
        app.db
            .execute("update groups set status = 0, dismissed_at = null")
            .await;
        join(&app, "u000002").await;
        join(&app, "new").await;
        let here = ["new", "u000002"];
        assert_eq!(ids(&app, "/groups/g/members").await, here);
        assert_eq!(ids(&app, "/groups/g/members?roleLevel=20").await, here);
        assert_eq!(ids(&app, "/groups/g/members?roleLevel=60").await, [""; 0]);
        assert_eq!(
            ids(&app, "/groups/g/members?userID=u000000&userID=new").await,
            ["new"]
        );
        let gone = ["u000000", "u000001", "u000003"];
        assert_eq!(ids(&app, "/groups/g/members?state=left").await, gone);
        let left = app.get("/groups/g/members?state=all").await.ok();
        for member in left["members"].as_array().unwrap() {
            let is_here = here.contains(&member["userID"].as_str().unwrap());
            let expected = if is_here { &Value::Null } else { &dismissed_at };
            assert_eq!(&member["leftAt"], expected, "{member}");
        }
        assert_eq!(app.get("/groups/g").await.ok()["memberCount"], 2);
        assert_eq!(
            app.get("/users/u000000/groups").await.ok()["groups"],
            json!([])
        );
        let mine = app.get("/users/new/groups").await.ok();
        assert_eq!(mine["groups"].as_array().unwrap().len(), 1);
        assert_eq!(app.get("/groups/g/members/u000001").await.status, 404);
        assert_eq!(app.get("/groups/g/members/new").await.status, 200);
        // A late change of one of those who left: its value is kept, and nobody comes back.
        app.set(GROUP, "u000003", json!({"nickName": "late"})).await;
        assert_eq!(app.get("/groups/g/members/u000003").await.status, 404);
        let left = app
            .get("/groups/g/members?state=left&userID=u000003")
            .await
            .ok();
        assert_eq!(left["members"][0]["nickName"], "late");
        // Again, and those who came meanwhile have left too.
        dismiss(&app).await;
        assert_eq!(ids(&app, "/groups/g/members").await, [""; 0]);
        assert_eq!(app.get("/groups/g").await.ok()["memberCount"], 0);
    }
}

/// An instance of the version before sets the status alone, and leaves the owner.
#[tokio::test]
async fn a_group_that_an_older_version_has_dismissed_reads_right_at_once() {
    let app = TestApp::start().await;
    fill(&app.db, 3).await;
    let before = app
        .db
        .rows("select user_id, updated_at from group_members")
        .await;
    app.db
        .execute(
            "update groups set status = 2, dismissed_at = '2026-02-03T04:05:06Z'
              where group_id = 'g'",
        )
        .await;
    let read = async || {
        let group = app.get("/groups/g").await.ok();
        assert_eq!(
            (&group["ownerUserID"], &group["memberCount"]),
            (&Value::Null, &json!(0))
        );
        let left = app.get("/groups/g/members?state=left").await.ok();
        for member in left["members"].as_array().unwrap() {
            assert_eq!(member["leftAt"], "2026-02-03T04:05:06Z");
        }
        left
    };
    let first = read().await;
    until_filled_in(&app.db).await;
    assert_eq!(read().await, first);
    assert_eq!(
        app.db
            .rows("select user_id, updated_at from group_members")
            .await,
        before
    );
}

/// Fault: members of a group that came back counted as removals, so that it stayed wrong.
#[tokio::test]
async fn case_81_of_a_group_that_came_back_empty_nobody_counts_as_removed() {
    let pair = Pair::new().await;
    let names: Vec<String> = (0..40).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let creation = Creation::open("Kayaks", "boss", &names);
    pair.act_and_tell(GROUP, &Operation::Create(creation)).await;
    pair.cycle().await;
    pair.act_and_tell(GROUP, &DISMISS).await;
    pair.act(GROUP, &Operation::Unmute);
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (0, 0));
    pair.assert_equal().await;
    assert_eq!(pair.drift().await, []);
    assert_eq!(pair.check(GROUP).await, None);
    pair.close().await;
}

/// A run finds the dismissal first: it removes no part of the group, but all of it.
#[tokio::test]
async fn a_dismissal_that_a_comparison_finds_is_no_removal_from_the_group() {
    let pair = Pair::new().await;
    let names: Vec<String> = (0..500).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let creation = Creation::open("Kayaks", "boss", &names[..40]);
    pair.act_and_tell(GROUP, &Operation::Create(creation)).await;
    let creation = Creation::open("Canoes", "boss", &names);
    pair.act_and_tell("other", &Operation::Create(creation))
        .await;
    pair.cycle().await;
    pair.act(GROUP, &DISMISS);
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (0, 0));
    pair.assert_equal().await;
    // Case 89: a dry run finds no owner to miss.
    assert_eq!(pair.drift().await, []);
    pair.act(GROUP, &Operation::Unmute);
    pair.cycle().await;
    pair.assert_equal().await;
    assert_eq!(pair.drift().await, []);
    pair.close().await;
}
