//! The memory for request bodies, so much for each door, and that for answers to reads: shared by all
//! who send or ask.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Code, Door, Error};
use crate::config::{BodySettings, Patience};

/// What bodies may take, each and all together; handed to the extractors as request data.
#[derive(Debug)]
pub(super) struct BodyLimits {
    callbacks: Pool,
    reads: Pool,
    pub(super) patience: Patience,
}

/// The memory for the bodies at one door.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) max_bytes: usize,
    /// The setting that says so, for an error.
    setting: &'static str,
    /// For small bodies alone, so that they never queue behind large ones.
    small: Memory,
    /// For large ones.
    large: Memory,
}

/// Up to here a body is small by what it announces. A large one counts as it arrives up to here, so
/// that those who announce much and send little hold up nobody. Beyond it the whole of what is
/// announced is counted at once: many large bodies of which each waits for the rest of its share
/// would all wait for ever.
const SMALL: usize = 64 << 10;
/// Up to here a body is small that announces nothing. Less than the other: what it takes of the
/// memory for small ones is held while it waits for that of large ones.
const SMALL_UNANNOUNCED: usize = 8 << 10;

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

    pub(super) fn at(&self, door: Door) -> &Pool {
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
            small: Memory::new(small, BODIES),
            large: Memory::new(large, BODIES),
        }
    }

    /// Makes `shares` large enough for `length` bytes of a body, of which `announced` are to come in
    /// all. Returns how many they are enough for.
    pub(super) async fn hold(
        &self,
        shares: &mut Shares,
        length: usize,
        announced: Option<usize>,
        wait: Duration,
    ) -> Result<usize, Error> {
        let is_small = match announced {
            Some(announced) => announced <= SMALL,
            None => length <= SMALL_UNANNOUNCED,
        };
        if is_small {
            shares.small.grow(length, &self.small, wait).await?;
            return Ok(length);
        }
        let whole = match announced {
            Some(announced) if length > SMALL => announced.max(length),
            _ => length,
        };
        shares.large.grow(whole, &self.large, wait).await?;
        shares.small = Share::default();
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
    pub(super) fn new(bytes: u32, patience: Patience) -> Self {
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

    /// A share of so many bytes.
    pub(super) async fn hold(self: &Arc<Self>, bytes: usize) -> Result<AnswerShare, Error> {
        let mut share = AnswerShare {
            memory: Arc::clone(self),
            shares: Shares::default(),
        };
        share.resize(bytes).await?;
        Ok(share)
    }
}

/// A share of the memory for answers, given back on drop.
#[derive(Debug)]
pub(super) struct AnswerShare {
    memory: Arc<AnswerMemory>,
    /// One of them.
    shares: Shares,
}

impl AnswerShare {
    /// Makes it so large: at once where it becomes smaller, else as soon as others have given back
    /// theirs. What needs more than all the memory is alone with it.
    pub(super) async fn resize(&mut self, bytes: usize) -> Result<(), Error> {
        let AnswerMemory { small, large, wait } = &*self.memory;
        let Shares {
            small: of_small,
            large: of_large,
        } = &mut self.shares;
        if bytes <= SMALL.min(small.all as usize) && of_large.bytes() == 0 {
            of_small.shrink(bytes);
            return of_small.grow(bytes, small, *wait).await;
        }
        let bytes = bytes.min(large.all as usize);
        of_large.shrink(bytes);
        of_large.grow(bytes, large, *wait).await?;
        *of_small = Share::default();
        Ok(())
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

    fn in_use(&self) -> usize {
        (self.all as usize).saturating_sub(self.free.available_permits())
    }
}

/// Shares of a pool's two memories, given back on drop.
#[derive(Debug, Default)]
pub(super) struct Shares {
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

    /// Gives back what it has beyond `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        if let Some(share) = &mut self.0 {
            drop(share.split(more));
        }
    }

    /// Makes it `bytes` large, waiting for others to give back theirs.
    async fn grow(&mut self, bytes: usize, memory: &Memory, wait: Duration) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes());
        if more == 0 {
            return Ok(());
        }
        let busy = || Error::new(Code::Busy, memory.busy);
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
