//! Through all groups: those that OpenIM lists, and those that only the mirror has.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;

use super::super::calls::PAGE;
use super::super::wire::Group;
use super::dry_run::DriftOf;
use super::pass::Pass;
use super::{Error, Inner};
use crate::domain::{DISMISSED, GroupId, HeldGroup, Version, group_verdict};
use crate::store::{KnownGroup, Turn};

/// Groups that OpenIM is asked about in one call.
const AT_ONCE: usize = 100;
/// How often the list is read that changes faster than it can be read.
const SCANS: usize = 3;
/// Groups that were seen, by a hash. Two that have the same, of a million once in some hundred years,
/// leave one of them out of one cycle.
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

/// A group of which it is asked what has changed since a version.
pub(super) struct Asked {
    pub(super) known: KnownGroup,
    pub(super) version: Version,
    /// Whether the group itself is to be looked at in any case.
    pub(super) has_group: bool,
}

/// What is done after some groups.
pub(super) enum Between<'a> {
    /// Looks whether it is still our turn.
    Keep(&'a mut Turn),
    /// Tells what differs, in a dry run.
    Tell(&'a mut (dyn FnMut(DriftOf) + Send)),
}

impl Inner {
    /// Goes through all groups, and does what is to be done after some of them each time.
    pub(super) async fn through_all(
        &self,
        pass: &Pass<'_>,
        mut between: Between<'_>,
    ) -> Result<(), Error> {
        if !pass.is_dry() {
            self.store.note_touched().await?;
        }
        let mut seen = Seen::new();
        for _ in 0..SCANS {
            let total = self.through_openim(&mut seen, pass, &mut between).await?;
            // A group that was dismissed meanwhile has moved others to pages that were read.
            if seen.count() >= total {
                break;
            }
        }
        if !pass.is_dry() {
            self.has_looked_back.store(true, Ordering::Relaxed);
        }
        self.through_mirror(&seen, pass, &mut between).await
    }

    async fn between(&self, between: &mut Between<'_>, pass: &Pass<'_>) -> Result<(), Error> {
        match between {
            // Its connection may have broken, and another process have taken it.
            Between::Keep(turn) => match turn.is_held().await {
                true => Ok(()),
                false => Err(Error::TurnLost),
            },
            Between::Tell(tell) => self.confirm(pass, *tell).await,
        }
    }

    /// The groups that OpenIM lists, but for those that were seen; how many it says there are.
    async fn through_openim(
        &self,
        seen: &mut Seen,
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<u64, Error> {
        for page in 1.. {
            let answer = self.fetch.client.groups(page).await?;
            pass.has_read();
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
            self.through_page(groups, pass, between).await?;
            // The second where there are full pages without end, whatever is asked for.
            if count < PAGE || (page * PAGE) as u64 > total {
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
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<(), Error> {
        let ids: Vec<GroupId> = groups.iter().map(|(id, _)| id.clone()).collect();
        if !pass.is_dry() {
            self.look_back(&ids).await?;
        }
        let known = self.store.known_groups(&ids).await?;
        let mut known: HashMap<GroupId, KnownGroup> = known
            .into_iter()
            .map(|known| (known.group_id.clone(), known))
            .collect();
        let (mut ask, mut read) = (Vec::new(), Vec::new());
        for (id, group) in groups {
            let known = known.remove(&id);
            let held = group.held();
            let is_enough = |known: &KnownGroup| {
                known
                    .read_at
                    .is_some_and(|read_at| self.is_enough(read_at, pass))
            };
            match known.filter(is_enough) {
                Some(known) if let Some(version) = known.version.clone() => {
                    let is_as_stored = group_verdict(Some(&known.group), &held).is_none();
                    ask.push(Asked {
                        has_group: !is_as_stored || known.wanted_since.is_some(),
                        known,
                        version,
                    });
                }
                _ => read.push(id),
            }
        }
        pass.tally.saw(ids.len() as u64);
        self.ask(ask, pass, &mut read).await?;
        self.check_some(read, pass, between).await
    }

    /// Reads groups, in a dry run so many at a time that what differs can be held.
    async fn check_some(
        &self,
        groups: Vec<GroupId>,
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<(), Error> {
        let most = if pass.is_dry() { AT_ONCE } else { PAGE };
        for some in groups.chunks(most) {
            self.check_all(some.to_vec(), pass).await?;
            self.between(between, pass).await?;
        }
        Ok(())
    }

    /// Notes whom an earlier process has written of without coming to note it.
    async fn look_back(&self, groups: &[GroupId]) -> Result<(), Error> {
        if self.has_looked_back.load(Ordering::Relaxed) {
            return Ok(());
        }
        for some in groups.chunks(AT_ONCE) {
            let some: Vec<&GroupId> = some.iter().collect();
            match self.store.note_touched_before(&some).await {
                // So large that reading OpenIM's is no more work.
                Err(error) if error.is_of_time() => self.store.forget_versions(&some).await?,
                noted => noted?,
            }
        }
        Ok(())
    }

    /// Asks which groups have changed since their versions, and takes what has. Those of which that
    /// cannot be told go to `read`.
    async fn ask(
        &self,
        groups: Vec<Asked>,
        pass: &Pass<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        for some in groups.chunks(AT_ONCE) {
            let mut rest: Vec<&Asked> = some.iter().collect();
            let fence = self.store.fence().await?;
            while !rest.is_empty() {
                let versions: Vec<_> = rest
                    .iter()
                    .map(|asked| (&asked.known.group_id, &asked.version))
                    .collect();
                let answered = match self.fetch.client.changes_of(&versions).await {
                    Ok(answered) => answered,
                    // One of them spoils it for all.
                    Err(error) if error.is_of_call() => Vec::new(),
                    Err(error) => return Err(error.into()),
                };
                let before = rest.len();
                for (group, delta) in answered {
                    let Some(place) = rest.iter().position(|asked| asked.known.group_id == group)
                    else {
                        continue;
                    };
                    let asked = rest.swap_remove(place);
                    let is_named = asked.known.is_touched || asked.has_group;
                    if delta.full {
                        read.push(group);
                    } else if is_named || !delta.is_at(&asked.version) {
                        self.update(asked, &fence, delta, pass).await?;
                    }
                }
                if rest.len() == before {
                    // Dismissed just now, or unknown.
                    read.extend(rest.drain(..).map(|asked| asked.known.group_id.clone()));
                }
            }
        }
        Ok(())
    }

    /// Those of these groups that OpenIM does not say to be dismissed just as the mirror does.
    async fn unless_still_dismissed(&self, groups: &[&KnownGroup]) -> Result<Vec<GroupId>, Error> {
        let ids: Vec<&GroupId> = groups.iter().map(|known| &known.group_id).collect();
        let infos = match self.fetch.client.group_infos(&ids).await {
            Ok(infos) => infos,
            // One of them spoils it for all.
            Err(error) if error.is_of_call() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
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
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<(), Error> {
        let mut after = String::new();
        loop {
            let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
            let page = self.store.groups_to_compare(&after, limit).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.group_id.as_str().to_owned();
            // OpenIM lists no group that is dismissed, so one that it does not list may stay so.
            let is_asked = |known: &&KnownGroup| {
                let is_settled = known.group.is_dismissed() && known.wanted_since.is_none();
                !seen.has(known.group_id.as_str()) && (pass.is_full || !is_settled)
            };
            let asked: Vec<&KnownGroup> = page.iter().filter(is_asked).collect();
            pass.tally.saw(asked.len() as u64);
            let mut read = Vec::new();
            for some in asked.chunks(AT_ONCE) {
                read.extend(self.unless_still_dismissed(some).await?);
            }
            self.check_some(read, pass, between).await?;
            self.between(between, pass).await?;
        }
    }
}
