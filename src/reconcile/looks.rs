//! Looks: reconciles groups that hints name, as soon as they are due. Each instance looks at the groups of its own
//! hints.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::group::{ChangesAnswer, ChangesQuery, Outcome, TouchedGroup};
use super::removals::{Removals, RemovalsSinceRun};
use super::report::{HintSummary, Job};
use super::{Core, Error, Report};
use crate::domain::{Fence, GroupId, HintKind, MarkReason, OpenImGroup};
use crate::ingest::{DueLook, LookEnd};
use crate::openim::{Delta, paced};
use crate::store::KnownGroup;

/// Groups in one call of OpenIM.
const GROUPS_PER_CALL: usize = 100;
/// Interval of checking if spooled callbacks are written.
const DIVERTING_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of checking if a run has changed the limits of removals.
const LIMITS_POLL_INTERVAL: Duration = Duration::from_secs(1);

// Labels of the metric.
const COMPARED: &str = "compared";
const LEFT: &str = "left";
const UNKNOWN: &str = "unknown";
const AGAIN: &str = "again";
const FAILED: &str = "failed";
/// Outcomes of looks.
pub(super) const OUTCOMES: [&str; 5] = [COMPARED, LEFT, UNKNOWN, AGAIN, FAILED];

/// A look. Fails if it is dropped before its end; the group is due again then.
#[derive(Debug)]
struct Look<'a> {
    due: DueLook,
    inner: &'a Core,
    has_ended: bool,
}

impl Look<'_> {
    fn group(&self) -> &GroupId {
        &self.due.group_id
    }

    async fn end(self, done: Result<Outcome, Error>) {
        match done {
            // A change meanwhile has marked the group, or made another look due.
            Ok(Outcome::Equal | Outcome::ChangedMeanwhile) => self.end_as(LookEnd::Done, COMPARED),
            // The group is marked.
            Ok(Outcome::NeedsDecision | Outcome::Incomplete) => self.end_as(LookEnd::Done, LEFT),
            Ok(Outcome::Skipped) => drop(self),
            Ok(Outcome::Busy) => self.end_as(LookEnd::Again, AGAIN),
            Err(error @ Error::TooManyRemovals { .. }) => {
                tracing::error!("{error}");
                let inner = self.inner;
                if inner.store.note_too_many_removals().await.is_ok() {
                    let why = MarkReason::TooManyRemovals;
                    inner.ingest.mark_unwaited(self.group().clone(), why);
                    self.end_as(LookEnd::Done, LEFT);
                }
            }
            Err(error) => {
                tracing::debug!(error = error.to_string(), "a look failed");
            }
        }
    }

    fn end_as(mut self, end: LookEnd, outcome: &str) {
        self.has_ended = true;
        let since = self.due.hinted_since.filter(|_| outcome == COMPARED);
        let took = since.map(|since| since.elapsed());
        let metrics = &self.inner.metrics;
        metrics.looks.inc([outcome]);
        if let Some(took) = took {
            metrics.hint_seconds.observe([], took);
        }
        self.inner.ingest.hints().looked(self.group(), end);
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.inner.metrics.looks.inc([FAILED]);
            let hints = self.inner.ingest.hints();
            hints.looked(&self.due.group_id, LookEnd::Failed);
        }
    }
}

/// Look at a group whose changes are asked for in one call with others.
struct SharedLook<'a> {
    look: Look<'a>,
    query: ChangesQuery,
    /// Set if callbacks have named members.
    touched: Option<TouchedGroup<'a>>,
}

/// Limits of removals by looks.
#[derive(Debug, Default)]
struct Limits {
    polled_at: Option<Instant>,
    since_run: RemovalsSinceRun,
    removals: Arc<Removals>,
}

impl Core {
    /// Looks at groups when they are due, until `closing`.
    pub(super) async fn watch_hints(self: Arc<Self>, closing: CancellationToken) {
        let limits = Mutex::new(Limits::default());
        let mut looks = FuturesUnordered::new();
        let has_room = |looks: usize| looks < self.settings.concurrency;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                Some(()) = looks.next() => {}
                due = self.due_looks(), if has_room(looks.len()) => {
                    looks.push(self.look_at(due, &limits));
                }
            }
        }
    }

    /// Waits until looks are due. While callbacks are spooled, or the pace allows no call, none begins.
    async fn due_looks(&self) -> Vec<DueLook> {
        while self.is_diverting() {
            sleep(DIVERTING_POLL_INTERVAL).await;
        }
        self.pace.until_free().await;
        self.ingest.hints().due(GROUPS_PER_CALL).await
    }

    /// Looks at groups. After an error the rest of them is due again.
    async fn look_at(&self, due: Vec<DueLook>, limits: &Mutex<Limits>) {
        let hints = due.iter().map(|due| {
            let summary = HintSummary {
                announced_leaves: due.announced_leaves,
                has_group: due.kinds.has_group(),
                is_dismissed: due.kinds.has(HintKind::GroupDismissed),
            };
            (due.group_id.clone(), summary)
        });
        let hints = hints.collect();
        let looks = due.into_iter().map(|due| Look {
            due,
            inner: self,
            has_ended: false,
        });
        let mut looks: Vec<Look<'_>> = looks.collect();
        let work = async {
            let removals = self.removals_of_looks(limits).await?;
            let mut ids: Vec<GroupId> = looks.iter().map(|look| look.group().clone()).collect();
            if ids.len() > 1 {
                // So that the groups that are read next show the touched users.
                let ids: Vec<&GroupId> = ids.iter().collect();
                self.store.note_touched_of(&ids).await?;
            }
            let report = Report::default();
            let job = Job::new(&removals, &report, false).with_hints(hints);
            while !looks.is_empty() {
                let (known, count) = self.store.known_groups(&ids).await?;
                let known = known.into_iter();
                let known = known.map(|known| (known.group_id.clone(), known));
                let known: HashMap<GroupId, KnownGroup> = known.collect();
                let rest = looks.split_off(count);
                ids.drain(..count);
                let some = self.end_unknown(looks, &known).await?;
                self.look_at_some(some, known, &job).await;
                looks = rest;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = paced(&self.pace, work).await {
            tracing::debug!(error = error.to_string(), "looks failed");
        }
    }

    async fn removals_of_looks(&self, limits: &Mutex<Limits>) -> Result<Arc<Removals>, Error> {
        let mut limits = limits.lock().await;
        let limits = &mut *limits;
        let polled_at = limits.polled_at;
        if polled_at.is_none_or(|at| at.elapsed() >= LIMITS_POLL_INTERVAL) {
            limits.removals = limits.since_run.current(&self.store).await?;
            limits.polled_at = Some(Instant::now());
        }
        Ok(Arc::clone(&limits.removals))
    }

    /// Ends the looks at groups that neither the mirror nor OpenIM knows. For them nothing is written, and no call is
    /// made with which OpenIM would make a version.
    async fn end_unknown<'a>(
        &self,
        looks: Vec<Look<'a>>,
        known: &HashMap<GroupId, KnownGroup>,
    ) -> Result<Vec<Look<'a>>, Error> {
        let is_known = |id: &GroupId| known.contains_key(id);
        let ids = looks.iter().map(Look::group);
        let unknown: Vec<&GroupId> = ids.filter(|id| !is_known(id)).collect();
        if unknown.is_empty() {
            return Ok(looks);
        }
        let client = &self.reader.client;
        let mut infos = Vec::new();
        match client.group_infos(&unknown).await {
            Ok(all) => infos.extend(all),
            // A single group fails the call for all.
            Err(error) if error.is_of_call() => {
                for group in &unknown {
                    match client.group_infos(&[*group]).await {
                        Ok(one) => infos.extend(one),
                        Err(error) if error.is_of_call() => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        let is_in_openim = |id: &GroupId| infos.iter().any(|info| info.group_id == id.as_str());
        let (known, unknown): (Vec<_>, Vec<_>) = looks
            .into_iter()
            .partition(|look| is_known(look.group()) || is_in_openim(look.group()));
        for look in unknown {
            look.end_as(LookEnd::Done, UNKNOWN);
        }
        Ok(known)
    }

    async fn look_at_some(
        &self,
        looks: Vec<Look<'_>>,
        known: HashMap<GroupId, KnownGroup>,
        job: &Job<'_>,
    ) {
        let singly = match self.look_together(looks, known, job).await {
            Ok(singly) => singly,
            Err(error) => {
                tracing::debug!(error = error.to_string(), "looks failed");
                return;
            }
        };
        let mut rest = singly.into_iter();
        let mut looks = FuturesUnordered::new();
        loop {
            while looks.len() < self.settings.concurrency
                && let Some(look) = rest.next()
            {
                looks.push(async move {
                    let done = self.reconcile_group(look.group(), job).await;
                    look.end(done).await;
                });
            }
            if looks.next().await.is_none() {
                return;
            }
        }
    }

    /// Asks for the changes of groups in one call, and for the groups and their numbers of members in another. Returns
    /// the looks that have to ask alone.
    async fn look_together<'a>(
        &'a self,
        looks: Vec<Look<'a>>,
        mut known: HashMap<GroupId, KnownGroup>,
        job: &Job<'_>,
    ) -> Result<Vec<Look<'a>>, Error> {
        if looks.len() < 2 {
            return Ok(looks);
        }
        let (mut together, mut singly) = (Vec::new(), Vec::new());
        for look in looks {
            // A group without an owner fails the call for all groups.
            let known = known.remove(look.group());
            let known = known.filter(|known| known.group.owner.is_some());
            let query = known.and_then(|known| self.query(known, job));
            match self.share(look, query, job).await {
                Ok(shared) => together.push(shared),
                Err(look) => singly.push(look),
            }
        }
        if together.is_empty() {
            return Ok(singly);
        }
        let fence = self.store.fence().await?;
        let versions: Vec<_> = together.iter().map(|one| one.query.version()).collect();
        let deltas = match self.reader.client.changes_of(&versions).await {
            Ok(deltas) => deltas,
            Err(error) if error.is_of_call() => vec![],
            Err(error) => return Err(error.into()),
        };
        let mut deltas: HashMap<GroupId, Delta> = deltas.into_iter().collect();
        deltas.retain(|_, delta| !delta.full);
        let mut infos = self.infos(deltas.keys()).await?;
        let mut together = together.into_iter();
        let mut updates = FuturesUnordered::new();
        let mut equal = Vec::new();
        loop {
            while updates.len() < self.settings.concurrency
                && let Some(shared) = together.next()
            {
                // OpenIM sends nothing about a group that was just dismissed, or if there is too much.
                let Some(delta) = deltas.remove(shared.look.group()) else {
                    singly.push(shared.look);
                    continue;
                };
                let (total, group) = infos.remove(shared.look.group()).unzip();
                let answer = ChangesAnswer { delta, group };
                let update = self.look_shared(shared, answer, &fence, job);
                updates.push(async move { (update.await, total) });
            }
            match updates.next().await {
                None => break,
                Some(((look, Ok(Outcome::Equal | Outcome::ChangedMeanwhile)), total)) => {
                    equal.push((look, total));
                }
                Some(((look, done), _)) => look.end(done).await,
            }
        }
        singly.extend(self.with_other_totals(equal).await?);
        Ok(singly)
    }

    /// Makes a look that shares its call; returns it unchanged if it has to ask alone.
    async fn share<'a>(
        &'a self,
        look: Look<'a>,
        query: Option<ChangesQuery>,
        job: &Job<'_>,
    ) -> Result<SharedLook<'a>, Look<'a>> {
        let Some(mut query) = query else {
            return Err(look);
        };
        let mut touched = None;
        if query.known.is_touched {
            // An error may concern this group alone; then the single look has it too.
            let Ok(Some(begun)) = self.begin_touched(look.group(), job).await else {
                return Err(look);
            };
            query.version = begun.version.clone();
            touched = Some(begun);
        }
        Ok(SharedLook {
            look,
            query,
            touched,
        })
    }

    /// Reads the number of members of groups, and the groups themselves.
    async fn infos(
        &self,
        groups: impl Iterator<Item = &GroupId>,
    ) -> Result<HashMap<GroupId, (u64, OpenImGroup)>, Error> {
        let groups: Vec<&GroupId> = groups.collect();
        if groups.is_empty() {
            return Ok(HashMap::new());
        }
        let infos = match self.reader.client.group_infos(&groups).await {
            Ok(infos) => infos,
            Err(error) if error.is_of_call() => vec![],
            Err(error) => return Err(error.into()),
        };
        let infos = infos.into_iter().filter_map(|info| {
            let id = info.id().ok()?;
            Some((id, (info.member_count, info.into_domain())))
        });
        Ok(infos.collect())
    }

    async fn look_shared<'a>(
        &'a self,
        shared: SharedLook<'a>,
        answer: ChangesAnswer,
        fence: &Fence,
        job: &Job<'_>,
    ) -> (Look<'a>, Result<Outcome, Error>) {
        let SharedLook {
            look,
            query,
            touched,
        } = shared;
        let is_unchanged = answer.delta.is_at(&query.version) && !query.with_group;
        let done = match touched {
            Some(touched) => self.apply_touched(&query, &touched, answer, job).await,
            None if is_unchanged => Ok(Outcome::Equal),
            None => self.apply_changes(&query, fence, answer, job).await,
        };
        (look, done)
    }

    /// Ends the looks at groups that have as many members here as in OpenIM. Returns the others: the count of an answer
    /// for many groups may be out of date.
    async fn with_other_totals<'a>(
        &self,
        equal: Vec<(Look<'a>, Option<u64>)>,
    ) -> Result<Vec<Look<'a>>, Error> {
        let ids: Vec<&GroupId> = equal.iter().map(|(look, _)| look.group()).collect();
        if ids.is_empty() {
            return Ok(vec![]);
        }
        let here = match self.store.count_members_of(&ids).await {
            Ok(here) => here,
            // A single group may be too large to count. The others have to go on.
            Err(error) if error.is_timeout() => HashMap::new(),
            Err(error) => return Err(error.into()),
        };
        let mut others = Vec::new();
        for (look, total) in equal {
            match total.is_some() && total == here.get(look.group().as_str()).copied() {
                true => look.end(Ok(Outcome::Equal)).await,
                false => others.push(look),
            }
        }
        Ok(others)
    }

    /// Makes the question for a group whose changes are enough.
    fn query(&self, known: KnownGroup, job: &Job<'_>) -> Option<ChangesQuery> {
        if !self.changes_suffice(known.read_at?, job) {
            return None;
        }
        Some(ChangesQuery {
            version: known.version.clone()?,
            with_group: known.wanted_since.is_some() || job.has_group(&known.group_id),
            with_total: false,
            known,
        })
    }
}
