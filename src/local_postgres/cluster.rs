//! A cluster on disk: makes it, starts its server, stops an old server.
//!
//! Its directory (mode 0700) has `data/`, `app.lock` (of the instance that uses it), `pg.lock` (of every process that
//! uses the data), `postgres.log` and the socket.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::account::{Account, socket_dir};
use super::{Error, NO_FOLLOW, POLL_INTERVAL, START_TIMEOUT, SUPERUSER, Search, at};

const WRAPPER: &str = include_str!("wrapper.sh");
/// Maximum size of the log, in bytes. A larger one is renamed at the next start.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// Lifetime of the data.
#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    /// Data is kept and synced to the disk. The server ends with this process.
    Durable,
    /// Data is deleted when the process with this pid has ended.
    Run(u32),
}

pub(super) struct Cluster<'a> {
    dir: &'a Path,
    account: Option<Account>,
    search: &'a Search,
    life: Life,
}

/// Quotes a path for `-k`, which takes a list: a path may contain a comma.
fn quoted(path: &Path) -> OsString {
    let mut bytes = vec![b'"'];
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b'"' {
            bytes.push(b'"');
        }
    }
    bytes.push(b'"');
    OsString::from_vec(bytes)
}

impl<'a> Cluster<'a> {
    pub(super) fn new(
        dir: &'a Path,
        account: Option<Account>,
        search: &'a Search,
        life: Life,
    ) -> Self {
        Cluster {
            dir,
            account,
            search,
            life,
        }
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    /// Deletes the data. If that fails, the next `init` returns an error.
    pub(super) fn discard(&self) {
        let _ = fs::remove_dir_all(self.data());
    }

    /// Makes a command in the cluster's directory, with the account that owns it.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            // Debian's Postgres would tell systemd that the service is ready or stops.
            .env_remove("NOTIFY_SOCKET")
            .current_dir(self.dir)
            .stdin(Stdio::null());
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Makes the cluster if it is missing. It is made under another name and renamed, so that a partial one is never
    /// used. An initdb that runs longer than this process keeps the lock.
    pub(super) fn init(&self, lock: &File) -> Result<(), Error> {
        if self.data().join("PG_VERSION").exists() {
            return Ok(());
        }
        let fresh = self.dir.join("data.new");
        let _ = fs::remove_dir_all(&fresh);
        let mut command = self.command(self.search.bin_dir(None)?.join("initdb"));
        command
            .args(["--username", SUPERUSER, "--auth", "trust"])
            .args(["--encoding", "UTF8", "--no-locale", "--no-instructions"])
            .arg("--pgdata")
            .arg(&fresh);
        if let Life::Run(_) = self.life {
            command.arg("--no-sync");
        }
        let out = command
            .stdin(lock.try_clone().map_err(at(self.dir))?)
            .output()?;
        if !out.status.success() {
            return Err(Error::Failed(format!(
                "initdb failed: {}",
                String::from_utf8_lossy(&out.stderr).trim()
            )));
        }
        fs::rename(fresh, self.data()).map_err(at(self.dir))
    }

    /// Starts postgres under the wrapper and waits until it accepts connections. The caller has the cluster's lock, so
    /// no server runs on it and a pid file is an old one. Another process may have its pid now.
    pub(super) fn launch(&self, lock: File) -> Result<Child, Error> {
        let sockets = socket_dir(self.dir, self.account)?;
        for old in [
            self.pid_file(),
            sockets.join(".s.PGSQL.5432"),
            sockets.join(".s.PGSQL.5432.lock"),
        ] {
            let _ = fs::remove_file(old);
        }
        let log_path = self.log();
        if fs::metadata(&log_path).is_ok_and(|meta| meta.len() > MAX_LOG_BYTES) {
            let _ = fs::rename(&log_path, self.dir.join("postgres.log.1"));
        }
        let log = OpenOptions::new()
            .custom_flags(NO_FOLLOW)
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(at(&log_path))?;
        let log_start = log.metadata().map_err(at(&log_path))?.len();

        let mut command = self.wrapped_postgres(&sockets)?;
        command.stdout(lock).stderr(log).process_group(0);
        let mut wrapper = command.spawn()?;

        if self
            .wait_ready(|| Ok(wrapper.try_wait()?.is_none()))
            .is_err()
        {
            let log = fs::read(&log_path).map_err(at(&log_path))?;
            let start = usize::try_from(log_start).unwrap_or(0).min(log.len());
            let said = String::from_utf8_lossy(&log[start..]).into_owned();
            return Err(Error::Failed(format!(
                "postgres did not start: {}",
                said.trim()
            )));
        }
        Ok(wrapper)
    }

    fn wrapped_postgres(&self, sockets: &Path) -> Result<Command, Error> {
        let version_file = self.data().join("PG_VERSION");
        let version = fs::read_to_string(&version_file).map_err(at(&version_file))?;
        let bin = self.search.bin_dir(Some(version.trim()))?;
        let mut command = self.command("sh");
        command.args(["-c", WRAPPER, "private-postgres"]);
        match self.life {
            Life::Durable => command.args(["INT", "pipe", ""]).stdin(Stdio::piped()),
            Life::Run(pid) => command.args(["QUIT", &pid.to_string()]).arg(self.dir),
        };
        let own_dir_of_socket = if sockets == self.dir {
            OsStr::new("")
        } else {
            sockets.as_os_str()
        };
        command
            .arg(own_dir_of_socket)
            .arg(bin.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-p", "5432", "-c", "listen_addresses=", "-k"])
            .arg(quoted(sockets));
        if let Life::Run(_) = self.life {
            for setting in [
                "fsync=off",
                "synchronous_commit=off",
                "full_page_writes=off",
                "autovacuum=off",
                "max_connections=300",
                "shared_buffers=64MB",
            ] {
                command.args(["-c", setting]);
            }
        }
        Ok(command)
    }

    /// Waits until the eighth line of the pid file says that the server accepts connections, like pg_ctl.
    pub(super) fn wait_ready(
        &self,
        mut running: impl FnMut() -> io::Result<bool>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + START_TIMEOUT;
        let ready = |pid_file: String| {
            pid_file
                .lines()
                .nth(7)
                .is_some_and(|status| status.trim() == "ready")
        };
        while !fs::read_to_string(self.pid_file()).is_ok_and(ready) {
            if !running()? || Instant::now() > deadline {
                return Err(Error::Failed("postgres did not start".into()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Stops a server whose owner and wrapper have ended.
    pub(super) fn stop_orphan(&self) -> Result<(), Error> {
        let bin = self.search.bin_dir(None)?;
        self.command(bin.join("pg_ctl"))
            .args(["stop", "-s", "-m", "fast", "-D"])
            .arg(self.data())
            .status()?;
        Ok(())
    }
}
