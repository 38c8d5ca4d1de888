//! Runs and marks: differences that callbacks do not report, or report wrong, and their repair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use openim_group_mirror::reconcile::{Mode, ReconcileSettings};
use sqlx::Executor;

use crate::support::{ADMIN, Creation, OWNER, Operation, Pair, RestFault, Values, settings, until};

const GROUP: &str = "g";
const GROUP_OF_TEXT: &str = "g03";

fn join(user: &str) -> Operation {
    Operation::Join(user.to_owned())
}

fn invite(user: &str) -> Operation {
    Operation::Invite(user.to_owned())
}

fn set(user: &str, values: &[(&'static str, Value)]) -> Operation {
    let values: Values = values.iter().cloned().collect();
    Operation::SetMember(user.to_owned(), values)
}

/// A group of `boss` and these, told and compared.
async fn pair_of(members: &[&str]) -> Pair {
    let pair = Pair::new().await;
    let creation = Creation::open("Kayaks", "boss", members);
    pair.act_and_tell(GROUP, &Operation::Create(creation)).await;
    pair.cycle().await;
    pair.assert_equal().await;
    pair
}

#[tokio::test]
async fn what_was_never_told_is_there_after_a_comparison() {
    let pair = Pair::new().await;
    let creation = Creation::open("Kayaks", "boss", &["ann", "bob"]);
    pair.act(GROUP, &Operation::Create(creation));
    pair.openim().set_user("ann", "Ann of the profile", "face");
    let result = pair.cycle().await;
    pair.assert_equal().await;
    assert_eq!((result.members_added, result.groups_changed), (3, 1));
    let ann = pair.member(GROUP, "ann").await.unwrap();
    // Which of the two it is, OpenIM does not tell.
    assert_eq!(ann["nickname"], Value::Null);
    assert_eq!(ann["display_nickname"], "Ann of the profile");
    let again = pair.cycle().await;
    assert_eq!(again.groups_compared, 0, "{again:?}");
    pair.close().await;
}

/// More text than is read at a time: some groups are in a later part, and none is left out.
#[tokio::test]
async fn groups_and_members_with_much_text_are_compared_in_parts() {
    let pair = Pair::new().await;
    let names: Vec<String> = (0..7).map(|n| format!("g{n:02}")).collect();
    let members = ["u1", "u2", "u3", "u4", "u5"];
    for group in &names {
        let creation = Creation::open("Kayaks", "boss", &members);
        pair.act_and_tell(group, &Operation::Create(creation)).await;
        let long = Operation::SetProfileEx([("ex", json!("x".repeat(700 << 10)))].into());
        pair.act_and_tell(group, &long).await;
    }
    for user in members {
        let long = [("ex", json!("x".repeat(1 << 20)))];
        pair.act_and_tell(GROUP_OF_TEXT, &set(user, &long)).await;
    }
    pair.cycle().await;
    pair.assert_equal().await;
    // Lost, in the first and in the last part.
    for group in ["g00", "g06"] {
        let lost = Operation::SetProfileEx([("ex", json!("y".repeat(700 << 10)))].into());
        pair.act(group, &lost);
    }
    for user in ["u1", "u5"] {
        pair.act(GROUP_OF_TEXT, &set(user, &[("ex", json!("y"))]));
    }
    let result = pair.cycle().await;
    assert_eq!((result.groups_changed, result.members_changed), (2, 2));
    pair.assert_equal().await;
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

/// The row of who is gone is written without that its texts are read.
#[tokio::test]
async fn whom_openim_no_longer_has_leaves_and_keeps_its_values() {
    let pair = pair_of(&["u1", "u2"]).await;
    let values = [("nickName", json!("Ann")), ("ex", json!("of Ann"))];
    pair.act_and_tell(GROUP, &set("u1", &values)).await;
    pair.cycle().await;
    let before = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(
        (&before["nickname"], &before["ex"]),
        (&json!("Ann"), &json!("of Ann"))
    );
    pair.act(GROUP, &Operation::Kick(vec!["u1".into()]));
    assert_eq!(pair.cycle().await.members_removed, 1);
    let mut after = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(after["is_gone"], true);
    after["is_gone"] = json!(false);
    assert_eq!(after, before);
    pair.close().await;
}

#[tokio::test]
async fn a_member_who_was_kicked_and_invited_again_is_back() {
    let pair = pair_of(&["u1"]).await;
    let boss = [("roleLevel", json!(ADMIN)), ("nickName", json!("Boss"))];
    pair.act_and_tell(GROUP, &set("u1", &boss)).await;
    pair.act_and_tell(GROUP, &Operation::Kick(vec!["u1".into()]))
        .await;
    pair.act(GROUP, &invite("u1"));
    assert_eq!(pair.member(GROUP, "u1").await.unwrap()["is_gone"], true);
    pair.cycle().await;
    let back = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(
        (&back["is_gone"], &back["role_level"]),
        (&json!(false), &json!(20))
    );
    // It is another record, of which the old name says nothing.
    assert_eq!(back["nickname"], Value::Null);
    pair.assert_equal().await;
    pair.close().await;
}

/// The delta since the stored version names one whom the mirror does not know, and
/// takes away one whom it does not know either.
#[tokio::test]
async fn an_invitation_is_taken_from_what_has_changed_without_reading_the_group() {
    let pair = pair_of(&["u1"]).await;
    pair.act(GROUP, &invite("u7"));
    pair.act(GROUP, &invite("u8"));
    pair.act(GROUP, &Operation::Kick(vec!["u8".into()]));
    pair.server.reset_calls();
    let result = pair.cycle().await;
    let seven = pair.member(GROUP, "u7").await.unwrap();
    assert_eq!(
        (&seven["role_level"], &seven["join_source"]),
        (&json!(20), &json!(2))
    );
    assert_eq!(pair.member(GROUP, "u8").await, None);
    assert_eq!((result.members_added, result.members_removed), (1, 0));
    let calls = pair.server.calls();
    assert_eq!(calls.get("/group/get_group_member_list"), None, "{calls:?}");
    pair.assert_equal().await;
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

#[tokio::test]
async fn an_approval_is_found() {
    let pair = pair_of(&["u1"]).await;
    let ask = Operation::SetProfileEx([("needVerification", json!(1))].into());
    pair.act_and_tell(GROUP, &ask).await;
    assert!(pair.act(GROUP, &join("u8")).is_empty());
    pair.act(GROUP, &Operation::Approve("u8".into()));
    pair.cycle().await;
    assert_eq!(pair.member(GROUP, "u8").await.unwrap()["role_level"], 20);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_dismissed_group_that_is_unmuted_is_there_again() {
    let pair = pair_of(&["u1", "u2"]).await;
    let dismiss = Operation::Dismiss {
        with_members: false,
    };
    pair.act_and_tell(GROUP, &dismiss).await;
    pair.cycle().await;
    pair.assert_equal().await;
    assert!(pair.act(GROUP, &Operation::Unmute).is_empty());
    pair.cycle().await;
    pair.assert_equal().await;
    let groups = "select status, dismissed_at from groups";
    assert_eq!(
        pair.db.rows(groups).await,
        [json!({"status": 0, "dismissed_at": null})]
    );
    pair.close().await;
}

/// A dismissal of which no callback came, with its members or without.
#[tokio::test]
async fn a_dismissal_that_was_not_told_is_found() {
    for with_members in [false, true] {
        let pair = pair_of(&["u1"]).await;
        pair.act(GROUP, &Operation::Dismiss { with_members });
        pair.cycle().await;
        pair.assert_equal().await;
        let dismissed = "select status, dismissed_at is not null as is_timed from groups";
        let rows = pair.db.rows(dismissed).await;
        assert_eq!(rows, [json!({"status": 2, "is_timed": true})]);
        pair.server.reset_calls();
        let result = pair.cycle().await;
        assert_eq!((result.groups_compared, result.groups_left), (0, 0));
        pair.close().await;
    }
}

#[tokio::test]
async fn two_owners_are_shown_where_openim_has_two() {
    let pair = pair_of(&["u1", "u2"]).await;
    let transfer = Operation::Transfer {
        old_owner: "u1".into(),
        new_owner: "u2".into(),
    };
    pair.act_and_tell(GROUP, &transfer).await;
    assert_eq!(pair.check(GROUP).await.as_deref(), Some("owner_mismatch"));
    pair.cycle().await;
    for user in ["boss", "u2"] {
        assert_eq!(pair.member(GROUP, user).await.unwrap()["role_level"], OWNER);
    }
    assert_eq!(pair.check(GROUP).await, None);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn transfers_that_come_in_the_other_order_are_put_right() {
    let pair = pair_of(&["u1", "u2"]).await;
    let transfer = |old: &str, new: &str| Operation::Transfer {
        old_owner: old.into(),
        new_owner: new.into(),
    };
    let first = pair.act(GROUP, &transfer("boss", "u1"));
    let second = pair.act(GROUP, &transfer("u1", "u2"));
    pair.tell(&second[0]).await;
    pair.tell(&first[0]).await;
    pair.cycle().await;
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn an_empty_nickname_stays_empty_beside_the_name_that_is_shown() {
    let pair = pair_of(&["u1"]).await;
    pair.openim().set_user("u1", "Profile Name", "");
    let clear = set("u1", &[("nickName", json!(""))]);
    pair.act_and_tell(GROUP, &clear).await;
    let drift = pair.drift().await;
    assert!(drift.is_empty(), "{drift:?}");
    let result = pair.cycle().await;
    let kinds = (result.details_changed, result.members_changed);
    assert_eq!(kinds, (1, 0));
    let u1 = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(
        (&u1["nickname"], &u1["display_nickname"]),
        (&json!(""), &json!("Profile Name"))
    );
    let before = pair.rows_as_they_lie().await;
    let again = pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!((again.groups_compared, again.details_changed), (1, 0));
    pair.assert_nothing_written_since(&before).await;
    pair.close().await;
}

/// A name of the member's own that OpenIM no longer shows was taken away unheard.
#[tokio::test]
async fn a_name_that_openim_no_longer_shows_is_forgotten() {
    let pair = pair_of(&["u1"]).await;
    pair.openim().set_user("u1", "Profile Name", "");
    pair.act_and_tell(GROUP, &set("u1", &[("nickName", json!("Own"))]))
        .await;
    pair.cycle().await;
    assert_eq!(pair.member(GROUP, "u1").await.unwrap()["nickname"], "Own");
    pair.act(GROUP, &set("u1", &[("nickName", json!(""))]));
    let drift = pair.drift().await;
    assert_eq!(drift.len(), 1, "{drift:?}");
    assert_eq!(drift[0].drift.field, "nickName");
    assert_eq!(drift[0].drift.mirror.as_deref(), Some("Own"));
    assert_eq!(drift[0].drift.openim.as_deref(), Some("Profile Name"));
    pair.cycle().await;
    let u1 = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(
        (&u1["nickname"], &u1["display_nickname"]),
        (&Value::Null, &json!("Profile Name"))
    );
    pair.close().await;
}

#[tokio::test]
async fn a_profile_that_changes_its_name_changes_what_is_shown_and_nothing_else() {
    let pair = pair_of(&["u1"]).await;
    let values = [("roleLevel", json!(ADMIN)), ("ex", json!("x"))];
    pair.act_and_tell(GROUP, &set("u1", &values)).await;
    pair.cycle().await;
    pair.openim().set_user("u1", "New Name", "new face");
    let result = pair.cycle().await;
    assert_eq!((result.details_changed, result.members_changed), (1, 0));
    let u1 = pair.member(GROUP, "u1").await.unwrap();
    assert_eq!(u1["display_nickname"], "New Name");
    assert_eq!(u1["display_face_url"], "new face");
    assert_eq!((&u1["role_level"], &u1["ex"]), (&json!(ADMIN), &json!("x")));
    pair.assert_equal().await;
    pair.close().await;
}

/// Mutes are told by no callback.
#[tokio::test]
async fn a_mute_is_found_and_its_end_too() {
    let pair = pair_of(&["u1"]).await;
    let until = pair.openim().now_millis + 600_000;
    pair.act(GROUP, &Operation::MuteMember("u1".into(), until));
    pair.act(GROUP, &Operation::Mute);
    pair.cycle().await;
    assert_eq!(pair.member(GROUP, "u1").await.unwrap()["is_muted"], true);
    pair.assert_equal().await;
    pair.act(GROUP, &Operation::UnmuteMember("u1".into()));
    pair.act(GROUP, &Operation::Unmute);
    pair.cycle().await;
    assert_eq!(pair.member(GROUP, "u1").await.unwrap()["is_muted"], false);
    pair.assert_equal().await;
    pair.close().await;
}

/// There are too many changes.
#[tokio::test]
async fn where_openim_cannot_tell_what_has_changed_the_group_is_read() {
    let pair = pair_of(&["u1"]).await;
    pair.act(GROUP, &Operation::Kick(vec!["u1".into()]));
    for n in 0..250 {
        pair.act(GROUP, &invite(&format!("new{n:03}")));
    }
    pair.server.reset_calls();
    let result = pair.cycle().await;
    assert_eq!((result.members_added, result.members_removed), (250, 1));
    assert_eq!(pair.server.calls()["/group/get_group_member_list"], 1);
    pair.assert_equal().await;
    // Another count of versions: as after the group was dismissed for good and made anew by hand.
    pair.act(GROUP, &invite("u2"));
    pair.openim().groups.get_mut(GROUP).unwrap().versions.id = "f".repeat(24);
    pair.server.reset_calls();
    assert_eq!(pair.cycle().await.members_added, 1);
    assert_eq!(pair.server.calls()["/group/get_group_member_list"], 1);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_page_that_moves_while_the_pages_are_read_loses_nobody() {
    let pair = Pair::new().await;
    let members: Vec<String> = (0..2500).map(|n| format!("u{n:04}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let creation = Creation::open("Kayaks", "boss", &members);
    pair.act(GROUP, &Operation::Create(creation));
    // Once, between the first page and the second, members of the first go: others move there.
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&has_moved);
    pair.server.on_call(move |path, request, openim| {
        let is_second = request["pagination"]["pageNumber"] == 2;
        if path.ends_with("get_group_member_list")
            && is_second
            && !moved.swap(true, Ordering::Relaxed)
        {
            let users: Vec<String> = openim.groups[GROUP]
                .members
                .keys()
                .filter(|user| *user != "boss")
                .take(100)
                .cloned()
                .collect();
            openim.apply(GROUP, &Operation::Kick(users)).unwrap();
            openim.apply(GROUP, &invite("late")).unwrap();
        }
    });
    pair.cycle().await;
    assert!(has_moved.load(Ordering::Relaxed));
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_minted_anew_once() {
    let pair = pair_of(&["u1"]).await;
    for code in 1501..=1507 {
        let before = pair.server.tokens_minted();
        pair.server.expire_tokens_with(code);
        pair.act(GROUP, &invite(&format!("new{code}")));
        pair.cycle().await;
        pair.assert_equal().await;
        assert_eq!(pair.server.tokens_minted(), before + 1, "{code}");
    }
    pair.close().await;
}

/// Data of a first answer with a token of which no header can be made, and then of the right one.
fn odd_tokens() -> [Value; 9] {
    [
        Value::Null,
        json!({}),
        json!({"token": null}),
        json!({"token": 7}),
        json!({"token": ""}),
        json!({"token": " "}),
        json!({"token": "eyJ\r\nuserID: imAdmin"}),
        json!({"token": "eyJ\u{0}"}),
        json!({"token": "eyJ\u{e4}"}),
    ]
}

#[tokio::test]
async fn a_token_that_cannot_be_sent_is_not_kept() {
    let pair = pair_of(&["u1"]).await;
    for (number, odd) in odd_tokens().into_iter().enumerate() {
        pair.server.expire_tokens();
        pair.act(GROUP, &invite(&format!("new{number}")));
        let mut next = Some(odd.clone());
        let tamper = move |data: &mut Value| *data = next.take().unwrap_or(data.take());
        pair.server.tamper_with_answers("get_admin_token", tamper);
        pair.server.reset_calls();
        let result = pair.cycle().await;
        assert_eq!((result.members_added, result.groups_left), (1, 0), "{odd}");
        pair.assert_equal().await;
        let calls = pair.server.calls();
        assert_eq!(calls["/auth/get_admin_token"], 2, "{odd}");
        pair.server.stop_tampering();
    }
    pair.close().await;
}

/// No call is made with one, and no group is blamed for it.
#[tokio::test]
async fn an_api_that_gives_no_token_that_can_be_sent_is_told() {
    let pair = pair_of(&["u1"]).await;
    let before = pair.rows_as_they_lie().await;
    pair.act(GROUP, &invite("new"));
    for odd in odd_tokens() {
        pair.server.expire_tokens();
        // Without a word of the token that was.
        let text = odd.to_string();
        let tamper = move |data: &mut Value| *data = odd.clone();
        pair.server.tamper_with_answers("get_admin_token", tamper);
        for groups in [&[][..], &[GROUP][..]] {
            pair.server.reset_calls();
            let ended = pair.compare(groups, Mode::default()).await.unwrap_err();
            assert_eq!(ended.code(), "openim_unavailable", "{text}");
            let told = ended.to_string();
            let is_told = told.contains("/auth/get_admin_token") && told.contains("another form");
            assert!(is_told && !told.contains("eyJ"), "{text}: {told}");
            let calls = pair.server.calls();
            // The first call was made with the old one.
            let others: u64 = calls.values().sum::<u64>() - calls["/auth/get_admin_token"];
            assert!(others <= 1, "{text}: {calls:?}");
            assert!(calls["/auth/get_admin_token"] <= 6, "{text}: {calls:?}");
        }
        pair.server.stop_tampering();
    }
    pair.assert_nothing_written_since(&before).await;
    pair.cycle().await;
    pair.assert_equal().await;
    pair.close().await;
}

/// So says OpenIM where it does not see a token. One that has served is not the reason.
#[tokio::test]
async fn a_token_with_which_no_call_has_succeeded_is_minted_anew_after_error_1001() {
    let pair = Pair::new().await;
    let creation = Creation::open("Kayaks", "boss", &["u1"]);
    pair.act(GROUP, &Operation::Create(creation));
    let refused = RestFault::ErrCode(1001);
    pair.server.fail_next("get_groups", refused, 1);
    pair.cycle().await;
    assert_eq!(pair.server.tokens_minted(), 2);
    pair.assert_equal().await;
    pair.server.fail_next("get_groups", refused, 1);
    let told = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert!(told.to_string().contains("error 1001"), "{told}");
    assert_eq!(pair.server.tokens_minted(), 2);
    // Where that does not help, it is not gone on with.
    let pair = Pair::new().await;
    pair.server.fail_until_told("get_groups", refused);
    let told = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert!(told.to_string().contains("error 1001"), "{told}");
    assert_eq!(pair.server.tokens_minted(), 2);
    pair.close().await;
}

#[tokio::test]
async fn an_answer_without_members_is_not_believed_where_the_group_has_some() {
    let pair = pair_of(&["u1", "u2"]).await;
    let before = pair.rows_as_they_lie().await;
    pair.server.answer_empty("get_group_member_list", true);
    let result = pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    pair.assert_nothing_written_since(&before).await;
    pair.server.answer_empty("get_group_member_list", false);
    pair.cycle().await;
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_group_without_an_owner_is_compared_by_its_list_alone() {
    let pair = pair_of(&["u1", "u2"]).await;
    pair.act(GROUP, &set("boss", &[("roleLevel", json!(20))]));
    pair.act(GROUP, &Operation::Quit("u1".into()));
    pair.act(GROUP, &invite("u3"));
    pair.cycle().await;
    pair.assert_equal().await;
    // Nothing is written of it, though each time it is read.
    let before = pair.rows_as_they_lie().await;
    let again = pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!(again.groups_compared, 1);
    pair.assert_nothing_written_since(&before).await;
    pair.close().await;
}

#[tokio::test]
async fn many_members_that_openim_no_longer_names_are_left_until_somebody_accepts_it() {
    let members: Vec<String> = (0..60).map(|n| format!("u{n:02}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let pair = pair_of(&names).await;
    let other = Creation::open("Canoes", "boss", &["u1"]);
    pair.act_and_tell("other", &Operation::Create(other)).await;
    pair.cycle().await;
    // 21 of 61: more than 20, and more than 30 of a hundred.
    pair.act(GROUP, &Operation::Kick(members[..21].to_vec()));
    pair.act("other", &invite("u2"));
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    pair.until_check(GROUP, "too_many_removals").await;
    // The other group went on.
    assert_eq!(result.members_added, 1);
    let accepting = Mode {
        accept_removals: true,
        ..Mode::default()
    };
    let result = pair.compare(&[], accepting).await.unwrap();
    assert_eq!((result.groups_left, result.members_removed), (0, 21));
    assert_eq!(pair.check(GROUP).await, None);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_cycle_stops_before_it_takes_a_tenth_of_the_mirror_for_gone() {
    let pair = Pair::new().await;
    // Small groups, each of which may lose everybody.
    for number in 0..30 {
        let members: Vec<String> = (0..9).map(|n| format!("u{n}")).collect();
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        let creation = Creation::open("Small", "boss", &members);
        pair.act(&format!("g{number:02}"), &Operation::Create(creation));
    }
    pair.cycle().await;
    let kick = Operation::Kick((0..5).map(|n| format!("u{n}")).collect());
    for number in 0..30 {
        pair.act(&format!("g{number:02}"), &kick);
    }
    let stopped = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert_eq!(stopped.code(), "too_many_removals");
    let count = async || {
        let gone = "select count(*) as gone from group_members where left_at is not null";
        pair.db.rows(gone).await[0]["gone"].as_u64().unwrap()
    };
    let gone = count().await;
    assert!((1..=30).contains(&gone), "{gone}");
    // Until somebody has looked at it nobody else is removed, also not by the next cycle, or a
    // mirror would be emptied tenth by tenth.
    let result = pair.compare(&[], Mode::default()).await.unwrap();
    assert_eq!(result.members_removed, 0);
    assert!(result.groups_left > 20, "{result:?}");
    assert_eq!(count().await, gone);
    // Nor by one after one that failed in between.
    pair.server
        .fail_next("get_groups", RestFault::Status(404), 1);
    pair.compare(&[], Mode::default()).await.unwrap_err();
    pair.cycle().await;
    assert_eq!(count().await, gone);
    let accepting = Mode {
        accept_removals: true,
        ..Mode::default()
    };
    pair.compare(&[], accepting).await.unwrap();
    assert_eq!(count().await, 150);
    pair.assert_equal().await;
    // And then the limit is there again.
    assert_eq!(pair.cycle().await.groups_left, 0);
    pair.close().await;
}

const DISMISS: Operation = Operation::Dismiss {
    with_members: false,
};

/// So many groups of ten, told and compared.
async fn groups_of_ten(count: usize, settings: ReconcileSettings) -> Pair {
    let pair = Pair::with(settings).await;
    let members: Vec<String> = (0..9).map(|n| format!("u{n}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    for number in 0..count {
        let creation = Creation::open("Small", "boss", &members);
        pair.act(&format!("g{number:02}"), &Operation::Create(creation));
    }
    pair.cycle().await;
    pair.assert_equal().await;
    pair
}

async fn dismissed(pair: &Pair) -> u64 {
    let dismissed = "select count(*) as groups from groups where status = 2";
    pair.db.rows(dismissed).await[0]["groups"].as_u64().unwrap()
}

/// Fault: all groups of a mirror were dismissed by one answer, and nobody was asked.
#[tokio::test]
async fn a_cycle_stops_before_it_takes_a_tenth_of_the_mirror_for_gone_with_their_groups() {
    let pair = groups_of_ten(40, settings()).await;
    for number in 0..40 {
        pair.act(&format!("g{number:02}"), &DISMISS);
    }
    let stopped = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert_eq!(stopped.code(), "too_many_removals");
    let told = stopped.to_string();
    assert!(told.contains("--accept-removals"), "{told}");
    // One that was allowed may be written after the comparison has ended.
    let result = pair.cycle().await;
    let few = dismissed(&pair).await;
    assert!((1..=4).contains(&few), "{few}");
    assert_eq!(result.groups_left, 40 - few.cast_signed());
    // Nor are the others, tenth by tenth.
    let result = pair.cycle().await;
    assert_eq!(result.groups_left, 40 - few.cast_signed());
    assert_eq!(dismissed(&pair).await, few);
    let asked = "select distinct check_reason from groups where status is distinct from 2";
    until("they wait for somebody to decide", async || {
        pair.db.rows(asked).await == [json!({"check_reason": "too_many_removals"})]
    })
    .await;
    let accepting = Mode {
        accept_removals: true,
        ..Mode::default()
    };
    let result = pair.compare(&[], accepting).await.unwrap();
    assert_eq!(result.groups_left, 0);
    assert_eq!(dismissed(&pair).await, 40);
    pair.assert_equal().await;
    // And then the limit is there again.
    assert_eq!(pair.cycle().await.groups_left, 0);
    pair.close().await;
}

/// By comparisons that did not come to their end, one after the other.
#[tokio::test]
async fn who_left_with_a_group_is_counted_on_where_the_cycle_has_failed() {
    let one_by_one = ReconcileSettings {
        concurrency: 1,
        ..settings()
    };
    let pair = groups_of_ten(40, one_by_one).await;
    let server = Arc::downgrade(&pair.server);
    pair.server.on_call(move |path, asked, _| {
        if path.ends_with("get_incremental_group_members")
            && asked["groupID"] == "g39"
            && let Some(server) = server.upgrade()
        {
            server.fail_next(path, RestFault::ErrCode(1002), 1);
        }
    });
    for group in ["g00", "g01", "g02", "g39"] {
        pair.act(group, &DISMISS);
    }
    let failed = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert_eq!(failed.code(), "openim_unavailable");
    assert_eq!(dismissed(&pair).await, 3);
    for group in ["g03", "g04", "g05"] {
        pair.act(group, &DISMISS);
    }
    let failed = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert_eq!(failed.code(), "too_many_removals");
    assert_eq!(dismissed(&pair).await, 3);
    pair.server.on_call(|_, _, _| {});
    pair.close().await;
}

/// A change whose callback was lost.
#[tokio::test]
async fn a_group_that_was_dismissed_unheard_is_so_within_the_limit() {
    let pair = groups_of_ten(40, settings()).await;
    for number in 0..3 {
        pair.act(&format!("g{number:02}"), &DISMISS);
    }
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (0, 0));
    assert_eq!(dismissed(&pair).await, 3);
    pair.assert_equal().await;
    pair.close().await;
}

/// In a mirror of few, few are always believed.
#[tokio::test]
async fn a_small_group_that_was_dismissed_unheard_is_so_however_small_the_mirror() {
    let pair = pair_of(&["u1", "u2"]).await;
    pair.act(GROUP, &DISMISS);
    assert_eq!(pair.cycle().await.groups_left, 0);
    assert_eq!(dismissed(&pair).await, 1);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn groups_of_whose_dismissals_callbacks_told_count_for_no_limit() {
    let pair = groups_of_ten(40, settings()).await;
    for number in 0..40 {
        pair.act_and_tell(&format!("g{number:02}"), &DISMISS).await;
    }
    assert_eq!(pair.cycle().await.groups_left, 0);
    assert_eq!(dismissed(&pair).await, 40);
    pair.assert_equal().await;
    pair.close().await;
}

/// Members whom OpenIM names again are no reason to keep a limit.
#[tokio::test]
async fn the_limit_is_lifted_where_nobody_is_to_be_removed_any_more() {
    let pair = Pair::new().await;
    let members: Vec<String> = (0..9).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    for number in 0..30 {
        let creation = Creation::open("Small", "boss", &names);
        pair.act(&format!("g{number:02}"), &Operation::Create(creation));
    }
    pair.cycle().await;
    let whole = pair.openim().clone();
    for number in 0..30 {
        let kick = Operation::Kick(members[..5].to_vec());
        pair.act(&format!("g{number:02}"), &kick);
    }
    let stopped = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert_eq!(stopped.code(), "too_many_removals");
    // As if it had been another server that answered.
    *pair.openim() = whole;
    let full = Mode {
        is_full: true,
        ..Mode::default()
    };
    pair.compare(&[], full).await.unwrap();
    pair.act("g00", &Operation::Kick(vec!["u1".into()]));
    let result = pair.cycle().await;
    assert_eq!((result.members_removed, result.groups_left), (1, 0));
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_group_that_openim_does_not_know_is_left_until_somebody_accepts_it() {
    let pair = pair_of(&["u1"]).await;
    pair.openim().groups.remove(GROUP);
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    pair.until_check(GROUP, "not_in_openim").await;
    let drift = pair.drift().await;
    assert_eq!((drift.len(), drift[0].drift.field), (1, "group"));
    let accepting = Mode {
        accept_removals: true,
        ..Mode::default()
    };
    pair.compare(&[], accepting).await.unwrap();
    assert_eq!(pair.check(GROUP).await, None);
    let status = pair.db.rows("select status from groups").await;
    assert_eq!(status, [json!({"status": 2})]);
    pair.close().await;
}

/// A callback that OpenIM sent long ago and that comes after the comparison: the version has not
/// moved, and yet the mirror is wrong.
#[tokio::test]
async fn what_comes_late_is_put_right_though_the_version_has_not_moved() {
    let pair = pair_of(&["u1"]).await;
    let late = pair.act(GROUP, &set("u1", &[("ex", json!("old"))]));
    pair.act_and_tell(GROUP, &set("u1", &[("ex", json!("new"))]))
        .await;
    pair.cycle().await;
    pair.assert_equal().await;
    pair.tell(&late[0]).await;
    assert_eq!(pair.member(GROUP, "u1").await.unwrap()["ex"], "old");
    pair.cycle().await;
    pair.assert_equal().await;
    pair.close().await;
}

/// A change whose process ended before it noted the touched group.
#[tokio::test]
async fn what_came_late_before_a_crash_is_put_right_by_the_next_process() {
    let pair = pair_of(&["u1"]).await;
    // As a callback writes it, behind the back of the process that notes it.
    pair.db
        .execute(
            "update group_members set ex = 'old', last_callback_at = now() where user_id = 'u1'",
        )
        .await;
    let next = pair.again().await;
    next.cycle().await;
    next.assert_equal().await;
    next.close().await;
    pair.close().await;
}

#[tokio::test]
async fn what_goes_wrong_with_a_call_is_tried_again_and_what_cannot_get_better_is_not() {
    let pair = pair_of(&["u1"]).await;
    let list = "get_group_member_list";
    for fault in [
        RestFault::Status(500),
        RestFault::Status(502),
        RestFault::Status(429),
        RestFault::ErrCode(500),
        RestFault::ErrCode(90002),
        RestFault::ErrCode(90004),
        RestFault::Garbage,
        RestFault::CutOff,
    ] {
        pair.act(GROUP, &invite(&format!("u-{fault:?}")));
        pair.server.fail_next(list, fault, 2);
        let compared = pair.compare(&[GROUP], Mode::default()).await;
        assert_eq!(compared.unwrap().groups_left, 0, "{fault:?}");
        pair.assert_equal().await;
    }
    // What is wrong with one call is about its group, what is not permitted about all.
    for (code, ends) in [(1001, None), (1002, Some("openim_unavailable"))] {
        pair.act(GROUP, &invite(&format!("u-{code}")));
        pair.server.fail_next(list, RestFault::ErrCode(code), 1);
        pair.server.reset_calls();
        let failed = pair.compare(&[GROUP], Mode::default()).await;
        match ends {
            None => assert_eq!(failed.unwrap().groups_left, 1, "{code}"),
            Some(ends) => assert_eq!(failed.unwrap_err().code(), ends, "{code}"),
        }
        let path = "/group/get_group_member_list";
        assert_eq!(pair.server.calls()[path], 1, "{code}");
    }
    // A smaller page may be.
    pair.act(GROUP, &invite("u-large"));
    pair.server.fail_next(list, RestFault::TooLarge, 1);
    let result = pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!(result.groups_left, 0);
    pair.assert_equal().await;
    pair.close().await;
}

/// Some groups that OpenIM cannot read any more keep nobody from the others; where it can read none,
/// nobody asks it ten thousand times.
#[tokio::test]
async fn a_group_that_openim_cannot_read_is_left_and_the_others_go_on() {
    let pair = Pair::new().await;
    const BAD: [&str; 7] = ["g00", "g01", "g02", "g03", "g04", "g05", "g06"];
    for number in 0..12 {
        let creation = Creation::open("Small", "boss", &["u1"]);
        pair.act(&format!("g{number:02}"), &Operation::Create(creation));
    }
    let list = "get_group_member_list";
    let server = Arc::downgrade(&pair.server);
    pair.server.on_call(move |path, request, _| {
        let is_bad = BAD.contains(&request["groupID"].as_str().unwrap_or_default());
        if path.ends_with(list)
            && is_bad
            && let Some(server) = server.upgrade()
        {
            server.fail_next(list, RestFault::ErrCode(500), 1);
        }
    });
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (5, 7));
    // Also where these are the only ones to be read.
    pair.act(
        "g09",
        &Operation::Dismiss {
            with_members: false,
        },
    );
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (1, 7));
    pair.server.on_call(|_, _, _| {});
    pair.cycle().await;
    pair.assert_equal().await;

    pair.server.fail_next("", RestFault::Status(500), 1_000_000);
    let full = Mode {
        is_full: true,
        ..Mode::default()
    };
    pair.server.reset_calls();
    let failed = pair.compare(&[], full).await.unwrap_err();
    assert_eq!(failed.code(), "openim_unavailable");
    let calls: u64 = pair.server.calls().values().sum();
    assert!(calls <= 100, "{calls}");
    pair.close().await;
}

/// More than 20 who left are looked at beside all the others, not in what has changed alone.
#[tokio::test]
async fn many_who_left_a_large_group_are_believed() {
    let members: Vec<String> = (0..200).map(|n| format!("u{n:03}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let pair = Pair::new().await;
    let creation = Creation::open("Large", "boss", &names);
    pair.act(GROUP, &Operation::Create(creation));
    let creation = Creation::open("Larger", "boss", &names);
    pair.act("other", &Operation::Create(creation));
    pair.cycle().await;
    pair.act(GROUP, &Operation::Kick(members[..30].to_vec()));
    let result = pair.cycle().await;
    assert_eq!((result.members_removed, result.groups_left), (30, 0));
    pair.assert_equal().await;
    pair.close().await;
}

/// No answer costs the bound of one call, after which it is tried again.
#[tokio::test]
async fn a_server_that_hangs_holds_nothing_up_for_ever() {
    let pair = pair_of(&["u1"])
        .await
        .patient_for(Duration::from_secs(1))
        .await;
    pair.act(GROUP, &invite("u2"));
    pair.server
        .fail_next("get_group_member_list", RestFault::Hang, 1);
    let begun = Instant::now();
    pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(begun.elapsed() < Duration::from_secs(20));
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn keys_that_openim_does_not_take_are_told_without_the_secret() {
    let pair = Pair::new().await;
    pair.server
        .fail_next("get_admin_token", RestFault::ErrCode(1002), 1);
    let refused = pair.compare(&[], Mode::default()).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("OPENIM_SECRET"), "{text}");
    assert!(!text.contains(crate::support::SECRET), "{text}");
    let call = pair.server.calls();
    assert_eq!(call["/auth/get_admin_token"], 1);
    pair.close().await;
}

/// A change by hand is found only by a read of the whole group. This read has an interval of its own, also if callbacks
/// of the group come all the time.
#[tokio::test]
async fn a_group_is_read_as_a_whole_after_the_full_interval() {
    let pair = Pair::with(ReconcileSettings {
        full_interval: Duration::from_millis(1),
        ..settings()
    })
    .await;
    let creation = Creation::open("Kayaks", "boss", &["u1"]);
    pair.act(GROUP, &Operation::Create(creation));
    pair.cycle().await;
    let by_hand = "update group_members set ex = 'by hand' where user_id = 'u1'";
    pair.db.execute(by_hand).await;
    pair.cycle().await;
    pair.assert_equal().await;
    let other = pair.again().await;
    other.cycle().await;
    other.db.execute(by_hand).await;
    // A day is not over, and what has changed is taken without reading the group.
    let read_at = "select read_at from group_checks";
    let before = other.db.rows(read_at).await;
    other.act(GROUP, &invite("u2"));
    other.cycle().await;
    assert_eq!(other.db.rows(read_at).await, before);
    assert_eq!(other.member(GROUP, "u1").await.unwrap()["ex"], "by hand");
    assert_eq!(other.member(GROUP, "u2").await.unwrap()["role_level"], 20);
    // Which does not count as having read it.
    pair.cycle().await;
    pair.assert_equal().await;
    other.close().await;
    pair.close().await;
}

/// A list that is shorter than it says it is, though the version stands still.
#[tokio::test]
async fn a_list_with_a_page_missing_is_not_believed() {
    let members: Vec<String> = (0..1100).map(|n| format!("u{n:04}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let pair = pair_of(&names).await;
    pair.server.lose_pages_from(2);
    let result = pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    pair.server.lose_pages_from(u64::MAX);
    pair.compare(&[GROUP], Mode::default()).await.unwrap();
    pair.assert_equal().await;
    pair.close().await;
}

/// An API, or what stands before it, that gives the same page whatever is asked for.
#[tokio::test]
async fn pages_without_end_come_to_one() {
    let members: Vec<String> = (0..1100).map(|n| format!("u{n:04}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let pair = pair_of(&names).await;
    for number in 1..1000 {
        let creation = Creation::open("Small", "boss", &[]);
        pair.act(&format!("g{number:03}"), &Operation::Create(creation));
    }
    pair.server.give_first_page_only();
    let compared = pair.compare(&[], Mode::default());
    let compared = tokio::time::timeout(Duration::from_secs(120), compared).await;
    let result = compared.expect("the pages come to an end").unwrap();
    assert_eq!((result.groups_seen, result.groups_compared), (1000, 999));
    // The large one has not changed; read as a whole, it lacks somebody.
    let one = pair.compare(&[GROUP], Mode::default()).await.unwrap();
    assert_eq!((one.groups_left, one.members_removed), (1, 0));
    pair.close().await;
}

/// Members of dismissed groups are no part of the mirror of which a tenth may be gone.
#[tokio::test]
async fn the_limit_counts_current_members() {
    let pair = Pair::new().await;
    let members: Vec<String> = (0..100).map(|n| format!("u{n:02}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    for number in 0..5 {
        let group = format!("gone{number}");
        let creation = Creation::open("Gone", "boss", &names);
        pair.act(&group, &Operation::Create(creation));
        pair.cycle().await;
        pair.act_and_tell(&group, &DISMISS).await;
    }
    for number in 0..4 {
        let creation = Creation::open("Small", "boss", &names[..10]);
        pair.act(&format!("g{number}"), &Operation::Create(creation));
    }
    pair.cycle().await;
    for number in 0..4 {
        let kick = Operation::Kick(members[..9].to_vec());
        pair.act(&format!("g{number}"), &kick);
    }
    let stopped = pair.compare(&[], Mode::default()).await.unwrap_err();
    assert_eq!(stopped.code(), "too_many_removals");
    pair.close().await;
}

/// The session that holds the turn ends while OpenIM is asked.
async fn cycle_that_loses_its_turn(
    pair: &Pair,
    meanwhile: impl Future<Output = ()>,
) -> Result<(), String> {
    let creation = Creation::open("Kayaks", "boss", &["ann"]);
    pair.act(GROUP, &Operation::Create(creation));
    let mut held = pair.server.hold("get_group_member_list");
    let lose = async {
        held.reached().await;
        let of_turn = "select pid, pg_terminate_backend(pid) from pg_locks
                        where locktype = 'advisory' and classid = 726301
                          and database = (select oid from pg_database where datname = current_database())";
        assert_eq!(pair.db.rows(of_turn).await.len(), 1);
        until("the session has ended", async || {
            pair.db.rows(of_turn).await.is_empty()
        })
        .await;
        meanwhile.await;
        held.release();
    };
    let (done, ()) = tokio::join!(pair.compare(&[], Mode::default()), lose);
    done.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_comparison_whose_turn_is_lost_to_nobody_goes_on() {
    let pair = Pair::new().await;
    cycle_that_loses_its_turn(&pair, async {}).await.unwrap();
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_comparison_whose_turn_another_process_has_taken_ends() {
    let pair = Pair::new().await;
    let mut other = pair.db.pool.acquire().await.unwrap();
    let lost = cycle_that_loses_its_turn(&pair, async {
        let take = "select pg_advisory_lock(726301, hashtext('public'))";
        other.execute(take).await.unwrap();
    });
    let error = lost.await.unwrap_err();
    assert!(error.contains("the lease is lost"), "{error}");
    other.close().await.unwrap();
    pair.close().await;
}
