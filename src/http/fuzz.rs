//! Bodies of the fuzz targets: they run the parsers of untrusted input and check their invariants.
#![allow(clippy::expect_used, reason = "a fuzz target fails by panicking")]

use poem_openapi::types::{ParseFromJSON, ToJSON};
use serde_json::Value;

use super::body;
use super::callbacks::{Command, DECLARED, MessageParser, Notice, SetGroupMemberInfo, group_of};
use super::error::Error;
use super::reads::Scope;
use super::reads::memberships::MembershipQuery;
use crate::domain::{Event, Text, UserId};

const SET_MEMBER: &str = "callbackAfterSetGroupMemberInfoCommand";

/// Any bytes as a body.
pub fn body(bytes: &[u8]) {
    let parsed = DECLARED.iter().filter_map(|declared| {
        let parsed = (declared.parse?)(bytes);
        Some((declared.command, parsed))
    });
    let parsed: Vec<_> = parsed.collect();
    message(bytes);
    let pairs = body::parse::<MembershipQuery>(bytes);
    let command = body::parse::<Command>(bytes);
    let errors = parsed
        .iter()
        .filter_map(|(_, parsed)| parsed.as_ref().err());
    let errors = errors.chain(command.as_ref().err());
    for error in errors.chain(pairs.as_ref().err()) {
        check(error);
    }
    // A body has one command, and a change is of the group for which the body would be kept.
    let mut understood = parsed
        .iter()
        .filter_map(|(name, parsed)| Some((name, parsed.as_ref().ok()?)));
    if let Some((name, parsed)) = understood.next() {
        let group = parsed.as_ref().map(|parsed| &parsed.group_id);
        assert!(group.is_none_or(|group| group_of(bytes).as_ref() == Some(group)));
        assert!(command.is_ok_and(|command| command == *name));
    }
    assert!(understood.next().is_none());
    let (_, set_member) = parsed
        .into_iter()
        .find(|(name, _)| *name == SET_MEMBER)
        .expect("declared");
    if let Ok(body) = serde_json::from_slice::<Value>(bytes) {
        let read = set_member.ok().flatten().map(|parsed| {
            let Event::SetMember(patch) = &parsed.content else {
                panic!("{:?}", parsed.content);
            };
            let mut fields = serde_json::to_value(patch).expect("an object");
            fields["groupID"] = parsed.group_id.as_str().into();
            values(&fields)
        });
        assert_eq!(read, model(&body));
    }
    if let Ok(pairs) = pairs {
        assert!(pairs.len() <= 1000);
    }
}

/// Checks that a message gives one result however it is cut, and that its text contains the result.
fn message(bytes: &[u8]) {
    let read = |parts: &[&[u8]]| {
        let mut parser = MessageParser::default();
        for part in parts {
            parser.read(part);
        }
        parser.end()
    };
    let whole = read(&[bytes]);
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    assert_eq!(read(&[first, rest]), whole);
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

/// The values that the parser of the document reads. It is a second, slower parser. It also takes a number for a text,
/// so each value has to be the one of the body.
fn model(body: &Value) -> Option<Vec<String>> {
    let documented = SetGroupMemberInfo::parse_from_json(Some(body.clone())).ok()?;
    let mut fields = documented.to_json()?;
    let as_sent =
        |(name, value): (&String, &Value)| body.get(name).unwrap_or(&Value::Null) == value;
    let is_as_sent = fields.as_object()?.iter().all(as_sent);
    let command = fields.as_object_mut()?.remove("callbackCommand");
    (is_as_sent && command? == SET_MEMBER).then(|| values(&fields))
}

/// All values of an object but null, in the order of their text.
fn values(object: &Value) -> Vec<String> {
    let fields = object.as_object().into_iter().flatten();
    let values = fields.filter_map(|(_, value)| match value {
        Value::Null => None,
        Value::String(text) => Some(Text::parse(text.clone()).as_str().to_owned()),
        other => Some(other.to_string()),
    });
    let mut values: Vec<String> = values.collect();
    values.sort();
    values
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
