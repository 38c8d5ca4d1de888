//! The structs of settings that requests depend on.

use std::time::Duration;

use crate::secret::Secret;

/// Keys of callbacks and reads.
#[derive(Clone, Debug)]
pub struct AccessSettings {
    /// User name of callbacks, without colons and control characters.
    pub callback_username: String,
    /// The password of callbacks and the previous one. Empty: callbacks need none.
    pub callback_passwords: Vec<Secret>,
    /// Tokens of reads, each of visible ASCII. Empty: reads need none.
    pub api_tokens: Vec<Secret>,
    /// True if an address that other machines can reach needs no keys.
    pub allow_anonymous: bool,
}

impl AccessSettings {
    /// True if callbacks and reads both have a key.
    pub fn is_complete(&self) -> bool {
        !self.callback_passwords.is_empty() && !self.api_tokens.is_empty()
    }
}

/// Limits of request bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodySettings {
    /// Limit of one body, in bytes.
    pub max_bytes: usize,
    /// Limit of all bodies together, in bytes; at least twice `max_bytes`.
    pub max_memory: u32,
}

/// Timeouts of requests. There is no setting for them, because OpenIM's longest timeout is 15 s. Tests set
/// them.
#[derive(Clone, Copy, Debug)]
pub struct HttpTimeouts {
    /// Timeout of the head of a request, from its first byte; of the first request, from the connection.
    pub head: Duration,
    /// Timeout of a body, from its head.
    pub body: Duration,
    /// Timeout of the wait for memory before a 503. OpenIM's usual timeout of 5 s is longer.
    pub memory: Duration,
    /// Timeout of the client to take a part of an answer.
    pub answer: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(15),
            body: Duration::from_secs(15),
            memory: Duration::from_secs(3),
            answer: Duration::from_secs(30),
        }
    }
}
