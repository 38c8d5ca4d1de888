//! Connections to Postgres: so many, each taken by one at a time.
//!
//! Not sqlx's pool: it sends a statement of its own before and after each use to see whether the
//! connection is well, and so makes three round trips of one. Here one that was used just now is well
//! until it fails, and one that has waited is looked at before it is used; a read that failed on it
//! nevertheless is tried again on a new one.

use std::fmt;
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

use super::session::{Asked, SECOND, Unfit};
use super::{Error, tls};

/// One that has waited longer is looked at before it is used: a balancer or the server may have ended
/// it, and a firewall forgotten it. A look is a round trip, which a lane that is at work never makes.
const QUIET: Duration = Duration::from_millis(200);
/// Least time that is waited for the answer to a look: one that does not come costs whoever waits for
/// the connection so much.
const LEAST_LOOK: Duration = Duration::from_millis(250);
/// Most of it, as a part of the time that there is: the rest is for a new connection, or for the work.
const PART_FOR_LOOK: u32 = 3;

/// Buffers are made small again after work that took so long: a message of megabytes does.
const LARGE: Duration = Duration::from_millis(10);
/// After other work they are so once in this time. To make new ones each time costs a sixth of a join.
const BETWEEN_SHRINKS: Duration = Duration::from_millis(100);

/// One that has waited longer for work is not used again: a firewall may have forgotten it.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// One that is older is closed after use: it may lead to a server that others have left.
const MAX_AGE: Duration = Duration::from_secs(1800);

/// "Cannot connect now" and "too many connections".
const NOT_YET: [&str; 2] = ["57P03", "53300"];

/// How connections are made, and how many there are.
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

impl fmt::Debug for Connector {
    /// Without the options, which show their password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("asked", &self.asked)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
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
            let began = Instant::now();
            let left = deadline.saturating_duration_since(began);
            let patience = SECOND.min(left / PART_FOR_LOOK);
            self.asked
                .ensure(&mut connection, &self.options, patience)
                .await??;
            Ok::<_, Error>((connection, began.elapsed()))
        };
        let (connection, two_rounds) = timeout_at(deadline, connect)
            .await
            .map_err(|_elapsed| Error::gave_up())??;
        self.open.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        Ok(Counted {
            connection: Some(connection),
            alarm: Alarm::default(),
            connector: Arc::clone(self),
            look: two_rounds.max(LEAST_LOOK),
            is_amid: false,
            made: now,
            last_used: now,
            shrunk: now,
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
    /// How long the answer to a look is waited for.
    look: Duration,
    /// Whether it was left in the midst of something, or broke.
    is_amid: bool,
    made: Instant,
    last_used: Instant,
    /// When its buffers were last made small.
    shrunk: Instant,
}

impl Counted {
    /// Runs `work`, until `deadline` at most. What was given up on, also by dropping this, leaves the
    /// connection in the midst of something.
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
        self.is_amid = true;
        let _working = Working::begin(&self.connector.used);
        let work = to_the_end(connection, work);
        let done = self.alarm.timeout_at(deadline, work).await;
        let end = Instant::now();
        if end - now >= LARGE || end - self.shrunk >= BETWEEN_SHRINKS {
            // Else it keeps what the largest message took for as long as it is there.
            connection.shrink_buffers();
            self.shrunk = end;
        }
        let done = done.map_or_else(|| Err(Error::gave_up()), |done| done.map_err(Error::from));
        self.is_amid = done.as_ref().is_err_and(Error::is_of_connection);
        self.last_used = end;
        done
    }

    /// Whether it can be used: nothing is left of an earlier use, and somebody is at the other end.
    pub(super) async fn is_there(&mut self, deadline: Instant) -> bool {
        if self.is_amid || self.is_old() {
            return false;
        }
        if self.last_used.elapsed() <= QUIET {
            return true;
        }
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let patience = self.look.min(left / PART_FOR_LOOK);
        let looked = self.run(now + patience, async |c| c.ping().await).await;
        looked.is_ok()
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

/// Does `work`, and what it left to be done. A transaction that is dropped sends its ROLLBACK with
/// the next statement, which may be long in coming; until then it holds its locks.
async fn to_the_end<T>(
    connection: &mut PgConnection,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let done = work(connection).await;
    if connection.should_flush() {
        connection.ping().await?;
    }
    done
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

/// What may become of work on a shared connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It begins no transaction, and may be done twice.
    Read,
    /// It may be done twice: the end is the same.
    Write,
    /// It may not. Where the answer is lost, so is the knowledge whether it was done.
    WriteOnce,
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
    /// connection that had waited turns out to be gone, `work` runs once more, on a new one, unless
    /// it may have been done and is of a kind that must not be done twice. `turn` is held for as
    /// long as the place.
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
            let mut lease = Lease::new(self, kind, connection, place);
            if lease.is_there(deadline).await {
                match lease.run(deadline, work.clone()).await {
                    // One that was given up on has had its time.
                    Err(error) if error.is_of_connection() && Instant::now() < deadline => {
                        if kind == Kind::WriteOnce && !error.is_of_session() {
                            drop(std::mem::take(&mut *self.idle()));
                            return Err(error);
                        }
                    }
                    done => return done,
                }
            }
            // Those that waited beside it have the same age and fate.
            drop(std::mem::take(&mut *self.idle()));
            let Some(freed) = lease.give_up() else {
                return Err(Error::gave_up()); // cannot be: only what went well goes back
            };
            place = freed;
        }
        let connection = self.connector.connect(deadline).await?;
        let mut lease = Lease::new(self, kind, connection, place);
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
/// be, until it answers; one that does not is dropped. One that does is closed too where it may be
/// in a transaction by then: a BEGIN that was given up on may have come through, and what others
/// write on that connection is lost with it.
struct Lease<'a> {
    pool: &'a Arc<Pool>,
    kind: Kind,
    /// Whether it broke.
    is_broken: bool,
    /// `None` once it went back, or away.
    held: Option<(Counted, Place)>,
}

impl<'a> Lease<'a> {
    fn new(pool: &'a Arc<Pool>, kind: Kind, connection: Counted, place: Place) -> Self {
        Self {
            pool,
            kind,
            is_broken: false,
            held: Some((connection, place)),
        }
    }

    async fn is_there(&mut self, deadline: Instant) -> bool {
        match &mut self.held {
            Some((connection, _)) => connection.is_there(deadline).await,
            None => false,
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
        let failed = done.as_ref().err().filter(|error| error.is_of_connection());
        self.is_broken = failed.is_some_and(|error| !error.is_open_ended());
        if failed.is_none()
            && let Some((connection, _place)) = self.held.take()
        {
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
        if self.is_broken {
            return;
        }
        let (pool, kind) = (Arc::clone(self.pool), self.kind);
        runtime.spawn(async move {
            let deadline = Instant::now() + pool.patience;
            let pinged = connection.run(deadline, async |c| c.ping().await).await;
            match (pinged, kind) {
                (Ok(()), Kind::Read) => pool.push(connection),
                (Ok(()), _) => connection.close().await,
                (Err(_), _) => {}
            }
            drop(place);
        });
    }
}
