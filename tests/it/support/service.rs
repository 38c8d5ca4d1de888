//! The service as a process: the binary that users run.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::run::{run, wait_for};

const START_BOUND: Duration = Duration::from_secs(60);
const END_BOUND: Duration = Duration::from_secs(30);

/// A started service, killed on drop. It is killed too when this process is killed: a watchdog
/// waits for the end of our pipe.
pub struct Service {
    child: Child,
    watchdog: Child,
    _pipe: ChildStdin,
    /// Standard output before it was up.
    pub banner: String,
    pub base: String,
    stderr: PathBuf,
}

/// End of a service that ended by itself.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

const BINARY: &str = env!("CARGO_BIN_EXE_openim-group-mirror");

/// A command of the binary with a clean environment, and a bound on the size of its files.
fn command(variables: &BTreeMap<&str, String>, folder: &Path, kib: Option<u32>) -> Command {
    let mut command = match kib {
        None => Command::new(BINARY),
        Some(kib) => {
            // In blocks of 512 bytes, as POSIX has it.
            let limit = format!("ulimit -S -f {}; exec \"$0\" \"$@\"", 2 * kib);
            let mut command = Command::new("sh");
            command.args(["-c", &limit, BINARY]);
            command
        }
    };
    command.env_clear();
    for name in ["PATH", "PG_BIN_DIR"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
        .envs(variables)
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

/// Sends a signal, by the shell's own kill: small machines have no other.
pub fn kill(signal: &str, pid: &str) {
    let killed = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {pid}")])
        .status();
    assert!(killed.unwrap().success());
}

/// Makes the folder of the spool as whoever deletes it needs it.
pub fn hand_over_spool(data_dir: &Path) {
    let spool = data_dir.join("spool");
    if data_dir.exists() && !spool.exists() {
        std::fs::create_dir(&spool).unwrap();
        let owner = std::fs::metadata(data_dir).unwrap();
        chown(&spool, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

impl Service {
    /// Starts it on a free port and waits until it is up.
    pub fn start(variables: &[(&str, &str)]) -> Service {
        Self::start_within(variables, None)
    }

    /// Starts it with a limit of the size of its files, in KiB, that can be raised.
    pub fn start_within(variables: &[(&str, &str)], kib: Option<u32>) -> Service {
        let mut service = Self::spawn_in(&run().folder("cwd"), &[], variables, kib);
        let (lines, received) = mpsc::channel();
        let stdout = BufReader::new(service.child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        // The last line of it.
        while !service.banner.contains("\nafterSetGroupInfoEx:") {
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

    /// Runs it in an empty folder until it ends by itself, within a bound.
    #[track_caller]
    pub fn to_end(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
        Self::to_end_in(&run().folder("cwd"), arguments, variables)
    }

    /// Like [`Service::to_end`], in a folder.
    #[track_caller]
    pub fn to_end_in(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
        let service = Self::spawn_in(folder, arguments, variables, None);
        service.end_within(END_BOUND, |_| {})
    }

    /// Waits for its end; `look` is called with its pid now and then meanwhile.
    #[track_caller]
    pub fn end_within(mut self, bound: Duration, mut look: impl FnMut(u32)) -> Ended {
        let mut stdout = self.child.stdout.take().unwrap();
        // What it prints fits the pipe.
        let code = self.ended_within(bound, &mut look).code();
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).unwrap();
        Ended {
            code,
            stdout: printed,
            stderr: self.log(),
        }
    }

    /// Starts it on a free port and does not wait.
    pub fn spawn(arguments: &[&str], variables: &[(&str, &str)]) -> Service {
        Self::spawn_in(&run().folder("cwd"), arguments, variables, None)
    }

    fn spawn_in(
        folder: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        kib: Option<u32>,
    ) -> Service {
        let spool = run().folder("spool").display().to_string();
        let mut all = BTreeMap::from([("LISTEN_ADDR", "127.0.0.1:0".to_owned())]);
        match variables.iter().find(|(name, _)| *name == "DATA_DIR") {
            None => {
                all.insert("SPOOL_DIR", spool);
            }
            // Made by the service, it would be its alone, and stay when the run deletes its own.
            Some((_, data_dir)) => hand_over_spool(Path::new(data_dir)),
        }
        all.extend(
            variables
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let stderr = run().folder("log").join("stderr");
        let mut log = std::fs::File::create(&stderr).unwrap();
        let mut command = command(&all, folder, kib);
        match kib {
            None => command.stderr(log.try_clone().unwrap()),
            Some(_) => command.stderr(Stdio::piped()),
        };
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if let Some(mut said) = child.stderr.take() {
            // The bound is not one of ours. It ends with the process.
            std::thread::spawn(move || std::io::copy(&mut said, &mut log));
        }
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

    /// Most memory that it has had so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
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
        self.ended_within(END_BOUND, &mut |_| {})
    }

    #[track_caller]
    fn ended_within(&mut self, bound: Duration, look: &mut impl FnMut(u32)) -> ExitStatus {
        let mut status = None;
        wait_for("the service ends", bound, || {
            look(self.pid());
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
