//! Where changes wait on disk while the database is away.
//!
//! While it is open, nothing is written to the database but from it, in its order; `drain` does
//! that. It opens with the first write that fails, and closes when nothing is left in it.

mod bounds;
mod counts;
mod dir;
mod file;
mod lock;
mod record;
mod report;
mod row;
mod salvage;
#[cfg(test)]
mod testing;
mod verify;
mod wal;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};

use super::Error;
use super::lane::{Left, Waiting, answer_all};
use crate::domain::Rejected;
use crate::store;
use counts::Counts;
use dir::SpoolDir;
use file::SpoolFile;
use record::EntryRef;
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
        opened.report.tell(dir);
        let spool = Self(Arc::new(Shared {
            id: opened.id,
            file: Mutex::new(opened.file),
            entrance: Arc::default(),
            is_open: AtomicBool::new(true),
            opened: Notify::new(),
            counts: Counts::default(),
        }));
        spool.0.counts.follow(&spool.0.file());
        let entries = spool.state().waiting;
        if entries > 0 {
            let folder = dir.display();
            tracing::info!(%folder, entries, "an earlier process has left entries in the spool");
        }
        Ok(spool)
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

    /// Takes changes that could not be written because of `error`, opens, and answers all.
    pub(super) async fn append(&self, changes: Vec<Left>, error: &store::Error) {
        let _entrance = self.0.entrance.lock().await;
        if !self.is_open() {
            let error = error.to_string();
            tracing::warn!(error, "the database is away: callbacks go to the spool");
        }
        self.put_in(changes).await;
        // Also where it took nothing: what was given up on may be written yet, and before it is
        // over nothing else may be.
        self.open();
    }

    /// Takes changes and answers them, if it is open; else they come back.
    pub(super) async fn append_if_open(&self, changes: Vec<Left>) -> Result<(), Vec<Left>> {
        let _entrance = self.0.entrance.lock().await;
        if !self.is_open() {
            return Err(changes);
        }
        self.put_in(changes).await;
        Ok(())
    }

    async fn put_in(&self, changes: Vec<Left>) {
        let shared = Arc::clone(&self.0);
        let taken = tokio::task::spawn_blocking(move || {
            let mut file = shared.file();
            let mut parts = Vec::new();
            append_what_fits(&mut file, changes, &mut parts);
            shared.counts.follow(&file);
            parts
        });
        // Where it panicked they are gone, and each says so itself.
        for (changes, taken) in taken.await.unwrap_or_default() {
            self.0.counts.came(changes.len(), &taken);
            // Marks have room where others do not, so they do not say that there is some.
            let are_marks = changes.iter().all(|(change, _)| as_entry(change).is_mark());
            match &taken {
                Ok(()) if are_marks => {}
                Ok(()) => self.0.counts.has_room(),
                Err(refused) => self.0.counts.refuses(refused),
            }
            answer_all(changes, &taken.map_err(refusal));
        }
    }

    /// Takes a callback that could not be understood.
    pub(super) async fn append_rejected(&self, rejected: Rejected) -> Result<(), Error> {
        let shared = Arc::clone(&self.0);
        let _entrance = self.0.entrance.lock().await;
        let taken = tokio::task::spawn_blocking(move || {
            let mut file = shared.file();
            let taken = file.append(&[(EntryRef::Rejected(&rejected), None)]);
            shared.counts.follow(&file);
            taken
        });
        let taken = taken.await.map_err(|_panicked| Error::Lost)?;
        self.0.counts.came(1, &taken);
        taken.map_err(refusal)?;
        // The drain has to come for it.
        self.open();
        Ok(())
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

    /// Lets nothing in for as long as it is held.
    pub(super) async fn hold(&self) -> Held {
        Held {
            spool: self.clone(),
            _entrance: Arc::clone(&self.0.entrance).lock_owned().await,
        }
    }

    /// Gives room back to the disk.
    pub(super) async fn shrink(&self) {
        let shrunk = self.with_file(|file| {
            file.shrink();
            Ok(())
        });
        // A panic of it is logged.
        let _ = shrunk.await;
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
                file.repair(&unsound);
                Broken::Unsound(unsound)
            });
            shared.counts.follow(&file);
            done
        });
        done.await.unwrap_or_else(|_panicked| Err(Broken::Panicked))
    }
}

fn refusal(refused: Refused) -> Error {
    Error::Refused(Arc::new(refused))
}

fn as_entry(change: &Waiting) -> EntryRef<'_> {
    EntryRef::Change(change.as_ref())
}

/// Appends changes as one or, where there is no room for all, in parts that are as large as may be.
fn append_what_fits(file: &mut SpoolFile, mut changes: Vec<Left>, parts: &mut Vec<Part>) {
    let entries: Vec<_> = changes
        .iter()
        .map(|(change, attempt)| (as_entry(change), *attempt))
        .collect();
    match file.append(&entries) {
        Err(Refused::Full) if changes.len() > 1 => {
            let rest = changes.split_off(changes.len() / 2);
            append_what_fits(file, changes, parts);
            append_what_fits(file, rest, parts);
        }
        taken => parts.push((changes, taken)),
    }
}

/// Changes, and what became of them.
type Part = (Vec<Left>, Result<(), Refused>);

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
