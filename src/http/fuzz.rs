//! Bodies of the fuzz targets: they run the parsers of untrusted input and check their invariants.
#![allow(clippy::expect_used, reason = "a fuzz target fails by panicking")]

use serde_json::Value;

use super::body;
use super::callbacks::{
    BeforeSetGroupInfo, BeforeSetGroupInfoEx, Callback, Looked, Notice, ParsedCallback,
    SetGroupMemberInfo, group_of, understand,
};
use super::error::Error;
use super::reads::Scope;
use super::reads::memberships::MembershipQuery;
use super::server::routing;
use crate::domain::{Event, GroupId, MemberPatch, Text, UserId};

/// Commands whose bodies are understood.
const COMMANDS: [&str; 11] = [
    "callbackAfterSetGroupMemberInfoCommand",
    "callbackAfterCreateGroupCommand",
    "callbackAfterJoinGroupCommand",
    "callbackAfterQuitGroupCommand",
    "callbackAfterKickGroupCommand",
    "callbackAfterDisMissGroupCommand",
    "callbackAfterTransferGroupOwnerCommand",
    "callbackAfterSetGroupInfoCommand",
    "callbackAfterSetGroupInfoExCommand",
    "callbackBeforeMembersJoinGroupCommand",
    "callbackBeforeMemberJoinGroupCommand",
];

/// Any bytes as a body.
pub fn body(bytes: &[u8]) {
    let told = COMMANDS.map(|command| understand(command, bytes));
    message(bytes);
    let pairs = body::parse::<MembershipQuery>(bytes);
    let echoes = [
        body::parse::<BeforeSetGroupInfo>(bytes),
        body::parse::<BeforeSetGroupInfoEx>(bytes),
    ];
    let command = body::parse::<routing::Command>(bytes);
    let errors = told.iter().filter_map(|told| told.as_ref().err());
    let errors = errors.chain(command.as_ref().err());
    let errors = errors.chain(echoes.iter().filter_map(|echo| echo.as_ref().err()));
    for error in errors.chain(pairs.as_ref().err()) {
        check(error);
    }
    // A body has one command, and what is understood names the group that it is kept for.
    let mut understood = told.iter().flatten();
    if let Some(told) = understood.next() {
        assert_eq!(group_of(bytes).as_ref(), Some(&told.group_id));
        assert!(command.is_ok_and(|command| COMMANDS.contains(&command.as_str())));
    }
    assert!(understood.next().is_none());
    // A second, slower parser has to see the same. (Not the other way round: it refuses nonsense
    // in fields that nobody asks for.)
    let [set_member, ..] = told;
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        assert_eq!(set_member.ok(), model(&value));
    }
    if let Ok(pairs) = pairs {
        assert!(pairs.len() <= 1000);
    }
}

/// Checks that a message gives one result however it is cut, and that its text contains the result.
fn message(bytes: &[u8]) {
    let look = |parts: &[&[u8]]| {
        let mut looked = Looked::default();
        for part in parts {
            looked.look(part);
        }
        looked.end()
    };
    let whole = look(&[bytes]);
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    assert_eq!(look(&[first, rest]), whole);
    if let (Notice::Notification { kind, .. }, Ok(text)) = (whole, str::from_utf8(bytes)) {
        assert!(text.contains(kind.label()));
    }
}

/// Checks that an error names a field and the expected value, and does not repeat the input.
fn check(error: &Error) {
    assert_eq!(error.code.status().as_u16(), 400);
    assert!(error.detail.len() < 200, "{}", error.detail);
    assert!(error.detail.is_ascii(), "{}", error.detail);
}

fn model(body: &Value) -> Option<ParsedCallback> {
    let text = |name: &str| match &body[name] {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(Text::parse(text.clone()))),
        _ => None,
    };
    let id = |name: &str| body[name].as_str().map(str::to_owned);
    if !body.is_object() || body["callbackCommand"] != SetGroupMemberInfo::COMMAND {
        return None;
    }
    let patch = MemberPatch {
        user_id: UserId::parse(id("userID")?).ok()?,
        nickname: text("nickName")?,
        face_url: text("faceURL")?,
        role_level: match &body["roleLevel"] {
            Value::Null => None,
            level => Some(i32::try_from(level.as_i64()?).ok()?),
        },
        ex: text("ex")?,
    };
    Some(ParsedCallback {
        group_id: GroupId::parse(id("groupID")?).ok()?,
        event: Event::SetMember(patch),
    })
}

/// Any text as a cursor; as the id that a cursor stands for; and as what damages a cursor.
pub fn cursor(text: &str) {
    let scope = Scope::new("members").and("g");
    // There is one cursor for a key, so that what was not given by us is not taken.
    let check = |cursor: &str| {
        if let Ok(key) = scope.key(Some(cursor)) {
            assert_eq!(scope.cursor(&key), cursor);
        }
    };
    check(text);
    if UserId::parse(text.to_owned()).is_ok() {
        let cursor = scope.cursor(text);
        assert_eq!(scope.key(Some(&cursor)).expect("our own cursor"), text);
        assert!(Scope::new("members").and("h").key(Some(&cursor)).is_err());
        // No sum can be guessed, so the cursors that are nearly ours are made of ours.
        for end in text.chars().take(4).chain("=AQgw_ ".chars()) {
            check(&format!("{cursor}{end}"));
            let mut changed = cursor.clone();
            changed.pop();
            check(&changed);
            changed.push(end);
            check(&changed);
        }
    }
}
