//! Observations of two real servers, one test for each: the callbacks, and their effect in the mirror.
//!
//! | what OpenIM does | what the mirror does | test |
//! | --- | --- | --- |
//! | it tells a dismissal with 5 members, then the same with none | dismissed once, they have left once | `case_80` |
//! | a dismissed group is un-muted: status 0, nobody in it, no owner | it is back, empty, and nobody is too much removed | `case_81` |
//! | it tells by a message that somebody was invited, without content | the group is compared at once | `case_82` in `real_hints.rs` |
//! | it tells of an ordinary message | answered, nothing read, nothing written | `case_83` |
//! | it counts 5 members and shows 4 | the 4 are compared, the fifth stays, looked at again | `case_84` |
//! | an answer is too large for its services | smaller pages; who is too large alone is left out | `case_85` |
//! | a service is away, slow or overrun | asked again, and nothing judged from it | `case_86` |
//! | one group fails the batch | each asked singly | `case_87` |
//! | a group without an owner has not changed | one small look, not read anew | `case_88` |
//! | a group was dismissed | a dry run finds no difference | `case_89` |

use openim_group_mirror::reconcile::Mode;
use serde_json::{Value, json};

use crate::model;
use crate::support::{
    Creation, ORDINARY, Operation, Pair, Release, RestFault, TestApp, TestDb, Values, access, until,
};

const GROUP: &str = "g";
const LIST: &str = "/group/get_group_member_list";
const BATCH: &str = "/group/get_incremental_group_members_batch";
const DISMISS: Operation = Operation::Dismiss {
    with_members: false,
};

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("u{number:02}")).collect()
}

/// A group of `boss` and so many others, told and compared.
async fn pair_of(others: usize) -> Pair {
    let pair = Pair::new().await;
    pair.openim().release = Release::Patch16;
    create(&pair, GROUP, others).await;
    pair.cycle().await;
    pair.assert_equal().await;
    pair
}

async fn create(pair: &Pair, group: &str, others: usize) {
    let names = names(others);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let creation = Creation::open("Kayaks", "boss", &names);
    pair.act_and_tell(group, &Operation::Create(creation)).await;
}

fn invite(user: &str) -> Operation {
    Operation::Invite(user.to_owned())
}

fn orphan() -> Operation {
    let values: Values = [("roleLevel", json!(ORDINARY))].into();
    Operation::SetMember("boss".to_owned(), values)
}

/// Users who have left, with the times.
async fn left(pair: &Pair) -> Vec<Value> {
    let sql =
        "select user_id, coalesce(left_at, case when came_at_dismissal is distinct from dismissals
                      then emptying_at end) as left_at
                 from group_members join groups using (group_id) order by user_id";
    pair.db.rows(sql).await
}

#[tokio::test]
async fn case_80_a_dismissal_is_told_twice_and_the_members_have_left_once() {
    let pair = pair_of(4).await;
    let told = pair.act(GROUP, &DISMISS);
    let [first, second] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(second.body.contains(r#""membersID":[]"#), "{second:?}");
    assert_eq!(first.operation_id, second.operation_id);
    pair.tell(first).await;
    let left_first = left(&pair).await;
    assert_eq!(left_first.len(), 5);
    assert!(left_first.iter().all(|row| row["left_at"] != Value::Null));
    pair.assert_equal().await;
    pair.tell(second).await;
    assert_eq!(left(&pair).await, left_first);
    pair.cycle().await;
    assert_eq!(left(&pair).await, left_first);
    pair.assert_equal().await;
    pair.close().await;
}

/// More members than any comparison takes for gone by itself.
#[tokio::test]
async fn case_81_a_group_that_is_back_is_empty_and_that_is_no_removal() {
    let pair = pair_of(60).await;
    pair.act_and_tell(GROUP, &DISMISS).await;
    let left_first = left(&pair).await;
    assert!(pair.act(GROUP, &Operation::Unmute).is_empty());
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (0, 0));
    pair.assert_equal().await;
    let group = pair
        .db
        .rows("select status, owner_user_id from groups")
        .await;
    assert_eq!(group, [json!({"status": 0, "owner_user_id": null})]);
    assert_eq!(left(&pair).await, left_first);
    // Whoever comes then is the only one.
    pair.act(GROUP, &invite("u07"));
    pair.cycle().await;
    pair.assert_equal().await;
    let seven = pair.member(GROUP, "u07").await.unwrap();
    assert_eq!(seven["is_gone"], false);
    pair.close().await;
}

/// Also where none of it was told.
#[tokio::test]
async fn case_81_so_it_is_where_nobody_has_heard_of_the_dismissal() {
    let pair = pair_of(60).await;
    // Of which they are less than a tenth.
    create(&pair, "other", 600).await;
    pair.cycle().await;
    pair.act(GROUP, &DISMISS);
    let result = pair.cycle().await;
    assert_eq!(result.groups_left, 0);
    pair.assert_equal().await;
    pair.act(GROUP, &Operation::Unmute);
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (0, 0));
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn case_83_an_ordinary_message_is_answered_and_that_is_all() {
    let pair = Pair::new().await;
    create(&pair, GROUP, 4).await;
    let db = TestDb::shared(&pair.db.url);
    let app = TestApp::start_on(db, |config| config.openim = Some(access(&pair.server))).await;
    until("all groups are compared", async || {
        app.get("/drift").await.ok()["lastRun"] != Value::Null
    })
    .await;
    pair.act(GROUP, &invite("new"));
    pair.server.reset_calls();
    let before = pair.rows_as_they_lie().await;
    let command = "callbackAfterSendGroupMsgCommand";
    let body = json!({
        "sendID": "u01",
        "callbackCommand": command,
        "serverMsgID": "9fd1b16edd34675cc41bc44081ddf11f",
        "clientMsgID": "64aab97d8b9cb07e561245a686734347",
        "operationID": "op1",
        "senderPlatformID": 5,
        "senderNickname": "",
        "sessionType": 3,
        "msgFrom": 200,
        "contentType": 101,
        "status": 0,
        "sendTime": 1_795_754_484_800_u64,
        "createTime": 1_795_754_484_799_u64,
        "content": "{\"content\":\"hello\"}",
        "seq": 0,
        "atUserList": null,
        "faceURL": "",
        "ex": "",
        "groupID": GROUP,
    });
    for _ in 0..20 {
        let reply = app.post(&format!("/{command}"), body.to_string()).await;
        let answer = reply.ok();
        assert_eq!(
            (&answer["errCode"], &answer["nextCode"]),
            (&json!(0), &json!(0))
        );
    }
    app.stop().await;
    pair.assert_nothing_written_since(&before).await;
    assert!(pair.server.calls().is_empty(), "{:?}", pair.server.calls());
    pair.close().await;
}

#[tokio::test]
async fn case_84_who_is_counted_and_not_shown_stays_and_the_others_are_compared() {
    let pair = pair_of(3).await;
    let client = model::Client::new(&pair.server).await;
    // One whom the mirror knows leaves unheard, and comes again by an invitation that fails half-way.
    pair.act(GROUP, &Operation::Kick(vec!["u01".into()]));
    let looked_for = json!({"groupID": GROUP, "userIDs": ["u01"]});
    client
        .data("/group/get_group_members_info", looked_for)
        .await;
    let all = ["u01", "u02", "u09"].map(str::to_owned);
    pair.act(GROUP, &Operation::InviteAll(all.into()));
    pair.act(GROUP, &invite("new"));
    let list = client.members(GROUP, 1, 100).await;
    assert_eq!(list["total"], 5);
    assert_eq!(list["members"].as_array().unwrap().len(), 4);

    // Read as a whole: by what has changed since, "u01" has left.
    let whole = pair.compare(&[GROUP], Mode::default()).await;
    let result = whole.unwrap();
    assert_eq!((result.groups_left, result.members_added), (1, 1));
    for user in ["new", "u01", "u02", "u03", "boss"] {
        let member = pair.member(GROUP, user).await.unwrap();
        assert_eq!(member["is_gone"], false, "{user}");
    }
    // It is not taken for compared.
    pair.openim().entries_expire();
    assert_eq!(pair.cycle().await.groups_left, 0);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn case_85_a_page_that_is_too_large_is_made_smaller_and_who_is_too_large_alone_is_left_out() {
    let pair = pair_of(30).await;
    let large = |bytes| -> Values { [("ex", json!("x".repeat(bytes)))].into() };
    for user in names(30) {
        pair.act(GROUP, &Operation::SetMember(user, large(1000)));
    }
    pair.openim().largest_answer = Some(10_000);
    let result = pair.cycle().await;
    assert_eq!(result.groups_left, 0);
    pair.assert_equal().await;

    pair.act(GROUP, &Operation::SetMember("u05".into(), large(20_000)));
    pair.act(GROUP, &invite("new"));
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_added), (1, 1));
    let kept = pair.member(GROUP, "u05").await.unwrap();
    assert_eq!(kept["ex"].as_str().unwrap().len(), 1000);
    pair.close().await;
}

#[tokio::test]
async fn case_86_a_service_that_is_away_is_asked_again_and_nothing_is_judged_from_it() {
    let pair = pair_of(4).await;
    for (number, fault) in [
        RestFault::ErrCode(14),
        RestFault::ErrCode(4),
        RestFault::ErrCode(500),
        RestFault::ErrCode(90002),
        RestFault::Status(429),
    ]
    .into_iter()
    .enumerate()
    {
        pair.act(GROUP, &invite(&format!("new{number}")));
        for path in ["get_groups", "_batch"] {
            pair.server.fail_next(path, fault, 2);
        }
        let result = pair.cycle().await;
        assert_eq!(
            (result.groups_left, result.members_removed),
            (0, 0),
            "{fault:?}"
        );
        pair.assert_equal().await;
    }
    pair.close().await;
}

#[tokio::test]
async fn case_87_where_one_group_fails_the_batch_each_is_asked_singly() {
    let pair = pair_of(4).await;
    for number in 0..5 {
        create(&pair, &format!("h{number}"), 3).await;
    }
    pair.cycle().await;
    pair.act("h1", &invite("new"));
    pair.server.on_call(|path, _, openim| {
        // Since the groups were listed.
        if path == BATCH && openim.groups["h2"].owner().is_some() {
            openim.apply("h2", &orphan()).unwrap();
        }
    });
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_added), (0, 1));
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn case_88_a_group_without_an_owner_that_has_not_changed_is_not_read_anew() {
    let pair = pair_of(4).await;
    pair.act_and_tell(GROUP, &orphan()).await;
    pair.cycle().await;
    pair.assert_equal().await;
    pair.server.reset_calls();
    let result = pair.cycle().await;
    assert_eq!(result.groups_compared, 0);
    let calls = pair.server.calls();
    assert_eq!(calls.get(LIST), None, "{calls:?}");
    let of_group = calls
        .iter()
        .filter(|(path, _)| *path != "/group/get_groups");
    assert!(
        of_group.map(|(_, count)| count).sum::<u64>() <= 1,
        "{calls:?}"
    );
    assert!(pair.openim().versions_of_nothing.is_empty());
    pair.close().await;
}

#[tokio::test]
async fn case_89_a_dry_run_finds_nothing_in_a_dismissed_group() {
    let pair = pair_of(4).await;
    pair.act_and_tell(GROUP, &DISMISS).await;
    let drift = pair.drift().await;
    assert!(drift.is_empty(), "{drift:?}");
    // Nor does it after the ordinary comparison.
    pair.cycle().await;
    let drift = pair.drift().await;
    assert!(drift.is_empty(), "{drift:?}");
    pair.close().await;
}
