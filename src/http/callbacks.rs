//! One operation per callback command.

use poem_openapi::{ApiResponse, OpenApi};

use super::Tag;
use super::auth::CallbackKey;
use super::body::{self, JsonBody};
use super::error::{Code, Error};
use super::payload::SetGroupMemberInfo;
use super::reply::{CallbackFailure, CallbackReply};
use super::written::Written;
use crate::domain::MemberPatch;
use crate::ingest::Ingest;

pub(super) struct Callbacks {
    pub(super) ingest: Ingest,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand.
    pub(super) next_code: i32,
}

#[derive(ApiResponse)]
enum Done {
    /// The change is committed.
    #[oai(status = 200)]
    Done(Written<CallbackReply>),
}

#[OpenApi(tag = "Tag::Callbacks")]
impl Callbacks {
    /// After set group member info
    ///
    /// OpenIM calls this after nickname, avatar, role or extra data of a group member were set.
    /// Only the fields that are present and not null change; an empty text is a value. A member
    /// never heard of gets a row with what is known. The answer is sent when the change is
    /// committed. Any query string is ignored, as are unknown fields.
    #[oai(
        path = "/callbackAfterSetGroupMemberInfoCommand",
        method = "post",
        operation_id = "callbackAfterSetGroupMemberInfo"
    )]
    async fn after_set_group_member_info(
        &self,
        _key: CallbackKey,
        body: JsonBody<SetGroupMemberInfo>,
    ) -> Result<Done, CallbackFailure> {
        self.ingest.submit(body.parsed).await?;
        Ok(Done::Done(Written(CallbackReply::success(self.next_code))))
    }
}

/// What the body of a callback to this path means: for those that are taken in again.
pub(super) fn parse(path: &str, body: &[u8]) -> Result<MemberPatch, Error> {
    match path.trim_start_matches('/') {
        SetGroupMemberInfo::COMMAND => body::parse::<SetGroupMemberInfo>(body),
        _ => Err(Error::new(Code::PathUnknown, "see /docs for what is")),
    }
}
