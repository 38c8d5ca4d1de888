//! Faults of calls of OpenIM's REST API.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use poem::http::{StatusCode, header};
use poem::{Body, Response};

use super::random::Random;

/// So often at most a random fault follows another.
const IN_A_ROW: u32 = 2;
/// Size and number of the parts of a body without an end.
const PART: usize = 64 << 10;
const PARTS: usize = 1024;

/// Fault in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestFault {
    /// Another status than 200. With 429 it may be tried again at once.
    Status(u16),
    /// An answer with this error.
    ErrCode(i64),
    /// A success that is no JSON.
    Garbage,
    /// The right answer, but the connection ends in its middle.
    CutOff,
    /// Nothing, until the server ends.
    Hang,
    /// 64 MiB, of which the length is not told before.
    TooLarge,
}

/// The faults that are to come.
#[derive(Default)]
pub(super) struct RestFaults {
    next: Vec<(String, RestFault, u64)>,
    sometimes: Option<Sometimes>,
}

struct Sometimes {
    random: Random,
    one_in: u64,
    in_a_row: u32,
    /// Fixed for each request, because others may come between.
    of_request: BTreeMap<(String, Bytes), u32>,
}

impl RestFaults {
    pub(super) fn add(&mut self, path_suffix: &str, fault: RestFault, times: u64) {
        self.next.push((path_suffix.to_owned(), fault, times));
    }

    pub(super) fn add_random(&mut self, seed: u64, one_in: u64) {
        self.sometimes = Some(Sometimes {
            random: Random::new(seed, 0),
            one_in,
            in_a_row: 0,
            of_request: BTreeMap::new(),
        });
    }

    /// Fault of this call. Requested faults come before random ones.
    pub(super) fn take(&mut self, path: &str, body: &Bytes) -> Option<RestFault> {
        let mut next = self.next.iter_mut();
        let next = next.find(|(suffix, _, times)| *times > 0 && path.ends_with(suffix.as_str()));
        if let Some((_, fault, times)) = next {
            *times -= 1;
            return Some(*fault);
        }
        self.sometimes.as_mut()?.take(path, body)
    }
}

impl Sometimes {
    fn take(&mut self, path: &str, body: &Bytes) -> Option<RestFault> {
        let of_request = self
            .of_request
            .entry((path.to_owned(), body.clone()))
            .or_default();
        let is_bad = self.random.one_in(self.one_in);
        if !is_bad || self.in_a_row == IN_A_ROW || *of_request == IN_A_ROW {
            self.in_a_row = 0;
            *of_request = 0;
            return None;
        }
        self.in_a_row += 1;
        *of_request += 1;
        Some(self.random.pick(&[
            RestFault::Status(500),
            RestFault::Status(429),
            RestFault::ErrCode(90002),
            RestFault::Garbage,
            RestFault::CutOff,
        ]))
    }
}

pub(super) fn status(code: u16) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    let mut response = Response::builder().status(code);
    if code == StatusCode::TOO_MANY_REQUESTS {
        response = response.header(header::RETRY_AFTER, "0");
    }
    response.body(code.to_string())
}

pub(super) fn garbage() -> Response {
    Response::builder()
        .content_type("text/html")
        .body("<html><body>It works!</body></html>")
}

/// The head tells the whole length.
pub(super) fn cut_off(mut response: Response, body: &Bytes) -> Response {
    let length = body.len().to_string();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.parse().unwrap());
    let half = body.slice(..body.len() / 2);
    let end = async {
        // Or the half would not be sent.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut off"))
    };
    let parts = stream::iter([Ok(half)]).chain(stream::once(end));
    response.set_body(Body::from_bytes_stream(parts));
    response
}

pub(super) fn too_large() -> Response {
    let head = Bytes::from_static(b"{\"errCode\":0,\"errMsg\":\"");
    let part = Bytes::from(vec![b'x'; PART]);
    let parts = stream::iter([head]).chain(stream::repeat(part).take(PARTS));
    Response::builder()
        .content_type("application/json")
        .body(Body::from_bytes_stream(parts.map(Ok::<_, io::Error>)))
}
