//! JSON bodies of requests: read whole within the limits, then parsed by hand.
//!
//! The parser reads known fields. It skips unknown ones without keeping them, so a body costs no more
//! memory than its own size.
//!
//! Derived parsers are not enough. A refused callback is lost, so the error must name the field and
//! the expected value, and must not contain the value or a Rust type. `Object` derives describe the
//! same fields to the OpenAPI document. A test of each operation compares the two.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use poem::http::HeaderName;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{Any, ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::error::{Code, Error, Side};
use super::server::memory::{BodyLimits, BodyShare, WithShare};
use crate::domain::{GroupId, MAX_ID_BYTES, UserId};

/// Header of requests and answers with the operation id.
pub(super) const OPERATION_ID: HeaderName = HeaderName::from_static("operationid");

/// OpenIM's operation id. The middleware has removed an unusable one.
pub(super) fn operation_id(request: &Request) -> Option<String> {
    request.header(OPERATION_ID).map(str::to_owned)
}

/// Limit of a body that is parsed in place. A longer one would block other requests of the thread.
const MAX_BYTES_IN_PLACE: usize = 256 << 10;

/// A body with its share of the memory.
pub(super) type ReceivedBody = WithShare<Bytes, BodyShare>;

/// A body that is read before the operation is known. It travels as request data.
#[derive(Clone)]
pub(super) struct EarlyBody(Arc<Mutex<Option<ReceivedBody>>>);

impl EarlyBody {
    pub(super) fn new(received: ReceivedBody) -> Self {
        Self(Arc::new(Mutex::new(Some(received))))
    }

    /// Takes the body of a request, if it is read already.
    fn take_from(request: &Request) -> Option<ReceivedBody> {
        let EarlyBody(body) = request.extensions().get()?;
        // Nothing panics while it is locked.
        body.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Reads a body whole. If the connection ends before, the error has the part that arrived.
async fn receive(
    request: &Request,
    body: &mut RequestBody,
    side: Side,
) -> Result<ReceivedBody, Error> {
    if let Some(received) = EarlyBody::take_from(request) {
        return Ok(received);
    }
    let limits = request.extensions().get::<Arc<BodyLimits>>();
    let limits = limits.ok_or_else(Error::internal)?;
    let memory = limits.of_side(side);
    let announced = request.header("content-length");
    let announced: Option<usize> = announced.and_then(|length| length.parse().ok());
    if announced.is_some_and(|length| length > memory.max_bytes) {
        return Err(memory.too_large());
    }
    let deadline = Instant::now() + limits.timeouts.body;
    let body = body.take().map_err(poem::Error::from)?;
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    let mut bytes = BytesMut::new();
    let mut share = BodyShare::default();
    let mut wait = limits.timeouts.memory;
    loop {
        let chunk = match timeout_at(deadline, chunks.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                let error = Error::new(Code::BodyIncomplete, "the connection ended first");
                let bytes = bytes.freeze();
                let body = Bytes::from_owner(ReceivedBody { bytes, share });
                return Err(error.with_body(body));
            }
            Err(_elapsed) => {
                let secs = limits.timeouts.body.as_secs_f32();
                let detail = format!("expected the whole body within {secs} s");
                return Err(Error::new(Code::BodyTimeout, detail));
            }
        };
        let length = bytes.len() + chunk.len();
        if length > memory.max_bytes {
            return Err(memory.too_large());
        }
        let began = Instant::now();
        let whole = memory.reserve(&mut share, length, announced, wait).await?;
        wait = wait.saturating_sub(began.elapsed());
        bytes.reserve(whole - bytes.len());
        bytes.extend_from_slice(&chunk);
    }
    share.shrink(bytes.len());
    Ok(ReceivedBody {
        bytes: bytes.freeze(),
        share,
    })
}

/// A documented body with its parser.
pub(super) trait FromBody {
    /// Side of the API that takes it.
    const SIDE: Side;
    /// Result of the parser.
    type Parsed;

    fn parse(body: &str) -> Result<Self::Parsed, Error>;
}

/// Parses a body.
pub(super) fn parse<T: FromBody>(body: &[u8]) -> Result<T::Parsed, Error> {
    let text = str::from_utf8(body);
    T::parse(text.map_err(|_| Error::new(Code::BodyMalformed, "expected UTF-8"))?)
}

/// Reads and parses a JSON body. The error has the refused body. A long body is parsed on another thread,
/// where it keeps its share of the memory even if the caller is gone.
pub(super) async fn read_whole<T>(
    request: &Request,
    body: &mut RequestBody,
) -> Result<(ReceivedBody, T::Parsed), Error>
where
    T: FromBody,
    T::Parsed: Send + 'static,
{
    let received = receive(request, body, T::SIDE).await?;
    let is_json = request
        .content_type()
        .is_some_and(Json::<Any<Value>>::check_content_type);
    let is_long = received.bytes.len() > MAX_BYTES_IN_PLACE;
    let parse = move || {
        let parsed = if is_json {
            parse::<T>(&received.bytes)
        } else {
            let detail = "Content-Type: expected application/json";
            Err(Error::new(Code::NotJson, detail))
        };
        match parsed {
            Ok(parsed) => Ok((received, parsed)),
            // The bytes hold the share until the last of them is dropped.
            Err(error) => Err(error.with_body(Bytes::from_owner(received))),
        }
    };
    if !is_long {
        return parse();
    }
    let parsed = tokio::task::spawn_blocking(parse).await;
    parsed.map_err(|_panicked| Error::internal())?
}

/// Documentation of a required JSON body.
pub(super) fn documented_as<T: Type>() -> MetaRequest {
    MetaRequest {
        description: None,
        content: vec![MetaMediaType {
            content_type: "application/json",
            schema: T::schema_ref(),
        }],
        required: true,
    }
}

/// A parsed JSON body. It holds its share of the memory until the answer.
#[derive(Debug)]
pub(super) struct JsonBody<T: FromBody> {
    pub(super) parsed: T::Parsed,
    /// Time of the end of the body. It orders callbacks.
    pub(super) received_at: OffsetDateTime,
    /// OpenIM's operation id.
    pub(super) operation_id: Option<String>,
    _share: BodyShare,
}

impl<'a, T: Type + FromBody> ApiExtractor<'a> for JsonBody<T>
where
    T::Parsed: Send + 'static,
{
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(documented_as::<T>())
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let (received, parsed) = read_whole::<T>(request, body).await?;
        Ok(Self {
            parsed,
            received_at: OffsetDateTime::now_utc(),
            operation_id: operation_id(request),
            _share: received.share,
        })
    }
}

/// A body that is ignored. It is read to its end, so that the connection can be used again. A body
/// that does not end is no error.
#[derive(Debug)]
pub(super) struct Unread;

impl<'a> ApiExtractor<'a> for Unread {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        pass_through(request, body, |_| {}).await;
        Ok(Self)
    }
}

/// Passes a body to `look` as it arrives, and keeps nothing of it. Stops at a body that is too long or
/// too late.
pub(super) async fn pass_through(
    request: &Request,
    body: &mut RequestBody,
    mut look: impl FnMut(&[u8]),
) {
    if let Some(received) = EarlyBody::take_from(request) {
        return look(&received.bytes);
    }
    let limits = request.extensions().get::<Arc<BodyLimits>>();
    let (Some(limits), Ok(body)) = (limits, body.take()) else {
        return;
    };
    let deadline = Instant::now() + limits.timeouts.body;
    let mut left = limits.of_side(Side::Callback).max_bytes;
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    while let Ok(Some(Ok(chunk))) = timeout_at(deadline, chunks.next()).await
        && chunk.len() <= left
    {
        left -= chunk.len();
        look(&chunk);
    }
}

/// A requested field, with its value as JSON text. "null" for a missing one: OpenIM means the same by
/// both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
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
    pub(super) fn required(self) -> Result<Self, Error> {
        let missing = || {
            Error::new(
                Code::FieldMissing,
                format!("{}: expected a value", self.name),
            )
        };
        self.optional(Ok)?.ok_or_else(missing)
    }

    /// Reads the value with `read`, unless it is missing or null.
    pub(super) fn optional<T>(
        self,
        read: impl FnOnce(Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        (self.raw != "null").then(|| read(self)).transpose()
    }

    pub(super) fn text(self) -> Result<String, Error> {
        if !self.raw.starts_with('"') {
            return Err(self.wrong_type("a string"));
        }
        // The only error left is an escape of a lone surrogate, which is no character.
        serde_json::from_str(self.raw).map_err(|_| {
            let detail = format!("{}: expected a string of Unicode characters", self.name);
            Error::new(Code::BodyMalformed, detail)
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
        if !self.raw.starts_with('{') {
            return Ok(self);
        }
        let [Self { raw, .. }] = self.object(["value"])?;
        match raw {
            "null" => Err(self.wrong_type("a value or one in \"value\"")),
            raw => Ok(Self { raw, ..self }),
        }
    }

    /// Reads each item with `read`, at most `most` items. An error names the index of the item.
    pub(super) fn each<T>(
        self,
        most: usize,
        read: impl Fn(Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let name = self.name;
        let mut parser = serde_json::Deserializer::from_str(self.raw);
        let items = serde::Deserializer::deserialize_seq(&mut parser, Items { most })
            .map_err(|_| self.wrong_type("an array"))?;
        if items.len() > most {
            let detail = format!("{name}: expected at most {most} items");
            return Err(Error::new(Code::TooMany, detail));
        }
        let read = |(index, raw)| {
            read(Field { name: "", raw }).map_err(|error: Error| {
                // An item has no name of its own.
                let detail = error.detail.trim_start_matches(": ");
                Error {
                    detail: format!("{name}[{index}]: {detail}").into(),
                    ..error
                }
            })
        };
        items.into_iter().enumerate().map(read).collect()
    }

    /// Reads the named fields of an object.
    pub(super) fn object<const N: usize>(
        self,
        names: [&'static str; N],
    ) -> Result<[Field<'a>; N], Error> {
        object(self.raw, names)
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
        let detail = format!("{}: expected {expected}, found {found}", self.name);
        Error::new(Code::FieldType, detail)
    }
}

struct Fields<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Fields<N> {
    type Value = [Field<'de>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = self.0.map(|name| Field { name, raw: "null" });
        while let Some(known) = map.next_key_seed(KnownName(&self.0))? {
            match known {
                Some(index) => fields[index].raw = map.next_value::<&RawValue>()?.get(),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

/// The index of a known key, without keeping the unknown ones.
struct KnownName<'a>(&'a [&'static str]);

impl<'de> DeserializeSeed<'de> for KnownName<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for KnownName<'_> {
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
