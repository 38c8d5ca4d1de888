//! The declaration of a callback: its operation, its documented body, its parser and its example.
//!
//! ```ignore
//! callback! {
//!     /// After quit group
//!     ///
//!     /// OpenIM calls this after a member left a group by itself.
//!     "/callbackAfterQuitGroupCommand", "callbackAfterQuitGroup", switch "afterQuitGroup";
//!
//!     /// callbackAfterQuitGroupCommand: a member left a group by itself.
//!     QuitGroup: Stored {
//!         /// The group: 1 to 1,024 bytes, any characters but U+0000.
//!         "groupID" group_id: GroupId = id("g77");
//!         /// The member: 1 to 1,024 bytes, any characters but U+0000.
//!         "userID" user_id: UserId = id("m1");
//!     } of group_id => Event::Quit(user_id)
//! }
//! ```
//!
//! The operation has its documentation, its path, its id, and OpenIM's switch if the mirror needs the callback.
//! The body has its kind, which says what happens with it. A field has its JSON name, its Rust name, its type,
//! and its value in the example. The type says what the document shows and how the value is read
//! ([`FromField`]), unless `by` names another function that reads it. The document does not show a `hidden` field.
//! The expression at the end is the content, made of the values.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{Any, ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use serde_json::Value;

use super::super::error::{Code, Error};
use super::super::json::Field;
use crate::domain::{GroupId, MAX_ID_BYTES, UserId};

macro_rules! callback {
    (
        $(#[doc = $operation:literal])+
        $path:literal, $id:literal $(, switch $switch:literal)?;

        $(#[doc = $doc:literal])+
        $name:ident: $kind:ident $fields:tt $(of $group_id:ident => $content:expr)?
    ) => {
        impl super::Callback for $name {
            const COMMAND: &'static str = $path.split_at(1).1;
        }

        callback! { @document $(#[doc = $doc])+ $name $fields }
        $(callback! { @parser $name $kind $fields $group_id $content })?

        #[poem_openapi::OpenApi(tag = "crate::http::server::auth::Tag::Callbacks")]
        impl super::Operation<$name> {
            $(#[doc = $operation])+
            #[oai(path = $path, method = "post", operation_id = $id)]
            async fn answer(
                &self,
                _key: crate::http::server::auth::CallbackKey,
                body: <super::$kind as super::Handle<$name>>::Body,
            ) -> Result<<super::$kind as super::Kind>::Answer, super::CallbackFailure> {
                <super::$kind as super::Handle<$name>>::handle(&self.0, body).await
            }

            const DECLARED: super::Declared = super::Declared {
                command: <$name as super::Callback>::COMMAND,
                operation_id: $id,
                switch: [$(Some($switch),)? None][0],
                needs_database: <super::$kind as super::Kind>::NEEDS_DATABASE,
                parse: <super::$kind as super::Handle<$name>>::PARSE,
            };
        }
    };
    (@document $(#[doc = $doc:literal])+ $name:ident {
        $($(#[$attr:meta])+ $json:literal $field:ident: $type:ty = $example:expr $(, by $read:path)?;)+
        $(hidden $hidden_json:literal $hidden:ident by $read_hidden:path;)*
    }) => {
        $(#[doc = $doc])+
        #[derive(Debug, poem_openapi::Object)]
        #[oai(example)]
        pub(in crate::http) struct $name {
            /// The command, as in the path.
            #[oai(rename = "callbackCommand")]
            callback_command: String,
            $($(#[$attr])+ #[oai(rename = $json)] $field: $type,)+
        }

        impl poem_openapi::types::Example for $name {
            fn example() -> Self {
                Self {
                    callback_command: <Self as super::Callback>::COMMAND.into(),
                    $($field: $example,)+
                }
            }
        }
    };
    (@parser $name:ident $kind:ident {
        $($(#[$attr:meta])+ $json:literal $field:ident: $type:ty = $example:expr $(, by $read:path)?;)+
        $(hidden $hidden_json:literal $hidden:ident by $read_hidden:path;)*
    } $group_id:ident $content:expr) => {
        impl crate::http::body::FromBody for $name {
            const SIDE: crate::http::error::Side = crate::http::error::Side::Callback;
            type Parsed = super::Parsed<<super::$kind as super::Kind>::Content>;

            #[allow(unused_variables, reason = "a value that is not read")]
            fn parse(text: &str) -> Result<Self::Parsed, crate::http::error::Error> {
                let [callback_command, $($field,)+ $($hidden,)*] = crate::http::json::object(
                    text,
                    ["callbackCommand", $($json,)+ $($hidden_json,)*],
                )?;
                super::declare::expect_command::<Self>(callback_command)?;
                $(let $field = callback! { @read $field, $type $(, $read)? };)+
                $(let $hidden = $read_hidden($hidden)?;)*
                Ok(super::Parsed { content: $content, group_id: $group_id })
            }
        }
    };
    (@read $field:ident, $type:ty) => {
        <$type as super::declare::FromField>::from_field($field)?
    };
    (@read $field:ident, $type:ty, $read:path) => {
        $read($field)?
    };
}
pub(super) use callback;

/// Checks the command of a body. A body sent to the wrong path would be misread.
pub(super) fn expect_command<T: super::Callback>(found: Field<'_>) -> Result<(), Error> {
    if found.required()?.text()? == T::COMMAND {
        return Ok(());
    }
    let detail = format!("callbackCommand: expected {}, as in the path", T::COMMAND);
    Err(Error::new(Code::CommandMismatch, detail))
}

/// A field that is not read.
pub(super) type Ignored = Option<Any<Value>>;

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

/// Reads a value that OpenIM's documentation shows plain and its server may wrap: `{"value": 2}`.
pub(super) fn unwrapped_text(field: Field<'_>) -> Result<Option<String>, Error> {
    field.optional(|value| value.unwrapped()?.text())
}

/// Reads a number as [`unwrapped_text`] reads a text.
pub(super) fn unwrapped_int32(field: Field<'_>) -> Result<Option<i32>, Error> {
    field.optional(|value| value.unwrapped()?.int32())
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
