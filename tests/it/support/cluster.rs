//! A durable Postgres of one test alone, to be killed and stopped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use openim_group_mirror::local_postgres::Server;
use sqlx::{Connection, PgConnection};

use super::run::{run, search, wait_for};
use super::service::kill;

/// A server, as the service starts its own. It ends with this.
pub struct Cluster {
    dir: PathBuf,
    server: Option<Server>,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let mut cluster = Cluster {
            dir: run().folder("own").join("postgres"),
            server: None,
        };
        cluster.restart().await;
        cluster
    }

    /// Starts it again where it ended.
    pub async fn restart(&mut self) {
        let (old, dir) = (self.server.take(), self.dir.clone());
        let start = move || {
            drop(old);
            Server::start(&dir, &search())
        };
        let started = tokio::task::spawn_blocking(start).await.unwrap();
        self.server = Some(started.unwrap());
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it was started")
    }

    /// Ends every process of it at once.
    pub fn kill(&self) {
        let postmaster = postmaster(&self.dir);
        // From here on nobody new is born.
        kill("STOP", &postmaster);
        let mut pids = children(&postmaster);
        pids.push(postmaster);
        kill("KILL", &pids.join(" "));
        wait_for("its processes end", Duration::from_secs(20), || {
            let is_there = |pid: &String| Path::new(&format!("/proc/{pid}/fd/0")).exists();
            !pids.iter().any(is_there)
        });
    }

    /// Stops every process of it in its tracks, until that is dropped.
    pub async fn freeze(&self) -> Frozen {
        Frozen::server(self.server(), &self.dir).await
    }
}

fn postmaster(dir: &Path) -> String {
    let file = std::fs::read_to_string(dir.join("data/postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().to_owned()
}

fn children(pid: &str) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

/// Every process of a server, stopped in its tracks; they go on when this is dropped or when this
/// process dies: the shell waits for the end of its input.
pub struct Frozen(Child);

impl Frozen {
    pub async fn server(server: &Server, dir: &Path) -> Frozen {
        let postmaster = postmaster(dir);
        let mut connection = PgConnection::connect(&server.url("postgres"))
            .await
            .unwrap();
        // From here on nobody new is born; one that was born just now may not be listed yet, but
        // Linux knows its children.
        kill("STOP", &postmaster);
        let listed: Vec<i32> = sqlx::query_scalar("select pid from pg_stat_activity")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let listed = listed.iter().map(i32::to_string);
        let mut pids: Vec<String> = listed
            .chain(children(&postmaster))
            .chain([postmaster])
            .collect();
        pids.sort();
        pids.dedup();
        let pids = pids.join(" ");
        let mut shell = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "trap '' INT TERM HUP; kill -STOP {pids}; echo; read -r _; kill -CONT {pids}"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = shell.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "\n");
        Frozen(shell)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
