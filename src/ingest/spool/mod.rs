//! Where changes wait on disk while the database is away.
//!
//! While it is open, nothing is written to the database but from it, in its order; `drain` does
//! that. It opens with the first write that fails, and closes when nothing is left in it.

mod bounds;
mod counts;
mod dir;
mod entrance;
mod file;
mod lock;
mod record;
mod report;
mod row;
mod salvage;
#[cfg(test)]
mod testing;
#[cfg(test)]
pub(super) use testing::TempDir;
mod verify;
mod wal;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};

use counts::Counts;
use dir::{Opened, SpoolDir};
use file::SpoolFile;
use verify::Unsound;

pub use counts::SpoolState;
pub use dir::Error as OpenError;
pub use file::Refused;
pub(super) use file::{Attempt, Spooled};
pub(super) use record::{Entry, read_change, write_change};

/// The spool of this process. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

struct Shared {
    id: i64,
    /// Used where blocking is allowed only.
    file: Mutex<SpoolFile>,
    /// Held by whoever puts something in, and by whoever closes it.
    entrance: Arc<AsyncMutex<()>>,
    is_open: AtomicBool,
    /// Wakes the drain.
    opened: Notify,
    counts: Counts,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("id", &self.id).finish()
    }
}

impl Spool {
    /// The spool in a folder, made if it is not there. What is damaged is set aside, reported, and
    /// read as far as it can be. It is open: nothing is written directly before what is in it, and
    /// before the sessions of an earlier process are over. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be used, or is in use by another process.
    pub fn in_folder(dir: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        let opened = SpoolDir::open(dir, max_bytes)?;
        Ok(Self::of(dir, opened))
    }

    /// The same, but where the folder cannot be used and nothing waits in it: there is no spool then
    /// until it can be, and callbacks need the database. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be used and something may wait in it, or it is in use by another process.
    pub fn in_folder_once_usable(dir: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        let (locked, error) = match SpoolDir::lock(dir) {
            Ok(locked) => match locked.open_all(max_bytes, None) {
                Ok(mut opened) => {
                    opened.file.keep(locked);
                    return Ok(Self::of(dir, opened));
                }
                Err(error) => (Some(locked), error),
            },
            Err(error) => (None, error),
        };
        if !(error.may_pass() && dir::holds_nothing(dir)) {
            return Err(error);
        }
        let id = lock::id_of_unusable(dir).map_err(dir::sqlite(dir))?;
        let file = SpoolFile::absent(dir, locked, max_bytes, id, &error);
        let file = file.map_err(dir::sqlite(dir))?;
        let error = error.to_string();
        tracing::warn!(
            error,
            "the spool cannot be used: callbacks are written to the database only, and refused while \
             it is away; the folder is tried again"
        );
        Ok(Self::new(file, id))
    }

    fn of(dir: &Path, opened: Opened) -> Self {
        opened.report.tell(dir);
        let spool = Self::new(opened.file, opened.id);
        let entries = spool.state().waiting;
        if entries > 0 {
            let folder = dir.display();
            tracing::info!(%folder, entries, "an earlier process has left entries in the spool");
        }
        spool
    }

    fn new(file: SpoolFile, id: i64) -> Self {
        let counts = Counts::default();
        counts.follow(&file);
        Self(Arc::new(Shared {
            id,
            file: Mutex::new(file),
            entrance: Arc::default(),
            is_open: AtomicBool::new(true),
            opened: Notify::new(),
            counts,
        }))
    }

    /// Its number, in the database too.
    pub(super) fn id(&self) -> i64 {
        self.0.id
    }

    pub(super) fn is_open(&self) -> bool {
        // With Acquire: whoever sees it closed sees what was written before.
        self.0.is_open.load(Ordering::Acquire)
    }

    /// From now on nothing is written directly.
    pub(super) fn open(&self) {
        self.0.is_open.store(true, Ordering::Release);
        self.0.opened.notify_one();
    }

    /// Waits until it is open.
    pub(super) async fn opened(&self) {
        while !self.is_open() {
            self.0.opened.notified().await;
        }
    }

    /// What is in it, and what was done with it.
    pub fn state(&self) -> SpoolState {
        self.0.counts.state(self.is_open())
    }

    /// The first that wait, in their order.
    pub(super) async fn first(&self, rows: usize, bytes: usize) -> Result<Vec<Spooled>, Broken> {
        self.with_file(move |file| file.first(rows, bytes)).await
    }

    /// Forgets what is in the database already, of which the last has this number.
    ///
    /// # Errors
    /// [`Broken::Foreign`] where that number was never given here: another folder has the same id,
    /// and what waits here may not be in.
    pub(super) async fn written_before(&self, position: i64) -> Result<(), Broken> {
        let is_ours = self.with_file(move |file| {
            if file.len() == 0 {
                // The clock may have been set back, and the file be a new one.
                file.go_on_from(position);
            }
            Ok(position <= file.last_seq())
        });
        if !is_ours.await? {
            return Err(Broken::Foreign);
        }
        self.delete_to(position).await
    }

    /// Forgets all up to a number, which are in the database.
    pub(super) async fn delete_to(&self, seq: i64) -> Result<(), Broken> {
        let deleted = self.with_file(move |file| Ok((file.delete_to(seq)?, file.has_room())));
        let (deleted, has_room) = deleted.await?;
        self.0.counts.went(deleted);
        if deleted > 0 && has_room {
            self.0.counts.has_room();
        }
        Ok(())
    }

    /// Counts one that the database does not take.
    pub(super) fn is_rejected(&self) {
        self.0.counts.is_rejected();
    }

    /// Lets nothing in for as long as it is held.
    pub(super) async fn hold(&self) -> Held {
        Held {
            spool: self.clone(),
            _entrance: Arc::clone(&self.0.entrance).lock_owned().await,
        }
    }

    /// Looks for a file again, where there is none; gives room back to the disk, where there is one.
    ///
    /// # Errors
    /// [`Broken::Anothers`] where there never will be one.
    pub(super) async fn renew(&self) -> Result<(), Broken> {
        let renewed = self.with_file(|file| {
            let was_absent = file.is_absent();
            // Whoever needs it is told why there is none.
            let _ = file.appear_now();
            file.shrink();
            let given_up = file.given_up().map(str::to_owned);
            Ok((was_absent && file.len() > 0, given_up))
        });
        match renewed.await {
            Ok((_, Some(why))) => Err(Broken::Anothers(why)),
            Ok((true, None)) => {
                self.open();
                Ok(())
            }
            // A panic of it is logged.
            Ok((false, None)) | Err(_) => Ok(()),
        }
    }

    /// Does something with the file. Where it turns out to be damaged, it is repaired, and whoever
    /// asked has to begin anew.
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SpoolFile) -> Result<T, Unsound> + Send + 'static,
    ) -> Result<T, Broken> {
        let shared = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut file = shared.file();
            let done = work(&mut file).map_err(|unsound| {
                if let Unsound::Unknown(..) = unsound {
                    shared.counts.is_blocked(true);
                }
                file.repair(&unsound);
                Broken::Unsound(unsound)
            });
            shared.counts.follow(&file);
            done
        });
        done.await.unwrap_or_else(|_panicked| Err(Broken::Panicked))
    }
}

/// What waits in the spool cannot be written as it is.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Its file could not be read. Where it is damaged, it is repaired if that can be done.
    #[error("the spool: {0}")]
    Unsound(Unsound),
    /// Numbers were written that were not given here.
    #[error(
        "the spool: the database has numbers that this folder has not given; is its spool.id that \
         of another one? (with spool.id deleted, what waits here is written, perhaps again)"
    )]
    Foreign,
    /// The folder could not be used at the start, and now holds a spool that nobody has read.
    #[error("{0}")]
    Anothers(String),
    /// A mistake of ours.
    #[error("the spool: the reader panicked")]
    Panicked,
}

/// The right to close the spool.
pub(super) struct Held {
    spool: Spool,
    _entrance: OwnedMutexGuard<()>,
}

impl Held {
    /// From now on changes are written directly. Nothing is left in it.
    pub(super) fn close(self) {
        self.spool.0.counts.has_room();
        self.spool.0.counts.is_blocked(false);
        self.spool.0.is_open.store(false, Ordering::Release);
    }
}

impl Shared {
    fn file(&self) -> MutexGuard<'_, SpoolFile> {
        // A transaction that a panic interrupted was rolled back.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
