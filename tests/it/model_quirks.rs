//! Tests that the model of OpenIM has the habits of real servers.

use serde_json::{Value, json};

use crate::model::{Client, INCREMENTAL, INCREMENTAL_BATCH, MEMBER_LIST, ids, nothing, set, since};
use crate::support::{Creation, ORDINARY, OpenImServer, Operation, Release, RestFault};

const INFO: &str = "/group/get_group_members_info";
const IDS: &str = "/group/get_full_group_member_user_ids";
const ABSTRACTS: &str = "/group/get_group_abstract_info";

fn page(group: &str, number: u32, size: u32) -> Value {
    json!({"groupID": group, "pagination": {"pageNumber": number, "showNumber": size}})
}

fn of_group(group: &str) -> Value {
    json!({"groupID": group, "idHash": 0})
}

fn loses_its_owner(server: &OpenImServer, group: &str) {
    let ordinary = [("roleLevel", json!(ORDINARY))].into();
    server.apply(group, &Operation::SetMember("owner".to_owned(), ordinary));
}

fn invite_all(users: &[&str]) -> Operation {
    Operation::InviteAll(users.iter().map(|&user| user.to_owned()).collect())
}

#[tokio::test]
async fn an_answer_that_is_too_large_for_a_service_is_code_8() {
    for (release, bytes) in Release::ALL.into_iter().zip([8 << 20, 4 << 20, 4 << 20]) {
        assert_eq!(release.largest_answer(), bytes);
    }
    let server = OpenImServer::start().await;
    let client = Client::new(&server).await;
    let mut creation = Creation::open("g", "owner", &["u1", "u2"]);
    creation
        .profile
        .insert("notification", json!("x".repeat(5000)));
    server.apply("g", &Operation::Create(creation));
    server.create("h", &["u1"]);
    let known = client.since("g", &nothing()).await;
    let known_h = client.since("h", &nothing()).await;
    let large = [("ex", json!("x".repeat(5000)))].into();
    server.apply("g", &Operation::SetMember("u1".to_owned(), large));
    server.openim.lock().unwrap().largest_answer = Some(4096);

    let batch = json!({"reqList": [since("h", &known_h), since("g", &known)]});
    let info = |user: &str| json!({"groupID": "g", "userIDs": [user]});
    for (path, asked) in [
        (MEMBER_LIST, page("g", 1, 1000)),
        (INFO, info("u1")),
        (INCREMENTAL, since("g", &known)),
        (INCREMENTAL_BATCH, batch),
        ("/group/get_groups_info", json!({"groupIDs": ["h", "g"]})),
        (
            "/group/get_groups",
            json!({"pagination": {"pageNumber": 1, "showNumber": 10}}),
        ),
    ] {
        assert_eq!(client.code(path, asked).await, 8, "{path}");
    }
    // What is smaller is answered.
    assert_eq!(
        client.data(INFO, info("u2")).await["members"][0]["userID"],
        "u2"
    );
    let pages = [1, 2, 3].map(|number| page("g", number, 1));
    let mut large = 0;
    for asked in pages {
        let answer = client.ask(MEMBER_LIST, asked).await;
        large += u32::from(answer["errCode"] == 8);
    }
    assert_eq!(large, 1);
    let none = client.data(MEMBER_LIST, page("g", 1, 0)).await;
    assert_eq!(none, json!({"total": 3, "members": null}));
    server.openim.lock().unwrap().largest_answer = Some(50);
    assert_eq!(client.code(IDS, of_group("g")).await, 8);
}

#[tokio::test]
async fn a_service_is_away_until_it_is_back() {
    let server = OpenImServer::start().await;
    server.create("g", &[]);
    let client = Client::new(&server).await;
    for code in [14, 4] {
        server.fail_until_told("/group/get_groups_info", RestFault::ErrCode(code));
        for _ in 0..5 {
            let asked = json!({"groupIDs": ["g"]});
            assert_eq!(client.code("/group/get_groups_info", asked).await, code);
        }
        client.members("g", 1, 10).await;
        server.stop_failing();
        let asked = json!({"groupIDs": ["g"]});
        client.data("/group/get_groups_info", asked).await;
    }
}

#[tokio::test]
async fn a_group_without_an_owner_tells_only_that_nothing_has_changed() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1"]);
    server.create("h", &["u1"]);
    let client = Client::new(&server).await;
    let before = client.since("g", &nothing()).await;
    let other = client.since("h", &nothing()).await;
    loses_its_owner(&server, "g");
    for known in [&nothing(), &before] {
        assert_eq!(client.code(INCREMENTAL, since("g", known)).await, 1004);
        let asked = json!({"reqList": [since("h", &other), since("g", known)]});
        assert_eq!(client.code(INCREMENTAL_BATCH, asked).await, 1004);
    }
    let now = client.data(IDS, of_group("g")).await;
    assert_eq!(now["userIDs"], json!(["owner", "u1"]));
    assert_eq!((&now["version"], &now["equal"]), (&json!(2), &json!(false)));
    let same = client.since("g", &now).await;
    assert_eq!(
        (&same["full"], &same["group"]),
        (&json!(false), &Value::Null)
    );
    let asked = json!({"reqList": [since("h", &other), since("g", &now)]});
    let both = client.data(INCREMENTAL_BATCH, asked).await;
    assert_eq!(both["respList"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn ids_are_read_before_their_version_and_of_an_unknown_group_a_version_is_made() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1"]);
    let client = Client::new(&server).await;
    let mut held = server.hold_before_version();
    let asking = client.data(IDS, of_group("g"));
    let meanwhile = async {
        held.reached().await;
        server.apply("g", &Operation::Invite("u2".to_owned()));
        held.release();
    };
    let (answer, ()) = tokio::join!(asking, meanwhile);
    assert_eq!(answer["userIDs"], json!(["owner", "u1"]));
    assert_eq!(answer["version"], 2);

    let abstracts = json!({"groupIDs": ["g"]});
    let number = client.data(ABSTRACTS, abstracts).await;
    assert_eq!(number["groupAbstractInfos"][0]["groupMemberNumber"], 3);
    let asked = json!({"groupIDs": ["g", "x"]});
    assert_eq!(client.code(ABSTRACTS, asked).await, 1201);
    let asked = json!({"groupIDs": ["g", "g"]});
    assert_eq!(client.code(ABSTRACTS, asked).await, 1001);

    assert!(server.openim.lock().unwrap().versions_of_nothing.is_empty());
    client.data(IDS, of_group("x")).await;
    assert_eq!(server.openim.lock().unwrap().versions_of_nothing, ["x"]);
}

/// total, ids and rows.
async fn counts(client: &Client, group: &str) -> (u64, usize, usize) {
    let list = client.members(group, 1, 100).await;
    let all = client.data(IDS, of_group(group)).await;
    let count = all["userIDs"].as_array().map_or(0, Vec::len);
    (
        list["total"].as_u64().unwrap(),
        count,
        ids(&list["members"]).len(),
    )
}

#[tokio::test]
async fn who_stands_before_a_member_in_an_invitation_is_in_unseen_by_the_caches() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1"]);
    let client = Client::new(&server).await;
    let info = |user: &str| json!({"groupID": "g", "userIDs": [user]});
    // Somebody looks for one of two who come.
    client.data(INFO, info("new")).await;
    let before = client.since("g", &nothing()).await;
    server.apply("g", &invite_all(&["new", "newer", "u1", "newest"]));
    {
        let openim = server.openim.lock().unwrap();
        let members = &openim.groups["g"].members;
        assert!(members.contains_key("new") && !members.contains_key("newest"));
    }
    assert_eq!(counts(&client, "g").await, (2, 2, 2));
    let same = client.since("g", &before).await;
    assert_eq!(same["version"], before["version"]);
    assert_eq!(
        client.data(INFO, info("newer")).await["members"],
        Value::Null
    );

    // The next one who comes empties the caches, but not of those that were looked for.
    server.apply("g", &Operation::Invite("u2".to_owned()));
    assert_eq!(counts(&client, "g").await, (5, 5, 3));
    let delta = client.since("g", &before).await;
    assert_eq!(ids(&delta["insert"]), ["u2"]);
    assert_eq!(client.data(INFO, info("new")).await["members"], Value::Null);
    server.openim.lock().unwrap().entries_expire();
    assert_eq!(counts(&client, "g").await, (5, 5, 5));
    let list = client.members("g", 1, 100).await;
    assert!(set(&list["members"]).contains("new"));
    // None of it was a change.
    assert_eq!(client.since("g", &delta).await["version"], delta["version"]);
}
