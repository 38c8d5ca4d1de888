//! Documentation of answers that derives cannot express: the codes of each failing answer of each
//! operation, with examples.

use poem_openapi::types::ToJSON;
use serde_json::{Map, Value, json};

use crate::http::callbacks::{self, CallbackReply};
use crate::http::error::{Code, PROBLEM_JSON, Problem, Side};
use crate::http::server::auth::{ApiToken, CallbackPassword, Scheme};
use crate::http::server::memory::{ANSWERS, BODIES};

const EXAMPLE_METRIC: &str = "\
# HELP openim_group_mirror_callbacks_total Callbacks answered, by command and outcome: ok, or the code of the error.
# TYPE openim_group_mirror_callbacks_total counter
openim_group_mirror_callbacks_total{command=\"callbackAfterSetGroupMemberInfoCommand\",outcome=\"ok\"} 1
";

/// Completes the documentation of an answer. Returns false if the operation cannot give it.
pub(super) fn complete(operation: &Value, status: &str, answer: &mut Value) -> bool {
    let Ok(status) = status.parse::<u16>() else {
        return true;
    };
    // `answer["content"]` would add a null to an answer without content (304).
    let Some(content) = answer.get_mut("content").and_then(Value::as_object_mut) else {
        return true;
    };
    // JSON is always UTF-8, and some generators do not know the type with a parameter.
    *content = std::mem::take(content)
        .into_iter()
        .map(|(media_type, body)| {
            let bare = media_type.split(';').next().unwrap_or_default();
            (bare.to_owned(), body)
        })
        .collect();
    if let Some(text) = content.get_mut("text/plain") {
        text["example"] = EXAMPLE_METRIC.into();
    }
    let description = if status < 400 {
        operation["summary"].clone()
    } else {
        let side = if content.contains_key(PROBLEM_JSON) {
            Side::Read
        } else {
            Side::Callback
        };
        let codes = codes_of(operation, side, status);
        if codes.is_empty() {
            return false;
        }
        let examples: Map<String, Value> = codes.iter().map(|code| example(*code, side)).collect();
        for (_, body) in content {
            body["examples"] = Value::Object(examples.clone());
        }
        let messages: Vec<&str> = codes.iter().map(|code| code.message()).collect();
        messages.join(", or ").into()
    };
    if answer["description"] == "" {
        answer["description"] = description;
    }
    true
}

fn example(code: Code, side: Side) -> (String, Value) {
    let detail = example_detail(code, side).to_owned();
    let value = match side {
        Side::Callback => CallbackReply::failure(code, detail).to_json(),
        Side::Read | Side::Any => Problem::new(code, detail).to_json(),
    };
    (code.name().to_owned(), json!({ "value": value }))
}

/// Operations without a callback that answer without a read or write of a table.
const WITHOUT_DATABASE: [&str; 3] = ["livez", READYZ, METRICS];

/// The operation of all other paths. If a path has no command, the answer is that of the operation
/// that the body names.
const ANY: &str = "callbackOther";

/// Operations with an answer of their own, in [`codes_of`].
const GET_GROUP: &str = "getGroup";
const GET_MEMBER: &str = "getMember";
const METRICS: &str = "metrics";
const READYZ: &str = "readyz";

/// The operations that are named here.
#[cfg(test)]
pub(crate) fn named_operations() -> impl Iterator<Item = &'static str> {
    let own = [ANY, GET_GROUP, GET_MEMBER];
    WITHOUT_DATABASE.into_iter().chain(own)
}

/// True if an operation has this tag.
pub(super) fn has_tag(operation: &Value, tag: &str) -> bool {
    let tags = operation["tags"].as_array();
    tags.is_some_and(|tags| tags.iter().any(|one| one == tag))
}

/// The codes of an operation's answer with this status.
pub(crate) fn codes_of(operation: &Value, side: Side, status: u16) -> Vec<Code> {
    let id = operation["operationId"].as_str().unwrap_or_default();
    let mut declared = callbacks::DECLARED.iter();
    let callback = declared.find(|declared| declared.operation_id == id);
    let has_body = match callback {
        Some(callback) => callback.parse.is_some(),
        None => id == ANY || operation.get("requestBody").is_some(),
    };
    let needs_database = match callback {
        Some(callback) => callback.needs_database,
        None => !WITHOUT_DATABASE.contains(&id),
    };
    let parameters: Vec<&str> = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|parameter| parameter["name"].as_str())
        .collect();
    let can = |code: Code| match code {
        Code::BodyMalformed
        | Code::FieldMissing
        | Code::FieldType
        | Code::BodyIncomplete
        | Code::BodyTimeout
        | Code::BodyTooLarge
        | Code::NotJson
        | Code::TooMany => has_body,
        Code::Busy => has_body || has_tag(operation, "Reads"),
        Code::IdInvalid => {
            let is_id = |name: &&str| ["groupID", "userID"].contains(name);
            has_body || parameters.iter().any(is_id)
        }
        Code::ParameterInvalid => !parameters.is_empty(),
        Code::CursorInvalid => parameters.contains(&"cursor"),
        Code::GroupUnknown => id == GET_GROUP,
        Code::MemberUnknown => id == GET_MEMBER,
        // With METRICS_ADDR.
        Code::PathUnknown => id == METRICS,
        // The router answers, not an operation.
        Code::MethodNotAllowed => false,
        Code::CredentialsWrong => operation.get("security").is_some(),
        Code::NotReady => id == READYZ,
        Code::DatabaseAway | Code::SpoolRefused => needs_database,
        Code::CommandMismatch => id != ANY && has_body,
        Code::CommandUnknown => id == ANY,
        Code::HostNotLocal | Code::Internal => true,
    };
    Code::of_side(side)
        .filter(|code| code.status().as_u16() == status && can(*code))
        .collect()
}

/// Example of `detail` or `errDlt`.
fn example_detail(code: Code, side: Side) -> &'static str {
    match code {
        Code::BodyMalformed => "expected JSON; stopped at line 1 column 17",
        Code::FieldMissing => "groupID: expected a value",
        Code::FieldType => "groupID: expected a string, found a number",
        Code::IdInvalid => "userID: must be at most 1024 bytes of UTF-8",
        Code::CommandMismatch => {
            "callbackCommand: expected callbackAfterSetGroupMemberInfoCommand, as in the path"
        }
        Code::CommandUnknown => {
            "callbackCommand: expected a command of OpenIM, such as callbackAfterQuitGroupCommand"
        }
        Code::ParameterInvalid => "limit: expected a whole number from 1 to 1000",
        Code::CursorInvalid => {
            "cursor: expected the nextCursor of the same path with the same filters"
        }
        Code::TooMany => match side {
            Side::Callback => "kickedUserIDs: expected at most 100000 items",
            Side::Read | Side::Any => "pairs: expected at most 1000 items",
        },
        Code::BodyIncomplete => "the connection ended first",
        Code::BodyTimeout => "expected the whole body within 15 s",
        Code::CredentialsWrong => match side {
            Side::Callback => CallbackPassword::EXPECTED,
            Side::Read | Side::Any => ApiToken::EXPECTED,
        },
        Code::HostNotLocal => {
            "Host: expected localhost or a loopback address, as long as no key is set"
        }
        Code::Busy => match side {
            Side::Callback => BODIES,
            Side::Read | Side::Any => ANSWERS,
        },
        Code::NotReady => "database: away; callbacks: spooled",
        Code::BodyTooLarge => "expected at most 16777216 bytes (MAX_BODY_BYTES)",
        Code::NotJson => "Content-Type: expected application/json",
        Code::PathUnknown => "see /docs for what is",
        Code::MethodNotAllowed => "see /docs for those that it takes",
        Code::GroupUnknown => "groupID: no callback has named it yet",
        Code::MemberUnknown => "no current member of this group has this userID",
        Code::DatabaseAway | Code::SpoolRefused => "try again in a moment",
        Code::Internal => "the log says more",
    }
}
