//! What systemd is told, where it has started us with `Type=notify`; nobody else hears of it.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::AbortHandle;
use tokio::time::interval;

/// Has systemd told that the service is alive until this is dropped.
#[derive(Debug)]
pub(super) struct Alive(Option<AbortHandle>);

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some(beating) = &self.0 {
            beating.abort();
        }
    }
}

/// The service is up. Where systemd has a watchdog, it is told so twice as often as it asks for.
pub(super) fn ready() -> Alive {
    tell(NotifyState::Ready);
    Alive(sd_notify::watchdog_enabled().map(|limit| tokio::spawn(beat(limit / 2)).abort_handle()))
}

/// The service is stopping.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

/// For ever, as long as the threads that serve do their work.
async fn beat(every: Duration) {
    // An interval of nothing would panic.
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        // Another task of the runtime has to come through, too.
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
