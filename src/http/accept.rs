//! How many connections are let in. poem's server goes round without a pause or a word when it
//! cannot accept one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::listener::{Acceptor, TcpAcceptor};
use poem::web::{LocalAddr, RemoteAddr};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::connection::Patient;
use super::settings::HttpTimeouts;
use crate::telemetry::Metrics;

/// Open files that are left for everything else but connections, which are counted.
const OTHER_FILES: u64 = 64;
/// Most connections, however many files there are: the head of each can take 64 KiB.
const MANY: u64 = 16 << 10;
/// Places for those who ask for metrics on a listener of their own.
pub(super) const FEW: usize = 32;
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
    patience: HttpTimeouts,
    metrics: Metrics,
}

impl PatientAcceptor {
    pub(super) fn new(
        listener: TcpListener,
        places: usize,
        patience: HttpTimeouts,
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
                self.metrics.accept_errors.inc([]);
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
