//! The way from OpenIM to the mirror, over HTTP, on which callbacks and messages are lost, come late,
//! come twice and overtake each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::openim_callbacks::Callback;
use super::openim_order::Told;
use super::random::Random;
use super::senders::TIMEOUT;
use super::web;

/// Share of faulty deliveries, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub lost: u64,
    pub repeated: u64,
    /// By so long at most.
    pub delayed: u64,
    pub most_delay: Duration,
    /// With the neighbour of the same request.
    pub swapped: u64,
    /// An answer is waited for so long.
    pub patience: Duration,
}

impl Way {
    pub const GOOD: Self = Self {
        lost: 0,
        repeated: 0,
        delayed: 0,
        most_delay: Duration::ZERO,
        swapped: 0,
        // Longer than OpenIM's, for a machine that has much else to do.
        patience: Duration::from_secs(60),
    };
    pub const BAD: Self = Self {
        lost: 20,
        repeated: 20,
        delayed: 20,
        most_delay: Duration::from_millis(1500),
        swapped: 20,
        patience: TIMEOUT,
    };
}

/// Results of deliveries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delivered {
    pub told: u64,
    pub answered: u64,
    /// On the way, or with OpenIM, or there was nobody to take it.
    pub lost: u64,
    /// Callbacks without an answer of success.
    pub odd: u64,
}

/// A way to a mirror that may be away.
#[derive(Clone)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    client: reqwest::Client,
    way: Way,
    /// True if the callbacks about messages are switched on.
    has_messages: bool,
    /// Address of the mirror; `None` while it is away.
    base: watch::Sender<Option<String>>,
    /// So often was OpenIM killed, with all that it had not sent.
    lives: AtomicU64,
    under_way: Mutex<JoinSet<()>>,
    delivered: Mutex<Delivered>,
    begun: Instant,
    /// For whoever has to find out what is wrong.
    story: Mutex<Vec<String>>,
}

impl Delivery {
    pub fn new(way: Way, has_messages: bool) -> Self {
        let client = web::client().timeout(way.patience).build().unwrap();
        Self(Arc::new(Inner {
            client,
            way,
            has_messages,
            base: watch::Sender::new(None),
            lives: AtomicU64::new(0),
            under_way: Mutex::default(),
            delivered: Mutex::default(),
            begun: Instant::now(),
            story: Mutex::default(),
        }))
    }

    /// The mirror is there, or away.
    pub fn to(&self, base: Option<String>) {
        self.0.base.send_replace(base);
    }

    /// OpenIM is killed, and what it has not sent is lost.
    pub fn forget(&self) {
        self.0.lives.fetch_add(1, Ordering::Relaxed);
    }

    pub fn delivered(&self) -> Delivered {
        *self.0.delivered.lock().unwrap()
    }

    pub fn note(&self, line: &str) {
        self.0.note(line);
    }

    /// Deliveries that contain this text, for example the id of a group.
    pub fn story_of(&self, part: &str) -> String {
        let story = self.0.story.lock().unwrap();
        let lines = story.iter().filter(|line| line.contains(part));
        lines.cloned().collect::<Vec<_>>().join("\n")
    }

    /// Puts on its way what is told of a request.
    pub fn tell(&self, told: Vec<Told>, random: &mut Random) {
        let Way {
            lost,
            repeated,
            delayed,
            most_delay,
            swapped,
            ..
        } = self.0.way;
        let mut told: Vec<Told> = told
            .into_iter()
            .filter(|told| self.0.has_messages || !told.callback.is_message())
            .collect();
        for place in 1..told.len() {
            if random.percent(swapped) {
                let (one, other) = (told[place - 1].delay_millis, told[place].delay_millis);
                (told[place - 1].delay_millis, told[place].delay_millis) = (other, one);
            }
        }
        for Told {
            delay_millis,
            callback,
        } in told
        {
            self.0.delivered.lock().unwrap().told += 1;
            if random.percent(lost) {
                self.0
                    .note(&format!("    lost {}", callback.body.trim_end()));
                self.0.delivered.lock().unwrap().lost += 1;
                continue;
            }
            let mut delay = Duration::from_millis(delay_millis);
            let times = 1 + u32::from(random.percent(repeated));
            for _ in 0..times {
                if random.percent(delayed) {
                    let most = u64::try_from(most_delay.as_millis()).unwrap();
                    delay += Duration::from_millis(random.below(most));
                }
                let inner = Arc::clone(&self.0);
                let sending = inner.send(callback.clone(), delay);
                self.0.under_way.lock().unwrap().spawn(sending);
            }
        }
    }

    /// Until all has come, or is lost.
    pub async fn settled(&self) {
        loop {
            // Not in the `while`, which would keep the lock.
            let mut under_way = std::mem::take(&mut *self.0.under_way.lock().unwrap());
            if under_way.is_empty() {
                return;
            }
            while let Some(sent) = under_way.join_next().await {
                sent.unwrap();
            }
        }
    }
}

impl Inner {
    fn note(&self, line: &str) {
        let millis = self.begun.elapsed().as_millis();
        let line = format!("{millis:>6} {line}");
        self.story.lock().unwrap().push(line);
    }

    async fn send(self: Arc<Self>, callback: Callback, delay: Duration) {
        let life = self.lives.load(Ordering::Relaxed);
        sleep(delay).await;
        let base = self.base.borrow().clone();
        let is_dead = self.lives.load(Ordering::Relaxed) != life;
        let answer = match base {
            Some(base) if !is_dead => {
                let Callback {
                    command,
                    body,
                    operation_id,
                } = callback;
                self.note(&format!("    comes {operation_id} {}", body.trim_end()));
                let request = self.client.post(format!("{base}/{command}"));
                let request = request.header("Operationid", operation_id);
                let request = request.header("content-type", "application/json; charset=utf-8");
                request.body(body).send().await.ok()
            }
            _ => None,
        };
        let mut delivered = self.delivered.lock().unwrap();
        match answer.map(|answer| answer.status().as_u16()) {
            Some(200) => delivered.answered += 1,
            Some(_) => delivered.odd += 1,
            None => delivered.lost += 1,
        }
    }
}
