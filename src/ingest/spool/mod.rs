//! Where changes wait on disk while the database is away.
//!
//! While it is open, nothing is written to the database but from it, in its order; `drain` does
//! that. It opens with the first write that fails, and closes when nothing is left in it.

mod bounds;
mod dir;
mod file;
mod lock;
mod record;
mod row;
mod salvage;
#[cfg(test)]
mod testing;
mod verify;
mod wal;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};

use time::OffsetDateTime;

use super::Error;
use super::lane::{Left, Waiting, answer_all};
use crate::domain::Rejected;
use crate::store;
use dir::SpoolDir;
use file::{Batch, Damage, SpoolFile};
use record::EntryRef;
use row::micros;

pub use dir::Error as OpenError;
pub use file::Refused;
pub(super) use file::{Attempt, Spooled};
pub(super) use record::{Entry, read_change, write_change};

/// The spool of this process. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

struct Shared {
    folder: PathBuf,
    id: i64,
    /// Used where blocking is allowed only.
    file: Mutex<SpoolFile>,
    /// Held by whoever puts something in, and by whoever closes it.
    entrance: Arc<AsyncMutex<()>>,
    is_open: AtomicBool,
    /// Wakes the drain.
    opened: Notify,
    /// Whether the last change to come was refused, and no room was made since.
    is_refusing: AtomicBool,
    counts: Counts,
}

/// What there is, as far as somebody asks for it who must not wait.
#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicU64,
    bytes: AtomicU64,
    /// When the first came, in microseconds since 1970; 0: there is none.
    oldest: AtomicU64,
    spooled: AtomicU64,
    drained: AtomicU64,
    refused: AtomicU64,
}

/// What waits in the spool, and what has been done with it since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpoolState {
    /// Entries in it.
    pub waiting: u64,
    /// What they take.
    pub bytes: u64,
    /// How long the first has waited.
    pub age: Duration,
    /// Entries that were put in.
    pub spooled: u64,
    /// Entries that were taken out: written to the database or, where one was damaged, given up.
    pub drained: u64,
    /// Changes and bodies that it did not take.
    pub refused: u64,
    /// Whether the last change to come was refused, and no room was made since.
    pub is_refusing: bool,
    /// Whether callbacks go there.
    pub is_open: bool,
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
        report(dir, &opened.report);
        let spool = Self(Arc::new(Shared {
            folder: dir.to_path_buf(),
            id: opened.id,
            file: Mutex::new(opened.file),
            entrance: Arc::default(),
            is_open: AtomicBool::new(true),
            opened: Notify::new(),
            is_refusing: AtomicBool::new(false),
            counts: Counts::default(),
        }));
        spool.0.count(&spool.0.file());
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
        let counts = &self.0.counts;
        let oldest = counts.oldest.load(Ordering::Relaxed);
        let now = micros(OffsetDateTime::now_utc());
        let age = match oldest {
            0 => 0,
            oldest => now.cast_unsigned().saturating_sub(oldest),
        };
        SpoolState {
            waiting: counts.waiting.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            age: Duration::from_micros(age),
            spooled: counts.spooled.load(Ordering::Relaxed),
            drained: counts.drained.load(Ordering::Relaxed),
            refused: counts.refused.load(Ordering::Relaxed),
            is_refusing: self.0.is_refusing.load(Ordering::Relaxed),
            is_open: self.is_open(),
        }
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
            shared.count(&file);
            parts
        });
        // Where it panicked they are gone, and each says so itself.
        for (changes, taken) in taken.await.unwrap_or_default() {
            let are_marks = changes.iter().all(|(change, _)| as_entry(change).is_mark());
            let taken = self.counted(changes.len(), taken);
            // Marks have room where others do not, so they do not say that there is some.
            match &taken {
                Ok(()) if are_marks => {}
                Ok(()) => self.0.is_refusing.store(false, Ordering::Relaxed),
                Err(why) => self.0.refuses(&why.to_string()),
            }
            answer_all(changes, &taken);
        }
    }

    /// Takes a callback that could not be understood.
    pub(super) async fn append_rejected(&self, rejected: Rejected) -> Result<(), Error> {
        let shared = Arc::clone(&self.0);
        let _entrance = self.0.entrance.lock().await;
        let taken = tokio::task::spawn_blocking(move || {
            let mut file = shared.file();
            let taken = file.append(&[(EntryRef::Rejected(&rejected), None)]);
            shared.count(&file);
            taken
        });
        let taken = taken.await.map_err(|_panicked| Error::Lost)?;
        self.counted(1, taken)?;
        // The drain has to come for it.
        self.open();
        Ok(())
    }

    fn counted(&self, entries: usize, taken: Result<(), Refused>) -> Result<(), Error> {
        let counts = &self.0.counts;
        let count = match taken {
            Ok(()) => &counts.spooled,
            Err(_) => &counts.refused,
        };
        count.fetch_add(entries as u64, Ordering::Relaxed);
        taken.map_err(|refused| Error::Refused(Arc::new(refused)))
    }

    /// The first that wait, in their order.
    pub(super) async fn first(&self, rows: usize, bytes: usize) -> Result<Batch, Broken> {
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
        self.0.counts.drained.fetch_add(deleted, Ordering::Relaxed);
        if deleted > 0 && has_room {
            self.0.is_refusing.store(false, Ordering::Relaxed);
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
        work: impl FnOnce(&mut SpoolFile) -> Result<T, Damage> + Send + 'static,
    ) -> Result<T, Broken> {
        let shared = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut file = shared.file();
            let done = work(&mut file).or_else(|damage| {
                report(&shared.folder, &file.repair()?);
                Err(Broken::Damaged(damage))
            });
            shared.count(&file);
            done
        });
        done.await.unwrap_or_else(|_panicked| Err(Broken::Panicked))
    }
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
    /// It was damaged, and is repaired as far as it can be.
    #[error("{0}")]
    Damaged(Damage),
    /// It is damaged, and could not be repaired.
    #[error(transparent)]
    Unusable(#[from] OpenError),
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
        self.spool.0.is_refusing.store(false, Ordering::Relaxed);
        self.spool.0.is_open.store(false, Ordering::Release);
    }
}

impl Shared {
    fn file(&self) -> MutexGuard<'_, SpoolFile> {
        // A transaction that a panic interrupted was rolled back.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so once, until there is room again.
    fn refuses(&self, reason: &str) {
        if !self.is_refusing.swap(true, Ordering::Relaxed) {
            tracing::error!(reason, "the spool takes no more: callbacks are refused");
        }
    }

    fn count(&self, file: &SpoolFile) {
        let oldest = file.oldest().map_or(0, micros);
        let counts = &self.counts;
        counts.waiting.store(file.len(), Ordering::Relaxed);
        counts.bytes.store(file.bytes(), Ordering::Relaxed);
        let oldest = u64::try_from(oldest).unwrap_or(0);
        counts.oldest.store(oldest, Ordering::Relaxed);
    }
}

/// What was found in the folder, where somebody has to know.
fn report(dir: &Path, report: &dir::Report) {
    let folder = dir.display();
    if let Some(aside) = &report.set_aside {
        tracing::error!(
            %folder,
            set_aside = %aside.display(),
            why = report.why.as_deref().unwrap_or("unknown"),
            recovered = report.recovered,
            unreadable = report.unreadable,
            "the spool was damaged: it is set aside, and what could be read of it is kept; \
             callbacks that were answered may be lost"
        );
    }
    if let Some(bytes) = report.lost_tail_bytes {
        tracing::warn!(
            %folder,
            bytes,
            "the end of the spool is unreadable: a write that was under way when the process \
             ended, or damage; callbacks that were answered may be lost"
        );
    }
}

#[cfg(test)]
mod tests;
