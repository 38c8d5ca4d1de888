//! What the tests of the spool share.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use time::OffsetDateTime;

use super::record::Entry;
use crate::domain::{
    Change, Creation, Event, GroupId, GroupProfile, MarkReason, MemberPatch, Rejected, Text,
    UserId, Users,
};

/// A folder that is deleted with it, also when a test panics.
pub(in crate::ingest) struct TempDir(PathBuf);

impl TempDir {
    pub(in crate::ingest) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "openim-group-mirror-test-spool-{}-{number}",
            std::process::id()
        );
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(in crate::ingest) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn same(one: &Entry, other: &Entry) -> bool {
    match (one, other) {
        (Entry::Change(one), Entry::Change(other)) => one == other,
        (Entry::Rejected(one), Entry::Rejected(other)) => {
            let key = |r: &Rejected| {
                let texts = [&r.path, &r.code, &r.detail].map(String::clone);
                (r.received_at, texts, r.operation_id.clone(), r.body_bytes)
            };
            key(one) == key(other) && one.body == other.body
        }
        _ => false,
    }
}

/// SQLite's number of variable length, where it has eight bytes.
fn varint(number: i64) -> [u8; 8] {
    let bits = |place: usize| (number >> (7 * (7 - place))) & 0x7f;
    std::array::from_fn(|place| bits(place) as u8 | if place < 7 { 0x80 } else { 0 })
}

/// Gives a row another number where it is stored, wherever that may be.
pub(super) fn renumber(file: &mut [u8], from: i64, to: i64) {
    let (from, to) = (varint(from), varint(to));
    let places: Vec<usize> = (0..file.len() - 8)
        .filter(|place| file[*place..place + 8] == from)
        .collect();
    assert!(!places.is_empty());
    for place in places {
        file[place..place + 8].copy_from_slice(&to);
    }
}

pub(super) fn at(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap()
}

pub(super) fn change(group: &str, event: Event) -> Change {
    Change::new(
        GroupId::parse(group.into()).unwrap(),
        at(1_790_000_000_000_000),
        event,
    )
}

/// A change of about so many bytes.
pub(super) fn profile(name: &str, bytes: usize) -> Change {
    let profile = GroupProfile {
        name: Some(Text::parse(name.into())),
        introduction: Some(Text::parse("x".repeat(bytes))),
        ..GroupProfile::default()
    };
    change("g", Event::SetProfile(profile))
}

pub(super) fn mark() -> Change {
    change("g", Event::Mark(MarkReason::CallbackLost))
}

pub(super) fn rejected(body: usize) -> Rejected {
    Rejected {
        received_at: at(1_790_000_000_000_000),
        path: "/openim/callback".into(),
        operation_id: None,
        code: "bad_json".into(),
        detail: "at 1:1".into(),
        body: vec![7; body].into(),
        body_bytes: body as u64,
    }
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
            nickname: patch.1,
            face_url: patch.2,
            role_level: patch.3,
            ex: patch.4,
            ..MemberPatch::new(patch.0)
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
        proptest::sample::select(MarkReason::ALL).prop_map(Event::Mark),
        proptest::sample::select(MarkReason::ALL).prop_map(Event::MarkIfDismissed),
    ]
}

pub(super) fn any_change() -> impl Strategy<Value = Change> {
    ("[^\\x00]{1,20}", time(), event())
        .prop_map(|(group, at, event)| Change::new(GroupId::parse(group).unwrap(), at, event))
}

/// One that a failed test can show; outside of tests nothing may.
pub(super) struct Shown(pub(super) Rejected);

impl fmt::Debug for Shown {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rejected { path, body, .. } = &self.0;
        write!(to, "{path:?} {body:?}")
    }
}

pub(super) fn any_rejected() -> impl Strategy<Value = Shown> {
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
