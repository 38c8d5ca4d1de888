//! Connections to Postgres: so many, each taken by one at a time.
//!
//! Not sqlx's pool: it sends a statement of its own before and after each use to see whether the
//! connection is well, and so makes three round trips of one. Here a connection is well until it
//! fails, or has waited for a second: then it is looked at first, for whatever lies before Postgres may
//! have ended it. A read that fails on one that had waited is tried again on a new one; a write is not,
//! for it may be in.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at};

use super::session::{Asked, Unfit};
use super::{Error, tls};

/// One that has waited longer for work is not used again: a firewall may have forgotten it.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// One that has waited longer is looked at before it is used: a proxy, a firewall or the server may have
/// ended it, and some do without a word.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How long that may take: a lane has 0.1 s for a write at least, 1.5 s by default.
const LOOK: Duration = Duration::from_millis(400);
/// One that is older is closed after use: it may lead to a server that others have left.
const MAX_AGE: Duration = Duration::from_secs(1800);

/// "Cannot connect now" and "too many connections".
const NOT_YET: [&str; 2] = ["57P03", "53300"];

/// How connections are made, and how many there are.
#[derive(Debug)]
pub(super) struct Connector {
    options: PgConnectOptions,
    /// What the options have to come to.
    asked: Asked,
    /// Whether to wait for a server that is just being started. Who has something better to do
    /// does not.
    is_patient: bool,
    /// Those that are open, of the pool and of the lanes.
    open: AtomicUsize,
    /// Those of them that work.
    used: AtomicUsize,
}

impl Connector {
    pub(super) fn new(options: PgConnectOptions, asked: Asked, is_patient: bool) -> Self {
        Self {
            options: asked.options(options),
            asked,
            is_patient,
            open: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
        }
    }

    /// A new connection.
    pub(super) async fn connect(self: &Arc<Self>, deadline: Instant) -> Result<Counted, Error> {
        let connect = async {
            let connected = self.connect_patiently(deadline).await;
            let mut connection = connected.map_err(|error| match Unfit::of_connecting(&error) {
                Some(unfit) => unfit.into(),
                None => Error::from(error),
            })?;
            self.asked.ensure(&mut connection).await??;
            Ok::<_, Error>(connection)
        };
        let connected = timeout_at(deadline, connect).await;
        let connection = connected.map_err(|_elapsed| Error::gave_up())??;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Counted {
            connection: Some(connection),
            alarm: Alarm::default(),
            connector: Arc::clone(self),
            made: Instant::now(),
            last_used: Instant::now(),
        })
    }

    /// Waits for a server that is just being started, or has no place for one more; in the end the
    /// error tells what it waited for.
    async fn connect_patiently(&self, deadline: Instant) -> Result<PgConnection, sqlx::Error> {
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match tls::connect(&self.options).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let may_come = match &error {
                // Not found: the socket of a server on this machine.
                sqlx::Error::Io(error) => {
                    matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::NotFound
                    )
                }
                sqlx::Error::Database(error) => error
                    .code()
                    .is_some_and(|code| NOT_YET.contains(&code.as_ref())),
                _ => false,
            };
            if !(self.is_patient && may_come) || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// How many connections are at work, and how many wait for it.
    pub(super) fn count(&self) -> (usize, usize) {
        let used = self.used.load(Ordering::Relaxed);
        let open = self.open.load(Ordering::Relaxed);
        (used, open.saturating_sub(used))
    }
}

/// An open connection, counted as long as it is.
#[derive(Debug)]
pub(super) struct Counted {
    /// `None` once it is being closed.
    connection: Option<PgConnection>,
    alarm: Alarm,
    connector: Arc<Connector>,
    made: Instant,
    last_used: Instant,
}

impl Counted {
    /// Runs `work`, until `deadline` at most. What was given up on leaves the connection in the
    /// midst of something.
    pub(super) async fn run<T>(
        &mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Error::gave_up()); // cannot be: who closes it consumes it
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::gave_up());
        }
        self.last_used = now;
        let _working = Working::begin(&self.connector.used);
        let done = self.alarm.timeout_at(deadline, work(connection)).await;
        // Else it keeps what the largest message took for as long as it is there.
        connection.shrink_buffers();
        Ok(done.ok_or_else(Error::gave_up)??)
    }

    /// Whether it can be used: one that has waited for long is asked. False: a new one is better.
    pub(super) async fn is_there(&mut self, deadline: Instant) -> bool {
        if self.last_used.elapsed() <= LOOK_AFTER {
            return true;
        }
        // Half of what is left, so that a new one can still be made.
        let now = Instant::now();
        let look = LOOK.min(deadline.saturating_duration_since(now) / 2);
        let pinged = self.run(now + look, async |c| c.ping().await).await;
        pinged.is_ok()
    }

    /// Whether it has been there, or waited, for so long that a new one is better.
    pub(super) fn is_old(&self) -> bool {
        self.made.elapsed() > MAX_AGE || self.last_used.elapsed() > MAX_IDLE
    }

    /// Says goodbye, so that Postgres need not find out.
    pub(super) async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = timeout(Duration::from_secs(1), connection.close()).await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connector.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A bound on the time of one thing after the other.
///
/// A timer that is earlier than all others wakes a sleeping thread of the runtime, which then sleeps
/// anew: for each of many short statements that is more work than the statement is to us. So the
/// timer of the first statement stays, and is set anew only when it rings: once a while.
#[derive(Debug, Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// `None` when the time is over before the work.
    async fn timeout_at<T>(
        &mut self,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let timer = self
                .0
                .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            while timer.as_mut().poll(cx).is_ready() {
                if timer.deadline() >= deadline {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

/// Counts one more for as long as it is there.
struct Working<'a>(&'a AtomicUsize);

impl<'a> Working<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is done on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Can be done twice.
    Read,
    /// Where its answer is lost, nobody knows whether it is in.
    Write,
}

/// Connections that are shared, each used by one at a time.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Arc<Connector>,
    places: Arc<Semaphore>,
    size: u32,
    /// Those without work, the last used last.
    idle: Mutex<Vec<Counted>>,
    /// How long an answer is waited for that nobody wants any more.
    patience: Duration,
}

/// The right to one connection, and whatever else is held with it.
#[derive(Debug)]
struct Place {
    _place: OwnedSemaphorePermit,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(super) fn new(connector: Arc<Connector>, size: u32, patience: Duration) -> Self {
        Self {
            connector,
            places: Arc::new(Semaphore::new(size as usize)),
            size,
            idle: Mutex::default(),
            patience,
        }
    }

    /// Runs `work` on a connection; the wait for one and the work have one deadline. Where a
    /// connection that had waited turns out to be gone, a read runs once more, on a new one.
    /// `turn` is held for as long as the place.
    pub(super) async fn run<T>(
        self: &Arc<Self>,
        kind: Kind,
        turn: Option<OwnedSemaphorePermit>,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await;
        let mut place = Place {
            _place: place
                .map_err(|_elapsed| Error::gave_up())?
                .map_err(|_closed| Error::gave_up())?,
            _turn: turn,
        };
        if let Some(connection) = self.pop() {
            let mut lease = Lease::new(self, connection, place);
            let done = match lease.is_there(deadline).await {
                true => Some(lease.run(deadline, work.clone()).await),
                false => None,
            };
            match done {
                // One that was given up on has had its time. A write may be in.
                Some(Err(error))
                    if !error.is_of_connection()
                        || kind == Kind::Write
                        || Instant::now() >= deadline =>
                {
                    return Err(error);
                }
                Some(Ok(done)) => return Ok(done),
                _gone => {
                    // Those that waited beside it have the same age and fate.
                    drop(std::mem::take(&mut *self.idle()));
                    let Some(freed) = lease.give_up() else {
                        return Err(Error::gave_up()); // cannot be: a lease is given up once
                    };
                    place = freed;
                }
            }
        }
        let connection = self.connector.connect(deadline).await?;
        let mut lease = Lease::new(self, connection, place);
        lease.run(deadline, work).await
    }

    /// See [`Connector::count`].
    pub(super) fn connections(&self) -> (usize, usize) {
        self.connector.count()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Counted>> {
        // A list is a list, whoever panicked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last used that is not old.
    fn pop(&self) -> Option<Counted> {
        let mut idle = self.idle();
        loop {
            let last = idle.pop()?;
            if !last.is_old() {
                return Some(last);
            }
            tokio::spawn(last.close());
        }
    }

    fn push(&self, connection: Counted) {
        if connection.is_old() {
            tokio::spawn(connection.close());
        } else {
            self.idle().push(connection);
        }
    }

    /// Lets nobody in any more, waits for those at work, and closes all connections.
    pub(super) async fn close(&self) {
        let all = self.places.acquire_many(self.size).await;
        self.places.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            connection.close().await;
        }
    }
}

/// A connection of the pool at work.
///
/// Where its statement was given up on, by time or because the caller hung up, Postgres may still
/// be at it. The connection then keeps its place, so that the pool stays the bound it is meant to
/// be, until it answers. It is not used again: a BEGIN whose answer nobody has read leaves it in a
/// transaction of which sqlx does not know, and what is written there is gone with it.
struct Lease<'a> {
    pool: &'a Arc<Pool>,
    /// `None` once it went back, or away.
    held: Option<(Counted, Place)>,
}

impl<'a> Lease<'a> {
    fn new(pool: &'a Arc<Pool>, connection: Counted, place: Place) -> Self {
        Self {
            pool,
            held: Some((connection, place)),
        }
    }

    async fn run<T>(
        &mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Some((connection, _)) = self.held.as_mut() else {
            return Err(Error::gave_up()); // cannot be: nothing runs twice on one lease
        };
        let done = connection.run(deadline, work).await;
        // What was given up on or broke is seen to on drop.
        let is_well = !done.as_ref().is_err_and(Error::is_of_connection);
        if is_well && let Some((connection, _place)) = self.held.take() {
            self.pool.push(connection);
        }
        done
    }

    /// See [`Counted::is_there`].
    async fn is_there(&mut self, deadline: Instant) -> bool {
        match self.held.as_mut() {
            Some((connection, _)) => connection.is_there(deadline).await,
            None => false,
        }
    }

    /// Drops the connection, and gives its place to another.
    fn give_up(&mut self) -> Option<Place> {
        self.held.take().map(|(_, place)| place)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let (Some((mut connection, place)), Ok(runtime)) =
            (self.held.take(), Handle::try_current())
        else {
            return;
        };
        let pool = Arc::clone(self.pool);
        runtime.spawn(async move {
            let deadline = Instant::now() + pool.patience;
            let pinged = connection.run(deadline, async |c| c.ping().await).await;
            if pinged.is_ok() {
                connection.close().await;
            }
            drop(place);
        });
    }
}
