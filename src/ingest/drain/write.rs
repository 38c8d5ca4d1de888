//! What the drain writes at a time, and what becomes of that which the database does not take.

use bytes::Bytes;
use tokio::time::Instant;

use super::super::spool::{Entry, Spooled, write_change};
use super::{Drain, Error, HELD_WRITE, LONGEST_WRITE, MOST_BYTES, MOST_ENTRIES};
use crate::domain::{Change, Event, MarkReason, Rejected};
use crate::store;

/// Where rejected callbacks say that they came from if the database did not take them out of the
/// spool.
pub(in crate::ingest) const REFUSED_PATH: &str = "/spool";
/// Their code.
const REFUSED_CODE: &str = "database_refused";

impl Drain {
    pub(super) fn has_to_let_in(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether there is more to write.
    pub(super) async fn write_some(&mut self) -> Result<bool, Error> {
        let batch = self.spool.first(self.most, MOST_BYTES).await?;
        if batch.is_empty() {
            (self.patience, self.most) = (self.first_patience, MOST_ENTRIES);
            return Ok(false);
        }
        let written = self.write(&batch).await;
        if let Err(error) = &written
            && error.is_timeout()
        {
            self.patience = (self.patience * 2).min(LONGEST_WRITE);
            self.most = (self.most / 8).max(1);
        }
        let done = written?;
        self.most = (self.most * 2).min(MOST_ENTRIES);
        if self.most == MOST_ENTRIES {
            self.patience = self.first_patience;
        }
        if let Some(done) = done {
            self.spool.delete_to(done).await?;
        }
        Ok(self.spool.state().waiting > 0)
    }

    /// Writes entries. Those that the database does not take are found by halves, or one of them would
    /// make as many commits as there are entries. Returns the number up to which all is done, less than
    /// the last where time is up.
    async fn write(&mut self, entries: &[Spooled]) -> Result<Option<i64>, store::Error> {
        // The next part is the last of them.
        let mut parts = vec![entries];
        let mut done = None;
        while let Some(part) = parts.pop()
            && let Some(last) = part.last().map(|entry| entry.seq)
            && !(done.is_some() && self.has_to_let_in())
        {
            match (self.write_part(part, last).await, part) {
                (Ok(()), _) => done = Some(last),
                (Err(refused @ store::Error::Permanent(_)), [entry]) => {
                    self.keep_refused(entry, &refused).await?;
                    self.spool.is_rejected();
                    done = Some(last);
                }
                (Err(store::Error::Permanent(_)), _) => {
                    let (first, rest) = part.split_at(part.len() / 2);
                    parts.extend([rest, first]);
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(done)
    }

    async fn write_part(&mut self, part: &[Spooled], last: i64) -> Result<(), store::Error> {
        let (mut changes, mut rejected) = (Vec::new(), Vec::new());
        for spooled in part {
            match &spooled.entry {
                _ if self.is_in(spooled) => {}
                Entry::Change(change) => changes.push(change),
                Entry::Rejected(body) => rejected.push(body),
            }
        }
        self.write_as_one(&changes, &rejected, last).await
    }

    /// Whether a lane has written it, and did not hear so.
    fn is_in(&self, entry: &Spooled) -> bool {
        let attempt = entry.attempt.as_ref();
        attempt.is_some_and(|attempt| self.drainer.is_committed(attempt.lane, attempt.seq))
    }

    /// Keeps what the database does not take with the rejected callbacks, and has its group checked.
    async fn keep_refused(
        &mut self,
        entry: &Spooled,
        refused: &store::Error,
    ) -> Result<(), store::Error> {
        let (seq, error) = (entry.seq, refused.to_string());
        tracing::error!(
            seq,
            error,
            "the database does not take an entry of the spool"
        );
        if let Entry::Change(change) = &entry.entry {
            let reason = Event::Mark(MarkReason::CallbackLost);
            let mark = Change::new(change.group_id.clone(), change.received_at, reason);
            let kept = refused_entry(change, refused);
            for (changes, rejected) in [(vec![&mark], vec![&kept]), (vec![], vec![&kept])] {
                match self.write_as_one(&changes, &rejected, seq).await {
                    Err(store::Error::Permanent(_)) => {}
                    written => return written,
                }
            }
        }
        // Nothing can be kept of it, and nothing may wait for it for ever.
        self.write_as_one(&[], &[], seq).await
    }

    async fn write_as_one(
        &mut self,
        changes: &[&Change],
        rejected: &[&Rejected],
        seq: i64,
    ) -> Result<(), store::Error> {
        let deadline = Instant::now() + self.patience;
        let deadline = match self.held_until {
            Some(until) => deadline.min(until + HELD_WRITE),
            None => deadline,
        };
        loop {
            let written = self.drainer.write(changes, rejected, seq, deadline).await;
            match written {
                Err(error) if error.is_conflict() && Instant::now() < deadline => {}
                written => return written,
            }
        }
    }
}

/// A change that the database did not take, as it is kept.
fn refused_entry(change: &Change, why: &store::Error) -> Rejected {
    let body = Bytes::from(write_change(change));
    let body_bytes = body.len() as u64;
    Rejected {
        received_at: change.received_at,
        path: REFUSED_PATH.into(),
        operation_id: None,
        code: REFUSED_CODE.into(),
        detail: why.to_string(),
        // Whole, however long: it was answered.
        body,
        body_bytes,
    }
}
