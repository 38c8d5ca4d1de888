//! Connections to Postgres, and a pool of them.
//!
//! sqlx's pool is not used: it checks a connection with a statement before and after each use, which makes three round
//! trips of one. Here a connection that was used just now needs no check, and an idle one is checked before its use. A
//! read that fails on it all the same is repeated on a new one.

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

use super::session::{SECOND_CONNECTION_TIMEOUT, SessionSettings};
use super::tls;
use crate::store::error::{Error, UnfitSession};

/// Idle time after which a connection is checked before its use: a balancer, the server or a firewall may have ended
/// it. A check is a round trip. A busy lane never makes one.
const UNCHECKED_IDLE_TIME: Duration = Duration::from_millis(200);
/// Minimum time limit of a check. A dead connection costs its caller this time.
const MIN_CHECK_TIMEOUT: Duration = Duration::from_millis(250);
/// Part of the remaining time that a check can use. The rest is for a new connection and the work.
const CHECK_TIMEOUT_DIVISOR: u32 = 3;

/// Duration of work after which buffers are made small: a message of megabytes takes so long.
const LONG_WORK: Duration = Duration::from_millis(10);
/// Interval at which other work makes buffers small. New buffers each time would cost a sixth of a join.
const SHRINK_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum idle time of a connection: a firewall may have forgotten it.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// Maximum age of a connection: new ones may lead to another server.
const MAX_AGE: Duration = Duration::from_secs(1800);

/// Time limit of a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// SQLSTATEs "cannot connect now" and "too many connections".
const NOT_YET: [&str; 2] = ["57P03", "53300"];

/// Makes connections with the same settings, and counts them.
pub(in crate::store) struct Connector {
    options: PgConnectOptions,
    /// Settings that a new session must have.
    settings: SessionSettings,
    /// True to wait for a server that starts. A lane does not: it can use the spool.
    waits_for_server: bool,
    /// Number of open connections.
    open: AtomicUsize,
    /// Number of connections with work.
    used: AtomicUsize,
}

impl fmt::Debug for Connector {
    /// Leaves the options out, which show their password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("settings", &self.settings)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(
        options: PgConnectOptions,
        settings: SessionSettings,
        waits_for_server: bool,
    ) -> Self {
        Self {
            options: settings.options(options),
            settings,
            waits_for_server,
            open: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
        }
    }

    /// Makes a connection and checks its session.
    pub(in crate::store) async fn connect(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<Counted, Error> {
        let connect = async {
            let connected = self.connect_or_wait(deadline).await;
            let mut connection =
                connected.map_err(|error| match UnfitSession::of_connect_error(&error) {
                    Some(unfit) => unfit.into(),
                    None => Error::from(error),
                })?;
            let began = Instant::now();
            let left = deadline.saturating_duration_since(began);
            let limit = SECOND_CONNECTION_TIMEOUT.min(left / CHECK_TIMEOUT_DIVISOR);
            self.settings
                .ensure(&mut connection, &self.options, limit)
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
            check_timeout: two_rounds.max(MIN_CHECK_TIMEOUT),
            is_unfinished: false,
            made: now,
            last_used: now,
            shrunk: now,
        })
    }

    /// Connects. May wait for a server that starts or has no free connection, until the deadline. The error is the last
    /// one.
    async fn connect_or_wait(&self, deadline: Instant) -> Result<PgConnection, sqlx::Error> {
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match tls::connect(&self.options).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let may_come = match &error {
                // `NotFound` is about the socket of a server on this machine.
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
            if !(self.waits_for_server && may_come) || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Returns the number of connections with work, and of idle ones.
    pub(in crate::store) fn count(&self) -> (usize, usize) {
        let used = self.used.load(Ordering::Relaxed);
        let open = self.open.load(Ordering::Relaxed);
        (used, open.saturating_sub(used))
    }
}

/// An open connection that its connector counts.
#[derive(Debug)]
pub(in crate::store) struct Counted {
    /// `None` while it is being closed.
    connection: Option<PgConnection>,
    alarm: Alarm,
    connector: Arc<Connector>,
    /// Time limit of a check.
    check_timeout: Duration,
    /// True if a statement was abandoned or failed with the connection.
    is_unfinished: bool,
    made: Instant,
    last_used: Instant,
    /// Time when its buffers were made small.
    shrunk: Instant,
}

impl Counted {
    /// Runs `work` until `deadline` at most. After a timeout, or after a drop of this future, the work is unfinished.
    pub(in crate::store) async fn run<T>(
        &mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Error::gave_up()); // impossible: `close` consumes it
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::gave_up());
        }
        self.is_unfinished = true;
        let _working = Working::begin(&self.connector.used);
        let work = with_rollback(connection, work);
        let done = self.alarm.timeout_at(deadline, work).await;
        let end = Instant::now();
        if end - now >= LONG_WORK || end - self.shrunk >= SHRINK_INTERVAL {
            // Otherwise the buffers keep the size of the largest message.
            connection.shrink_buffers();
            self.shrunk = end;
        }
        let done = done.map_or_else(|| Err(Error::gave_up()), |done| done.map_err(Error::from));
        self.is_unfinished = done.as_ref().is_err_and(Error::is_connection_error);
        self.last_used = end;
        done
    }

    /// True if the connection can be used: its last work is finished, and the server answers.
    pub(in crate::store) async fn is_usable(&mut self, deadline: Instant) -> bool {
        if self.is_unfinished || self.is_old() {
            return false;
        }
        if self.last_used.elapsed() <= UNCHECKED_IDLE_TIME {
            return true;
        }
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let limit = self.check_timeout.min(left / CHECK_TIMEOUT_DIVISOR);
        let checked = self.run(now + limit, async |c| c.ping().await).await;
        checked.is_ok()
    }

    /// True if age or idle time is over its limit.
    pub(in crate::store) fn is_old(&self) -> bool {
        self.made.elapsed() > MAX_AGE || self.last_used.elapsed() > MAX_IDLE
    }

    /// Closes the connection in order, so that Postgres sees it at once.
    pub(in crate::store) async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = timeout(CLOSE_TIMEOUT, connection.close()).await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connector.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work`, and sends the ROLLBACK of a dropped transaction. sqlx would send it with the next statement, and the
/// transaction would keep its locks until then.
async fn with_rollback<T>(
    connection: &mut PgConnection,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let done = work(connection).await;
    if connection.should_flush() {
        connection.ping().await?;
    }
    done
}

/// A timer that is used again for one timeout after the other.
///
/// A timer that is earlier than all others wakes a sleeping thread of the runtime. For many short statements that costs
/// more than the statement. So the timer of the first statement stays, and is set to a new time only when it ends.
#[derive(Debug, Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Runs `work`. `None`: the deadline came first.
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

/// Adds one to a counter until it is dropped.
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

/// Shared connections.
#[derive(Debug)]
pub(in crate::store) struct Pool {
    pub(in crate::store) connector: Arc<Connector>,
    permits: Arc<Semaphore>,
    /// Limits the connections that reads use: one is left for writes. A rejected callback without one is lost.
    read_permits: Arc<Semaphore>,
    size: u32,
    /// Connections without work, the last used last.
    idle: Mutex<Vec<Counted>>,
    /// Time limit of an abandoned statement to end.
    abandoned_timeout: Duration,
}

/// Kind of work, by what may happen to it on a shared connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    /// It begins no transaction and may run twice.
    Read,
    /// It may run twice: the result is the same.
    Write,
    /// It must not run twice. If its answer is lost, no one knows whether it was done.
    WriteOnce,
}

/// The permits for one connection: of the pool, and of a read.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Pool {
    pub(super) fn new(
        connector: Connector,
        size: u32,
        max_reads: u32,
        abandoned_timeout: Duration,
    ) -> Self {
        Self {
            connector: Arc::new(connector),
            permits: Arc::new(Semaphore::new(size as usize)),
            read_permits: Arc::new(Semaphore::new(max_reads as usize)),
            size,
            idle: Mutex::default(),
            abandoned_timeout,
        }
    }

    /// Runs `work` on a connection. The wait for one and the work have one deadline. If an idle connection turns out to
    /// be gone, `work` runs again on a new one, unless it may have been done and must not run twice.
    pub(in crate::store) async fn run<T>(
        self: &Arc<Self>,
        kind: Kind,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, Error> {
        let permit = async |permits: &Arc<Semaphore>| {
            let permit = timeout_at(deadline, Arc::clone(permits).acquire_owned()).await;
            // No time is left, or the pool is closed.
            permit.ok().and_then(Result::ok).ok_or_else(Error::gave_up)
        };
        let read = match kind {
            Kind::Read => Some(permit(&self.read_permits).await?),
            Kind::Write | Kind::WriteOnce => None,
        };
        let mut permits = (permit(&self.permits).await?, read);
        if let Some(connection) = self.pop() {
            let mut borrowed = Borrowed::new(self, kind, connection, permits);
            if borrowed.is_usable(deadline).await {
                match borrowed.run(deadline, work.clone()).await {
                    // There is no time left after a timeout.
                    Err(error) if error.is_connection_error() && Instant::now() < deadline => {
                        if kind == Kind::WriteOnce && !error.is_session_error() {
                            drop(std::mem::take(&mut *self.idle()));
                            return Err(error);
                        }
                    }
                    done => return done,
                }
            }
            // The other idle connections probably ended with it.
            drop(std::mem::take(&mut *self.idle()));
            let Some(freed) = borrowed.give_up() else {
                return Err(Error::gave_up()); // impossible: only successful work returns it
            };
            permits = freed;
        }
        let connection = self.connector.connect(deadline).await?;
        let mut borrowed = Borrowed::new(self, kind, connection, permits);
        borrowed.run(deadline, work).await
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Counted>> {
        // A panic cannot leave the list in a wrong state.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the last used connection that is not old.
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

    /// Refuses new work, waits for the current work, and closes all connections.
    pub(in crate::store) async fn close(&self) {
        let all = self.permits.acquire_many(self.size).await;
        self.permits.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            connection.close().await;
        }
    }
}

/// A connection of the pool with work.
///
/// If its statement was abandoned, by a timeout or because the caller has gone, Postgres may still run it. The
/// connection then keeps its permits until it answers, so that the limit of the pool holds. One that does not answer is
/// dropped. One that answers is closed if it may be in a transaction: an abandoned BEGIN may have been executed, and
/// later writes in that transaction would be lost.
struct Borrowed<'a> {
    pool: &'a Arc<Pool>,
    kind: Kind,
    /// True if the connection has failed.
    is_broken: bool,
    /// `None` after it was returned or dropped.
    connection: Option<(Counted, Permits)>,
}

impl<'a> Borrowed<'a> {
    fn new(pool: &'a Arc<Pool>, kind: Kind, connection: Counted, permits: Permits) -> Self {
        Self {
            pool,
            kind,
            is_broken: false,
            connection: Some((connection, permits)),
        }
    }

    async fn is_usable(&mut self, deadline: Instant) -> bool {
        match &mut self.connection {
            Some((connection, _)) => connection.is_usable(deadline).await,
            None => false,
        }
    }

    async fn run<T>(
        &mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Some((connection, _)) = self.connection.as_mut() else {
            return Err(Error::gave_up()); // impossible: only successful work returns it
        };
        let done = connection.run(deadline, work).await;
        // Drop handles abandoned and failed connections.
        let failed = done.as_ref().err();
        let failed = failed.filter(|error| error.is_connection_error());
        self.is_broken = failed.is_some_and(|error| !error.may_still_run());
        if failed.is_none()
            && let Some((connection, _permits)) = self.connection.take()
        {
            self.pool.push(connection);
        }
        done
    }

    /// Drops the connection and returns its permits.
    fn give_up(&mut self) -> Option<Permits> {
        self.connection.take().map(|(_, permits)| permits)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let (Some((mut connection, permits)), Ok(runtime)) =
            (self.connection.take(), Handle::try_current())
        else {
            return;
        };
        if self.is_broken {
            return;
        }
        let (pool, kind) = (Arc::clone(self.pool), self.kind);
        runtime.spawn(async move {
            let deadline = Instant::now() + pool.abandoned_timeout;
            let pinged = connection.run(deadline, async |c| c.ping().await).await;
            match (pinged, kind) {
                (Ok(()), Kind::Read) => pool.push(connection),
                (Ok(()), _) => connection.close().await,
                (Err(_), _) => {}
            }
            drop(permits);
        });
    }
}
