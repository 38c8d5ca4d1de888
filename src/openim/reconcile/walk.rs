//! Through all groups: those that OpenIM lists, and those that only the mirror has.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;

use futures_util::stream::{self, StreamExt};

use super::super::fetch::NOT_FOUND;
use super::super::pages::{Halves, PAGE, Pages};
use super::super::wire::{Delta, Group};
use super::check::Told;
use super::dry_run::DriftOf;
use super::pass::Pass;
use super::{Error, Inner};
use crate::domain::{DISMISSED, Fence, GroupId, OpenImGroup, Version, compare_group};
use crate::store::{KnownGroup, Turn, TurnOf};

/// Groups that OpenIM is asked about in one call.
const AT_ONCE: usize = 100;
/// How often the list is read that changes faster than it can be read.
const SCANS: usize = 3;
/// Groups on a list that are larger than an answer: with more, it is not the groups.
const MOST_UNREAD: usize = 1000;
/// Places that are told, of groups without an id.
const MOST_PLACES: usize = 10;
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

/// What came of a way through OpenIM's list.
#[derive(Default)]
struct Listed {
    /// How many groups OpenIM counts.
    total: u64,
    /// Where groups stand, from 1, that are larger than an answer.
    too_large: Vec<u64>,
}

/// A group of which it is asked what has changed since a version.
pub(super) struct Asked {
    pub(super) known: KnownGroup,
    pub(super) version: Version,
    /// Whether the group itself is to be looked at in any case.
    pub(super) has_group: bool,
    /// Whether the number of members is to be held against OpenIM's.
    pub(super) has_total: bool,
}

impl Asked {
    pub(super) fn version(&self) -> (&GroupId, &Version) {
        (&self.known.group_id, &self.version)
    }

    fn group_id(self) -> GroupId {
        self.known.group_id
    }
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
        let mut listed = Listed::default();
        for _ in 0..SCANS {
            listed = self.through_openim(&mut seen, pass, &mut between).await?;
            // A group that was dismissed meanwhile has moved others to pages that were read.
            if seen.count() + listed.too_large.len() as u64 >= listed.total {
                break;
            }
        }
        if !pass.is_dry() {
            self.has_looked_back.store(true, Ordering::Relaxed);
        }
        let named = self.through_mirror(&seen, pass, &mut between).await?;
        let places = listed.too_large;
        // The mirror knows the others, and they were looked at by their ids.
        let unnamed = (places.len() as u64).saturating_sub(named);
        if unnamed > 0 {
            pass.tally.saw(unnamed);
            pass.leave_unnamed(unnamed, &too_large_to_list(unnamed, &places));
        }
        Ok(())
    }

    async fn between(&self, between: &mut Between<'_>, pass: &Pass<'_>) -> Result<(), Error> {
        match between {
            Between::Keep(turn) => {
                if turn.is_held().await {
                    return Ok(());
                }
                // Its connection has nothing to do while OpenIM is asked, and some end it for that.
                // Unless another process has taken the turn, it is ours again.
                let again = self.store.take_turn(TurnOf::Cycle).await?;
                **turn = again.ok_or(Error::TurnLost)?;
                Ok(())
            }
            Between::Tell(tell) => self.confirm(pass, *tell).await,
        }
    }

    /// The groups that OpenIM lists, but for those that were seen.
    async fn through_openim(
        &self,
        seen: &mut Seen,
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<Listed, Error> {
        let mut listed = Listed::default();
        let mut pages = Pages::default();
        loop {
            let page = pages.page();
            let answer = match self.fetch.client.groups(page).await {
                Ok(answer) => answer,
                Err(error) if error.is_too_large() => {
                    let Some(place) = pages.too_large() else {
                        continue;
                    };
                    listed.too_large.push(place + 1);
                    if listed.too_large.len() > MOST_UNREAD {
                        return Err(error.into());
                    }
                    if listed.total == 0 {
                        // There may be no group that can be read and tells it.
                        listed.total = self.fetch.client.count_groups().await?;
                    }
                    if pages.start() >= listed.total {
                        return Ok(listed);
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            pages.given();
            pass.has_read();
            listed.total = answer.total;
            pass.tally.expect(answer.total);
            let count = answer.groups.len() as u64;
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
            if count < page.size || pages.start() > listed.total {
                return Ok(listed);
            }
        }
    }

    /// Some groups of OpenIM, as many at a time as the mirror has room to show.
    async fn through_page(
        &self,
        mut groups: Vec<(GroupId, Group)>,
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<(), Error> {
        let mut ids: Vec<GroupId> = groups.iter().map(|(id, _)| id.clone()).collect();
        if !pass.is_dry() {
            self.look_back(&ids).await?;
        }
        pass.tally.saw(ids.len() as u64);
        while !groups.is_empty() {
            let (known, count) = self.store.known_groups(&ids).await?;
            let rest = groups.split_off(count);
            ids.drain(..count);
            self.through_some(groups, known, pass, between).await?;
            groups = rest;
        }
        Ok(())
    }

    /// Those with a version are asked whether they have changed, the others are read.
    async fn through_some(
        &self,
        groups: Vec<(GroupId, Group)>,
        known: Vec<KnownGroup>,
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<(), Error> {
        let mut known: HashMap<GroupId, KnownGroup> = known
            .into_iter()
            .map(|known| (known.group_id.clone(), known))
            .collect();
        let (mut ask, mut ask_alone, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for (id, group) in groups {
            let known = known.remove(&id);
            let held = group.held();
            let is_enough = |known: &KnownGroup| {
                known
                    .read_at
                    .is_some_and(|read_at| self.is_enough(read_at, pass))
            };
            let asked = known.filter(is_enough).and_then(|known| {
                let is_as_stored = compare_group(Some(&known.group), &held).is_none();
                Some(Asked {
                    has_group: !is_as_stored || known.wanted_since.is_some(),
                    has_total: true,
                    version: known.version.clone()?,
                    known,
                })
            });
            match asked {
                // It would spoil it for all where it has changed.
                Some(asked) if held.owner.is_none() => ask_alone.push(asked),
                Some(asked) => ask.push(asked),
                None => read.push(id),
            }
        }
        self.ask(ask, pass, &mut read).await?;
        self.ask_singly(ask_alone, pass, &mut read).await?;
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
                Err(error) if error.is_timeout() => self.store.forget_versions(&some).await?,
                noted => noted?,
            }
        }
        Ok(())
    }

    /// Asks which groups have changed since their versions, and takes what has. Those of which that
    /// cannot be told go to `read`.
    pub(super) async fn ask(
        &self,
        groups: Vec<Asked>,
        pass: &Pass<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        let mut alone = Vec::new();
        let mut groups = groups.into_iter();
        loop {
            let some: Vec<Asked> = groups.by_ref().take(AT_ONCE).collect();
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
                let versions: Vec<_> = rest.iter().map(Asked::version).collect();
                match self.fetch.client.changes_of(&versions).await {
                    Ok(answered) => {
                        for (group, delta) in answered {
                            let is_it = |asked: &Asked| asked.known.group_id == group;
                            let Some(place) = rest.iter().position(is_it) else {
                                continue;
                            };
                            let asked = rest.swap_remove(place);
                            self.take(asked, delta, &fence, pass, read).await?;
                        }
                        if rest.len() < before {
                            parts.push(rest);
                        } else {
                            // Dismissed just now, or unknown.
                            read.extend(rest.into_iter().map(Asked::group_id));
                        }
                    }
                    Err(error) if error.is_too_large() && before > 1 => {
                        let second = rest.split_off(before / 2);
                        parts.extend([second, rest]);
                    }
                    // One of them spoils it for all.
                    Err(error) if error.code() == Some(NOT_FOUND) && before > 1 => {
                        alone.append(&mut rest);
                    }
                    Err(error) if error.is_of_call() => {
                        read.extend(rest.into_iter().map(Asked::group_id));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.ask_singly(alone, pass, read).await
    }

    /// The same, one by one.
    pub(super) async fn ask_singly(
        &self,
        groups: Vec<Asked>,
        pass: &Pass<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        let mut groups = groups.into_iter();
        loop {
            let some: Vec<Asked> = groups.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let fence = self.store.fence().await?;
            let asked = stream::iter(some).map(async |asked| {
                let (group, version) = asked.version();
                let answer = self.fetch.client.changes(group, Some(version)).await;
                (asked, answer)
            });
            let asked = asked.buffer_unordered(self.settings.concurrency);
            let answered: Vec<_> = asked.collect().await;
            for (asked, answer) in answered {
                match answer {
                    Ok(delta) => self.take(asked, delta, &fence, pass, read).await?,
                    Err(error) if error.is_of_call() => read.push(asked.group_id()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Takes what has changed in a group since its version.
    async fn take(
        &self,
        asked: Asked,
        delta: Delta,
        fence: &Fence,
        pass: &Pass<'_>,
        read: &mut Vec<GroupId>,
    ) -> Result<(), Error> {
        let is_named = asked.known.is_touched || asked.has_group;
        if delta.full {
            read.push(asked.group_id());
        } else if is_named || !delta.is_at(&asked.version) {
            let told = Told { delta, info: None };
            self.update(&asked, fence, told, pass).await?;
        }
        Ok(())
    }

    /// Those of these groups that OpenIM does not say to be dismissed just as the mirror does, and how
    /// many of those that are not dismissed here are too large to be told.
    async fn unless_still_dismissed(
        &self,
        groups: &[&KnownGroup],
    ) -> Result<(Vec<GroupId>, u64), Error> {
        let ids: Vec<&GroupId> = groups.iter().map(|known| &known.group_id).collect();
        let mut held: HashMap<String, OpenImGroup> = HashMap::new();
        let mut too_large: HashSet<&GroupId> = HashSet::new();
        let mut halves = Halves::of(&ids, AT_ONCE);
        while let Some(some) = halves.next() {
            match self.fetch.client.group_infos(some).await {
                Ok(infos) => {
                    let infos = infos.into_iter();
                    held.extend(infos.map(|info| (info.group_id.clone(), info.held())));
                }
                Err(error) if error.is_too_large() => too_large.extend(halves.too_large(some)),
                // One of them spoils it for all.
                Err(error) if error.is_of_call() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let is_settled = |known: &KnownGroup| {
            let held = held.get(known.group_id.as_str());
            known.wanted_since.is_none()
                && !known.is_touched
                && held.is_some_and(|held| {
                    held.status == DISMISSED && compare_group(Some(&known.group), held).is_none()
                })
        };
        let others = groups.iter().filter(|known| !is_settled(known));
        let is_unlisted = |known: &&&KnownGroup| {
            !known.group.is_dismissed() && too_large.contains(&known.group_id)
        };
        let unlisted = groups.iter().filter(is_unlisted).count() as u64;
        Ok((
            others.map(|known| known.group_id.clone()).collect(),
            unlisted,
        ))
    }

    /// The groups that OpenIM has not listed: dismissed, or unknown, or new, or too large; how many
    /// are too large.
    async fn through_mirror(
        &self,
        seen: &Seen,
        pass: &Pass<'_>,
        between: &mut Between<'_>,
    ) -> Result<u64, Error> {
        let mut too_large = 0;
        let mut after = String::new();
        loop {
            let page = self.store.groups_to_compare(&after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(too_large);
            };
            after = last.group_id.as_str().to_owned();
            // OpenIM lists no group that is dismissed, so one that it does not list may stay so, once its
            // profile was compared.
            let is_asked = |known: &&KnownGroup| {
                let is_noted = known.wanted_since.is_some() || known.is_touched;
                let is_settled = known.group.is_dismissed() && !is_noted;
                !seen.has(known.group_id.as_str()) && (pass.is_full || !is_settled)
            };
            let asked: Vec<&KnownGroup> = page.iter().filter(is_asked).collect();
            pass.tally.saw(asked.len() as u64);
            let mut read = Vec::new();
            for some in asked.chunks(AT_ONCE) {
                let (others, unlisted) = self.unless_still_dismissed(some).await?;
                read.extend(others);
                too_large += unlisted;
            }
            self.check_some(read, pass, between).await?;
            self.between(between, pass).await?;
        }
    }
}

/// Why groups without an id are left.
fn too_large_to_list(unnamed: u64, places: &[u64]) -> String {
    let some = places.iter().take(MOST_PLACES).map(u64::to_string);
    let mut at = some.collect::<Vec<_>>().join(", ");
    if places.len() > MOST_PLACES {
        at.push_str(", ...");
    }
    let groups = match unnamed {
        1 => "1 group that is".to_owned(),
        more => format!("{more} groups that are"),
    };
    format!("{groups} too large for an answer of OpenIM, of those at {at} on its list of groups")
}
