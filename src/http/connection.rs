//! Connections on their way in: how many, and how long each may keep us waiting.
//!
//! poem's server waits for ever for the head of a request, and goes round without a pause or a
//! word when it cannot accept. A kept connection that is silent between two requests is left
//! alone: OpenIM's client keeps its connections, and loses the callback that it sends on one that
//! we are just closing. Those who have shown no key, where one is set, are told to close instead
//! (`edge`), so that strangers cannot take all the places by being silent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::listener::{Acceptor, TcpAcceptor};
use poem::web::{LocalAddr, RemoteAddr};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::config::Patience;
use crate::telemetry::Metrics;

/// Open files that are left for everything else but connections, which are counted.
const OTHER_FILES: u64 = 64;
/// Most connections, however many files there are: the head of each can take [`MAX_HEAD_BYTES`].
const MANY: u64 = 16 << 10;
/// Places for those who ask for metrics on a listener of their own.
pub(super) const FEW: usize = 32;
/// Longest head of a request. Ids in a path have 2,048 bytes, or 6 KB percent-encoded.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// What a connection is probed with when it is silent: its other end may be gone without a word.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;
/// Pause after a connection could not be accepted; what is missing does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts as many connections as there are files for.
pub(super) struct PatientAcceptor {
    inner: TcpAcceptor,
    places: Arc<Semaphore>,
    /// Whether that was told already.
    is_full: bool,
    patience: Patience,
    metrics: Metrics,
}

impl PatientAcceptor {
    pub(super) fn new(
        listener: TcpListener,
        places: usize,
        patience: Patience,
        metrics: Metrics,
    ) -> io::Result<Self> {
        Ok(Self {
            inner: TcpAcceptor::from_tokio(listener)?,
            places: Arc::new(Semaphore::new(places)),
            is_full: false,
            patience,
            metrics,
        })
    }
}

/// Takes all the open files that the system grants, and tells how many connections these are for
/// when `others` are open to the database and elsewhere.
pub(super) fn places(others: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let left = files
        .unwrap_or(u64::MAX)
        .saturating_sub(OTHER_FILES + others as u64);
    usize::try_from(left.clamp(1, MANY)).unwrap_or(1)
}

impl Acceptor for PatientAcceptor {
    type Io = Patient;

    fn local_addr(&self) -> Vec<LocalAddr> {
        self.inner.local_addr()
    }

    async fn accept(&mut self) -> io::Result<(Patient, LocalAddr, RemoteAddr, Scheme)> {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => {
                self.is_full = false;
                place
            }
            Err(_) => {
                if !std::mem::replace(&mut self.is_full, true) {
                    tracing::warn!("as many connections as there are places; others have to wait");
                }
                let place = Arc::clone(&self.places).acquire_owned().await;
                place.map_err(io::Error::other)? // the semaphore is never closed
            }
        };
        match self.inner.accept().await {
            Ok((stream, local, remote, scheme)) => {
                probe_when_silent(&stream);
                let io = Patient::new(stream, self.patience, self.metrics.clone(), place);
                Ok((io, local, remote, scheme))
            }
            Err(error) => {
                self.metrics.accept_error();
                let error = error.to_string();
                tracing::warn!(error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}

/// Without probes the connection only stays open longer, so what fails is passed over.
fn probe_when_silent(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, PROBE_AFTER))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, PROBE_EVERY))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, PROBES));
}

/// A connection that ends when it keeps us waiting for the head of a request, or does not take
/// an answer.
pub(super) struct Patient {
    stream: TcpStream,
    reading: Reading,
    /// Set while we wait for something with a bound.
    alarm: Option<Pin<Box<Sleep>>>,
    patience: Patience,
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
    /// HTTP/2, where requests have no order. Its frames are left alone.
    Frames,
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
/// What looks like a head to HTTP/1.
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
            Reading::Body | Reading::Frames => return self,
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
                    Some(_) => Reading::Frames,
                    None => Reading::Body,
                };
            }
        }
        head.length += bytes.len();
        Reading::Head(head)
    }

    /// Further, by an answer: it is the end of a request.
    fn answered(self) -> Self {
        match self {
            Reading::Frames => self,
            _ => Reading::Nothing,
        }
    }
}

impl Patient {
    fn new(
        stream: TcpStream,
        patience: Patience,
        metrics: Metrics,
        place: OwnedSemaphorePermit,
    ) -> Self {
        metrics.connection_opened();
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
        self.metrics.connection_closed();
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
                if matches!(this.reading, Reading::Head(head) if head.length > MAX_HEAD_BYTES) {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                match (was, this.reading) {
                    (Reading::Nothing, Reading::Head(_)) => {
                        this.alarm = Some(Box::pin(sleep(this.patience.head)));
                    }
                    (Reading::Head(_), Reading::Body | Reading::Frames) => this.alarm = None,
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
        match Pin::new(&mut this.stream).poll_write(cx, buf) {
            Poll::Pending => this.wait_to_write(cx),
            Poll::Ready(written) => {
                if !buf.starts_with(INTERIM) {
                    this.reading = this.reading.answered();
                }
                this.alarm = None;
                Poll::Ready(written)
            }
        }
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
            assert_eq!(after(head).answered(), Reading::Nothing);
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
    fn http2_is_left_alone() {
        let reading = after(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(reading, Reading::Frames);
        assert_eq!(reading.answered().read(b"anything"), Reading::Frames);
    }
}
