//! Notes to systemd, if it has started the service with `Type=notify`.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::interval;

use crate::tasks::detached;

/// Tells systemd that the service is up, and that it is alive until `work` is done.
///
/// This is no task of [`Tasks`](crate::tasks::Tasks): it runs beside `work` on the thread that accepts connections, so
/// that a blocked thread ends the notes.
pub(super) async fn alive_while<T>(work: impl Future<Output = T>) -> T {
    notify(NotifyState::Ready);
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

/// Tells systemd that the service stops.
pub(super) fn stopping() {
    notify(NotifyState::Stopping);
}

async fn beat(every: Duration) -> Infallible {
    // An interval of zero panics.
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        // A thread of the runtime has to run this too.
        let _ = detached(async {}).await;
        notify(NotifyState::Watchdog);
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(error = error.to_string(), "systemd is not notified");
    }
}
