//! Reconciles one group: asks OpenIM, compares, repairs, and records the result.

use std::pin::pin;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, Stream, StreamExt};
use time::OffsetDateTime;

use super::compare::{GroupDifferences, compare};
use super::removals::{Leaving, Removals};
use super::report::{DriftEntry, Job};
use super::{Claim, Core, Error};
use crate::domain::{
    DISMISSED, Fence, GroupId, MarkReason, OWNER, OpenImGroup, RepairCounts, Version,
};
use crate::ingest;
use crate::openim::{Delta, GroupSnapshot, GroupState, MAX_DELTA_LEAVES, ReadError};
use crate::store::{self, KnownGroup, KnownVersion, Named, ReconcileStart};

/// Attempts with the changes of a group, before the whole group is read.
const MAX_CHANGES_ATTEMPTS: usize = 2;

/// Result of reconciling a group.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// The group is as in OpenIM. In a dry run: it was compared.
    Equal,
    /// The group has changed meanwhile and has to be reconciled again.
    ChangedMeanwhile,
    /// The group is as in OpenIM, except for what OpenIM does not send.
    Incomplete,
    /// The group cannot be read or written.
    Skipped,
    /// The group is marked, and an operator has to decide.
    NeedsDecision,
    /// Another task reconciles the group.
    Busy,
}

/// Question to OpenIM: the changes of a group since a version.
pub(super) struct ChangesQuery {
    pub(super) known: KnownGroup,
    pub(super) version: Version,
    /// True if the group itself has to be compared.
    pub(super) with_group: bool,
    /// True if the number of members has to be compared.
    pub(super) with_total: bool,
}

impl ChangesQuery {
    pub(super) fn version(&self) -> (&GroupId, &Version) {
        (&self.known.group_id, &self.version)
    }
}

/// OpenIM's answer about one group.
pub(super) struct ChangesAnswer {
    pub(super) delta: Delta,
    /// The group itself, if that was asked for too.
    pub(super) group: Option<OpenImGroup>,
}

/// Reconcile of a touched group that has begun before OpenIM is asked for the changes.
pub(super) struct TouchedGroup<'a> {
    _claim: Claim<'a>,
    begun: ReconcileStart,
    named: Named,
    /// The version to ask for changes since.
    pub(super) version: Version,
}

/// Reconcile of a group by its changes.
struct ChangesRepair<'a> {
    group: &'a GroupId,
    begun: &'a ReconcileStart,
    with_group: bool,
    with_total: bool,
    /// The group itself, if it was read before.
    info: Option<OpenImGroup>,
}

/// Result of reconciling a group by its changes.
enum ChangesResult {
    Done(Outcome),
    /// OpenIM counts other members than the mirror would have.
    OtherTotal,
    /// The whole group has to be read.
    NeedsWhole,
}

impl Core {
    /// Reconciles groups, some at a time.
    pub(super) fn reconcile_each<'a>(
        &'a self,
        groups: Vec<GroupId>,
        job: &'a Job<'a>,
    ) -> impl Stream<Item = (GroupId, Result<Outcome, Error>)> + 'a {
        let all = stream::iter(groups).map(move |group| async move {
            let done = self.reconcile_group(&group, job).await;
            (group, done)
        });
        all.buffer_unordered(self.settings.concurrency)
    }

    /// Reconciles groups until one fails.
    pub(super) async fn reconcile_groups(
        &self,
        groups: Vec<GroupId>,
        job: &Job<'_>,
    ) -> Result<(), Error> {
        let mut all = pin!(self.reconcile_each(groups, job));
        while let Some((_, done)) = all.next().await {
            done?;
        }
        Ok(())
    }

    /// Reconciles a group by its changes or, if they do not say enough, by all of it.
    pub(super) async fn reconcile_group(
        &self,
        group: &GroupId,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        let Some(_claim) = self.claim(group) else {
            return Ok(Outcome::Busy);
        };
        self.reconcile_claimed(group, job.has_group(group), job)
            .await
    }

    async fn reconcile_claimed(
        &self,
        group: &GroupId,
        with_group: bool,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        // The semaphore is never closed.
        let _permit = self.read_permits.acquire().await;
        if self.is_diverting() {
            return Err(Error::Spooling);
        }
        match self.reconcile_with_permit(group, with_group, job).await {
            Err(error) => self.skip_or_fail(group, error, job).await,
            done => done,
        }
    }

    async fn reconcile_with_permit(
        &self,
        group: &GroupId,
        with_group: bool,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        if job.is_dry() {
            let state = self.reader.whole(group).await?;
            return self.finish_dry(group, state, job).await;
        }
        // A second attempt, after a change meanwhile, is still less than the whole group.
        for _ in 0..MAX_CHANGES_ATTEMPTS {
            let begun = self.store.begin_group(group).await?;
            let Some((known, named)) = self.touched_since(group, &begun, job).await? else {
                break;
            };
            let since = self.reader.since(group, &known.version, &named.users);
            let Some(snapshot) = since.await? else {
                break;
            };
            let repair = ChangesRepair {
                group,
                begun: &begun,
                with_group: with_group || named.has_group,
                with_total: true,
                info: None,
            };
            match self.repair_changes(repair, snapshot, job).await? {
                ChangesResult::Done(outcome) => return Ok(outcome),
                ChangesResult::OtherTotal => {}
                ChangesResult::NeedsWhole => break,
            }
        }
        let begun = self.store.begin_group(group).await?;
        let state = self.reader.whole(group).await?;
        let known = self.known(group).await?;
        let differences = self.compare(group, known.as_ref(), state, job).await?;
        self.finish(group, &begun, known, differences, job).await
    }

    /// True if the changes of a group are enough, because it was read whole not long ago.
    pub(super) fn changes_suffice(&self, read_at: OffsetDateTime, job: &Job<'_>) -> bool {
        let age = OffsetDateTime::now_utc() - read_at;
        !job.is_full && age < self.settings.full_interval
    }

    /// Returns the version to ask for changes since, with the users that callbacks have named since then. `None`: the
    /// whole group has to be read.
    async fn touched_since<'a>(
        &self,
        group: &GroupId,
        begun: &'a ReconcileStart,
        job: &Job<'_>,
    ) -> Result<Option<(&'a KnownVersion, Named)>, Error> {
        let suffices = |known: &&KnownVersion| self.changes_suffice(known.read_at, job);
        let Some(known) = begun.known.as_ref().filter(suffices) else {
            return Ok(None);
        };
        // Before that, only the rows show which users the callbacks of an earlier process have named.
        let is_recorded = self.has_recovered_touched.load(Ordering::Relaxed);
        let named = self.store.named_since(group, known, is_recorded).await?;
        Ok(named.map(|named| (known, named)))
    }

    /// Begins to reconcile a touched group before OpenIM is asked for its changes, so that the touched users are known.
    /// `None`: it has to be reconciled alone.
    pub(super) async fn begin_touched(
        &self,
        group: &GroupId,
        job: &Job<'_>,
    ) -> Result<Option<TouchedGroup<'_>>, Error> {
        let Some(claim) = self.claim(group) else {
            return Ok(None);
        };
        let begun = self.store.begin_group(group).await?;
        let touched = self.touched_since(group, &begun, job).await?;
        let touched = touched.map(|(known, named)| (known.version.clone(), named));
        Ok(touched.map(|(version, named)| TouchedGroup {
            _claim: claim,
            begun,
            named,
            version,
        }))
    }

    /// Reconciles a touched group by its changes.
    pub(super) async fn apply_touched(
        &self,
        query: &ChangesQuery,
        touched: &TouchedGroup<'_>,
        answer: ChangesAnswer,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        let TouchedGroup { begun, named, .. } = touched;
        let done = self.apply_begun(query, begun, named, answer, job).await;
        self.end_changes(query, done, job).await
    }

    /// Reconciles a group by its changes, which OpenIM sent after `fence`.
    pub(super) async fn apply_changes(
        &self,
        query: &ChangesQuery,
        fence: &Fence,
        answer: ChangesAnswer,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        let Some(_claim) = self.claim(&query.known.group_id) else {
            return Ok(Outcome::Busy);
        };
        let done = self.begin_and_apply(query, fence, answer, job).await;
        self.end_changes(query, done, job).await
    }

    async fn begin_and_apply(
        &self,
        query: &ChangesQuery,
        fence: &Fence,
        answer: ChangesAnswer,
        job: &Job<'_>,
    ) -> Result<ChangesResult, Error> {
        let (group, version) = query.version();
        let Some(compared_at) = query.known.compared_at else {
            return Ok(ChangesResult::NeedsWhole);
        };
        let begun = self.store.begin_update(group, compared_at, version, fence);
        let Some(begun) = begun.await? else {
            return Ok(ChangesResult::NeedsWhole);
        };
        // A callback may be newer than the fence. Then its users must not count as compared.
        if begun.known.as_ref().is_none_or(KnownVersion::is_touched) {
            return Ok(ChangesResult::NeedsWhole);
        }
        self.apply_begun(query, &begun, &Named::default(), answer, job)
            .await
    }

    async fn apply_begun(
        &self,
        query: &ChangesQuery,
        begun: &ReconcileStart,
        named: &Named,
        answer: ChangesAnswer,
        job: &Job<'_>,
    ) -> Result<ChangesResult, Error> {
        let group = &query.known.group_id;
        let snapshot = self.reader.by_delta(group, answer.delta, &named.users);
        let Some(snapshot) = snapshot.await? else {
            return Ok(ChangesResult::NeedsWhole);
        };
        let repair = ChangesRepair {
            group,
            begun,
            with_group: query.with_group || named.has_group,
            with_total: query.with_total,
            info: answer.group,
        };
        self.repair_changes(repair, snapshot, job).await
    }

    /// Reconciles the group alone if its changes do not say enough.
    async fn end_changes(
        &self,
        query: &ChangesQuery,
        done: Result<ChangesResult, Error>,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        let group = &query.known.group_id;
        match done {
            Ok(ChangesResult::Done(outcome)) => {
                job.has_read();
                Ok(outcome)
            }
            Ok(ChangesResult::OtherTotal | ChangesResult::NeedsWhole) => {
                let with_group = query.with_group || job.has_group(group);
                self.reconcile_claimed(group, with_group, job).await
            }
            Err(error) => self.skip_or_fail(group, error, job).await,
        }
    }

    /// Repairs what the changes show, if the number of members is OpenIM's then: for some joins OpenIM makes no
    /// version.
    async fn repair_changes(
        &self,
        repair: ChangesRepair<'_>,
        mut snapshot: Box<GroupSnapshot>,
        job: &Job<'_>,
    ) -> Result<ChangesResult, Error> {
        let ChangesRepair {
            group,
            begun,
            with_group,
            with_total,
            info,
        } = repair;
        let known = self.known(group).await?;
        let needs_group = known.as_ref().is_none_or(|known| {
            // With a new owner OpenIM sends the changed roles, but not the group.
            let owner = known.group.owner.as_ref();
            let has_owner = owner.is_some_and(|owner| snapshot.members.contains_key(owner));
            let mut members = snapshot.members.values();
            known.wanted_since.is_some()
                || has_owner
                || members.any(|member| member.role_level == OWNER)
        });
        if snapshot.group.is_none() && (with_group || needs_group) {
            let openim = match info {
                Some(openim) => Some(openim),
                None => self.reader.info(group).await?.map(|(openim, _)| openim),
            };
            match openim {
                Some(openim) if openim.status != DISMISSED => snapshot.group = Some(openim),
                _unknown_or_dismissed => return Ok(ChangesResult::NeedsWhole),
            }
        }
        if snapshot.absent.len() > MAX_DELTA_LEAVES {
            // Many leaves are believed only beside all other members.
            return Ok(ChangesResult::NeedsWhole);
        }
        let state = GroupState::Present(snapshot);
        let differences = self.compare(group, known.as_ref(), state, job).await?;
        // Before any write: if a member came without a version, what OpenIM sent of the others may be older.
        if let Some(differences) = &differences
            && with_total
        {
            let total = self.reader.client.count_members(group).await?;
            let here = self.store.count_members_of(&[group]).await?;
            let here = here.get(group.as_str()).copied().unwrap_or_default();
            let added = differences.added();
            if total != (here + added).saturating_sub(differences.removed()) {
                return Ok(ChangesResult::OtherTotal);
            }
        }
        let finish = self.finish(group, begun, known, differences, job);
        Ok(ChangesResult::Done(finish.await?))
    }

    async fn known(&self, group: &GroupId) -> Result<Option<KnownGroup>, Error> {
        let ids = std::slice::from_ref(group);
        let (mut known, _) = self.store.known_groups(ids).await?;
        Ok(known.pop())
    }

    /// Skips a group after an error that concerns only this group. Other errors end the job.
    async fn skip_or_fail(
        &self,
        group: &GroupId,
        error: Error,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        let why = match &error {
            Error::Read(of_read) => {
                let is_silent = match of_read {
                    ReadError::Client(error) if !error.is_of_call() => {
                        return Err(error.clone().into());
                    }
                    ReadError::Client(error) => !error.is_of_openim(),
                    _ => false,
                };
                // If OpenIM can read no group, the job ends here.
                if job.has_failed() || is_silent {
                    self.reader.client.count_groups().await?;
                }
                of_read.to_string()
            }
            Error::Store(of_store) | Error::Ingest(ingest::Error::Store(of_store)) => {
                let is_of_group = match of_store {
                    store::Error::Permanent(_) | store::Error::Unreadable(_) => true,
                    store::Error::Transient(_) => of_store.is_lock_error() || of_store.is_timeout(),
                };
                if !is_of_group || self.store.ping().await.is_err() {
                    return Err(error);
                }
                of_store.to_string()
            }
            _ => return Err(error),
        };
        job.skip(group, &why);
        Ok(Outcome::Skipped)
    }

    /// Compares a group with its rows, and counts that. `None`: OpenIM does not know the group.
    async fn compare(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        state: GroupState,
        job: &Job<'_>,
    ) -> Result<Option<GroupDifferences>, Error> {
        let accepts_removals = job.removals.is_some_and(Removals::is_accepted);
        let store = &self.store;
        let compared = compare(store, group, known, state, accepts_removals, job.is_dry()).await?;
        Ok(compared)
    }

    fn count(&self, differences: &GroupDifferences, job: &Job<'_>) {
        job.report.count(|counts| {
            counts.groups_compared += 1;
            counts.members_compared += differences.compared.cast_signed();
        });
        self.metrics.compared.inc([]);
    }

    async fn finish_dry(
        &self,
        group: &GroupId,
        state: GroupState,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        let known = self.known(group).await?;
        let differences = self.compare(group, known.as_ref(), state, job).await?;
        let Some(mut differences) = differences else {
            job.add_drift([DriftEntry::unknown_group(group)]);
            return Ok(Outcome::Equal);
        };
        self.count(&differences, job);
        job.report
            .count(|counts| counts.add_repairs(differences.kinds()));
        let drift = differences.take_drift().into_iter();
        job.add_drift(drift.map(|(user_id, drift)| DriftEntry {
            group_id: group.clone(),
            user_id,
            drift,
        }));
        Ok(match differences.incomplete {
            Some(why) => {
                job.skip(group, &why.to_string());
                Outcome::Skipped
            }
            None => Outcome::Equal,
        })
    }

    /// Repairs a group within the limits of removals, and records the result.
    async fn finish(
        &self,
        group: &GroupId,
        begun: &ReconcileStart,
        known: Option<KnownGroup>,
        differences: Option<GroupDifferences>,
        job: &Job<'_>,
    ) -> Result<Outcome, Error> {
        job.has_read();
        let Some(differences) = differences else {
            let why = MarkReason::NotInOpenim;
            return Ok(self.mark_for_decision(group, known.as_ref(), why, job));
        };
        self.count(&differences, job);
        let Some(removals) = job.removals else {
            return Ok(Outcome::Equal); // unreachable: a dry run does not finish a group
        };
        let leaving = self.leaving(group, known.as_ref(), &differences, job);
        let leaving = leaving.await?;
        if !removals.allow(leaving, &self.store).await? {
            let why = MarkReason::TooManyRemovals;
            return Ok(self.mark_for_decision(group, known.as_ref(), why, job));
        }
        let (version, coverage) = (differences.version.clone(), differences.coverage());
        let incomplete = differences.incomplete;
        let mut written = RepairCounts::default();
        let is_outdated = self.repair(group, begun, differences, &mut written).await;
        // Repairs that were written before an error count too.
        let removed = leaving.removed(written);
        removals.refund(leaving.count() - removed);
        self.metrics.repaired(written);
        job.report.count(|counts| {
            counts.add_repairs(written);
            if leaving.is_dismissal() {
                counts.members_dismissed += removed.cast_signed();
            }
        });
        let is_outdated = is_outdated?;
        let times = (self.settings.delay, self.settings.settling);
        let version = version.as_ref();
        let finished = self
            .store
            .finish_group(group, begun, version, coverage, times)
            .await?;
        if let Some(since) = finished.marked_since.filter(|_| finished.is_cleared) {
            let waited = finished.finished_at - since;
            let waited = waited.try_into().unwrap_or_default();
            self.metrics.mark_seconds.observe([], waited);
        }
        let is_marked = finished.marked_since.is_some() && !finished.is_cleared;
        let Some(why) = incomplete else {
            // After a newer reconcile of the group, this one has proved nothing.
            return Ok(match is_outdated || is_marked {
                true => Outcome::ChangedMeanwhile,
                false => Outcome::Equal,
            });
        };
        // An existing mark keeps its reason.
        if known.is_none_or(|known| known.check_reason.is_none()) {
            self.ingest
                .mark_unwaited(group.clone(), MarkReason::ReadInPart);
        }
        job.skip(group, &why.to_string());
        Ok(Outcome::Incomplete)
    }

    /// Finds the members that the repairs would remove, without those whose leave was announced.
    async fn leaving(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        differences: &GroupDifferences,
        job: &Job<'_>,
    ) -> Result<Leaving, Error> {
        let is_present = known.is_some_and(|known| !known.group.is_dismissed());
        if !(is_present && differences.dismisses()) {
            let (removed, logged_leaves) = (differences.removed(), differences.logged_leaves);
            return Ok(Leaving::Members {
                removed: job.unannounced(group, removed, logged_leaves),
                of: differences.current,
            });
        }
        let is_accepted = job.removals.is_some_and(Removals::is_accepted);
        if is_accepted || job.has_dismissal(group) {
            return Ok(Leaving::WithGroup(0));
        }
        let members = self.store.count_members_of(&[group]).await?;
        let members = members.get(group.as_str()).copied();
        Ok(Leaving::WithGroup(members.unwrap_or(0)))
    }

    /// Writes the repairs, and adds what was written to `written`. Returns true if a newer reconcile of the group has
    /// begun, after which nothing is written.
    async fn repair(
        &self,
        group: &GroupId,
        begun: &ReconcileStart,
        differences: GroupDifferences,
        written: &mut RepairCounts,
    ) -> Result<bool, Error> {
        for repair in differences.into_repairs(begun) {
            // The semaphore is never closed.
            let _permit = self.write_permits.acquire().await;
            let repaired = self.ingest.repair(group.clone(), repair).await?;
            *written += repaired.counts;
            if repaired.is_outdated {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Skips and marks a group that an operator has to decide about.
    fn mark_for_decision(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        why: MarkReason,
        job: &Job<'_>,
    ) -> Outcome {
        let code = Some(why.code());
        if known.is_some_and(|known| known.check_reason.as_deref() == code) {
            // It was logged before.
            job.report.skip(1, Some(group), why.code());
        } else {
            job.skip(group, why.code());
            self.ingest.mark_unwaited(group.clone(), why);
        }
        Outcome::NeedsDecision
    }
}
