//! Callbacks at a steady rate, and how long each took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::openim::{World, group_id, user_id};
use super::support::{COMMAND, Random, member_info, web};

/// Callbacks a second, whether the ones before were answered or not.
pub const RATE: usize = 500;
const CONNECTIONS: usize = 16;
/// After these OpenIM gives up.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Requests until the end of the time.
pub struct Load {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Latencies>,
}

/// In milliseconds, from when each was due.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    pub sorted: Vec<f64>,
    /// Not answered with success.
    pub failed: u64,
}

impl Load {
    /// To a service, of members of these groups. Each is a change in OpenIM first.
    pub fn start(base: &str, world: &Arc<World>, groups: &Arc<Vec<usize>>, seed: u64) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (base, is_ending) = (base.to_owned(), Arc::clone(&ending));
        let (world, groups) = (Arc::clone(world), Arc::clone(groups));
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(async {
                let began = Instant::now() + Duration::from_millis(50);
                let mut sending = tokio::task::JoinSet::new();
                for number in 0..CONNECTIONS {
                    let (base, is_ending) = (base.clone(), Arc::clone(&is_ending));
                    let (world, groups) = (Arc::clone(&world), Arc::clone(&groups));
                    sending.spawn(async move {
                        let random = Random::new(seed, number as u64);
                        send(&base, &world, &groups, random, number, began, &is_ending).await
                    });
                }
                let mut all = Latencies::default();
                while let Some(some) = sending.join_next().await {
                    all.add(&some.unwrap());
                }
                all
            })
        });
        Self { ending, thread }
    }

    pub fn end(self) -> Latencies {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn send(
    base: &str,
    world: &World,
    groups: &[usize],
    mut random: Random,
    number: usize,
    began: Instant,
    is_ending: &AtomicBool,
) -> Latencies {
    let client = web::client()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(1)
        .build()
        .unwrap();
    let url = format!("{base}/{COMMAND}");
    let mut latencies = Latencies::default();
    for turn in 0.. {
        let place = u32::try_from(turn * CONNECTIONS + number).unwrap();
        let due = began + Duration::from_secs(1) * place / u32::try_from(RATE).unwrap();
        sleep_until(due).await;
        if is_ending.load(Ordering::Relaxed) {
            break;
        }
        let group = random.pick(groups);
        let member = random.below(world.size(group) as u64);
        let member = usize::try_from(member).unwrap();
        let nickname = format!("name {:x}", random.next());
        world.set_nickname(group, member, &nickname);
        let body = member_info(
            &group_id(group).to_string(),
            &user_id(group, member).to_string(),
            json!({"nickName": nickname}),
        );
        let request = client.post(&url).header("content-type", "application/json");
        let answer = request.body(body).send().await;
        let is_good = match answer {
            Ok(answer) if answer.status() == 200 => answer.bytes().await.is_ok(),
            _ => false,
        };
        latencies.failed += u64::from(!is_good);
        latencies.sorted.push(due.elapsed().as_secs_f64() * 1000.0);
    }
    latencies.sorted.sort_by(f64::total_cmp);
    latencies
}

impl Latencies {
    pub fn add(&mut self, other: &Self) {
        self.sorted.extend(&other.sorted);
        self.sorted.sort_by(f64::total_cmp);
        self.failed += other.failed;
    }

    /// Adds a value, in milliseconds.
    pub fn push(&mut self, millis: f64) {
        let place = self.sorted.partition_point(|other| *other <= millis);
        self.sorted.insert(place, millis);
    }

    /// Below it are so many of a thousand.
    pub fn quantile(&self, permille: usize) -> f64 {
        let place = (self.sorted.len() * permille / 1000).min(self.sorted.len() - 1);
        self.sorted[place]
    }

    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// p50, p99, p99.9 and the most.
    pub fn columns(&self) -> String {
        let [p50, p99, p999] = [500, 990, 999].map(|permille| self.quantile(permille));
        let max = self.quantile(1000);
        format!("{p50:.2} | {p99:.1} | {p999:.1} | {max:.0}")
    }
}
