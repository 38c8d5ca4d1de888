//! One group: read, compared, repaired, and noted.

use std::pin::pin;

use futures_util::stream::{self, Stream, StreamExt};
use time::OffsetDateTime;

use super::super::fetch::{Fetch, FetchError, Fetched};
use super::super::wire::Delta;
use super::compare::Differences;
use super::dry_run::DriftOf;
use super::pass::Pass;
use super::removals::Allowed;
use super::{Error, Inner};
use crate::domain::{CheckReason, DISMISSED, GroupId, HeldGroup, Version};
use crate::ingest;
use crate::store::{self, KnownGroup};

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// As in OpenIM; in a dry run, whatever it is.
    Compared,
    /// Something came meanwhile, so it is to be looked at again.
    Meanwhile,
    /// Left as it is.
    Left,
    /// Left and marked, for a person to decide.
    ToDecide,
    /// Somebody else is at it.
    Skipped,
}

impl Inner {
    /// Reads all of each group, some at a time; gives each with how it ended.
    pub(super) fn check_each<'a>(
        &'a self,
        groups: Vec<GroupId>,
        pass: &'a Pass<'a>,
    ) -> impl Stream<Item = (GroupId, Result<Outcome, Error>)> + 'a {
        let checks = stream::iter(groups).map(move |group| async move {
            let checked = self.check(&group, pass).await;
            (group, checked)
        });
        checks.buffer_unordered(self.settings.concurrency)
    }

    /// The same, until one fails.
    pub(super) async fn check_all(
        &self,
        groups: Vec<GroupId>,
        pass: &Pass<'_>,
    ) -> Result<(), Error> {
        let mut checks = pin!(self.check_each(groups, pass));
        while let Some((_, checked)) = checks.next().await {
            checked?;
        }
        Ok(())
    }

    /// Reads all of a group.
    pub(super) async fn check(&self, group: &GroupId, pass: &Pass<'_>) -> Result<Outcome, Error> {
        let Some(_claim) = self.claim(group) else {
            return Ok(Outcome::Skipped);
        };
        // It is never closed.
        let _turn = self.reading.acquire().await;
        if self.is_spooling() {
            return Err(Error::Spooling);
        }
        let began_at = match self.begin(group, pass).await {
            Ok(began_at) => began_at,
            Err(error) => return self.leave_or_end(group, error.into(), pass).await,
        };
        let fetched = match self.fetch.whole(group).await {
            Ok(fetched) => fetched,
            Err(FetchError::Client(error)) if !error.is_of_call() => return Err(error.into()),
            Err(error) => {
                // One group that OpenIM cannot read must not keep us from all the others; but where
                // it cannot read any, nobody asks for all of them.
                let is_silent =
                    matches!(&error, FetchError::Client(error) if !error.is_of_openim());
                if pass.has_failed() || is_silent {
                    self.fetch.client.groups(1).await?;
                }
                pass.leave(group, &error.to_string());
                return Ok(Outcome::Left);
            }
        };
        pass.has_read();
        self.settle_or_leave(group, began_at, fetched, pass).await
    }

    async fn begin(
        &self,
        group: &GroupId,
        pass: &Pass<'_>,
    ) -> Result<OffsetDateTime, store::Error> {
        match pass.is_dry() {
            true => self.store.clock().await,
            false => self.store.begin_check(group).await,
        }
    }

    /// Takes what has changed since `version`, as OpenIM told it after `asked_at`; all of the group
    /// where that is not enough.
    pub(super) async fn update(
        &self,
        group: &GroupId,
        version: &Version,
        asked_at: OffsetDateTime,
        delta: Delta,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let changed = Fetch::changed(group, delta);
        if let Some(changed) = changed
            && let Some(_claim) = self.claim(group)
        {
            let begun = match pass.is_dry() {
                true => Ok(true),
                false => self.store.begin_update(group, asked_at, version).await,
            };
            match begun {
                Ok(true) => return self.settle_or_leave(group, asked_at, changed, pass).await,
                Ok(false) => {}
                Err(error) => return self.leave_or_end(group, error.into(), pass).await,
            }
        }
        self.check(group, pass).await
    }

    /// As [`Self::settle`], but that the group is left where the database will not have it: what is
    /// wrong with one must not keep us from the others.
    async fn settle_or_leave(
        &self,
        group: &GroupId,
        began_at: OffsetDateTime,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        match self.settle(group, began_at, fetched, pass).await {
            Err(error) => self.leave_or_end(group, error, pass).await,
            settled => settled,
        }
    }

    async fn leave_or_end(
        &self,
        group: &GroupId,
        error: Error,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let (Error::Store(of_store) | Error::Ingest(ingest::Error::Store(of_store))) = &error
        else {
            return Err(error);
        };
        let is_of_group = match of_store {
            store::Error::Permanent(_) | store::Error::Unreadable(_) => true,
            store::Error::Transient(_) => of_store.is_of_lock() || of_store.is_of_time(),
        };
        if !is_of_group || self.store.ping().await.is_err() {
            return Err(error);
        }
        pass.leave(group, &of_store.to_string());
        Ok(Outcome::Left)
    }

    async fn settle(
        &self,
        group: &GroupId,
        began_at: OffsetDateTime,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let ids = std::slice::from_ref(group);
        let known = self.store.known_groups(ids).await?.pop();
        let mut differences = Differences::new(pass.is_dry());
        let mut version = None;
        match fetched {
            Fetched::View(view) => {
                version.clone_from(&view.version);
                let store = &self.store;
                differences
                    .compare(store, group, known.as_ref(), view)
                    .await?;
            }
            Fetched::Dismissed(held) => differences.compare_group(known.as_ref(), held),
            Fetched::Unknown => match &known {
                Some(known) if !known.group.is_dismissed() => {
                    let Some(removals) = pass.removals else {
                        pass.differ([DriftOf::of_unknown(group)]);
                        return Ok(Outcome::Compared);
                    };
                    if !removals.is_accepted() {
                        let why = CheckReason::NotInOpenim;
                        return Ok(self.leave_marked(group, Some(known), why, pass));
                    }
                    differences.compare_group(Some(known), dismissed(known));
                }
                _unknown_or_dismissed => {}
            },
        }
        pass.tally.compared(differences.compared);
        self.metrics.compared_group();
        let Some(removals) = pass.removals else {
            for (kind, count) in differences.kinds() {
                pass.tally.add(kind, count);
            }
            let drift = differences.take_drift().into_iter();
            pass.differ(drift.map(|(user_id, drift)| DriftOf {
                group_id: group.clone(),
                user_id,
                drift,
            }));
            return Ok(Outcome::Compared);
        };
        let (removed, members) = (differences.removed(), differences.current);
        let removed = pass.unannounced(group, removed);
        if removals.allow(removed, members, &self.store).await? == Allowed::No {
            let why = CheckReason::TooManyRemovals;
            return Ok(self.leave_marked(group, known.as_ref(), why, pass));
        }
        let repaired = self
            .repair(group, began_at, differences, version, pass)
            .await;
        if repaired.is_err() {
            removals.give_back(removed);
        }
        repaired
    }

    async fn repair(
        &self,
        group: &GroupId,
        began_at: OffsetDateTime,
        differences: Differences,
        version: Option<Version>,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let kinds: Vec<_> = differences.kinds().collect();
        for repair in differences.into_repairs(began_at) {
            // It is never closed.
            let _turn = self.writing.acquire().await;
            self.ingest.repair(group.clone(), repair).await?;
        }
        for (kind, count) in kinds {
            pass.tally.add(kind, count);
            self.metrics.repaired(kind, count);
        }
        let version = version.as_ref();
        let finished = self
            .store
            .finish_check(group, began_at, version, self.settings.delay);
        let finished = finished.await?;
        if let Some(since) = finished.wanted_since.filter(|_| finished.is_cleared) {
            let waited = finished.finished_at - since;
            self.metrics
                .check_done(waited.try_into().unwrap_or_default());
        }
        let is_wanted = finished.wanted_since.is_some() && !finished.is_cleared;
        Ok(match is_wanted {
            true => Outcome::Meanwhile,
            false => Outcome::Compared,
        })
    }

    /// Leaves a group for a person to decide.
    fn leave_marked(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        why: CheckReason,
        pass: &Pass<'_>,
    ) -> Outcome {
        let code = Some(why.code());
        if known.is_some_and(|known| known.check_reason.as_deref() == code) {
            // It was told before.
            pass.tally.left(group, why.code());
        } else {
            pass.leave(group, why.code());
            self.ingest.want_check(group.clone(), why);
        }
        Outcome::ToDecide
    }
}

/// A group that is not in OpenIM: nobody is a member of it.
fn dismissed(known: &KnownGroup) -> HeldGroup {
    let group = known.group.clone();
    HeldGroup {
        profile: group.profile,
        owner: group.owner,
        status: DISMISSED,
        group_type: group.group_type.unwrap_or_default(),
        created_in_openim_at: group.created_in_openim_at,
    }
}
