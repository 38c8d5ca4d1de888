//! Records: the JSON form in which changes, rejected callbacks and requests lie on disks. A newer version may add
//! fields, which older versions ignore.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;

/// An HTTP request as it was received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Time of receipt.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub received_at: OffsetDateTime,
    /// Path of the URL.
    pub path: String,
    /// Query of the URL, without the question mark.
    pub query: Option<String>,
    /// Headers in their order.
    pub headers: Vec<(String, Raw)>,
    /// Body.
    pub body: Raw,
}

/// Bytes that a record holds as base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Raw(#[serde(with = "as_base64")] pub Bytes);

/// Record of a change, a rejected callback or a request.
pub fn to_record(content: &impl Serialize) -> Vec<u8> {
    // It cannot fail: there are no maps with keys that are not text.
    serde_json::to_vec(content).unwrap_or_default()
}

/// Content of a record.
///
/// # Errors
/// The record has another form. The text quotes nothing of it.
pub fn from_record<T: DeserializeOwned>(record: &[u8]) -> Result<T, String> {
    serde_json::from_slice(record)
        .map_err(|error| format!("{:?} at column {}", error.classify(), error.column()))
}

pub(super) mod as_base64 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        // The error of the decoder quotes a byte.
        let bytes = STANDARD.decode(String::deserialize(from)?);
        let bytes = bytes.map_err(|_| serde::de::Error::custom("not base64"))?;
        Ok(bytes.into())
    }
}
