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

use super::error::{Code, Door, Error};
use crate::config::{BodySettings, Patience};

/// What bodies may take, each and all together; handed to the extractors as request data.
#[derive(Debug)]
pub(super) struct BodyLimits {
    callbacks: Pool,
    reads: Pool,
    patience: Patience,
}

/// The memory for the bodies at one door.
#[derive(Debug)]
struct Pool {
    max_bytes: usize,
    /// The setting that says so.
    setting: &'static str,
    /// For the beginning of every body, so that small ones never queue behind large ones.
    small: Memory,
    /// For the rest of the large ones.
    large: Memory,
}

/// Up to here a body is small. It counts as it arrives, so that those who announce much and send
/// little hold up nobody. Beyond it the whole of what is announced is counted at once: many large
/// bodies of which each waits for the rest of its share would all wait for ever.
const SMALL: usize = 64 << 10;

/// Largest body of a read: a thousand pairs of the longest ids have 2 MiB.
const MAX_READ_BYTES: usize = 4 << 20;

impl BodyLimits {
    /// Reads have a quarter of the memory: whoever may ask must not be able to keep callbacks out.
    pub(super) fn new(settings: BodySettings, patience: Patience) -> Self {
        let BodySettings {
            max_bytes,
            max_memory,
        } = settings;
        let of_reads = max_memory / 4;
        Self {
            callbacks: Pool::new(max_bytes, " (MAX_BODY_BYTES)", max_memory - of_reads),
            reads: Pool::new(max_bytes.min(MAX_READ_BYTES), "", of_reads),
            patience,
        }
    }

    fn at(&self, door: Door) -> &Pool {
        match door {
            Door::Callback => &self.callbacks,
            Door::Read | Door::Any => &self.reads,
        }
    }

    /// What bodies take now, in bytes.
    pub(super) fn in_use(&self) -> usize {
        let pools = [&self.callbacks, &self.reads];
        let memories = pools.iter().flat_map(|pool| [&pool.small, &pool.large]);
        memories.map(Memory::in_use).sum()
    }
}

impl Pool {
    fn new(max_bytes: usize, setting: &'static str, memory: u32) -> Self {
        let small = memory / 4;
        let large = memory - small;
        Self {
            // One that can be held, however little the memory.
            max_bytes: max_bytes.min(large as usize),
            setting,
            small: Memory::new(small),
            large: Memory::new(large),
        }
    }

    fn too_large(&self) -> Error {
        let (limit, setting) = (self.max_bytes, self.setting);
        let detail = format!("expected at most {limit} bytes{setting}");
        Error::new(Code::BodyTooLarge, detail)
    }
}

/// So much memory, to be shared.
#[derive(Debug)]
struct Memory {
    /// One permit a byte.
    free: Arc<Semaphore>,
    all: u32,
}

impl Memory {
    fn new(bytes: u32) -> Self {
        Self {
            free: Arc::new(Semaphore::new(bytes as usize)),
            all: bytes,
        }
    }

    fn in_use(&self) -> usize {
        (self.all as usize).saturating_sub(self.free.available_permits())
    }
}

/// A body, and its share of the memory for as long as it is there.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    shares: Shares,
}

impl fmt::Debug for Received {
    /// Never what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// Shares of a pool's two memories, given back on drop.
#[derive(Debug, Default)]
struct Shares {
    small: Share,
    large: Share,
}

/// A share of a memory, given back on drop.
#[derive(Debug, Default)]
struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Makes it `bytes` large, waiting for others to give back theirs.
    async fn grow(&mut self, bytes: usize, memory: &Memory, wait: Duration) -> Result<(), Error> {
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
        let free = Arc::clone(&memory.free);
        let taken = match Arc::clone(&free).try_acquire_many_owned(more) {
            Ok(taken) => taken,
            Err(_) => {
                let taken = tokio::time::timeout(wait, free.acquire_many_owned(more)).await;
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
async fn receive(request: &Request, body: &mut RequestBody, door: Door) -> Result<Received, Error> {
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
    let mut shares = Shares::default();
    loop {
        let chunk = match timeout_at(deadline, chunks.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                let error = Error::new(Code::BodyIncomplete, "the connection ended first");
                return Err(error.with_body(Received {
                    bytes: bytes.freeze(),
                    shares,
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
        let wait = limits.patience.memory;
        let small = length.min(SMALL);
        shares.small.grow(small, &pool.small, wait).await?;
        let whole = match announced {
            Some(announced) if length > SMALL => announced.max(length),
            _ => length,
        };
        let large = whole.saturating_sub(SMALL);
        shares.large.grow(large, &pool.large, wait).await?;
        bytes.reserve(whole - bytes.len());
        bytes.extend_from_slice(&chunk);
    }
    Ok(Received {
        bytes: bytes.freeze(),
        shares,
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

/// A JSON body, read whole and parsed. Its share of the memory is held with it, so until the
/// answer. What was refused goes with the error, for whoever keeps it.
#[derive(Debug)]
pub(super) struct JsonBody<T: FromBody> {
    pub(super) parsed: T::Parsed,
    _shares: Shares,
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
        let received = receive(request, body, T::DOOR).await?;
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
                _shares: received.shares,
            }),
            Err(error) => Err(error.with_body(received).into()),
        }
    }
}
