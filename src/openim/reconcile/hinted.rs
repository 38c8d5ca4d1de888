//! Groups of which a hint says that something has happened to them: looked at as soon as they are due, by
//! whichever process has got the hint.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::pace::paced;
use super::super::wire::Delta;
use super::check::{Opened, Outcome, Told};
use super::pass::{Expected, Pass};
use super::removals::Removals;
use super::walk::Asked;
use super::{Error, Inner, Tally};
use crate::domain::{Fence, GroupId, HintKind, MarkReason, OpenImGroup};
use crate::ingest::{Due, LookEnd};
use crate::store::KnownGroup;

/// Groups that are taken at a time: so many can be asked about in one call.
const AT_ONCE: usize = 100;
/// How soon it is looked again whether callbacks are written.
const SPOOLING: Duration = Duration::from_millis(100);
/// How often it is looked whether a cycle has told how many members may go.
const LIMITS: Duration = Duration::from_secs(1);

/// How a look ended, as it is counted.
const COMPARED: &str = "compared";
const LEFT: &str = "left";
const UNKNOWN: &str = "unknown";
const AGAIN: &str = "again";
const FAILED: &str = "failed";
pub(super) const OUTCOMES: [&str; 5] = [COMPARED, LEFT, UNKNOWN, AGAIN, FAILED];

/// A group that is looked at because it was due. Where it is dropped before its end, the look has failed,
/// and the group stays due.
#[derive(Debug)]
pub(super) struct Looked<'a> {
    pub(super) due: Due,
    inner: &'a Inner,
    is_ended: bool,
}

impl<'a> Looked<'a> {
    fn new(due: Due, inner: &'a Inner) -> Self {
        Self {
            due,
            inner,
            is_ended: false,
        }
    }

    pub(super) fn group(&self) -> &GroupId {
        &self.due.group_id
    }

    /// The look has come to this.
    pub(super) async fn end(self, checked: Result<Outcome, Error>) {
        match checked {
            // What came meanwhile has marked the group, or made it due again.
            Ok(Outcome::Compared | Outcome::Meanwhile) => self.end_as(LookEnd::Done, COMPARED),
            // Whoever looks after marks goes on with it.
            Ok(Outcome::ToDecide | Outcome::InPart) => self.end_as(LookEnd::Done, LEFT),
            Ok(Outcome::Left) => drop(self),
            Ok(Outcome::Skipped) => self.end_as(LookEnd::Again, AGAIN),
            Err(error @ Error::TooManyRemovals { .. }) => {
                tracing::error!("{error}");
                let inner = self.inner;
                if inner.store.note_too_many_removals().await.is_ok() {
                    let why = MarkReason::TooManyRemovals;
                    inner.ingest.want_check(self.group().clone(), why);
                    self.end_as(LookEnd::Done, LEFT);
                }
            }
            Err(error) => {
                let error = error.to_string();
                tracing::debug!(error, "a group that a hint is about was not compared");
            }
        }
    }

    fn end_as(mut self, end: LookEnd, outcome: &str) {
        self.is_ended = true;
        let since = self.due.hinted_since.filter(|_| outcome == COMPARED);
        let metrics = &self.inner.metrics;
        metrics.looks.inc([outcome]);
        if let Some(since) = since {
            metrics.hint_seconds.observe([], since.elapsed());
        }
        self.inner.ingest.hints().looked(self.group(), end);
    }
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.inner.metrics.looks.inc([FAILED]);
            let hints = self.inner.ingest.hints();
            hints.looked(&self.due.group_id, LookEnd::Failed);
        }
    }
}

/// A group that is asked about beside others.
struct OneOfSeveral<'a> {
    looked: Looked<'a>,
    asked: Asked,
    /// Where callbacks have named members.
    opened: Option<Opened<'a>>,
}

/// How many members may go, counted from one cycle to the next as with checks.
#[derive(Debug, Default)]
struct Limits {
    asked_at: Option<Instant>,
    removals: (Option<i64>, Arc<Removals>),
}

impl Inner {
    /// Looks at groups when they are due.
    pub(super) async fn run_hints(&self, closing: &CancellationToken) {
        let limits = Mutex::new(Limits::default());
        let mut looks = FuturesUnordered::new();
        let has_place = |looks: usize| looks < self.settings.concurrency;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                Some(()) = looks.next() => {}
                due = self.due(), if has_place(looks.len()) => {
                    looks.push(self.look_at(due, &limits));
                }
            }
        }
    }

    /// What is due, once callbacks are written and not spooled, and OpenIM may be asked.
    async fn due(&self) -> Vec<Due> {
        while self.is_spooling() {
            sleep(SPOOLING).await;
        }
        self.pace.until_free().await;
        self.ingest.hints().due(AT_ONCE).await
    }

    /// Looks at groups; each stays due where that fails.
    async fn look_at(&self, due: Vec<Due>, limits: &Mutex<Limits>) {
        let expected = due.iter().map(|due| {
            let expected = Expected {
                announced: due.announced,
                has_group: due.kinds.has_group(),
                is_dismissed: due.kinds.has(HintKind::GroupDismissed),
            };
            (due.group_id.clone(), expected)
        });
        let expected = expected.collect();
        let looked = due.into_iter().map(|due| Looked::new(due, self));
        let mut looked: Vec<Looked<'_>> = looked.collect();
        let look = async {
            let removals = self.removals(limits).await?;
            let mut ids: Vec<GroupId> =
                looked.iter().map(|looked| looked.group().clone()).collect();
            if ids.len() > 1 {
                // So that it is known of whom callbacks have named members.
                let ids: Vec<&GroupId> = ids.iter().collect();
                self.store.note_touched_of(&ids).await?;
            }
            let tally = Tally::default();
            let pass = Pass::new(&removals, &tally, false).expecting(expected);
            while !looked.is_empty() {
                let (known, count) = self.store.known_groups(&ids).await?;
                let known = known.into_iter();
                let known = known.map(|known| (known.group_id.clone(), known));
                let known: HashMap<GroupId, KnownGroup> = known.collect();
                let rest = looked.split_off(count);
                ids.drain(..count);
                let some = self.known_somewhere(looked, &known).await?;
                self.look_some(some, known, &pass).await;
                looked = rest;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = paced(&self.pace, look).await {
            let error = error.to_string();
            tracing::debug!(error, "groups that hints are about were not compared");
        }
    }

    async fn removals(&self, limits: &Mutex<Limits>) -> Result<Arc<Removals>, Error> {
        let mut limits = limits.lock().await;
        if limits.asked_at.is_none_or(|at| at.elapsed() >= LIMITS) {
            self.begin_anew_after_a_cycle(&mut limits.removals).await?;
            limits.asked_at = Some(Instant::now());
        }
        Ok(Arc::clone(&limits.removals.1))
    }

    /// Without those that neither the mirror nor OpenIM knows: nothing is written of them, and no call is
    /// made that would have OpenIM make a version of them.
    async fn known_somewhere<'a>(
        &self,
        looked: Vec<Looked<'a>>,
        known: &HashMap<GroupId, KnownGroup>,
    ) -> Result<Vec<Looked<'a>>, Error> {
        let is_known = |id: &GroupId| known.contains_key(id);
        let ids = looked.iter().map(|looked| looked.group());
        let unknown: Vec<&GroupId> = ids.filter(|id| !is_known(id)).collect();
        if unknown.is_empty() {
            return Ok(looked);
        }
        let mut held = Vec::new();
        match self.fetch.client.group_infos(&unknown).await {
            Ok(infos) => held.extend(infos),
            // One of them spoils it for all.
            Err(error) if error.is_of_call() => {
                for group in &unknown {
                    match self.fetch.client.group_infos(&[*group]).await {
                        Ok(infos) => held.extend(infos),
                        Err(error) if error.is_of_call() => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        let is_held = |id: &GroupId| held.iter().any(|info| info.group_id == id.as_str());
        let (there, nowhere): (Vec<_>, Vec<_>) = looked
            .into_iter()
            .partition(|looked| is_known(looked.group()) || is_held(looked.group()));
        for looked in nowhere {
            looked.end_as(LookEnd::Done, UNKNOWN);
        }
        Ok(there)
    }

    /// Compares groups, each of which is ended when it is done with.
    async fn look_some(
        &self,
        groups: Vec<Looked<'_>>,
        known: HashMap<GroupId, KnownGroup>,
        pass: &Pass<'_>,
    ) {
        let singly = match self.look_together(groups, known, pass).await {
            Ok(singly) => singly,
            Err(error) => {
                let error = error.to_string();
                tracing::debug!(error, "groups that hints are about were not compared");
                return;
            }
        };
        let mut rest = singly.into_iter();
        let mut looks = FuturesUnordered::new();
        loop {
            while looks.len() < self.settings.concurrency
                && let Some(looked) = rest.next()
            {
                looks.push(self.look(looked, pass));
            }
            if looks.next().await.is_none() {
                return;
            }
        }
    }

    /// Asks in one call what has changed in groups, and in another how many members they have and what they
    /// are themselves. Returns those that have to be looked at one by one.
    async fn look_together<'a>(
        &'a self,
        groups: Vec<Looked<'a>>,
        mut known: HashMap<GroupId, KnownGroup>,
        pass: &Pass<'_>,
    ) -> Result<Vec<Looked<'a>>, Error> {
        if groups.len() < 2 {
            return Ok(groups);
        }
        let (mut together, mut singly) = (Vec::new(), Vec::new());
        for looked in groups {
            // One without an owner would spoil it for all.
            let known = known.remove(looked.group());
            let known = known.filter(|known| known.group.owner.is_some());
            let asked = known.and_then(|known| self.asked(known, pass));
            match self.one_of_several(looked, asked, pass).await {
                Ok(one) => together.push(one),
                Err(looked) => singly.push(looked),
            }
        }
        if together.is_empty() {
            return Ok(singly);
        }
        let fence = self.store.fence().await?;
        let versions: Vec<_> = together.iter().map(|one| one.asked.version()).collect();
        let deltas = match self.fetch.client.changes_of(&versions).await {
            Ok(deltas) => deltas,
            Err(error) if error.is_of_call() => vec![],
            Err(error) => return Err(error.into()),
        };
        let mut deltas: HashMap<GroupId, Delta> = deltas.into_iter().collect();
        deltas.retain(|_, delta| !delta.full);
        let mut infos = self.infos(deltas.keys()).await?;
        let mut together = together.into_iter();
        let mut updates = FuturesUnordered::new();
        let mut compared = Vec::new();
        loop {
            while updates.len() < self.settings.concurrency
                && let Some(one) = together.next()
            {
                // Where nothing is told of it, as of one that was just dismissed, or too much.
                let Some(delta) = deltas.remove(one.looked.group()) else {
                    singly.push(one.looked);
                    continue;
                };
                let (total, info) = infos.remove(one.looked.group()).unzip();
                let updated = self.take_changes(one, Told { delta, info }, &fence, pass);
                updates.push(async move { (updated.await, total) });
            }
            match updates.next().await {
                None => break,
                Some(((looked, Ok(Outcome::Compared | Outcome::Meanwhile)), total)) => {
                    compared.push((looked, total));
                }
                Some(((looked, updated), _)) => looked.end(updated).await,
            }
        }
        singly.extend(self.with_other_totals(compared).await?);
        Ok(singly)
    }

    /// A group that can be asked about beside others; if not, it is given back.
    async fn one_of_several<'a>(
        &'a self,
        looked: Looked<'a>,
        asked: Option<Asked>,
        pass: &Pass<'_>,
    ) -> Result<OneOfSeveral<'a>, Looked<'a>> {
        let Some(mut asked) = asked else {
            return Err(looked);
        };
        if !asked.known.is_touched {
            let opened = None;
            return Ok(OneOfSeveral {
                looked,
                asked,
                opened,
            });
        }
        // Where that fails it may be the group alone, which is seen when it is looked at.
        let Ok(Some(opened)) = self.open(looked.group(), pass).await else {
            return Err(looked);
        };
        asked.version = opened.version().clone();
        let opened = Some(opened);
        Ok(OneOfSeveral {
            looked,
            asked,
            opened,
        })
    }

    /// How many members groups have, and what they are themselves.
    async fn infos(
        &self,
        groups: impl Iterator<Item = &GroupId>,
    ) -> Result<HashMap<GroupId, (u64, OpenImGroup)>, Error> {
        let groups: Vec<&GroupId> = groups.collect();
        if groups.is_empty() {
            return Ok(HashMap::new());
        }
        let infos = match self.fetch.client.group_infos(&groups).await {
            Ok(infos) => infos,
            Err(error) if error.is_of_call() => vec![],
            Err(error) => return Err(error.into()),
        };
        let infos = infos.into_iter();
        let infos =
            infos.filter_map(|info| Some((info.id().ok()?, (info.member_count, info.held()))));
        Ok(infos.collect())
    }

    /// Takes what calls for several groups tell of one.
    async fn take_changes<'a>(
        &'a self,
        one: OneOfSeveral<'a>,
        told: Told,
        fence: &Fence,
        pass: &Pass<'_>,
    ) -> (Looked<'a>, Result<Outcome, Error>) {
        let OneOfSeveral {
            looked,
            asked,
            opened,
        } = one;
        let is_as_it_was = told.delta.is_at(&asked.version);
        let updated = match opened {
            Some(opened) => self.update_opened(&asked, &opened, told, pass).await,
            None if is_as_it_was && !asked.has_group => Ok(Outcome::Compared),
            None => self.update(&asked, fence, told, pass).await,
        };
        (looked, updated)
    }

    /// Ends those looks whose groups have as many members here as in OpenIM; the others have to be looked
    /// at one by one, for the count of this answer may be out of date.
    async fn with_other_totals<'a>(
        &self,
        compared: Vec<(Looked<'a>, Option<u64>)>,
    ) -> Result<Vec<Looked<'a>>, Error> {
        let ids: Vec<&GroupId> = compared.iter().map(|(looked, _)| looked.group()).collect();
        if ids.is_empty() {
            return Ok(vec![]);
        }
        let here = match self.store.count_members_of(&ids).await {
            Ok(here) => here,
            // One may be too large to be counted: it must not keep us from the others.
            Err(error) if error.is_timeout() => HashMap::new(),
            Err(error) => return Err(error.into()),
        };
        let mut others = Vec::new();
        for (looked, total) in compared {
            match total.is_some() && total == here.get(looked.group().as_str()).copied() {
                true => looked.end(Ok(Outcome::Compared)).await,
                false => others.push(looked),
            }
        }
        Ok(others)
    }

    /// What to ask of a group where its changes are enough.
    fn asked(&self, known: KnownGroup, pass: &Pass<'_>) -> Option<Asked> {
        let read_at = known.read_at?;
        if !self.is_enough(read_at, pass) {
            return None;
        }
        Some(Asked {
            version: known.version.clone()?,
            has_group: known.wanted_since.is_some() || pass.has_group(&known.group_id),
            has_total: false,
            known,
        })
    }

    async fn look(&self, looked: Looked<'_>, pass: &Pass<'_>) {
        let checked = self.check(looked.group(), pass).await;
        looked.end(checked).await;
    }
}
