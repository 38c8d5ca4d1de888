//! Reads about a group as a whole.

use poem_openapi::param::Path;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;

use super::auth::ReadKey;
use super::error::{Code, Error};
use super::problem::ReadFailure;
use super::written::{Written, rfc3339};
use super::{Tag, params};
use crate::store::{GroupSummary, Store};

pub(super) struct Groups {
    pub(super) store: Store,
}

/// A group in numbers.
#[derive(Object, Serialize)]
#[oai(example)]
struct Group {
    /// The group.
    #[oai(rename = "groupID")]
    #[serde(rename = "groupID")]
    group_id: String,
    /// How many current members it has.
    #[oai(rename = "memberCount")]
    #[serde(rename = "memberCount")]
    member_count: i64,
    /// The same by role level, the unknown (null) last; no role without members.
    roles: Vec<RoleMembers>,
    /// When a value of one of its members last changed, or one left.
    #[oai(rename = "newestChange")]
    #[serde(rename = "newestChange", serialize_with = "rfc3339")]
    newest_change: OffsetDateTime,
}

/// How many current members have a role level.
#[derive(Object, Serialize)]
struct RoleMembers {
    /// 100 owner, 60 admin, 20 ordinary member; null where OpenIM has never told.
    #[oai(rename = "roleLevel", nullable)]
    #[serde(rename = "roleLevel")]
    role_level: Option<i32>,
    /// How many.
    members: i64,
}

impl Example for Group {
    fn example() -> Self {
        let role = |role_level, members| RoleMembers {
            role_level,
            members,
        };
        Self {
            group_id: "12345".into(),
            member_count: 4,
            roles: vec![role(Some(20), 2), role(Some(100), 1), role(None, 1)],
            newest_change: super::members::example_time(),
        }
    }
}

#[OpenApi(tag = "Tag::Reads")]
impl Groups {
    /// One group in numbers
    ///
    /// Counts current members, in all and per role level. Cost: reads every member of the group,
    /// about 0.2 s for a million held in memory; the lists cost the same for a group of any size.
    #[oai(path = "/groups/:groupID", method = "get", operation_id = "getGroup")]
    async fn group(
        &self,
        _key: ReadKey,
        /// The group, percent-encoded.
        #[oai(name = "groupID", example = "params::example_group")]
        group_id: Path<String>,
    ) -> Result<Written<Group>, ReadFailure> {
        let group = params::group_id(group_id.0)?;
        let Some(summary) = self.store.group(&group).await? else {
            let detail = "groupID: no callback has named it yet";
            return Err(Error::new(Code::GroupUnknown, detail).into());
        };
        let GroupSummary {
            by_role,
            newest_change,
        } = summary;
        let roles: Vec<RoleMembers> = by_role
            .into_iter()
            .map(|count| RoleMembers {
                role_level: count.role_level,
                members: count.members,
            })
            .collect();
        Ok(Written(Group {
            group_id: group.as_str().to_owned(),
            member_count: roles.iter().map(|role| role.members).sum(),
            roles,
            newest_change,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::written::assert_written_as_documented;
    use super::Group;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<Group>();
    }
}
