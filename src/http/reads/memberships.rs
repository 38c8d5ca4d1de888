//! Reads of memberships across groups: of one user, and of any pairs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};

use super::members::MemberJson;
use super::{Answer, PageRequest, ReadRows, ReadState, Scope, cost, max_cost};
use crate::domain::{GroupId, UserId};
use crate::http::body::{self, FromBody, JsonBody};
use crate::http::error::{Error, ReadFailure, Side};
use crate::http::json_response::json_object;
use crate::http::server::auth::{ReadKey, Tag};
use crate::store::{MemberRow, PAGE_BYTES, SoughtMember};

pub(crate) struct Memberships(pub(crate) ReadState);

json_object! {
    /// A page of the groups of a user.
    #[oai(example)]
    struct MembershipPage {
        /// The user of the request. If it is missing or another user, a URL library has changed the request: for
        /// the user `..` it sends `/groups`.
        user_id "userID": String = "user789".into();
        /// The user's memberships, in bytewise order of groupID.
        groups "groups": Vec<MemberJson> = vec![MemberJson::example()];
        /// Cursor of the next page. null on the last one.
        next_cursor "nextCursor" nullable: Option<String> = None;
    }
}

/// One pair of a membership query.
#[derive(Clone, Debug, Object)]
struct MembershipPair {
    /// The group: 1 to 1,024 bytes, without U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// The user: 1 to 1,024 bytes, without U+0000.
    #[oai(rename = "userID", validator(min_length = 1, max_length = 1024))]
    user_id: String,
}

/// A query for the memberships of pairs of group and user.
#[derive(Clone, Debug, Object)]
#[oai(example)]
pub(crate) struct MembershipQuery {
    /// Up to 1,000 pairs. A pair can be repeated.
    #[oai(validator(max_items = 1000))]
    pairs: Vec<MembershipPair>,
}

/// Limit of pairs in one query.
const MAX_PAIRS: usize = 1000;

impl FromBody for MembershipQuery {
    const SIDE: Side = Side::Read;
    type Parsed = Vec<(GroupId, UserId)>;

    fn parse(body: &str) -> Result<Self::Parsed, Error> {
        let [pairs] = body::object(body, ["pairs"])?;
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

json_object! {
    /// The answer to one pair of a membership query.
    #[oai(rename = "Membership")]
    struct MembershipJson {
        /// As in the query.
        group_id "groupID": String = "12345".into();
        /// As in the query.
        user_id "userID": String = "user789".into();
        /// True if the user is a current member of the group.
        is_member "isMember": bool = true;
        /// Role of the member. null: no member, or a role that the mirror does not know.
        role_level "roleLevel" nullable: Option<i32> = Some(20);
        /// The whole member. null: no member, or left out.
        member "member" nullable: Option<MemberJson> = Some(MemberJson::example());
    }
}

json_object! {
    /// The answers to a membership query.
    #[oai(example)]
    struct MembershipAnswers {
        /// One per pair, in the order of the pairs.
        memberships "memberships": Vec<MembershipJson> = vec![
            MembershipJson::example(),
            MembershipJson {
                user_id: "stranger".into(),
                is_member: false,
                role_level: None,
                member: None,
                ..MembershipJson::example()
            },
        ];
    }
}

#[OpenApi(tag = "Tag::Reads")]
impl Memberships {
    /// Groups of a user
    ///
    /// The current memberships of a user, in bytewise order of groupID, in pages. A user that the mirror
    /// does not know has none. The ids `.` and `..` cannot be sent in a path. For such a user,
    /// `/memberships/query` answers for given groups.
    #[oai(
        path = "/users/:userID/groups",
        method = "get",
        operation_id = "listGroupsOfUser"
    )]
    async fn groups_of(
        &self,
        _key: ReadKey,
        /// The user.
        #[oai(name = "userID", example = "super::example_user")]
        user_id: Path<String>,
        /// Limit of groups on a page. A page also ends at 4 MiB of text: follow nextCursor.
        #[oai(
            default = "super::default_limit",
            validator(minimum(value = "1"), maximum(value = "1000"))
        )]
        limit: Query<u32>,
        /// nextCursor of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<MembershipPage>, ReadFailure> {
        let user = super::user_id(user_id.0)?;
        let scope = Scope::new("groups of user").and(user.as_str());
        let page = PageRequest::new(scope, cursor.0, limit.0)?;
        let find = |room| self.0.store.groups_of(&user, &page.after, page.limit, room);
        let make = |groups, next_cursor| MembershipPage {
            user_id: user.as_str().to_owned(),
            groups,
            next_cursor,
        };
        let memory = &self.0.memory;
        Ok(page
            .answer(memory, find, MemberRow::bytes, |row| &row.group_id, make)
            .await?)
    }

    /// Memberships of pairs
    ///
    /// Answers for up to 1,000 pairs of group and user at once, for example to check access. One answer
    /// per pair, in the order of the pairs. isMember and roleLevel are always right. Members have at
    /// most 4 MiB of text together. A member that does not fit is left out: `member` is null and
    /// isMember is true. Read it with GET /groups/{groupID}/members/{userID}.
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
        let query = PairQuery::new(body.parsed);
        let (places, ids) = (query.places.len(), query.bytes_of_ids());
        let deadline = self.0.memory.deadline();
        let of_ids = cost(ids, 0);
        let first = of_ids + max_cost(places);
        let mut share = self.0.memory.reserve(first, deadline).await?;
        let mut found = self.0.store.memberships(Arc::clone(&query.pairs)).await?;
        let (is_shown, bytes) = query.shown(&found);
        // Indexes of the pairs whose members are in the answer.
        let shown = query.places.iter().zip(&is_shown).filter(|(_, is)| **is);
        let mut shown: BTreeSet<usize> = shown.map(|(at, _)| *at).collect();
        let is_long = |at: &usize| found[*at].as_ref().is_some_and(|sought| !sought.has_texts);
        let whole = of_ids + cost(bytes, places);
        if shown.iter().any(is_long) {
            // A request that waits for memory holds none, so all texts are read again.
            found
                .iter_mut()
                .flatten()
                .for_each(SoughtMember::forget_texts);
            share.shrink(0);
            share = self.0.memory.reserve(whole, deadline).await?;
            shown.retain(|at| found[*at].is_some());
            let bytes_of = |at: &usize| found[*at].as_ref().map_or(0, |sought| sought.bytes);
            let allowed = shown.iter().map(|at| (&query.pairs[*at], bytes_of(at)));
            let allowed: Vec<_> = allowed.collect();
            let members = self.0.store.long_members(&allowed).await?;
            for (at, member) in shown.into_iter().zip(members) {
                found[at] = member;
            }
        } else {
            let hidden = found.iter_mut().enumerate();
            let hidden = hidden.filter(|(at, _)| !shown.contains(at));
            hidden
                .flat_map(|(_, sought)| sought)
                .for_each(SoughtMember::forget_texts);
            share.shrink(whole);
        }
        let rows = ReadRows {
            rows: found,
            bytes: bytes + ids,
            share,
        };
        Ok(rows.write(|found| query.answers(&is_shown, &found))?)
    }
}

/// The pairs of a query, each once, and their places in it.
struct PairQuery {
    pairs: Arc<[(GroupId, UserId)]>,
    /// Index of the pair of each place.
    places: Vec<usize>,
}

impl PairQuery {
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

    /// True for each place whose member is in the answer, and the bytes of these members. Takes members
    /// from the first place on, and skips those that do not fit in the rest of a page.
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

    /// Bytes of the ids of all places.
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
            // A member that has grown in the meantime is left out too.
            let shown = sought.filter(|member| *is_shown && member.has_texts);
            MembershipJson {
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
    use super::{GroupId, PairQuery, UserId};

    #[test]
    fn ids_count_at_each_place() {
        let pair = |group: &str, user: &str| {
            let group = GroupId::parse(group.into()).unwrap();
            (group, UserId::parse(user.into()).unwrap())
        };
        let query = PairQuery::new(vec![pair("g", "user"), pair("gg", "u"), pair("g", "user")]);
        assert_eq!(query.bytes_of_ids(), 5 + 3 + 5);
    }
}
