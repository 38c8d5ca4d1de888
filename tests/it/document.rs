//! The OpenAPI document: locked, without duplicates, and true to what is read and served.

use std::collections::BTreeSet;
use std::fmt;

use openim_group_mirror::http;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use crate::support::{TestApp, web};

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
            ("Callbacks", _) => json!([{"callbackPassword": []}]),
            ("Reads", _) | (_, "/drift" | "/metrics") => json!([{"apiToken": []}]),
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
    let names: Vec<&String> = properties.keys().collect();
    let expected = [
        "callbackCommand",
        "groupID",
        "userID",
        "nickName",
        "faceURL",
        "roleLevel",
        "ex",
    ];
    assert_eq!(names, expected);
    for (name, property) in properties {
        let nullable = property["nullable"] == json!(true);
        assert_eq!(nullable, !required.contains(&name.as_str()), "{name}");
    }
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
