//! The server: how many connections are open, and how long each may take.
//!
//! poem's server loops without a pause and without a log line when it cannot accept a connection. It
//! waits without a limit for the head of a request. It also speaks HTTP/2, where none of the limits
//! here would hold and which no caller needs, so HTTP/2 is refused at its preface.
//!
//! A kept connection may be silent between two requests. OpenIM's client keeps its connections, and
//! it loses a callback that it sends on a connection that closes at that moment. If a key is set,
//! the middleware has connections without a key closed after their answer, so that strangers cannot
//! take all places by silence.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::OptionFuture;
use poem::http::uri::Scheme;
use poem::listener::{Acceptor, TcpAcceptor};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{EndpointExt, Route, Server, get};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use super::auth::Access;
use super::memory::{AnswerMemory, BodyLimits};
use super::middleware;
use crate::http::ops::{self, Gauges};
use crate::http::{AccessSettings, HttpParts, HttpSettings, HttpTimeouts};
use crate::telemetry::Metrics;

/// Open files kept for everything but connections.
const OTHER_FILES: u64 = 64;
/// Limit of connections for any number of files: the head of each can take 64 KiB.
const MAX_CONNECTIONS: u64 = 16 << 10;
/// Limit of connections to the listener of metrics.
const MAX_METRICS_CONNECTIONS: usize = 32;
/// Silence after which a connection is probed: its other end may be gone without notice.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;
/// Pause after a failed accept. Missing resources do not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown`, then finishes open requests within `timeout`. The metrics are on
/// `metrics_listener`, if there is one.
///
/// # Errors
/// If a listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    parts: HttpParts,
    settings: HttpSettings,
    shutdown: impl Future<Output = ()>,
    timeout: Duration,
) -> io::Result<()> {
    let is_local = is_loopback(&listener)?;
    let timeouts = settings.timeouts;
    let metrics = parts.metrics.clone();
    let accept = |listener, max_connections| {
        Ok::<_, io::Error>(LimitedAcceptor {
            inner: TcpAcceptor::from_tokio(listener)?,
            permits: Arc::new(Semaphore::new(max_connections)),
            is_full: false,
            timeouts,
            metrics: metrics.clone(),
        })
    };
    let others = parts.store.max_connections + MAX_METRICS_CONNECTIONS;
    let acceptor = accept(listener, max_connections(others))?;
    let gauges = Gauges {
        bodies: Arc::new(BodyLimits::new(settings.body, timeouts)),
        answers: Arc::new(AnswerMemory::new(settings.max_answer_memory, timeouts)),
        parts,
    };
    let metrics_server = match metrics_listener {
        Some(listener) => {
            let no_keys = AccessSettings {
                callback_passwords: vec![],
                api_tokens: vec![],
                ..settings.access.clone()
            };
            let access = Access::new(&no_keys, is_loopback(&listener)?);
            let route = Route::new().at("/metrics", get(ops::metrics_alone));
            let server = Server::new_with_acceptor(accept(listener, MAX_METRICS_CONNECTIONS)?);
            Some(server.run(route.data(access).data(gauges.clone())))
        }
        None => None,
    };
    let serves_metrics = metrics_server.is_none();
    let endpoint = middleware::endpoint(gauges, &settings, is_local, serves_metrics)
        .map_err(io::Error::other)?;
    let server = Server::new_with_acceptor(acceptor);
    // The metrics are served until the last request is answered.
    tokio::select! {
        served = server.run_with_graceful_shutdown(endpoint, shutdown, Some(timeout)) => served,
        Some(ended) = OptionFuture::from(metrics_server) => ended,
    }
}

fn is_loopback(listener: &TcpListener) -> io::Result<bool> {
    Ok(listener.local_addr()?.ip().is_loopback())
}

/// Accepts connections up to a limit.
struct LimitedAcceptor {
    inner: TcpAcceptor,
    permits: Arc<Semaphore>,
    /// True if the log says already that the limit is reached.
    is_full: bool,
    timeouts: HttpTimeouts,
    metrics: Metrics,
}

/// Raises the limit of open files as far as the system allows. Returns the number of connections
/// that these files allow beside `others`.
fn max_connections(others: usize) -> usize {
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
    usize::try_from(left.clamp(1, MAX_CONNECTIONS)).unwrap_or(1)
}

impl Acceptor for LimitedAcceptor {
    type Io = TimedStream;

    fn local_addr(&self) -> Vec<LocalAddr> {
        self.inner.local_addr()
    }

    async fn accept(&mut self) -> io::Result<(TimedStream, LocalAddr, RemoteAddr, Scheme)> {
        let was_full = std::mem::replace(&mut self.is_full, self.permits.available_permits() == 0);
        if self.is_full && !was_full {
            tracing::warn!("the limit of connections is reached; new ones wait");
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?; // the semaphore is never closed
        match self.inner.accept().await {
            Ok((stream, local, remote, scheme)) => {
                probe_when_silent(&stream);
                self.metrics.connections.add([], 1);
                let io = TimedStream {
                    stream,
                    // A new connection starts with a request.
                    reading: StreamState::Head(Head::BEGIN),
                    alarm: Some(Box::pin(sleep(self.timeouts.head))),
                    timeouts: self.timeouts,
                    metrics: self.metrics.clone(),
                    _permit: permit,
                };
                Ok((io, local, remote, scheme))
            }
            Err(error) => {
                self.metrics.accept_errors.inc([]);
                tracing::warn!(error = error.to_string(), "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}

/// Ignores failures: without probes a connection only stays open longer.
fn probe_when_silent(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, PROBE_AFTER))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, PROBE_INTERVAL))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, PROBES));
}

/// Limit of the head of a request. Two ids in a path have 2,048 bytes, or 6 KB percent-encoded.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A connection with time limits. It ends if the head of a request is late, or if an answer is not
/// taken.
struct TimedStream {
    stream: TcpStream,
    reading: StreamState,
    /// Set during a wait with a time limit.
    alarm: Option<Pin<Box<Sleep>>>,
    timeouts: HttpTimeouts,
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
}

/// Position in what the other end sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamState {
    /// Between two requests. Silence is allowed.
    Nothing,
    /// In the head of a request.
    Head(Head),
    /// After a head. The body has its own timeout.
    Body,
    /// After HTTP/2's preface. Nothing more is read.
    Http2,
}

/// Progress in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// Number of bytes of [`END_OF_HEAD`] that the last bytes match.
    of_end: usize,
    /// Number of bytes of [`HTTP2`] that all bytes so far match.
    of_http2: Option<usize>,
    length: usize,
}

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// The start of "100 Continue", which asks for the body. The answer follows later.
const INTERIM: &[u8] = b"HTTP/1.1 100 ";
/// The part of HTTP/2's preface that is a head in HTTP/1. The server recognizes HTTP/2 by the bytes
/// after it, and never reads these.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

impl Head {
    const BEGIN: Head = Head {
        of_end: 0,
        of_http2: Some(0),
        length: 0,
    };
}

impl StreamState {
    /// The position after more bytes.
    fn read(self, bytes: &[u8]) -> Self {
        let mut head = match self {
            StreamState::Body | StreamState::Http2 => return self,
            StreamState::Nothing => Head::BEGIN,
            StreamState::Head(head) => head,
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
                    Some(_) => StreamState::Http2,
                    None => StreamState::Body,
                };
            }
        }
        head.length += bytes.len();
        StreamState::Head(head)
    }

    /// True if the connection ends at this position.
    fn is_refused(self) -> bool {
        match self {
            StreamState::Head(head) => head.length > MAX_HEAD_BYTES,
            StreamState::Http2 => true,
            StreamState::Nothing | StreamState::Body => false,
        }
    }
}

impl TimedStream {
    /// Ready with an error after the time limit.
    fn check_alarm(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.alarm {
            Some(alarm) => alarm
                .as_mut()
                .poll(cx)
                .map(|()| io::ErrorKind::TimedOut.into()),
            None => Poll::Pending,
        }
    }
}

impl Drop for TimedStream {
    fn drop(&mut self) {
        self.metrics.connections.add([], -1);
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending if matches!(this.reading, StreamState::Head(_)) => {
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
                    (StreamState::Nothing, StreamState::Head(_)) => {
                        this.alarm = Some(Box::pin(sleep(this.timeouts.head)));
                    }
                    (StreamState::Head(_), StreamState::Body) => this.alarm = None,
                    _ => {}
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        if written.is_pending() {
            // The other end does not take the answer.
            let timeout = this.timeouts.answer;
            this.alarm.get_or_insert_with(|| Box::pin(sleep(timeout)));
            return this.check_alarm(cx).map(Err);
        }
        // An answer ends its request.
        if !bufs.first().is_some_and(|buf| buf.starts_with(INTERIM)) {
            this.reading = StreamState::Nothing;
        }
        this.alarm = None;
        written
    }

    /// Without it the server copies each answer next to its head, and no limit counts the copy.
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

    /// The position after the bytes, read at once and one by one.
    fn after(bytes: &[u8]) -> StreamState {
        let whole = StreamState::Nothing.read(bytes);
        let one_by_one = bytes
            .chunks(1)
            .fold(StreamState::Nothing, |reading, byte| reading.read(byte));
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
            assert_eq!(after(head), StreamState::Body);
            assert!(!after(head).is_refused());
        }
        for part in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"GET / HTTP/1.1\n\n",
            b"\r\r\r\n\r",
            b"PRI * HTTP/2.0\r\n\r",
        ] {
            assert!(matches!(after(part), StreamState::Head(_)));
        }
    }
}
