//! The HTTP API: callbacks of OpenIM, reads of a backend, operations. The only room that names poem.

mod body;
mod callbacks;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod json_response;
mod openapi;
mod ops;
mod reads;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

use openapi::Document;
pub use server::connection::serve;
use server::middleware::Api;

use crate::domain::{Change, Operators};
use crate::ingest::Ingest;
use crate::secret::Secret;
use crate::store::Store;
use crate::telemetry::Metrics;

/// The OpenAPI document as JSON.
///
/// # Errors
/// If the document cannot be written as JSON, which is a bug.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    let json = Document::of::<Api>()?.json;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// The change of a callback to `path` that arrived at `received_at`.
///
/// # Errors
/// The code and the detail of the answer.
pub fn understand(path: &str, body: &[u8], received_at: OffsetDateTime) -> Result<Change, String> {
    let parsed = callbacks::understand(path, body).map_err(|error| error.to_string())?;
    Ok(Change::new(parsed.group_id, received_at, parsed.content))
}

/// OpenIM's switches of the callbacks that the mirror needs, in the order of the document.
pub fn webhook_switches() -> impl Iterator<Item = &'static str> {
    callbacks::DECLARED
        .iter()
        .filter_map(|declared| declared.switch)
}

/// Parts of the service that requests use.
#[derive(Clone, Debug)]
pub struct HttpParts {
    /// Answers reads.
    pub store: Store,
    /// Takes changes.
    pub ingest: Ingest,
    /// Counts requests.
    pub metrics: Metrics,
    /// Says when the service stops.
    pub stopping: Stopping,
}

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

    fn has_begun(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::error::{Code, Side, expected_parameter};
    use super::openapi::response_docs::{codes_of, named_operations};

    fn operations() -> Vec<Value> {
        let document: Value = serde_json::from_str(&super::openapi_json().unwrap()).unwrap();
        let paths = document["paths"].as_object().unwrap().values();
        paths
            .flat_map(|path| path.as_object().unwrap().values().cloned())
            .collect()
    }

    #[test]
    fn facts_about_operations_name_operations_that_exist() {
        let operations = operations();
        let ids = operations.iter().map(|one| one["operationId"].as_str());
        let ids: BTreeSet<&str> = ids.map(Option::unwrap).collect();
        for id in named_operations() {
            assert!(ids.contains(id), "{id}");
        }
    }

    #[test]
    fn each_parameter_has_an_expected_value_for_its_error() {
        for operation in operations() {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap();
                // Any text can be read as a command, or as a header.
                let is_any = ["command", "If-None-Match"].contains(&name);
                assert!(is_any || expected_parameter(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn each_code_is_an_answer_of_an_operation() {
        let operations = operations();
        for side in [Side::Callback, Side::Read] {
            // The router answers for a wrong method, not an operation.
            let codes = Code::of_side(side).filter(|code| *code != Code::MethodNotAllowed);
            for code in codes {
                let status = code.status().as_u16();
                let mut all = operations.iter();
                let is_answer = all.any(|one| codes_of(one, side, status).contains(&code));
                assert!(is_answer, "{code:?}");
            }
        }
    }
}
