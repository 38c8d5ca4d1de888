//! The OpenAPI document: locked, without duplicates, and true to what is read and served.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use openim_group_mirror::http;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use crate::support::{COMMAND, TestApp, web};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/openapi.json");

#[test]
fn the_document_is_the_one_that_was_agreed_on() {
    let agreed = std::fs::read_to_string(SNAPSHOT).unwrap_or_default();
    assert!(
        http::openapi_json().unwrap() + "\n" == agreed,
        "the OpenAPI document has changed; if that is meant:\n\
         cargo run -q -- openapi > tests/snapshots/openapi.json\n\
         git diff tests/snapshots/openapi.json"
    );
}

/// Reads any JSON, and fails on a key that an object has twice; parsers commonly hide those.
struct NoDuplicates;

impl<'de> DeserializeSeed<'de> for NoDuplicates {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NoDuplicates {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(NoDuplicates)?;
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("{key} is there twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(NoDuplicates)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn check_duplicates(json: &str) -> Result<(), serde_json::Error> {
    NoDuplicates.deserialize(&mut serde_json::Deserializer::from_str(json))
}

#[test]
fn no_key_is_there_twice() {
    assert!(check_duplicates(r#"{"a": [{"b": 1, "b": 2}]}"#).is_err());
    check_duplicates(&http::openapi_json().unwrap()).unwrap();
}

/// Every operation of the document: path, method, itself.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    all
}

fn document() -> Value {
    serde_json::from_str(&http::openapi_json().unwrap()).unwrap()
}

#[test]
fn every_operation_says_what_it_is_and_every_answer_has_an_example() {
    let document = document();
    assert_eq!(operations(&document).len(), 26);
    for (path, method, operation) in operations(&document) {
        let place = format!("{method} {path}");
        for part in ["summary", "description", "operationId"] {
            assert!(
                operation[part].as_str().is_some_and(|s| !s.is_empty()),
                "{place}: {part}"
            );
        }
        assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{place}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let needs_example = parameter["required"] == json!(true);
            let has_example = parameter["schema"]["example"].is_string();
            assert_eq!(has_example, needs_example, "{place}: {parameter}");
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            let place = format!("{place}: {status}");
            assert!(
                !response["description"].as_str().unwrap().is_empty(),
                "{place}"
            );
            let Some(content) = response["content"].as_object().filter(|c| !c.is_empty()) else {
                assert_eq!(status, "304", "{place}");
                continue;
            };
            for (media_type, body) in content {
                assert!(!media_type.contains(';'), "{place}: {media_type}");
                if media_type == "text/plain" {
                    assert!(body["example"].is_string(), "{place}");
                    continue;
                }
                let name = body["schema"]["$ref"]
                    .as_str()
                    .unwrap()
                    .rsplit('/')
                    .next()
                    .unwrap();
                let schema = &document["components"]["schemas"][name];
                let has_example = body["examples"].is_object() || schema["example"].is_object();
                assert!(has_example, "{place}: no example of {name}");
            }
        }
    }
}

#[test]
fn every_operation_says_which_key_it_needs() {
    let document = document();
    let schemes = &document["components"]["securitySchemes"];
    assert_eq!(schemes.as_object().unwrap().len(), 2);
    assert_eq!(schemes["callbackPassword"]["scheme"], "basic");
    assert_eq!(schemes["apiToken"]["scheme"], "bearer");
    for (path, method, operation) in operations(&document) {
        let expected = match (operation["tags"][0].as_str().unwrap(), path.as_str()) {
            // Without, too: a door without a key is open.
            ("Callbacks", _) => json!([{"callbackPassword": []}, {}]),
            ("Reads", _) | (_, "/drift" | "/metrics") => json!([{"apiToken": []}, {}]),
            _ => Value::Null,
        };
        assert_eq!(operation["security"], expected, "{method} {path}");
        let has_401 = operation["responses"].get("401").is_some();
        assert_eq!(has_401, expected != Value::Null, "{method} {path}");
    }
}

#[test]
fn the_optional_fields_of_the_callback_are_nullable_and_the_others_required() {
    let schema = &document()["components"]["schemas"]["SetGroupMemberInfo"];
    let required: Vec<&str> = schema["required"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(required, ["callbackCommand", "groupID", "userID"]);
    let properties = schema["properties"].as_object().unwrap();
    // OpenIM's body has these fields, in this order.
    let body = include_str!("../fixtures/callbacks/callbackAfterSetGroupMemberInfoCommand.json");
    let body: serde_json::Map<String, Value> = serde_json::from_str(body).unwrap();
    assert!(properties.keys().eq(body.keys()));
    for (name, property) in properties {
        let nullable = property["nullable"] == json!(true);
        assert_eq!(nullable, !required.contains(&name.as_str()), "{name}");
    }
}

/// Every object and array of the document, with where it stands.
fn walk(value: &Value, place: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(place, value);
    let (fields, items) = (value.as_object(), value.as_array());
    for (name, field) in fields.into_iter().flatten() {
        // What is sent and answered is no schema.
        if !["example", "examples"].contains(&name.as_str()) {
            walk(field, &format!("{place}/{name}"), visit);
        }
    }
    for (index, item) in items.into_iter().flatten().enumerate() {
        walk(item, &format!("{place}/{index}"), visit);
    }
}

fn schema<'a>(document: &'a Value, reference: &str) -> (String, &'a Value) {
    let name = reference.rsplit('/').next().unwrap();
    (name.to_owned(), &document["components"]["schemas"][name])
}

/// The schemas that a part of the document leads to, by name.
fn reached<'a>(document: &'a Value, part: &Value) -> BTreeMap<String, &'a Value> {
    let mut found = BTreeMap::new();
    let mut parts = vec![part.clone()];
    while let Some(part) = parts.pop() {
        walk(&part, "", &mut |_, value| {
            let Some(reference) = value["$ref"].as_str() else {
                return;
            };
            let (name, schema) = schema(document, reference);
            if found.insert(name, schema).is_none() {
                parts.push(schema.clone());
            }
        });
    }
    found
}

/// Schemas of the answers of all operations, or of their bodies.
fn reached_by<'a>(document: &'a Value, part: &str) -> BTreeMap<String, &'a Value> {
    let operations = operations(document).into_iter();
    let parts = operations.map(|(_, _, operation)| operation[part].clone());
    reached(document, &parts.collect())
}

fn names(list: &Value) -> BTreeSet<&str> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).collect()
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

#[test]
fn a_parameter_has_no_all_of() {
    let document = document();
    let mut defaults = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            walk(
                parameter,
                &format!("{method} {path}"),
                &mut |place, value| {
                    assert_eq!(value["allOf"], Value::Null, "{place}");
                },
            );
            let schema = &parameter["schema"];
            if schema["default"].is_string() {
                let name = parameter["name"].as_str().unwrap();
                defaults.insert((path.clone(), name.to_owned()));
                assert!(names(&schema["enum"]).contains(schema["default"].as_str().unwrap()));
                assert_eq!(schema["type"], "string");
            }
        }
    }
    let state = ("/groups/{groupID}/members".to_owned(), "state".to_owned());
    assert_eq!(defaults, BTreeSet::from([state]));
}

#[test]
fn an_all_of_holds_a_reference_alone_and_a_reference_stands_alone() {
    let document = document();
    let mut all_of = Vec::new();
    walk(&document, "", &mut |place, value| {
        if let Some(parts) = value["allOf"].as_array() {
            assert_eq!(parts.len(), 1, "{place}");
            assert!(parts[0]["$ref"].is_string(), "{place}");
            all_of.push((place.to_owned(), value["nullable"] == json!(true)));
        }
        if value["$ref"].is_string() {
            assert_eq!(value.as_object().unwrap().len(), 1, "{place}");
        }
    });
    let at = |place: &str, nullable| {
        let (schema, property) = place.split_once('.').unwrap();
        (
            format!("/components/schemas/{schema}/properties/{property}"),
            nullable,
        )
    };
    let expected = [
        at("Comparison.repairs", false),
        at("Drift.lastRun", true),
        at("Drift.currentRun", true),
        at("Membership.member", true),
    ];
    assert_eq!(all_of, expected);
    for (place, _) in all_of {
        assert!(document.pointer(&place).unwrap()["description"].is_string());
    }
}

#[test]
fn what_an_answer_always_has_is_required() {
    let document = document();
    let answers = reached_by(&document, "responses");
    assert!(answers.len() >= 16, "{}", answers.len());
    for (name, schema) in answers {
        let all: BTreeSet<&str> = properties(schema).map(|(name, _)| name.as_str()).collect();
        assert_eq!(names(&schema["required"]), all, "{name}");
    }
}

/// An answer holds exactly the fields of its schema.
#[track_caller]
fn assert_whole(document: &Value, schema: &Value, answer: &Value) {
    let reference = schema["$ref"].as_str();
    if let Some(reference) = reference.or(schema["allOf"][0]["$ref"].as_str()) {
        if answer.is_null() && schema["nullable"] == json!(true) {
            return;
        }
        return assert_whole(document, self::schema(document, reference).1, answer);
    }
    for item in answer.as_array().into_iter().flatten() {
        assert_whole(document, &schema["items"], item);
    }
    if schema["properties"].is_object() {
        let found: Vec<&String> = answer.as_object().unwrap().keys().collect();
        let documented: Vec<&String> = properties(schema).map(|(name, _)| name).collect();
        assert_eq!(found, documented);
        for (name, schema) in properties(schema) {
            assert_whole(document, schema, &answer[name]);
        }
    }
}

#[tokio::test]
async fn an_answer_has_all_of_its_fields_where_nothing_is_known() {
    let app = TestApp::start().await;
    app.callback_text(
        json!({"callbackCommand": COMMAND, "groupID": "g", "userID": "u"}).to_string(),
    )
    .await
    .ok();
    let document = document();
    for (path, asked) in [
        ("/groups", "/groups"),
        ("/groups/{groupID}", "/groups/g"),
        ("/groups/{groupID}/members", "/groups/g/members"),
        ("/groups/{groupID}/members/{userID}", "/groups/g/members/u"),
        ("/users/{userID}/groups", "/users/u/groups"),
        ("/drift", "/drift"),
        ("/readyz", "/readyz"),
    ] {
        let answers = &document["paths"][path]["get"]["responses"];
        let schema = |status: &str, media_type: &str| {
            answers[status]["content"][media_type]["schema"].clone()
        };
        let answer = app.get(asked).await.ok();
        assert_whole(&document, &schema("200", "application/json"), &answer);
        if path == "/groups/{groupID}" {
            let problem = app.get("/groups/none").await;
            assert_eq!(problem.status, 404);
            let schema = schema("404", "application/problem+json");
            assert_whole(&document, &schema, &problem.body);
        }
    }
    let query = json!({"pairs": [
        {"groupID": "g", "userID": "u"}, {"groupID": "g", "userID": "x"}
    ]});
    let answer = app.post("/memberships/query", query.to_string()).await.ok();
    let schema = |path: &str| {
        let operation = &document["paths"][path]["post"];
        operation["responses"]["200"]["content"]["application/json"]["schema"].clone()
    };
    assert_whole(&document, &schema("/memberships/query"), &answer);
    let command = "callbackBeforeSetGroupInfoCommand";
    let body = json!({"callbackCommand": command, "groupID": "g"});
    let answer = app
        .post(&format!("/{command}"), body.to_string())
        .await
        .ok();
    assert_whole(&document, &schema(&format!("/{command}")), &answer);
}

#[test]
fn no_answer_has_a_closed_list_of_values_but_the_text_has_the_codes() {
    let document = document();
    for (name, schema) in reached_by(&document, "responses") {
        walk(schema, &name, &mut |place, value| {
            assert_eq!(value["enum"], Value::Null, "{place}");
        });
    }
    let text = |schema: &str, property: &str| {
        let schema = &document["components"]["schemas"][schema];
        schema["properties"][property]["description"].to_string()
    };
    for code in ["`5101` (400)", "`5201` (503)"] {
        assert!(text("CallbackReply", "errCode").contains(code), "{code}");
    }
    for code in ["`body_malformed` (400)", "`group_unknown` (404)"] {
        assert!(text("Problem", "code").contains(code), "{code}");
    }
}

#[test]
fn the_server_is_the_one_that_serves_the_document() {
    assert_eq!(document()["servers"], json!([{"url": "/"}]));
}

#[test]
fn a_field_that_may_be_left_out_of_a_body_or_is_not_looked_at_may_be_null() {
    let document = document();
    let mut any = 0;
    for (name, schema) in reached_by(&document, "requestBody") {
        let required = names(&schema["required"]);
        for (property, value) in properties(schema) {
            let is_optional = !required.contains(property.as_str());
            let is_nullable = value["nullable"] == json!(true);
            assert_eq!(is_nullable, is_optional, "{name}.{property}");
            let is_any = ["type", "$ref", "allOf"]
                .iter()
                .all(|key| value[*key].is_null());
            any += usize::from(is_any);
        }
    }
    assert!(any > 10, "{any}");
}

/// Support classes of generated clients, in the package of the models or imported beside them.
const TAKEN: [&str; 13] = [
    "ApiClient",
    "ApiError",
    "ApiException",
    "ApiResponse",
    "Client",
    "Configuration",
    "Error",
    "File",
    "JSON",
    "Pair",
    "ServerConfiguration",
    "ServerVariable",
    "StringUtil",
];

#[test]
fn a_schema_is_called_as_no_class_of_a_generated_client_and_each_is_used() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let all: BTreeSet<&str> = schemas.keys().map(String::as_str).collect();
    for name in TAKEN {
        assert!(!all.contains(name), "{name}");
    }
    assert!(all.contains("MembershipPair"));
    let used = reached(&document, &document["paths"]);
    assert_eq!(all, used.keys().map(String::as_str).collect());
}

#[test]
fn headers_of_answers_are_spelled_as_their_standards_spell_them() {
    let document = document();
    let mut with_etag = Vec::new();
    for (path, method, operation) in operations(&document) {
        for (status, answer) in operation["responses"].as_object().unwrap() {
            for header in answer["headers"].as_object().into_iter().flatten() {
                let known = ["Cache-Control", "ETag", "Retry-After", "WWW-Authenticate"];
                assert!(known.contains(&header.0.as_str()), "{}", header.0);
                if header.0 == "ETag" {
                    with_etag.push(format!("{method} {path} {status}"));
                }
            }
        }
    }
    for status in ["200", "304"] {
        let answer = format!("get /groups/{{groupID}}/members/{{userID}} {status}");
        assert!(with_etag.contains(&answer), "{answer}");
    }
}

/// Whoever encodes for a client that encodes by itself asks for another id, and gets 200 and an empty
/// page.
#[test]
fn that_ids_are_encoded_is_told_once_for_all_and_at_no_parameter() {
    let document = document();
    for (path, method, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let text = parameter["description"].as_str().unwrap();
            assert!(!text.contains("encode"), "{method} {path}: {text}");
        }
    }
    let text = document["info"]["description"].as_str().unwrap();
    assert!(text.contains("percent-encoded"), "{text}");
    assert!(text.contains("generated client"), "{text}");
}

/// URL libraries take `..` in a path for the folder above, and then ask something else.
#[tokio::test]
async fn a_page_says_whose_it_is() {
    let document = document();
    for path in [
        "/users/{userID}/groups",
        "/groups/{groupID}/members/{userID}",
    ] {
        let text = document["paths"][path]["get"]["description"]
            .as_str()
            .unwrap();
        assert!(text.contains("/memberships/query"), "{path}");
    }
    let app = TestApp::start().await;
    for user in ["u", ".."] {
        app.callback_text(
            json!({"callbackCommand": COMMAND, "groupID": "g", "userID": user}).to_string(),
        )
        .await
        .ok();
    }
    assert_eq!(app.get("/users/u/groups").await.ok()["userID"], "u");
    assert_eq!(
        app.get("/users/nobody/groups").await.ok()["userID"],
        "nobody"
    );
    assert_eq!(app.get("/groups/g/members").await.ok()["groupID"], "g");
    assert_eq!(
        app.get("/groups/none/members").await.ok()["groupID"],
        "none"
    );
    // This client's library, too: the answer is that of /groups.
    let other = app.get("/users/../groups").await.ok();
    assert_eq!(other["groups"].as_array().unwrap().len(), 1);
    assert_eq!(other.get("userID"), None);
    let query = json!({"pairs": [{"groupID": "g", "userID": ".."}]});
    let answer = app.post("/memberships/query", query.to_string()).await.ok();
    assert_eq!(answer["memberships"][0]["isMember"], true);
    assert_eq!(answer["memberships"][0]["userID"], "..");
}

/// The parser is written by hand beside the documented type: each has exactly the other's fields.
#[tokio::test]
async fn the_documented_fields_are_the_ones_that_are_read() {
    let app = TestApp::start().await;
    let schema = document()["components"]["schemas"]["SetGroupMemberInfo"].clone();
    for name in schema["properties"].as_object().unwrap().keys() {
        let mut body = schema["example"].clone();
        assert!(body[name] != Value::Null, "{name} has no example");
        body[name] = json!([]);
        let reply = app.callback_text(body.to_string()).await;
        assert_eq!(reply.status, 400, "{name} is not read");
        assert!(
            reply.body["errDlt"]
                .as_str()
                .unwrap()
                .starts_with(&format!("{name}: "))
        );
    }
    app.callback_text(schema["example"].to_string()).await.ok();
}

#[tokio::test]
async fn the_service_serves_its_document_and_a_page_that_holds_it() {
    let app = TestApp::start().await;
    let text = async |path: &str| {
        let response = web::get(format!("{}{path}", app.base)).await.unwrap();
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (
            content_type,
            String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap(),
        )
    };
    let json = http::openapi_json().unwrap();
    assert_eq!(
        text("/openapi.json").await,
        ("application/json".into(), json.clone())
    );
    let (content_type, yaml) = text("/openapi.yaml").await;
    assert_eq!(content_type, "application/yaml");
    let yaml: Value = serde_yaml::from_str(&yaml).unwrap();
    assert_eq!(yaml, document());
    // "/" leads to the page, and the page needs no other file.
    for path in ["/", "/docs"] {
        let (content_type, page) = text(path).await;
        assert_eq!(content_type, "text/html; charset=utf-8");
        assert!(page.contains(&json), "{path}");
        assert!(
            !page.contains("<script src") && !page.contains("<link"),
            "{path}"
        );
    }
}
