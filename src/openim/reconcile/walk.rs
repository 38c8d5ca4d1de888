//! Through all groups: those that OpenIM lists, and those that only the mirror has.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use time::OffsetDateTime;

use super::super::calls::PAGE;
use super::super::wire::Group;
use super::check::{Outcome, Pass};
use super::dry_run::Pending;
use super::{Error, Inner};
use crate::domain::{DISMISSED, GroupId, HeldGroup, Version, group_verdict};
use crate::store::KnownGroup;

/// Groups that OpenIM is asked about in one call.
const AT_ONCE: usize = 100;
/// How often the list is read that changes faster than it can be read.
const SCANS: usize = 3;
/// Groups that were seen, by a hash: two that have the same are taken for one once in so many
/// millions of years.
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

impl Inner {
    /// Goes through all groups. In a dry run what differs is held in `pending`.
    pub(super) async fn through_all(
        &self,
        is_full: bool,
        pass: &Pass<'_>,
        mut pending: Option<&mut Pending<'_>>,
    ) -> Result<(), Error> {
        if !pass.is_dry {
            self.look_back().await?;
        }
        let recent = match is_full {
            true => Duration::ZERO,
            false => self.settings.full_interval,
        };
        let mut seen = Seen::new();
        for _ in 0..SCANS {
            let total = self
                .through_openim(&mut seen, recent, pass, pending.as_deref_mut())
                .await?;
            // A group that was dismissed meanwhile has moved others to pages that were read.
            if seen.count() >= total {
                break;
            }
        }
        self.through_mirror(&seen, recent, is_full, pass, pending)
            .await
    }

    /// Forgets versions that are of no use: those of this process, and once what an earlier one did
    /// not come to.
    async fn look_back(&self) -> Result<(), Error> {
        self.store.forget_versions().await?;
        if !self.has_looked_back.load(Ordering::Relaxed) {
            let mut after = String::new();
            while let Some(last) = self.store.forget_versions_of_heard(&after).await? {
                after = last;
            }
            self.has_looked_back.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The groups that OpenIM lists, but for those that were seen; how many it says there are.
    async fn through_openim(
        &self,
        seen: &mut Seen,
        recent: Duration,
        pass: &Pass<'_>,
        mut pending: Option<&mut Pending<'_>>,
    ) -> Result<u64, Error> {
        for page in 1.. {
            let asked_at = self.store.clock().await?;
            let answer = self.fetch.client.groups(page).await?;
            let total = answer.total;
            pass.tally.expect(total);
            let count = answer.groups.len();
            let mut groups: Vec<(GroupId, Group)> = Vec::new();
            for entry in answer.groups {
                let group = entry.into_group();
                if !seen.add(&group.group_id) {
                    continue;
                }
                match group.id() {
                    Ok(id) => groups.push((id, group)),
                    Err(error) => {
                        let error = error.to_string();
                        tracing::warn!(error, "OpenIM has a group whose groupID cannot be kept");
                    }
                }
            }
            self.through_page(groups, asked_at, recent, pass, pending.as_deref_mut())
                .await?;
            if count < PAGE {
                return Ok(total);
            }
        }
        Ok(0) // cannot be: the pages have no end
    }

    /// Some groups of OpenIM: those with a version are asked whether they have changed, the others
    /// are read.
    async fn through_page(
        &self,
        groups: Vec<(GroupId, Group)>,
        asked_at: OffsetDateTime,
        recent: Duration,
        pass: &Pass<'_>,
        pending: Option<&mut Pending<'_>>,
    ) -> Result<(), Error> {
        let ids: Vec<GroupId> = groups.iter().map(|(id, _)| id.clone()).collect();
        let known = self.store.known_groups(&ids, recent).await?;
        let mut known: HashMap<GroupId, KnownGroup> = known
            .into_iter()
            .map(|known| (known.group_id.clone(), known))
            .collect();
        let (mut ask, mut read) = (Vec::new(), Vec::new());
        for (id, group) in groups {
            let known = known.remove(&id);
            let held = group.held();
            let is_as_stored = known.as_ref().is_some_and(|known| {
                known.is_recent
                    && known.wanted_since.is_none()
                    && group_verdict(Some(&known.group), &held).is_none()
            });
            match known.and_then(|known| known.version) {
                Some(version) if is_as_stored => ask.push((id, version)),
                _ => read.push(id),
            }
        }
        pass.tally.saw(ids.len() as u64);
        let updates = self.ask(ask, asked_at, pass, &mut read).await?;
        let reads = stream::iter(read).map(|id| async move { self.check(&id, pass).await });
        let mut reads = reads.buffer_unordered(self.settings.concurrency.max(1));
        let mut pending = pending;
        for outcome in updates {
            keep(&mut pending, outcome);
        }
        while let Some(outcome) = reads.try_next().await? {
            keep(&mut pending, outcome);
        }
        drop(reads);
        match pending {
            Some(pending) => pending.confirm(self, pass).await,
            None => Ok(()),
        }
    }

    /// Asks which groups have changed since their versions, and takes what has. Those of which that
    /// cannot be told go to `read`.
    async fn ask(
        &self,
        groups: Vec<(GroupId, Version)>,
        asked_at: OffsetDateTime,
        pass: &Pass<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = Vec::new();
        for some in groups.chunks(AT_ONCE) {
            let mut rest = some.to_vec();
            while !rest.is_empty() {
                let answered = match self.fetch.client.changes_of(&rest).await {
                    Ok(answered) => answered,
                    // One of them spoils it for all.
                    Err(error) if error.is_of_call() => Vec::new(),
                    Err(error) => return Err(error.into()),
                };
                if answered.is_empty() {
                    // Dismissed just now, or unknown.
                    read.extend(rest.drain(..).map(|(group, _)| group));
                }
                for (group, delta) in answered {
                    let Some(place) = rest.iter().position(|(id, _)| *id == group) else {
                        continue;
                    };
                    let (group, version) = rest.swap_remove(place);
                    if delta.full {
                        read.push(group);
                    } else if !delta.is_at(&version) {
                        let update = self.update(&group, &version, asked_at, delta, pass);
                        outcomes.push(update.await?);
                    }
                }
            }
        }
        Ok(outcomes)
    }

    /// Those of these groups that OpenIM does not say to be dismissed just as the mirror does.
    async fn unless_still_dismissed(&self, groups: &[&KnownGroup]) -> Result<Vec<GroupId>, Error> {
        let ids: Vec<&GroupId> = groups.iter().map(|known| &known.group_id).collect();
        let infos = self.fetch.client.group_infos(&ids).await?;
        let held: HashMap<String, HeldGroup> = infos
            .into_iter()
            .map(|info| (info.group_id.clone(), info.held()))
            .collect();
        let is_settled = |known: &KnownGroup| {
            let held = held.get(known.group_id.as_str());
            known.wanted_since.is_none()
                && held.is_some_and(|held| {
                    held.status == DISMISSED && group_verdict(Some(&known.group), held).is_none()
                })
        };
        let others = groups.iter().filter(|known| !is_settled(known));
        Ok(others.map(|known| known.group_id.clone()).collect())
    }

    /// The groups that OpenIM has not listed: dismissed, or unknown, or new.
    async fn through_mirror(
        &self,
        seen: &Seen,
        recent: Duration,
        is_full: bool,
        pass: &Pass<'_>,
        mut pending: Option<&mut Pending<'_>>,
    ) -> Result<(), Error> {
        let mut after = String::new();
        loop {
            let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
            let page = self.store.groups_to_compare(&after, limit, recent).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.group_id.as_str().to_owned();
            // OpenIM lists no group that is dismissed, so one that it does not list may stay so.
            let is_asked = |known: &&KnownGroup| {
                let is_settled = known.group.is_dismissed() && known.wanted_since.is_none();
                !seen.has(known.group_id.as_str()) && (is_full || !is_settled)
            };
            let asked: Vec<&KnownGroup> = page.iter().filter(is_asked).collect();
            pass.tally.saw(asked.len() as u64);
            let mut read = Vec::new();
            for some in asked.chunks(AT_ONCE) {
                read.extend(self.unless_still_dismissed(some).await?);
            }
            let reads = stream::iter(read).map(|id| async move { self.check(&id, pass).await });
            let mut reads = reads.buffer_unordered(self.settings.concurrency.max(1));
            while let Some(outcome) = reads.try_next().await? {
                keep(&mut pending, outcome);
            }
            drop(reads);
            if let Some(pending) = pending.as_deref_mut() {
                pending.confirm(self, pass).await?;
            }
        }
    }
}

/// In a dry run, what differs.
fn keep(pending: &mut Option<&mut Pending<'_>>, outcome: Outcome) {
    if let (Some(pending), Outcome::Equal(drift)) = (pending, outcome) {
        pending.add(drift);
    }
}
