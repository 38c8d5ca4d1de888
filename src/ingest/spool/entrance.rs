//! How changes and rejected bodies come in, and who is told of it.

use std::sync::Arc;

use super::Spool;
use super::file::{Refused, SpoolFile};
use super::record::EntryRef;
use crate::domain::Rejected;
use crate::ingest::Error;
use crate::ingest::lanes::{Unwritten, Waiting, answer_all};
use crate::store;

impl Spool {
    /// Takes changes that could not be written because of `error`, opens, and answers all.
    pub(in crate::ingest) async fn append(&self, changes: Vec<Unwritten>, error: &store::Error) {
        let _entrance = self.0.entrance.lock().await;
        if !self.is_open() {
            let error = error.to_string();
            tracing::warn!(
                error,
                "the database does not take callbacks now: they go to the spool"
            );
        }
        self.put_in(changes).await;
        // Also where it took nothing: what was given up on may be written yet, and before it is
        // over nothing else may be.
        self.open();
    }

    /// Takes changes and answers them, if it is open; else they come back.
    pub(in crate::ingest) async fn append_if_open(
        &self,
        changes: Vec<Unwritten>,
    ) -> Result<(), Vec<Unwritten>> {
        let _entrance = self.0.entrance.lock().await;
        if !self.is_open() {
            return Err(changes);
        }
        self.put_in(changes).await;
        Ok(())
    }

    async fn put_in(&self, changes: Vec<Unwritten>) {
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
    pub(in crate::ingest) async fn append_rejected(&self, rejected: Rejected) -> Result<(), Error> {
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
        // The drain has to come for it, and for what was found in a folder that has just come.
        self.open();
        taken.map_err(refusal)
    }
}

fn refusal(refused: Refused) -> Error {
    Error::Refused(Arc::new(refused))
}

fn as_entry(change: &Waiting) -> EntryRef<'_> {
    EntryRef::Change(change.as_ref())
}

/// Appends changes as one or, where there is no room for all, in parts that are as large as may be.
fn append_what_fits(file: &mut SpoolFile, mut changes: Vec<Unwritten>, parts: &mut Vec<Part>) {
    let entries: Vec<_> = changes
        .iter()
        .map(|(change, attempt)| (as_entry(change), *attempt))
        .collect();
    match file.append(&entries) {
        Err(Refused::Full | Refused::DiskFull) if changes.len() > 1 => {
            let rest = changes.split_off(changes.len() / 2);
            append_what_fits(file, changes, parts);
            append_what_fits(file, rest, parts);
        }
        taken => parts.push((changes, taken)),
    }
}

/// Changes, and what became of them.
type Part = (Vec<Unwritten>, Result<(), Refused>);
