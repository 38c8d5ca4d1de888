//! The OpenAPI document and the page that shows it, made from the operations' types, completed
//! with what derives cannot say: the codes that each answer can carry, and examples of them.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use poem::endpoint::BoxEndpoint;
use poem::http::Method;
use poem_openapi::registry::{
    MetaApi, MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry,
};
use poem_openapi::types::{ToJSON, Type};
use poem_openapi::{ContactObject, LicenseObject, OpenApi, OpenApiService};
use serde_json::{Map, Value, json};

use super::error::{Code, Door};
use super::problem::Problem;
use super::reply::CallbackReply;

const TITLE: &str = "openim-group-mirror";
const DESCRIPTION: &str = "\
A Postgres mirror of OpenIM group membership. OpenIM reports changes by callbacks; a backend reads \
members over REST.

An error answered to a callback is the five-field reply that OpenIM knows, with an `errCode`; any \
other error is a problem document (RFC 9457) with a `code`. Times are RFC 3339 in UTC. Ids in a \
path are percent-encoded.";

/// The document in its forms.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) json: String,
    pub(super) yaml: String,
    /// Swagger UI with everything inlined: it asks no other host.
    pub(super) page: String,
    pub(super) routes: Routes,
}

/// The documented paths, by the router's own pattern for each.
pub(super) type Routes = BTreeMap<String, Route>;

/// A documented path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// As documented, such as `/groups/{groupID}`.
    pub(super) path: String,
    /// Its methods, as `Allow` lists them.
    pub(super) methods: String,
}

/// An API without its parts: enough to describe it.
struct Described<Api>(PhantomData<Api>);

impl<Api: OpenApi> OpenApi for Described<Api> {
    fn meta() -> Vec<MetaApi> {
        Api::meta()
    }

    fn register(registry: &mut Registry) {
        Api::register(registry);
    }

    fn add_routes(
        self,
        _routes: &mut std::collections::HashMap<
            String,
            std::collections::HashMap<Method, BoxEndpoint<'static>>,
        >,
    ) {
    }
}

impl Document {
    pub(super) fn of<Api: OpenApi>() -> Result<Self, serde_json::Error> {
        let service = OpenApiService::new(
            Described::<Api>(PhantomData),
            TITLE,
            env!("CARGO_PKG_VERSION"),
        )
        .description(DESCRIPTION)
        .contact(ContactObject::new().name(TITLE))
        .license(LicenseObject::new("MIT OR Apache-2.0").url("https://spdx.org/licenses/MIT.html"));
        let bare = service.spec();
        let mut document: Value = serde_json::from_str(&bare)?;
        complete(&mut document);
        let json = serde_json::to_string_pretty(&document)?;
        Ok(Self {
            yaml: serde_yaml::to_string(&document).map_err(serde::de::Error::custom)?,
            page: service.swagger_ui_html().replace(&bare, &json),
            routes: routes(&document),
            json,
        })
    }
}

/// The failing answers at a door, for an operation's `ApiResponse`: one a status. The rest is told
/// by [`complete`], which knows the operation.
pub(super) fn failures(door: Door, content: impl Fn() -> Vec<MetaMediaType>) -> MetaResponses {
    let statuses: BTreeSet<u16> = Code::ALL
        .iter()
        .filter(|code| code.door() == door || code.door() == Door::Any)
        .map(|code| code.status().as_u16())
        // 404 and 405 are of the router; a lookup that finds nothing says so itself. Only
        // operations with a body know 413 and 415.
        .filter(|status| !matches!(status, 404 | 405))
        .filter(|status| door == Door::Callback || !matches!(status, 413 | 415))
        .collect();
    let response = |status| MetaResponse {
        description: "",
        status: Some(status),
        status_range: None,
        content: content(),
        headers: if status == 503 {
            vec![retry_after()]
        } else {
            vec![]
        },
    };
    MetaResponses {
        responses: statuses.into_iter().map(response).collect(),
    }
}

/// Value of Retry-After, which every 503 has.
pub(super) const RETRY_AFTER_SECS: &str = "2";

fn retry_after() -> MetaHeader {
    MetaHeader {
        name: "Retry-After".into(),
        description: Some("Seconds to wait before asking again.".into()),
        required: true,
        deprecated: false,
        schema: i32::schema_ref(),
    }
}

/// The codes with which an operation can answer with a status.
fn codes_of(operation: &Value, door: Door, status: u16) -> Vec<Code> {
    let id = operation["operationId"].as_str().unwrap_or_default();
    let has_body = operation.get("requestBody").is_some();
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
        | Code::BodyTooLarge
        | Code::NotJson
        | Code::TooMany => has_body,
        Code::IdInvalid => has_body || !parameters.is_empty(),
        Code::ParameterInvalid => !parameters.is_empty(),
        Code::CursorInvalid => parameters.contains(&"cursor"),
        Code::GroupUnknown => id == "getGroup",
        Code::MemberUnknown => id == "getMember",
        Code::PathUnknown | Code::MethodNotAllowed => false,
        Code::CommandMismatch | Code::DatabaseAway | Code::Internal => true,
    };
    Code::ALL
        .iter()
        .copied()
        .filter(|code| code.status().as_u16() == status)
        .filter(|code| code.door() == door || code.door() == Door::Any)
        .filter(|code| can(*code))
        .collect()
}

/// What stands in `detail` or errDlt, for an example.
fn example_detail(code: Code) -> &'static str {
    match code {
        Code::BodyMalformed => "expected JSON; stopped at line 1 column 17",
        Code::FieldMissing => "groupID: expected a value",
        Code::FieldType => "groupID: expected a string, found a number",
        Code::IdInvalid => "userID: must be at most 1024 bytes of UTF-8",
        Code::CommandMismatch => {
            "callbackCommand: expected callbackAfterSetGroupMemberInfoCommand, as in the path"
        }
        Code::ParameterInvalid => "limit: expected a whole number from 1 to 1000",
        Code::CursorInvalid => {
            "cursor: expected the nextCursor of the same path with the same filters"
        }
        Code::TooMany => "pairs: expected at most 1000 items",
        Code::BodyIncomplete => "the connection ended first",
        Code::BodyTooLarge => "expected at most 16777216 bytes (MAX_BODY_BYTES)",
        Code::NotJson => "Content-Type: expected application/json",
        Code::PathUnknown => "see /docs for what is",
        Code::MethodNotAllowed => "see /docs for those that it takes",
        Code::GroupUnknown => "groupID: no callback has named it yet",
        Code::MemberUnknown => "no current member of this group has this userID",
        Code::DatabaseAway => "try again in a moment",
        Code::Internal => "the log says more",
    }
}

fn complete(document: &mut Value) {
    let errors = |door: Door| {
        Code::ALL
            .iter()
            .filter(move |code| code.door() == door || code.door() == Door::Any)
    };
    if let Some(schema) =
        document.pointer_mut("/components/schemas/CallbackReply/properties/errCode")
    {
        schema["enum"] = std::iter::once(0)
            .chain(errors(Door::Callback).map(|code| code.number()))
            .collect();
        schema["description"] = list("0, or what went wrong:", errors(Door::Callback), |code| {
            code.number().to_string()
        });
    }
    if let Some(schema) = document.pointer_mut("/components/schemas/Problem/properties/code") {
        schema["enum"] = errors(Door::Read).map(|code| code.name()).collect();
        schema["description"] = list(
            "What to tell problems apart by; never renamed:",
            errors(Door::Read),
            |code| code.name().to_owned(),
        );
    }
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for operation in paths.flat_map(|(_, path)| path.as_object_mut().into_iter().flatten()) {
        complete_operation(operation.1);
    }
}

fn list<'a>(
    intro: &str,
    codes: impl Iterator<Item = &'a Code>,
    key: impl Fn(&Code) -> String,
) -> Value {
    codes
        .fold(intro.to_owned(), |text, code| {
            let status = code.status().as_u16();
            format!("{text}\n* `{}` ({status}): {}", key(code), code.message())
        })
        .into()
}

fn complete_operation(operation: &mut Value) {
    let known = operation.clone();
    let Some(responses) = operation["responses"].as_object_mut() else {
        return;
    };
    responses.retain(|status, response| {
        let (Ok(status), Some(content)) =
            (status.parse::<u16>(), response["content"].as_object_mut())
        else {
            return true; // 304 has no content
        };
        // JSON is UTF-8; with the parameter some generators do not know the type.
        *content = std::mem::take(content)
            .into_iter()
            .map(|(media_type, body)| (media_type.replace("; charset=utf-8", ""), body))
            .collect::<Map<_, _>>();
        if status < 400 {
            if response["description"] == "" {
                response["description"] = known["summary"].clone();
            }
            return true;
        }
        let door = if content.contains_key(super::problem::PROBLEM_JSON) {
            Door::Read
        } else {
            Door::Callback
        };
        let codes = codes_of(&known, door, status);
        let examples: Map<String, Value> = codes.iter().map(|code| example(*code, door)).collect();
        for (_, body) in content {
            body["examples"] = Value::Object(examples.clone());
        }
        if response["description"] == "" {
            let messages: Vec<&str> = codes.iter().map(|code| code.message()).collect();
            response["description"] = messages.join(", or ").into();
        }
        !codes.is_empty()
    });
}

fn example(code: Code, door: Door) -> (String, Value) {
    let detail = example_detail(code).to_owned();
    let value = match door {
        Door::Callback => CallbackReply::failure(code, detail).to_json(),
        Door::Read | Door::Any => Problem::new(code, detail).to_json(),
    };
    (code.name().to_owned(), json!({ "value": value }))
}

/// poem-openapi numbers the parameters of a path: "/groups/{groupID}" is "/groups/:param0".
fn routes(document: &Value) -> Routes {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .map(|(path, operations)| {
            let operations = operations.as_object().into_iter().flatten();
            let methods: Vec<String> = operations
                .map(|(method, _)| method.to_uppercase())
                .collect();
            let mut numbers = 0..;
            let segments = path.split('/').map(|segment| {
                if segment.starts_with('{') {
                    format!(":param{}", numbers.next().unwrap_or(0))
                } else {
                    segment.to_owned()
                }
            });
            let pattern = segments.collect::<Vec<_>>().join("/");
            let route = Route {
                path: path.clone(),
                methods: methods.join(", "),
            };
            (pattern, route)
        })
        .collect()
}
