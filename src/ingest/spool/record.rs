//! What waits, as it is written: JSON, so that another version can read it as far as it knows it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;

use crate::domain::{Change, Rejected};

/// Something that waits.
#[derive(Clone)]
pub(in crate::ingest) enum Entry {
    /// To be written to the mirror.
    Change(Change),
    /// To be kept.
    Rejected(Rejected),
}

/// The same, of somebody else.
#[derive(Clone, Copy)]
pub(in crate::ingest) enum EntryRef<'a> {
    /// To be written to the mirror.
    Change(&'a Change),
    /// To be kept.
    Rejected(&'a Rejected),
}

impl<'a> From<&'a Entry> for EntryRef<'a> {
    fn from(entry: &'a Entry) -> Self {
        match entry {
            Entry::Change(change) => Self::Change(change),
            Entry::Rejected(rejected) => Self::Rejected(rejected),
        }
    }
}

/// What a row holds. Stored as a number; never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Change,
    Rejected,
}

impl Kind {
    pub(super) fn code(self) -> i64 {
        match self {
            Self::Change => 1,
            Self::Rejected => 2,
        }
    }

    pub(super) fn of_code(code: i64) -> Option<Self> {
        [Self::Change, Self::Rejected]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

impl EntryRef<'_> {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Change(_) => Kind::Change,
            Self::Rejected(_) => Kind::Rejected,
        }
    }

    pub(super) fn received_at(self) -> OffsetDateTime {
        match self {
            Self::Change(change) => change.received_at,
            Self::Rejected(rejected) => rejected.received_at,
        }
    }

    /// Whether it only marks a group to be checked.
    pub(super) fn is_mark(self) -> bool {
        matches!(self, Self::Change(change) if change.event.is_mark())
    }

    pub(super) fn encode(self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Change(change) => serde_json::to_vec(change),
            Self::Rejected(rejected) => serde_json::to_vec(&RejectedRef(rejected)),
        }
    }
}

impl Entry {
    pub(super) fn decode(kind: Kind, record: &[u8]) -> serde_json::Result<Self> {
        Ok(match kind {
            Kind::Change => Self::Change(serde_json::from_slice(record)?),
            Kind::Rejected => {
                let RejectedOwned(rejected) = serde_json::from_slice(record)?;
                Self::Rejected(rejected)
            }
        })
    }
}

/// A change as it is written.
pub(in crate::ingest) fn write_change(change: &Change) -> Vec<u8> {
    // It cannot fail: there are no maps with odd keys in a record.
    EntryRef::Change(change).encode().unwrap_or_default()
}

/// A change that was written.
///
/// # Errors
/// Where it stops to be one; quotes nothing of it.
pub(in crate::ingest) fn read_change(record: &[u8]) -> Result<Change, String> {
    serde_json::from_slice(record)
        .map_err(|error| format!("expected a change; stopped at column {}", error.column()))
}

/// [`Rejected`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Rejected")]
struct RejectedRecord {
    #[serde(with = "time::serde::timestamp::microseconds")]
    received_at: OffsetDateTime,
    path: String,
    operation_id: Option<String>,
    code: String,
    detail: String,
    #[serde(with = "as_base64")]
    body: Bytes,
    body_bytes: u64,
}

#[derive(Serialize)]
struct RejectedRef<'a>(#[serde(with = "RejectedRecord")] &'a Rejected);

#[derive(Deserialize)]
struct RejectedOwned(#[serde(with = "RejectedRecord")] Rejected);

/// A body is any bytes.
mod as_base64 {
    use super::*;

    pub(super) fn serialize<S: Serializer>(body: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(body))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        let body = STANDARD.decode(text);
        // Its own error quotes a byte of the body.
        Ok(body
            .map_err(|_| serde::de::Error::custom("not base64"))?
            .into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_change, any_rejected, same};
    use super::*;

    fn decoded(entry: &Entry) -> Entry {
        let entry = EntryRef::from(entry);
        Entry::decode(entry.kind(), &entry.encode().unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn any_change_comes_back(change in any_change()) {
            let entry = Entry::Change(change);
            prop_assert!(same(&decoded(&entry), &entry));
        }

        #[test]
        fn any_rejected_callback_comes_back(rejected in any_rejected()) {
            let entry = Entry::Rejected(rejected.0);
            prop_assert!(same(&decoded(&entry), &entry));
        }
    }

    fn decode(record: &str) -> serde_json::Result<String> {
        let entry = Entry::decode(Kind::Change, record.as_bytes())?;
        Ok(String::from_utf8(EntryRef::from(&entry).encode()?).unwrap())
    }

    /// Records of this form lie on disks.
    #[test]
    fn the_form_of_a_record_stays() {
        for record in [
            r#"{"group_id":"g","received_at":1790000000000001,"event":{"join":"u"}}"#,
            r#"{"group_id":"g","received_at":-1,"event":"dismiss"}"#,
            r#"{"group_id":"g","received_at":1,"event":{"transfer":{"old_owner":"a","new_owner":"b"}}}"#,
            r#"{"group_id":"g","received_at":1,"event":{"kick":{"user_ids":["a"],"is_incomplete":false}}}"#,
            r#"{"group_id":"g","received_at":1,"event":{"want_check":"callback_lost"}}"#,
            r#"{"group_id":"g","received_at":1,"event":{"want_check_if_dismissed":"notified"}}"#,
            r#"{"group_id":"g","received_at":1,"event":{"set_member":{"user_id":"u","nickname":"","face_url":null,"role_level":20,"ex":null}}}"#,
        ] {
            assert_eq!(decode(record).unwrap(), record);
        }
    }

    #[test]
    fn what_a_newer_version_adds_is_passed_over_but_not_a_new_event() {
        let newer = r#"{"group_id":"g","received_at":1,"later":[1],"event":{"set_member":{"user_id":"u","nickname":"","more":{}}}}"#;
        let known = r#"{"group_id":"g","received_at":1,"event":{"set_member":{"user_id":"u","nickname":"","face_url":null,"role_level":null,"ex":null}}}"#;
        assert_eq!(decode(newer).unwrap(), known);
        for bad in [
            r#"{"group_id":"g","received_at":1,"event":{"mute":"u"}}"#,
            r#"{"group_id":"g","received_at":1,"event":{"want_check":"unheard_of"}}"#,
            r#"{"group_id":"","received_at":1,"event":"dismiss"}"#,
            r#"{"group_id":"g","received_at":1,"event":{"join":"a\u0000b"}}"#,
            r#"{"group_id":"g","received_at":1}"#,
        ] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
