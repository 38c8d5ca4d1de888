//! The service as a process: the binary that users run.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::run::{run, wait_for};

const START_BOUND: Duration = Duration::from_secs(60);

/// A started service, killed on drop. It is killed too when this process is killed: a watchdog
/// waits for the end of our pipe.
pub struct Service {
    child: Child,
    watchdog: Child,
    _pipe: ChildStdin,
    /// What it printed to standard output before it was up.
    pub banner: String,
    pub base: String,
    stderr: PathBuf,
}

/// A command of the binary with a clean environment, in an empty folder.
pub fn command(variables: &BTreeMap<&str, String>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openim-group-mirror"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables)
        .current_dir(run().folder("cwd"))
        .stdin(Stdio::null());
    if let Some(dir) = std::env::var_os("PG_BIN_DIR") {
        command.env("PG_BIN_DIR", dir);
    }
    command
}

/// Sends a signal, by the shell's own kill: small machines have no other.
pub fn kill(signal: &str, pid: &str) {
    let killed = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {pid}")])
        .status();
    assert!(killed.unwrap().success());
}

impl Service {
    /// Starts it on a free port and waits until it is up.
    pub fn start(variables: &[(&str, &str)]) -> Service {
        let mut service = Self::spawn(variables);
        let (lines, received) = mpsc::channel();
        let stdout = BufReader::new(service.child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        while !service.banner.ends_with("  enable: true\n") {
            let Ok(line) = received.recv_timeout(START_BOUND) else {
                panic!("the service did not start: {}", service.log());
            };
            service.banner += &format!("{line}\n");
        }
        let mut words = service.banner.split_whitespace();
        let url = words.find(|word| word.starts_with("http://"));
        service.base = url.unwrap().to_owned();
        service
    }

    /// Starts it on a free port and does not wait.
    pub fn spawn(variables: &[(&str, &str)]) -> Service {
        let mut all = BTreeMap::from([("LISTEN_ADDR", "127.0.0.1:0".to_owned())]);
        all.extend(
            variables
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let stderr = run().folder("log").join("stderr");
        let child = command(&all)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let mut watchdog = Command::new("sh")
            .args(["-c", "read -r _; kill -KILL \"$0\""])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pipe = watchdog.stdin.take().unwrap();
        Service {
            child,
            watchdog,
            _pipe: pipe,
            banner: String::new(),
            base: String::new(),
            stderr,
        }
    }

    /// On a private Postgres in `data_dir`.
    pub fn private(data_dir: &Path) -> Service {
        Self::start(&[("DATA_DIR", data_dir.to_str().unwrap())])
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        kill(name, &self.pid().to_string());
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the service ends", Duration::from_secs(30), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The watchdog first, or it could kill a stranger that got the pid.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
