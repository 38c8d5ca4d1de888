//! Ids and texts that Postgres can hold. Parsing is the only way to make one, so no user of one checks it again.

use serde::{Deserialize, Serialize};

/// Length of the longest id, in bytes of UTF-8. A key has two ids, and Postgres limits an index row to a third of a
/// page (2,704 bytes).
pub const MAX_ID_BYTES: usize = 1024;

/// Reason why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty. No member and no group has an empty id.
    #[error("must not be empty")]
    Empty,
    /// Longer than [`MAX_ID_BYTES`].
    #[error("must be at most {MAX_ID_BYTES} bytes of UTF-8")]
    TooLong,
    /// Contains U+0000. Postgres cannot hold it, and an id without it is another id.
    #[error("must not contain U+0000")]
    Nul,
}

fn parse_id(id: String) -> Result<String, IdError> {
    if id.is_empty() {
        Err(IdError::Empty)
    } else if id.len() > MAX_ID_BYTES {
        Err(IdError::TooLong)
    } else if id.contains('\0') {
        Err(IdError::Nul)
    } else {
        Ok(id)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes a text of 1 to [`MAX_ID_BYTES`] bytes without U+0000. Does not trim, normalise or case-fold.
            ///
            /// # Errors
            /// [`IdError`] if the text is not an id.
            pub fn parse(id: String) -> Result<Self, IdError> {
                parse_id(id).map(Self)
            }

            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(id: String) -> Result<Self, IdError> {
                Self::parse(id)
            }
        }
    };
}

id!(
    /// OpenIM's groupID.
    GroupId
);
id!(
    /// OpenIM's userID.
    UserId
);

/// True for an operation id of OpenIM that a log line and a header can repeat: visible ASCII, at most 128 bytes.
pub fn is_usable_operation_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// A text value that Postgres can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Text(String);

impl Text {
    /// Takes any text. U+0000, which Postgres cannot hold, becomes U+FFFD. All other code points stay.
    pub fn parse(value: String) -> Self {
        if value.contains('\0') {
            Self(value.replace('\0', "\u{FFFD}"))
        } else {
            Self(value)
        }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Text {
    fn from(value: String) -> Self {
        Self::parse(value)
    }
}
