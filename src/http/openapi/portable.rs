//! Portable forms of the OpenAPI document: all generators of clients read them alike. The forms of
//! poem-openapi are valid too, but some generators make other types of them, or none.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Makes the document portable.
pub(super) fn complete(document: &mut Value) {
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
            if let Some(Value::Object(headers)) = answer.get_mut("headers") {
                let spelled = std::mem::take(headers).into_iter();
                *headers = spelled
                    .map(|(name, header)| (spell(name), header))
                    .collect();
            }
        }
    }
    let answers: Vec<Value> = operations(document)
        .map(|operation| operation["responses"].clone())
        .collect();
    document["components"]["schemas"] = schemas;
    let schemas = &mut document["components"]["schemas"];
    for schema in fields(Some(schemas)).flat_map(|schema| fields(schema.get_mut("properties"))) {
        complete_schema(schema);
    }
    for name in reached(&answers.into(), schemas) {
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

/// Usual spelling of a header. Its case has no meaning, but generated code shows it.
fn spell(name: String) -> String {
    match name.as_str() {
        "ETAG" => "ETag".to_owned(),
        _ => name,
    }
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
    let is_typed = |object: &Map<String, Value>| {
        let kinds = ["type", "$ref", "allOf"];
        kinds.iter().any(|kind| object.contains_key(*kind))
    };
    if !is_typed(object) {
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
