//! The memory for request bodies, so much for each door, and that for answers to reads: shared by all
//! who send or ask.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::{Code, Door, Error};
use super::settings::{BodySettings, HttpTimeouts};

/// What bodies may take, each and all together; handed to the extractors as request data.
#[derive(Debug)]
pub(super) struct BodyLimits {
    callbacks: Pool,
    reads: Pool,
    pub(super) patience: HttpTimeouts,
}

/// The memory for the bodies at one door.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) max_bytes: usize,
    /// The setting that says so, for an error.
    setting: &'static str,
    /// For bodies of [`SHORT`] bytes at most, as nearly all callbacks are. None queues behind a longer
    /// one.
    short: Memory,
    /// For those that announce [`SMALL`] bytes at most.
    small: Memory,
    /// For all others.
    large: Memory,
}

/// Up to here a body is short. A thousand that do not come to an end leave room for others.
const SHORT: usize = 4 << 10;
/// Up to here a body is small by what it announces. A large one counts as it arrives up to here, so
/// that those who announce much and send little hold up nobody. Beyond it the whole of what is
/// announced is counted at once, or of what is allowed: many large bodies of which each waits for the
/// rest of its share would all wait for ever.
const SMALL: usize = 64 << 10;
/// Up to here an answer is small.
const SMALL_ANSWER: usize = 256 << 10;

/// Largest body of a read: a thousand pairs of the longest ids have 2 MiB.
const MAX_READ_BYTES: usize = 4 << 20;

impl BodyLimits {
    /// Reads have a quarter of the memory: whoever may ask must not be able to keep callbacks out.
    pub(super) fn new(settings: BodySettings, patience: HttpTimeouts) -> Self {
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

    pub(super) fn at(&self, door: Door) -> &Pool {
        match door {
            Door::Callback => &self.callbacks,
            Door::Read | Door::Any => &self.reads,
        }
    }

    /// What bodies take now, in bytes.
    pub(super) fn in_use(&self) -> usize {
        let pools = [&self.callbacks, &self.reads];
        let memories = pools
            .iter()
            .flat_map(|pool| [&pool.short, &pool.small, &pool.large]);
        memories.map(Memory::in_use).sum()
    }
}

impl Pool {
    fn new(max_bytes: usize, setting: &'static str, memory: u32) -> Self {
        let part = memory / 8;
        let large = memory - 2 * part;
        Self {
            // One that can be held, however little the memory.
            max_bytes: max_bytes.min(large as usize),
            setting,
            short: Memory::new(part, BODIES),
            small: Memory::new(part, BODIES),
            large: Memory::new(large, BODIES),
        }
    }

    /// Makes `share` large enough for `length` bytes of a body, of which `announced` are to come in
    /// all. Returns how many it is enough for.
    pub(super) async fn hold(
        &self,
        share: &mut BodyShare,
        length: usize,
        announced: Option<usize>,
        wait: Duration,
    ) -> Result<usize, Error> {
        let deadline = Instant::now() + wait;
        let fits =
            |bytes: usize, most: usize, memory: &Memory| bytes <= most.min(memory.all as usize);
        let whole = announced.unwrap_or(length).max(length);
        if fits(whole, SHORT, &self.short) {
            share.small.grow(whole, &self.short, deadline).await?;
            return Ok(whole);
        }
        if announced.is_some() && fits(whole, SMALL, &self.small) {
            share.small.grow(whole, &self.small, deadline).await?;
            return Ok(whole);
        }
        let whole = match length <= SMALL {
            true => length,
            false => announced.unwrap_or(self.max_bytes).max(length),
        };
        share.large.grow(whole, &self.large, deadline).await?;
        share.small = Share::default();
        Ok(whole)
    }

    pub(super) fn too_large(&self) -> Error {
        let (limit, setting) = (self.max_bytes, self.setting);
        let detail = format!("expected at most {limit} bytes{setting}");
        Error::new(Code::BodyTooLarge, detail)
    }
}

/// The memory for answers to reads.
#[derive(Debug)]
pub(super) struct AnswerMemory {
    /// For small answers alone, so that they never queue behind large ones.
    small: Memory,
    large: Memory,
    wait: Duration,
}

impl AnswerMemory {
    pub(super) fn new(bytes: u32, patience: HttpTimeouts) -> Self {
        let small = bytes / 4;
        Self {
            small: Memory::new(small, ANSWERS),
            large: Memory::new(bytes - small, ANSWERS),
            wait: patience.memory,
        }
    }

    /// What answers take now, in bytes.
    pub(super) fn in_use(&self) -> usize {
        self.small.in_use() + self.large.in_use()
    }

    /// Until when is waited for memory that is asked for now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.wait
    }

    /// A share of so many bytes, as soon as others have given back theirs. What needs more than all the
    /// memory is alone with it. Whoever waits has no other share, and has read nothing yet: many of
    /// whom each waits for the rest of its share would all wait for ever.
    pub(super) async fn hold(
        self: &Arc<Self>,
        bytes: usize,
        deadline: Instant,
    ) -> Result<AnswerShare, Error> {
        let is_small = self.is_small(bytes);
        let mut share = AnswerShare {
            memory: Arc::clone(self),
            is_small,
            share: Share::default(),
        };
        let (bytes, memory) = match is_small {
            true => (bytes, &self.small),
            false => (bytes.min(self.large.all as usize), &self.large),
        };
        share.share.grow(bytes, memory, deadline).await?;
        Ok(share)
    }

    fn is_small(&self, bytes: usize) -> bool {
        bytes <= SMALL_ANSWER.min(self.small.all as usize)
    }
}

/// A share of the memory for answers, given back on drop.
#[derive(Debug)]
pub(super) struct AnswerShare {
    memory: Arc<AnswerMemory>,
    /// Whether it is one of the memory for small answers.
    is_small: bool,
    share: Share,
}

impl AnswerShare {
    /// Gives back what it has beyond `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.share.shrink(bytes);
    }

    /// Makes it so large, where there is so much at this moment.
    pub(super) fn fit(&mut self, bytes: usize) -> Result<(), Error> {
        self.share.shrink(bytes);
        self.grow_now(bytes)
    }

    /// Makes it so large at least, where there is so much at this moment.
    pub(super) fn grow_now(&mut self, bytes: usize) -> Result<(), Error> {
        let memory = &*self.memory;
        if self.is_small && !memory.is_small(bytes) {
            let mut share = Share::default();
            share.grow_now(bytes.min(memory.large.all as usize), &memory.large)?;
            (self.is_small, self.share) = (false, share);
            return Ok(());
        }
        match self.is_small {
            true => self.share.grow_now(bytes, &memory.small),
            false => {
                let bytes = bytes.min(memory.large.all as usize);
                self.share.grow_now(bytes, &memory.large)
            }
        }
    }
}

/// What there is too much of, for an error.
pub(super) const BODIES: &str = "too many bodies at a time; try again in a moment";
pub(super) const ANSWERS: &str = "too many answers at a time; try again in a moment";

/// So much memory, to be shared.
#[derive(Debug)]
struct Memory {
    /// One permit a byte.
    free: Arc<Semaphore>,
    all: u32,
    /// What is said where it is not enough.
    busy: &'static str,
}

impl Memory {
    fn new(bytes: u32, busy: &'static str) -> Self {
        Self {
            free: Arc::new(Semaphore::new(bytes as usize)),
            all: bytes,
            busy,
        }
    }

    fn busy(&self) -> Error {
        Error::new(Code::Busy, self.busy)
    }

    fn in_use(&self) -> usize {
        (self.all as usize).saturating_sub(self.free.available_permits())
    }
}

/// A body's share of a pool, given back on drop.
#[derive(Debug, Default)]
pub(super) struct BodyShare {
    /// Of the memory for short or small ones. One that announces nothing and turns out to be longer has it
    /// until it has the other.
    small: Share,
    large: Share,
}

impl BodyShare {
    /// Gives back what a whole body of so many bytes does not need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.large.shrink(bytes);
    }
}

/// A share of a memory, given back on drop.
#[derive(Debug, Default)]
struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Gives back what it has beyond `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        if let Some(share) = &mut self.0 {
            drop(share.split(more));
        }
    }

    /// Makes it `bytes` large, waiting for others to give back theirs.
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
        let taken = timeout_at(deadline, free).await;
        // The semaphore is never closed.
        self.add(
            taken
                .map_err(|_elapsed| memory.busy())?
                .map_err(|_| memory.busy())?,
        );
        Ok(())
    }

    /// The same where there is so much at this moment.
    fn grow_now(&mut self, bytes: usize, memory: &Memory) -> Result<(), Error> {
        let more = self.more(bytes, memory)?;
        if more > 0 {
            let taken = Arc::clone(&memory.free).try_acquire_many_owned(more);
            self.add(taken.map_err(|_| memory.busy())?);
        }
        Ok(())
    }

    /// How much it has to become larger.
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
