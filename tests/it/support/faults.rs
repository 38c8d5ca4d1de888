//! Faults around the service under load, and the promises that still hold.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::cluster::Cluster;
use super::database::TestDb;
use super::random::Random;
use super::run::run;
use super::senders::{Senders, Tally};
use super::service::Service;
use super::wire::Wire;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections to Postgres are closed, and no new one lives.
    Cut,
    /// Nothing arrives any more, and nobody is told.
    Silent,
    /// Everything takes 300 ms longer.
    Slow,
    /// Every process of Postgres is killed, and it is started again.
    PostgresKilled,
    /// Every process of Postgres is stopped in its tracks, and goes on.
    PostgresStopped,
    /// The service is killed 20 times, with and without an outage of Postgres.
    ServiceKilled,
    /// The service and Postgres are killed at once.
    BothKilled,
    /// SPOOL_MAX_BYTES is reached.
    SpoolFull,
    /// The system does not let the file grow.
    DiskFull,
}

/// Callbacks that are answered before and after a fault, at least.
const SOME: u64 = 100;
/// Longest that anything of ours may take.
const BOUND: Duration = Duration::from_secs(60);

/// A service with its database and its senders.
pub(super) struct Stage {
    variables: Vec<(&'static str, String)>,
    kib: Option<u32>,
    service: Option<Service>,
    senders: Option<Senders>,
    wire: Wire,
    cluster: Option<Cluster>,
    spool: PathBuf,
    db: Option<TestDb>,
}

impl Stage {
    /// `is_own`: on a Postgres of its own.
    pub(super) async fn new(
        is_own: bool,
        more: &[(&'static str, &str)],
        kib: Option<u32>,
    ) -> Stage {
        let (cluster, db, url) = if is_own {
            let cluster = Cluster::start().await;
            let url = cluster.server().url("postgres");
            (Some(cluster), None, url)
        } else {
            let db = TestDb::new().await;
            let url = db.url.clone();
            (None, Some(db), url)
        };
        let wire = Wire::before(&url).await;
        let spool = run().folder("spool");
        let mut variables = vec![
            ("DATABASE_URL", wire.url.clone()),
            ("SPOOL_DIR", spool.display().to_string()),
        ];
        let more = more
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        variables.extend(more);
        let mut stage = Stage {
            variables,
            kib,
            service: None,
            senders: None,
            wire,
            cluster,
            spool,
            db,
        };
        stage.start_service().await;
        stage
    }

    async fn start_service(&mut self) {
        let variables = self.variables.clone();
        let kib = self.kib;
        // It blocks until the service is up, and the wire has to carry meanwhile.
        let started = tokio::task::spawn_blocking(move || {
            let variables: Vec<(&str, &str)> = variables
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            Service::start_within(&variables, kib)
        });
        self.service = Some(started.await.unwrap());
    }

    pub(super) fn base(&self) -> String {
        self.service.as_ref().unwrap().base.clone()
    }

    pub(super) fn senders(&self) -> &Senders {
        self.senders.as_ref().unwrap()
    }

    /// Begins to send, and waits for the first answers.
    pub(super) async fn send(&mut self, seed: u64) {
        self.senders = Some(Senders::start(&self.base(), seed));
        self.some_more().await;
    }

    /// Waits until some more callbacks are answered.
    pub(super) async fn some_more(&self) {
        let before = self.senders().so_far().answered;
        self.until("callbacks are answered", async || {
            self.senders().so_far().answered >= before + SOME
        })
        .await;
    }

    async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let wait = async {
            while !condition().await {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(BOUND, wait).await;
        let log = || self.service.as_ref().map(Service::log).unwrap_or_default();
        let tally = self.senders.as_ref().map(Senders::so_far);
        assert!(waited.is_ok(), "not in time: {what}; {tally:?}\n{}", log());
    }

    /// The service is killed, and a new one takes its place.
    async fn kill_service(&mut self) {
        self.senders().gone();
        let service = self.service.take();
        tokio::task::spawn_blocking(move || drop(service))
            .await
            .unwrap();
    }

    async fn back(&mut self) {
        self.start_service().await;
        self.senders().moved_to(&self.base());
    }

    /// Values of one answer in their order; -1 for a missing one.
    async fn metrics<const N: usize>(&self, names: [&str; N]) -> [f64; N] {
        let text = async {
            let answer = super::web::get(format!("{}/metrics", self.base())).await?;
            answer.text().await
        };
        let text = text.await.unwrap_or_default();
        names.map(|name| {
            let prefix = format!("openim_group_mirror_{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
            value.map_or(-1.0, |value| value.parse().unwrap())
        })
    }

    /// Most memory that the service has had so far, in bytes.
    pub(super) fn peak_memory(&self) -> u64 {
        self.service.as_ref().unwrap().peak_memory()
    }

    /// All that was answered is in the database.
    async fn drained(&self) {
        self.until("everything is in the database", async || {
            let ready = super::web::get(format!("{}/readyz", self.base())).await;
            let names = ["marks_waiting", "changes_waiting", "spool_entries"];
            ready.is_ok_and(|ready| ready.status() == 200) && self.metrics(names).await == [0.0; 3]
        })
        .await;
    }

    /// Ends the sending, and holds the mirror against what was answered.
    pub(super) async fn verified(mut self) -> Tally {
        self.senders.as_mut().unwrap().end().await;
        self.drained().await;
        let mut tally = self.senders().verify(&self.base()).await;
        if !tally.notes.is_empty() {
            tally.notes.push(self.service.as_ref().unwrap().log());
        }
        tally
    }
}

/// Lets something go wrong for so long under load, and counts what became of the callbacks.
pub async fn suffer(fault: Fault, long: Duration, seed: u64) -> Tally {
    let is_own = matches!(
        fault,
        Fault::PostgresKilled | Fault::PostgresStopped | Fault::BothKilled
    );
    let more: &[(&str, &str)] = match fault {
        Fault::SpoolFull => &[("SPOOL_MAX_BYTES", "65536")],
        // Its log is a file too.
        Fault::DiskFull => &[("RUST_LOG", "off")],
        _ => &[],
    };
    let kib = (fault == Fault::DiskFull).then_some(512);
    let mut stage = Stage::new(is_own, more, kib).await;
    stage.send(seed).await;
    match fault {
        Fault::Cut => {
            stage.wire.cut();
            sleep(long).await;
            stage.wire.heal();
        }
        Fault::Silent => {
            stage.wire.hold();
            sleep(long).await;
            stage.wire.heal();
        }
        Fault::Slow => {
            stage.wire.delay(Duration::from_millis(300));
            sleep(long).await;
            stage.wire.heal();
        }
        Fault::PostgresKilled => {
            let mut cluster = stage.cluster.take().unwrap();
            let killed = tokio::task::spawn_blocking(move || {
                cluster.kill();
                cluster
            });
            cluster = killed.await.unwrap();
            sleep(long).await;
            cluster.restart().await;
            stage.cluster = Some(cluster);
        }
        Fault::PostgresStopped => {
            let frozen = stage.cluster.as_ref().unwrap().freeze().await;
            sleep(long).await;
            drop(frozen);
        }
        Fault::ServiceKilled => {
            let mut random = Random::new(seed, 99);
            for time in 0..20 {
                sleep(Duration::from_millis(random.below(300))).await;
                match time % 10 {
                    1 | 5 => stage.wire.cut(),
                    3 => stage.wire.hold(),
                    _ => {}
                }
                sleep(Duration::from_millis(random.below(300))).await;
                stage.kill_service().await;
                if time % 10 != 5 {
                    stage.wire.heal();
                }
                stage.back().await;
                sleep(Duration::from_millis(random.below(100))).await;
                stage.wire.heal();
            }
        }
        Fault::BothKilled => {
            for is_away in [false, true] {
                if is_away {
                    stage.wire.cut();
                    sleep(long / 4).await;
                }
                let mut cluster = stage.cluster.take().unwrap();
                let killed = tokio::task::spawn_blocking(move || {
                    cluster.kill();
                    cluster
                });
                stage.kill_service().await;
                cluster = killed.await.unwrap();
                stage.wire.heal();
                cluster.restart().await;
                stage.cluster = Some(cluster);
                stage.back().await;
                stage.some_more().await;
            }
        }
        Fault::SpoolFull | Fault::DiskFull => {
            stage.wire.cut();
            stage
                .until("callbacks are refused", async || {
                    stage.senders().so_far().refused >= 20
                })
                .await;
            stage.wire.heal();
            stage
                .until("callbacks are taken again", async || {
                    let ready = super::web::get(format!("{}/readyz", stage.base())).await;
                    ready.is_ok_and(|ready| ready.status() == 200)
                })
                .await;
        }
    }
    stage.some_more().await;
    stage.verified().await
}

/// Sends, and then changes what is stored behind the service's back: what the count makes of it.
pub async fn tamper(seed: u64) -> Tally {
    let mut stage = Stage::new(false, &[], None).await;
    stage.send(seed).await;
    stage.senders.as_mut().unwrap().end().await;
    stage.drained().await;
    let db = stage.db.as_ref().unwrap();
    for statement in [
        "delete from group_members where ctid in
             (select ctid from group_members where left_at is null and role_level < 100 limit 1)",
        "update group_members set nickname = 'x-1', ex = '9-999999' where ctid in
             (select ctid from group_members where role_level = 100 limit 1)",
        "update groups set check_wanted_since = now(), check_reason = 'owner_mismatch'
          where ctid in (select ctid from groups limit 1)",
    ] {
        db.execute(statement).await;
    }
    stage.senders().verify(&stage.base()).await
}

/// End of the service before its spool is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stopped,
    Killed,
}

/// Damages the spool while some hundreds of callbacks wait in it. Whether the service says so when
/// it starts again, and what is there then.
pub async fn damage(end: End, seed: u64) -> (bool, Tally) {
    let mut random = Random::new(seed, 98);
    let mut stage = Stage::new(false, &[], None).await;
    stage.send(seed).await;
    stage.wire.cut();
    stage
        .until("callbacks wait", async || {
            stage.metrics(["spool_entries"]).await[0] >= 300.0
        })
        .await;
    stage.senders.as_mut().unwrap().end().await;
    if end == End::Stopped {
        let service = stage.service.as_mut().unwrap();
        service.signal("TERM");
        let mut service = stage.service.take().unwrap();
        tokio::task::spawn_blocking(move || assert!(service.ended().success()))
            .await
            .unwrap();
    } else {
        stage.kill_service().await;
    }
    for file in std::fs::read_dir(&stage.spool).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            harm(&path, &mut random);
        }
    }
    stage.wire.heal();
    stage.start_service().await;
    stage.drained().await;
    let tally = stage.senders().verify(&stage.base()).await;
    let log = stage.service.as_ref().unwrap().log();
    let is_told = log.contains("the spool was damaged") || log.contains("the end of the spool");
    (is_told, tally)
}

/// Cuts a file somewhere, or turns some of its bits.
fn harm(path: &Path, random: &mut Random) {
    let Ok(mut bytes) = std::fs::read(path) else {
        return;
    };
    if bytes.is_empty() {
        return;
    }
    let mut place = || usize::try_from(random.below(bytes.len() as u64)).unwrap();
    let places: Vec<usize> = (0..4).map(|_| place()).collect();
    if random.one_in(2) {
        // Not between two entries, which begin at even places: where a file ends with a whole one there
        // is nothing to see.
        bytes.truncate(places[0] | 1);
    } else {
        for place in places {
            bytes[place] ^= 1 << random.below(8);
        }
    }
    std::fs::write(path, bytes).unwrap();
}
