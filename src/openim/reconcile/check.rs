//! One group: read, compared, repaired, and noted.

use std::pin::pin;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, Stream, StreamExt};
use time::OffsetDateTime;

use super::super::fetch::{FEW_GONE, FetchError};
use super::super::view::{Fetched, Trouble};
use super::super::wire::Delta;
use super::compare::Differences;
use super::dry_run::DriftOf;
use super::pass::Pass;
use super::removals::{Allowed, Leaving, Removals};
use super::walk::Asked;
use super::{Claim, Error, Inner};
use crate::domain::{
    DISMISSED, Fence, GroupId, MarkReason, OWNER, OpenImGroup, RepairCounts, Version,
};
use crate::ingest;
use crate::store::{self, Begun, KnownGroup, Named, Noted, WasRead};

/// How often it is looked at what has changed in a group, before all of it is read.
const LOOKS: usize = 2;

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// As in OpenIM; in a dry run, whatever it is.
    Compared,
    /// Something came meanwhile, so it is to be looked at again.
    Meanwhile,
    /// Compared, but for what OpenIM does not give.
    InPart,
    /// Left as it is.
    Left,
    /// Left and marked, for a person to decide.
    ToDecide,
    /// Somebody else is at it.
    Skipped,
}

/// A look at what has changed.
enum Look {
    /// It is over.
    Done(Outcome),
    /// OpenIM counts other members than the mirror does now.
    Moved,
    /// All of the group has to be read.
    NotEnough,
}

/// What a look is of.
struct Looked<'a> {
    group: &'a GroupId,
    begun: &'a Begun,
    /// Whether the group itself is to be looked at.
    has_group: bool,
    /// Whether the number of members is.
    has_total: bool,
    /// The group itself, if it was asked for already.
    info: Option<OpenImGroup>,
}

/// A look that has begun before OpenIM is asked what has changed, of a group whose members callbacks have
/// named.
pub(super) struct Opened<'a> {
    _claim: Claim<'a>,
    begun: Begun,
    named: Named,
    version: Version,
}

impl Opened<'_> {
    /// What has changed since this is to be asked.
    pub(super) fn version(&self) -> &Version {
        &self.version
    }
}

/// What was asked of several groups at once, as far as it is of one.
pub(super) struct Told {
    pub(super) delta: Delta,
    /// The group itself, if that was asked too.
    pub(super) info: Option<OpenImGroup>,
}

/// What was read, without the members.
struct Read {
    version: Option<Version>,
    is_whole: bool,
    /// Members who have left by OpenIM's own log.
    logged_gone: u64,
    /// Why it is not all of the group.
    trouble: Option<Trouble>,
}

impl Read {
    fn what(&self) -> WasRead {
        match (self.trouble, self.is_whole) {
            (Some(_), _) => WasRead::InPart,
            (None, true) => WasRead::Whole,
            (None, false) => WasRead::Changes,
        }
    }

    fn of(fetched: &Fetched) -> Self {
        match fetched {
            Fetched::View(view) => Self {
                version: view.version.clone(),
                is_whole: view.is_whole,
                logged_gone: view.logged_gone,
                trouble: view.trouble,
            },
            Fetched::Dismissed(_) | Fetched::Unknown => Self {
                version: None,
                is_whole: true,
                logged_gone: 0,
                trouble: None,
            },
        }
    }
}

/// What came of holding it against the mirror.
enum Held {
    Against(Differences),
    /// OpenIM does not know the group.
    Unknown,
}

impl Inner {
    /// Looks at each group, some at a time; gives each with how it ended.
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

    /// Looks at a group: at what has changed since its version or, where that does not tell all of it,
    /// at all of it.
    pub(super) async fn check(&self, group: &GroupId, pass: &Pass<'_>) -> Result<Outcome, Error> {
        let Some(_claim) = self.claim(group) else {
            return Ok(Outcome::Skipped);
        };
        self.check_claimed(group, pass.has_group(group), pass).await
    }

    /// `has_group`: the group itself is looked at in any case.
    async fn check_claimed(
        &self,
        group: &GroupId,
        has_group: bool,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        // It is never closed.
        let _turn = self.reading.acquire().await;
        if self.is_spooling() {
            return Err(Error::Spooling);
        }
        match self.check_in_turn(group, has_group, pass).await {
            Err(Error::Fetch(error)) => self.leave_unread(group, error, pass).await,
            Err(error) => self.leave_or_end(group, error, pass).await,
            checked => checked,
        }
    }

    async fn check_in_turn(
        &self,
        group: &GroupId,
        has_group: bool,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        if pass.is_dry() {
            let fetched = self.fetch.whole(group).await?;
            return self.settle_dry(group, fetched, pass).await;
        }
        // Once more where it has changed meanwhile, which is less than all of it.
        for _ in 0..LOOKS {
            let begun = self.store.begin_check(group).await?;
            let is_enough = |noted: &&Noted| self.is_enough(noted.read_at, pass);
            let Some(noted) = begun.known.as_ref().filter(is_enough) else {
                break;
            };
            let Some(named) = self.named_since(group, noted).await? else {
                break;
            };
            let fetched = self
                .fetch
                .since(group, &noted.version, &named.users)
                .await?;
            let Some(fetched) = fetched else {
                break;
            };
            let looked = Looked {
                group,
                begun: &begun,
                has_group: has_group || named.has_group,
                has_total: true,
                info: None,
            };
            match self.settle_look(looked, fetched, pass).await? {
                Look::Done(outcome) => return Ok(outcome),
                Look::Moved => {}
                Look::NotEnough => break,
            }
        }
        let begun = self.store.begin_check(group).await?;
        let fetched = self.fetch.whole(group).await?;
        self.settle(group, &begun, fetched, pass).await
    }

    /// Whether what has changed since is all that has to be looked at.
    pub(super) fn is_enough(&self, read_at: OffsetDateTime, pass: &Pass<'_>) -> bool {
        let age = OffsetDateTime::now_utc() - read_at;
        !pass.is_full && age < self.settings.full_interval
    }

    /// Takes what has changed since a version, as OpenIM told it after `fence`; looks at the group where
    /// that is not enough.
    pub(super) async fn update(
        &self,
        asked: &Asked,
        fence: &Fence,
        told: Told,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let Some(_claim) = self.claim(&asked.known.group_id) else {
            return Ok(Outcome::Skipped);
        };
        let look = self.update_claimed(asked, fence, told, pass).await;
        self.end_update(asked, look, pass).await
    }

    /// Begins a look at a group whose members callbacks have named, so that it is known of whom OpenIM is
    /// asked after. `None`: it has to be looked at by itself.
    pub(super) async fn open(
        &self,
        group: &GroupId,
        pass: &Pass<'_>,
    ) -> Result<Option<Opened<'_>>, Error> {
        let Some(claim) = self.claim(group) else {
            return Ok(None);
        };
        let begun = self.store.begin_check(group).await?;
        let is_enough = |noted: &&Noted| self.is_enough(noted.read_at, pass);
        let Some(noted) = begun.known.as_ref().filter(is_enough) else {
            return Ok(None);
        };
        let named = self.named_since(group, noted).await?;
        let version = noted.version.clone();
        Ok(named.map(|named| Opened {
            _claim: claim,
            begun,
            named,
            version,
        }))
    }

    /// Takes what has changed in it.
    pub(super) async fn update_opened(
        &self,
        asked: &Asked,
        opened: &Opened<'_>,
        told: Told,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let Opened { begun, named, .. } = opened;
        let group = &asked.known.group_id;
        let look = async {
            let fetched = self.fetch.by_delta(group, told.delta, &named.users).await?;
            let Some(fetched) = fetched else {
                return Ok(Look::NotEnough);
            };
            let looked = Looked {
                group,
                begun,
                has_group: asked.has_group || named.has_group,
                has_total: asked.has_total,
                info: told.info,
            };
            self.settle_look(looked, fetched, pass).await
        };
        self.end_update(asked, look.await, pass).await
    }

    /// Looks at the group where what was told is not enough.
    async fn end_update(
        &self,
        asked: &Asked,
        look: Result<Look, Error>,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let group = &asked.known.group_id;
        match look {
            Ok(Look::Done(outcome)) => {
                pass.has_read();
                Ok(outcome)
            }
            Ok(Look::Moved | Look::NotEnough) => {
                let has_group = asked.has_group || pass.has_group(group);
                self.check_claimed(group, has_group, pass).await
            }
            Err(Error::Fetch(error)) => self.leave_unread(group, error, pass).await,
            Err(error) => self.leave_or_end(group, error, pass).await,
        }
    }

    /// Whom callbacks have named since; `None`: more than are worth being asked for one by one.
    async fn named_since(&self, group: &GroupId, noted: &Noted) -> Result<Option<Named>, Error> {
        // What an earlier process has written is told by the rows alone.
        let is_noted = self.has_looked_back.load(Ordering::Relaxed);
        Ok(self.store.named_since(group, noted, is_noted).await?)
    }

    async fn update_claimed(
        &self,
        asked: &Asked,
        fence: &Fence,
        told: Told,
        pass: &Pass<'_>,
    ) -> Result<Look, Error> {
        let Asked {
            known,
            version,
            has_group,
            has_total,
        } = asked;
        let group = &known.group_id;
        let Some(compared_at) = known.compared_at else {
            return Ok(Look::NotEnough);
        };
        let begun = self.store.begin_update(group, compared_at, version, fence);
        let Some(begun) = begun.await? else {
            return Ok(Look::NotEnough);
        };
        // Whom a callback has named since may be newer than the fence: then nobody must be taken for
        // looked at.
        let is_touched = begun.known.as_ref().is_none_or(Noted::is_touched);
        if is_touched {
            return Ok(Look::NotEnough);
        }
        let fetched = self.fetch.by_delta(group, told.delta, &[]).await?;
        let Some(fetched) = fetched else {
            return Ok(Look::NotEnough);
        };
        let looked = Looked {
            group,
            begun: &begun,
            has_group: *has_group,
            has_total: *has_total,
            info: told.info,
        };
        self.settle_look(looked, fetched, pass).await
    }

    /// Repairs what has changed, and holds the number of members against OpenIM's: somebody may have
    /// come of whom no version tells.
    async fn settle_look(
        &self,
        looked: Looked<'_>,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Look, Error> {
        let Looked {
            group,
            begun,
            has_group,
            has_total,
            info,
        } = looked;
        let Fetched::View(mut view) = fetched else {
            return Ok(Look::NotEnough);
        };
        let known = self.known(group).await?;
        let is_wanted = known.as_ref().is_none_or(|known| {
            // Whose role is told where that of an owner changes; the owner is not told with it.
            let owner = known.group.owner.as_ref();
            let has_owner = owner.is_some_and(|owner| view.members.contains_key(owner));
            let is_of_owner =
                has_owner || view.members.values().any(|held| held.role_level == OWNER);
            known.wanted_since.is_some() || is_of_owner
        });
        if view.group.is_none() && (has_group || is_wanted) {
            let held = match info {
                Some(held) => Some(held),
                None => self.fetch.info(group).await?.map(|info| info.held),
            };
            match held {
                Some(held) if held.status != DISMISSED => view.group = Some(held),
                _gone_or_dismissed => return Ok(Look::NotEnough),
            }
        }
        if view.absent.len() > FEW_GONE {
            // Whether so many may have left is to be seen beside all the others.
            return Ok(Look::NotEnough);
        }
        let fetched = Fetched::View(view);
        let read = Read::of(&fetched);
        let held = self
            .differences(group, known.as_ref(), fetched, pass)
            .await?;
        // Before anything is written: where somebody came of whom no version tells, what it tells of the
        // others may be older.
        if let Held::Against(differences) = &held
            && has_total
        {
            let total = self.fetch.client.count_members(group).await?;
            let here = self.store.count_members_of(&[group]).await?;
            let here = here.get(group.as_str()).copied().unwrap_or_default();
            let added = differences.added();
            if total != (here + added).saturating_sub(differences.removed()) {
                return Ok(Look::Moved);
            }
        }
        let settled = self.settle_held(group, begun, known, held, &read, pass);
        Ok(Look::Done(settled.await?))
    }

    async fn known(&self, group: &GroupId) -> Result<Option<KnownGroup>, Error> {
        let ids = std::slice::from_ref(group);
        let (mut known, _) = self.store.known_groups(ids).await?;
        Ok(known.pop())
    }

    /// Leaves a group that OpenIM cannot read: it must not keep us from all the others; but where OpenIM
    /// cannot read any, nobody asks for all of them.
    async fn leave_unread(
        &self,
        group: &GroupId,
        error: FetchError,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let is_silent = match &error {
            FetchError::Client(error) if !error.is_of_call() => return Err(error.clone().into()),
            FetchError::Client(error) => !error.is_of_openim(),
            _ => false,
        };
        if pass.has_failed() || is_silent {
            self.fetch.client.count_groups().await?;
        }
        pass.leave(group, &error.to_string());
        Ok(Outcome::Left)
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
            store::Error::Transient(_) => of_store.is_lock_error() || of_store.is_timeout(),
        };
        if !is_of_group || self.store.ping().await.is_err() {
            return Err(error);
        }
        pass.leave(group, &of_store.to_string());
        Ok(Outcome::Left)
    }

    /// Holds what was read against what is stored.
    async fn differences(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Held, Error> {
        let mut differences = Differences::new(pass.is_dry());
        match fetched {
            Fetched::View(view) => {
                let store = &self.store;
                differences.compare(store, group, known, *view).await?;
            }
            Fetched::Dismissed(held) => {
                // Where its profile cannot be read it stays as the mirror has it.
                if let Some(held) = held.or_else(|| known.map(dismissed)) {
                    differences.compare_group(known, held);
                }
            }
            Fetched::Unknown => match known {
                Some(known) if !known.group.is_dismissed() => {
                    let is_accepted = pass.removals.is_some_and(Removals::is_accepted);
                    if !is_accepted {
                        return Ok(Held::Unknown);
                    }
                    differences.compare_group(Some(known), dismissed(known));
                }
                _unknown_or_dismissed => {}
            },
        }
        Ok(Held::Against(differences))
    }

    fn count(&self, differences: &Differences, pass: &Pass<'_>) {
        pass.tally.compared(differences.compared);
        self.metrics.compared.inc([]);
    }

    async fn settle_dry(
        &self,
        group: &GroupId,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let known = self.known(group).await?;
        let trouble = Read::of(&fetched).trouble;
        let differences = self
            .differences(group, known.as_ref(), fetched, pass)
            .await?;
        let Held::Against(mut differences) = differences else {
            pass.differ([DriftOf::of_unknown(group)]);
            return Ok(Outcome::Compared);
        };
        self.count(&differences, pass);
        pass.tally.add(differences.kinds());
        let drift = differences.take_drift().into_iter();
        pass.differ(drift.map(|(user_id, drift)| DriftOf {
            group_id: group.clone(),
            user_id,
            drift,
        }));
        Ok(match trouble {
            Some(trouble) => {
                pass.leave(group, &trouble.to_string());
                Outcome::Left
            }
            None => Outcome::Compared,
        })
    }

    async fn settle(
        &self,
        group: &GroupId,
        begun: &Begun,
        fetched: Fetched,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        let known = self.known(group).await?;
        let read = Read::of(&fetched);
        let held = self
            .differences(group, known.as_ref(), fetched, pass)
            .await?;
        self.settle_held(group, begun, known, held, &read, pass)
            .await
    }

    async fn settle_held(
        &self,
        group: &GroupId,
        begun: &Begun,
        known: Option<KnownGroup>,
        held: Held,
        read: &Read,
        pass: &Pass<'_>,
    ) -> Result<Outcome, Error> {
        pass.has_read();
        let Held::Against(differences) = held else {
            let why = MarkReason::NotInOpenim;
            return Ok(self.leave_marked(group, known.as_ref(), why, pass));
        };
        self.count(&differences, pass);
        let Some(removals) = pass.removals else {
            return Ok(Outcome::Compared); // cannot be: a dry run settles nothing
        };
        let leaving = self
            .leaving(group, known.as_ref(), &differences, read, pass)
            .await?;
        if removals.allow(leaving, &self.store).await? == Allowed::No {
            let why = MarkReason::TooManyRemovals;
            return Ok(self.leave_marked(group, known.as_ref(), why, pass));
        }
        let mut counts = RepairCounts::default();
        let is_outdated = self.repair(group, begun, differences, &mut counts).await;
        // Also where that has come to nothing half-way.
        pass.tally.add(counts);
        self.metrics.repaired(counts);
        let gone = leaving.gone(counts);
        removals.give_back(leaving.count() - gone);
        if leaving.is_dismissal() {
            pass.tally.dismissed(gone);
        }
        let is_outdated = is_outdated?;
        let outcome = self.finish(group, begun, read).await?;
        let Some(trouble) = read.trouble else {
            // Whose answers are newer is not done with it.
            return Ok(match is_outdated {
                true => Outcome::Meanwhile,
                false => outcome,
            });
        };
        // A mark that is there stays.
        if known.is_none_or(|known| known.check_reason.is_none()) {
            self.ingest
                .want_check(group.clone(), MarkReason::ReadInPart);
        }
        pass.leave(group, &trouble.to_string());
        Ok(Outcome::InPart)
    }

    /// Who is to be taken for gone, as far as nobody has told so.
    async fn leaving(
        &self,
        group: &GroupId,
        known: Option<&KnownGroup>,
        differences: &Differences,
        read: &Read,
        pass: &Pass<'_>,
    ) -> Result<Leaving, Error> {
        let is_here = known.is_some_and(|known| !known.group.is_dismissed());
        if !(is_here && differences.dismisses()) {
            return Ok(Leaving::Members {
                removed: pass.unannounced(group, differences.removed(), read.logged_gone),
                of: differences.current,
            });
        }
        let is_accepted = pass.removals.is_some_and(Removals::is_accepted);
        if is_accepted || pass.has_dismissal(group) {
            return Ok(Leaving::WithGroup(0));
        }
        let members = self.store.count_members_of(&[group]).await?;
        let members = members.get(group.as_str()).copied();
        Ok(Leaving::WithGroup(members.unwrap_or(0)))
    }

    /// Makes the mirror the same, and adds to `counts` what was written. Whether another comparison has begun
    /// since, so that nothing was.
    async fn repair(
        &self,
        group: &GroupId,
        begun: &Begun,
        differences: Differences,
        counts: &mut RepairCounts,
    ) -> Result<bool, Error> {
        for repair in differences.into_repairs(begun) {
            // It is never closed.
            let _turn = self.writing.acquire().await;
            let repaired = self.ingest.repair(group.clone(), repair).await?;
            *counts += repaired.counts;
            if repaired.is_outdated {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn finish(&self, group: &GroupId, begun: &Begun, read: &Read) -> Result<Outcome, Error> {
        let (version, delay) = (read.version.as_ref(), self.settings.delay);
        let finished = self.store.finish_check(
            group,
            begun,
            version,
            read.what(),
            (delay, self.settings.settling),
        );
        let finished = finished.await?;
        if let Some(since) = finished.wanted_since.filter(|_| finished.is_cleared) {
            let waited = finished.finished_at - since;
            let waited = waited.try_into().unwrap_or_default();
            self.metrics.mark_seconds.observe([], waited);
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
        why: MarkReason,
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
fn dismissed(known: &KnownGroup) -> OpenImGroup {
    let group = known.group.clone();
    OpenImGroup {
        profile: group.profile,
        owner: group.owner,
        status: DISMISSED,
        group_type: group.group_type.unwrap_or_default(),
        created_in_openim_at: group.created_in_openim_at,
    }
}
