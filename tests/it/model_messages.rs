//! Tests that the callbacks and messages of the model are those of real servers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{ADMIN, Creation, ORDINARY, OpenIm, Operation, Release, Told, Values};

fn openim(release: Release) -> OpenIm {
    let mut openim = OpenIm::default();
    openim.release = release;
    create(&mut openim, "g");
    openim
}

fn create(openim: &mut OpenIm, group: &str) -> Vec<Told> {
    let creation = Creation::open("Kayaks", "boss", &["u1", "u2", "u3"]);
    let create = Operation::Create(creation);
    openim.perform(group, &create).unwrap()
}

fn set(user: &str, values: &[(&'static str, Value)]) -> Operation {
    let values: Values = values.iter().cloned().collect();
    Operation::SetMember(user.to_owned(), values)
}

/// Messages by their numbers, callbacks by their names without what all have.
fn names(told: &[Told]) -> Vec<String> {
    let name = |told: &Told| match told.callback.content_type() {
        Some(number) => number.to_string(),
        None => {
            let name = told.callback.command.strip_prefix("callbackAfter");
            name.unwrap().replace("Command", "")
        }
    };
    told.iter().map(name).collect()
}

fn sorted(told: &[Told]) -> Vec<String> {
    let mut names = names(told);
    names.sort();
    names
}

fn body(told: &Told) -> Value {
    serde_json::from_str(&told.callback.body).unwrap()
}

fn join(user: &str) -> Operation {
    Operation::Join(user.to_owned())
}

const DISMISS: Operation = Operation::Dismiss {
    with_members: false,
};

#[test]
fn each_change_has_its_message() {
    let mut openim = openim(Release::Patch15);
    let profile = |values: &[(&'static str, Value)]| {
        Operation::SetProfileEx(values.iter().cloned().collect())
    };
    let old =
        |values: &[(&'static str, Value)]| Operation::SetProfile(values.iter().cloned().collect());
    let until = openim.now_millis + 1_000_000;
    let cases: Vec<(Operation, &[&str])> = vec![
        (Operation::Invite("u4".into()), &["1509"]),
        (
            Operation::InviteAll(vec!["u5".into(), "u6".into()]),
            &["1509"],
        ),
        (Operation::InviteAll(vec!["u7".into(), "u1".into()]), &[]),
        (join("u8"), &["1510", "JoinGroup"]),
        (Operation::Quit("u8".into()), &["1504", "QuitGroup"]),
        (Operation::Kick(vec!["u4".into()]), &["1508", "KickGroup"]),
        (
            set("u1", &[("ex", json!("e"))]),
            &["1516", "SetGroupMemberInfo"],
        ),
        (
            set("u1", &[("roleLevel", json!(ADMIN))]),
            &["1517", "SetGroupMemberInfo"],
        ),
        (
            set(
                "u1",
                &[("roleLevel", json!(ORDINARY)), ("nickName", json!("N"))],
            ),
            &["1516", "1518", "SetGroupMemberInfo"],
        ),
        (set("u1", &[]), &["SetGroupMemberInfo"]),
        (
            old(&[("introduction", json!("i")), ("groupName", json!(""))]),
            &["1502", "SetGroupInfo"],
        ),
        (
            profile(&[
                ("notification", json!("")),
                ("groupName", json!("N")),
                ("ex", json!("x")),
            ]),
            &["1502", "1519", "1520", "SetGroupInfoEx"],
        ),
        (profile(&[("groupName", json!(""))]), &[]),
        (Operation::MuteMember("u2".into(), until), &["1512"]),
        (Operation::UnmuteMember("u2".into()), &["1513"]),
        (Operation::Mute, &["1514"]),
        (Operation::Unmute, &["1515"]),
        (
            Operation::Transfer {
                old_owner: "boss".into(),
                new_owner: "u2".into(),
            },
            &["1507", "TransferGroupOwner"],
        ),
        (
            profile(&[("needVerification", json!(1))]),
            &["1502", "SetGroupInfoEx"],
        ),
        (join("u9"), &[]),
        (Operation::Approve("u9".into()), &["1510"]),
        (DISMISS, &["1511", "DisMissGroup", "DisMissGroup"]),
        (Operation::Unmute, &["1515"]),
    ];
    for (operation, expected) in cases {
        let told = openim.perform("g", &operation).unwrap();
        assert_eq!(sorted(&told), expected, "{operation:?}");
        // One request has one id.
        let ids: Vec<_> = told
            .iter()
            .map(|told| &told.callback.operation_id)
            .collect();
        assert!(ids.iter().all(|id| *id == ids[0] && id.starts_with("op")));
        for told in told {
            let body = body(&told);
            let is_message = told.callback.is_message();
            assert!(!is_message || body["operationID"] == told.callback.operation_id);
        }
    }
    assert_eq!(names(&create(&mut openim, "h")), ["CreateGroup", "1501"]);
    create(&mut openim, "i");
    openim
        .perform(
            "i",
            &set("u1", &[("nickName", json!("N")), ("faceURL", json!("f"))]),
        )
        .unwrap();
    openim
        .perform("h", &Operation::Dismiss { with_members: true })
        .unwrap();
    create(&mut openim, "j");
    let told = openim.set_user("u1", "Ann", "");
    let groups: Vec<Value> = told
        .iter()
        .map(|told| body(told)["groupID"].clone())
        .collect();
    assert_eq!(
        (names(&told), groups),
        (vec!["1516".to_owned()], vec![json!("j")])
    );
    assert!(openim.set_user("u1", "Ann", "").is_empty());
}

#[test]
fn on_patch_16_nobody_is_told_of_who_joins_but_by_a_message() {
    let mut openim = openim(Release::Patch16);
    let told = openim.perform("g", &join("u8")).unwrap();
    assert_eq!(names(&told), ["1510"]);
    assert!(openim.groups["g"].members.contains_key("u8"));
    assert!(openim.apply("g", &join("u9")).unwrap().is_empty());
}

#[test]
fn a_message_comes_before_the_callback_of_a_quit_and_after_that_of_a_transfer() {
    for release in Release::ALL {
        let mut openim = openim(release);
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for number in 0..200 {
            let user = format!("n{number}");
            openim.apply("g", &Operation::Invite(user.clone())).unwrap();
            let told = openim.perform("g", &Operation::Quit(user)).unwrap();
            let [first, .., last] = &told[..] else {
                panic!("{told:?}");
            };
            let later = last.delay_millis - first.delay_millis;
            match release {
                Release::Main => {}
                _ => assert!(names(&told) == ["1504", "QuitGroup"] && (24..=260).contains(&later)),
            }
            let change = set("u1", &[("ex", json!("e"))]);
            let told = openim.perform("g", &change).unwrap();
            *seen.entry(names(&told).join(" ")).or_default() += 1;
        }
        // Sometimes the one, sometimes the other.
        assert!(
            seen.len() > 1 && seen.values().all(|count| *count > 20),
            "{seen:?}"
        );
        let transfer = Operation::Transfer {
            old_owner: "boss".into(),
            new_owner: "u2".into(),
        };
        let told = openim.perform("g", &transfer).unwrap();
        assert_eq!(names(&told)[..2], ["TransferGroupOwner", "1507"]);
        let told = openim.perform("g", &DISMISS).unwrap();
        let dismissals: Vec<&Told> = told
            .iter()
            .filter(|told| !told.callback.is_message())
            .collect();
        let later = dismissals[1].delay_millis - dismissals[0].delay_millis;
        assert!((60..=700).contains(&later));
        assert_eq!(
            body(dismissals[0])["membersID"],
            json!(["boss", "u1", "u2", "u3"])
        );
        assert_eq!(body(dismissals[1])["membersID"], json!([]));
    }
}

#[test]
fn on_main_a_message_comes_twice_with_what_it_says() {
    let mut openim = openim(Release::Main);
    let told = openim
        .perform("g", &Operation::Invite("u4".into()))
        .unwrap();
    assert_eq!(names(&told), ["1509", "1509"]);
    let bodies: Vec<Value> = told.iter().map(body).collect();
    assert_eq!(
        (&bodies[0]["seq"], &bodies[1]["seq"]),
        (&json!(2), &json!(0))
    );
    let content: Value = serde_json::from_str(bodies[0]["content"].as_str().unwrap()).unwrap();
    assert_eq!(content["invitedUserList"][0]["userID"], "u4");
    let told = openim.perform("g", &Operation::Quit("u4".into())).unwrap();
    let content: Value = serde_json::from_str(body(&told[0])["content"].as_str().unwrap()).unwrap();
    assert_eq!(content["quitUser"]["userID"], "u4");
    // Of a member it is only a notification.
    let told = openim
        .perform("g", &set("u1", &[("roleLevel", json!(ADMIN))]))
        .unwrap();
    assert_eq!(sorted(&told), ["1517", "SetGroupMemberInfo"]);
}

#[test]
fn a_group_that_comes_back_has_nobody_and_no_owner() {
    let mut openim = openim(Release::Patch16);
    let kick = Operation::Kick(vec!["u1".into()]);
    openim.push_is_away = true;
    openim.apply("g", &DISMISS).unwrap();
    // Until the push service is back.
    openim.apply("g", &kick).unwrap();
    let again = Operation::Dismiss { with_members: true };
    openim.apply("g", &again).unwrap();
    for refused in [
        &again,
        &DISMISS,
        &Operation::Kick(vec!["u2".into()]),
        &join("u1"),
    ] {
        assert!(openim.apply("g", refused).is_err(), "{refused:?}");
    }
    for (back, status) in [(Operation::Mute, 3), (Operation::Unmute, 0)] {
        assert_eq!(names(&openim.perform("g", &back).unwrap()).len(), 1);
        let shown = openim.shown_group("g").unwrap();
        assert_eq!(
            (
                &shown["status"],
                &shown["ownerUserID"],
                &shown["memberCount"]
            ),
            (&json!(status), &json!(""), &json!(0))
        );
    }
    openim.apply("g", &Operation::Invite("u1".into())).unwrap();
    let name = [("groupName", json!("N"))].into();
    for refused in [kick, DISMISS, Operation::SetProfileEx(name)] {
        assert!(openim.apply("g", &refused).is_err(), "{refused:?}");
    }
    assert!(openim.groups["g"].owner().is_none());
}
