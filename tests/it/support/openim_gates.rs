//! Calls that wait, so that a test can act in between.

use std::time::Duration;

use tokio::sync::{oneshot, watch};

/// Longest wait for a call.
const BOUND: Duration = Duration::from_secs(20);

/// Place at which a call waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    BeforeAnswer,
    AfterAnswer,
    /// After the read of the ids, and before that of their version.
    BeforeVersion,
}

/// Gate at which a call waits.
pub(super) struct Gate {
    path_suffix: String,
    place: Place,
    reached: watch::Sender<bool>,
    released: oneshot::Receiver<()>,
}

/// A call that waits, or will. It goes on when this is dropped.
pub struct Held {
    path_suffix: String,
    reached: watch::Receiver<bool>,
    _release: oneshot::Sender<()>,
}

impl Held {
    /// Until the call has come, for 20 s at most.
    pub async fn reached(&mut self) {
        let reached = self.reached.wait_for(|is_reached| *is_reached);
        let reached = tokio::time::timeout(BOUND, reached).await;
        let is_reached = reached.is_ok_and(|reached| reached.is_ok());
        assert!(is_reached, "nobody called {}", self.path_suffix);
    }

    /// The call goes on, or will not wait.
    pub fn release(self) {
        drop(self);
    }
}

/// For calls that are to come.
#[derive(Default)]
pub(super) struct Gates(Vec<Gate>);

impl Gates {
    pub(super) fn add(&mut self, path_suffix: &str, place: Place) -> Held {
        let (reached, is_reached) = watch::channel(false);
        let (release, released) = oneshot::channel();
        self.0.push(Gate {
            path_suffix: path_suffix.to_owned(),
            place,
            reached,
            released,
        });
        Held {
            path_suffix: path_suffix.to_owned(),
            reached: is_reached,
            _release: release,
        }
    }

    /// Gate for one call.
    pub(super) fn take(&mut self, path: &str, place: Place) -> Option<Gate> {
        let is_here = |gate: &Gate| gate.place == place && path.ends_with(&gate.path_suffix);
        let index = self.0.iter().position(is_here)?;
        Some(self.0.remove(index))
    }
}

impl Gate {
    pub(super) async fn wait(self) {
        self.reached.send_replace(true);
        // Released, or dropped.
        let _ = self.released.await;
    }
}
