//! One group: read, compared, repaired, and noted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

use super::super::ClientError;
use super::super::fetch::{Fetch, FetchError, Fetched};
use super::super::wire::Delta;
use super::compare::Differences;
use super::dry_run::DriftOf;
use super::removals::{Allowed, Removals};
use super::{Error, Inner, Tally};
use crate::domain::{CheckReason, DISMISSED, GroupId, HeldGroup, Version};
use crate::ingest;
use crate::store::{self, KnownGroup};

/// What a look at groups is part of.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) removals: &'a Removals,
    pub(super) tally: &'a Tally,
    /// Only look.
    pub(super) is_dry: bool,
    /// Groups that could not be read, one after the other.
    pub(super) failures: AtomicU32,
}

/// So many, and it is not the groups.
const MOST_FAILURES: u32 = 5;

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// As in OpenIM. In a dry run, with what was not.
    Equal(Vec<DriftOf>),
    /// Something came meanwhile, so it is to be looked at again.
    Meanwhile,
    /// Left as it is.
    Left,
    /// Somebody else is at it.
    Skipped,
}

impl Inner {
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
        let began_at = self.begin(group, pass).await?;
        let fetched = match self.fetch.whole(group).await {
            Ok(fetched) => fetched,
            Err(FetchError::Client(error)) if pass.is_over(&error) => return Err(error.into()),
            Err(error) => {
                pass.leave(group, &error.to_string());
                return Ok(Outcome::Left);
            }
        };
        pass.failures.store(0, Ordering::Relaxed);
        self.settle(group, began_at, fetched, pass).await
    }

    async fn begin(&self, group: &GroupId, pass: &Pass<'_>) -> Result<OffsetDateTime, Error> {
        Ok(match pass.is_dry {
            true => self.store.clock().await?,
            false => self.store.begin_check(group).await?,
        })
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
            && (pass.is_dry || self.store.begin_update(group, asked_at, version).await?)
        {
            return self.settle(group, asked_at, changed, pass).await;
        }
        self.check(group, pass).await
    }

    async fn settle(
        &self,
        group: &GroupId,
        began_at: OffsetDateTime,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let ids = std::slice::from_ref(group);
        let known = self.store.known_groups(ids, Duration::ZERO);
        let known = known.await?.pop();
        let mut differences = Differences::new(pass.is_dry);
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
                    if pass.is_dry {
                        return Ok(Outcome::Equal(vec![DriftOf::of_unknown(group)]));
                    }
                    if !pass.removals.is_accepted() {
                        let why = CheckReason::NotInOpenim;
                        return self.leave_marked(group, Some(known), why, pass);
                    }
                    differences.compare_group(Some(known), dismissed(known));
                }
                _unknown_or_dismissed => {}
            },
        }
        pass.tally.compared(differences.compared);
        self.metrics.compared_group();
        if pass.is_dry {
            let drift = differences.take_drift().into_iter();
            let all = drift.map(|(user_id, drift)| DriftOf {
                group_id: group.clone(),
                user_id,
                drift,
            });
            for (kind, count) in differences.kinds() {
                pass.tally.add(kind, count);
            }
            return Ok(Outcome::Equal(all.collect()));
        }
        let (removed, members) = (differences.removed(), differences.current);
        if pass.removals.allow(removed, members, &self.store).await? == Allowed::No {
            let why = CheckReason::TooManyRemovals;
            return self.leave_marked(group, known.as_ref(), why, pass);
        }
        self.repair(group, began_at, differences, version, pass)
            .await
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
            match self.ingest.repair(group.clone(), repair).await {
                Ok(()) => {}
                Err(ingest::Error::Store(error @ store::Error::Permanent(_))) => {
                    pass.leave(group, &error.to_string());
                    return Ok(Outcome::Left);
                }
                Err(error) => return Err(error.into()),
            }
        }
        for (kind, count) in kinds {
            pass.tally.add(kind, count);
            self.metrics.repaired(kind, count);
        }
        let version = version.as_ref();
        let finished = self.store.finish_check(group, began_at, version);
        let finished = finished.await?;
        if let Some(since) = finished.wanted_since.filter(|_| finished.is_cleared) {
            let waited = finished.finished_at - since;
            self.metrics
                .check_done(waited.try_into().unwrap_or_default());
        }
        let is_wanted = finished.wanted_since.is_some() && !finished.is_cleared;
        Ok(match is_wanted {
            true => Outcome::Meanwhile,
            false => Outcome::Equal(vec![]),
        })
    }

    /// Leaves a group for a person to decide.
    fn leave_marked(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        why: CheckReason,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        pass.leave(group, why.code());
        let is_marked =
            known.is_some_and(|known| known.check_reason.as_deref() == Some(why.code()));
        if !pass.is_dry && !is_marked {
            self.ingest.want_check(group.clone(), why);
        }
        Ok(Outcome::Left)
    }
}

impl<'a> Pass<'a> {
    pub(super) fn new(removals: &'a Removals, tally: &'a Tally, is_dry: bool) -> Self {
        Self {
            removals,
            tally,
            is_dry,
            failures: AtomicU32::new(0),
        }
    }

    /// Whether nothing more is to be had from OpenIM now. One group that it cannot read must not
    /// keep us from all the others.
    fn is_over(&self, error: &ClientError) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        !error.is_of_call() || failures >= MOST_FAILURES
    }

    fn leave(&self, group: &GroupId, why: &str) {
        let id = group.as_str();
        tracing::warn!(group = id, why, "a group is left as it is");
        self.tally.left(group, why);
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
