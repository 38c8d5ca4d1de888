//! A callback that could not be understood.

use bytes::Bytes;
use time::OffsetDateTime;

/// Most of a body that is kept, in bytes.
pub const MAX_KEPT_BYTES: usize = 1 << 20;

/// A callback that was answered with an error because of its body, as it is kept.
#[derive(Clone)]
pub struct Rejected {
    /// When it came.
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
