//! The network between the service and Postgres, for tests that break it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A proxy on loopback before a database. Ends with the test's runtime.
pub struct Wire {
    /// The database's URL through the proxy.
    pub url: String,
    ends: Ends,
    task: AbortHandle,
}

/// Treatment of sent bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Kept until it is healed, and then passed on.
    Hold,
    /// Connections are closed, new ones too.
    Cut,
    /// Passed on later, each part by so much.
    Delay(Duration),
}

#[derive(Clone)]
struct Ends {
    mode: watch::Sender<Mode>,
    /// Connections made up to here are silent.
    silent: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
}

/// The socket of a URL, and the path that names its database.
pub(super) fn socket_of(url: &str) -> (String, String) {
    let parsed = reqwest::Url::parse(url).unwrap();
    let (_, host) = parsed
        .query_pairs()
        .find(|(name, _)| name == "host")
        .unwrap();
    let socket = format!("{host}/.s.PGSQL.5432");
    (socket, parsed.path().to_owned())
}

impl Wire {
    /// Before the database at a URL of a Unix socket.
    pub async fn before(url: &str) -> Wire {
        let (socket, database) = socket_of(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ends = Ends {
            mode: watch::Sender::new(Mode::Pass),
            silent: Arc::default(),
            made: Arc::default(),
        };
        let task = tokio::spawn(ends.clone().serve(listener, socket));
        Wire {
            url: format!("postgres://postgres@{address}{database}?sslmode=disable"),
            ends,
            task: task.abort_handle(),
        }
    }

    /// From now on nothing passes on the connections that there are, and nobody is told. New ones
    /// are as they should be: what a firewall does that has forgotten its connections.
    pub fn forget_connections(&self) {
        let made = self.ends.made.load(Ordering::SeqCst);
        self.ends.silent.store(made, Ordering::SeqCst);
    }

    /// Number of connections so far.
    pub fn made(&self) -> usize {
        self.ends.made.load(Ordering::SeqCst)
    }

    /// From now on what is sent is held back, on every connection, and nobody is told.
    pub fn hold(&self) {
        self.ends.mode.send_replace(Mode::Hold);
    }

    /// From now on no connection lives.
    pub fn cut(&self) {
        self.ends.mode.send_replace(Mode::Cut);
    }

    /// From now on everything takes so much longer.
    pub fn delay(&self, by: Duration) {
        self.ends.mode.send_replace(Mode::Delay(by));
    }

    /// All is well again; what was held back arrives.
    pub fn heal(&self) {
        self.ends.mode.send_replace(Mode::Pass);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ends {
    async fn serve(self, listener: TcpListener, socket: String) {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let number = self.made.fetch_add(1, Ordering::SeqCst) + 1;
            connections.spawn(self.clone().carry(client, socket.clone(), number));
        }
    }

    /// Passes one connection on, until either end or the wire ends it.
    async fn carry(self, client: TcpStream, socket: String, number: usize) {
        let mut mode = self.mode.subscribe();
        let cut = async move {
            // The sender is ours.
            let _ = mode.wait_for(|mode| *mode == Mode::Cut).await;
        };
        let carry = async {
            let Ok(server) = UnixStream::connect(&socket).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(
                self.forward(from_client, to_server, number),
                self.forward(from_server, to_client, number)
            );
        };
        tokio::select! {
            () = cut => {}
            () = carry => {}
        }
    }

    async fn forward(
        &self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        number: usize,
    ) {
        let mut mode = self.mode.subscribe();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = from.read(&mut buffer).await.unwrap_or(0);
            if number <= self.silent.load(Ordering::SeqCst) {
                // The ends are held, so that neither sees the other go.
                return std::future::pending().await;
            }
            let Ok(now) = mode.wait_for(|mode| *mode != Mode::Hold).await.map(|m| *m) else {
                return;
            };
            if let Mode::Delay(by) = now {
                tokio::time::sleep(by).await;
            }
            // At the end of one direction the other may still have something.
            if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}
