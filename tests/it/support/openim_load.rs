//! The model of OpenIM as REST has shown a real one.

use serde_json::{Value, json};

use super::openim::{Creation, Group, Member, OpenIm, Values};
use super::openim_versions::Versions;

impl OpenIm {
    /// Holds a group as these answers have it, with the names and faces that were shown as its own.
    /// The version may be missing.
    pub fn load(&mut self, group: &Value, members: &[Value], version: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let id = text(&group["groupID"]);
        let names = Creation::open("", "", &[]).profile.into_keys();
        let profile: Values = names.map(|name| (name, group[name].clone())).collect();
        let members = members.iter().map(|row| {
            let values = [
                ("nickName", row["nickname"].clone()),
                ("faceURL", row["faceURL"].clone()),
                ("roleLevel", row["roleLevel"].clone()),
                ("ex", row["ex"].clone()),
            ];
            let member = Member {
                values: values.into(),
                is_unheard: true,
                join_millis: number(&row["joinTime"]),
                join_source: i32::try_from(number(&row["joinSource"])).unwrap(),
                inviter_user_id: text(&row["inviterUserID"]),
                operator_user_id: text(&row["operatorUserID"]),
                mute_end_millis: number(&row["muteEndTime"]),
            };
            (text(&row["userID"]), member)
        });
        let mut loaded = Group::new_as_read(&id, profile, members.collect());
        loaded.status = i32::try_from(number(&group["status"])).unwrap();
        loaded.created_millis = number(&group["createTime"]);
        loaded.stale_count = group["memberCount"].as_u64();
        if let Some(number) = version["version"].as_u64() {
            loaded.versions = Versions::at(text(&version["versionID"]), number);
        }
        let shown = loaded.shown();
        assert!(shown["ownerUserID"] == group["ownerUserID"] || loaded.is_dismissed());
        assert_eq!(json!(loaded.status), group["status"]);
        self.groups.insert(id, loaded);
    }
}
