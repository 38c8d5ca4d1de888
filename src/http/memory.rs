//! The memory for request bodies: so much for each door, shared by all who send.

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
            small: Memory::new(small),
            large: Memory::new(large),
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
