//! A callback that could not be understood.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::record::as_base64;

/// Most of a body that is kept, in bytes.
pub const MAX_KEPT_BYTES: usize = 1 << 20;

/// A callback that was answered with an error because of its body, as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub struct Rejected {
    /// When it came.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub received_at: OffsetDateTime,
    /// The path it was sent to.
    pub path: String,
    /// OpenIM's request header, if it was there.
    pub operation_id: Option<String>,
    /// Why: a stable code.
    pub code: String,
    /// Why: what exactly. Quotes no value of the body.
    pub detail: String,
    /// The body as it came, the first [`MAX_KEPT_BYTES`] of it.
    #[serde(with = "as_base64")]
    pub body: Bytes,
    /// The whole length of the body.
    pub body_bytes: u64,
}

impl Rejected {
    /// Whether the body was too long to be kept whole.
    pub fn is_cut(&self) -> bool {
        self.body_bytes > self.body.len() as u64
    }
}
