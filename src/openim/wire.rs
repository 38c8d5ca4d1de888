//! OpenIM's answers, exactly as sent: Go's `encoding/json` of its structs, so numbers are numbers,
//! zero values are there and lists without anything in them are null.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Deserializer};
use time::{Duration, OffsetDateTime};

use super::error::Oddity;
use crate::domain::{
    GroupId, GroupProfile, IdError, OpenImGroup, OpenImMember, Text, UserId, Version, to_micros,
};

/// Around every answer, whatever its HTTP status says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope<T> {
    pub(super) err_code: i64,
    #[serde(default)]
    pub(super) err_msg: String,
    #[serde(default)]
    pub(super) err_dlt: String,
    /// Not there on an error, nor where there is nothing to tell.
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
    /// Whether it can be sent: in the head of a request only so it is what it was.
    pub(super) fn check(&self) -> Result<(), Oddity> {
        let mut bytes = self.token.bytes();
        match !self.token.is_empty() && bytes.all(|byte| byte.is_ascii_graphic()) {
            true => Ok(()),
            false => Err(Oddity::NoToken),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Groups {
    #[serde(default)]
    pub(super) total: u64,
    #[serde(default, deserialize_with = "list")]
    pub(super) groups: Vec<GroupEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupEntry {
    group_info: Group,
    #[serde(default, rename = "groupOwnerUserID")]
    owner_user_id: String,
}

impl GroupInfos {
    /// Whether they are some of these, each once.
    pub(super) fn check(&self, groups: &[&GroupId]) -> Result<(), Oddity> {
        let groups = groups.iter().map(|group| group.as_str());
        let infos = self.group_infos.iter().map(|info| info.group_id.as_str());
        are_among(infos, groups, Oddity::OtherGroup)
    }
}

impl GroupEntry {
    /// The group, with its owner, who is told beside it too.
    pub(super) fn into_group(self) -> Group {
        let mut group = self.group_info;
        if group.owner_user_id.is_empty() {
            group.owner_user_id = self.owner_user_id;
        }
        group
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupInfos {
    #[serde(default, deserialize_with = "list")]
    pub(super) group_infos: Vec<Group>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Members {
    #[serde(default)]
    pub(super) total: u64,
    #[serde(default, deserialize_with = "list")]
    pub(super) members: Vec<Member>,
}

impl Members {
    /// Whether they are this group's.
    pub(super) fn check(&self, group: &GroupId) -> Result<(), Oddity> {
        are_of(&self.members, group)
    }

    /// The same, and each one of these users.
    pub(super) fn check_named(&self, group: &GroupId, users: &[&UserId]) -> Result<(), Oddity> {
        self.check(group)?;
        let users = users.iter().map(|user| user.as_str());
        let members = self.members.iter().map(|member| member.user_id.as_str());
        are_among(members, users, Oddity::OtherUser)
    }
}

fn are_of(members: &[Member], group: &GroupId) -> Result<(), Oddity> {
    let mut members = members.iter();
    match members.all(|member| member.group_id == group.as_str()) {
        true => Ok(()),
        false => Err(Oddity::OtherGroup),
    }
}

/// Whether each that is told was asked for, and is told once.
fn are_among<'a>(
    told: impl Iterator<Item = &'a str>,
    asked: impl Iterator<Item = &'a str>,
    else_is: Oddity,
) -> Result<(), Oddity> {
    let asked: HashSet<&str> = asked.collect();
    let mut seen = HashSet::new();
    for id in told {
        if !asked.contains(id) {
            return Err(else_is);
        }
        if !seen.insert(id) {
            return Err(Oddity::Twice);
        }
    }
    Ok(())
}

/// Who the members are.
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
    /// Whether each is told once: how many there are counts. Whose they are the answer does not say.
    pub(super) fn check(&self) -> Result<(), Oddity> {
        let mut seen = HashSet::with_capacity(self.user_ids.len());
        match self.user_ids.iter().all(|id| seen.insert(id)) {
            true => Ok(()),
            false => Err(Oddity::Twice),
        }
    }

    pub(super) fn version(&self) -> Version {
        Version {
            id: self.version_id.clone(),
            number: self.version,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Deltas {
    #[serde(default)]
    pub(super) resp_list: Option<HashMap<String, Delta>>,
}

impl Deltas {
    /// Whether they are of some of these groups, since these versions.
    pub(super) fn check(&self, groups: &[(&GroupId, &Version)]) -> Result<(), Oddity> {
        let groups = groups
            .iter()
            .map(|(group, version)| (group.as_str(), (*group, *version)));
        let groups: HashMap<&str, (&GroupId, &Version)> = groups.collect();
        for (id, delta) in self.resp_list.iter().flatten() {
            let Some((group, version)) = groups.get(id.as_str()) else {
                return Err(Oddity::OtherGroup);
            };
            delta.check(group, Some(version))?;
        }
        Ok(())
    }
}

/// What has changed since a version.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Delta {
    pub(super) version: u64,
    #[serde(rename = "versionID")]
    pub(super) version_id: String,
    /// Too much has, or the version is none of this counter: the lists are empty.
    pub(super) full: bool,
    #[serde(deserialize_with = "list")]
    pub(super) delete: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub(super) insert: Vec<Member>,
    #[serde(deserialize_with = "list")]
    pub(super) update: Vec<Member>,
    pub(super) group: Option<Group>,
}

impl Delta {
    /// Whether it is of this group, since this version. Each group has a count of versions of its own.
    pub(super) fn check(&self, group: &GroupId, since: Option<&Version>) -> Result<(), Oddity> {
        are_of(&self.insert, group)?;
        are_of(&self.update, group)?;
        let told = self.group.as_ref();
        if told.is_some_and(|told| told.group_id != group.as_str()) {
            return Err(Oddity::OtherGroup);
        }
        // Of another count, or of a lower version, all of the group is to be read.
        let is_since = |since: &Version| {
            self.full || (self.version_id == since.id && self.version >= since.number)
        };
        match since.is_none_or(is_since) {
            true => Ok(()),
            false => Err(Oddity::OtherVersion),
        }
    }

    pub(super) fn version(&self) -> Version {
        Version {
            id: self.version_id.clone(),
            number: self.version,
        }
    }

    /// Whether nothing has changed.
    pub(super) fn is_at(&self, version: &Version) -> bool {
        !self.full && self.version == version.number && self.version_id == version.id
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Group {
    #[serde(rename = "groupID")]
    pub(super) group_id: String,
    group_name: String,
    notification: String,
    introduction: String,
    #[serde(rename = "faceURL")]
    face_url: String,
    #[serde(rename = "ownerUserID")]
    owner_user_id: String,
    create_time: i64,
    pub(super) member_count: u64,
    ex: String,
    status: i32,
    group_type: i32,
    need_verification: i32,
    look_member_info: i32,
    apply_member_friend: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Member {
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

/// Milliseconds since 1970; 0, and what is no time, is none.
fn time(millis: i64) -> Option<OffsetDateTime> {
    if millis <= 0 {
        return None;
    }
    let time = OffsetDateTime::UNIX_EPOCH.checked_add(Duration::milliseconds(millis))?;
    Some(to_micros(time))
}

impl Group {
    /// Its id, if the mirror can hold it.
    pub(super) fn id(&self) -> Result<GroupId, IdError> {
        GroupId::parse(self.group_id.clone())
    }

    pub(super) fn held(self) -> OpenImGroup {
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
            // Empty where the group has none.
            owner: UserId::parse(self.owner_user_id).ok(),
            status: self.status,
            group_type: self.group_type,
            created_in_openim_at: time(self.create_time),
        }
    }
}

impl Member {
    /// The user, if the mirror can hold the id, and what OpenIM holds.
    pub(super) fn held(self) -> Result<(UserId, OpenImMember), IdError> {
        let held = OpenImMember {
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
        Ok((UserId::parse(self.user_id)?, held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_that_a_head_can_hold() {
        let check = |token: &str| {
            let token = token.to_owned();
            Token { token }.check()
        };
        assert_eq!(check("eyJhbGciOiJIUzI1NiJ9.eyJVc2VySUQi-_.x~"), Ok(()));
        for odd in ["", " ", "a b", "a\r\nb", "a\n", "\u{0}", "a\u{7f}", "ä"] {
            assert_eq!(check(odd), Err(Oddity::NoToken), "{odd:?}");
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
        let members: Members = serde_json::from_str(r#"{"total":0,"members":null}"#).unwrap();
        assert!(members.members.is_empty());
        let deltas: Deltas = serde_json::from_str(r#"{"respList":null}"#).unwrap();
        assert!(deltas.resp_list.is_none());
        let ids: MemberIds =
            serde_json::from_str(r#"{"version":3,"versionID":"v","equal":false,"userIDs":null}"#)
                .unwrap();
        assert_eq!((ids.version().number, ids.user_ids), (3, vec![]));
    }

    #[test]
    fn no_time_is_none() {
        assert_eq!(time(0), None);
        assert_eq!(time(-1), None);
        assert_eq!(time(i64::MAX), None);
        let some = time(1_751_450_000_123).unwrap();
        assert_eq!(some.unix_timestamp_nanos(), 1_751_450_000_123_000_000);
    }
}
