//! Every column through every read and write: each has a value of its own, so that two columns that
//! are swapped anywhere are found. No column is named here: the schema has the list.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use openim_group_mirror::domain::{Change, Event, GroupId, GroupProfile, MemberPatch, UserId};
use openim_group_mirror::store::{
    Found, GroupFilter, MemberFilter, MemberState, Page, Room, Store,
};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::support::TestDb;

/// Columns that a write of a row changes, or that a reader does not see.
const BOOKKEEPING: [&str; 15] = [
    "group_id",
    "user_id",
    "created_at",
    "updated_at",
    "last_callback_at",
    "last_callback_xid",
    "came_at_dismissal",
    "dismissals",
    "emptying_at",
    "check_wanted_since",
    "check_marked_at",
    "check_marked_xid",
    "check_reason",
    "left_at",
    "dismissed_at",
];

/// A room for texts of any length: reads then use the statements with sizes.
const SIZED: Room = Room::Bytes(1 << 20);

fn group() -> GroupId {
    GroupId::parse("g".into()).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id.into()).unwrap()
}

/// SQL of a value that no other column has; `place` is that of the column.
fn value(column: &str, kind: &str, place: usize) -> String {
    match kind {
        "text" => format!("'{column}'"),
        "integer" => format!("{}", 1000 + place),
        "timestamp with time zone" => format!("'{}-01-02T03:04:05Z'", 2030 + place),
        other => panic!("{column} is of the type {other}"),
    }
}

/// The value as the debug form of a row has it.
fn shown(column: &str, kind: &str, place: usize) -> String {
    match kind {
        "text" => format!("\"{column}\""),
        "integer" => format!("{}", 1000 + place),
        _ => format!("{}-01-02 3:04:05.0 +00:00:00", 2030 + place),
    }
}

/// A table whose columns have values of their own, and what a row must show.
async fn fill(db: &TestDb, table: &str, rows: &str) -> BTreeMap<String, String> {
    let columns = format!(
        "select column_name::text as name, data_type::text as kind
           from information_schema.columns where table_name = '{table}' order by column_name"
    );
    let (mut sets, mut all) = (Vec::new(), BTreeMap::new());
    for (place, column) in db.rows(&columns).await.iter().enumerate() {
        let (name, kind) = (column["name"].as_str().unwrap(), &column["kind"]);
        if !BOOKKEEPING.contains(&name) {
            let kind = kind.as_str().unwrap();
            sets.push(format!("{name} = {}", value(name, kind, place)));
            all.insert(name.to_owned(), shown(name, kind, place));
        }
    }
    db.execute(&format!(
        "insert into {table} {rows}; update {table} set {}",
        sets.join(", ")
    ))
    .await;
    all
}

/// A group with the members u and v, whose columns all differ.
async fn filled(db: &TestDb) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let members = "(group_id, user_id, created_at, updated_at)
        select 'g', id, now(), now() from unnest('{u,v}'::text[]) id";
    let groups = "(group_id, created_at, updated_at) values ('g', now(), now())";
    let (members, groups) = (
        fill(db, "group_members", members).await,
        fill(db, "groups", groups).await,
    );
    db.execute("update groups set check_wanted_since = now(), check_marked_at = now()")
        .await;
    (members, groups)
}

/// Each column is in the row with its value, as `Some(value)` or as `Some(Text(value))`. The domain
/// leaves `_user_id` out of a name.
#[track_caller]
fn assert_shows(row: &impl Debug, columns: &BTreeMap<String, String>, read: &str) {
    let row = format!("{row:?}");
    for (name, value) in columns {
        let short = name.trim_end_matches("_user_id");
        let is_shown = [name.as_str(), short].iter().any(|name| {
            let forms = [
                format!(" {name}: Some({value})"),
                format!(" {name}: Some(Text({value}))"),
                format!(" {name}: Some(UserId({value}))"),
            ];
            forms.iter().any(|form| row.contains(form))
        });
        assert!(is_shown, "{read}: {name} is not {value}: {row}");
    }
}

fn page<T>(found: Found<Page<T>>) -> Vec<T> {
    match found {
        Found::Whole(page) => page.rows,
        Found::Long(bytes) => panic!("no room for {bytes} bytes"),
    }
}

async fn read_members(store: &Store, columns: &BTreeMap<String, String>, role_level: i32) {
    let filter = |state, role_level, users: &[&str]| MemberFilter {
        state,
        role_level,
        user_ids: users.iter().map(|id| user(id)).collect(),
    };
    for filter in [
        filter(MemberState::Current, None, &[]),
        filter(MemberState::Current, Some(role_level), &[]),
        filter(MemberState::All, None, &[]),
        filter(MemberState::Current, None, &["u", "v"]),
    ] {
        for room in [Room::Short, SIZED] {
            let found = store.members(&group(), &filter, "", 9, room).await.unwrap();
            let rows = page(found);
            assert_eq!(rows.len(), 2, "{filter:?}");
            assert_shows(&rows[1], columns, &format!("{filter:?}"));
        }
    }
    for room in [Room::Short, SIZED] {
        let found = store.groups_of(&user("u"), "", 9, room).await.unwrap();
        assert_shows(&page(found)[0], columns, "memberships of a user");
    }
    let pair = |id: &str| (group(), user(id));
    for pairs in [vec![pair("u")], vec![pair("v"), pair("u")]] {
        let found = store.memberships(pairs.into()).await.unwrap();
        assert_shows(&found[0].as_ref().unwrap().row, columns, "lookup");
    }
    let found = store.long_members(&[(&pair("u"), 1 << 20)]).await.unwrap();
    let found = found[0].as_ref().unwrap();
    assert!(found.has_texts);
    assert_shows(&found.row, columns, "sized lookup");
    for users in [None, Some(&[&user("u")][..])] {
        let found = store.members_to_compare(&group(), users, "").await.unwrap();
        assert_shows(&found.0[0].member, columns, "comparison");
    }
}

async fn read_groups(store: &Store, columns: &BTreeMap<String, String>, status: i32) {
    let filter = |status, check_wanted| GroupFilter {
        status,
        check_wanted,
    };
    for filter in [
        filter(None, None),
        filter(Some(status), None),
        filter(None, Some(true)),
    ] {
        for room in [Room::Short, SIZED] {
            let found = store.groups(filter, "", 9, room).await.unwrap();
            assert_shows(&page(found)[0], columns, &format!("{filter:?}"));
        }
    }
    match store.group(&group(), SIZED).await.unwrap() {
        Some(Found::Whole(found)) => assert_shows(&found.group, columns, "group"),
        found => panic!("{found:?}"),
    }
    let (known, _) = store.known_groups(&[group()]).await.unwrap();
    assert_shows(&known[0].group, columns, "known group");
    let known = store.groups_to_compare("", 9).await.unwrap();
    assert_shows(&known[0].group, columns, "group to compare");
}

fn number(columns: &BTreeMap<String, String>, name: &str) -> i32 {
    columns[name].parse().unwrap()
}

#[tokio::test]
async fn every_read_shows_each_column_under_its_name() {
    let db = TestDb::new().await;
    let (members, groups) = filled(&db).await;
    let store = db.database().store();
    read_members(&store, &members, number(&members, "role_level")).await;
    read_groups(&store, &groups, number(&groups, "status")).await;
    db.execute("update group_members set left_at = now()").await;
    let left = MemberFilter {
        state: MemberState::Left,
        ..MemberFilter::default()
    };
    for room in [Room::Short, SIZED] {
        let found = store.members(&group(), &left, "", 9, room).await.unwrap();
        assert_shows(&page(found)[0], &members, "tombstones");
    }
}

/// The rows without what a write of them changes.
async fn values(db: &TestDb, table: &str) -> Vec<Value> {
    let mut rows = db
        .rows(&format!("select * from {table} order by 1, 2"))
        .await;
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.retain(|name, _| !BOOKKEEPING.contains(&name.as_str()));
    }
    rows
}

async fn write(store: &Store, events: impl IntoIterator<Item = Event>) {
    let changes: Vec<Change> = events
        .into_iter()
        .map(|event| Change::new(group(), OffsetDateTime::now_utc(), event))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut writer = store.writer(None);
    let all: Vec<&Change> = changes.iter().collect();
    writer.write(&all, deadline).await.unwrap();
    writer.close().await;
}

#[tokio::test]
async fn a_write_of_whole_rows_keeps_each_value_in_its_column() {
    let db = TestDb::new().await;
    filled(&db).await;
    let store = db.database().store();
    let mut members = values(&db, "group_members").await;
    let groups = values(&db, "groups").await;
    // Of a leave no text is read, of a patch together with it each.
    let patch = Event::SetMember(MemberPatch::new(user("v")));
    write(&store, [Event::Quit(user("u")), patch]).await;
    assert_eq!(values(&db, "group_members").await, members);
    // All of the group.
    write(&store, [Event::SetProfile(GroupProfile::default())]).await;
    assert_eq!(values(&db, "groups").await, groups);
    // None of its texts.
    write(
        &store,
        [Event::Transfer {
            old_owner: user("w"),
            new_owner: user("v"),
        }],
    )
    .await;
    let mut owned = groups.clone();
    owned[0]["owner_user_id"] = json!("v");
    assert_eq!(values(&db, "groups").await, owned);
    members[1]["role_level"] = json!(100);
    let written = values(&db, "group_members").await;
    assert!(written.contains(&members[0]) && written.contains(&members[1]));
}

/// A patch in which each field has a value of its own.
fn full_patch(id: &str) -> (MemberPatch, Map<String, Value>) {
    let empty = serde_json::to_value(MemberPatch::new(user(id))).unwrap();
    let mut fields = Map::new();
    for (name, _) in empty.as_object().unwrap() {
        let value = match name.as_str() {
            "user_id" => continue,
            "role_level" => json!(60),
            name => json!(format!("new {name} of {id}")),
        };
        fields.insert(name.clone(), value);
    }
    let mut patch = fields.clone();
    patch.insert("user_id".into(), json!(id));
    (serde_json::from_value(patch.into()).unwrap(), fields)
}

#[tokio::test]
async fn a_patch_sets_each_value_in_its_column() {
    let db = TestDb::new().await;
    filled(&db).await;
    let store = db.database().store();
    let before = values(&db, "group_members").await;
    for ids in [&["u"][..], &["u", "v"]] {
        let patches: Vec<_> = ids.iter().map(|id| full_patch(id)).collect();
        db.execute("update group_members set nickname = 'old', ex = 'old'")
            .await;
        let events = patches.iter().map(|(patch, _)| patch.clone());
        write(&store, events.map(Event::SetMember)).await;
        for (id, (_, fields)) in ids.iter().zip(&patches) {
            let row = &db
                .rows(&format!(
                    "select * from group_members where user_id = '{id}'"
                ))
                .await[0];
            for (name, value) in row.as_object().unwrap() {
                let shown = name.strip_prefix("display_").unwrap_or(name);
                match fields.get(shown) {
                    Some(patched) => assert_eq!(value, patched, "{name}"),
                    None if BOOKKEEPING.contains(&name.as_str()) => {}
                    None => assert_eq!(value, &before[0][name], "{name}"),
                }
            }
        }
    }
}
