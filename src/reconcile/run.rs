//! Runs: reconciles all groups, those that OpenIM lists and those that only the mirror has.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::group::{ChangesAnswer, ChangesQuery};
use super::removals::Removals;
use super::report::{DriftEntry, Job, Report};
use super::{Core, Error, Mode};
use crate::domain::{DISMISSED, Fence, GroupId, OpenImGroup, compare_group};
use crate::openim::{Delta, GroupInfo, Halves, LARGEST_PAGE, ListPages, NOT_FOUND};
use crate::store::{KnownGroup, Lease, LeaseOf, TOO_MANY_REMOVALS};

/// Groups in one call of OpenIM.
const GROUPS_PER_CALL: usize = 100;
/// Times that the list of groups is read if it changes meanwhile.
const MAX_SCANS: usize = 3;
/// Most places in the list that a text names.
const MAX_NAMED_PLACES: usize = 10;
/// Time limit of recording the end of a run.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Hashes of the groups that were seen. Two groups with the same hash leave one of them out of a run: with a million
/// groups once in some hundred years.
struct Seen {
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl Seen {
    fn new() -> Self {
        Self {
            hashes: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Returns false if the group was seen before.
    fn add(&mut self, group: &str) -> bool {
        self.hashes.insert(self.hasher.hash_one(group))
    }

    fn has(&self, group: &str) -> bool {
        self.hashes.contains(&self.hasher.hash_one(group))
    }

    fn count(&self) -> u64 {
        self.hashes.len() as u64
    }
}

/// Step after each part of the groups.
pub(super) enum Checkpoint<'a> {
    /// Checks the lease.
    KeepLease(&'a mut Lease),
    /// Passes on the drift of a dry run.
    TellDrift(&'a mut (dyn FnMut(DriftEntry) + Send)),
}

impl Core {
    /// Does a run, with the lease.
    pub(super) async fn run(
        &self,
        mode: Mode,
        report: &Report,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let Some(mut lease) = self.store.take_lease(LeaseOf::Runs).await? else {
            return Err(Error::LeaseTaken);
        };
        let done = self.run_with_lease(mode, report, &mut lease, closing).await;
        lease.end().await;
        done
    }

    async fn run_with_lease(
        &self,
        mode: Mode,
        report: &Report,
        lease: &mut Lease,
        closing: &CancellationToken,
    ) -> Result<(), Error> {
        let (last, _) = self.store.last_runs().await?;
        let is_exceeded = last.is_some_and(|last| last.has_too_many_removals());
        let removed = self.store.removed_since_last_end().await?;
        let removals = Removals::new(mode.accept_removals, is_exceeded, removed);
        let run = self.store.begin_run(mode.is_full).await?;
        let job = Job::new(&removals, report, mode.is_full);
        let done = tokio::select! {
            biased;
            () = closing.cancelled() => Err(Error::Stopped),
            done = self.reconcile_all(&job, Checkpoint::KeepLease(lease)) => done,
        };
        let stopped_by = match &done {
            // Goes before other reasons: the next run has to know it.
            _ if removals.stays_exceeded(done.is_ok()) => Some(TOO_MANY_REMOVALS),
            Err(error) => Some(error.code()),
            Ok(()) => None,
        };
        self.metrics.cycle_done(stopped_by.unwrap_or("ok"));
        let counts = report.counts();
        let record = self.store.end_run(run, stopped_by, &counts);
        // Without the database, the row stays without an end.
        let _ = timeout(RECORD_TIMEOUT, record).await;
        done
    }

    /// Reconciles all groups.
    pub(super) async fn reconcile_all(
        &self,
        job: &Job<'_>,
        mut checkpoint: Checkpoint<'_>,
    ) -> Result<(), Error> {
        if !job.is_dry() {
            self.store.note_touched().await?;
        }
        let mut seen = Seen::new();
        let mut places = Vec::new();
        for _ in 0..MAX_SCANS {
            let pages = self
                .reconcile_listed(&mut seen, job, &mut checkpoint)
                .await?;
            places = pages.too_large;
            // A dismissal meanwhile moves other groups to pages that were read already.
            if seen.count() + places.len() as u64 >= pages.total.unwrap_or_default() {
                break;
            }
        }
        if !job.is_dry() {
            self.has_recovered_touched.store(true, Ordering::Relaxed);
        }
        let named = self.reconcile_unlisted(&seen, job, &mut checkpoint).await?;
        // The mirror knows the others, so they were reconciled by their ids.
        let unnamed = (places.len() as u64).saturating_sub(named);
        if unnamed > 0 {
            job.report.saw(unnamed);
            job.skip_unnamed(unnamed, &too_large_to_list(unnamed, &places));
        }
        Ok(())
    }

    async fn check_point(
        &self,
        checkpoint: &mut Checkpoint<'_>,
        job: &Job<'_>,
    ) -> Result<(), Error> {
        match checkpoint {
            Checkpoint::KeepLease(lease) => {
                if lease.holds().await {
                    return Ok(());
                }
                // Its connection is idle during calls of OpenIM, and some proxies end idle connections.
                let again = self.store.take_lease(LeaseOf::Runs).await?;
                **lease = again.ok_or(Error::LeaseLost)?;
                Ok(())
            }
            Checkpoint::TellDrift(tell) => self.confirm_drift(job, *tell).await,
        }
    }

    /// Reconciles the groups that OpenIM lists, except those in `seen`. Returns the pages that were read.
    async fn reconcile_listed(
        &self,
        seen: &mut Seen,
        job: &Job<'_>,
        checkpoint: &mut Checkpoint<'_>,
    ) -> Result<ListPages, Error> {
        let client = &self.reader.client;
        let mut pages = ListPages::default();
        loop {
            let next = pages.next(|page| client.groups(page), client.count_groups());
            let Some((page, answer)) = next.await? else {
                return Ok(pages);
            };
            pages.total = Some(answer.total);
            job.has_read();
            job.report.expect(answer.total);
            let count = answer.groups.len() as u64;
            let mut groups: Vec<(GroupId, GroupInfo)> = Vec::new();
            for entry in answer.groups {
                let group = entry.into_group();
                if !seen.add(&group.group_id) {
                    continue;
                }
                match group.id() {
                    Ok(id) => groups.push((id, group)),
                    Err(error) => {
                        tracing::warn!(
                            error = error.to_string(),
                            "OpenIM has a group whose groupID cannot be kept"
                        );
                    }
                }
            }
            self.reconcile_page(groups, job, checkpoint).await?;
            // The second condition ends a list that has full pages for ever.
            if count < page.size || pages.start() > answer.total {
                return Ok(pages);
            }
        }
    }

    /// Reconciles groups of OpenIM, as many at a time as the mirror can read together.
    async fn reconcile_page(
        &self,
        mut groups: Vec<(GroupId, GroupInfo)>,
        job: &Job<'_>,
        checkpoint: &mut Checkpoint<'_>,
    ) -> Result<(), Error> {
        let mut ids: Vec<GroupId> = groups.iter().map(|(id, _)| id.clone()).collect();
        if !job.is_dry() {
            self.recover_touched(&ids).await?;
        }
        job.report.saw(ids.len() as u64);
        while !groups.is_empty() {
            let (known, count) = self.store.known_groups(&ids).await?;
            let rest = groups.split_off(count);
            ids.drain(..count);
            self.reconcile_known(groups, known, job, checkpoint).await?;
            groups = rest;
        }
        Ok(())
    }

    /// Asks OpenIM for the changes of groups with a version, and reads the other groups whole.
    async fn reconcile_known(
        &self,
        groups: Vec<(GroupId, GroupInfo)>,
        known: Vec<KnownGroup>,
        job: &Job<'_>,
        checkpoint: &mut Checkpoint<'_>,
    ) -> Result<(), Error> {
        let known = known.into_iter();
        let mut known: HashMap<GroupId, KnownGroup> =
            known.map(|known| (known.group_id.clone(), known)).collect();
        let (mut ask, mut ask_alone, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for (id, group) in groups {
            let openim = group.into_domain();
            let suffices = |known: &KnownGroup| {
                let read_at = known.read_at;
                read_at.is_some_and(|read_at| self.changes_suffice(read_at, job))
            };
            let query = known.remove(&id).filter(suffices).and_then(|known| {
                let is_equal = compare_group(Some(&known.group), &openim).is_none();
                Some(ChangesQuery {
                    with_group: !is_equal || known.wanted_since.is_some(),
                    with_total: true,
                    version: known.version.clone()?,
                    known,
                })
            });
            match query {
                // A group without an owner that has changed fails the call for all groups.
                Some(query) if openim.owner.is_none() => ask_alone.push(query),
                Some(query) => ask.push(query),
                None => read.push(id),
            }
        }
        self.reconcile_changes(ask, job, &mut read).await?;
        self.reconcile_changes_singly(ask_alone, job, &mut read)
            .await?;
        self.reconcile_some(read, job, checkpoint).await
    }

    /// Reconciles groups. In a dry run at most so many at a time that their drift fits in memory.
    async fn reconcile_some(
        &self,
        groups: Vec<GroupId>,
        job: &Job<'_>,
        checkpoint: &mut Checkpoint<'_>,
    ) -> Result<(), Error> {
        let limit = match job.is_dry() {
            true => GROUPS_PER_CALL,
            false => LARGEST_PAGE,
        };
        for part in groups.chunks(limit) {
            self.reconcile_groups(part.to_vec(), job).await?;
            self.check_point(checkpoint, job).await?;
        }
        Ok(())
    }

    /// Records touched users that an earlier process has not recorded.
    async fn recover_touched(&self, groups: &[GroupId]) -> Result<(), Error> {
        if self.has_recovered_touched.load(Ordering::Relaxed) {
            return Ok(());
        }
        for part in groups.chunks(GROUPS_PER_CALL) {
            let part: Vec<&GroupId> = part.iter().collect();
            match self.store.note_touched_before(&part).await {
                // They are so large that reading them from OpenIM is no more work.
                Err(error) if error.is_timeout() => self.store.forget_versions(&part).await?,
                recorded => recorded?,
            }
        }
        Ok(())
    }

    /// Reconciles groups by their changes, many in a call. Groups that need more are added to `read`.
    async fn reconcile_changes(
        &self,
        groups: Vec<ChangesQuery>,
        job: &Job<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        let group_id = |query: ChangesQuery| query.known.group_id;
        let mut alone = Vec::new();
        let mut groups = groups.into_iter();
        loop {
            let some: Vec<ChangesQuery> = groups.by_ref().take(GROUPS_PER_CALL).collect();
            if some.is_empty() {
                break;
            }
            let mut parts = vec![some];
            let fence = self.store.fence().await?;
            while let Some(mut rest) = parts.pop() {
                if rest.is_empty() {
                    continue;
                }
                let before = rest.len();
                let versions: Vec<_> = rest.iter().map(ChangesQuery::version).collect();
                match self.reader.client.changes_of(&versions).await {
                    Ok(answered) => {
                        for (group, delta) in answered {
                            let is_it = |query: &ChangesQuery| query.known.group_id == group;
                            let Some(place) = rest.iter().position(is_it) else {
                                continue;
                            };
                            let query = rest.swap_remove(place);
                            self.take_changes(query, delta, &fence, job, read).await?;
                        }
                        if rest.len() < before {
                            parts.push(rest);
                        } else {
                            // They were dismissed just now, or are unknown.
                            read.extend(rest.into_iter().map(group_id));
                        }
                    }
                    Err(error) if error.is_too_large() && before > 1 => {
                        let second = rest.split_off(before / 2);
                        parts.extend([second, rest]);
                    }
                    // A single group fails the call for all.
                    Err(error) if error.code() == Some(NOT_FOUND) && before > 1 => {
                        alone.append(&mut rest);
                    }
                    Err(error) if error.is_of_call() => {
                        read.extend(rest.into_iter().map(group_id));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.reconcile_changes_singly(alone, job, read).await
    }

    /// As [`Self::reconcile_changes`], with a call for each group.
    async fn reconcile_changes_singly(
        &self,
        groups: Vec<ChangesQuery>,
        job: &Job<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        let mut groups = groups.into_iter();
        loop {
            let some: Vec<ChangesQuery> = groups.by_ref().take(GROUPS_PER_CALL).collect();
            if some.is_empty() {
                break;
            }
            let fence = self.store.fence().await?;
            let calls = stream::iter(some).map(async |query| {
                let (group, version) = query.version();
                let answer = self.reader.client.changes(group, Some(version)).await;
                (query, answer)
            });
            let calls = calls.buffer_unordered(self.settings.concurrency);
            let answered: Vec<_> = calls.collect().await;
            for (query, answer) in answered {
                match answer {
                    Ok(delta) => self.take_changes(query, delta, &fence, job, read).await?,
                    Err(error) if error.is_of_call() => read.push(query.known.group_id),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Reconciles a group by its changes, if there are any.
    async fn take_changes(
        &self,
        query: ChangesQuery,
        delta: Delta,
        fence: &Fence,
        job: &Job<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        let has_any = query.known.is_touched || query.with_group || !delta.is_at(&query.version);
        if delta.full {
            read.push(query.known.group_id);
        } else if has_any {
            let answer = ChangesAnswer { delta, group: None };
            self.apply_changes(&query, fence, answer, job).await?;
        }
        Ok(())
    }

    /// Returns the groups without those that are dismissed in OpenIM exactly as in the mirror, and the number of groups
    /// that are not dismissed here and too large for an answer.
    async fn without_dismissed(
        &self,
        groups: &[&KnownGroup],
    ) -> Result<(Vec<GroupId>, u64), Error> {
        let ids: Vec<&GroupId> = groups.iter().map(|known| &known.group_id).collect();
        let mut openim: HashMap<String, OpenImGroup> = HashMap::new();
        let mut too_large: HashSet<&GroupId> = HashSet::new();
        let mut halves = Halves::of(&ids, GROUPS_PER_CALL);
        while let Some(part) = halves.next() {
            match self.reader.client.group_infos(part).await {
                Ok(infos) => {
                    let infos = infos.into_iter();
                    openim.extend(infos.map(|info| (info.group_id.clone(), info.into_domain())));
                }
                Err(error) if error.is_too_large() => too_large.extend(halves.split(part)),
                // A single group fails the call for all.
                Err(error) if error.is_of_call() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let is_equal = |known: &KnownGroup| {
            let openim = openim.get(known.group_id.as_str());
            known.wanted_since.is_none()
                && !known.is_touched
                && openim.is_some_and(|openim| {
                    openim.status == DISMISSED
                        && compare_group(Some(&known.group), openim).is_none()
                })
        };
        let is_unlisted = |known: &&&KnownGroup| {
            !known.group.is_dismissed() && too_large.contains(&known.group_id)
        };
        let unlisted = groups.iter().filter(is_unlisted).count() as u64;
        let others = groups.iter().filter(|known| !is_equal(known));
        let others = others.map(|known| known.group_id.clone()).collect();
        Ok((others, unlisted))
    }

    /// Reconciles the groups that OpenIM has not listed: they are dismissed, unknown, new or too large. Returns the
    /// number of those that are too large.
    async fn reconcile_unlisted(
        &self,
        seen: &Seen,
        job: &Job<'_>,
        checkpoint: &mut Checkpoint<'_>,
    ) -> Result<u64, Error> {
        let mut too_large = 0;
        let mut after = String::new();
        loop {
            let page = self.store.groups_to_compare(&after, LARGEST_PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(too_large);
            };
            after = last.group_id.as_str().to_owned();
            // OpenIM lists no dismissed groups. So a dismissed group whose profile was compared is equal.
            let has_to_ask = |known: &&KnownGroup| {
                let is_noted = known.wanted_since.is_some() || known.is_touched;
                let is_settled = known.group.is_dismissed() && !is_noted;
                !seen.has(known.group_id.as_str()) && (job.is_full || !is_settled)
            };
            let asked: Vec<&KnownGroup> = page.iter().filter(has_to_ask).collect();
            job.report.saw(asked.len() as u64);
            let mut read = Vec::new();
            for part in asked.chunks(GROUPS_PER_CALL) {
                let (others, unlisted) = self.without_dismissed(part).await?;
                read.extend(others);
                too_large += unlisted;
            }
            self.reconcile_some(read, job, checkpoint).await?;
            self.check_point(checkpoint, job).await?;
        }
    }

    /// Compares the groups with drift again, after the delay of a mark, and passes on the drift that is still the same.
    pub(super) async fn confirm_drift(
        &self,
        job: &Job<'_>,
        tell: &mut (dyn FnMut(DriftEntry) + Send),
    ) -> Result<(), Error> {
        let first = job.take_drift();
        if first.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(self.settings.delay).await;
        let mut groups: Vec<GroupId> = first.iter().map(|entry| entry.group_id.clone()).collect();
        groups.sort_unstable();
        groups.dedup();
        // An own report, because these groups are counted already.
        let report = Report::default();
        let again = Job::dry(&report);
        self.reconcile_groups(groups, &again).await?;
        // An incomplete group is skipped both times.
        let before = job.report.skipped();
        let is_new = |group: &GroupId| {
            let mut before = before.iter();
            before.all(|(other, _)| other.as_ref() != Some(group))
        };
        for (group, why) in report.skipped() {
            if let Some(group) = group.filter(is_new) {
                job.report.skip(1, Some(&group), &why);
            }
        }
        let second: HashSet<DriftEntry> = again.take_drift().into_iter().collect();
        for entry in first.into_iter().filter(|entry| second.contains(entry)) {
            tell(entry);
        }
        Ok(())
    }
}

/// The reason why groups without an id are skipped.
fn too_large_to_list(unnamed: u64, places: &[u64]) -> String {
    let some = places.iter().take(MAX_NAMED_PLACES).map(u64::to_string);
    let mut at = some.collect::<Vec<_>>().join(", ");
    if places.len() > MAX_NAMED_PLACES {
        at.push_str(", ...");
    }
    let groups = match unnamed {
        1 => "1 group that is".to_owned(),
        more => format!("{more} groups that are"),
    };
    format!("{groups} too large for an answer of OpenIM, of those at {at} on its list of groups")
}
