//! Memory for request bodies and for answers to reads. Requests share it.
//!
//! A request that waits for memory must not hold any: requests that each wait for the rest of their
//! share would wait for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::http::error::{Code, Error, Side};
use crate::http::{BodySettings, HttpTimeouts};

/// Limits of bodies: of each, and of all together. Extractors get it as request data.
#[derive(Debug)]
pub(crate) struct BodyLimits {
    callbacks: BodyMemory,
    reads: BodyMemory,
    pub(crate) timeouts: HttpTimeouts,
}

/// Memory for the bodies of callbacks, or of reads.
#[derive(Debug)]
pub(crate) struct BodyMemory {
    pub(crate) max_bytes: usize,
    /// Name of the setting of `max_bytes`, for an error.
    setting: &'static str,
    /// Memory for bodies of at most [`MAX_SHORT_BYTES`], like nearly all callbacks. They never wait
    /// for longer ones.
    short: Memory,
    /// Memory for bodies that announce at most [`MAX_SMALL_BYTES`].
    small: Memory,
    /// Memory for all other bodies.
    large: Memory,
}

/// Limit of a short body. A thousand that never end leave room for others.
const MAX_SHORT_BYTES: usize = 4 << 10;
/// Limit of a small body, by its announced length. Up to this limit a large body counts as it
/// arrives, so that senders who announce much and send little block nobody. Beyond it the announced
/// length, or the allowed one, counts at once.
const MAX_SMALL_BYTES: usize = 64 << 10;
/// Limit of a small answer.
const MAX_SMALL_ANSWER_BYTES: usize = 256 << 10;
/// Limit of the body of a read. A thousand pairs of the longest ids have 2 MiB.
const MAX_READ_BYTES: usize = 4 << 20;

impl BodyLimits {
    /// Reads get a quarter of the memory, so that they cannot block callbacks.
    pub(crate) fn new(settings: BodySettings, timeouts: HttpTimeouts) -> Self {
        let (max_bytes, max_memory) = (settings.max_bytes, settings.max_memory);
        let of_reads = max_memory / 4;
        Self {
            callbacks: BodyMemory::new(max_bytes, " (MAX_BODY_BYTES)", max_memory - of_reads),
            reads: BodyMemory::new(max_bytes.min(MAX_READ_BYTES), "", of_reads),
            timeouts,
        }
    }

    pub(crate) fn of_side(&self, side: Side) -> &BodyMemory {
        match side {
            Side::Callback => &self.callbacks,
            Side::Read | Side::Any => &self.reads,
        }
    }

    /// Bytes that bodies hold now.
    pub(crate) fn in_use(&self) -> usize {
        let pools = [&self.callbacks, &self.reads];
        let memories = pools
            .iter()
            .flat_map(|pool| [&pool.short, &pool.small, &pool.large]);
        memories.map(Memory::in_use).sum()
    }
}

impl BodyMemory {
    fn new(max_bytes: usize, setting: &'static str, memory: u32) -> Self {
        let part = memory / 8;
        let large = memory - 2 * part;
        Self {
            // A larger body could never get its memory.
            max_bytes: max_bytes.min(large as usize),
            setting,
            short: Memory::new(part, BODIES),
            small: Memory::new(part, BODIES),
            large: Memory::new(large, BODIES),
        }
    }

    /// Grows `share` to `length` bytes of a body with an `announced` length. Returns the length that
    /// it suffices for.
    pub(crate) async fn reserve(
        &self,
        share: &mut BodyShare,
        length: usize,
        announced: Option<usize>,
        wait: Duration,
    ) -> Result<usize, Error> {
        let deadline = Instant::now() + wait;
        let fits =
            |bytes: usize, limit: usize, memory: &Memory| bytes <= limit.min(memory.total as usize);
        let whole = announced.unwrap_or(length).max(length);
        if fits(whole, MAX_SHORT_BYTES, &self.short) {
            share.small.grow(whole, &self.short, deadline).await?;
            return Ok(whole);
        }
        if announced.is_some() && fits(whole, MAX_SMALL_BYTES, &self.small) {
            share.small.grow(whole, &self.small, deadline).await?;
            return Ok(whole);
        }
        let whole = match length <= MAX_SMALL_BYTES {
            true => length,
            false => announced.unwrap_or(self.max_bytes).max(length),
        };
        share.large.grow(whole, &self.large, deadline).await?;
        share.small = Share::default();
        Ok(whole)
    }

    pub(crate) fn too_large(&self) -> Error {
        let (limit, setting) = (self.max_bytes, self.setting);
        let detail = format!("expected at most {limit} bytes{setting}");
        Error::new(Code::BodyTooLarge, detail)
    }
}

/// Memory for answers to reads.
#[derive(Debug)]
pub(crate) struct AnswerMemory {
    /// Memory for small answers. They never wait for large ones.
    small: Memory,
    large: Memory,
    timeout: Duration,
}

impl AnswerMemory {
    pub(crate) fn new(bytes: u32, timeouts: HttpTimeouts) -> Self {
        let small = bytes / 4;
        Self {
            small: Memory::new(small, ANSWERS),
            large: Memory::new(bytes - small, ANSWERS),
            timeout: timeouts.memory,
        }
    }

    /// Bytes that answers hold now.
    pub(crate) fn in_use(&self) -> usize {
        self.small.in_use() + self.large.in_use()
    }

    /// Deadline of a wait for memory that starts now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Waits for a share of `bytes`. An answer that needs more than all memory gets all of it. The
    /// caller must hold no other share, and no rows.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        bytes: usize,
        deadline: Instant,
    ) -> Result<AnswerShare, Error> {
        let is_small = self.is_small(bytes);
        let mut share = Share::default();
        let (memory, bytes) = self.part(is_small, bytes);
        share.grow(bytes, memory, deadline).await?;
        Ok(AnswerShare {
            memory: Arc::clone(self),
            is_small,
            share,
        })
    }

    /// The memory for small answers or the other, and the part of `bytes` that it has at all.
    fn part(&self, is_small: bool, bytes: usize) -> (&Memory, usize) {
        match is_small {
            true => (&self.small, bytes),
            false => (&self.large, bytes.min(self.large.total as usize)),
        }
    }

    fn is_small(&self, bytes: usize) -> bool {
        bytes <= MAX_SMALL_ANSWER_BYTES.min(self.small.total as usize)
    }
}

/// A share of the memory for answers, released on drop.
#[derive(Debug)]
pub(crate) struct AnswerShare {
    memory: Arc<AnswerMemory>,
    /// True for a share of the memory for small answers.
    is_small: bool,
    share: Share,
}

impl AnswerShare {
    /// Releases everything beyond `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.share.shrink(bytes);
    }

    /// Grows to at least `bytes`. Fails if so much is not free now.
    pub(crate) fn grow_now(&mut self, bytes: usize) -> Result<(), Error> {
        let is_small = self.is_small && self.memory.is_small(bytes);
        let (memory, bytes) = self.memory.part(is_small, bytes);
        if self.is_small == is_small {
            return self.share.grow_now(bytes, memory);
        }
        let mut share = Share::default();
        share.grow_now(bytes, memory)?;
        (self.is_small, self.share) = (is_small, share);
        Ok(())
    }
}

/// Details of the error [`Code::Busy`].
pub(crate) const BODIES: &str = "too many bodies at a time; try again in a moment";
pub(crate) const ANSWERS: &str = "too many answers at a time; try again in a moment";

/// A number of bytes that requests share.
#[derive(Debug)]
struct Memory {
    /// Has one permit per byte.
    free: Arc<Semaphore>,
    total: u32,
    /// Detail of the error if it does not suffice.
    busy: &'static str,
}

impl Memory {
    fn new(bytes: u32, busy: &'static str) -> Self {
        Self {
            free: Arc::new(Semaphore::new(bytes as usize)),
            total: bytes,
            busy,
        }
    }

    fn busy(&self) -> Error {
        Error::new(Code::Busy, self.busy)
    }

    fn in_use(&self) -> usize {
        (self.total as usize).saturating_sub(self.free.available_permits())
    }
}

/// The share of one body, released on drop.
#[derive(Debug, Default)]
pub(crate) struct BodyShare {
    /// Share of the memory for short or small bodies. A body without an announced length keeps it
    /// until it gets the other one.
    small: Share,
    large: Share,
}

impl BodyShare {
    /// Releases everything that a complete body of `bytes` does not need.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.large.shrink(bytes);
    }
}

/// Bytes with their share of the memory.
pub(crate) struct WithShare<B, S> {
    pub(crate) bytes: B,
    pub(crate) share: S,
}

impl<B: AsRef<[u8]>, S> AsRef<[u8]> for WithShare<B, S> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// A share of a [`Memory`], released on drop.
#[derive(Debug, Default)]
struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Releases everything beyond `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        if let Some(share) = &mut self.0 {
            drop(share.split(more));
        }
    }

    /// Grows to `bytes`. Waits until `deadline` for others to release theirs.
    async fn grow(
        &mut self,
        bytes: usize,
        memory: &Memory,
        deadline: Instant,
    ) -> Result<(), Error> {
        if self.grow_now(bytes, memory).is_ok() {
            return Ok(());
        }
        let free = Arc::clone(&memory.free).acquire_many_owned(self.more(bytes, memory)?);
        // The semaphore is never closed.
        let Ok(Ok(taken)) = timeout_at(deadline, free).await else {
            return Err(memory.busy());
        };
        self.add(taken);
        Ok(())
    }

    /// Grows to `bytes`. Fails if so much is not free now.
    fn grow_now(&mut self, bytes: usize, memory: &Memory) -> Result<(), Error> {
        let more = self.more(bytes, memory)?;
        if more > 0 {
            let taken = Arc::clone(&memory.free).try_acquire_many_owned(more);
            self.add(taken.map_err(|_| memory.busy())?);
        }
        Ok(())
    }

    /// Bytes that are missing for a size of `bytes`.
    fn more(&self, bytes: usize, memory: &Memory) -> Result<u32, Error> {
        let more = u32::try_from(bytes.saturating_sub(self.bytes()));
        more.map_err(|_| memory.busy())
    }

    fn add(&mut self, taken: OwnedSemaphorePermit) {
        match &mut self.0 {
            Some(share) => share.merge(taken),
            None => self.0 = Some(taken),
        }
    }
}
