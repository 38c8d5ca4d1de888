use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::OpenimAccess;
use super::*;
use crate::telemetry::Metrics;

/// Answers a request to a path with data or an error code.
type Answer = fn(&str, &Value) -> Result<Value, i64>;

/// Makes a reader of an OpenIM with these answers.
async fn reader(answer: Answer) -> Reader {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let access = OpenimAccess {
        url: format!("http://{}", listener.local_addr().unwrap()),
        admin_user_id: "imAdmin".to_owned(),
        secret: "secret".to_owned().into(),
        timeout: Duration::from_secs(5),
    };
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection, answer));
        }
    });
    Reader::new(Client::new(access, Metrics::new().unwrap()).unwrap())
}

async fn serve(mut connection: TcpStream, answer: Answer) {
    let mut text = Vec::new();
    loop {
        let head_and_body = String::from_utf8_lossy(&text).into_owned();
        let asked = head_and_body
            .split_once("\r\n\r\n")
            .and_then(|(head, body)| Some((head, serde_json::from_str(body).ok()?)));
        let Some((head, request)) = asked else {
            if connection.read_buf(&mut text).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        };
        let path = head.split(' ').nth(1).unwrap();
        let envelope = match answer(path, &request) {
            Ok(data) => json!({"errCode": 0, "errMsg": "", "errDlt": "", "data": data}),
            Err(code) => json!({"errCode": code, "errMsg": "", "errDlt": ""}),
        };
        let body = envelope.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = head + &body;
        connection.write_all(answer.as_bytes()).await.unwrap();
        text.clear();
    }
}

fn delta(changed: Value) -> Value {
    let mut delta = json!({"version": 7, "versionID": "v", "full": false});
    for (name, value) in changed.as_object().unwrap() {
        delta[name] = value.clone();
    }
    delta
}

fn group() -> GroupId {
    GroupId::parse("g".to_owned()).unwrap()
}

fn users(ids: &[&str]) -> Vec<UserId> {
    let ids = ids.iter().map(|&id| UserId::parse(id.to_owned()).unwrap());
    ids.collect()
}

async fn since(answer: Answer, touched: &[&str]) -> Result<Option<Box<GroupSnapshot>>, ReadError> {
    let version = Version {
        id: "v".to_owned(),
        number: 5,
    };
    let reader = reader(answer).await;
    reader.since(&group(), &version, &users(touched)).await
}

fn sorted<'a>(users: impl IntoIterator<Item = &'a UserId>) -> Vec<&'a str> {
    let mut users: Vec<&str> = users.into_iter().map(UserId::as_str).collect();
    users.sort_unstable();
    users
}

#[tokio::test]
async fn touched_users_without_a_change_are_asked_for() {
    let answer: Answer = |path, asked| match path {
        "/auth/get_admin_token" => Ok(json!({"token": "t"})),
        "/group/get_incremental_group_members" => {
            assert_eq!(
                (&asked["version"], &asked["versionID"]),
                (&json!(5), &json!("v"))
            );
            Ok(delta(
                json!({"update": [{"groupID": "g", "userID": "u1"}], "delete": ["u2"]}),
            ))
        }
        "/group/get_group_members_info" => {
            let mut ids: Vec<_> = asked["userIDs"].as_array().unwrap().iter().collect();
            ids.sort_by_key(|id| id.as_str());
            assert_eq!(ids, ["u3", "u4"]);
            Ok(json!({"members": [{"groupID": "g", "userID": "u3", "roleLevel": 60}]}))
        }
        other => panic!("{other}"),
    };
    let touched = ["u1", "u2", "u3", "u4", "u4"];
    let snapshot = since(answer, &touched).await.unwrap().unwrap();
    assert_eq!(sorted(snapshot.members.keys()), ["u1", "u3"]);
    assert_eq!(snapshot.members[&users(&["u3"])[0]].role_level, 60);
    assert_eq!(sorted(&snapshot.absent), ["u2", "u4"]);
    assert_eq!(
        (snapshot.is_whole, &snapshot.unlisted),
        (false, &Unlisted::Nobody)
    );
    assert_eq!(snapshot.version.unwrap().number, 7);
    assert_eq!(snapshot.incomplete, None);
}

#[tokio::test]
async fn a_member_that_is_too_large_is_neither_present_nor_absent() {
    let answer: Answer = |path, asked| match path {
        "/auth/get_admin_token" => Ok(json!({"token": "t"})),
        "/group/get_incremental_group_members" => Ok(delta(json!({}))),
        _ => match asked["userIDs"].as_array().unwrap() {
            ids if ids.contains(&json!("u3")) => Err(8),
            ids => {
                let there = ids.iter().filter(|id| **id != json!("u5"));
                let there: Vec<_> = there
                    .map(|id| json!({"groupID": "g", "userID": id}))
                    .collect();
                Ok(json!({"members": there}))
            }
        },
    };
    let touched = ["u1", "u2", "u3", "u4", "u5"];
    let snapshot = since(answer, &touched).await.unwrap().unwrap();
    assert_eq!(sorted(snapshot.members.keys()), ["u1", "u2", "u4"]);
    assert_eq!(sorted(&snapshot.absent), ["u5"]);
    let unlisted = Unlisted::Users(users(&["u3"]).into_iter().collect());
    assert_eq!((snapshot.unlisted, snapshot.version), (unlisted, None));
    assert_eq!(snapshot.incomplete, Some(Incomplete::MembersTooLarge(1)));
}

/// Ids from a cache that was just emptied do not say that anybody has left.
#[tokio::test]
async fn fewer_ids_than_openim_counts_are_not_believed() {
    async fn whole(answer: Answer) -> Box<GroupSnapshot> {
        match reader(answer).await.whole(&group()).await.unwrap() {
            GroupState::Present(snapshot) => snapshot,
            other => panic!("{other:?}"),
        }
    }
    fn answer(path: &str) -> Result<Value, i64> {
        match path {
            "/auth/get_admin_token" => Ok(json!({"token": "t"})),
            "/group/get_group_member_list" => {
                Ok(json!({"total": 3, "members": [{"groupID": "g", "userID": "u1"}]}))
            }
            "/group/get_groups_info" => Ok(json!({"groupInfos": [{"groupID": "g"}]})),
            "/group/get_full_group_member_user_ids" => {
                Ok(json!({"version": 7, "versionID": "v", "userIDs": null}))
            }
            other => panic!("{other}"),
        }
    }
    let with_owner: Answer = |path, asked| match path {
        "/group/get_incremental_group_members" => {
            let is_first = asked["version"] == 0;
            Ok(delta(json!({"full": is_first, "group": {"groupID": "g"}})))
        }
        _ => answer(path),
    };
    let without_owner: Answer = |path, _| match path {
        "/group/get_incremental_group_members" => Err(1004),
        _ => answer(path),
    };
    for answer in [with_owner, without_owner] {
        let snapshot = whole(answer).await;
        assert_eq!(sorted(snapshot.members.keys()), ["u1"]);
        assert_eq!(snapshot.unlisted, Unlisted::AtLeast(2));
        let why = Incomplete::RowsMissing { total: 3, rows: 1 };
        assert_eq!((snapshot.incomplete, snapshot.version), (Some(why), None));
    }
}

#[tokio::test]
async fn an_answer_without_all_changes_is_not_enough() {
    fn or_token(path: &str, answer: Result<Value, i64>) -> Result<Value, i64> {
        match path {
            "/auth/get_admin_token" => Ok(json!({"token": "t"})),
            _ => answer,
        }
    }
    let not_enough: [Answer; 6] = [
        |path, _| or_token(path, Ok(delta(json!({"full": true})))),
        |path, _| or_token(path, Ok(delta(json!({"delete": vec!["u"; 21]})))),
        |path, _| {
            or_token(
                path,
                Ok(delta(json!({"group": {"groupID": "g", "status": 2}}))),
            )
        },
        |path, _| or_token(path, Err(1004)),
        |path, _| or_token(path, Err(1204)),
        |path, _| or_token(path, Err(8)),
    ];
    for answer in not_enough {
        assert!(since(answer, &["u1"]).await.unwrap().is_none());
    }
    let refused = since(|path, _| or_token(path, Err(1001)), &[]).await;
    assert!(matches!(refused, Err(ReadError::Client(error)) if error.code() == Some(1001)));
}
