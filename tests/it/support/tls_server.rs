//! A Postgres that speaks TLS on a port of this machine, with whatever certificate a test gives it.

#![expect(
    clippy::disallowed_types,
    reason = "a value in ALTER SYSTEM is no parameter"
)]

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use openim_group_mirror::local_postgres::Server;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::run::{run, search};
use super::until;

/// Folder of the certificates.
pub const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");
/// Ends a server with its owner, whose pipe it waits for.
const WRAPPER: &str = include_str!("../../../src/local_postgres/wrapper.sh");

/// The server. It ends with this.
pub struct TlsServer {
    dir: PathBuf,
    pub port: u16,
    wrapper: Child,
    owner: (u32, u32),
}

impl TlsServer {
    /// With one of the certificates of the folder.
    pub async fn start(certificate: &str) -> TlsServer {
        let dir = run().folder("tls").join("postgres");
        let made = dir.clone();
        let made = tokio::task::spawn_blocking(move || {
            let server = Server::start(&made, &search()).unwrap();
            // The very program that made the cluster.
            let pid = fs::read_to_string(made.join("data/postmaster.pid")).unwrap();
            let pid = pid.lines().next().unwrap().trim().to_owned();
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            drop(server);
            program
        });
        let program = made.await.unwrap();
        let data = fs::metadata(dir.join("data")).unwrap();
        let owner = (data.uid(), data.gid());
        for file in fs::read_dir(TLS).unwrap() {
            let file = file.unwrap();
            let copy = dir.join("data").join(file.file_name());
            fs::copy(file.path(), &copy).unwrap();
            chown(&copy, Some(owner.0), Some(owner.1)).unwrap();
            fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
        }
        let conf = format!(
            "ssl = on\nssl_key_file = 'server.key'\nssl_cert_file = '{certificate}.crt'\nfsync = off\n"
        );
        let path = dir.join("data/postgresql.conf");
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, old + &conf).unwrap();
        // Another program may take the port before Postgres does.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let wrapper = launch(&program, &dir, port, owner);
            let mut server = TlsServer {
                dir: dir.clone(),
                port,
                wrapper,
                owner,
            };
            if server.is_up().await {
                return server;
            }
        }
        let log = fs::read_to_string(dir.join("tls.log")).unwrap();
        panic!("no server: {log}");
    }

    async fn is_up(&mut self) -> bool {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while std::time::Instant::now() < deadline && self.wrapper.try_wait().unwrap().is_none() {
            if PgConnection::connect_with(&self.socket()).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// By TCP, with these parameters.
    pub fn url(&self, parameters: &str) -> String {
        let port = self.port;
        format!("postgres://postgres@127.0.0.1:{port}/postgres?{parameters}")
    }

    /// By its Unix socket.
    pub fn socket_url(&self, parameters: &str) -> String {
        let (dir, port) = (self.dir.display().to_string(), self.port);
        let dir = dir.replace('/', "%2F");
        format!("postgres://postgres@localhost:{port}/postgres?host={dir}&{parameters}")
    }

    fn socket(&self) -> PgConnectOptions {
        self.socket_url("sslmode=disable").parse().unwrap()
    }

    /// A connection that needs no TLS.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.socket()).await.unwrap()
    }

    /// From now on with this certificate.
    pub async fn show(&self, certificate: &str) {
        let file = format!("{certificate}.crt");
        let set = format!("alter system set ssl_cert_file = '{file}'");
        self.set(&set, "ssl_cert_file", &file).await;
    }

    /// From now on lets in whom these lines of pg_hba.conf say, and everybody by its socket.
    pub async fn let_in(&self, lines: &str) {
        let path = self.dir.join("data/pg_hba.conf");
        fs::write(&path, format!("local all all trust\n{lines}\n")).unwrap();
        chown(&path, Some(self.owner.0), Some(self.owner.1)).unwrap();
        // Which was read when this was.
        let prefix = format!("{}-{} ", lines.len(), lines.replace([' ', '.', '/'], "-"));
        let set = format!("alter system set log_line_prefix = '{prefix}'");
        self.set(&set, "log_line_prefix", &prefix).await;
    }

    /// New connections are of a server that has read all its files again.
    async fn set(&self, sql: &str, name: &str, expected: &str) {
        let mut admin = self.connect().await;
        admin.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        admin.execute("select pg_reload_conf()").await.unwrap();
        until("the server has read its settings", async || {
            let mut new = self.connect().await;
            let value: String = sqlx::query_scalar("select current_setting($1)")
                .bind(name)
                .fetch_one(&mut new)
                .await
                .unwrap();
            value == expected
        })
        .await;
    }
}

fn launch(program: &Path, dir: &Path, port: u16, owner: (u32, u32)) -> Child {
    let mut command = Command::new("sh");
    command
        .args(["-c", WRAPPER, "tls-server", "QUIT", "pipe", "", ""])
        .arg(program)
        .arg("-D")
        .arg(dir.join("data"))
        .args(["-p", &port.to_string()])
        .args(["-c", "listen_addresses=127.0.0.1", "-k"])
        .arg(dir)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("tls.log")).unwrap())
        .process_group(0);
    if rustix::process::geteuid().is_root() {
        command.uid(owner.0).gid(owner.1);
    }
    command.spawn().unwrap()
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        drop(self.wrapper.stdin.take());
        let _ = self.wrapper.wait();
    }
}
