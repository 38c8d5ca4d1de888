//! Connections to Postgres: so many, each taken by one at a time.
//!
//! Not sqlx's pool: it sends a statement of its own before and after each use to see whether the
//! connection is well, and so makes three round trips of one. Here a connection is well until it
//! fails; what failed on one that had waited is tried again on a new one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::Error;

/// A connection that waits longer for work is closed: Postgres has better uses for its memory.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// One that is older is closed after use: it may lead to a server that others have left.
const MAX_AGE: Duration = Duration::from_secs(1800);

/// How connections are made, and how many there are.
#[derive(Debug)]
pub(super) struct Connector {
    options: PgConnectOptions,
    /// Those that are open, of the pool and of the lanes.
    open: AtomicUsize,
    /// Those of them that work.
    used: AtomicUsize,
}

impl Connector {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self {
            options,
            open: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
        }
    }

    /// A new connection.
    pub(super) async fn connect(self: &Arc<Self>, deadline: Instant) -> Result<Counted, Error> {
        let connected = timeout_at(deadline, self.options.connect()).await;
        let connection = connected.map_err(|_elapsed| Error::gave_up())??;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Counted {
            connection: Some(connection),
            connector: Arc::clone(self),
            since: Instant::now(),
        })
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
    connector: Arc<Connector>,
    since: Instant,
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
        let _working = Working::begin(&self.connector.used);
        let done = timeout_at(deadline, work(connection)).await;
        Ok(done.map_err(|_elapsed| Error::gave_up())??)
    }

    /// Whether it has been there for so long that a new one is better.
    pub(super) fn is_old(&self) -> bool {
        self.since.elapsed() > MAX_AGE
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

/// Connections that are shared, each used by one at a time.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Arc<Connector>,
    places: Arc<Semaphore>,
    size: u32,
    /// Those without work, the last used last.
    idle: Mutex<Vec<Idle>>,
    /// How long an answer is waited for that nobody wants any more.
    patience: Duration,
}

#[derive(Debug)]
struct Idle {
    connection: Counted,
    since: Instant,
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
    /// connection that had waited turns out to be gone, `work` runs once more, on a new one.
    /// `turn` is held for as long as the place.
    pub(super) async fn run<T>(
        self: &Arc<Self>,
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
            match lease.run(deadline, work.clone()).await {
                // One that was given up on has had its time.
                Err(error) if error.is_of_connection() && Instant::now() < deadline => {
                    // Those that waited beside it have the same age and fate.
                    drop(std::mem::take(&mut *self.idle()));
                    let Some(freed) = lease.give_up() else {
                        return Err(error);
                    };
                    place = freed;
                }
                done => return done,
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

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        // A list is a list, whoever panicked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last used. The oldest are closed when nobody has needed them for a while.
    fn pop(&self) -> Option<Counted> {
        let mut idle = self.idle();
        let last = idle.pop();
        let tired = idle.first().filter(|one| one.since.elapsed() > MAX_IDLE);
        let tired = tired.is_some().then(|| idle.remove(0));
        drop(idle);
        if let Some(tired) = tired {
            tokio::spawn(tired.connection.close());
        }
        last.map(|one| one.connection)
    }

    fn push(&self, connection: Counted) {
        if connection.is_old() {
            tokio::spawn(connection.close());
            return;
        }
        let since = Instant::now();
        self.idle().push(Idle { connection, since });
    }

    /// Lets nobody in any more, waits for those at work, and closes all connections.
    pub(super) async fn close(&self) {
        let all = self.places.acquire_many(self.size).await;
        self.places.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for one in idle {
            one.connection.close().await;
        }
    }
}

/// A connection of the pool at work.
///
/// Where its statement was given up on, by time or because the caller hung up, Postgres may still
/// be at it. The connection then keeps its place, so that the pool stays the bound it is meant to
/// be, until it answers; one that does not is dropped.
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
                pool.push(connection);
            }
            drop(place);
        });
    }
}
