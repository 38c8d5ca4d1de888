//! Messages. OpenIM itself sends a notification into a group when something has happened to the group.
//! Every other message is ordinary and does not concern the mirror.
//!
//! Thousands of ordinary messages arrive each second. So a body is parsed as it arrives, and only three
//! short fields are kept. OpenIM writes `contentType` before the content: the parser stops as soon as it
//! shows an ordinary message.

use std::marker::PhantomData;

use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use time::OffsetDateTime;

use super::super::body;
use crate::domain::{GroupId, HintKind, MAX_ID_BYTES, is_usable_operation_id};

/// A message, documented as `T`. No body is an error, because a user may wait for the answer.
#[derive(Debug)]
pub(in crate::http) struct Message<T> {
    pub(super) notice: Notice,
    pub(super) received_at: OffsetDateTime,
    documented: PhantomData<T>,
}

impl<'a, T: Type + Send> ApiExtractor<'a> for Message<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(body::documented_as::<T>())
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let mut parser = MessageParser::default();
        body::pass_through(request, body, |bytes| {
            parser.read(bytes);
        })
        .await;
        let mut notice = parser.end();
        if let Notice::Notification { operation_id, .. } = &mut notice
            && operation_id.is_none()
        {
            *operation_id = body::operation_id(request);
        }
        Ok(Self {
            notice,
            received_at: OffsetDateTime::now_utc(),
            documented: PhantomData,
        })
    }
}

/// Result of the parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Notice {
    /// An ordinary message.
    Ordinary,
    /// A notification: something has happened to a group.
    Notification {
        kind: HintKind,
        /// `None` if the id is missing or cannot be used.
        group_id: Option<GroupId>,
        operation_id: Option<String>,
    },
}

/// Parser of a body that arrives in parts. If a field occurs twice, the first counts. A body that is not
/// JSON is parsed up to its first error.
#[derive(Debug, Default)]
pub(in crate::http) struct MessageParser {
    place: Place,
    /// JSON text of a field's name, or of the value of a wanted field.
    text: Vec<u8>,
    /// The wanted field whose value comes next, if it is one.
    field: Option<Wanted>,
    /// True if a backslash escapes the next byte.
    is_escaped: bool,
    /// Depth of objects and arrays within a value.
    depth: usize,
    content_type: Option<Option<HintKind>>,
    group_id: Option<Option<GroupId>>,
    operation_id: Option<Option<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before the object.
    #[default]
    Before,
    /// Before a field, or the end of the object.
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    String,
    /// A number, true, false or null.
    Plain,
    /// Within an object or an array, and not within a string of it.
    Nested,
    NestedString,
    AfterValue,
    /// The parser reads no more bytes.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    ContentType,
    GroupId,
    OperationId,
}

/// Limit of a value in bytes: an id with every byte escaped.
const LONGEST_VALUE: usize = 6 * MAX_ID_BYTES + 2;
/// Limit of a name in bytes. OpenIM does not escape names.
const LONGEST_NAME: usize = 64;

impl MessageParser {
    /// Parses the next bytes. Returns false if no more bytes are needed.
    pub(in crate::http) fn read(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.place = self.step(*byte);
            if self.place == Place::Over {
                self.text = Vec::new();
                return false;
            }
        }
        true
    }

    /// Returns the result of the bytes so far.
    pub(in crate::http) fn end(self) -> Notice {
        match self.content_type.flatten() {
            None => Notice::Ordinary,
            Some(kind) => Notice::Notification {
                kind,
                group_id: self.group_id.flatten(),
                operation_id: self.operation_id.flatten(),
            },
        }
    }

    fn step(&mut self, byte: u8) -> Place {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match self.place {
            Place::Before | Place::BeforeName | Place::AfterName | Place::AfterValue
                if is_space =>
            {
                self.place
            }
            Place::Before if byte == b'{' => Place::BeforeName,
            Place::BeforeName if byte == b'"' => {
                self.text.clear();
                Place::Name
            }
            Place::Name => self.in_string(byte, LONGEST_NAME, Place::Name, Place::AfterName),
            Place::AfterName if byte == b':' => {
                self.field = self.wanted();
                self.text.clear();
                Place::BeforeValue
            }
            Place::BeforeValue if is_space => Place::BeforeValue,
            Place::BeforeValue => match byte {
                b'"' => Place::String,
                b'{' | b'[' => {
                    self.depth = 1;
                    Place::Nested
                }
                b',' | b'}' | b']' | b':' => Place::Over,
                _ => {
                    self.keep(byte, LONGEST_VALUE);
                    Place::Plain
                }
            },
            Place::String => self.in_string(byte, LONGEST_VALUE, Place::String, Place::AfterValue),
            Place::Plain => match byte {
                b',' | b'}' => {
                    self.note(false);
                    self.after_value(byte)
                }
                _ if is_space => {
                    self.note(false);
                    Place::AfterValue
                }
                _ => {
                    self.keep(byte, LONGEST_VALUE);
                    Place::Plain
                }
            },
            Place::Nested => match byte {
                b'"' => Place::NestedString,
                b'{' | b'[' => {
                    self.depth += 1;
                    Place::Nested
                }
                b'}' | b']' => {
                    self.depth -= 1;
                    match self.depth {
                        0 => {
                            self.note(false);
                            Place::AfterValue
                        }
                        _ => Place::Nested,
                    }
                }
                _ => Place::Nested,
            },
            Place::NestedString => match byte {
                _ if std::mem::take(&mut self.is_escaped) => Place::NestedString,
                b'\\' => {
                    self.is_escaped = true;
                    Place::NestedString
                }
                b'"' => Place::Nested,
                _ => Place::NestedString,
            },
            Place::AfterValue => self.after_value(byte),
            Place::Before | Place::BeforeName | Place::AfterName | Place::Over => Place::Over,
        }
    }

    /// Takes a byte of a string. An escaped quote does not end the string.
    fn in_string(&mut self, byte: u8, longest: usize, here: Place, after: Place) -> Place {
        if std::mem::take(&mut self.is_escaped) {
            self.keep(byte, longest);
            return here;
        }
        if byte == b'"' {
            if here == Place::String {
                self.note(true);
            }
            return after;
        }
        self.is_escaped = byte == b'\\';
        self.keep(byte, longest);
        here
    }

    /// Keeps a byte of a name or of a wanted value. A text that is too long is kept up to one byte over its limit.
    fn keep(&mut self, byte: u8, longest: usize) {
        let is_kept = self.place == Place::Name || self.field.is_some();
        if is_kept && self.text.len() <= longest {
            self.text.push(byte);
        }
    }

    fn after_value(&self, byte: u8) -> Place {
        let is_done = self.content_type == Some(None)
            || (self.content_type.is_some()
                && self.group_id.is_some()
                && self.operation_id.is_some());
        match byte {
            b',' if !is_done => Place::BeforeName,
            _ => Place::Over,
        }
    }

    /// Returns the wanted field of this name, if it is one.
    fn wanted(&self) -> Option<Wanted> {
        if self.text.len() > LONGEST_NAME {
            return None;
        }
        let unescaped;
        let name = match self.text.contains(&b'\\') {
            false => self.text.as_slice(),
            true => {
                unescaped = self.unescaped()?;
                unescaped.as_bytes()
            }
        };
        let wanted = match name {
            b"contentType" if self.content_type.is_none() => Wanted::ContentType,
            b"groupID" if self.group_id.is_none() => Wanted::GroupId,
            b"operationID" if self.operation_id.is_none() => Wanted::OperationId,
            _ => return None,
        };
        Some(wanted)
    }

    /// Stores the value of a wanted field.
    fn note(&mut self, is_string: bool) {
        let text = || {
            let is_short = is_string && self.text.len() <= LONGEST_VALUE;
            is_short.then(|| self.unescaped()).flatten()
        };
        match self.field {
            Some(Wanted::ContentType) => {
                let number = str::from_utf8(&self.text).ok();
                let number = number.filter(|_| !is_string).and_then(|n| n.parse().ok());
                self.content_type = Some(number.and_then(HintKind::of_code));
            }
            Some(Wanted::GroupId) => {
                self.group_id = Some(text().and_then(|id| GroupId::parse(id).ok()));
            }
            Some(Wanted::OperationId) => {
                let id = text().filter(|id| is_usable_operation_id(id.as_bytes()));
                self.operation_id = Some(id);
            }
            None => {}
        }
    }

    /// Decodes the kept JSON text, which has no quotes.
    fn unescaped(&self) -> Option<String> {
        let quoted = [b"\"".as_slice(), &self.text, b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(body: &str) -> Notice {
        let mut parser = MessageParser::default();
        parser.read(body.as_bytes());
        parser.end()
    }

    fn notification(kind: HintKind, group: Option<&str>, operation: Option<&str>) -> Notice {
        Notice::Notification {
            kind,
            group_id: group.map(|id| GroupId::parse(id.into()).unwrap()),
            operation_id: operation.map(str::to_owned),
        }
    }

    #[test]
    fn a_notification_is_told_by_the_content_type_of_the_object_itself() {
        let invited = notification(HintKind::MemberInvited, Some("g"), Some("op"));
        for body in [
            r#"{"operationID":"op","contentType":1509,"content":"","groupID":"g"}"#,
            " {\n\"groupID\" : \"g\" ,\"contentType\": 1509\t, \"operationID\":\"op\" } ",
            r#"{"a":{"contentType":1501},"b":[{"contentType":101}],"c":"\"contentType\":101","operationID":"op","contentType":1509,"groupID":"g"}"#,
            r#"{"ex":"}\\","groupID":"\u0067","content\u0054ype":1509,"operationID":"op"}"#,
            r#"{"contentType":1509,"groupID":"g","operationID":"op","contentType":101,"groupID":"h"}"#,
            // The parser stops after the last wanted field.
            r#"{"contentType":1509,"groupID":"g","operationID":"op",no JSON"#,
        ] {
            assert_eq!(read(body), invited, "{body}");
        }
    }

    #[test]
    fn everything_else_is_an_ordinary_message() {
        for body in [
            "",
            "no JSON",
            "[]",
            "\"contentType\":1509",
            "{}",
            r#"{"contentType":101,"groupID":"g"}"#,
            r#"{"contentType":1500}"#,
            r#"{"contentType":1521}"#,
            r#"{"contentType":"1509"}"#,
            r#"{"contentType":null}"#,
            r#"{"contentType":[1509]}"#,
            r#"{"contentType":15090000000000000000000}"#,
            r#"{"contentType":1509.0}"#,
            r#"{"contentType":1509"#,
            r#"{"content":"{\"contentType\":1509}"}"#,
            r#"{"content":"\\\",\"contentType\":1509"}"#,
            r#"{"content":{"contentType":1509}}"#,
            r#"{"contentType":101,"contentType":1509}"#,
            r#"{"contentType ":1509}"#,
            r#"{"content":"a"b"contentType":1509}"#,
        ] {
            assert_eq!(read(body), Notice::Ordinary, "{body}");
        }
    }

    #[test]
    fn a_notification_may_name_no_group_that_can_be_used() {
        let quit = |group, operation| notification(HintKind::MemberQuit, group, operation);
        let of = |rest: &str| read(&format!("{{\"contentType\":1504{rest}}}"));
        assert_eq!(of(""), quit(None, None));
        assert_eq!(of(r#","groupID":"","operationID":"""#), quit(None, None));
        assert_eq!(of(r#","groupID":7,"operationID":"a b""#), quit(None, None));
        assert_eq!(of(r#","groupID":"a\u0000""#), quit(None, None));
        assert_eq!(of(r#","groupID":"\ud800""#), quit(None, None));
        let long = "x".repeat(1024);
        let body = format!(r#","groupID":"{long}""#);
        assert_eq!(of(&body), quit(Some(&long), None));
        assert_eq!(of(&body.replacen('x', "xx", 1)), quit(None, None));
        let escaped = "\\u0078".repeat(1024);
        let body = format!(r#","groupID":"{escaped}""#);
        assert_eq!(of(&body), quit(Some(&long), None));
        assert_eq!(of(&body.replacen("\\u", "a\\u", 1)), quit(None, None));
    }

    /// As in recordings of OpenIM: `content` can be long, and the group comes after it.
    #[test]
    fn nothing_of_a_long_content_is_kept() {
        let mut parser = MessageParser::default();
        let head = r#"{"operationID":"op","contentType":1509,"content":""#;
        assert!(parser.read(head.as_bytes()));
        for _ in 0..1000 {
            assert!(parser.read(&[b'x'; 1000]));
        }
        assert!(parser.text.capacity() <= 64, "{}", parser.text.capacity());
        assert!(!parser.read(br#"","groupID":"g"}"#));
        let expected = notification(HintKind::MemberInvited, Some("g"), Some("op"));
        assert_eq!(parser.end(), expected);
    }

    /// Result of a second, slower parser.
    fn model(body: &Value) -> Notice {
        let kind = body["contentType"].as_i64().and_then(HintKind::of_code);
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        match kind {
            None => Notice::Ordinary,
            Some(kind) => Notice::Notification {
                kind,
                group_id: text("groupID").and_then(|id| GroupId::parse(id).ok()),
                operation_id: text("operationID")
                    .filter(|id| is_usable_operation_id(id.as_bytes())),
            },
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            Just("contentType".to_owned()),
            Just("groupID".to_owned()),
            any::<String>()
        ];
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<i64>().prop_map(Value::from),
            (1495_i64..1525).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(json!("{\"contentType\":1509,\"groupID\":\"no\"}")),
            Just(json!("\\\"},\"contentType\":1509,")),
        ];
        leaf.prop_recursive(3, 24, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((name.clone(), inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_says_what_another_parser_reads(
            before in proptest::collection::vec((any::<String>(), value()), 0..4),
            content_type in value(),
            group in value(),
            operation in value(),
            after in proptest::collection::vec((any::<String>(), value()), 0..4),
            is_pretty in any::<bool>(),
            cuts in proptest::collection::vec(1_usize..40, 1..30),
        ) {
            let mut body = serde_json::Map::from_iter(before);
            for (name, value) in [
                ("contentType", content_type), ("groupID", group), ("operationID", operation),
            ] {
                body.insert(name.to_owned(), value);
            }
            for (name, value) in after {
                body.entry(name).or_insert(value);
            }
            let body = Value::Object(body);
            let text = match is_pretty {
                true => serde_json::to_string_pretty(&body).unwrap(),
                false => body.to_string(),
            };
            let mut parser = MessageParser::default();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (some, others) = rest.split_at(rest.len().min(*cut));
                rest = others;
                if !parser.read(some) || rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(parser.end(), model(&body), "{}", text);
        }

        #[test]
        fn whatever_comes_it_comes_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut parser = MessageParser::default();
            parser.read(&bytes);
            parser.end();
        }
    }
}
