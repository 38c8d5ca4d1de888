//! A JSON body on its way in: read whole within the limits, its type checked, then parsed by hand.
//!
//! By hand rather than by derived parsers: an event that is refused is lost, so the error has to
//! say which field and what was expected, and may neither quote the value nor name a Rust type. The
//! `Object` derives describe the same fields to the OpenAPI document; a test of each operation
//! holds the two together.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::{Any, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::error::{Code, Door, Error};
use super::memory::{BodyLimits, BodyShare};
use super::operation_id;

/// Parsing a longer body would keep others waiting, who share the thread.
const LONG: usize = 256 << 10;

/// A body, and its share of the memory for as long as it is there.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    share: BodyShare,
}

impl fmt::Debug for Received {
    /// Never what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// A body that was read before it was known which operation it is for; handed to that as request data.
#[derive(Clone)]
pub(super) struct Held(Arc<Mutex<Option<Received>>>);

impl Held {
    pub(super) fn new(received: Received) -> Self {
        Self(Arc::new(Mutex::new(Some(received))))
    }

    /// That of a request, once.
    fn take_from(request: &Request) -> Option<Received> {
        let Held(held) = request.extensions().get()?;
        // Nothing can go wrong while it is locked.
        held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Reads a body whole. What has arrived of one that stops goes with the error.
async fn receive(request: &Request, body: &mut RequestBody, door: Door) -> Result<Received, Error> {
    if let Some(received) = Held::take_from(request) {
        return Ok(received);
    }
    let limits = request.extensions().get::<Arc<BodyLimits>>();
    let limits = limits.ok_or_else(|| Error::new(Code::Internal, "the log says more"))?;
    let pool = limits.at(door);
    let announced = request
        .header("content-length")
        .and_then(|length| length.parse::<u64>().ok());
    let announced = match announced.map(usize::try_from) {
        Some(Ok(length)) if length <= pool.max_bytes => Some(length),
        Some(_) => return Err(pool.too_large()),
        None => None,
    };
    let deadline = Instant::now() + limits.patience.body;
    let body = body.take().map_err(poem::Error::from)?;
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    let mut bytes = BytesMut::new();
    let mut share = BodyShare::default();
    let mut wait = limits.patience.memory;
    loop {
        let chunk = match timeout_at(deadline, chunks.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                let error = Error::new(Code::BodyIncomplete, "the connection ended first");
                return Err(error.with_body(Received {
                    bytes: bytes.freeze(),
                    share,
                }));
            }
            Err(_elapsed) => {
                let secs = limits.patience.body.as_secs_f32();
                let detail = format!("expected the whole body within {secs} s");
                return Err(Error::new(Code::BodyTimeout, detail));
            }
        };
        let length = bytes.len() + chunk.len();
        if length > pool.max_bytes {
            return Err(pool.too_large());
        }
        let began = Instant::now();
        let whole = pool.hold(&mut share, length, announced, wait).await?;
        wait = wait.saturating_sub(began.elapsed());
        bytes.reserve(whole - bytes.len());
        bytes.extend_from_slice(&chunk);
    }
    share.shrink(bytes.len());
    Ok(Received {
        bytes: bytes.freeze(),
        share,
    })
}

/// A documented body, and how it is read.
pub(super) trait FromBody {
    /// Where it is sent.
    const DOOR: Door;
    /// What it means.
    type Parsed;

    fn parse(body: &str) -> Result<Self::Parsed, Error>;
}

/// The body as text, parsed.
pub(super) fn parse<T: FromBody>(body: &[u8]) -> Result<T::Parsed, Error> {
    let text =
        std::str::from_utf8(body).map_err(|_| Error::new(Code::BodyMalformed, "expected UTF-8"))?;
    T::parse(text)
}

/// The same, beside everything else if it takes long. The body keeps its share of the memory until then,
/// whether somebody waits for it or not.
async fn parse_aside<T>(received: Received) -> Result<(Received, Result<T::Parsed, Error>), Error>
where
    T: FromBody,
    T::Parsed: Send + 'static,
{
    let length = received.bytes.len();
    let parse = move || {
        let parsed = parse::<T>(&received.bytes);
        (received, parsed)
    };
    if length <= LONG {
        return Ok(parse());
    }
    let parsed = tokio::task::spawn_blocking(parse).await;
    parsed.map_err(|_panicked| Error::new(Code::Internal, "the log says more"))
}

/// A JSON body, read whole and parsed. What was refused goes with the error, for whoever keeps it.
pub(super) async fn whole<T>(
    request: &Request,
    body: &mut RequestBody,
) -> Result<(Received, T::Parsed), Error>
where
    T: FromBody,
    T::Parsed: Send + 'static,
{
    let received = receive(request, body, T::DOOR).await?;
    let is_json = request
        .content_type()
        .is_some_and(Json::<Any<Value>>::check_content_type);
    let (received, parsed) = if is_json {
        parse_aside::<T>(received).await?
    } else {
        let detail = "Content-Type: expected application/json";
        (received, Err(Error::new(Code::NotJson, detail)))
    };
    match parsed {
        Ok(parsed) => Ok((received, parsed)),
        Err(error) => Err(error.with_body(received)),
    }
}

/// A JSON body, read whole and parsed. Its share of the memory is held with it, so until the
/// answer.
#[derive(Debug)]
pub(super) struct JsonBody<T: FromBody> {
    pub(super) parsed: T::Parsed,
    /// When it was whole: the moment that orders it among others.
    pub(super) received_at: OffsetDateTime,
    /// See [`operation_id`].
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
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: T::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let (received, parsed) = whole::<T>(request, body).await?;
        Ok(Self {
            parsed,
            received_at: OffsetDateTime::now_utc(),
            operation_id: operation_id::text_of(request).map(str::to_owned),
            _share: received.share,
        })
    }
}

/// A body that is not looked at: read to its end, so that the connection can be used again, and
/// not kept. One that does not come to an end is no reason for an error.
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

/// Shows a body to `look` as it comes, and keeps nothing of it. What is too long or too late is not waited
/// for.
pub(super) async fn pass_through(
    request: &Request,
    body: &mut RequestBody,
    mut look: impl FnMut(&[u8]),
) {
    if let Some(received) = Held::take_from(request) {
        return look(&received.bytes);
    }
    let limits = request.extensions().get::<Arc<BodyLimits>>();
    let (Some(limits), Ok(body)) = (limits, body.take()) else {
        return;
    };
    let deadline = Instant::now() + limits.patience.body;
    let mut left = limits.at(Door::Callback).max_bytes;
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    while let Ok(Some(Ok(chunk))) = timeout_at(deadline, chunks.next()).await
        && chunk.len() <= left
    {
        left -= chunk.len();
        look(&chunk);
    }
}
