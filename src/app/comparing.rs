//! Comparing the mirror with OpenIM beside serving.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::openim::{self, Client, Parts, Reconciler};

/// The comparing that goes on beside serving.
#[derive(Debug, Default)]
pub(super) struct Comparing {
    running: TaskTracker,
    closing: CancellationToken,
}

impl Comparing {
    /// Begins, where there is access to OpenIM; where not, says what that means.
    pub(super) fn start(client: Option<Client>, settings: openim::Settings, parts: Parts) -> Self {
        let comparing = Self::default();
        let Some(client) = client else {
            tracing::warn!(
                "OPENIM_API_URL is not set: the mirror is not compared with OpenIM. What OpenIM does \
                 not tell (invitations, approvals, mutes, names of profiles), drops or sends out of \
                 order stays missing or wrong"
            );
            return comparing;
        };
        parts
            .metrics
            .begin_comparing(settings.interval, &openim::Error::OF_RUN);
        let reconciler = Reconciler::new(client, settings, parts);
        // Before anything is served.
        reconciler.begin_looks();
        let closing = comparing.closing.clone();
        comparing
            .running
            .spawn(async move { reconciler.run(closing).await });
        comparing
    }

    /// Ends it. What is under way is left: the next comparison goes on from there.
    pub(super) async fn end(&self) {
        self.closing.cancel();
        self.running.close();
        self.running.wait().await;
    }
}
