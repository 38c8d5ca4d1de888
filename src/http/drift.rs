//! How far the mirror is known to be as in OpenIM.

use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;

use super::Tag;
use super::auth::ReadKey;
use super::problem::ReadFailure;
use super::written::{Written, optional_rfc3339, rfc3339};
use crate::store::{Run, Store, WantedByReason};

pub(super) struct Drifts {
    pub(super) store: Store,
    /// Whether this instance has access to OpenIM's API.
    pub(super) compares: bool,
}

/// How far the mirror is known to be as in OpenIM.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
struct Drift {
    /// Whether this instance compares the mirror with OpenIM: OPENIM_API_URL is set.
    compares: bool,
    /// The last comparison of all groups that ended, by any instance; null where there was none.
    #[oai(nullable)]
    last_run: Option<Comparison>,
    /// The one that goes on, or whose process ended before it did; null where there is none.
    #[oai(nullable)]
    current_run: Option<Comparison>,
    /// Groups that want a check, by the last reason of each. `/groups?checkWanted=true` lists them.
    checks_wanted: Vec<ChecksWanted>,
}

/// A comparison of all groups.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
struct Comparison {
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    started_at: OffsetDateTime,
    /// When it ended.
    #[oai(nullable)]
    #[serde(serialize_with = "optional_rfc3339")]
    ended_at: Option<OffsetDateTime>,
    /// Whether each group was read as a whole, not only those that had changed.
    is_full: bool,
    /// Why it did not come to its end (openim_unavailable, database_unavailable, spooling, stopped,
    /// turn_lost) or
    /// did not repair all (too_many_removals); null where it did.
    #[oai(nullable)]
    stopped_by: Option<String>,
    /// Groups that it went through.
    groups_seen: i64,
    /// Those of them that were read from OpenIM: the others had not changed.
    groups_compared: i64,
    /// Those that could not be read, or were left for somebody to decide.
    groups_left: i64,
    /// Members that were compared.
    members_compared: i64,
    /// What was not as in OpenIM and was made so.
    repairs: Repairs,
}

/// Rows that were made as in OpenIM.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
struct Repairs {
    /// Members whom the mirror did not have.
    member_added: i64,
    /// Members whom OpenIM does not have.
    member_removed: i64,
    /// Members with another value.
    member_changed: i64,
    /// Members of whom only what no callback tells was missing or has changed, such as the name of
    /// their profile. No drift.
    details_changed: i64,
    /// Groups with another value of their own.
    group_changed: i64,
}

/// Groups that want a check for one reason.
#[derive(Object, Serialize)]
struct ChecksWanted {
    /// As checkReason of a group.
    #[oai(nullable)]
    reason: Option<String>,
    /// How many.
    groups: i64,
    /// Since when the first of them does.
    #[serde(serialize_with = "rfc3339")]
    since: OffsetDateTime,
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

impl From<WantedByReason> for ChecksWanted {
    fn from(wanted: WantedByReason) -> Self {
        let WantedByReason {
            reason,
            groups,
            since,
        } = wanted;
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
            last_run: Some(Comparison {
                started_at: time,
                ended_at: Some(time + time::Duration::seconds(3)),
                is_full: false,
                stopped_by: None,
                groups_seen: 10_000,
                groups_compared: 12,
                groups_left: 0,
                members_compared: 340,
                repairs: Repairs {
                    member_added: 2,
                    member_removed: 0,
                    member_changed: 1,
                    details_changed: 9,
                    group_changed: 0,
                },
            }),
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
    /// Is the mirror as in OpenIM?
    ///
    /// What the last comparison with OpenIM has found and repaired, and how many groups want a check
    /// and why. Reads of the mirror say nothing of that: they answer what is known.
    #[oai(path = "/drift", method = "get", operation_id = "drift")]
    async fn drift(&self, _key: ReadKey) -> Result<Written<Drift>, ReadFailure> {
        let (last, current) = self.store.last_runs().await?;
        let wanted = self.store.checks_wanted().await?;
        Ok(Written(Drift {
            compares: self.compares,
            last_run: last.map(Comparison::from),
            current_run: current.map(Comparison::from),
            checks_wanted: wanted.into_iter().map(ChecksWanted::from).collect(),
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
