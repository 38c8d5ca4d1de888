//! A proxy between the service and Postgres that reads the messages: a pooler, a balancer, a network that breaks at a
//! chosen message.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::wire::socket_of;

/// A proxy on loopback before a database. Ends with the test's runtime.
pub struct Proxy {
    /// The database's URL through the proxy.
    pub url: String,
    acts: Arc<Acts>,
    task: AbortHandle,
}

/// Actions of the proxy beside passing messages on.
#[derive(Default)]
struct Acts {
    drops_options: AtomicBool,
    /// Every transaction goes to the other one of two backends.
    switches: AtomicBool,
    /// The answer to the next BEGIN comes so much later.
    holds_begin: Mutex<Option<Duration>>,
    /// Commands after whose end a connection breaks, each once, before their answers are passed on.
    cuts_after: Mutex<Vec<&'static str>>,
    /// Connections end after so much silence.
    ends_idle: Mutex<Option<Duration>>,
    /// Counts up for each time that all connections forget their prepared statements.
    forgets: AtomicUsize,
    open: AtomicUsize,
    /// Answers that were held and are passed on.
    released: AtomicUsize,
}

/// An end of a connection, read message by message.
struct End<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> End<S> {
    fn new(stream: S) -> Self {
        let buffer = BytesMut::new();
        Self { stream, buffer }
    }

    /// Reads on; false at the end. Loses nothing when it is dropped.
    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(read) if read > 0)
    }

    /// A whole message that was read. The first one of a client has no type.
    fn next(&mut self, is_first: bool) -> Option<Bytes> {
        let at = usize::from(!is_first);
        let length = self.buffer.get(at..at + 4)?;
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize + at;
        (self.buffer.len() >= length).then(|| self.buffer.split_to(length).freeze())
    }

    async fn message(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.next(false) {
                return Some(message);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn send(&mut self, message: &[u8]) -> Option<()> {
        self.stream.write_all(message).await.ok()
    }

    /// Passes on to `to` up to the end of an answer, and gives its last byte: the state of the
    /// transaction.
    async fn answer(&mut self, to: &mut Vec<u8>) -> Option<u8> {
        loop {
            let message = self.message().await?;
            to.extend_from_slice(&message);
            if message[0] == b'Z' {
                return message.last().copied();
            }
        }
    }
}

impl Proxy {
    /// Before the database at a URL of a Unix socket.
    pub async fn before(url: &str) -> Proxy {
        let (socket, database) = socket_of(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acts = Arc::new(Acts::default());
        let task = tokio::spawn(Arc::clone(&acts).serve(listener, socket));
        Proxy {
            url: format!("postgres://postgres@{address}{database}?sslmode=disable"),
            acts,
            task: task.abort_handle(),
        }
    }

    /// From now on new connections lose the start-up parameter `options`, as poolers do that are
    /// told to ignore it.
    pub fn drop_options(&self) {
        self.acts.drops_options.store(true, Ordering::SeqCst);
    }

    /// From now on new connections have another backend for each transaction, as poolers do that
    /// hand them out so.
    pub fn switch_backends(&self) {
        self.acts.switches.store(true, Ordering::SeqCst);
    }

    /// Holds the answer to the next BEGIN.
    pub fn hold_begin(&self, by: Duration) {
        *self.acts.holds_begin.lock().unwrap() = Some(by);
    }

    /// True if the held answer has been passed on.
    pub fn has_released(&self) -> bool {
        self.acts.released.load(Ordering::SeqCst) > 0
    }

    /// Breaks a connection when a command with this end is done, before anybody is told.
    pub fn cut_after(&self, tag: &'static str) {
        self.acts.cuts_after.lock().unwrap().push(tag);
    }

    /// True if every such command has come.
    pub fn has_cut(&self) -> bool {
        self.acts.cuts_after.lock().unwrap().is_empty()
    }

    /// From now on connections end after so much silence, as a balancer does.
    pub fn end_idle(&self, after: Duration) {
        *self.acts.ends_idle.lock().unwrap() = Some(after);
    }

    /// Has every connection forget what was prepared on it.
    pub fn forget_statements(&self) {
        self.acts.forgets.fetch_add(1, Ordering::SeqCst);
    }

    /// Number of connections.
    pub fn open(&self) -> usize {
        self.acts.open.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Acts {
    async fn serve(self: Arc<Self>, listener: TcpListener, socket: String) {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let (acts, socket) = (Arc::clone(&self), socket.clone());
            connections.spawn(async move {
                acts.open.fetch_add(1, Ordering::SeqCst);
                acts.carry(End::new(client), &socket).await;
                acts.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    /// Passes one connection on, until either end or the proxy ends it.
    async fn carry(&self, mut client: End<TcpStream>, socket: &str) -> Option<()> {
        let startup = loop {
            if let Some(startup) = client.next(true) {
                break startup;
            }
            if !client.fill().await {
                return None;
            }
        };
        let startup = match self.drops_options.load(Ordering::SeqCst) {
            true => without_options(&startup),
            false => startup.to_vec(),
        };
        let mut server = End::new(UnixStream::connect(socket).await.ok()?);
        server.send(&startup).await?;
        if self.switches.load(Ordering::SeqCst) {
            let mut other = End::new(UnixStream::connect(socket).await.ok()?);
            other.send(&startup).await?;
            other.answer(&mut Vec::new()).await?;
            let mut answer = Vec::new();
            server.answer(&mut answer).await?;
            client.send(&answer).await?;
            return switch(client, [server, other]).await;
        }
        self.pass(client, server).await
    }

    async fn pass(&self, mut client: End<TcpStream>, mut server: End<UnixStream>) -> Option<()> {
        let mut held_until = None;
        let mut forgets = self.forgets.load(Ordering::SeqCst);
        // What the server says is kept up to the end of its answer while a cut is wanted.
        let mut answer: Vec<u8> = Vec::new();
        let mut is_cut = false;
        loop {
            while let Some(message) = client.next(false) {
                let now = self.forgets.load(Ordering::SeqCst);
                if std::mem::replace(&mut forgets, now) != now {
                    server.send(b"Q\0\0\0\x13DEALLOCATE ALL\0").await?;
                    server.answer(&mut Vec::new()).await?;
                }
                if message[0] == b'Q'
                    && message[5..].starts_with(b"BEGIN")
                    && let Some(by) = self.holds_begin.lock().unwrap().take()
                {
                    held_until = Some(Instant::now() + by);
                }
                server.send(&message).await?;
            }
            while let Some(message) = server.next(false) {
                if let Some(until) = held_until.take() {
                    sleep_until(until).await;
                    self.released.fetch_add(1, Ordering::SeqCst);
                }
                answer.extend_from_slice(&message);
                let mut cuts = self.cuts_after.lock().unwrap();
                if message[0] == b'C' {
                    let tag = &message[5..message.len() - 1];
                    let place = cuts.iter().position(|cut| cut.as_bytes() == tag);
                    is_cut |= place.map(|place| cuts.remove(place)).is_some();
                }
                // A statement is committed when the server is ready for another.
                if is_cut && message[0] == b'Z' {
                    return None;
                }
            }
            if !is_cut {
                client.send(&std::mem::take(&mut answer)).await?;
            }
            let idle = *self.ends_idle.lock().unwrap();
            let silence = async {
                match idle {
                    Some(after) => sleep(after).await,
                    // Whether it is wanted since is looked at again.
                    None => sleep(Duration::from_millis(20)).await,
                }
            };
            let is_open = tokio::select! {
                is_open = client.fill() => is_open,
                is_open = server.fill() => is_open,
                () = silence => idle.is_none(),
            };
            if !is_open {
                return None;
            }
        }
    }
}

/// Passes each message on to one of two servers, and turns to the other after each transaction.
async fn switch(mut client: End<TcpStream>, mut servers: [End<UnixStream>; 2]) -> Option<()> {
    let mut turn = 0;
    loop {
        let message = client.message().await?;
        let server = &mut servers[turn % 2];
        server.send(&message).await?;
        // What is answered up to its end.
        if [b'Q', b'S'].contains(&message[0]) {
            let mut answer = Vec::new();
            let state = server.answer(&mut answer).await?;
            client.send(&answer).await?;
            turn += usize::from(state == b'I');
        }
    }
}

/// A start-up message: its length, its version, and names with values.
fn without_options(startup: &[u8]) -> Vec<u8> {
    let mut texts = startup[8..].split(|byte| *byte == 0);
    let mut parameters = Vec::new();
    while let (Some(name), Some(value)) = (texts.next(), texts.next())
        && !name.is_empty()
    {
        if name != b"options" {
            parameters.extend([name, b"\0", value, b"\0"].concat());
        }
    }
    parameters.push(0);
    let length = u32::try_from(parameters.len() + 8).unwrap();
    [&length.to_be_bytes(), &startup[4..8], &parameters].concat()
}
