//! What systemd is told, where it has started us with `Type=notify`; nobody else hears of it.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::interval;

/// Tells systemd that the service is up, and that it is alive until `work` is done.
pub(super) async fn alive_while<T>(work: impl Future<Output = T>) -> T {
    tell(NotifyState::Ready);
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return work.await;
    };
    tokio::select! {
        biased;
        done = work => done,
        // Twice as often as systemd asks for.
        never = beat(limit / 2) => match never {},
    }
}

/// The service is stopping.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

/// For ever, as long as the threads that serve do their work: the one that takes connections, where this
/// runs too, and another.
async fn beat(every: Duration) -> Infallible {
    // An interval of nothing would panic.
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        // One of the runtime's own has to come by.
        let _ = tokio::spawn(async {}).await;
        tell(NotifyState::Watchdog);
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        let error = error.to_string();
        tracing::warn!(error, "systemd cannot be told how the service is");
    }
}
