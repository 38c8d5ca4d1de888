//! The read of known drift between the mirror and OpenIM.

use poem_openapi::OpenApi;
use time::OffsetDateTime;

use crate::http::error::ReadFailure;
use crate::http::json_response::{
    JsonResponse, example_time, json_object, optional_rfc3339, rfc3339,
};
use crate::http::server::auth::{ReadKey, Tag};
use crate::store::{MarksByReason, Run, RunCounts, Store, run_counters};

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
        /// The current run, or a run whose process ended before the run was complete. null: none.
        current_run "currentRun" nullable: Option<RunJson> = None;
        /// Marked groups, by the last reason of each. `/groups?checkWanted=true` lists them.
        checks_wanted "checksWanted": Vec<MarkCount> = vec![MarkCount::example()];
    }
}

macro_rules! run_json {
    (
        counts { $($(#[$doc:meta])* $count:ident $json:literal;)+ }
        repairs { $($(#[$repair_doc:meta])* $repair:ident $repair_json:literal $kind:ident;)+ }
    ) => {
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
                /// Reason why the run ended early (openim_unavailable, database_unavailable, spooling,
                /// stopped, turn_lost) or did not repair everything (too_many_removals). null: a
                /// complete run.
                stopped_by "stoppedBy" nullable: Option<String> = None;
                $($(#[$doc])+ $count $json: i64 = EXAMPLE.$count;)+
                /// Repairs of drift.
                repairs "repairs": Repairs = Repairs::example();
            }
        }

        json_object! {
            /// Numbers of repaired rows.
            struct Repairs {
                $($(#[$repair_doc])+ $repair $repair_json: i64 = EXAMPLE.$repair;)+
            }
        }

        impl From<Run> for RunJson {
            fn from(run: Run) -> Self {
                let Run { id: _, age: _, started_at, ended_at, is_full, stopped_by, counts } = run;
                Self {
                    started_at,
                    ended_at,
                    is_full,
                    stopped_by,
                    $($count: counts.$count,)+
                    repairs: Repairs { $($repair: counts.$repair,)+ },
                }
            }
        }
    };
}
run_counters!(run_json);

const EXAMPLE: RunCounts = RunCounts {
    groups_seen: 10_000,
    groups_compared: 12,
    groups_left: 0,
    members_compared: 340,
    members_added: 2,
    members_removed: 0,
    members_changed: 1,
    details_changed: 9,
    groups_changed: 0,
    members_dismissed: 0,
};

json_object! {
    /// Number of groups that are marked for one reason.
    #[oai(rename = "ChecksWanted")]
    struct MarkCount from MarksByReason {
        /// As checkReason of a group.
        reason "reason" nullable: Option<String> = Some("member_unknown".into());
        /// Number of groups.
        groups "groups": i64 = 1;
        /// Time of the oldest mark.
        since "since": OffsetDateTime as "rfc3339" = example_time();
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
        let wanted = self.store.marks_by_reason().await?;
        Ok(JsonResponse(DriftJson {
            compares: self.compares,
            last_run: last.map(RunJson::from),
            current_run: current.map(RunJson::from),
            checks_wanted: wanted.into_iter().map(MarkCount::from).collect(),
        }))
    }
}
