//! Reads about memberships across groups: a user's own, and any pairs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;

use super::auth::ReadKey;
use super::body::{FromBody, JsonBody};
use super::error::{Door, Error};
use super::json;
use super::members::Member;
use super::memory::AnswerMemory;
use super::page::{self, Scope};
use super::problem::ReadFailure;
use super::rows::{Answer, Held, Reading, cost, most};
use super::{Tag, params};
use crate::domain::{GroupId, UserId};
use crate::store::{MemberRow, PAGE_BYTES, Page, SoughtMember, Store};

pub(super) struct Memberships {
    pub(super) store: Store,
    pub(super) memory: Arc<AnswerMemory>,
}

/// A page of the groups that a user is in.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
struct MembershipPage {
    /// The user who was asked for. Where it is missing or another, something else was asked: an id
    /// `..` in the path, and the answer is that of `/groups`.
    #[oai(rename = "userID")]
    #[serde(rename = "userID")]
    user_id: String,
    /// The user's memberships, in bytewise order of groupID.
    groups: Vec<Member>,
    /// Where the next page starts; null on the last one.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

impl Example for MembershipPage {
    fn example() -> Self {
        Self {
            user_id: "user789".into(),
            groups: vec![Member::example()],
            next_cursor: None,
        }
    }
}

/// One question of a membership query.
#[derive(Clone, Debug, Object)]
struct MembershipPair {
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// The user: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "userID", validator(min_length = 1, max_length = 1024))]
    user_id: String,
}

/// Which of these users are members of these groups?
#[derive(Clone, Debug, Object)]
#[oai(example)]
pub(super) struct MembershipQuery {
    /// Up to 1,000 pairs; a pair may be there twice.
    #[oai(validator(max_items = 1000))]
    pairs: Vec<MembershipPair>,
}

/// Most pairs in one query.
const MAX_PAIRS: usize = 1000;

impl FromBody for MembershipQuery {
    const DOOR: Door = Door::Read;
    type Parsed = Vec<(GroupId, UserId)>;

    fn parse(body: &str) -> Result<Self::Parsed, Error> {
        let [pairs] = json::object(body, ["pairs"])?;
        pairs.required()?.each(MAX_PAIRS, |pair| {
            let [group_id, user_id] = pair.object(["groupID", "userID"])?;
            Ok((
                group_id.required()?.group_id()?,
                user_id.required()?.user_id()?,
            ))
        })
    }
}

impl Example for MembershipQuery {
    fn example() -> Self {
        let pair = |group: &str, user: &str| MembershipPair {
            group_id: group.into(),
            user_id: user.into(),
        };
        Self {
            pairs: vec![pair("12345", "user789"), pair("12345", "stranger")],
        }
    }
}

/// The answer to one pair of a membership query.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
struct Membership {
    /// As asked.
    #[oai(rename = "groupID")]
    #[serde(rename = "groupID")]
    group_id: String,
    /// As asked.
    #[oai(rename = "userID")]
    #[serde(rename = "userID")]
    user_id: String,
    /// Whether the user is a current member of the group.
    is_member: bool,
    /// As what; null for no member, and for a member whose role OpenIM has never told.
    #[oai(nullable)]
    role_level: Option<i32>,
    /// The whole member; null for no member, and for a member that is left out.
    #[oai(nullable)]
    member: Option<Member>,
}

/// The answers to a membership query.
#[derive(Object, Serialize)]
#[oai(example)]
struct MembershipAnswers {
    /// One for each pair, in the order of the pairs.
    memberships: Vec<Membership>,
}

impl Example for MembershipAnswers {
    fn example() -> Self {
        Self {
            memberships: vec![
                Membership {
                    group_id: "12345".into(),
                    user_id: "user789".into(),
                    is_member: true,
                    role_level: Some(20),
                    member: Some(Member::example()),
                },
                Membership {
                    group_id: "12345".into(),
                    user_id: "stranger".into(),
                    is_member: false,
                    role_level: None,
                    member: None,
                },
            ],
        }
    }
}

#[OpenApi(tag = "Tag::Reads")]
impl Memberships {
    /// Groups of a user
    ///
    /// The groups that a user is a current member of, each with that membership, in bytewise order
    /// of groupID, a page at a time. A user that the mirror does not know is in none. The ids `.` and
    /// `..` cannot be sent in a path; whether such a user is in a group `/memberships/query` tells.
    #[oai(
        path = "/users/:userID/groups",
        method = "get",
        operation_id = "listGroupsOfUser"
    )]
    async fn groups_of(
        &self,
        _key: ReadKey,
        /// The user.
        #[oai(name = "userID", example = "params::example_user")]
        user_id: Path<String>,
        /// Most groups on a page. It ends earlier where they have 4 MiB of text: follow nextCursor.
        #[oai(
            default = "params::default_limit",
            validator(minimum(value = "1"), maximum(value = "1000"))
        )]
        limit: Query<u32>,
        /// nextCursor of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<MembershipPage>, ReadFailure> {
        let user = params::user_id(user_id.0)?;
        let scope = Scope::new("groups of user").and(user.as_str());
        let after = scope.key(cursor.0.as_deref())?;
        let mut reading = Reading::begin(&self.memory, limit.0 as usize + 1).await?;
        let page = loop {
            let room = reading.room();
            let found = self.store.groups_of(&user, &after, limit.0, room).await?;
            if let Some(page) = reading.takes(found).await? {
                break page;
            }
        };
        let found = reading.end_page(page, MemberRow::bytes);
        let next_cursor = page::next(&found.rows, &scope, |row| &row.group_id);
        let make = |page: Page<MemberRow>| MembershipPage {
            user_id: user.as_str().to_owned(),
            groups: page.rows.into_iter().map(Member::from).collect(),
            next_cursor,
        };
        Ok(found.write(make)?)
    }

    /// Who is in which group, as what?
    ///
    /// Answers up to 1,000 questions at once: what a backend asks before it lets someone in. One
    /// answer for each pair, in the order of the pairs; isMember and roleLevel are always told. Members
    /// have 4 MiB of text together at most: `member` is null where isMember is true for those that
    /// are too large for what is left of it. Ask for these with GET /groups/{groupID}/members/{userID}.
    #[oai(
        path = "/memberships/query",
        method = "post",
        operation_id = "queryMemberships"
    )]
    async fn query(
        &self,
        _key: ReadKey,
        body: JsonBody<MembershipQuery>,
    ) -> Result<Answer<MembershipAnswers>, ReadFailure> {
        let asked = Asked::new(body.parsed);
        let (places, ids) = (asked.places.len(), asked.bytes_of_ids());
        let deadline = self.memory.deadline();
        let of_ids = cost(ids, 0);
        let first = of_ids + most(places);
        let mut share = self.memory.hold(first, deadline).await?;
        let mut found = self.store.memberships(Arc::clone(&asked.pairs)).await?;
        let (is_shown, bytes) = asked.shown(&found);
        let shown = asked.shown_pairs(&is_shown);
        let is_long = |at: &usize| found[*at].as_ref().is_some_and(|sought| !sought.has_texts);
        let whole = of_ids + cost(bytes, places);
        if shown.iter().any(is_long) {
            // Whoever waits for memory has nothing in it: all is read again.
            found
                .iter_mut()
                .flatten()
                .for_each(SoughtMember::forget_texts);
            share.shrink(0);
            share = self.memory.hold(whole, deadline).await?;
            let known = shown
                .iter()
                .filter_map(|at| Some((*at, found[*at].as_ref()?.bytes)));
            let known: Vec<(usize, usize)> = known.collect();
            let allowed: Vec<_> = known
                .iter()
                .map(|(at, bytes)| (&asked.pairs[*at], *bytes))
                .collect();
            let members = self.store.long_members(&allowed).await?;
            for ((at, _), member) in known.into_iter().zip(members) {
                found[at] = member;
            }
        } else {
            let hidden = (0..found.len()).filter(|at| !shown.contains(at));
            for at in hidden {
                if let Some(sought) = &mut found[at] {
                    sought.forget_texts();
                }
            }
            share.shrink(whole);
        }
        let held = Held {
            rows: found,
            bytes: bytes + ids,
            share,
        };
        Ok(held.write(|found| asked.answers(&is_shown, &found))?)
    }
}

/// The pairs of a query, each once, and where they are asked for.
struct Asked {
    pairs: Arc<[(GroupId, UserId)]>,
    /// The index of a pair, for each place.
    places: Vec<usize>,
}

impl Asked {
    fn new(all: Vec<(GroupId, UserId)>) -> Self {
        let mut places = Vec::with_capacity(all.len());
        let mut known = HashMap::with_capacity(all.len());
        let mut pairs = Vec::new();
        for pair in all {
            let at = *known.entry(pair.clone()).or_insert(pairs.len());
            if at == pairs.len() {
                pairs.push(pair);
            }
            places.push(at);
        }
        Self {
            pairs: pairs.into(),
            places,
        }
    }

    /// Whether the member is shown, for each place: as many as a page has bytes for, from the first
    /// on; those that are too large for what is left are passed over. And how many bytes these have.
    fn shown(&self, found: &[Option<SoughtMember>]) -> (Vec<bool>, usize) {
        let mut bytes = 0;
        let is_shown = self.places.iter().map(|at| {
            let more = found[*at].as_ref().map_or(0, |member| member.bytes);
            let fits = bytes + more <= PAGE_BYTES;
            bytes += if fits { more } else { 0 };
            fits
        });
        (is_shown.collect(), bytes)
    }

    /// The pairs of which a member is shown, each once.
    fn shown_pairs(&self, is_shown: &[bool]) -> BTreeSet<usize> {
        let shown = self.places.iter().zip(is_shown);
        shown.filter(|(_, is)| **is).map(|(at, _)| *at).collect()
    }

    /// Of all places.
    fn bytes_of_ids(&self) -> usize {
        let pairs = self.places.iter().map(|at| &self.pairs[*at]);
        pairs
            .map(|(group, user)| group.as_str().len() + user.as_str().len())
            .sum()
    }

    fn answers(&self, is_shown: &[bool], found: &[Option<SoughtMember>]) -> MembershipAnswers {
        let answer = |(at, is_shown): (&usize, &bool)| {
            let (group, user) = &self.pairs[*at];
            let sought = found[*at].as_ref();
            // One that has grown meanwhile is left out too.
            let shown = sought.filter(|member| *is_shown && member.has_texts);
            Membership {
                group_id: group.as_str().to_owned(),
                user_id: user.as_str().to_owned(),
                is_member: sought.is_some(),
                role_level: sought.and_then(|member| member.row.role_level),
                member: shown.map(|member| member.row.clone().into()),
            }
        };
        MembershipAnswers {
            memberships: self.places.iter().zip(is_shown).map(answer).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::written::assert_written_as_documented;
    use super::{Asked, GroupId, MembershipAnswers, MembershipPage, UserId};

    #[test]
    fn ids_count_wherever_they_are_asked_for() {
        let pair = |group: &str, user: &str| {
            let group = GroupId::parse(group.into()).unwrap();
            (group, UserId::parse(user.into()).unwrap())
        };
        let asked = Asked::new(vec![pair("g", "user"), pair("gg", "u"), pair("g", "user")]);
        assert_eq!(asked.bytes_of_ids(), 5 + 3 + 5);
    }

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<MembershipPage>();
        assert_written_as_documented::<MembershipAnswers>();
    }
}
