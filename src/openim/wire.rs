//! OpenIM's answers in JSON. OpenIM writes its structs with Go's `encoding/json`: numbers are numbers, zero values are
//! present, and empty lists are null.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Deserializer};
use time::{Duration, OffsetDateTime};

use super::error::Mismatch;
use crate::domain::{
    GroupId, GroupProfile, IdError, OpenImGroup, OpenImMember, Text, UserId, Version, to_micros,
};

/// Envelope of every answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope<T> {
    pub(super) err_code: i64,
    #[serde(default)]
    pub(super) err_msg: String,
    #[serde(default)]
    pub(super) err_dlt: String,
    /// Absent on an error, or if there is no data.
    pub(super) data: Option<T>,
}

fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Token {
    #[serde(default)]
    pub(super) token: String,
}

impl Token {
    /// Refuses a token that an HTTP header cannot hold unchanged.
    pub(super) fn check(&self) -> Result<(), Mismatch> {
        let mut bytes = self.token.bytes();
        match !self.token.is_empty() && bytes.all(|byte| byte.is_ascii_graphic()) {
            true => Ok(()),
            false => Err(Mismatch::NoToken),
        }
    }
}

/// ListPage of all groups.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ListedGroups {
    #[serde(default)]
    pub(crate) total: u64,
    #[serde(default, deserialize_with = "list")]
    pub(crate) groups: Vec<GroupEntry>,
}

/// Group in a page of all groups.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupEntry {
    group_info: GroupInfo,
    #[serde(default, rename = "groupOwnerUserID")]
    owner_user_id: String,
}

impl GroupEntry {
    /// The group with its owner, which OpenIM may send only beside it.
    pub(crate) fn into_group(self) -> GroupInfo {
        let mut group = self.group_info;
        if group.owner_user_id.is_empty() {
            group.owner_user_id = self.owner_user_id;
        }
        group
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupInfoList {
    #[serde(default, deserialize_with = "list")]
    pub(super) group_infos: Vec<GroupInfo>,
}

impl GroupInfoList {
    /// Refuses groups that the request does not name, and duplicates.
    pub(super) fn check(&self, groups: &[&GroupId]) -> Result<(), Mismatch> {
        let groups = groups.iter().map(|group| group.as_str());
        let infos = self.group_infos.iter().map(|info| info.group_id.as_str());
        are_among(infos, groups, Mismatch::OtherGroup)
    }
}

/// ListPage of a group's members, or the members that a call names.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListedMembers {
    #[serde(default)]
    pub(super) total: u64,
    #[serde(default, deserialize_with = "list")]
    pub(super) members: Vec<MemberInfo>,
}

impl ListedMembers {
    /// Refuses members of another group.
    pub(super) fn check(&self, group: &GroupId) -> Result<(), Mismatch> {
        are_of(&self.members, group)
    }

    /// Refuses members of another group, users that the request does not name, and duplicates.
    pub(super) fn check_named(&self, group: &GroupId, users: &[&UserId]) -> Result<(), Mismatch> {
        self.check(group)?;
        let users = users.iter().map(|user| user.as_str());
        let members = self.members.iter().map(|member| member.user_id.as_str());
        are_among(members, users, Mismatch::OtherUser)
    }
}

fn are_of(members: &[MemberInfo], group: &GroupId) -> Result<(), Mismatch> {
    let mut members = members.iter();
    match members.all(|member| member.group_id == group.as_str()) {
        true => Ok(()),
        false => Err(Mismatch::OtherGroup),
    }
}

/// Refuses ids that were not asked for, and duplicates.
fn are_among<'a>(
    answered: impl Iterator<Item = &'a str>,
    asked: impl Iterator<Item = &'a str>,
    mismatch: Mismatch,
) -> Result<(), Mismatch> {
    let asked: HashSet<&str> = asked.collect();
    let mut seen = HashSet::new();
    for id in answered {
        if !asked.contains(id) {
            return Err(mismatch);
        }
        if !seen.insert(id) {
            return Err(Mismatch::Twice);
        }
    }
    Ok(())
}

/// Ids of a group's members.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MemberIds {
    version: u64,
    #[serde(rename = "versionID")]
    version_id: String,
    #[serde(rename = "userIDs", deserialize_with = "list")]
    pub(super) user_ids: Vec<String>,
}

impl MemberIds {
    /// Refuses duplicates, because the number of ids counts. The answer does not name its group.
    pub(super) fn check(&self) -> Result<(), Mismatch> {
        let mut seen = HashSet::with_capacity(self.user_ids.len());
        match self.user_ids.iter().all(|id| seen.insert(id)) {
            true => Ok(()),
            false => Err(Mismatch::Twice),
        }
    }

    pub(super) fn version(&self) -> Version {
        Version {
            id: self.version_id.clone(),
            number: self.version,
        }
    }
}

/// Changes of several groups.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Deltas {
    #[serde(default)]
    pub(super) resp_list: Option<HashMap<String, Delta>>,
}

impl Deltas {
    /// Refuses groups that the request does not name, and changes since other versions.
    pub(super) fn check(&self, groups: &[(&GroupId, &Version)]) -> Result<(), Mismatch> {
        let groups = groups
            .iter()
            .map(|(group, version)| (group.as_str(), (*group, *version)));
        let groups: HashMap<&str, (&GroupId, &Version)> = groups.collect();
        for (id, delta) in self.resp_list.iter().flatten() {
            let Some((group, version)) = groups.get(id.as_str()) else {
                return Err(Mismatch::OtherGroup);
            };
            delta.check(group, Some(version))?;
        }
        Ok(())
    }
}

/// Changes of a group since a version.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Delta {
    pub(super) version: u64,
    #[serde(rename = "versionID")]
    pub(super) version_id: String,
    /// True if OpenIM cannot list the changes: they are too many, or the version has another id. The lists are empty
    /// then.
    pub(crate) full: bool,
    #[serde(deserialize_with = "list")]
    pub(super) delete: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub(super) insert: Vec<MemberInfo>,
    #[serde(deserialize_with = "list")]
    pub(super) update: Vec<MemberInfo>,
    pub(super) group: Option<GroupInfo>,
}

impl Delta {
    /// Refuses changes of another group, or since another version. Each group counts its own versions.
    pub(super) fn check(&self, group: &GroupId, since: Option<&Version>) -> Result<(), Mismatch> {
        are_of(&self.insert, group)?;
        are_of(&self.update, group)?;
        let info = self.group.as_ref();
        if info.is_some_and(|info| info.group_id != group.as_str()) {
            return Err(Mismatch::OtherGroup);
        }
        // With another id, or a lower number, the changes say nothing: the whole group has to be read.
        let is_since = |since: &Version| {
            self.full || (self.version_id == since.id && self.version >= since.number)
        };
        match since.is_none_or(is_since) {
            true => Ok(()),
            false => Err(Mismatch::OtherVersion),
        }
    }

    pub(super) fn version(&self) -> Version {
        Version {
            id: self.version_id.clone(),
            number: self.version,
        }
    }

    /// True if nothing has changed since the version.
    pub(crate) fn is_at(&self, version: &Version) -> bool {
        !self.full && self.version == version.number && self.version_id == version.id
    }
}

/// Group, without its members.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GroupInfo {
    #[serde(rename = "groupID")]
    pub(crate) group_id: String,
    group_name: String,
    notification: String,
    introduction: String,
    #[serde(rename = "faceURL")]
    face_url: String,
    #[serde(rename = "ownerUserID")]
    owner_user_id: String,
    create_time: i64,
    pub(crate) member_count: u64,
    ex: String,
    status: i32,
    group_type: i32,
    need_verification: i32,
    look_member_info: i32,
    apply_member_friend: i32,
}

/// Member of a group.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MemberInfo {
    #[serde(rename = "groupID")]
    group_id: String,
    #[serde(rename = "userID")]
    user_id: String,
    role_level: i32,
    join_time: i64,
    nickname: String,
    #[serde(rename = "faceURL")]
    face_url: String,
    join_source: i32,
    #[serde(rename = "operatorUserID")]
    operator_user_id: String,
    ex: String,
    mute_end_time: i64,
    #[serde(rename = "inviterUserID")]
    inviter_user_id: String,
}

/// Parses milliseconds since 1970. Numbers up to 0, or out of range, are no time.
fn time(millis: i64) -> Option<OffsetDateTime> {
    if millis <= 0 {
        return None;
    }
    let time = OffsetDateTime::UNIX_EPOCH.checked_add(Duration::milliseconds(millis))?;
    Some(to_micros(time))
}

impl GroupInfo {
    /// The group's id. Fails if the mirror cannot keep it.
    pub(crate) fn id(&self) -> Result<GroupId, IdError> {
        GroupId::parse(self.group_id.clone())
    }

    /// The group in the domain's form.
    pub(crate) fn into_domain(self) -> OpenImGroup {
        let text = |text: String| Some(Text::parse(text));
        OpenImGroup {
            profile: GroupProfile {
                name: text(self.group_name),
                notification: text(self.notification),
                introduction: text(self.introduction),
                face_url: text(self.face_url),
                ex: text(self.ex),
                need_verification: Some(self.need_verification),
                look_member_info: Some(self.look_member_info),
                apply_member_friend: Some(self.apply_member_friend),
            },
            // Empty if the group has none.
            owner: UserId::parse(self.owner_user_id).ok(),
            status: self.status,
            group_type: self.group_type,
            created_in_openim_at: time(self.create_time),
        }
    }
}

impl MemberInfo {
    /// The member in the domain's form, with its user id. Fails if the mirror cannot keep the id.
    pub(super) fn into_domain(self) -> Result<(UserId, OpenImMember), IdError> {
        let member = OpenImMember {
            display_nickname: Text::parse(self.nickname),
            display_face_url: Text::parse(self.face_url),
            role_level: self.role_level,
            ex: Text::parse(self.ex),
            joined_at: time(self.join_time),
            join_source: self.join_source,
            inviter: Text::parse(self.inviter_user_id),
            operator: Text::parse(self.operator_user_id),
            mute_end_at: time(self.mute_end_time),
        };
        Ok((UserId::parse(self.user_id)?, member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_to_fit_in_a_header() {
        let check = |token: &str| {
            let token = token.to_owned();
            Token { token }.check()
        };
        assert_eq!(check("eyJhbGciOiJIUzI1NiJ9.eyJVc2VySUQi-_.x~"), Ok(()));
        for bad in ["", " ", "a b", "a\r\nb", "a\n", "\u{0}", "a\u{7f}", "ä"] {
            assert_eq!(check(bad), Err(Mismatch::NoToken), "{bad:?}");
        }
    }

    #[test]
    fn null_lists_are_empty_and_versions_fill_64_bits() {
        let delta: Envelope<Delta> = serde_json::from_str(
            r#"{"errCode":0,"errMsg":"","errDlt":"","data":{"version":18446744073709551615,
                "versionID":"v","full":false,"delete":null,"insert":null,"update":null,
                "group":null,"sortVersion":0}}"#,
        )
        .unwrap();
        let delta = delta.data.unwrap();
        assert_eq!(delta.version().number, u64::MAX);
        assert!(delta.is_at(&delta.version()));
        assert!(delta.insert.is_empty() && delta.delete.is_empty());
        let members: ListedMembers = serde_json::from_str(r#"{"total":0,"members":null}"#).unwrap();
        assert!(members.members.is_empty());
        let deltas: Deltas = serde_json::from_str(r#"{"respList":null}"#).unwrap();
        assert!(deltas.resp_list.is_none());
        let ids: MemberIds =
            serde_json::from_str(r#"{"version":3,"versionID":"v","equal":false,"userIDs":null}"#)
                .unwrap();
        assert_eq!((ids.version().number, ids.user_ids), (3, vec![]));
    }

    #[test]
    fn a_number_out_of_range_is_no_time() {
        assert_eq!(time(0), None);
        assert_eq!(time(-1), None);
        assert_eq!(time(i64::MAX), None);
        let some = time(1_751_450_000_123).unwrap();
        assert_eq!(some.unix_timestamp_nanos(), 1_751_450_000_123_000_000);
    }
}
