//! Tests that the model of OpenIM's REST API answers like OpenIM.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::support::{
    ADMIN, ADMIN_ID, Creation, Held, ORDINARY, OpenIm, OpenImServer, Operation, RestFault, SECRET,
    web,
};

pub const MEMBER_LIST: &str = "/group/get_group_member_list";
pub const INCREMENTAL: &str = "/group/get_incremental_group_members";
pub const INCREMENTAL_BATCH: &str = "/group/get_incremental_group_members_batch";

/// A client of the server, with a token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    pub async fn new(server: &OpenImServer) -> Self {
        let mut client = Self {
            http: web::client()
                .timeout(Duration::from_secs(20))
                // What was sent is to be seen.
                .gzip(false)
                .build()
                .unwrap(),
            url: server.url.clone(),
            token: String::new(),
        };
        client.mint().await;
        client
    }

    async fn mint(&mut self) {
        let asked = json!({"secret": SECRET, "userID": ADMIN_ID});
        let answer = self.ask("/auth/get_admin_token", asked).await;
        let data = &answer["data"];
        assert_eq!(data["expireTimeSeconds"], 7_776_000);
        data["token"].as_str().unwrap().clone_into(&mut self.token);
    }

    fn request(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.header("operationID", "op-1").body(body.to_string());
        if self.token.is_empty() {
            return request;
        }
        request.header("token", &self.token)
    }

    /// The whole of an answer with status 200.
    pub async fn ask(&self, path: &str, body: Value) -> Value {
        answer_of(self.request(path, &body)).await
    }

    pub async fn data(&self, path: &str, body: Value) -> Value {
        let mut answer = self.ask(path, body).await;
        assert_eq!(answer["errCode"], 0, "{answer}");
        answer["data"].take()
    }

    /// Error code of a refused answer, which has no data.
    pub async fn code(&self, path: &str, body: Value) -> Value {
        let answer = self.ask(path, body).await;
        assert_eq!(answer.get("data"), None);
        answer["errCode"].clone()
    }

    pub async fn members(&self, group: &str, page: i64, size: i64) -> Value {
        let pagination = json!({"pageNumber": page, "showNumber": size});
        let asked = json!({"groupID": group, "pagination": pagination});
        self.data(MEMBER_LIST, asked).await
    }

    pub async fn since(&self, group: &str, known: &Value) -> Value {
        self.data(INCREMENTAL, since(group, known)).await
    }
}

pub fn since(group: &str, known: &Value) -> Value {
    json!({
        "groupID": group,
        "versionID": known["versionID"],
        "version": known["version"],
    })
}

async fn answer_of(request: reqwest::RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

pub fn ids(rows: &Value) -> Vec<&str> {
    let rows = rows.as_array().into_iter().flatten();
    rows.map(|row| row["userID"].as_str().unwrap()).collect()
}

pub fn set(rows: &Value) -> BTreeSet<&str> {
    ids(rows).into_iter().collect()
}

pub fn user(number: u32) -> String {
    format!("u{number:03}")
}

pub fn nothing() -> Value {
    json!({"versionID": "", "version": 0})
}

impl OpenImServer {
    pub fn apply(&self, group: &str, operation: &Operation) {
        let told = self.openim.lock().unwrap().apply(group, operation);
        told.unwrap_or_else(|_| panic!("{operation:?} is refused"));
    }

    pub fn set_user(&self, user: &str, nickname: &str, face_url: &str) {
        let mut openim = self.openim.lock().unwrap();
        openim.set_user(user, nickname, face_url);
    }

    pub fn create(&self, group: &str, members: &[&str]) {
        let creation = Creation::open(group, "owner", members);
        self.apply(group, &Operation::Create(creation));
    }

    /// A group with an owner and so many others.
    pub fn create_with(&self, group: &str, others: u32) {
        let users: Vec<String> = (0..others).map(user).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        self.create(group, &users);
    }
}

#[tokio::test]
async fn who_asks_needs_an_operation_and_a_token_of_the_administrator() {
    let server = OpenImServer::start().await;
    let mut client = Client::new(&server).await;
    assert_eq!(server.tokens_minted(), 1);
    for (secret, user, code) in [("wrong", ADMIN_ID, 1002), (SECRET, "u1", 1001)] {
        let asked = json!({"secret": secret, "userID": user});
        assert_eq!(client.code("/auth/get_admin_token", asked).await, code);
    }
    let asked = json!({"groupIDs": ["g1"]});
    let path = "/group/get_groups_info";
    let request = client.http.post(format!("{}{path}", server.url));
    let request = request.body(asked.to_string());
    for (header, code) in [("token", 1001), ("operationID", 1001), ("other", 1001)] {
        let request = request.try_clone().unwrap().header(header, &client.token);
        assert_eq!(answer_of(request).await["errCode"], code, "only {header}");
    }
    let found = client.data(path, asked.clone()).await;
    assert_eq!(found, json!({"groupInfos": null}));

    server.expire_tokens();
    assert_eq!(client.code(path, asked.clone()).await, 1507);
    client.mint().await;
    client.data(path, asked.clone()).await;
    server.expire_tokens_with(1501);
    assert_eq!(client.code(path, asked.clone()).await, 1501);
    "invented".clone_into(&mut client.token);
    assert_eq!(client.code(path, asked).await, 1502);
    assert_eq!(server.tokens_minted(), 2);

    let unknown = client.request("/group/nothing", &json!({}));
    assert_eq!(unknown.send().await.unwrap().status(), 404);
    assert_eq!(server.calls()[path], 8);
    server.reset_calls();
    assert_eq!(server.calls(), BTreeMap::new());
}

#[tokio::test]
async fn groups_come_newest_first_without_the_dismissed_and_in_pages() {
    let server = OpenImServer::start().await;
    for (group, created_millis) in [("a", 3), ("b", 1), ("c", 2), ("gone", 4)] {
        let mut creation = Creation::open(group, "owner", &[]);
        creation.created_millis = created_millis;
        server.apply(group, &Operation::Create(creation));
    }
    let with_members = false;
    server.apply("gone", &Operation::Dismiss { with_members });
    server.set_user("owner", "Olga", "");
    let client = Client::new(&server).await;
    let page = async |number: i64, group: &str| {
        let pagination = json!({"pageNumber": number, "showNumber": 2});
        let asked = json!({"pagination": pagination, "groupName": "", "groupID": group});
        client.data("/group/get_groups", asked).await
    };
    let first = page(1, "").await;
    assert_eq!(first["total"], 3);
    let infos: Vec<_> = [0, 1]
        .map(|row| first["groups"][row]["groupInfo"].clone())
        .into();
    assert_eq!([&infos[0]["groupID"], &infos[1]["groupID"]], ["a", "c"]);
    assert_eq!(first["groups"][0]["groupOwnerUserName"], "Olga");
    assert_eq!(infos[0]["ownerUserID"], "owner");
    assert_eq!(infos[0]["memberCount"], 1);
    let second = page(2, "").await;
    assert_eq!(second["groups"][0]["groupInfo"]["groupID"], "b");
    assert_eq!(second["groups"].as_array().unwrap().len(), 1);
    assert_eq!(page(3, "").await, json!({"total": 3, "groups": null}));
    let gone = page(1, "gone").await;
    assert_eq!(gone["groups"][0]["groupInfo"]["status"], 2);

    let asked = json!({"groupIDs": ["a", "gone", "unknown"]});
    let found = client.data("/group/get_groups_info", asked).await;
    let mut found = found["groupInfos"].as_array().unwrap().clone();
    found.sort_by_key(|group| group["groupID"].to_string());
    let openim = server.openim.lock().unwrap().clone();
    assert_eq!(
        found,
        ["a", "gone"].map(|id| openim.shown_group(id).unwrap())
    );
    assert_eq!(
        client
            .code("/group/get_groups_info", json!({"groupIDs": []}))
            .await,
        1001
    );
}

#[tokio::test]
async fn members_come_by_role_and_with_what_the_user_is_called() {
    let server = OpenImServer::start().await;
    server.create_with("g", 24);
    let change = |name, value| [(name, value)].into();
    server.apply(
        "g",
        &Operation::SetMember(user(20), change("roleLevel", json!(ADMIN))),
    );
    server.apply(
        "g",
        &Operation::SetMember(user(1), change("nickName", json!("Own"))),
    );
    server.apply("g", &Operation::MuteMember(user(1), 1_770_000_000_000));
    server.apply("g", &Operation::Join("joined".to_owned()));
    server.apply("g", &Operation::Invite("invited".to_owned()));
    for number in [1, 2] {
        server.set_user(&user(number), "Profile", "face");
    }
    let client = Client::new(&server).await;
    let mut seen = vec![];
    for page in 1..=3 {
        let members = client.members("g", page, 10).await;
        assert_eq!(members["total"], 27);
        seen.push(members["members"].clone());
    }
    assert!(set(&seen[0]).is_superset(&["owner", "u020"].into()));
    let all: BTreeSet<&str> = seen.iter().flat_map(|page| ids(page)).collect();
    assert_eq!((all.len(), ids(&seen[2]).len()), (27, 7));
    let again = client.members("g", 1, 10).await["members"].clone();
    assert_eq!(set(&again), set(&seen[0]));
    assert_ne!(ids(&again), ids(&seen[0]), "a page has no order");
    assert_eq!(
        client.members("g", 4, 10).await,
        json!({"total": 27, "members": null})
    );
    assert_eq!(
        client.members("g", 1, 0).await,
        json!({"total": 27, "members": null})
    );
    assert_eq!(
        client.members("x", 1, 10).await,
        json!({"total": 0, "members": null})
    );
    server.answer_empty("get_group_member_list", true);
    assert_eq!(
        client.members("g", 1, 10).await,
        json!({"total": 0, "members": null})
    );
    server.answer_empty("get_group_member_list", false);
    assert_eq!(client.members("g", 1, 10).await["total"], 27);

    let asked = json!({"groupID": "g", "userIDs": ["u001", "u002", "nobody", "invited", "joined"]});
    let found = client.data("/group/get_group_members_info", asked).await;
    let found: BTreeMap<&str, &Value> = {
        let rows = found["members"].as_array().unwrap().iter();
        rows.map(|row| (row["userID"].as_str().unwrap(), row))
            .collect()
    };
    assert_eq!(found.len(), 4);
    let of_user =
        |id: &str| ["nickname", "faceURL", "muteEndTime"].map(|name| found[id][name].clone());
    assert_eq!(
        of_user("u001"),
        [json!("Own"), json!("face"), json!(1_770_000_000_000_i64)]
    );
    assert_eq!(of_user("u002"), [json!("Profile"), json!("face"), json!(0)]);
    let came = |id: &str| ["joinSource", "inviterUserID"].map(|name| found[id][name].clone());
    assert_eq!(came("invited"), [json!(2), json!("owner")]);
    assert_eq!(came("joined"), [json!(0), json!("")]);
    assert_eq!(
        *found["u002"],
        json!({
            "groupID": "g", "userID": "u002", "roleLevel": 20, "joinTime": 1_760_000_000_000_i64,
            "nickname": "Profile", "faceURL": "face", "appMangerLevel": 0, "joinSource": 2,
            "operatorUserID": "imAdmin", "ex": "", "muteEndTime": 0, "inviterUserID": "imAdmin",
        })
    );
    let joined = server
        .openim
        .lock()
        .unwrap()
        .shown_member("g", "joined")
        .unwrap();
    assert_eq!(*found["joined"], joined);
}

#[tokio::test]
async fn what_has_changed_since_a_version_is_told_by_its_last_state() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1", "u2", "u3"]);
    let client = Client::new(&server).await;
    let known = client.since("g", &nothing()).await;
    assert_eq!(
        (&known["full"], &known["version"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(known["versionID"].as_str().unwrap().len(), 24);
    assert_eq!(
        (&known["insert"], &known["group"]["groupName"]),
        (&Value::Null, &json!("g"))
    );
    let same = client.since("g", &known).await;
    let expected = json!({
        "version": 1, "versionID": known["versionID"], "full": false, "delete": null,
        "insert": null, "update": null, "group": null, "sortVersion": 0,
    });
    assert_eq!(same, expected);

    server.apply("g", &Operation::Invite("came".to_owned()));
    server.apply("g", &Operation::Invite("edited".to_owned()));
    let name = [("nickName", json!("Own"))].into();
    server.apply("g", &Operation::SetMember("edited".to_owned(), name));
    server.apply("g", &Operation::Join("passed".to_owned()));
    server.apply("g", &Operation::Quit("passed".to_owned()));
    server.apply("g", &Operation::Kick(vec!["u3".to_owned()]));
    server.apply("g", &Operation::MuteMember("u1".to_owned(), 1));
    server.apply("g", &Operation::UnmuteMember("u1".to_owned()));
    server.set_user("u2", "Profile", "");
    // No change of what the group shows.
    server.set_user("u2", "Profile", "");
    server.set_user("nobody", "Profile", "");
    let changed = client.since("g", &known).await;
    assert_eq!(
        (&changed["full"], &changed["version"]),
        (&json!(false), &json!(10))
    );
    assert_eq!(ids(&changed["insert"]), ["came"]);
    assert_eq!(ids(&changed["update"]), ["edited", "u1", "u2"]);
    assert_eq!(changed["update"][2]["nickname"], "Profile");
    assert_eq!(changed["delete"], json!(["passed", "u3"]));
    assert_eq!(changed["group"], Value::Null);
    server.openim.lock().unwrap().tells_group_with_members = true;
    assert_eq!(client.since("g", &known).await["group"]["memberCount"], 5);
    server.openim.lock().unwrap().tells_group_with_members = false;

    server.apply("g", &Operation::Mute);
    let muted = client.since("g", &changed).await;
    assert_eq!(
        (&muted["group"]["status"], &muted["update"]),
        (&json!(3), &Value::Null)
    );

    let mut ahead = muted.clone();
    ahead["version"] = json!(12);
    let mut other = muted.clone();
    other["versionID"] = json!("0123456789abcdef01234567");
    for wrong in [ahead, other] {
        assert_eq!(client.since("g", &wrong).await["full"], true);
    }
}

#[tokio::test]
async fn a_transfer_and_a_profile_change_the_members_whom_they_concern() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1", "u2"]);
    server.create("other", &["u2"]);
    let client = Client::new(&server).await;
    let known = client.since("g", &nothing()).await;
    let known_other = client.since("other", &nothing()).await;
    server.apply("g", &Operation::MuteMember("u1".to_owned(), i64::MAX));
    let transfer = Operation::Transfer {
        old_owner: "owner".to_owned(),
        new_owner: "u1".to_owned(),
    };
    server.apply("g", &transfer);
    let changed = client.since("g", &known).await;
    assert_eq!(ids(&changed["update"]), ["owner", "u1"]);
    let roles = [0, 1].map(|row| changed["update"][row]["roleLevel"].clone());
    assert_eq!(roles, [20, 100]);
    assert_eq!(changed["update"][1]["muteEndTime"], 0);

    // Who has both of its own in a group shows nothing else there.
    let own = [("nickName", json!("Own")), ("faceURL", json!("own"))].into();
    server.apply("g", &Operation::SetMember("u2".to_owned(), own));
    let known = client.since("g", &changed).await;
    server.set_user("u2", "Profile", "face");
    let same = client.since("g", &known).await;
    assert_eq!(same["version"], known["version"]);
    let other = client.since("other", &known_other).await;
    assert_eq!(other["update"][0]["faceURL"], "face");

    // As an administrator may: nobody owns the group, and no change of it can be told.
    let ordinary = [("roleLevel", json!(ORDINARY))].into();
    server.apply("g", &Operation::SetMember("u1".to_owned(), ordinary));
    assert_eq!(client.code(INCREMENTAL, since("g", &known)).await, 1004);
    server.apply("g", &Operation::Mute);
    assert_eq!(client.code(INCREMENTAL, since("g", &known)).await, 1004);
    let found = client
        .data("/group/get_groups_info", json!({"groupIDs": ["g"]}))
        .await;
    let info = &found["groupInfos"][0];
    assert_eq!(
        (&info["ownerUserID"], &info["status"]),
        (&json!(""), &json!(3))
    );
}

#[tokio::test]
async fn a_dismissed_group_has_no_versions_and_a_hard_dismissal_ends_the_counter() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1"]);
    server.create("h", &["u1"]);
    let client = Client::new(&server).await;
    // Without it a dismissal keeps the members.
    server.openim.lock().unwrap().push_is_away = true;
    let known = client.since("g", &nothing()).await;
    for (with_members, is_same) in [(false, true), (true, false)] {
        server.apply("g", &Operation::Dismiss { with_members });
        assert_eq!(client.code(INCREMENTAL, since("g", &known)).await, 1204);
        let requests = ["g", "h", "h"].map(|group| since(group, &nothing()));
        let asked = json!({"userID": "x", "reqList": requests});
        let answers = client.data(INCREMENTAL_BATCH, asked).await;
        let groups: Vec<_> = answers["respList"].as_object().unwrap().keys().collect();
        assert_eq!(groups, ["h"]);
        if with_members {
            break;
        }
        server.apply("g", &Operation::Unmute);
        let back = client.since("g", &known).await;
        assert_eq!(back["versionID"] == known["versionID"], is_same);
        assert_eq!(back["group"]["status"], 0);
    }
    server.apply("g", &Operation::Unmute);
    // Nobody is left, so there is no owner for the profile.
    assert_eq!(client.code(INCREMENTAL, since("g", &known)).await, 1004);
    let counter = server.openim.lock().unwrap().groups["g"]
        .versions
        .id
        .clone();
    assert_ne!(json!(counter), known["versionID"]);
    assert_eq!(client.code(INCREMENTAL, since("x", &known)).await, 1004);
    let asked = json!({"reqList": [since("h", &nothing()), since("x", &nothing())]});
    assert_eq!(client.code(INCREMENTAL_BATCH, asked).await, 1004);
    let asked = json!({"reqList": []});
    let empty = client.data(INCREMENTAL_BATCH, asked).await;
    assert_eq!(empty, json!({"respList": null}));
}

#[tokio::test]
async fn more_than_200_changes_are_not_told_and_a_batch_ends_after_500() {
    let server = OpenImServer::start().await;
    let client = Client::new(&server).await;
    let mut requests = vec![];
    for group in ["a", "b", "c", "d"] {
        server.create(group, &[]);
        requests.push(since(group, &client.since(group, &nothing()).await));
        for number in 0..200 {
            server.apply(group, &Operation::Invite(user(number)));
        }
    }
    let changed = client.data(INCREMENTAL, requests[0].clone()).await;
    assert_eq!(
        (&changed["full"], ids(&changed["insert"]).len()),
        (&json!(false), 200)
    );
    let answers = client
        .data(INCREMENTAL_BATCH, json!({"reqList": requests}))
        .await;
    let groups: Vec<_> = answers["respList"].as_object().unwrap().keys().collect();
    assert_eq!(groups, ["a", "b", "c"]);

    server.apply("a", &Operation::Invite("one more".to_owned()));
    let full = client.data(INCREMENTAL, requests[0].clone()).await;
    assert_eq!(
        (&full["full"], &full["insert"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(full["group"]["memberCount"], 202);
}

#[tokio::test]
async fn the_answer_is_compressed_for_who_can_read_it() {
    let server = OpenImServer::start().await;
    server.create_with("g", 50);
    let client = Client::new(&server).await;
    let pagination = json!({"pageNumber": 1, "showNumber": 100});
    let asked = json!({"groupID": "g", "pagination": pagination});
    let request = client
        .request(MEMBER_LIST, &asked)
        .header("accept-encoding", "gzip");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let mut text = String::new();
    let body = response.bytes().await.unwrap();
    GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(ids(&answer["data"]["members"]).len(), 51);
    let plain = client.request(MEMBER_LIST, &asked).send().await.unwrap();
    assert_eq!(plain.headers().get("content-encoding"), None);
}

#[tokio::test]
async fn what_is_to_go_wrong_does() {
    let server = OpenImServer::start().await;
    server.create("g", &["u1"]);
    let client = Client::new(&server).await;
    let ask = async || {
        let pagination = json!({"pageNumber": 1, "showNumber": 10});
        let asked = json!({"groupID": "g", "pagination": pagination});
        client.request(MEMBER_LIST, &asked).send().await
    };
    let fail = |fault| server.fail_next("get_group_member_list", fault, 1);
    fail(RestFault::Status(429));
    let response = ask().await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["retry-after"]
        ),
        (429, &"0".parse().unwrap())
    );
    fail(RestFault::ErrCode(90002));
    let answer = answer_of(client.request(MEMBER_LIST, &json!({}))).await;
    assert_eq!(answer["errCode"], 90002);
    fail(RestFault::Garbage);
    let body = ask().await.unwrap().bytes().await.unwrap();
    assert!(serde_json::from_slice::<Value>(&body).is_err());
    fail(RestFault::CutOff);
    let response = ask().await.unwrap();
    assert!(response.content_length().is_some());
    response.bytes().await.unwrap_err();
    fail(RestFault::TooLarge);
    let body = ask().await.unwrap().bytes().await.unwrap();
    assert!(body.len() > 64 << 20);
    assert_eq!(client.members("g", 1, 10).await["total"], 2);
}

#[tokio::test]
async fn a_call_that_hangs_ends_with_the_server() {
    let server = OpenImServer::start().await;
    let client = Client::new(&server).await;
    server.fail_next("get_groups_info", RestFault::Hang, 1);
    let mut reached = server.hold("get_groups_info");
    let asked = client.request("/group/get_groups_info", &json!({"groupIDs": ["g"]}));
    let call = tokio::spawn(asked.send());
    reached.reached().await;
    reached.release();
    let url = server.url.clone();
    drop(server);
    let error = call.await.unwrap().unwrap_err();
    assert!(!error.is_timeout(), "{error}");
    assert!(client.http.post(url).send().await.unwrap_err().is_connect());
}

#[tokio::test]
async fn random_faults_come_again_from_their_seed_and_let_the_third_try_pass() {
    let mut stories = vec![];
    for _ in 0..2 {
        let server = OpenImServer::start().await;
        let client = Client::new(&server).await;
        server.fail_sometimes(7, 2);
        let mut story = String::new();
        for _ in 0..100 {
            let asked = client.request("/group/get_groups_info", &json!({"groupIDs": ["g"]}));
            let response = asked.send().await.unwrap();
            let status = response.status().as_u16();
            let answer: Option<Value> = match response.bytes().await {
                Ok(body) => serde_json::from_slice(&body).ok(),
                Err(_) => None,
            };
            story.push(match answer {
                Some(answer) if status == 200 && answer["errCode"] == 0 => '.',
                _ => 'x',
            });
        }
        server.stop_failing();
        client
            .data("/group/get_groups_info", json!({"groupIDs": ["g"]}))
            .await;
        stories.push(story);
    }
    assert_eq!(stories[0], stories[1]);
    assert!(
        stories[0].contains("xx") && !stories[0].contains("xxx"),
        "{}",
        stories[0]
    );
}

#[tokio::test]
async fn a_test_can_act_before_during_and_after_a_call() {
    let mut openim = OpenIm::default();
    let creation = Creation::open("g", "owner", &["u1", "u2"]);
    openim.apply("g", &Operation::Create(creation)).unwrap();
    let server = OpenImServer::start_with(openim).await;
    let client = Client::new(&server).await;
    // Between two pages somebody goes, and whoever was next is on no page.
    server.on_call(|path, request, openim| {
        if path == MEMBER_LIST && request["pagination"]["pageNumber"] == 2 {
            let kicked = Operation::Kick(vec!["u1".to_owned()]);
            openim.apply("g", &kicked).unwrap();
        }
    });
    let first = client.members("g", 1, 2).await;
    assert_eq!(set(&first["members"]), ["owner", "u1"].into());
    let second = client.members("g", 2, 2).await;
    assert_eq!(second, json!({"total": 2, "members": null}));
    server.on_call(|_, _, _| {});

    let total = async |mut held: Held| {
        let asking = client.clone();
        let call = tokio::spawn(async move { asking.members("g", 1, 10).await });
        held.reached().await;
        let now = server.openim.lock().unwrap().now_millis;
        let invited = format!("at {now}");
        server.apply("g", &Operation::Invite(invited));
        held.release();
        call.await.unwrap()["total"].clone()
    };
    assert_eq!(total(server.hold("get_group_member_list")).await, 3);
    assert_eq!(total(server.hold_answer("get_group_member_list")).await, 3);
    assert_eq!(client.members("g", 1, 10).await["total"], 4);
}
