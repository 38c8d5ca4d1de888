//! The OpenAPI document and its page. The types of the operations make it. [`response_docs`] adds what
//! derives cannot express. Then it gets a portable form: all generators of clients read it alike. The
//! forms of poem-openapi are valid too, but some generators make other types of them, or none.

pub(super) mod response_docs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;

use bytes::Bytes;
use poem::endpoint::BoxEndpoint;
use poem::http::Method;
use poem_openapi::payload::Binary;
use poem_openapi::registry::{MetaApi, Registry};
use poem_openapi::{ApiResponse, ContactObject, LicenseObject, OpenApi, OpenApiService};
use serde_json::{Map, Value, json};

use self::response_docs::has_tag;
use super::callbacks;
use super::error::{Code, Side};
use crate::domain::MAX_ID_BYTES;

const TITLE: &str = "openim-group-mirror";
const DESCRIPTION: &str = "\
A Postgres mirror of OpenIM group membership. OpenIM reports changes by callbacks; a backend reads \
members over REST.

The error of a callback is a reply with the five fields of OpenIM and an `errCode`. Any other error \
is a problem document (RFC 9457) with a `code`. Both lists of codes grow. Times are RFC 3339 in UTC. \
Answers have all their fields; null means unknown. Later versions have more fields.

An id is any text. In a path it is percent-encoded, once. A generated client does that itself, so give \
it the plain id. The ids `.` and `..` cannot be sent in a path, because URL libraries resolve them \
and send another request. `/memberships/query` takes them. A page names its user or group \
(`userID`, `groupID`).";

/// The document in all its forms, which the service serves. Requests share the texts, because the page
/// has 1.6 MB.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) json: Bytes,
    yaml: Bytes,
    /// Swagger UI in one file: it loads nothing from other hosts.
    page: Bytes,
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
        let yaml = serde_yaml::to_string(&document).map_err(serde::de::Error::custom)?;
        Ok(Self {
            yaml: yaml.into(),
            page: service.swagger_ui_html().replace(&bare, &json).into(),
            routes: routes(&document),
            json: json.into(),
        })
    }
}

fn complete(document: &mut Value) {
    // The texts list the codes. With an `enum`, some generated clients lose an answer with a code that is
    // newer than the client.
    let numbers = list("0, or the code of the error:", Side::Callback, |code| {
        code.number().to_string()
    });
    let intro = "Code of the problem. Codes are never renamed:";
    let names = list(intro, Side::Read, |code| code.name().to_owned());
    for (field, text) in [
        ("CallbackReply/properties/errCode", numbers),
        ("Problem/properties/code", names),
    ] {
        if let Some(schema) = document.pointer_mut(&format!("/components/schemas/{field}")) {
            schema["description"] = text.into();
        }
    }
    for schema in fields(document.pointer_mut("/components/schemas")) {
        complete_body(schema);
    }
    for operation in operations(document) {
        complete_operation(operation);
    }
    make_portable(document);
}

/// Pattern of an id, as a regular expression of JSON Schema.
const WITHOUT_NUL: &str = "^[^\\u0000]*$";

/// Adds the rules of a body that derives cannot express.
fn complete_body(schema: &mut Value) {
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

fn list(intro: &str, side: Side, key: impl Fn(Code) -> String) -> String {
    Code::of_side(side).fold(intro.to_owned(), |text, code| {
        let status = code.status().as_u16();
        format!("{text}\n* `{}` ({status}): {}", key(code), code.message())
    })
}

fn complete_operation(operation: &mut Value) {
    // The type of an id checks it, not a validator of poem-openapi: an unusable id has the same error
    // in a path and in a body.
    for parameter in items(operation.get_mut("parameters")) {
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

/// The documented paths, by the router's pattern of each.
pub(crate) type Routes = BTreeMap<String, Route>;

/// A documented path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The path of the document, for example `/groups/{groupID}`.
    pub(crate) path: String,
    /// Its methods, as in `Allow`.
    pub(crate) methods: String,
    /// The command, for a path that OpenIM calls.
    pub(crate) command: Option<String>,
    /// True for a path that reads the mirror.
    pub(crate) is_read: bool,
}

/// The command of the path that takes all commands without a path.
pub(crate) const ANY_COMMAND: &str = "other";

impl Route {
    /// True for the path of all commands without a path.
    pub(crate) fn is_any(&self) -> bool {
        self.command.as_deref() == Some(ANY_COMMAND)
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
            let methods = operations.keys().map(|method| match method.as_str() {
                "get" => "GET, HEAD",
                "post" => "POST",
                other => other,
            });
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
                methods: methods.collect::<Vec<_>>().join(", "),
                command: is_callback.then(|| command.to_owned()),
                is_read: operations.values().any(|o| has_tag(o, "Reads")),
            };
            (pattern, route)
        })
        .collect()
}

/// Makes the document portable.
fn make_portable(document: &mut Value) {
    let schemas = document["components"]["schemas"].take();
    for operation in operations(document) {
        for parameter in items(operation.get_mut("parameters")) {
            inline(&mut parameter["schema"], &schemas);
        }
        // A service without keys needs none, so the key is optional.
        if let Some(keys) = operation.get_mut("security").and_then(Value::as_array_mut) {
            keys.push(json!({}));
        }
        for answer in fields(operation.get_mut("responses")) {
            // The case of a header has no meaning, but generated code shows it.
            if let Some(Value::Object(headers)) = answer.get_mut("headers")
                && let Some(etag) = headers.remove("ETAG")
            {
                headers.insert("ETag".to_owned(), etag);
            }
        }
    }
    let answers = operations(document).map(|operation| operation["responses"].clone());
    let answers = Value::from_iter(answers);
    document["components"]["schemas"] = schemas;
    let schemas = &mut document["components"]["schemas"];
    for schema in fields(Some(schemas)).flat_map(|schema| fields(schema.get_mut("properties"))) {
        complete_schema(schema);
    }
    for name in reached(&answers, schemas) {
        require_all(&mut schemas[name]);
    }
    let used = reached(&document["paths"], &document["components"]["schemas"]);
    if let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas") {
        schemas.retain(|name, _| used.contains(name));
    }
}

fn operations(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    fields(document.get_mut("paths")).flat_map(|path| fields(Some(path)))
}

fn fields(object: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    let object = object.and_then(Value::as_object_mut).into_iter().flatten();
    object.map(|(_, value)| value)
}

fn items(array: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    array.and_then(Value::as_array_mut).into_iter().flatten()
}

/// The name of the schema in a reference.
fn referred(reference: &Value) -> Option<&str> {
    reference["$ref"].as_str()?.rsplit('/').next()
}

/// Puts the type of a parameter with a default in the parameter itself. For an `allOf` of the type and
/// the default, openapi-python-client and oapi-codegen make nothing.
fn inline(schema: &mut Value, schemas: &Value) {
    let Some(name) = referred(&schema["allOf"][0]).map(str::to_owned) else {
        return;
    };
    let default = schema["default"].take();
    *schema = schemas[name].clone();
    schema["default"] = default;
}

/// Completes the schema of a field. For generators, a type in an `allOf` with other members is another
/// type, so these members go outside. A field of any type may be null, so its schema says it.
fn complete_schema(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(parts)) = object.get_mut("allOf") {
        let (types, words): (Vec<Value>, Vec<Value>) = std::mem::take(parts)
            .into_iter()
            .partition(|part| part.get("$ref").is_some());
        *parts = types;
        for word in words {
            object.extend(word.as_object().cloned().unwrap_or_default());
        }
    }
    let kinds = ["type", "$ref", "allOf"];
    if !kinds.iter().any(|kind| object.contains_key(*kind)) {
        object.insert("nullable".into(), true.into());
    }
}

/// Makes all fields of an answer required. Unknown values are null. Derives take an `Option` for a field
/// that can be absent.
fn require_all(schema: &mut Value) {
    if let Some(properties) = schema["properties"].as_object() {
        schema["required"] = properties.keys().map(String::as_str).collect();
    }
}

/// Names of the schemas that a part of the document refers to, directly or not.
fn reached(part: &Value, schemas: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut parts = vec![part];
    while let Some(part) = parts.pop() {
        if let Some(name) = referred(part)
            && found.insert(name.to_owned())
        {
            parts.extend(schemas.get(name));
        }
        match part {
            Value::Object(fields) => parts.extend(fields.values()),
            Value::Array(items) => parts.extend(items),
            _ => {}
        }
    }
    found
}

#[derive(ApiResponse)]
enum Served {
    #[oai(status = 200, content_type = "text/html; charset=utf-8")]
    Html(Binary<Bytes>),
    #[oai(status = 200, content_type = "application/json")]
    Json(Binary<Bytes>),
    #[oai(status = 200, content_type = "application/yaml")]
    Yaml(Binary<Bytes>),
    #[oai(status = 307)]
    Elsewhere(#[oai(header = "Location")] String),
}

/// The pages do not document themselves.
#[OpenApi]
impl Document {
    #[oai(path = "/", method = "get", hidden)]
    async fn root(&self) -> Served {
        Served::Elsewhere("/docs".into())
    }

    #[oai(path = "/docs", method = "get", hidden)]
    async fn docs(&self) -> Served {
        Served::Html(Binary(self.page.clone()))
    }

    #[oai(path = "/openapi.json", method = "get", hidden)]
    async fn json(&self) -> Served {
        Served::Json(Binary(self.json.clone()))
    }

    #[oai(path = "/openapi.yaml", method = "get", hidden)]
    async fn yaml(&self) -> Served {
        Served::Yaml(Binary(self.yaml.clone()))
    }
}
