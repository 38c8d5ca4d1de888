//! A JSON body on its way in: read whole within the limits, its type checked, then parsed by hand.
//!
//! By hand rather than by derived parsers: an event that is refused is lost, so the error has to
//! say which field and what was expected, and may neither quote the value nor name a Rust type. The
//! `Object` derives describe the same fields to the OpenAPI document; a test of each operation
//! holds the two together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::{Code, Error};
use crate::config::{BodySettings, Patience};

/// What bodies may take, each and all together; handed to the extractors as request data.
#[derive(Debug)]
pub(super) struct BodyLimits {
    max_bytes: usize,
    /// One permit a byte.
    memory: Arc<Semaphore>,
    max_memory: u32,
    patience: Patience,
}

impl BodyLimits {
    pub(super) fn new(settings: BodySettings, patience: Patience) -> Self {
        Self {
            max_bytes: settings.max_bytes,
            memory: Arc::new(Semaphore::new(settings.max_memory as usize)),
            max_memory: settings.max_memory,
            patience,
        }
    }

    /// What bodies take now, in bytes.
    pub(super) fn in_use(&self) -> usize {
        (self.max_memory as usize).saturating_sub(self.memory.available_permits())
    }

    fn too_large(&self) -> Error {
        let limit = self.max_bytes;
        Error::new(
            Code::BodyTooLarge,
            format!("expected at most {limit} bytes (MAX_BODY_BYTES)"),
        )
    }
}

/// Up to here a body counts as it arrives, so that those who announce much and send little hold up
/// nobody. Beyond it the whole of what is announced is counted at once: many large bodies of which
/// each waits for the rest of its share would all wait for ever.
const SMALL: usize = 64 << 10;

/// A body, and its share of the memory for as long as it is there.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    share: Share,
}

impl fmt::Debug for Received {
    /// Never what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// A share of the memory for bodies, given back on drop.
#[derive(Debug, Default)]
pub(super) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Makes it `bytes` large, waiting for others to give back theirs.
    async fn grow(
        &mut self,
        bytes: usize,
        memory: &Arc<Semaphore>,
        wait: Duration,
    ) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes());
        if more == 0 {
            return Ok(());
        }
        let busy = || {
            Error::new(
                Code::Busy,
                "too many bodies at a time; try again in a moment",
            )
        };
        let more = u32::try_from(more).map_err(|_| busy())?;
        let taken = match Arc::clone(memory).try_acquire_many_owned(more) {
            Ok(taken) => taken,
            Err(_) => {
                let taken = Arc::clone(memory).acquire_many_owned(more);
                let taken = tokio::time::timeout(wait, taken).await;
                // The semaphore is never closed.
                taken.map_err(|_elapsed| busy())?.map_err(|_| busy())?
            }
        };
        match &mut self.0 {
            Some(share) => share.merge(taken),
            None => self.0 = Some(taken),
        }
        Ok(())
    }
}

/// Reads a body whole. What has arrived of one that stops goes with the error.
async fn receive(request: &Request, body: &mut RequestBody) -> Result<Received, Error> {
    let limits = request.extensions().get::<Arc<BodyLimits>>();
    let limits = limits.ok_or_else(|| Error::new(Code::Internal, "the log says more"))?;
    let announced = request
        .header("content-length")
        .and_then(|length| length.parse::<u64>().ok());
    let announced = match announced.map(usize::try_from) {
        Some(Ok(length)) if length <= limits.max_bytes => Some(length),
        Some(_) => return Err(limits.too_large()),
        None => None,
    };
    let deadline = Instant::now() + limits.patience.body;
    let body = body.take().map_err(poem::Error::from)?;
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    let mut bytes = BytesMut::new();
    let mut share = Share::default();
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
        if length > limits.max_bytes {
            return Err(limits.too_large());
        }
        let (share_of, announced) = match announced {
            Some(announced) if length > SMALL => (announced.max(length), announced),
            _ => (length, 0),
        };
        share
            .grow(share_of, &limits.memory, limits.patience.memory)
            .await?;
        bytes.reserve(announced.saturating_sub(bytes.len()).max(chunk.len()));
        bytes.extend_from_slice(&chunk);
    }
    Ok(Received {
        bytes: bytes.freeze(),
        share,
    })
}

/// A documented body, and how it is read.
pub(super) trait FromBody {
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

/// A JSON body, read whole and parsed. Its share of the memory is held with it, so until the
/// answer. What was refused goes with the error, for whoever keeps it.
#[derive(Debug)]
pub(super) struct JsonBody<T: FromBody> {
    pub(super) parsed: T::Parsed,
    _share: Share,
}

impl<'a, T: Type + FromBody> ApiExtractor<'a> for JsonBody<T>
where
    T::Parsed: Send,
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
        let received = receive(request, body).await?;
        let is_json = request
            .content_type()
            .is_some_and(Json::<T>::check_content_type);
        let parsed = if is_json {
            parse::<T>(&received.bytes)
        } else {
            let detail = "Content-Type: expected application/json";
            Err(Error::new(Code::NotJson, detail))
        };
        match parsed {
            Ok(parsed) => Ok(Self {
                parsed,
                _share: received.share,
            }),
            Err(error) => Err(error.with_body(received).into()),
        }
    }
}
