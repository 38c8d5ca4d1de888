//! A private PostgreSQL server. It is a child process of programs that are installed on the machine.
//!
//! * [`Server::start`]: a durable cluster in a directory. Its server ends with this process.
//! * [`Server::throwaway`]: a cluster for all processes of a test run. It is deleted after the run.
//!
//! The server listens only on a Unix socket in a directory of mode 0700, so it needs no TCP port and no password.
//! `wrapper.sh` ends it when its owner has ended for any reason. This room does not import the rest of the program and
//! does not read the environment.

mod account;
mod cluster;
mod programs;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use account::Account;
use cluster::{Cluster, Life};
pub use programs::Search;

const SUPERUSER: &str = "postgres";
/// Time limit of a start. It takes milliseconds, or long after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of a stop: the server writes its memory to the disk.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Time in which a server must end by itself after its owner was killed.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit of a wait for another instance that ends.
const APP_LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of checks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Reason why there is no private server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `initdb` and `postgres` were not found.
    #[error(
        "no PostgreSQL server programs found (looked in PG_BIN_DIR, or else PATH, `pg_config --bindir` and the usual places)"
    )]
    NotInstalled,
    /// The cluster needs the major version that made it.
    #[error(
        "the database was made by PostgreSQL {made}, but only these are installed: {installed}; install PostgreSQL {made}, or move the data with pg_dump"
    )]
    OtherVersion {
        /// Major version in the cluster's PG_VERSION.
        made: String,
        /// The versions found, comma-separated.
        installed: String,
    },
    /// The directory has no cluster.
    #[error(
        "there is no private database in {}; DATA_DIR or DATABASE_URL has to be that of the \
         service, and ./.env is read in the current folder",
        .0.display()
    )]
    NoCluster(PathBuf),
    /// Another instance of the program runs on the same directory.
    #[error(
        "the database in {} is in use by another running instance (pid {pid}); stop that one, or give this one its own DATA_DIR or a DATABASE_URL",
        dir.display()
    )]
    InUse {
        /// The cluster's directory.
        dir: PathBuf,
        /// The other instance's process id, from its lock file.
        pid: String,
    },
    /// The directory cannot have a private cluster, or a server program failed. The text has the reason.
    #[error("{0}")]
    Failed(String),
    /// A file operation failed.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// A process could not be started or waited for.
    #[error(transparent)]
    Process(#[from] io::Error),
}

/// Adds the path to an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::File {
        path: path.to_path_buf(),
        error,
    }
}

/// A running private server. Its owner stops it on drop.
#[derive(Debug)]
pub struct Server {
    socket_dir: PathBuf,
    log: PathBuf,
    owned: Option<Owned>,
}

/// State of the process that owns the server. The run owns a throwaway server.
#[derive(Debug)]
struct Owned {
    wrapper: Child,
    /// Lock file that keeps a second instance out.
    _in_use: File,
}

impl Server {
    /// Starts the cluster in `dir` and makes it the first time. Blocks for up to a minute: do not call it from an async
    /// task.
    ///
    /// # Errors
    /// See [`Error`]. It never stops the server of another instance.
    pub fn start(dir: &Path, search: &Search) -> Result<Server, Error> {
        search.bin_dir(None)?; // before a directory is made
        let dir = &std::path::absolute(dir).map_err(at(dir))?;
        let account = Account::for_dir(dir)?;
        account::make_private_dir(dir, account)?;
        let mut in_use = open_lock(&dir.join("app.lock"))?;
        // Wait: a new child process has a copy of the lock for a moment.
        if !lock_within(&in_use, APP_LOCK_TIMEOUT).map_err(at(dir))? {
            let pid = io::read_to_string(&in_use).map_err(at(dir))?;
            return Err(Error::InUse {
                dir: dir.clone(),
                pid: pid.trim().to_owned(),
            });
        }
        in_use
            .set_len(0)
            .and_then(|()| write!(in_use, "{}", std::process::id()))
            .map_err(at(dir))?;

        // The server of a killed process may still stop. If its wrapper was killed too, no one stops it.
        let cluster = Cluster::new(dir, account, search, Life::Durable);
        let lock = open_lock(&dir.join("pg.lock"))?;
        if !lock_within(&lock, ORPHAN_TIMEOUT).map_err(at(dir))? {
            cluster.stop_orphan()?;
            if !lock_within(&lock, STOP_TIMEOUT).map_err(at(dir))? {
                return Err(Error::Failed(format!(
                    "an earlier postgres in {} does not stop; see its postgres.log",
                    dir.display()
                )));
            }
        }
        cluster.init(&lock)?;
        let wrapper = cluster.launch(lock)?;
        Ok(Server {
            socket_dir: account::socket_dir(dir, account)?,
            log: cluster.log(),
            owned: Some(Owned {
                wrapper,
                _in_use: in_use,
            }),
        })
    }

    /// Uses the server of an existing cluster: the running instance's, which ends with that instance, or one by
    /// [`Server::start`]. It is for commands beside a running service.
    ///
    /// # Errors
    /// [`Error::NoCluster`], and see [`Error`].
    pub fn start_or_join(dir: &Path, search: &Search) -> Result<Server, Error> {
        if !dir.join("data").join("PG_VERSION").exists() {
            return Err(Error::NoCluster(dir.to_path_buf()));
        }
        let is_running = {
            let in_use = open_lock(&dir.join("app.lock"))?;
            !lock_within(&in_use, Duration::ZERO).map_err(at(dir))?
        };
        if !is_running {
            return Server::start(dir, search);
        }
        let dir = &std::path::absolute(dir).map_err(at(dir))?;
        let account = Account::for_dir(dir)?;
        Cluster::new(dir, account, search, Life::Durable).wait_ready(|| Ok(true))?;
        Ok(Server {
            socket_dir: account::socket_dir(dir, account)?,
            log: dir.join("postgres.log"),
            owned: None,
        })
    }

    /// Uses the throwaway cluster in `dir`, and starts it if no process has yet. When the process `run` has ended for
    /// any reason, the server ends and `dir` is deleted. Nothing is synced to the disk. Blocks.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn throwaway(dir: &Path, run: u32, search: &Search) -> Result<Server, Error> {
        let account = Account::for_dir(dir)?;
        account::make_private_dir(dir, account)?;
        let starting = open_lock(&dir.join("app.lock"))?;
        starting.lock().map_err(at(dir))?;
        let lock = open_lock(&dir.join("pg.lock"))?;
        let cluster = Cluster::new(dir, account, search, Life::Run(run));
        if lock_within(&lock, Duration::ZERO).map_err(at(dir))? {
            cluster.discard(); // left by a crashed run with this pid
            cluster.init(&lock)?;
            cluster.launch(lock)?;
        } else {
            cluster.wait_ready(|| Ok(true))?;
        }
        Ok(Server {
            socket_dir: account::socket_dir(dir, account)?,
            log: cluster.log(),
            owned: None,
        })
    }

    /// Returns the URL of a database, for sqlx, psql and other clients of libpq.
    pub fn url(&self, database: &str) -> String {
        let mut host = String::new();
        for byte in self.socket_dir.as_os_str().as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    host.push(char::from(*byte));
                }
                _ => host.push_str(&format!("%{byte:02X}")),
            }
        }
        format!("postgres://{SUPERUSER}@localhost:5432/{database}?sslmode=disable&host={host}")
    }

    /// Returns the path of the server's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns false after an owned server has ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.owned
            .as_mut()
            .is_none_or(|owned| matches!(owned.wrapper.try_wait(), Ok(None)))
    }

    /// Stops an owned server in order and waits. Drop does it too, for up to 15 s.
    ///
    /// # Errors
    /// [`Error::Failed`] if it does not end in time. Its wrapper tries on.
    pub fn stop(&mut self, timeout: Duration) -> Result<(), Error> {
        let Some(mut owned) = self.owned.take() else {
            return Ok(());
        };
        drop(owned.wrapper.stdin.take()); // end of file: the wrapper ends postgres
        let deadline = Instant::now() + timeout;
        while owned.wrapper.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(Error::Failed("postgres does not stop".into()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // No caller can handle the error. The wrapper ends the server.
        let _ = self.stop(STOP_TIMEOUT);
    }
}

/// Refuses symbolic links: the service may be root, and the directory is another account's.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

fn open_lock(path: &Path) -> Result<File, Error> {
    fs::OpenOptions::new()
        .custom_flags(NO_FOLLOW)
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(at(path))
}

/// Takes a lock. False: another process has it until the timeout.
fn lock_within(file: &File, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(POLL_INTERVAL)
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}
