//! Answers with rows of the mirror: first memory, then rows, then the text, which holds its share of
//! the memory until it is written out, but for its last part, which the server has a copy of.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use poem::http::header::CONTENT_LENGTH;
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use serde::Serialize;
use tokio::time::Instant;

use super::error::{Code, Error};
use super::memory::{ANSWERS, AnswerMemory, AnswerShare};
use super::written::{self, Written};
use crate::store::{Found, PAGE_BYTES, Page, Room, SHORT_ROW};

/// What a row takes beside its texts: the names of its fields, and times.
const BESIDE_TEXTS: usize = 1 << 10;
/// From so many bytes on the length of an answer is worth to be known before it is written, and the
/// answer is given to the server in parts of this size.
const LONG: usize = 64 << 10;
/// How often rows are asked for that have grown since the memory for them was taken.
const TRIES: usize = 4;

/// Rows that an answer is made of, and the memory for it.
pub(super) struct Held<T> {
    pub(super) rows: T,
    /// Bytes of their texts.
    pub(super) bytes: usize,
    pub(super) share: AnswerShare,
}

/// What an answer takes while it is made: the texts, and the same once more or twice as JSON.
pub(super) fn cost(bytes: usize, rows: usize) -> usize {
    3 * bytes + rows * BESIDE_TEXTS
}

/// The same at most, of an ordinary read of so many rows.
pub(super) fn most(rows: usize) -> usize {
    cost((rows * SHORT_ROW).min(PAGE_BYTES), rows)
}

/// A read, which begins as soon as there is memory for it, and begins anew where it finds more than that
/// was for.
pub(super) struct Reading {
    memory: Arc<AnswerMemory>,
    share: AnswerShare,
    /// Most rows.
    rows: usize,
    room: Room,
    tries: usize,
    /// Until when is waited for memory.
    deadline: Instant,
}

impl Reading {
    /// Of so many rows at most.
    pub(super) async fn begin(memory: &Arc<AnswerMemory>, rows: usize) -> Result<Self, Error> {
        let deadline = memory.deadline();
        Ok(Self {
            memory: Arc::clone(memory),
            share: memory.hold(most(rows), deadline).await?,
            rows,
            room: Room::Short,
            tries: TRIES,
            deadline,
        })
    }

    /// What there is room for now.
    pub(super) fn room(&self) -> Room {
        self.room
    }

    /// What was found, if it is all. Else there is room for it then.
    pub(super) async fn takes<T>(&mut self, found: Found<T>) -> Result<Option<T>, Error> {
        let bytes = match found {
            Found::Whole(found) => return Ok(Some(found)),
            Found::Long(bytes) => bytes,
        };
        self.tries -= 1;
        if self.tries == 0 {
            return Err(Error::new(Code::Busy, ANSWERS));
        }
        self.share.shrink(0);
        let share = self.memory.hold(cost(bytes, self.rows), self.deadline);
        self.share = share.await?;
        self.room = Room::Bytes(bytes);
        Ok(None)
    }

    /// Its end: the rows, of which there are so many, with so many bytes of text.
    pub(super) fn end<T>(self, rows: T, count: usize, bytes: usize) -> Held<T> {
        let mut share = self.share;
        share.shrink(cost(bytes, count));
        Held { rows, bytes, share }
    }

    /// The same of a page.
    pub(super) fn end_page<T>(self, page: Page<T>, bytes: impl Fn(&T) -> usize) -> Held<Page<T>> {
        let count = page.rows.len();
        let bytes = page.rows.iter().map(bytes).sum();
        self.end(page, count, bytes)
    }
}

impl<T> Held<T> {
    /// The answer that is made of the rows.
    pub(super) fn write<A: Serialize>(self, make: impl FnOnce(T) -> A) -> Result<Answer<A>, Error> {
        let Self {
            rows,
            bytes,
            mut share,
        } = self;
        let answer = make(rows);
        let mut json = Vec::new();
        if bytes >= LONG {
            let mut length = Length(0);
            serde_json::to_writer(&mut length, &answer).map_err(unwritten)?;
            // Nothing, unless most of it has to be escaped. Others may wait for what is held here, so this
            // waits for nobody.
            share.grow_now(bytes + length.0)?;
            json.reserve_exact(length.0);
        } else {
            json.reserve(bytes + bytes / 2 + BESIDE_TEXTS);
        }
        serde_json::to_writer(&mut json, &answer).map_err(unwritten)?;
        drop(answer);
        share.fit(json.capacity())?;
        let held = Json {
            json,
            _share: share,
        };
        Ok(Answer {
            json: Bytes::from_owner(held),
            of: PhantomData,
        })
    }
}

/// An answer that is written already, as JSON.
pub(super) struct Answer<A> {
    json: Bytes,
    of: PhantomData<fn() -> A>,
}

impl<A: Type> Payload for Answer<A> {
    const CONTENT_TYPE: &'static str = Written::<A>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        Written::<A>::schema_ref()
    }

    fn register(registry: &mut Registry) {
        A::register(registry);
    }
}

impl<A> IntoResponse for Answer<A> {
    /// A long one in parts: of a body the server copies as much as it is given at once, whether
    /// somebody takes it or not.
    fn into_response(self) -> Response {
        let length = self.json.len();
        if length < LONG {
            return written::json(self.json);
        }
        let parts = stream::unfold(self.json, async |mut rest| {
            let part = rest.split_to(rest.len().min(LONG));
            (!part.is_empty()).then_some((Ok::<_, io::Error>(part), rest))
        });
        let mut response = written::json(Body::from_bytes_stream(parts));
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response
    }
}

impl<A: Type + Serialize + Send> ApiResponse for Answer<A> {
    fn meta() -> MetaResponses {
        Written::<A>::meta()
    }

    fn register(registry: &mut Registry) {
        A::register(registry);
    }
}

/// A time outside the years 0 to 9999, which neither we nor now() ever wrote.
fn unwritten(error: serde_json::Error) -> Error {
    Error::new(Code::Internal, "the log says more").because(error)
}

/// A written answer, and its share of the memory.
struct Json {
    json: Vec<u8>,
    _share: AnswerShare,
}

impl AsRef<[u8]> for Json {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

/// Counts what is written.
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
