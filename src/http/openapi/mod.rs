//! The OpenAPI document and its page. The types of the operations make it. [`response_docs`] adds what
//! derives cannot express, and [`portable`] gives it a form that all generators of clients read.

mod portable;
pub(super) mod response_docs;

use std::collections::HashMap;
use std::marker::PhantomData;

use bytes::Bytes;
use poem::endpoint::BoxEndpoint;
use poem::http::Method;
use poem_openapi::payload::Binary;
use poem_openapi::registry::{MetaApi, Registry};
use poem_openapi::{ApiResponse, ContactObject, LicenseObject, OpenApi, OpenApiService};
use serde_json::{Map, Value};

use self::response_docs::has_tag;
use super::callbacks;
use super::error::{Code, Side};
use super::server::middleware::{ANY_COMMAND, Route, Routes};
use crate::domain::MAX_ID_BYTES;

const TITLE: &str = "openim-group-mirror";
const DESCRIPTION: &str = "\
A Postgres mirror of OpenIM group membership. OpenIM reports changes by callbacks; a backend reads \
members over REST.

The error of a callback is a reply with the five fields of OpenIM and an `errCode`. Any other error \
is a problem document (RFC 9457) with a `code`. Both lists of codes grow. Times are RFC 3339 in UTC. \
Answers have all their fields; null means unknown. Later versions have more fields.

An id is any text. In a path it is percent-encoded, once. A generated client does that itself, so give \
it the plain id. The ids `.` and `..` cannot be sent in a path, because URL libraries take them for \
folders and send another request. `/memberships/query` takes them. A page names its user or group \
(`userID`, `groupID`).";

/// The document in all its forms.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) json: String,
    pub(crate) yaml: String,
    /// Swagger UI in one file: it loads nothing from other hosts.
    pub(crate) page: String,
    pub(crate) routes: Routes,
}

/// An API without its state, for its description.
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
    pub(crate) fn of<Api: OpenApi>() -> Result<Self, serde_json::Error> {
        let service = OpenApiService::new(
            Described::<Api>(PhantomData),
            TITLE,
            env!("CARGO_PKG_VERSION"),
        )
        .description(DESCRIPTION)
        // Some clients have no host without a server.
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
    // The text lists the codes. With an `enum`, some generated clients lose an answer with a code that
    // is newer than the client.
    if let Some(schema) =
        document.pointer_mut("/components/schemas/CallbackReply/properties/errCode")
    {
        schema["description"] = list(
            "0, or the code of the error:",
            Code::of_side(Side::Callback),
            |code| code.number().to_string(),
        );
    }
    if let Some(schema) = document.pointer_mut("/components/schemas/Problem/properties/code") {
        schema["description"] = list(
            "Code of the problem. Codes are never renamed:",
            Code::of_side(Side::Read),
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

/// Pattern of an id, as a regular expression of JSON Schema.
const WITHOUT_NUL: &str = "^[^\\u0000]*$";

/// Adds the rules of a body that derives cannot express.
fn complete_schema(schema: &mut Value) {
    let command = schema["example"].get("callbackCommand").cloned();
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    if let (Some(property), Some(command)) = (properties.get_mut("callbackCommand"), command) {
        property["enum"] = Value::Array(vec![command]);
    }
    // Only ids have a limit.
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
    // The type of an id checks it, not a validator of poem-openapi: an unusable id has the same error
    // in a path and in a body.
    let parameters = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        if parameter["name"] == "command" {
            parameter["schema"]["pattern"] = callbacks::PATTERN.into();
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
        all.retain(|status, answer| response_docs::complete(&known, status, answer));
    }
}

/// A method with the methods that it implies, as in `Allow`.
fn with_head(method: &str) -> &str {
    match method {
        "get" => "GET, HEAD",
        "post" => "POST",
        other => other,
    }
}

/// The routes of the document. poem-openapi numbers the parameters of a path: "/groups/{groupID}" is
/// "/groups/:param0".
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

/// The documentation that the service serves. It does not document itself. Requests share the texts,
/// because the page has 1.6 MB.
pub(crate) struct Pages {
    json: Bytes,
    yaml: Bytes,
    page: Bytes,
}

impl From<Document> for Pages {
    fn from(document: Document) -> Self {
        Self {
            json: document.json.into(),
            yaml: document.yaml.into(),
            page: document.page.into(),
        }
    }
}

#[derive(ApiResponse)]
enum Page {
    #[oai(status = 200, content_type = "text/html; charset=utf-8")]
    Html(Binary<Bytes>),
    #[oai(status = 200, content_type = "application/json")]
    Json(Binary<Bytes>),
    #[oai(status = 200, content_type = "application/yaml")]
    Yaml(Binary<Bytes>),
    #[oai(status = 307)]
    Elsewhere(#[oai(header = "Location")] String),
}

#[OpenApi]
impl Pages {
    #[oai(path = "/", method = "get", hidden)]
    async fn root(&self) -> Page {
        Page::Elsewhere("/docs".into())
    }

    #[oai(path = "/docs", method = "get", hidden)]
    async fn docs(&self) -> Page {
        Page::Html(Binary(self.page.clone()))
    }

    #[oai(path = "/openapi.json", method = "get", hidden)]
    async fn json(&self) -> Page {
        Page::Json(Binary(self.json.clone()))
    }

    #[oai(path = "/openapi.yaml", method = "get", hidden)]
    async fn yaml(&self) -> Page {
        Page::Yaml(Binary(self.yaml.clone()))
    }
}
