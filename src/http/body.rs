//! JSON bodies of requests: read whole within the limits, then parsed by hand.
//!
//! Derived parsers are not enough. A refused callback is lost, so the error must name the field and
//! the expected value, and must not contain the value or a Rust type. `Object` derives describe the
//! same fields to the OpenAPI document. A test of each operation compares the two.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use poem::http::HeaderName;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::{Any, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::error::{Code, Error, Side};
use super::server::memory::{BodyLimits, BodyShare};

/// Header of requests and answers with the operation id.
pub(super) const OPERATION_ID: HeaderName = HeaderName::from_static("operationid");

/// OpenIM's operation id. The middleware has removed an unusable one.
pub(super) fn operation_id(request: &Request) -> Option<String> {
    request.header(OPERATION_ID).map(str::to_owned)
}

/// Limit of a body that is parsed in place. A longer one would block other requests of the thread.
const MAX_BYTES_IN_PLACE: usize = 256 << 10;

/// A body with its share of the memory.
pub(super) struct ReceivedBody {
    bytes: Bytes,
    share: BodyShare,
}

impl ReceivedBody {
    /// The bytes. They hold the share until the last of them is dropped.
    fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for ReceivedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for ReceivedBody {
    /// Does not print the content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

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
    let announced = request
        .header("content-length")
        .and_then(|length| length.parse::<u64>().ok());
    let announced = match announced.map(usize::try_from) {
        Some(Ok(length)) if length <= memory.max_bytes => Some(length),
        Some(_) => return Err(memory.too_large()),
        None => None,
    };
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
                return Err(error.with_body(ReceivedBody { bytes, share }.into_bytes()));
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
    let text =
        std::str::from_utf8(body).map_err(|_| Error::new(Code::BodyMalformed, "expected UTF-8"))?;
    T::parse(text)
}

/// Parses a body, on another thread if it is long. The body keeps its share of the memory until then,
/// even if the caller is gone.
async fn parse_off_thread<T>(
    received: ReceivedBody,
) -> Result<(ReceivedBody, Result<T::Parsed, Error>), Error>
where
    T: FromBody,
    T::Parsed: Send + 'static,
{
    let length = received.bytes.len();
    let parse = move || {
        let parsed = parse::<T>(&received.bytes);
        (received, parsed)
    };
    if length <= MAX_BYTES_IN_PLACE {
        return Ok(parse());
    }
    let parsed = tokio::task::spawn_blocking(parse).await;
    parsed.map_err(|_panicked| Error::internal())
}

/// Reads and parses a JSON body. The error has the refused body.
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
    let (received, parsed) = if is_json {
        parse_off_thread::<T>(received).await?
    } else {
        let detail = "Content-Type: expected application/json";
        (received, Err(Error::new(Code::NotJson, detail)))
    };
    match parsed {
        Ok(parsed) => Ok((received, parsed)),
        Err(error) => Err(error.with_body(received.into_bytes())),
    }
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
