//! A private PostgreSQL server, run as a child process from programs already on the machine.
//!
//! * [`Server::start`]: one durable cluster in a directory, living as long as this process.
//! * [`Server::throwaway`]: one cluster for all processes of a test run, deleted with the run.
//!
//! The server listens on a Unix socket inside a 0700 directory only: no TCP port to pick, no
//! password to keep. `wrapper.sh` ends it when its owner is gone, however the owner went. Nothing
//! here knows of the rest of the program, and nothing here reads the environment.

mod account;
mod cluster;
mod programs;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use account::Account;
use cluster::{Cluster, Life};
pub use programs::Search;

const SUPERUSER: &str = "postgres";
/// A server that was fine takes milliseconds; crash recovery can take a while.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to stop: it writes what it has in memory.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server whose owner was killed is given to end by itself.
const GRACE: Duration = Duration::from_secs(3);
/// How long another instance that is just ending is waited for.
const APP_LOCK_PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// Why there is no private server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine has no `initdb` and `postgres` where we look.
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
    /// There is nothing to join.
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
        /// The other instance's process id, as it wrote it.
        pid: String,
    },
    /// The directory cannot hold a private cluster, or a server program failed; the text says why.
    #[error("{0}")]
    Failed(String),
    /// A file operation failed.
    #[error("{}: {error}", path.display())]
    File {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A process could not be started or waited for.
    #[error(transparent)]
    Process(#[from] io::Error),
}

/// Names the path in an I/O error, which by itself does not.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::File {
        path: path.to_path_buf(),
        error,
    }
}

/// A running private server. Dropping the owner of one stops it.
#[derive(Debug)]
pub struct Server {
    socket_dir: PathBuf,
    log: PathBuf,
    owned: Option<Owned>,
}

/// What only the process that owns the server has; a throwaway server belongs to its run.
#[derive(Debug)]
struct Owned {
    wrapper: Child,
    /// Held so that a second instance is refused.
    _in_use: File,
}

impl Server {
    /// Starts the cluster kept in `dir`, creating it the first time. Blocks for as long as that
    /// takes, up to a minute: not for an async task.
    ///
    /// # Errors
    /// See [`Error`]; a running server of another instance is never touched.
    pub fn start(dir: &Path, search: &Search) -> Result<Server, Error> {
        search.bin_dir(None)?; // before anything is made
        let dir = &std::path::absolute(dir).map_err(at(dir))?;
        let account = Account::for_dir(dir)?;
        account::make_private_dir(dir, account)?;
        let mut in_use = open_lock(&dir.join("app.lock"))?;
        // With patience: a process that is just being started holds a copy for a moment.
        if !lock_within(&in_use, APP_LOCK_PATIENCE).map_err(at(dir))? {
            let mut pid = String::new();
            in_use.read_to_string(&mut pid).map_err(at(dir))?;
            return Err(Error::InUse {
                dir: dir.clone(),
                pid: pid.trim().to_owned(),
            });
        }
        in_use
            .set_len(0)
            .and_then(|()| write!(in_use, "{}", std::process::id()))
            .map_err(at(dir))?;

        // A server from a run that was killed may still be shutting down, or, where its wrapper
        // was killed too, has nobody left to tell it to.
        let cluster = Cluster::new(dir, account, search, Life::Durable);
        let lock = open_lock(&dir.join("pg.lock"))?;
        if !lock_within(&lock, GRACE).map_err(at(dir))? {
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

    /// The server of a cluster that is there already: that of the instance that runs it, which it
    /// ends with, or else as [`Server::start`]. For what is done beside a running service.
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

    /// Attaches to the throwaway cluster in `dir`, starting it if nobody has yet. It ends, and
    /// `dir` is deleted, when the process `run` has ended, however it ended. Nothing is synced to
    /// the disk. Blocks.
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

    /// A URL of one of its databases, for sqlx, psql and other libpq clients.
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

    /// The file that says what the server has to say.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// False once an owned server has ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.owned
            .as_mut()
            .is_none_or(|owned| matches!(owned.wrapper.try_wait(), Ok(None)))
    }

    /// Shuts an owned server down cleanly and waits for that; also done on drop, for up to 15 s.
    ///
    /// # Errors
    /// When it does not end; its wrapper goes on trying.
    pub fn stop(&mut self, patience: Duration) -> Result<(), Error> {
        let Some(mut owned) = self.owned.take() else {
            return Ok(());
        };
        drop(owned.wrapper.stdin.take()); // end of file: the wrapper ends postgres
        let deadline = Instant::now() + patience;
        while owned.wrapper.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(Error::Failed("postgres does not stop".into()));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody is left to tell; the wrapper ends the server in any case.
        let _ = self.stop(STOP_TIMEOUT);
    }
}

/// Never through a symbolic link: we may be root, and the directory is another account's.
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

/// Takes the lock, waiting up to `patience`; false when somebody else keeps it.
fn lock_within(file: &File, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}
