//! The read of known drift between the mirror and OpenIM.

use poem_openapi::OpenApi;
use time::OffsetDateTime;

use crate::http::error::ReadFailure;
use crate::http::json_response::{
    JsonResponse, example_time, json_object, optional_rfc3339, rfc3339,
};
use crate::http::server::auth::{ReadKey, Tag};
use crate::store::{Run, Store, WantedByReason};

pub(crate) struct Drifts {
    pub(crate) store: Store,
    /// True if this instance has access to OpenIM's API.
    pub(crate) compares: bool,
}

json_object! {
    /// Known drift between the mirror and OpenIM.
    #[oai(example, rename = "Drift")]
    struct DriftJson {
        /// True if this instance reconciles the mirror with OpenIM: OPENIM_API_URL is set.
        compares "compares": bool = true;
        /// The last run that ended, of any instance. null: none.
        last_run "lastRun" nullable: Option<RunJson> = Some(RunJson::example());
        /// The run that goes on, or whose process ended before it. null: none.
        current_run "currentRun" nullable: Option<RunJson> = None;
        /// Marked groups, by the last reason of each. `/groups?checkWanted=true` lists them.
        checks_wanted "checksWanted": Vec<MarkCount> = vec![MarkCount::example()];
    }
}

json_object! {
    /// A run: one reconcile of all groups.
    #[oai(rename = "Comparison")]
    struct RunJson {
        /// Start of the run.
        started_at "startedAt": OffsetDateTime as "rfc3339" = example_time();
        /// End of the run.
        ended_at "endedAt" nullable: Option<OffsetDateTime> as "optional_rfc3339" =
            Some(example_time() + time::Duration::seconds(3));
        /// True if the run read each group whole, false if it read groups that had changed.
        is_full "isFull": bool = false;
        /// Reason why the run ended early (openim_unavailable, database_unavailable, spooling, stopped,
        /// turn_lost) or did not repair everything (too_many_removals). null: a complete run.
        stopped_by "stoppedBy" nullable: Option<String> = None;
        /// Number of groups that the run looked at.
        groups_seen "groupsSeen": i64 = 10_000;
        /// Number of groups that it read from OpenIM. The others had not changed.
        groups_compared "groupsCompared": i64 = 12;
        /// Number of groups that it could not read, or left for an operator to decide.
        groups_left "groupsLeft": i64 = 0;
        /// Number of compared members.
        members_compared "membersCompared": i64 = 340;
        /// Repairs of drift.
        repairs "repairs": Repairs = Repairs::example();
    }
}

json_object! {
    /// Numbers of repaired rows.
    struct Repairs {
        /// Members that the mirror did not have.
        member_added "memberAdded": i64 = 2;
        /// Members that OpenIM does not have.
        member_removed "memberRemoved": i64 = 0;
        /// Members with another value.
        member_changed "memberChanged": i64 = 1;
        /// Members with a change that no callback reports, for example of the name of their profile.
        /// No drift.
        details_changed "detailsChanged": i64 = 9;
        /// Groups with another value of their own.
        group_changed "groupChanged": i64 = 0;
    }
}

json_object! {
    /// Number of groups that are marked for one reason.
    #[oai(rename = "ChecksWanted")]
    struct MarkCount from WantedByReason {
        /// As checkReason of a group.
        reason "reason" nullable: Option<String> = Some("member_unknown".into());
        /// Number of groups.
        groups "groups": i64 = 1;
        /// Time of the oldest mark.
        since "since": OffsetDateTime as "rfc3339" = example_time();
    }
}

impl From<Run> for RunJson {
    fn from(run: Run) -> Self {
        let Run {
            id: _,
            age: _,
            started_at,
            ended_at,
            is_full,
            stopped_by,
            counts,
        } = run;
        Self {
            started_at,
            ended_at,
            is_full,
            stopped_by,
            groups_seen: counts.groups_seen,
            groups_compared: counts.groups_compared,
            groups_left: counts.groups_left,
            members_compared: counts.members_compared,
            repairs: Repairs {
                member_added: counts.members_added,
                member_removed: counts.members_removed,
                member_changed: counts.members_changed,
                details_changed: counts.details_changed,
                group_changed: counts.groups_changed,
            },
        }
    }
}

#[OpenApi(tag = "Tag::Operations")]
impl Drifts {
    /// Drift from OpenIM
    ///
    /// The results of the last run of the reconciler, and the number of marked groups by reason. Reads
    /// answer from the mirror and do not show drift.
    #[oai(path = "/drift", method = "get", operation_id = "drift")]
    async fn drift(&self, _key: ReadKey) -> Result<JsonResponse<DriftJson>, ReadFailure> {
        let (last, current) = self.store.last_runs().await?;
        let wanted = self.store.checks_wanted().await?;
        Ok(JsonResponse(DriftJson {
            compares: self.compares,
            last_run: last.map(RunJson::from),
            current_run: current.map(RunJson::from),
            checks_wanted: wanted.into_iter().map(MarkCount::from).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::DriftJson;
    use crate::http::json_response::assert_written_as_documented;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<DriftJson>();
    }
}
