//! The test run: its Postgres server and its folder, shared by all its tests.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use openim_group_mirror::local_postgres::{Search, Server};

/// The run that this process belongs to. The folder and the server end with the run, which is the
/// cargo that started us; a test binary started by hand is a run of its own.
pub struct Run {
    dir: PathBuf,
    server: Server,
}

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let parent = std::os::unix::process::parent_id();
    let under_cargo = parent > 1 && std::env::var_os("CARGO_MANIFEST_DIR").is_some();
    let pid = if under_cargo {
        parent
    } else {
        std::process::id()
    };
    let uid = rustix::process::geteuid().as_raw();
    let dir = roomy_folder().join(format!("openim-group-mirror-test-{uid}-{pid}"));
    let server = Server::throwaway(&dir, pid, &search()).expect("start the run's Postgres");
    Run { dir, server }
});

pub fn run() -> &'static Run {
    &RUN
}

impl Run {
    pub fn database_url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// A new folder, deleted with the run. It belongs to whoever deletes it.
    pub fn folder(&self, name: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let dir = self.dir.join(format!("{name}-{pid}-{count}"));
        std::fs::create_dir(&dir).expect("make a folder in the run's");
        let owner = std::fs::metadata(&self.dir).expect("look at the run's folder");
        chown(&dir, Some(owner.uid()), Some(owner.gid())).expect("hand over the folder");
        dir
    }
}

/// A durable server that only this test uses, started as the service starts its own.
pub async fn own_server(name: &'static str) -> Server {
    let start = move || Server::start(&run().folder(name).join("postgres"), &search());
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

/// Folder of Postgres' programs for the tests, found like that of the service.
pub fn search() -> Search {
    Search {
        bin_dir: std::env::var_os("PG_BIN_DIR")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from),
        path: std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect(),
    }
}

/// Memory where there is plenty (on a disk a CREATE DATABASE takes ten times as long), unless
/// TMPDIR says otherwise. Containers often have a /dev/shm of 64 MB, which is not plenty.
fn roomy_folder() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let free_kb = || {
        let out = Command::new("df").args(["-Pk", "/dev/shm"]).output().ok()?;
        let text = String::from_utf8(out.stdout).ok()?;
        let free = text.lines().nth(1)?.split_whitespace().nth(3)?;
        free.parse::<u64>().ok()
    };
    if std::env::var_os("TMPDIR").is_none() && shm.is_dir() && free_kb() > Some(2 << 20) {
        shm.into()
    } else {
        std::env::temp_dir()
    }
}

/// Waits until `condition` holds, and fails the test if it does not within `bound`.
#[track_caller]
pub fn wait_for(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
