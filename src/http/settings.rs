//! Settings of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::domain::Operators;
use crate::secret::Secret;

/// Settings of requests.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Keys of callbacks and reads.
    pub access: AccessSettings,
    /// Limits of request bodies.
    pub body: BodySettings,
    /// Limit of the memory of answers to reads, in bytes.
    pub max_answer_memory: u32,
    /// Timeouts of requests.
    pub timeouts: HttpTimeouts,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand.
    pub callback_next_code: i32,
    /// Users that callbacks name as callers of OpenIM's API.
    pub operators: Operators,
    /// True if the mirror is reconciled with OpenIM.
    pub compares: bool,
}

/// True after the request to stop the service. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// Makes the service not ready.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

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
