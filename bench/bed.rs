//! A mirror and what stands in for OpenIM, and what the processes take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openim_group_mirror::local_postgres::Server;
use serde_json::Value;

use super::openim::World;
use super::support::{ADMIN_ID, SECRET, Service, TestDb, own_server};

/// A service or a command takes no longer.
pub const BOUND: Duration = Duration::from_secs(3600);

/// Prints the progress, for people who wait.
pub fn eprint(what: &str) {
    eprintln!("{what}");
}

/// A database, and what stands in for OpenIM.
pub struct Bench {
    pub world: Arc<World>,
    url: String,
    pub db: TestDb,
    /// Process id of the server's first process.
    postmaster: u32,
    _server: Server,
}

impl Bench {
    pub async fn start(world: Arc<World>) -> Self {
        let url = world.serve();
        let server = own_server("bench").await;
        let db = TestDb::on(&server);
        db.database().migrate().await.unwrap();
        let pid = "select split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int as pid";
        let pid = db.rows(pid).await[0]["pid"].as_u64().unwrap();
        Self {
            world,
            url,
            db,
            postmaster: u32::try_from(pid).unwrap(),
            _server: server,
        }
    }

    pub fn variables<'a>(&'a self, others: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut all = vec![
            ("DATABASE_URL", self.db.url.as_str()),
            ("OPENIM_API_URL", self.url.as_str()),
            ("OPENIM_ADMIN_USER_ID", ADMIN_ID),
            ("OPENIM_SECRET", SECRET),
        ];
        all.extend(others);
        all
    }

    /// Transactions, and bytes of WAL.
    pub async fn counts(&self) -> (i64, f64) {
        // What other sessions did is counted when they end, or after a second.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let sql = "select xact_commit as commits, pg_current_wal_lsn() - '0/0'::pg_lsn as bytes
                     from pg_stat_database where datname = current_database()";
        let row = self.db.rows(sql).await.pop().unwrap();
        (
            row["commits"].as_i64().unwrap(),
            row["bytes"].as_f64().unwrap(),
        )
    }

    /// In seconds: of Postgres, of this process, and of the machine.
    pub fn cpu(&self) -> [f64; 3] {
        [
            self.cpu_of_postgres(),
            cpu_of("self", false),
            cpu_of_machine(),
        ]
    }

    /// Since then: of Postgres, of this process, and of all that is none of ours.
    pub fn cpu_since(&self, before: [f64; 3], of_service: f64) -> [f64; 3] {
        let [postgres, own, machine] = self.cpu();
        let (postgres, own) = (postgres - before[0], own - before[1]);
        let others = machine - before[2] - postgres - own - of_service;
        [postgres, own, others.max(0.0)]
    }

    /// With that of its processes that have ended.
    fn cpu_of_postgres(&self) -> f64 {
        let pid = self.postmaster;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let of_children = children.split_whitespace().map(|pid| cpu_of(pid, false));
        cpu_of(&pid.to_string(), true) + of_children.sum::<f64>()
    }

    /// The rows of both tables as they lie there.
    pub async fn digest(&self) -> Vec<Value> {
        let mut digests = Vec::new();
        for table in ["groups", "group_members"] {
            let sql = format!(
                "select count(*), sum(('x' || left(md5(ctid::text || xmin::text || xmax::text), 15))
                          ::bit(60)::bigint::numeric)::text as sum
                   from {table}"
            );
            digests.extend(self.db.rows(&sql).await);
        }
        digests
    }

    pub async fn count(&self, table: &str) -> u64 {
        let sql = format!("select count(*) from {table}");
        self.db.rows(&sql).await[0]["count"].as_u64().unwrap()
    }

    /// Comparisons that have ended: how many, and the last one's number, seconds and members.
    pub async fn last_run(&self) -> (u64, i64, f64, u64) {
        let sql = "select count(*) over () as runs, id, members_compared as members,
                          extract(epoch from ended_at - started_at)::float8 as seconds
                     from reconcile_runs where ended_at is not null and stopped_by is null
                    order by id desc limit 1";
        let row = self.db.rows(sql).await.pop().unwrap();
        (
            row["runs"].as_u64().unwrap(),
            row["id"].as_i64().unwrap(),
            row["seconds"].as_f64().unwrap(),
            row["members"].as_u64().unwrap(),
        )
    }

    pub async fn last_id(&self) -> i64 {
        let sql = "select coalesce(max(id), 0) as id from reconcile_runs
                    where ended_at is not null and stopped_by is null";
        self.db.rows(sql).await[0]["id"].as_i64().unwrap()
    }

    pub async fn until_run_after(&self, id: i64) {
        let deadline = Instant::now() + BOUND;
        while self.last_id().await <= id {
            assert!(Instant::now() < deadline, "it does not end");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn service(&self, others: &[(&str, &str)]) -> Service {
        let variables = self.variables(others);
        tokio::task::block_in_place(|| Service::start(&variables))
    }
}

/// User and system time in seconds of a process; with that of its children that have ended.
pub fn cpu_of(pid: &str, with_children: bool) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return 0.0;
    };
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let all = fields.split_whitespace().skip(11);
    let times = all.take(if with_children { 4 } else { 2 });
    let ticks: u32 = times.map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / 100.0
}

/// Processor time.
fn cpu_of_machine() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().next().unwrap();
    let times = line.split_whitespace().skip(1);
    let times: Vec<u64> = times.map(|ticks| ticks.parse().unwrap()).collect();
    // Not those in which they waited.
    let busy: u64 = times[..3].iter().chain(&times[5..7]).sum();
    f64::from(u32::try_from(busy).unwrap()) / 100.0
}

pub fn peak_mib_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.div_ceil(1024))
}

/// With commas.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
