//! Reads of a backend.
//!
//! A read first waits for memory, then it reads rows, then it writes them as JSON. The JSON holds its
//! share of the memory until the server has all of it except the last part, which the server copies.
//!
//! Pages use keys, not offsets. The next page starts after the last key of the page before, so it
//! costs the same at any place, and members who join or leave meanwhile do not hide or repeat others.
//! A cursor is that key, bound to the path and the filters. Its checksum is no secret: it detects a
//! damaged cursor and a cursor of another request.

pub(super) mod drift;
pub(super) mod groups;
pub(super) mod members;
pub(super) mod memberships;

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::stream;
use poem::http::header::CONTENT_LENGTH;
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{ToJSON, Type};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::domain::{GroupId, UserId};
use crate::http::error::{Code, Error};
use crate::http::json_response::{JsonResponse, json};
use crate::http::server::memory::{ANSWERS, AnswerMemory, AnswerShare, WithShare};
use crate::store::{self, Found, PAGE_BYTES, Page, Room, SHORT_ROW, Store};

/// Limit of a page without a `limit`.
fn default_limit() -> u32 {
    100
}

/// Example of a group, as in OpenIM's documentation.
fn example_group() -> String {
    "12345".into()
}

/// Example of a user, as in OpenIM's documentation.
fn example_user() -> String {
    "user789".into()
}

fn group_id(id: String) -> Result<GroupId, Error> {
    GroupId::parse(id).map_err(|error| Error::id("groupID", error))
}

fn user_id(id: String) -> Result<UserId, Error> {
    UserId::parse(id).map_err(|error| Error::id("userID", error))
}

/// State of the reads.
#[derive(Clone)]
pub(crate) struct ReadState {
    pub(crate) store: Store,
    pub(crate) memory: Arc<AnswerMemory>,
}

/// Memory of a row without its texts: names of fields, and times.
const ROW_BYTES: usize = 1 << 10;
/// Answers from this length on have a known length before they are written. The server gets them in
/// parts of this size.
const LONG_ANSWER_BYTES: usize = 64 << 10;
/// Limit of reads of rows that grow while the read waits for memory.
const MAX_TRIES: usize = 4;

/// The rows of an answer, with their memory.
struct ReadRows<T> {
    rows: T,
    /// Bytes of their texts.
    bytes: usize,
    share: AnswerShare,
}

/// Memory of an answer while it is made: the texts, and their JSON with twice the size.
fn cost(bytes: usize, rows: usize) -> usize {
    3 * bytes + rows * ROW_BYTES
}

/// Memory of an ordinary answer with at most so many rows.
fn max_cost(rows: usize) -> usize {
    cost((rows * SHORT_ROW).min(PAGE_BYTES), rows)
}

/// Reads at most `max_rows` rows as soon as there is memory for them. Reads again if they need more
/// memory. `size` is the number of rows, and the bytes of their texts.
async fn read<T, F>(
    memory: &Arc<AnswerMemory>,
    max_rows: usize,
    find: impl Fn(Room) -> F,
    size: impl Fn(&T) -> (usize, usize),
) -> Result<Option<ReadRows<T>>, Error>
where
    F: Future<Output = Result<Option<Found<T>>, store::Error>>,
{
    let deadline = memory.deadline();
    let mut share = memory.reserve(max_cost(max_rows), deadline).await?;
    let mut room = Room::Short;
    for tries in 1.. {
        let bytes = match find(room).await? {
            Some(Found::Long(bytes)) if tries < MAX_TRIES => bytes,
            Some(Found::Long(_)) => return Err(Error::new(Code::Busy, ANSWERS)),
            Some(Found::Whole(rows)) => {
                let (count, bytes) = size(&rows);
                share.shrink(cost(bytes, count));
                return Ok(Some(ReadRows { rows, bytes, share }));
            }
            None => break,
        };
        share.shrink(0);
        share = memory.reserve(cost(bytes, max_rows), deadline).await?;
        room = Room::Bytes(bytes);
    }
    Ok(None)
}

/// A request for one page.
struct PageRequest {
    scope: Scope,
    /// The key before the page.
    after: String,
    limit: u32,
}

impl PageRequest {
    fn new(scope: Scope, cursor: Option<String>, limit: u32) -> Result<Self, Error> {
        let after = scope.key(cursor.as_deref())?;
        Ok(Self {
            scope,
            after,
            limit,
        })
    }

    /// Reads the page, and writes its rows with the cursor of the next page.
    async fn answer<T, F, J: From<T>, A: Serialize>(
        &self,
        memory: &Arc<AnswerMemory>,
        find: impl Fn(Room) -> F,
        bytes: impl Fn(&T) -> usize,
        key: impl Fn(&T) -> &str,
        make: impl FnOnce(Vec<J>, Option<String>) -> A,
    ) -> Result<Answer<A>, Error>
    where
        F: Future<Output = Result<Found<Page<T>>, store::Error>>,
    {
        let find = |room| {
            let found = find(room);
            async { found.await.map(Some) }
        };
        let size = |page: &Page<T>| (page.rows.len(), page.rows.iter().map(&bytes).sum());
        // There is always a page, maybe without rows.
        let found = read(memory, self.limit as usize + 1, find, size).await?;
        found.ok_or_else(Error::internal)?.write(|page| {
            let last = page.rows.last().filter(|_| page.has_more);
            let next_cursor = last.map(|last| self.scope.cursor(key(last)));
            make(page.rows.into_iter().map(J::from).collect(), next_cursor)
        })
    }
}

/// First byte of a cursor. Another format has another number.
const CURSOR_VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;

/// The request that a cursor belongs to: path, ids and filters, without the limit.
#[derive(Clone, Debug)]
pub(crate) struct Scope(Sha256);

impl Scope {
    /// `kind` names the path.
    pub(crate) fn new(kind: &str) -> Self {
        Self(Sha256::new_with_prefix([CURSOR_VERSION])).and(kind)
    }

    /// Adds an id or a filter. Its length goes first, so that two texts stay distinct.
    pub(crate) fn and(mut self, part: &str) -> Self {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    fn checksum(&self, key: &str) -> [u8; CHECKSUM_BYTES] {
        let digest = self.clone().and(key).0.finalize();
        std::array::from_fn(|i| digest[i])
    }

    /// The cursor of the page after `key`.
    pub(crate) fn cursor(&self, key: &str) -> String {
        let bytes = [&[CURSOR_VERSION], &self.checksum(key)[..], key.as_bytes()].concat();
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The key of a cursor of this scope. Without a cursor it is the empty key, which is less than any
    /// other.
    pub(crate) fn key(&self, cursor: Option<&str>) -> Result<String, Error> {
        let Some(cursor) = cursor else {
            return Ok(String::new());
        };
        let read = || {
            let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
            let (&version, rest) = bytes.split_first()?;
            let (sum, key) = rest.split_at_checked(CHECKSUM_BYTES)?;
            let key = str::from_utf8(key).ok()?;
            // A made-up cursor can have a right checksum, so its key is checked too.
            let good = version == CURSOR_VERSION
                && sum == self.checksum(key)
                && UserId::parse(key.into()).is_ok();
            good.then(|| key.to_owned())
        };
        let detail = "cursor: expected the nextCursor of the same path with the same filters";
        read().ok_or_else(|| Error::new(Code::CursorInvalid, detail))
    }
}

impl<T> ReadRows<T> {
    /// Writes the answer of the rows.
    fn write<A: Serialize>(self, make: impl FnOnce(T) -> A) -> Result<Answer<A>, Error> {
        let Self {
            rows,
            bytes,
            mut share,
        } = self;
        let answer = make(rows);
        let mut json = Vec::new();
        if bytes >= LONG_ANSWER_BYTES {
            let mut length = Length(0);
            serde_json::to_writer(&mut length, &answer).map_err(unwritten)?;
            // Needs more memory only if most characters are escaped. It must not wait, because others may
            // wait for this share.
            share.grow_now(bytes + length.0)?;
            json.reserve_exact(length.0);
        } else {
            json.reserve(bytes + bytes / 2 + ROW_BYTES);
        }
        serde_json::to_writer(&mut json, &answer).map_err(unwritten)?;
        drop(answer);
        share.shrink(json.capacity());
        share.grow_now(json.capacity())?;
        let bytes = json;
        Ok(Answer {
            json: Bytes::from_owner(WithShare { bytes, share }),
            of: PhantomData,
        })
    }
}

/// An answer with its JSON.
pub(crate) struct Answer<A> {
    json: Bytes,
    of: PhantomData<fn() -> A>,
}

impl<A: Type> Payload for Answer<A> {
    const CONTENT_TYPE: &'static str = JsonResponse::<A>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        JsonResponse::<A>::schema_ref()
    }

    fn register(registry: &mut Registry) {
        A::register(registry);
    }
}

impl<A> IntoResponse for Answer<A> {
    /// Gives the server a long answer in parts: it copies all that it gets at once, even if the client
    /// does not take it.
    fn into_response(self) -> Response {
        let length = self.json.len();
        if length < LONG_ANSWER_BYTES {
            return json(self.json);
        }
        let parts = stream::unfold(self.json, async |mut rest| {
            let part = rest.split_to(rest.len().min(LONG_ANSWER_BYTES));
            (!part.is_empty()).then_some((Ok::<_, io::Error>(part), rest))
        });
        let mut response = json(Body::from_bytes_stream(parts));
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response
    }
}

impl<A: ToJSON + Serialize + Send> ApiResponse for Answer<A> {
    fn meta() -> MetaResponses {
        JsonResponse::<A>::meta()
    }

    fn register(registry: &mut Registry) {
        A::register(registry);
    }
}

/// The error of a time outside the years 0 to 9999. Neither the service nor now() writes one.
fn unwritten(error: serde_json::Error) -> Error {
    Error::internal().because(error)
}

/// A writer that counts bytes.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::drift::DriftJson;
    use super::groups::{GroupPage, GroupWithCounts};
    use super::members::{MemberJson, MemberPage};
    use super::memberships::{MembershipAnswers, MembershipPage};
    use super::*;
    use crate::http::json_response::assert_written_as_documented;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<GroupPage>();
        assert_written_as_documented::<GroupWithCounts>();
        assert_written_as_documented::<MemberPage>();
        assert_written_as_documented::<MemberJson>();
        assert_written_as_documented::<MembershipPage>();
        assert_written_as_documented::<MembershipAnswers>();
        assert_written_as_documented::<DriftJson>();
    }

    #[test]
    fn a_cursor_gives_back_its_key_and_is_safe_in_a_url() {
        let scope = Scope::new("members").and("g1");
        for key in ["u1", "a/b?c=d&e", "ß👩‍👩‍👧", &"x".repeat(1024)] {
            let cursor = scope.cursor(key);
            assert!(
                cursor
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            );
            assert_eq!(scope.key(Some(&cursor)).unwrap(), key);
        }
        assert_eq!(scope.key(None).unwrap(), "");
    }

    #[test]
    fn two_parts_of_a_scope_stay_distinct() {
        let cursor = Scope::new("members").and("g1").and("60").cursor("u1");
        let other = Scope::new("members").and("g16").and("0");
        let error = other.key(Some(&cursor)).unwrap_err();
        assert_eq!(error.code, Code::CursorInvalid);
    }

    #[test]
    fn a_damaged_cursor_is_refused() {
        let scope = Scope::new("members").and("g1");
        let cursor = scope.cursor("user-1");
        for i in 0..cursor.len() {
            let mut damaged = cursor.clone().into_bytes();
            damaged[i] = if damaged[i] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(scope.key(Some(&damaged)).is_err(), "{damaged}");
            assert!(scope.key(Some(&cursor[..i])).is_err());
        }
        for made_up in ["", "a\0b"] {
            assert!(scope.key(Some(&scope.cursor(made_up))).is_err());
        }
        for nonsense in ["", "!", "AQ", "é"] {
            assert!(scope.key(Some(nonsense)).is_err());
        }
    }
}
