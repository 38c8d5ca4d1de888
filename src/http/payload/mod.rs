//! OpenIM's bodies exactly as sent; each turns into what happened to a group.
//!
//! Fields that tell us nothing are documented without a type and are not looked at.

mod hint;
mod member;
mod membership;
mod message;
mod profile;

use poem_openapi::types::Any;
use serde_json::Value;

pub(super) use hint::{MemberJoin, MembersJoin};
pub(super) use member::SetGroupMemberInfo;
pub(super) use membership::{
    CreateGroup, DismissGroup, JoinGroup, KickGroup, QuitGroup, TransferGroupOwner,
};
pub(super) use message::{Looked, Notice, PushedGroupMessage, SentGroupMessage};
pub(super) use profile::{
    BeforeSetGroupInfo, BeforeSetGroupInfoEx, ProfileEcho, SetGroupInfo, SetGroupInfoEx,
};

use super::body::{self, FromBody};
use super::error::{Code, Error};
use super::json;
use super::server::routing;
use crate::domain::{Event, GroupId};

/// A field that is not looked at.
type Ignored = Option<Any<Value>>;

/// What a callback tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) group_id: GroupId,
    pub(super) event: Event,
}

/// The body of a callback that tells what happened.
pub(super) trait Callback: FromBody<Parsed = Told> {
    /// The command, which is also its path.
    const COMMAND: &'static str;
}

/// What the body of a callback to this path means: for those that are taken in again.
pub(super) fn understand(path: &str, body: &[u8]) -> Result<Told, Error> {
    let command = match routing::command_of(path) {
        Some(command) => command.to_owned(),
        None => body::parse::<routing::Command>(body)?,
    };
    macro_rules! one_of {
        ($($callback:ty),+) => {
            match command.as_str() {
                $(<$callback>::COMMAND => body::parse::<$callback>(body),)+
                _ => Err(Error::new(
                    Code::CommandUnknown,
                    "callbackCommand: expected one that says something of a group",
                )),
            }
        };
    }
    one_of!(
        SetGroupMemberInfo,
        CreateGroup,
        JoinGroup,
        QuitGroup,
        KickGroup,
        DismissGroup,
        TransferGroupOwner,
        SetGroupInfo,
        SetGroupInfoEx,
        MembersJoin,
        MemberJoin
    )
}

/// The group that a body names, of which nothing else need be understood.
pub(super) fn group_of(body: &[u8]) -> Option<GroupId> {
    let [group_id] = json::object(str::from_utf8(body).ok()?, ["groupID"]).ok()?;
    group_id.required().ok()?.group_id().ok()
}

/// A body sent to the wrong path is one that we would misread.
fn expect_command(found: json::Field<'_>, expected: &'static str) -> Result<(), Error> {
    if found.required()?.text()? == expected {
        return Ok(());
    }
    Err(Error::new(
        Code::CommandMismatch,
        format!("callbackCommand: expected {expected}, as in the path"),
    ))
}
