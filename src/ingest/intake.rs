//! The spool as tasks share it: the state of diverting, the right to append, and the counts; and the intake, by which
//! changes and rejected callbacks come in.
//!
//! While the spool is diverting, each change goes through it: nothing is written to the database but from its first
//! entry on. Diverting begins at the start and with a write that fails, and ends when the spool is empty.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::{Diverting, Error};
use crate::domain::{Change, Rejected};
use crate::spool::{Attempt, Draft, Entry, Log, SpoolError, SpoolFolder, Usage};
use crate::store;

/// Results of entries that were to be appended.
pub(super) type Results = Vec<Result<(), Arc<SpoolError>>>;

/// The spool of this process. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

struct Shared {
    id: i64,
    limits: Limits,
    /// Locked only where blocking is allowed.
    folder: Mutex<SpoolFolder>,
    /// Locked while entries are appended, and while diverting ends.
    intake: Arc<AsyncMutex<()>>,
    diverting: Diverting,
    /// State but for `diverting`, and the time of receipt of the first entry.
    state: Mutex<(SpoolState, Option<i64>)>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("id", &self.id).finish()
    }
}

impl Spool {
    /// Opens the spool in a folder, and makes it the first time. It is diverting: nothing is written directly before
    /// its entries, and before the sessions of an earlier process are over. Blocks.
    ///
    /// # Errors
    /// The folder cannot be used, or is in use by another process.
    pub fn in_folder(dir: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        SpoolFolder::open(dir, max_bytes, false).map(|folder| Self::new(folder, max_bytes))
    }

    /// As [`Self::in_folder`]. If the folder cannot be used and nothing waits in it, there is no spool until it can be
    /// used, and callbacks need the database. Blocks.
    ///
    /// # Errors
    /// The folder cannot be used and something may wait in it, or it is in use by another process.
    pub fn in_folder_once_usable(dir: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        SpoolFolder::open(dir, max_bytes, true).map(|folder| Self::new(folder, max_bytes))
    }

    fn new(folder: SpoolFolder, max_bytes: u64) -> Self {
        let spool = Self(Arc::new(Shared {
            id: folder.id,
            limits: Limits(max_bytes),
            intake: Arc::default(),
            diverting: Diverting::default(),
            state: Mutex::default(),
            folder: Mutex::new(folder),
        }));
        spool.divert();
        let entries = spool.0.follow(&spool.0.folder());
        if entries > 0 {
            tracing::info!(entries, "an earlier process has left entries in the spool");
        }
        spool
    }

    /// Id of the spool, which the database knows too.
    pub(super) fn id(&self) -> i64 {
        self.0.id
    }

    pub(super) fn is_diverting(&self) -> bool {
        self.0.diverting.is_on()
    }

    /// The flag, for readers that need nothing else of the spool.
    pub(super) fn diverting(&self) -> Diverting {
        self.0.diverting.clone()
    }

    /// Begins diverting.
    pub(super) fn divert(&self) {
        self.0.diverting.begin();
    }

    /// State of the spool, and counts since the start.
    pub fn state(&self) -> SpoolState {
        let (mut state, oldest) = *self.0.state();
        state.is_diverting = self.is_diverting();
        state.set_age(oldest);
        state
    }

    /// The first entries, in their order: at least one, if there is one.
    ///
    /// # Errors
    /// [`SpoolError::Unknown`], or a segment cannot be opened.
    pub(super) async fn first(
        &self,
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, SpoolError> {
        let read = self
            .with_log(Vec::new(), move |log| log.first(entries, bytes))
            .await;
        if let Err(SpoolError::Unknown(..)) = read {
            self.0.state().0.is_blocked = true;
        }
        read
    }

    /// Deletes the entries up to a position of the database, which holds them already.
    ///
    /// # Errors
    /// See [`Log::skip_written`].
    pub(super) async fn skip_written(&self, position: i64) -> Result<(), SpoolError> {
        self.with_log((), move |log| log.skip_written(position))
            .await
    }

    /// Deletes the entries up to a number, which are in the database.
    ///
    /// # Errors
    /// A segment cannot be opened.
    pub(super) async fn delete_to(&self, number: i64) -> Result<(), SpoolError> {
        let limits = self.0.limits;
        let delete = move |log: &mut Log| {
            log.delete_to(number)?;
            Ok(!log.is_disk_full && limits.has_room(log.usage))
        };
        if self.with_log(false, delete).await? {
            self.0.state().0.has_room();
        }
        Ok(())
    }

    /// Counts an entry that the database refused for ever.
    pub(super) fn count_rejected(&self) {
        self.0.state().0.rejected += 1;
    }

    /// Waits for the intake. Nothing is appended by others as long as the lock lives.
    pub(super) async fn lock_intake(&self) -> IntakeLock {
        IntakeLock {
            spool: self.clone(),
            _intake: Arc::clone(&self.0.intake).lock_owned().await,
        }
    }

    /// Tries a folder again that could not be used, and gives the room of an empty log back to the disk.
    ///
    /// # Errors
    /// [`SpoolError::Appeared`]: this process never will have a spool.
    pub(super) async fn renew(&self) -> Result<(), SpoolError> {
        let has_appeared = self.with_folder(|folder| {
            let was_absent = folder.log.is_none();
            folder.appear()?;
            let log = folder.log.as_mut();
            let entries = log.map_or(0, |log| {
                log.compact();
                log.usage.entries
            });
            Ok(was_absent && entries > 0)
        });
        if has_appeared.await? {
            self.divert();
        }
        Ok(())
    }

    /// Does some work in the log, or returns `absent` if there is none.
    async fn with_log<T: Send + 'static>(
        &self,
        absent: T,
        work: impl FnOnce(&mut Log) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        self.with_folder(|folder| folder.log.as_mut().map_or(Ok(absent), work))
            .await
    }

    async fn with_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SpoolFolder) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let shared = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut folder = shared.folder();
            let before = shared.follow(&folder);
            let done = work(&mut folder);
            let after = shared.follow(&folder);
            shared.state().0.drained += before.saturating_sub(after);
            done
        });
        done.await.unwrap_or(Err(SpoolError::Panicked))
    }
}

/// The right to append, and to end diverting.
pub(super) struct IntakeLock {
    spool: Spool,
    _intake: OwnedMutexGuard<()>,
}

impl IntakeLock {
    /// Appends entries. If there is no room for all, parts of them are tried. Returns the result of each entry, in
    /// their order, and nothing after a panic.
    pub(super) async fn append(&self, entries: Vec<Draft>) -> Results {
        let shared = Arc::clone(&self.spool.0);
        let appended = tokio::task::spawn_blocking(move || {
            let mut folder = shared.folder();
            let mut results = Vec::with_capacity(entries.len());
            shared.append_what_fits(&mut folder, &entries, &mut results);
            shared.follow(&folder);
            results
        });
        appended.await.unwrap_or_default()
    }

    /// Ends diverting: changes are written directly. Nothing waits in the spool.
    pub(super) fn stop_diverting(self) {
        let shared = &self.spool.0;
        shared.state().0.has_room();
        shared.state().0.is_blocked = false;
        shared.diverting.end();
    }
}

impl Shared {
    fn folder(&self) -> MutexGuard<'_, SpoolFolder> {
        // A log that a panic interrupted begins another segment.
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, (SpoolState, Option<i64>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what waits. Returns the number of entries.
    fn follow(&self, folder: &SpoolFolder) -> u64 {
        let log = folder.log.as_ref();
        let usage = log.map(|log| log.usage).unwrap_or_default();
        let (state, oldest) = &mut *self.state();
        state.waiting = usage.entries;
        state.bytes = usage.changes + usage.rejected;
        state.is_absent = log.is_none();
        *oldest = log.and_then(|log| log.oldest);
        usage.entries
    }

    fn append_what_fits(&self, folder: &mut SpoolFolder, entries: &[Draft], results: &mut Results) {
        let taken = folder
            .log()
            .and_then(|log| match self.limits.admit(log.usage, entries) {
                true => log.append(entries),
                false => Err(SpoolError::Full),
            });
        if let Err(SpoolError::Full | SpoolError::DiskFull) = taken
            && entries.len() > 1
        {
            let (first, rest) = entries.split_at(entries.len() / 2);
            self.append_what_fits(folder, first, results);
            return self.append_what_fits(folder, rest, results);
        }
        self.state().0.appended(entries, &taken);
        let taken = taken.map_err(Arc::new);
        results.extend(entries.iter().map(|_| taken.clone()));
    }
}

/// Limits by SPOOL_MAX_BYTES. Rejected callbacks have a tenth of their own, so that they never keep a change out.
#[derive(Clone, Copy, Debug)]
struct Limits(u64);

impl Limits {
    /// True if there is room for the entries beside what is used.
    fn admit(self, mut usage: Usage, entries: &[Draft]) -> bool {
        entries.iter().all(|draft| {
            usage.add(draft.usage());
            // A mark is small, and says that another change did not come in.
            let reserve = if draft.is_mark { self.0 / 16 } else { 0 };
            match draft.is_rejected() {
                true => usage.rejected <= self.0 - self.for_changes(),
                false => usage.changes <= self.for_changes().saturating_add(reserve),
            }
        })
    }

    /// True if changes are well below their limit. A limit that is reached again at once was never left.
    fn has_room(self, usage: Usage) -> bool {
        usage.changes <= self.for_changes() / 16 * 15
    }

    fn for_changes(self) -> u64 {
        self.0 - self.0 / 10
    }
}

/// State of the spool, and counts since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpoolState {
    /// Entries that wait.
    pub waiting: u64,
    /// Bytes of these entries, as SPOOL_MAX_BYTES counts them.
    pub bytes: u64,
    /// Age of the first entry.
    pub age: Duration,
    /// Entries that were appended.
    pub spooled: u64,
    /// Entries that were taken out: written to the database or, if damaged, given up.
    pub drained: u64,
    /// Changes and rejected callbacks that the spool refused.
    pub refused: u64,
    /// Entries that the database refused for ever.
    pub rejected: u64,
    /// True if the last change was refused, and no room was made since.
    pub is_refusing: bool,
    /// True if the folder cannot be used.
    pub is_absent: bool,
    /// True if the first entry is of a newer version.
    pub is_blocked: bool,
    /// True if each change goes through the spool.
    pub is_diverting: bool,
}

impl SpoolState {
    /// Counts entries that were appended, or refused.
    fn appended(&mut self, drafts: &[Draft], taken: &Result<(), SpoolError>) {
        let count = match taken {
            Ok(()) => &mut self.spooled,
            Err(_) => &mut self.refused,
        };
        *count += drafts.len() as u64;
        match taken {
            // The limit of rejected callbacks says nothing about changes.
            _ if drafts.iter().all(|draft| draft.is_rejected()) => {}
            Err(refused) if !self.is_refusing => {
                self.is_refusing = true;
                let reason = refused.to_string();
                tracing::error!(reason, "the spool takes no more: callbacks are refused");
            }
            // Marks have a reserve, so they do not show that there is room.
            Ok(()) if !drafts.iter().all(|draft| draft.is_mark) => self.has_room(),
            _ => {}
        }
    }

    /// Notes that changes find room.
    fn has_room(&mut self) {
        if std::mem::take(&mut self.is_refusing) {
            tracing::info!("the spool has room again");
        }
    }

    /// Sets the age of the first entry, by its time of receipt.
    fn set_age(&mut self, oldest: Option<i64>) {
        let age = oldest.map_or(0, |oldest| {
            let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000;
            now - i128::from(oldest)
        });
        self.age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
    }
}

/// Changes, each with the write that may have committed it.
type Changes<T> = Vec<(T, Option<Attempt>)>;
/// Changes, each with its result.
type Answers<T> = Vec<(T, Result<(), Error>)>;

/// Appends changes that could not be written because of `error`, and begins diverting.
pub(super) async fn divert<T: AsRef<Change> + Send + 'static>(
    spool: &Spool,
    changes: Changes<T>,
    error: &store::Error,
) -> Answers<T> {
    let intake = spool.lock_intake().await;
    if !spool.is_diverting() {
        tracing::warn!(
            error = error.to_string(),
            "the database does not take callbacks now: they go to the spool"
        );
    }
    let answers = append(&intake, changes).await;
    // Also if all were refused: writes that were given up on may still commit, and nothing else may be written before
    // they are over.
    spool.divert();
    answers
}

/// Appends changes if the spool is diverting. If it is not, the changes come back.
pub(super) async fn append_if_diverting<T: AsRef<Change> + Send + 'static>(
    spool: &Spool,
    changes: Changes<T>,
) -> Result<Answers<T>, Changes<T>> {
    let intake = spool.lock_intake().await;
    if !spool.is_diverting() {
        return Err(changes);
    }
    Ok(append(&intake, changes).await)
}

async fn append<T: AsRef<Change> + Send + 'static>(
    intake: &IntakeLock,
    changes: Changes<T>,
) -> Answers<T> {
    // A record can have megabytes. Writing its JSON here would block other requests of the thread.
    let drafted = tokio::task::spawn_blocking(move || {
        let draft = |(change, attempt): &(T, _)| Draft::change(change.as_ref(), *attempt);
        let drafts = changes.iter().map(draft).collect();
        (changes, drafts)
    });
    // After a panic the changes are dropped, and each marks its group.
    let Ok((changes, drafts)) = drafted.await else {
        return Vec::new();
    };
    let mut results = intake.append(drafts).await.into_iter();
    let answer = |(change, _)| {
        let result = results.next().map(|result| result.map_err(Error::Refused));
        (change, result.unwrap_or(Err(Error::Lost)))
    };
    changes.into_iter().map(answer).collect()
}

/// Appends a rejected callback.
pub(super) async fn append_rejected(spool: &Spool, rejected: &Rejected) -> Result<(), Error> {
    let intake = spool.lock_intake().await;
    let taken = intake.append(vec![Draft::rejected(rejected)]).await.pop();
    // The drain has to come for it, and for the entries of a folder that has just appeared.
    spool.divert();
    taken.ok_or(Error::Lost)?.map_err(Error::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Event, GroupId, GroupProfile, MarkReason, Text};

    fn change(event: Event) -> Draft {
        let group = GroupId::parse("g".into()).unwrap();
        Draft::change(&Change::new(group, OffsetDateTime::UNIX_EPOCH, event), None)
    }

    /// An entry for a change of about so many bytes.
    fn profile(bytes: usize) -> Draft {
        change(Event::SetProfile(GroupProfile {
            introduction: Some(Text::parse("x".repeat(bytes))),
            ..GroupProfile::default()
        }))
    }

    fn mark() -> Draft {
        change(Event::Mark(MarkReason::CallbackLost))
    }

    fn rejected(body: usize) -> Rejected {
        Rejected {
            received_at: OffsetDateTime::UNIX_EPOCH,
            path: "/openim/callback".into(),
            operation_id: None,
            code: "bad_json".into(),
            detail: "at 1:1".into(),
            body: vec![7; body].into(),
            body_bytes: body as u64,
        }
    }

    /// Appends entries; true if all were taken.
    async fn takes(spool: &Spool, entries: Vec<Draft>) -> bool {
        let results = spool.lock_intake().await.append(entries).await;
        results.iter().all(Result::is_ok)
    }

    #[tokio::test]
    async fn changes_rejected_callbacks_and_marks_have_limits_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::in_folder(dir.path(), 100_000).unwrap();
        append_rejected(&spool, &rejected(6000)).await.unwrap(); // 8,000 as base64
        assert!(append_rejected(&spool, &rejected(3000)).await.is_err());
        // It is counted and no more: their own part can be full, which says nothing of changes.
        let state = spool.state();
        assert_eq!((state.spooled, state.refused, state.waiting), (1, 1, 1));
        assert!(!state.is_refusing);
        append_rejected(&spool, &rejected(100)).await.unwrap();
        assert!(takes(&spool, vec![profile(89_000)]).await);
        assert!(!takes(&spool, vec![profile(2000)]).await);
        assert!(spool.state().is_refusing);
        let mut marks = 0;
        while takes(&spool, vec![mark()]).await {
            marks += 1;
        }
        assert!((25..40).contains(&marks), "{marks}");
        let bytes = spool.state().bytes;
        assert!(bytes > 100_000 && bytes <= 106_250 + 10_000);
        // After the drain all is as before.
        spool.delete_to(i64::MAX).await.unwrap();
        assert!(!spool.state().is_refusing);
        // If entries do not fit together, the ones that fit are taken.
        let entries = vec![profile(2000), profile(100_000), mark()];
        let results = spool.lock_intake().await.append(entries).await;
        assert_eq!(
            [true, false, true],
            *results.iter().map(Result::is_ok).collect::<Vec<_>>()
        );
        assert_eq!(spool.state().waiting, 2);
    }
}
