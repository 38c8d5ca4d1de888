//! Records: a newer version adds fields, and an older form stays readable.

use bytes::Bytes;
use openim_group_mirror::domain::*;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use std::fmt;
use time::OffsetDateTime;

fn at(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap()
}

fn time() -> impl Strategy<Value = OffsetDateTime> {
    (-1_000_000_000_000_000_i64..9_000_000_000_000_000).prop_map(at)
}

fn user() -> impl Strategy<Value = UserId> {
    "[^\\x00]{1,20}".prop_map(|id| UserId::parse(id).unwrap())
}

fn text() -> impl Strategy<Value = Option<Text>> {
    of(any::<String>().prop_map(Text::parse))
}

fn any_profile() -> impl Strategy<Value = GroupProfile> {
    let texts = (text(), text(), text(), text(), text());
    let numbers = (of(any::<i32>()), of(any::<i32>()), of(any::<i32>()));
    (texts, numbers).prop_map(|(texts, numbers)| GroupProfile {
        name: texts.0,
        notification: texts.1,
        introduction: texts.2,
        face_url: texts.3,
        ex: texts.4,
        need_verification: numbers.0,
        look_member_info: numbers.1,
        apply_member_friend: numbers.2,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let creation = (
        any_profile(),
        of(user()),
        of(any::<i32>()),
        of(any::<i32>()),
        of(time()),
        vec((user(), any::<i32>()), 0..4),
        any::<bool>(),
    )
        .prop_map(|made| {
            Event::Create(Creation {
                profile: made.0,
                owner: made.1,
                status: made.2,
                group_type: made.3,
                created_at: made.4,
                members: made.5,
                may_be_operator: None,
                is_incomplete: made.6,
            })
        });
    let kick = (vec(user(), 0..4), any::<bool>()).prop_map(|(user_ids, is_incomplete)| {
        Event::Kick(Users {
            user_ids,
            is_incomplete,
        })
    });
    let transfer = (user(), user()).prop_map(|(old_owner, new_owner)| Event::Transfer {
        old_owner,
        new_owner,
    });
    let patch = (user(), text(), text(), of(any::<i32>()), text()).prop_map(|patch| {
        Event::SetMember(MemberPatch {
            user_id: patch.0,
            nickname: patch.1,
            face_url: patch.2,
            role_level: patch.3,
            ex: patch.4,
        })
    });
    prop_oneof![
        creation,
        user().prop_map(Event::Join),
        (vec(user(), 0..4), any::<bool>()).prop_map(|(user_ids, is_incomplete)| {
            Event::JoinAll(Users {
                user_ids,
                is_incomplete,
            })
        }),
        user().prop_map(Event::Quit),
        kick,
        Just(Event::Dismiss),
        transfer,
        any_profile().prop_map(Event::SetProfile),
        patch,
        proptest::sample::select(&MarkReason::ALL[..]).prop_map(Event::Mark),
        proptest::sample::select(&MarkReason::ALL[..]).prop_map(Event::MarkIfDismissed),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    ("[^\\x00]{1,20}", time(), event())
        .prop_map(|(group, at, event)| Change::new(GroupId::parse(group).unwrap(), at, event))
}

/// An event that a failed test can show.
struct Shown(Rejected);

impl fmt::Debug for Shown {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rejected { path, body, .. } = &self.0;
        write!(to, "{path:?} {body:?}")
    }
}

fn any_rejected() -> impl Strategy<Value = Shown> {
    (
        time(),
        any::<[String; 3]>(),
        of(any::<String>()),
        vec(any::<u8>(), 0..200),
        any::<u64>(),
    )
        .prop_map(|(received_at, texts, operation_id, body, body_bytes)| {
            let [path, code, detail] = texts;
            Shown(Rejected {
                received_at,
                path,
                operation_id,
                code,
                detail,
                body: Bytes::from(body),
                body_bytes,
            })
        })
}

proptest! {
    #[test]
    fn any_change_comes_back(change in any_change()) {
        prop_assert_eq!(from_record::<Change>(&to_record(&change)).unwrap(), change);
    }

    #[test]
    fn any_rejected_callback_comes_back(rejected in any_rejected()) {
        let Shown(rejected) = rejected;
        let again: Rejected = from_record(&to_record(&rejected)).unwrap();
        let key = |r: &Rejected| {
            let texts = [&r.path, &r.code, &r.detail].map(String::clone);
            (r.received_at, texts, r.operation_id.clone(), r.body_bytes)
        };
        prop_assert_eq!(key(&again), key(&rejected));
        prop_assert_eq!(again.body, rejected.body);
    }
}

#[test]
fn a_request_comes_back() {
    let request = Request {
        received_at: at(1_790_000_000_000_001),
        path: "/callback".into(),
        query: Some("a=%20".into()),
        headers: vec![("operationID".into(), Raw(vec![0xff, 0x20].into()))],
        body: Raw(vec![0, 0xff, 0xfe].into()),
    };
    let again: Request = from_record(&to_record(&request)).unwrap();
    assert_eq!(again, request);
}

fn again(record: &str) -> Result<String, String> {
    let change: Change = from_record(record.as_bytes())?;
    Ok(String::from_utf8(to_record(&change)).unwrap())
}

/// Records of this form lie on disks.
#[test]
fn the_form_of_a_record_stays() {
    for record in [
        r#"{"group_id":"g","received_at":1790000000000001,"event":{"join":"u"}}"#,
        r#"{"group_id":"g","received_at":-1,"event":"dismiss"}"#,
        r#"{"group_id":"g","received_at":1,"event":{"transfer":{"old_owner":"a","new_owner":"b"}}}"#,
        r#"{"group_id":"g","received_at":1,"event":{"kick":{"user_ids":["a"],"is_incomplete":false}}}"#,
        r#"{"group_id":"g","received_at":1,"event":{"want_check":"callback_lost"}}"#,
        r#"{"group_id":"g","received_at":1,"event":{"want_check_if_dismissed":"notified"}}"#,
        r#"{"group_id":"g","received_at":1,"event":{"set_member":{"user_id":"u","nickname":"","face_url":null,"role_level":20,"ex":null}}}"#,
    ] {
        assert_eq!(again(record).unwrap(), record);
    }
}

#[test]
fn what_a_newer_version_adds_is_passed_over_but_not_a_new_event() {
    let newer = r#"{"group_id":"g","received_at":1,"later":[1],"event":{"set_member":{"user_id":"u","nickname":"","more":{}}}}"#;
    let known = r#"{"group_id":"g","received_at":1,"event":{"set_member":{"user_id":"u","nickname":"","face_url":null,"role_level":null,"ex":null}}}"#;
    assert_eq!(again(newer).unwrap(), known);
    for bad in [
        r#"{"group_id":"g","received_at":1,"event":{"mute":"u"}}"#,
        r#"{"group_id":"g","received_at":1,"event":{"want_check":"unheard_of"}}"#,
        r#"{"group_id":"","received_at":1,"event":"dismiss"}"#,
        r#"{"group_id":"g","received_at":1,"event":{"join":"a\u0000b"}}"#,
        r#"{"group_id":"g","received_at":1}"#,
    ] {
        assert!(again(bad).is_err(), "{bad}");
    }
}
