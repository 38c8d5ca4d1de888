//! Parameters of the reads: ids, limits, and what each is expected to be.

use super::error::{Code, Error};
use crate::domain::{GroupId, UserId};

/// Page size where none is asked for.
pub(super) fn default_limit() -> u32 {
    100
}

/// The group of OpenIM's sample.
pub(super) fn example_group() -> String {
    "12345".into()
}

/// The user of OpenIM's sample.
pub(super) fn example_user() -> String {
    "user789".into()
}

/// A parameter that could not be read; poem-openapi's own words name Rust types.
pub(super) fn invalid(name: &str) -> Error {
    let expected = match name {
        "limit" => "a whole number from 1 to 1000",
        "roleLevel" | "status" => "a whole number from -2147483648 to 2147483647",
        "userID" => "1 to 1024 bytes of UTF-8, at most 100 of them where it can be repeated",
        "groupID" => "1 to 1024 bytes of UTF-8",
        "state" => "current, left or all",
        "for" => "callbacks or reads",
        "checkWanted" => "true or false",
        "cursor" => "the nextCursor of an earlier answer",
        _ => "what /docs says",
    };
    Error::new(
        Code::ParameterInvalid,
        format!("{name}: expected {expected}"),
    )
}

pub(super) fn group_id(id: String) -> Result<GroupId, Error> {
    GroupId::parse(id).map_err(|error| Error::id("groupID", error))
}

pub(super) fn user_id(id: String) -> Result<UserId, Error> {
    UserId::parse(id).map_err(|error| Error::id("userID", error))
}
