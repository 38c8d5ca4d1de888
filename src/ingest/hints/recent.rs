//! What was written within the last seconds.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// A callback's group and operation, by a hash. Two that have the same, of a million a second once in
/// some hundred years, are looked at a second too early.
pub(super) type Key = u64;

/// Keys, each forgotten after a time.
#[derive(Debug)]
pub(super) struct Recent {
    kept_for: Duration,
    most: usize,
    /// In the order of time.
    order: VecDeque<(Instant, Key)>,
    /// How often each is in there.
    counts: HashMap<Key, u32>,
}

impl Recent {
    pub(super) fn new(kept_for: Duration, most: usize) -> Self {
        Self {
            kept_for,
            most,
            order: VecDeque::new(),
            counts: HashMap::new(),
        }
    }

    pub(super) fn add(&mut self, key: Key, now: Instant) {
        self.forget(now, self.most.saturating_sub(1));
        self.order.push_back((now, key));
        *self.counts.entry(key).or_default() += 1;
    }

    pub(super) fn has(&mut self, key: Key, now: Instant) -> bool {
        self.forget(now, self.most);
        self.counts.contains_key(&key)
    }

    /// Those that are too old, and the oldest of more than `most`.
    fn forget(&mut self, now: Instant, most: usize) {
        while let Some((at, key)) = self.order.front().copied() {
            if self.order.len() <= most && now.saturating_duration_since(at) <= self.kept_for {
                return;
            }
            self.order.pop_front();
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_there_for_as_long_as_it_is_kept() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut recent = Recent::new(5 * second, 3);
        recent.add(1, start);
        recent.add(1, start + second);
        assert!(recent.has(1, start + 6 * second));
        assert!(!recent.has(1, start + 7 * second));
        assert!(!recent.has(2, start));
    }

    #[test]
    fn of_too_many_the_oldest_are_forgotten() {
        let start = Instant::now();
        let mut recent = Recent::new(Duration::from_secs(5), 3);
        for key in [1, 2, 2, 3] {
            recent.add(key, start);
        }
        assert!(!recent.has(1, start));
        assert!(recent.has(2, start) && recent.has(3, start));
        recent.add(4, start);
        assert!(recent.has(2, start));
        recent.add(5, start);
        assert!(!recent.has(2, start));
        assert_eq!(recent.counts.len(), 3);
    }
}
