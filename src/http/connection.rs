//! What a connection may be: HTTP/1, and how long it may keep us waiting. poem's server waits for
//! ever for the head of a request, and takes up HTTP/2 with whoever begins it. Nobody who calls here
//! needs that, and none of these bounds would hold there: it is refused at its preface.
//!
//! A kept connection that is silent between two requests is left alone: OpenIM's client keeps its
//! connections, and loses the callback that it sends on one that we are just closing. Those who
//! have shown no key, where one is set, are told to close instead (`edge`), so that strangers
//! cannot take all the places by being silent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::settings::HttpTimeouts;
use crate::telemetry::Metrics;

/// Longest head of a request. Ids in a path have 2,048 bytes, or 6 KB percent-encoded.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A connection that ends when it keeps us waiting for the head of a request, or does not take
/// an answer.
pub(super) struct Patient {
    stream: TcpStream,
    reading: Reading,
    /// Set while we wait for something with a bound.
    alarm: Option<Pin<Box<Sleep>>>,
    patience: HttpTimeouts,
    metrics: Metrics,
    _place: OwnedSemaphorePermit,
}

/// Where the other end is in what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Between two requests; silence is all right.
    Nothing,
    /// In a head.
    Head(Head),
    /// Behind a head: `body` has its own bound.
    Body,
    /// Behind HTTP/2's preface: nothing more is read.
    Http2,
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// The last bytes were this many of its end.
    of_end: usize,
    /// All bytes so far were this many of HTTP/2's beginning.
    of_http2: Option<usize>,
    length: usize,
}

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// "100 Continue" asks for the body; the answer is still to come.
const INTERIM: &[u8] = b"HTTP/1.1 100 ";
/// The part of HTTP/2's preface that looks like a head to HTTP/1. The server knows HTTP/2 by what
/// follows, so it never gets that far.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

impl Head {
    const BEGIN: Head = Head {
        of_end: 0,
        of_http2: Some(0),
        length: 0,
    };
}

impl Reading {
    /// Further, by what was read.
    fn read(self, bytes: &[u8]) -> Self {
        let mut head = match self {
            Reading::Body | Reading::Http2 => return self,
            Reading::Nothing => Head::BEGIN,
            Reading::Head(head) => head,
        };
        for byte in bytes {
            head.of_http2 = head
                .of_http2
                .filter(|at| HTTP2.get(*at) == Some(byte))
                .map(|at| at + 1);
            head.of_end = match byte {
                byte if *byte == END_OF_HEAD[head.of_end] => head.of_end + 1,
                b'\r' => 1,
                _ => 0,
            };
            if head.of_end == END_OF_HEAD.len() {
                return match head.of_http2 {
                    Some(_) => Reading::Http2,
                    None => Reading::Body,
                };
            }
        }
        head.length += bytes.len();
        Reading::Head(head)
    }

    /// Whether a connection ends that has come here.
    fn is_refused(self) -> bool {
        match self {
            Reading::Head(head) => head.length > MAX_HEAD_BYTES,
            Reading::Http2 => true,
            Reading::Nothing | Reading::Body => false,
        }
    }
}

impl Patient {
    pub(super) fn new(
        stream: TcpStream,
        patience: HttpTimeouts,
        metrics: Metrics,
        place: OwnedSemaphorePermit,
    ) -> Self {
        metrics.connections.add([], 1);
        Self {
            stream,
            // Who connects has something to say.
            reading: Reading::Head(Head::BEGIN),
            alarm: Some(Box::pin(sleep(patience.head))),
            patience,
            metrics,
            _place: place,
        }
    }

    /// An error once the alarm has rung.
    fn check_alarm(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.alarm {
            Some(alarm) => alarm
                .as_mut()
                .poll(cx)
                .map(|()| io::ErrorKind::TimedOut.into()),
            None => Poll::Pending,
        }
    }

    /// Further, by what has become of a part of an answer: its end is the end of a request.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        is_interim: bool,
    ) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            return self.wait_to_write(cx);
        }
        if !is_interim {
            self.reading = Reading::Nothing;
        }
        self.alarm = None;
        written
    }

    /// While an answer does not go out: waits, but not for ever.
    fn wait_to_write<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.alarm.is_none() {
            let until = Instant::now() + self.patience.answer;
            self.alarm = Some(Box::pin(sleep_until(until)));
        }
        self.check_alarm(cx).map(Err)
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        self.metrics.connections.add([], -1);
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending if matches!(this.reading, Reading::Head(_)) => {
                this.check_alarm(cx).map(Err)
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                result?;
                let was = this.reading;
                this.reading = was.read(&buf.filled()[before..]);
                if this.reading.is_refused() {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                match (was, this.reading) {
                    (Reading::Nothing, Reading::Head(_)) => {
                        this.alarm = Some(Box::pin(sleep(this.patience.head)));
                    }
                    (Reading::Head(_), Reading::Body) => this.alarm = None,
                    _ => {}
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, written, buf.starts_with(INTERIM))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        let is_interim = bufs.first().is_some_and(|buf| buf.starts_with(INTERIM));
        this.wrote(cx, written, is_interim)
    }

    /// Else the server copies each answer beside its head, and the copy counts nowhere.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are cut.
    fn after(bytes: &[u8]) -> Reading {
        let whole = Reading::Nothing.read(bytes);
        let one_by_one = bytes
            .chunks(1)
            .fold(Reading::Nothing, |reading, byte| reading.read(byte));
        assert_eq!(whole, one_by_one);
        whole
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        for head in [
            b"GET / HTTP/1.1\r\n\r\n".as_slice(),
            b"POST / HTTP/1.1\r\nA: b\r\n\r\nbody",
            b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n",
            b"PRI * HTTP/2.1\r\n\r\n",
        ] {
            assert_eq!(after(head), Reading::Body);
            assert!(!after(head).is_refused());
        }
        for part in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"GET / HTTP/1.1\n\n",
            b"\r\r\r\n\r",
            b"PRI * HTTP/2.0\r\n",
        ] {
            assert!(matches!(after(part), Reading::Head(_)));
        }
    }

    #[test]
    fn http2_is_refused() {
        let reading = after(b"PRI * HTTP/2.0\r\n\r\n");
        assert_eq!(reading, Reading::Http2);
        assert!(reading.is_refused());
        assert!(!after(b"PRI * HTTP/2.0\r\n\r").is_refused());
    }
}
