//! Reads known fields from a JSON object, with errors that name the field and never the value.
//! Unknown fields are skipped without being kept, so a body costs no more memory than its own size.

use std::borrow::Cow;
use std::fmt;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{Any, ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{Code, Error};
use crate::domain::{GroupId, MAX_ID_BYTES, UserId};

/// A requested field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    name: &'static str,
    /// `None` for missing and for null: OpenIM means the same by both.
    raw: Option<&'a str>,
}

/// The value of a field that is there, as JSON text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Present<'a> {
    name: &'static str,
    raw: &'a str,
}

/// The named fields of the object that `body` is. If a name occurs twice, the last counts.
pub(super) fn object<'a, const N: usize>(
    body: &'a str,
    names: [&'static str; N],
) -> Result<[Field<'a>; N], Error> {
    let mut parser = serde_json::Deserializer::from_str(body);
    let fields = serde::Deserializer::deserialize_map(&mut parser, Fields(names))
        .and_then(|fields| parser.end().map(|()| fields));
    fields.map_err(|error| {
        let detail = if error.is_data() {
            "expected a JSON object".into()
        } else {
            let (line, column) = (error.line(), error.column());
            format!("expected JSON; stopped at line {line} column {column}")
        };
        Error::new(Code::BodyMalformed, detail)
    })
}

impl<'a> Field<'a> {
    pub(super) fn required(self) -> Result<Present<'a>, Error> {
        let Field { name, raw } = self;
        raw.map(|raw| Present { name, raw })
            .ok_or_else(|| Error::new(Code::FieldMissing, format!("{name}: expected a value")))
    }

    pub(super) fn optional<T>(
        self,
        read: impl FnOnce(Present<'a>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Field { name, raw } = self;
        raw.map(|raw| read(Present { name, raw })).transpose()
    }
}

impl<'a> Present<'a> {
    pub(super) fn text(self) -> Result<String, Error> {
        if !self.raw.starts_with('"') {
            return Err(self.wrong_type("a string"));
        }
        // The only error left is an escape of a lone surrogate, which is no character.
        serde_json::from_str(self.raw).map_err(|_| {
            let name = self.name;
            Error::new(
                Code::BodyMalformed,
                format!("{name}: expected a string of Unicode characters"),
            )
        })
    }

    pub(super) fn group_id(self) -> Result<GroupId, Error> {
        GroupId::parse(self.text()?).map_err(|error| Error::id(self.name, error))
    }

    pub(super) fn user_id(self) -> Result<UserId, Error> {
        UserId::parse(self.text()?).map_err(|error| Error::id(self.name, error))
    }

    pub(super) fn int32(self) -> Result<i32, Error> {
        serde_json::from_str(self.raw)
            .map_err(|_| self.wrong_type("a whole number from -2147483648 to 2147483647"))
    }

    pub(super) fn int64(self) -> Result<i64, Error> {
        serde_json::from_str(self.raw).map_err(|_| self.wrong_type("a whole number of 64 bits"))
    }

    /// Returns the value itself or the one in `{"value": ...}`. OpenIM's documentation shows the first
    /// form, and its server sends the second.
    pub(super) fn unwrapped(self) -> Result<Self, Error> {
        let Self { name, raw } = self;
        if !raw.starts_with('{') {
            return Ok(self);
        }
        let [value] = object(raw, ["value"])?;
        let raw = value
            .raw
            .ok_or_else(|| self.wrong_type("a value or one in \"value\""))?;
        Ok(Self { name, raw })
    }

    /// Reads each item with `read`, at most `most` items. An error names the index of the item.
    pub(super) fn each<T>(
        self,
        most: usize,
        read: impl Fn(Present<'a>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let Self { name, .. } = self;
        let read = |(index, raw)| {
            read(Present { name: "", raw }).map_err(|error: Error| {
                // An item has no name of its own.
                let detail = error.detail.trim_start_matches(": ");
                Error {
                    detail: format!("{name}[{index}]: {detail}").into(),
                    ..error
                }
            })
        };
        self.array(most)?
            .into_iter()
            .enumerate()
            .map(read)
            .collect()
    }

    /// Reads the named fields of an object.
    pub(super) fn object<const N: usize>(
        self,
        names: [&'static str; N],
    ) -> Result<[Field<'a>; N], Error> {
        object(self.raw, names)
    }

    /// The items, as JSON text, at most `most`.
    fn array(self, most: usize) -> Result<Vec<&'a str>, Error> {
        let mut parser = serde_json::Deserializer::from_str(self.raw);
        let items = serde::Deserializer::deserialize_seq(&mut parser, Items { most })
            .map_err(|_| self.wrong_type("an array"))?;
        if items.len() > most {
            let name = self.name;
            return Err(Error::new(
                Code::TooMany,
                format!("{name}: expected at most {most} items"),
            ));
        }
        Ok(items)
    }

    fn wrong_type(self, expected: &str) -> Error {
        let found = match self.raw.as_bytes().first() {
            Some(b'"') => "a string",
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        };
        let name = self.name;
        Error::new(
            Code::FieldType,
            format!("{name}: expected {expected}, found {found}"),
        )
    }
}

struct Fields<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Fields<N> {
    type Value = [Field<'de>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = self.0.map(|name| Field { name, raw: None });
        while let Some(known) = map.next_key_seed(Key(&self.0))? {
            match known {
                Some(index) => {
                    let raw = map.next_value::<&RawValue>()?.get();
                    fields[index].raw = (raw != "null").then_some(raw);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

/// The index of a known key, without keeping the unknown ones.
struct Key<'a>(&'a [&'static str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }
}

/// Keeps one item more than wanted, so that too many items can be detected.
struct Items {
    most: usize,
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() <= self.most {
            match seq.next_element::<&RawValue>()? {
                Some(item) => items.push(item.get()),
                None => return Ok(items),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(items)
    }
}

/// A field that is not read.
pub(in crate::http) type Ignored = Option<Any<Value>>;

/// Reads a value from the field of a body.
pub(in crate::http) trait FromField: Sized {
    fn from_field(field: Field<'_>) -> Result<Self, Error>;
}

impl FromField for Ignored {
    fn from_field(_: Field<'_>) -> Result<Self, Error> {
        Ok(None)
    }
}

impl FromField for Option<String> {
    fn from_field(field: Field<'_>) -> Result<Self, Error> {
        field.optional(|value| value.text())
    }
}

impl FromField for Option<i32> {
    fn from_field(field: Field<'_>) -> Result<Self, Error> {
        field.optional(|value| value.int32())
    }
}

impl FromField for Option<i64> {
    fn from_field(field: Field<'_>) -> Result<Self, Error> {
        field.optional(|value| value.int64())
    }
}

/// An id in the document: a string with a bound.
macro_rules! id {
    ($id:ident, $read:ident) => {
        impl FromField for $id {
            fn from_field(field: Field<'_>) -> Result<Self, Error> {
                field.required()?.$read()
            }
        }

        impl Type for $id {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> Cow<'static, str> {
                "string".into()
            }

            fn schema_ref() -> MetaSchemaRef {
                MetaSchemaRef::Inline(Box::new(MetaSchema {
                    min_length: Some(1),
                    max_length: Some(MAX_ID_BYTES),
                    ..MetaSchema::new("string")
                }))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(std::iter::once(self))
            }
        }

        impl ParseFromJSON for $id {
            fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
                let text = String::parse_from_json(value).map_err(ParseError::propagate)?;
                Self::parse(text).map_err(ParseError::custom)
            }
        }

        impl ToJSON for $id {
            fn to_json(&self) -> Option<Value> {
                Some(self.as_str().into())
            }
        }
    };
}

/// Reads a value that OpenIM's documentation shows plain and its server may wrap: `{"value": 2}`.
pub(in crate::http) fn unwrapped_text(field: Field<'_>) -> Result<Option<String>, Error> {
    field.optional(|value| value.unwrapped()?.text())
}

/// Reads a number as [`unwrapped_text`] reads a text.
pub(in crate::http) fn unwrapped_int32(field: Field<'_>) -> Result<Option<i32>, Error> {
    field.optional(|value| value.unwrapped()?.int32())
}

id!(GroupId, group_id);
id!(UserId, user_id);

/// Id in an example, read as from JSON.
pub(in crate::http) fn id<T: ParseFromJSON>(text: &str) -> T {
    match T::parse_from_json(Some(text.into())) {
        Ok(id) => id,
        Err(_) => unreachable!("the id of an example is an id"),
    }
}
