//! What the OpenAPI document says of answers that derives cannot: the codes that each failing one
//! can carry, in which operation, and examples of them.

use std::collections::BTreeSet;

use poem_openapi::registry::{
    MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef,
};
use poem_openapi::types::{ToJSON, Type};
use serde_json::{Map, Value, json};

use super::auth::{ApiToken, CallbackPassword, Scheme};
use super::callbacks::reply::CallbackReply;
use super::document;
use super::error::{Code, Door};
use super::memory::{ANSWERS, BODIES};
use super::problem::{PROBLEM_JSON, Problem};

/// The failing answers at a door, for an operation's `ApiResponse`: one a status. [`complete`],
/// which knows the operation, takes away those that it cannot give and describes the others.
pub(super) fn failures(door: Door, content: impl Fn() -> Vec<MetaMediaType>) -> MetaResponses {
    let statuses: BTreeSet<u16> = Code::told_at(door)
        .map(|code| code.status().as_u16())
        .collect();
    let response = |status| MetaResponse {
        description: "",
        status: Some(status),
        status_range: None,
        content: content(),
        headers: match status {
            401 => vec![header(
                "WWW-Authenticate",
                "The scheme to use.",
                String::schema_ref(),
            )],
            503 => vec![header(
                "Retry-After",
                "Seconds to wait before asking again.",
                i32::schema_ref(),
            )],
            _ => vec![],
        },
    };
    MetaResponses {
        responses: statuses.into_iter().map(response).collect(),
    }
}

/// Value of Retry-After, which every 503 has.
pub(super) const RETRY_AFTER_SECS: &str = "2";

fn header(name: &str, description: &str, schema: MetaSchemaRef) -> MetaHeader {
    MetaHeader {
        name: name.into(),
        description: Some(description.into()),
        required: true,
        deprecated: false,
        schema,
    }
}

const EXAMPLE_METRIC: &str = "\
# HELP openim_group_mirror_callbacks_total Callbacks answered, by command and outcome: ok, or the code of the error.
# TYPE openim_group_mirror_callbacks_total counter
openim_group_mirror_callbacks_total{command=\"callbackAfterSetGroupMemberInfoCommand\",outcome=\"ok\"} 1
";

/// False for an answer that the operation cannot give.
pub(super) fn complete(operation: &Value, status: &str, answer: &mut Value) -> bool {
    let Ok(status) = status.parse::<u16>() else {
        return true;
    };
    // Not `answer["content"]`, which would add a null where there is none (304).
    let Some(content) = answer.get_mut("content").and_then(Value::as_object_mut) else {
        return true;
    };
    // JSON is UTF-8; with a parameter some generators do not know the type.
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
        let door = if content.contains_key(PROBLEM_JSON) {
            Door::Read
        } else {
            Door::Callback
        };
        let codes = codes_of(operation, door, status);
        if codes.is_empty() {
            return false;
        }
        let examples: Map<String, Value> = codes.iter().map(|code| example(*code, door)).collect();
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

fn example(code: Code, door: Door) -> (String, Value) {
    let detail = example_detail(code, door).to_owned();
    let value = match door {
        Door::Callback => CallbackReply::failure(code, detail).to_json(),
        Door::Read | Door::Any => Problem::new(code, detail).to_json(),
    };
    (code.name().to_owned(), json!({ "value": value }))
}

/// Operations that look at no table before they answer.
const WITHOUT_DATABASE: [&str; 8] = [
    "livez",
    "readyz",
    "metrics",
    "callbackBeforeMembersJoinGroup",
    "callbackBeforeMemberJoinGroup",
    "callbackBeforeSetGroupInfo",
    "callbackBeforeSetGroupInfoEx",
    "callbackBeforeGroupOnlinePush",
];

/// The operation that stands for every path without one: where that has no command, it answers as whichever
/// operation the body is for.
const ANY: &str = "callbackOther";

/// Operations to which no body is an error.
const WITH_ANY_BODY: [&str; 2] = ["callbackAfterSendGroupMsg", "callbackBeforeGroupOnlinePush"];

/// The codes with which an operation can answer with a status.
fn codes_of(operation: &Value, door: Door, status: u16) -> Vec<Code> {
    let id = operation["operationId"].as_str().unwrap_or_default();
    let has_body =
        id == ANY || (operation.get("requestBody").is_some() && !WITH_ANY_BODY.contains(&id));
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
        Code::Busy => has_body || document::has_tag(operation, "Reads"),
        Code::IdInvalid => {
            let is_id = |name: &&str| ["groupID", "userID"].contains(name);
            has_body || parameters.iter().any(is_id)
        }
        Code::ParameterInvalid => !parameters.is_empty(),
        Code::CursorInvalid => parameters.contains(&"cursor"),
        Code::GroupUnknown => id == "getGroup",
        Code::MemberUnknown => id == "getMember",
        // Where METRICS_ADDR is set.
        Code::PathUnknown => id == "metrics",
        // Of the router, not of an operation.
        Code::MethodNotAllowed => false,
        Code::CredentialsWrong => operation.get("security").is_some(),
        Code::NotReady => id == "readyz",
        // These look at no table before they answer.
        Code::DatabaseAway | Code::SpoolRefused => !WITHOUT_DATABASE.contains(&id),
        Code::CommandMismatch => id != ANY && has_body,
        Code::CommandUnknown => id == ANY,
        Code::HostNotLocal | Code::Internal => true,
    };
    Code::told_at(door)
        .filter(|code| code.status().as_u16() == status && can(*code))
        .collect()
}

/// What stands in `detail` or errDlt, for an example.
fn example_detail(code: Code, door: Door) -> &'static str {
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
        Code::TooMany => match door {
            Door::Callback => "kickedUserIDs: expected at most 100000 items",
            Door::Read | Door::Any => "pairs: expected at most 1000 items",
        },
        Code::BodyIncomplete => "the connection ended first",
        Code::BodyTimeout => "expected the whole body within 15 s",
        Code::CredentialsWrong => match door {
            Door::Callback => CallbackPassword::EXPECTED,
            Door::Read | Door::Any => ApiToken::EXPECTED,
        },
        Code::HostNotLocal => {
            "Host: expected localhost or a loopback address, as long as no key is set"
        }
        Code::Busy => match door {
            Door::Callback => BODIES,
            Door::Read | Door::Any => ANSWERS,
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
