//! Comparing the mirror with OpenIM beside serving.

use crate::openim::{self, Client, Comparing, Parts, Reconciler};

/// Begins, where there is access to OpenIM; where not, says what that means.
pub(super) fn start(
    client: Option<Client>,
    settings: openim::Settings,
    parts: Parts,
) -> Option<Comparing> {
    let Some(client) = client else {
        tracing::warn!(
            "OPENIM_API_URL is not set: the mirror is not compared with OpenIM. What OpenIM does \
             not tell (invitations, approvals, mutes, names of profiles), drops or sends out of \
             order stays missing or wrong"
        );
        return None;
    };
    parts
        .metrics
        .begin_comparing(settings.interval, &openim::Error::OF_RUN);
    Some(Reconciler::new(client, settings, parts).start())
}
