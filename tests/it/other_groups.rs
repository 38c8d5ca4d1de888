//! Answers of OpenIM's API that are about another group or user than was asked for, as a cache or a
//! balancer before it may give them. None is believed.

use openim_group_mirror::domain::GroupId;
use openim_group_mirror::reconcile::{Mode, Report};
use openim_group_mirror::store::RunCounts;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Creation, Operation, Pair};

const GROUP: &str = "g";
const OTHER: &str = "other";
const LIST: &str = "get_group_member_list";
const IDS: &str = "get_full_group_member_user_ids";
const NAMED: &str = "get_group_members_info";
const INFOS: &str = "get_groups_info";
const SINGLY: &str = "get_incremental_group_members";
const BATCH: &str = "get_incremental_group_members_batch";

/// Two groups of the same size, compared.
async fn pair() -> Pair {
    let pair = Pair::new().await;
    for (group, members) in [(GROUP, ["u1", "u2"]), (OTHER, ["o1", "o2"])] {
        let creation = Creation::open(group, "boss", &members);
        pair.act(group, &Operation::Create(creation));
    }
    pair.cycle().await;
    pair.assert_equal().await;
    pair
}

fn invite(user: &str) -> Operation {
    Operation::Invite(user.to_owned())
}

/// All of the group is asked for; the counts, and why groups were left.
async fn whole(pair: &Pair) -> (RunCounts, Vec<String>) {
    let report = Report::default();
    let never = CancellationToken::new();
    let groups = [GroupId::parse(GROUP.into()).unwrap()];
    let compared = pair
        .reconciler
        .reconcile(&groups, Mode::default(), &report, &never);
    compared.await.unwrap();
    let left = report.skipped().into_iter().map(|(_, why)| why);
    (report.counts(), left.collect())
}

async fn assert_not_believed(pair: &Pair, what: &str, before: &[Value]) {
    let (result, left) = whole(pair).await;
    assert_eq!((result.groups_left, left.len()), (1, 1), "{what}");
    let why = &left[0];
    assert!(why.contains("in another form"), "{what}: {why}");
    pair.assert_nothing_written_since(before).await;
}

fn rename(row: &mut Value) {
    row["groupID"] = json!(OTHER);
}

fn each(list: &mut Value, change: impl FnMut(&mut Value)) {
    list.as_array_mut().into_iter().flatten().for_each(change);
}

/// The whole answer is the other group's.
#[tokio::test]
async fn an_answer_for_another_group_is_not_believed() {
    let pair = pair().await;
    let before = pair.rows_as_they_lie().await;
    for path in [LIST, SINGLY] {
        pair.server
            .tamper_with_requests(path, |asked| asked["groupID"] = json!(OTHER));
        assert_not_believed(&pair, path, &before).await;
        pair.server.stop_tampering();
    }
    // All of them together agree with each other.
    for path in [LIST, SINGLY, IDS, NAMED] {
        pair.server
            .tamper_with_requests(path, |asked| asked["groupID"] = json!(OTHER));
    }
    pair.server
        .tamper_with_requests(INFOS, |asked| asked["groupIDs"] = json!([OTHER]));
    assert_not_believed(&pair, "all", &before).await;
    pair.server.stop_tampering();
    assert_eq!(whole(&pair).await.0.groups_left, 0);
    pair.close().await;
}

/// Also where there is no version to tell it by.
#[tokio::test]
async fn an_answer_for_another_group_without_an_owner_is_not_believed() {
    let pair = pair().await;
    for group in [GROUP, OTHER] {
        let values = [("roleLevel", json!(20))].into();
        pair.act(group, &Operation::SetMember("boss".to_owned(), values));
    }
    pair.cycle().await;
    pair.assert_equal().await;
    let before = pair.rows_as_they_lie().await;
    let to_another = |path: &'static str| {
        pair.server
            .tamper_with_requests(path, |asked| asked["groupID"] = json!(OTHER));
    };
    to_another(LIST);
    assert_not_believed(&pair, LIST, &before).await;
    pair.server
        .tamper_with_requests(INFOS, |asked| asked["groupIDs"] = json!([OTHER]));
    to_another(IDS);
    assert_not_believed(&pair, "all", &before).await;
    pair.close().await;
}

#[tokio::test]
async fn one_row_of_another_group_spoils_the_answer() {
    let pair = pair().await;
    let before = pair.rows_as_they_lie().await;
    type Change = fn(&mut Value);
    let rows: [(&str, &str, Change); 5] = [
        (LIST, "a member's row", |data| {
            rename(&mut data["members"][1])
        }),
        (LIST, "a member's row without a group", |data| {
            data["members"][1]["groupID"] = json!("");
        }),
        (SINGLY, "the group's profile", |data| {
            if !data["group"].is_null() {
                rename(&mut data["group"]);
            }
        }),
        // As it is at the end of the pages.
        (SINGLY, "a version that is lower", |data| {
            if data["full"] == false {
                data["version"] = json!(0);
            }
        }),
        (SINGLY, "a version of another count", |data| {
            if data["full"] == false {
                data["versionID"] = json!("f".repeat(24));
            }
        }),
    ];
    for (path, what, change) in rows {
        pair.server.tamper_with_answers(path, change);
        assert_not_believed(&pair, what, &before).await;
        pair.server.stop_tampering();
    }
    assert_eq!(whole(&pair).await.0.groups_left, 0);
    pair.close().await;
}

/// Changes since a version, asked for the group alone or with others.
#[tokio::test]
async fn changes_of_another_group_are_not_believed() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 3] = [
        ("who came", |delta| each(&mut delta["insert"], rename)),
        ("who was changed", |delta| {
            let rows = delta["insert"].take();
            delta["update"] = rows;
            each(&mut delta["update"], rename);
        }),
        ("a version of another count", |delta| {
            delta["versionID"] = json!("f".repeat(24));
        }),
    ];
    for (what, change) in changes {
        let pair = pair().await;
        let before = pair.rows_as_they_lie().await;
        pair.act(GROUP, &invite("new"));
        pair.server.tamper_with_answers(BATCH, move |data| {
            change(&mut data["respList"][GROUP]);
        });
        pair.server.tamper_with_answers(SINGLY, move |delta| {
            // The other group has not changed.
            if delta["full"] == false && !delta["insert"].is_null() {
                change(delta);
            }
        });
        let result = pair.cycle().await;
        assert_eq!((result.groups_left, result.members_added), (1, 0), "{what}");
        pair.assert_nothing_written_since(&before).await;
        pair.server.stop_tampering();
        // The version is not noted.
        assert_eq!(pair.cycle().await.members_added, 1, "{what}");
        pair.assert_equal().await;
        pair.close().await;
    }
}

/// Each is asked for alone then.
#[tokio::test]
async fn changes_of_several_groups_that_are_mixed_up_are_asked_for_again() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 3] = [
        ("swapped", |list| {
            let (one, other) = (list[GROUP].take(), list[OTHER].take());
            (list[GROUP], list[OTHER]) = (other, one);
        }),
        ("one that nobody asked for", |list| {
            list["stranger"] = list[OTHER].clone();
        }),
        ("one for both", |list| list[OTHER] = list[GROUP].clone()),
    ];
    for (what, change) in changes {
        let pair = pair().await;
        pair.act(GROUP, &invite("new"));
        pair.act(OTHER, &Operation::Kick(vec!["o1".to_owned()]));
        pair.server.reset_calls();
        pair.server
            .tamper_with_answers(BATCH, move |data| change(&mut data["respList"]));
        let result = pair.cycle().await;
        let changed = (
            result.groups_left,
            result.members_added,
            result.members_removed,
        );
        assert_eq!(changed, (0, 1, 1), "{what}");
        pair.assert_equal().await;
        assert!(
            pair.server
                .calls()
                .contains_key(&format!("/group/{SINGLY}")),
            "{what}"
        );
        pair.close().await;
    }
}

/// Users who are asked for by their ids, since callbacks have named them.
#[tokio::test]
async fn a_user_who_was_not_asked_for_is_not_believed() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("another group's", |rows| each(rows, rename)),
        ("another user's", |rows| rows[0]["userID"] = json!("o1")),
        ("the same again", |rows| {
            let again = rows[0].clone();
            rows.as_array_mut().unwrap().push(again);
        }),
        ("one more", |rows| {
            let mut more = rows[0].clone();
            more["userID"] = json!("boss");
            rows.as_array_mut().unwrap().push(more);
        }),
    ];
    for (what, change) in changes {
        let pair = pair().await;
        let values = [("ex", json!("x"))].into();
        pair.act_and_tell(GROUP, &Operation::SetMember("u1".to_owned(), values))
            .await;
        let before = pair.rows_as_they_lie().await;
        // Of whom no change is told, so that they are asked for.
        pair.server.tamper_with_answers(BATCH, |data| {
            data["respList"][GROUP]["update"] = Value::Null;
        });
        pair.server
            .tamper_with_answers(SINGLY, |data| data["update"] = Value::Null);
        pair.server
            .tamper_with_answers(NAMED, move |data| change(&mut data["members"]));
        pair.server.reset_calls();
        let result = pair.cycle().await;
        let calls = pair.server.calls();
        assert!(calls.contains_key(&format!("/group/{NAMED}")), "{calls:?}");
        assert_eq!(result.groups_left, 1, "{what}");
        pair.assert_nothing_written_since(&before).await;
        pair.server.stop_tampering();
        pair.cycle().await;
        pair.assert_equal().await;
        pair.close().await;
    }
}

/// With the profiles of groups that OpenIM does not list.
#[tokio::test]
async fn a_profile_that_was_not_asked_for_is_not_believed() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 2] = [
        ("another's", |infos| rename(&mut infos[0])),
        ("the same again", |infos| {
            let mut again = infos[0].clone();
            again["status"] = json!(0);
            infos.as_array_mut().unwrap().push(again);
        }),
    ];
    for (what, change) in changes {
        let pair = pair().await;
        let before = pair.rows_as_they_lie().await;
        let with_members = true;
        pair.act(GROUP, &Operation::Dismiss { with_members });
        pair.server
            .tamper_with_answers(INFOS, move |data| change(&mut data["groupInfos"]));
        let result = pair.cycle().await;
        assert_eq!(result.groups_left, 1, "{what}");
        pair.assert_nothing_written_since(&before).await;
        assert_eq!(pair.check(GROUP).await, None);
        pair.server.stop_tampering();
        assert_eq!(pair.cycle().await.groups_left, 0);
        pair.assert_equal().await;
        pair.close().await;
    }
}

/// Ids that are told twice stand for somebody who is not told.
#[tokio::test]
async fn ids_that_are_told_twice_take_nobody_for_gone() {
    let pair = pair().await;
    let before = pair.rows_as_they_lie().await;
    pair.server.tamper_with_answers(LIST, |data| {
        each(&mut data["members"], |row| {
            if row["userID"] == "u2" {
                row["userID"] = json!("u1");
            }
        });
    });
    pair.server.tamper_with_answers(IDS, |data| {
        data["userIDs"] = json!(["boss", "u1", "u1"]);
    });
    assert_not_believed(&pair, "ids", &before).await;
    pair.server.stop_tampering();
    assert_eq!(whole(&pair).await.0.groups_left, 0);
    pair.close().await;
}

/// Nor do groups that are listed twice keep another from being found.
#[tokio::test]
async fn groups_that_are_listed_twice_hide_no_other() {
    let pair = pair().await;
    let creation = Creation::open("new", "boss", &["u1"]);
    pair.act("new", &Operation::Create(creation));
    let mut is_first = true;
    pair.server.tamper_with_answers("get_groups", move |data| {
        if std::mem::take(&mut is_first) {
            let again = data["groups"][0].clone();
            each(&mut data["groups"], |row| *row = again.clone());
        }
    });
    pair.cycle().await;
    pair.assert_equal().await;
    pair.close().await;
}
