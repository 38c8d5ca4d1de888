//! The declaration of a callback: its documented body, its parser and its example.
//!
//! ```ignore
//! callback! {
//!     /// callbackAfterQuitGroupCommand: a member left a group by itself.
//!     QuitGroup = "callbackAfterQuitGroupCommand" {
//!         /// The group: 1 to 1,024 bytes, any characters but U+0000.
//!         "groupID" group_id: GroupId = id("g77");
//!         /// The member: 1 to 1,024 bytes, any characters but U+0000.
//!         "userID" user_id: UserId = id("m1");
//!     } => |body| Event::Quit(body.user_id)
//! }
//! ```
//!
//! A field has its JSON name, its Rust name, its type, and its value in the example. The type says what the
//! document shows and how the value is read ([`FromField`]). Each body has a `groupID`. The closure turns
//! the body into the event.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use serde_json::Value;

use super::super::body::Field;
use super::super::error::Error;
use super::Ignored;
use crate::domain::{GroupId, MAX_ID_BYTES, UserId};

macro_rules! callback {
    (
        $(#[doc = $doc:literal])+
        $name:ident = $command:literal {
            $($(#[$attr:meta])+ $json:literal $field:ident : $type:ty = $example:expr;)+
        } => |$body:ident| $event:expr
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, poem_openapi::Object)]
        #[oai(example)]
        pub(in super::super) struct $name {
            /// The command, as in the path.
            #[oai(rename = "callbackCommand")]
            callback_command: String,
            $($(#[$attr])+ #[oai(rename = $json)] $field: $type,)+
        }

        impl super::Callback for $name {
            const COMMAND: &'static str = $command;
        }

        impl crate::http::body::FromBody for $name {
            const SIDE: crate::http::error::Side = crate::http::error::Side::Callback;
            type Parsed = super::ParsedCallback;

            fn parse(text: &str) -> Result<super::ParsedCallback, crate::http::error::Error> {
                let [callback_command, $($field),+] =
                    crate::http::body::object(text, ["callbackCommand", $($json),+])?;
                super::expect_command(callback_command, $command)?;
                let $body = Self {
                    callback_command: $command.into(),
                    $($field: super::declare::FromField::from_field($field)?,)+
                };
                let event = $event;
                Ok(super::ParsedCallback {
                    group_id: $body.group_id,
                    event,
                })
            }
        }

        impl poem_openapi::types::Example for $name {
            fn example() -> Self {
                Self {
                    callback_command: $command.into(),
                    $($field: $example,)+
                }
            }
        }
    };
}
pub(super) use callback;

/// Reads a value from the field of a body.
pub(super) trait FromField: Sized {
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

id!(GroupId, group_id);
id!(UserId, user_id);

/// Id in an example, read as from JSON.
pub(super) fn id<T: ParseFromJSON>(text: &str) -> T {
    match T::parse_from_json(Some(text.into())) {
        Ok(id) => id,
        Err(_) => unreachable!("the id of an example is an id"),
    }
}
