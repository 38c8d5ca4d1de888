//! GET /drift: the result of the last run, and the marked groups.

use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;

use super::Tag;
use super::auth::ReadKey;
use super::problem::ReadFailure;
use super::written::{Written, optional_rfc3339, rfc3339};
use crate::store::{MarksByReason, Run, RunCounts, Store, run_counters};

pub(super) struct Drifts {
    pub(super) store: Store,
    /// True if this instance has access to OpenIM's API.
    pub(super) compares: bool,
}

/// Equality of the mirror and OpenIM.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
struct Drift {
    /// True if this instance compares the mirror with OpenIM: OPENIM_API_URL is set.
    compares: bool,
    /// The last run that ended, of any instance. null if there was none.
    #[oai(nullable)]
    last_run: Option<Comparison>,
    /// The current run, or a run whose process ended before it. null if there is none.
    #[oai(nullable)]
    current_run: Option<Comparison>,
    /// Marked groups, by the last reason of each. `/groups?checkWanted=true` lists them.
    checks_wanted: Vec<ChecksWanted>,
}

macro_rules! documented_run {
    (
        counts { $($(#[$doc:meta])* $count:ident $json:literal;)+ }
        repairs { $($(#[$repair_doc:meta])* $repair:ident $repair_json:literal $kind:ident;)+ }
    ) => {
        /// A comparison of all groups with OpenIM.
        #[derive(Object, Serialize)]
        #[serde(rename_all = "camelCase")]
        #[oai(rename_all = "camelCase")]
        struct Comparison {
            /// Start of the run.
            #[serde(serialize_with = "rfc3339")]
            started_at: OffsetDateTime,
            /// End of the run.
            #[oai(nullable)]
            #[serde(serialize_with = "optional_rfc3339")]
            ended_at: Option<OffsetDateTime>,
            /// True if each group was read whole, and not only the groups that had changed.
            is_full: bool,
            /// Reason why the run was not complete (openim_unavailable, database_unavailable, spooling,
            /// stopped, turn_lost) or did not repair all (too_many_removals). null if it did.
            #[oai(nullable)]
            stopped_by: Option<String>,
            $($(#[$doc])* #[serde(rename = $json)] #[oai(rename = $json)] $count: i64,)+
            /// Rows that differed from OpenIM and were repaired.
            repairs: Repairs,
        }

        /// Rows that were repaired.
        #[derive(Object, Serialize)]
        struct Repairs {
            $($(#[$repair_doc])* #[serde(rename = $repair_json)] #[oai(rename = $repair_json)] $repair: i64,)+
        }

        impl From<Run> for Comparison {
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
                    $($count: counts.$count,)+
                    repairs: Repairs {
                        $($repair: counts.$repair,)+
                    },
                }
            }
        }
    };
}
run_counters!(documented_run);

/// Marked groups with the same last reason.
#[derive(Object, Serialize)]
struct ChecksWanted {
    /// The checkReason of the groups.
    #[oai(nullable)]
    reason: Option<String>,
    /// Number of groups.
    groups: i64,
    /// Time of the oldest mark.
    #[serde(serialize_with = "rfc3339")]
    since: OffsetDateTime,
}

impl From<MarksByReason> for ChecksWanted {
    fn from(marks: MarksByReason) -> Self {
        let MarksByReason {
            reason,
            groups,
            since,
        } = marks;
        Self {
            reason,
            groups,
            since,
        }
    }
}

impl Example for Drift {
    fn example() -> Self {
        let time = super::members::example_time();
        Self {
            compares: true,
            last_run: Some(Comparison::from(Run {
                id: 1,
                started_at: time,
                ended_at: Some(time + time::Duration::seconds(3)),
                is_full: false,
                stopped_by: None,
                counts: RunCounts {
                    groups_seen: 10_000,
                    groups_compared: 12,
                    members_compared: 340,
                    members_added: 2,
                    members_changed: 1,
                    details_changed: 9,
                    ..RunCounts::default()
                },
                age: 60.0,
            })),
            current_run: None,
            checks_wanted: vec![ChecksWanted {
                reason: Some("member_unknown".into()),
                groups: 1,
                since: time,
            }],
        }
    }
}

#[OpenApi(tag = "Tag::Operations")]
impl Drifts {
    /// Is the mirror equal to OpenIM?
    ///
    /// Shows what the last run has found and repaired, and the number of marked groups by reason. Reads of the
    /// mirror say nothing about that: they answer what the mirror has.
    #[oai(path = "/drift", method = "get", operation_id = "drift")]
    async fn drift(&self, _key: ReadKey) -> Result<Written<Drift>, ReadFailure> {
        let (last, current) = self.store.last_runs().await?;
        let marks = self.store.marks_by_reason().await?;
        Ok(Written(Drift {
            compares: self.compares,
            last_run: last.map(Comparison::from),
            current_run: current.map(Comparison::from),
            checks_wanted: marks.into_iter().map(ChecksWanted::from).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::written::assert_written_as_documented;
    use super::Drift;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<Drift>();
    }
}
