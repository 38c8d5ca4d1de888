//! The network between the service and Postgres, for tests that break it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

/// A proxy on loopback before a database. Ends with the test's runtime.
pub struct Wire {
    /// The database's URL through the proxy.
    pub url: String,
    /// Connections made up to here are silent.
    silent: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Wire {
    /// Before the database at a URL of a Unix socket.
    pub async fn before(url: &str) -> Wire {
        let parsed = reqwest::Url::parse(url).unwrap();
        let (_, host) = parsed
            .query_pairs()
            .find(|(name, _)| name == "host")
            .unwrap();
        let socket = format!("{host}/.s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, made) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let of_proxy = (Arc::clone(&silent), Arc::clone(&made));
        let task = tokio::spawn(async move {
            let (silent, made) = of_proxy;
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = made.fetch_add(1, Ordering::SeqCst) + 1;
                let Ok(server) = UnixStream::connect(&socket).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                connections.spawn(forward(from_client, to_server, number, Arc::clone(&silent)));
                connections.spawn(forward(from_server, to_client, number, Arc::clone(&silent)));
            }
        });
        Wire {
            url: format!(
                "postgres://postgres@{address}{}?sslmode=disable",
                parsed.path()
            ),
            silent,
            made,
            task: task.abort_handle(),
        }
    }

    /// From now on nothing passes on the connections that there are, and nobody is told. New ones
    /// are as they should be: what a firewall does that has forgotten its connections.
    pub fn forget_connections(&self) {
        self.silent
            .store(self.made.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    number: usize,
    silent: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(length) = from.read(&mut buffer).await else {
            return;
        };
        if number <= silent.load(Ordering::SeqCst) {
            // The ends are held, so that neither sees the other go.
            return std::future::pending().await;
        }
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
