//! The OpenAPI document and the page that shows it, made from the operations' types, completed
//! with what derives cannot say: the codes that each answer can carry, and examples of them.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;

use poem::endpoint::BoxEndpoint;
use poem::http::Method;
use poem_openapi::registry::{MetaApi, Registry};
use poem_openapi::{ContactObject, LicenseObject, OpenApi, OpenApiService};
use serde_json::{Map, Value};

use super::callbacks::commands;
use super::error::{Code, Door};
use super::{answers, portable};
use crate::domain::MAX_ID_BYTES;

const TITLE: &str = "openim-group-mirror";
const DESCRIPTION: &str = "\
A Postgres mirror of OpenIM group membership. OpenIM reports changes by callbacks; a backend reads \
members over REST.

An error answered to a callback is the five-field reply that OpenIM knows, with an `errCode`; any \
other error is a problem document (RFC 9457) with a `code`; both lists grow. Times are RFC 3339 in \
UTC. Answers have all of their fields, null where nothing is known; later versions have more.

Ids are any text. In a path they are percent-encoded, once: a generated client does that by itself, \
so give it the id as it is. `.` and `..` cannot be sent in a path, where URL libraries take them for \
folders and ask something else; `/memberships/query` takes them, and a page says whose it is \
(`userID`, `groupID`).";

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
    /// The command, if OpenIM calls this path.
    pub(super) command: Option<String>,
    /// Whether the mirror is read here.
    pub(super) is_read: bool,
}

/// The command of a path that takes all commands without one.
const ANY_COMMAND: &str = "other";

impl Route {
    /// Whether this stands for every path that nothing else does.
    pub(super) fn is_any(&self) -> bool {
        self.command.as_deref() == Some(ANY_COMMAND)
    }
}

/// Whether a POST to this path is a read: one that takes too much for a URL.
pub(super) fn is_posted_read(routes: &Routes, path: &str) -> bool {
    let is_posted = |route: &Route| route.methods.split(", ").any(|method| method == "POST");
    routes
        .get(path)
        .is_some_and(|route| route.command.is_none() && is_posted(route))
}

/// Whether this is the path of a read, for whatever method.
pub(super) fn is_of_a_read(routes: &Routes, path: &str) -> bool {
    let is_segment = |(pattern, segment): (&str, &str)| {
        pattern == segment || (pattern.starts_with(':') && !segment.is_empty())
    };
    let is_like = |pattern: &str| {
        pattern.split('/').count() == path.split('/').count()
            && pattern.split('/').zip(path.split('/')).all(is_segment)
    };
    let mut reads = routes.iter().filter(|(_, route)| route.command.is_none());
    reads.any(|(pattern, _)| is_like(pattern))
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

    fn add_routes(self, _routes: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {}
}

impl Document {
    pub(super) fn of<Api: OpenApi>() -> Result<Self, serde_json::Error> {
        let service = OpenApiService::new(
            Described::<Api>(PhantomData),
            TITLE,
            env!("CARGO_PKG_VERSION"),
        )
        .description(DESCRIPTION)
        // Where the document is: some clients have no host without it.
        .server("/")
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

fn complete(document: &mut Value) {
    // The codes are in the text alone: of a code that is newer than the client and not in an `enum`,
    // some generated clients lose the whole answer.
    if let Some(schema) =
        document.pointer_mut("/components/schemas/CallbackReply/properties/errCode")
    {
        schema["description"] = list(
            "0, or what went wrong:",
            Code::told_at(Door::Callback),
            |code| code.number().to_string(),
        );
    }
    if let Some(schema) = document.pointer_mut("/components/schemas/Problem/properties/code") {
        schema["description"] = list(
            "What to tell problems apart by; never renamed:",
            Code::told_at(Door::Read),
            |code| code.name().to_owned(),
        );
    }
    let schemas = document.pointer_mut("/components/schemas");
    let schemas = schemas.and_then(Value::as_object_mut);
    for (_, schema) in schemas.into_iter().flatten() {
        complete_schema(schema);
    }
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for operation in paths.flat_map(|(_, path)| path.as_object_mut().into_iter().flatten()) {
        complete_operation(operation.1);
    }
    portable::complete(document);
}

/// A regular expression of JSON Schema, for an id.
const WITHOUT_NUL: &str = "^[^\\u0000]*$";

/// What a body has to look like, beyond what the derives can say.
fn complete_schema(schema: &mut Value) {
    let command = schema["example"].get("callbackCommand").cloned();
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    if let (Some(property), Some(command)) = (properties.get_mut("callbackCommand"), command) {
        property["enum"] = Value::Array(vec![command]);
    }
    // Ids have a bound, and nothing else has.
    for (_, property) in properties {
        if property.get("maxLength").is_some() {
            property["pattern"] = WITHOUT_NUL.into();
        }
    }
}

fn list(intro: &str, codes: impl Iterator<Item = Code>, key: impl Fn(Code) -> String) -> Value {
    codes
        .fold(intro.to_owned(), |text, code| {
            let status = code.status().as_u16();
            format!("{text}\n* `{}` ({status}): {}", key(code), code.message())
        })
        .into()
}

fn complete_operation(operation: &mut Value) {
    // Ids in a path are checked by their type alone, so that one that cannot be used gives the same
    // error wherever it stands.
    let parameters = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        if parameter["name"] == "command" {
            parameter["schema"]["pattern"] = commands::PATTERN.into();
        }
        if ["groupID", "userID"].contains(&parameter["name"].as_str().unwrap_or_default()) {
            let schema = match parameter["schema"].get("items") {
                Some(_) => &mut parameter["schema"]["items"],
                None => &mut parameter["schema"],
            };
            schema["minLength"] = 1.into();
            schema["maxLength"] = MAX_ID_BYTES.into();
            schema["pattern"] = WITHOUT_NUL.into();
        }
    }
    let known = operation.clone();
    if let Some(all) = operation["responses"].as_object_mut() {
        all.sort_keys();
        all.retain(|status, answer| answers::complete(&known, status, answer));
    }
}

/// Whether an operation is of this part of the API.
pub(super) fn has_tag(operation: &Value, tag: &str) -> bool {
    let tags = operation["tags"].as_array();
    tags.is_some_and(|tags| tags.iter().any(|of_this| of_this == tag))
}

/// A method, and what answers with it.
fn with_head(method: &str) -> &str {
    match method {
        "get" => "GET, HEAD",
        "post" => "POST",
        other => other,
    }
}

/// poem-openapi numbers the parameters of a path: "/groups/{groupID}" is "/groups/:param0".
fn routes(document: &Value) -> Routes {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .map(|(path, operations)| {
            let nothing = Map::new();
            let operations = operations.as_object().unwrap_or(&nothing);
            let methods: Vec<&str> = operations.keys().map(|m| with_head(m)).collect();
            let mut numbers = 0..;
            let segments = path.split('/').map(|segment| {
                if segment.starts_with('{') {
                    format!(":param{}", numbers.next().unwrap_or(0))
                } else {
                    segment.to_owned()
                }
            });
            let pattern = segments.collect::<Vec<_>>().join("/");
            let is_callback = operations.values().any(|o| has_tag(o, "Callbacks"));
            let command = match path.trim_start_matches('/') {
                parameter if parameter.starts_with('{') => ANY_COMMAND,
                command => command,
            };
            let route = Route {
                path: path.clone(),
                methods: methods.join(", "),
                command: is_callback.then(|| command.to_owned()),
                is_read: operations.values().any(|o| has_tag(o, "Reads")),
            };
            (pattern, route)
        })
        .collect()
}
