//! One operation per callback command, and one for all others.

pub(super) mod commands;
mod declare;
mod extract;
mod joins;
mod member;
mod membership;
mod messages;
mod profile;
pub(super) mod reply;

use poem_openapi::param::Path;
use poem_openapi::types::Any;
use poem_openapi::{ApiResponse, OpenApi};
use serde_json::Value;

pub(super) use joins::{MemberJoin, MembersJoin};
pub(super) use member::SetGroupMemberInfo;
pub(super) use membership::{
    CreateGroup, DismissGroup, JoinGroup, KickGroup, QuitGroup, TransferGroupOwner,
};
pub(super) use messages::{Looked, Notice, PushedGroupMessage, SentGroupMessage};
pub(super) use profile::{
    BeforeSetGroupInfo, BeforeSetGroupInfoEx, ProfileEcho, SetGroupInfo, SetGroupInfoEx,
};

use super::body::{self, FromBody, JsonBody, Unread};
use super::error::{Code, Error};
use super::json;
use super::json_response::JsonResponse;
use super::server::auth::{CallbackKey, Tag};
use super::server::routing;
use crate::domain::{Change, Event, GroupId, MarkReason, Operators};
use crate::ingest::{HintOutcome, Ingest};
use crate::telemetry::Metrics;
use extract::Message;
use reply::{CallbackFailure, CallbackReply};

pub(super) struct Callbacks {
    pub(super) ingest: Ingest,
    pub(super) metrics: Metrics,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand.
    pub(super) next_code: i32,
    /// Users that callbacks name for having called OpenIM's API.
    pub(super) operators: Operators,
}

#[derive(ApiResponse)]
enum Done {
    /// The change is committed, or on disk while the database is away.
    #[oai(status = 200)]
    Done(JsonResponse<CallbackReply>),
}

impl Done {
    fn with(next_code: i32) -> Self {
        Self::Done(JsonResponse(CallbackReply::success(next_code)))
    }
}

#[derive(ApiResponse)]
enum Acknowledged {
    /// Always.
    #[oai(status = 200)]
    Acknowledged(JsonResponse<CallbackReply>),
}

#[derive(ApiResponse)]
enum Echoed {
    /// The fields as sent.
    #[oai(status = 200)]
    Echoed(JsonResponse<ProfileEcho>),
}

impl Callbacks {
    /// Writes the change of a callback; `next_code` goes into the reply.
    async fn submit<T>(&self, body: JsonBody<T>, next_code: i32) -> Result<Done, CallbackFailure>
    where
        T: FromBody<Parsed = ParsedCallback>,
    {
        let ParsedCallback { group_id, event } = body.parsed;
        let event = self.operators.sort_out(event);
        let change = Change::new(group_id, body.received_at, event);
        let operation_id = body.operation_id.as_deref();
        self.ingest.take(change, operation_id).await?;
        Ok(Done::with(next_code))
    }

    /// Answers an announcement. The answer does not wait for the mark: a user waits, and the announced
    /// change may not happen.
    fn acknowledge(&self, parsed: ParsedCallback) -> Acknowledged {
        self.ingest
            .mark_unwaited(parsed.group_id, MarkReason::JoinAnnounced);
        Acknowledged::Acknowledged(JsonResponse(CallbackReply::success(0)))
    }
}

/// Outcomes of hints without a usable group id, and of hints whose mark is not written.
const UNREADABLE: &str = "unreadable";
const FAILED: &str = "failed";

/// Every outcome of a hint.
pub(super) fn hint_outcomes() -> impl Iterator<Item = &'static str> {
    let taken = HintOutcome::ALL.into_iter().map(HintOutcome::label);
    taken.chain([UNREADABLE, FAILED])
}

/// Commands of messages. Ordinary messages are counted by them.
const SENT: &str = "callbackAfterSendGroupMsgCommand";
const PUSHED: &str = "callbackBeforeGroupOnlinePushCommand";

#[OpenApi(tag = "Tag::Callbacks")]
impl Callbacks {
    /// After set group member info
    ///
    /// OpenIM calls this after nickname, avatar, role or extra data of a group member were set.
    /// Only the fields that are present and not null change; an empty text is a value. An
    /// unknown member gets a row with the known values. The answer is sent when the change is committed.
    /// While the database is away, it is sent when the change is on disk; the change is written later.
    /// This holds for every callback of a change. Query strings and unknown fields are ignored.
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
        self.submit(body, self.next_code).await
    }

    /// After create group
    ///
    /// OpenIM calls this after a group was created. The profile and the first members are stored. In a
    /// known group, only unknown values are filled in.
    #[oai(
        path = "/callbackAfterCreateGroupCommand",
        method = "post",
        operation_id = "callbackAfterCreateGroup"
    )]
    async fn after_create_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<CreateGroup>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After join group
    ///
    /// OpenIM calls this after a user joined a group by itself, and not after invitations and approvals.
    /// `inviterUserID` is the user who joined, as an ordinary member. If other fields name the users who
    /// joined, these count.
    #[oai(
        path = "/callbackAfterJoinGroupCommand",
        method = "post",
        operation_id = "callbackAfterJoinGroup"
    )]
    async fn after_join_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<JoinGroup>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After quit group
    ///
    /// OpenIM calls this after a member left a group by itself.
    #[oai(
        path = "/callbackAfterQuitGroupCommand",
        method = "post",
        operation_id = "callbackAfterQuitGroup"
    )]
    async fn after_quit_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<QuitGroup>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After kick group
    ///
    /// OpenIM calls this after members were removed from a group. All of them leave at once.
    #[oai(
        path = "/callbackAfterKickGroupCommand",
        method = "post",
        operation_id = "callbackAfterKickGroup"
    )]
    async fn after_kick_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<KickGroup>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After dismiss group
    ///
    /// OpenIM calls this after a group was dismissed. It has no current members from then on.
    #[oai(
        path = "/callbackAfterDisMissGroupCommand",
        method = "post",
        operation_id = "callbackAfterDismissGroup"
    )]
    async fn after_dismiss_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<DismissGroup>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After transfer group owner
    ///
    /// OpenIM calls this after a group got another owner. The old owner gets the role that the new one
    /// had.
    #[oai(
        path = "/callbackAfterTransferGroupOwnerCommand",
        method = "post",
        operation_id = "callbackAfterTransferGroupOwner"
    )]
    async fn after_transfer_group_owner(
        &self,
        _key: CallbackKey,
        body: JsonBody<TransferGroupOwner>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After set group info
    ///
    /// OpenIM calls this after a group's profile was set by the older of its two ways. Only the fields
    /// that are present and not null change; an empty name, notice, introduction or avatar is no change.
    #[oai(
        path = "/callbackAfterSetGroupInfoCommand",
        method = "post",
        operation_id = "callbackAfterSetGroupInfo"
    )]
    async fn after_set_group_info(
        &self,
        _key: CallbackKey,
        body: JsonBody<SetGroupInfo>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// After set group info ex
    ///
    /// OpenIM calls this after a group's profile was set by the newer of its two ways. Only the fields
    /// that are present and not null change; an empty text is a value.
    #[oai(
        path = "/callbackAfterSetGroupInfoExCommand",
        method = "post",
        operation_id = "callbackAfterSetGroupInfoEx"
    )]
    async fn after_set_group_info_ex(
        &self,
        _key: CallbackKey,
        body: JsonBody<SetGroupInfoEx>,
    ) -> Result<Done, CallbackFailure> {
        self.submit(body, 0).await
    }

    /// Before members join group
    ///
    /// OpenIM calls this before users become members in any way, and waits for the answer. The group is
    /// marked for a reconcile. Nothing else changes, because the users may not join after all.
    #[oai(
        path = "/callbackBeforeMembersJoinGroupCommand",
        method = "post",
        operation_id = "callbackBeforeMembersJoinGroup"
    )]
    async fn before_members_join_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<MembersJoin>,
    ) -> Result<Acknowledged, CallbackFailure> {
        Ok(self.acknowledge(body.parsed))
    }

    /// Before member join group
    ///
    /// OpenIM 3.7 calls this before one user becomes a member. It is handled like
    /// callbackBeforeMembersJoinGroupCommand.
    #[oai(
        path = "/callbackBeforeMemberJoinGroupCommand",
        method = "post",
        operation_id = "callbackBeforeMemberJoinGroup"
    )]
    async fn before_member_join_group(
        &self,
        _key: CallbackKey,
        body: JsonBody<MemberJoin>,
    ) -> Result<Acknowledged, CallbackFailure> {
        Ok(self.acknowledge(body.parsed))
    }

    /// Before set group info
    ///
    /// OpenIM calls this before a group's profile is set, waits for the answer, and stores the
    /// fields of the answer instead. It stores a missing field as empty. So the answer repeats the fields.
    #[oai(
        path = "/callbackBeforeSetGroupInfoCommand",
        method = "post",
        operation_id = "callbackBeforeSetGroupInfo"
    )]
    async fn before_set_group_info(
        &self,
        _key: CallbackKey,
        body: JsonBody<BeforeSetGroupInfo>,
    ) -> Result<Echoed, CallbackFailure> {
        Ok(Echoed::Echoed(JsonResponse(body.parsed)))
    }

    /// Before set group info ex
    ///
    /// OpenIM calls this before a group's profile is set by the newer of its two ways. It is handled like
    /// callbackBeforeSetGroupInfoCommand.
    #[oai(
        path = "/callbackBeforeSetGroupInfoExCommand",
        method = "post",
        operation_id = "callbackBeforeSetGroupInfoEx"
    )]
    async fn before_set_group_info_ex(
        &self,
        _key: CallbackKey,
        body: JsonBody<BeforeSetGroupInfoEx>,
    ) -> Result<Echoed, CallbackFailure> {
        Ok(Echoed::Echoed(JsonResponse(body.parsed)))
    }

    /// After send group message
    ///
    /// OpenIM calls this after a message was sent into a group. After a notification (`contentType` 1501
    /// to 1520) the group is reconciled soon. Without access to OpenIM's API, the group is marked if no
    /// callback covers the notification, and the answer is sent when the mark is written. Every other
    /// message is answered at once and counted. A malformed body is no error.
    #[oai(
        path = "/callbackAfterSendGroupMsgCommand",
        method = "post",
        operation_id = "callbackAfterSendGroupMsg"
    )]
    async fn after_send_group_msg(
        &self,
        _key: CallbackKey,
        message: Message<SentGroupMessage>,
    ) -> Result<Done, CallbackFailure> {
        match message.told {
            extract::Notified::Nothing => self.metrics.passed_over.inc([SENT]),
            extract::Notified::Unreadable(kind) => {
                self.metrics.hints.inc([kind.label(), UNREADABLE])
            }
            extract::Notified::Hint(hint) => {
                let kind = hint.kind;
                let hinted = self.ingest.hint(hint).await;
                let outcome = hinted.as_ref().map_or(FAILED, |hinted| hinted.label());
                self.metrics.hints.inc([kind.label(), outcome]);
                hinted?;
            }
        }
        Ok(Done::with(0))
    }

    /// Before group online push
    ///
    /// OpenIM calls this before a message is pushed to the online members of a group, and waits for the
    /// answer. It is handled like callbackAfterSendGroupMsgCommand, but the answer waits for nothing.
    #[oai(
        path = "/callbackBeforeGroupOnlinePushCommand",
        method = "post",
        operation_id = "callbackBeforeGroupOnlinePush"
    )]
    async fn before_group_online_push(
        &self,
        _key: CallbackKey,
        message: Message<PushedGroupMessage>,
    ) -> Result<Acknowledged, CallbackFailure> {
        match message.told {
            extract::Notified::Nothing => self.metrics.passed_over.inc([PUSHED]),
            extract::Notified::Unreadable(kind) => {
                self.metrics.hints.inc([kind.label(), UNREADABLE])
            }
            extract::Notified::Hint(hint) => {
                let kind = hint.kind;
                let outcome = self.ingest.hint_unwaited(hint).label();
                self.metrics.hints.inc([kind.label(), outcome]);
            }
        }
        Ok(Acknowledged::Acknowledged(JsonResponse(
            CallbackReply::success(0),
        )))
    }

    /// Any other callback
    ///
    /// OpenIM has one URL for all its callbacks, so callbacks about messages, friends and users come here
    /// too, as do callbacks about groups that the mirror does not need. They are answered at once and
    /// counted. Their body is not read.
    ///
    /// A POST to a path that does not end with a command, and is not the path of a read, is handled as one
    /// to the path of its body's `callbackCommand`. Other segments may precede a command.
    #[oai(path = "/:command", method = "post", operation_id = "callbackOther")]
    async fn other(
        &self,
        _key: CallbackKey,
        /// The command.
        #[oai(example = "commands::example")]
        command: Path<String>,
        _body: Unread,
    ) -> Result<Acknowledged, CallbackFailure> {
        self.metrics.passed_over.inc([commands::label(&command.0)]);
        Ok(Acknowledged::Acknowledged(JsonResponse(
            CallbackReply::success(0),
        )))
    }
}

/// A field that is not read.
type Ignored = Option<Any<Value>>;

/// Group and event of a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParsedCallback {
    pub(super) group_id: GroupId,
    pub(super) event: Event,
}

/// Body of a callback about a change.
pub(super) trait Callback: FromBody<Parsed = ParsedCallback> {
    /// The command, which is also its path.
    const COMMAND: &'static str;
}

/// Parses the body of a callback to this path, for rejected callbacks that are taken in again.
pub(super) fn understand(path: &str, body: &[u8]) -> Result<ParsedCallback, Error> {
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

/// Returns the group of a body. The other fields may be invalid.
pub(super) fn group_of(body: &[u8]) -> Option<GroupId> {
    let [group_id] = json::object(str::from_utf8(body).ok()?, ["groupID"]).ok()?;
    group_id.required().ok()?.group_id().ok()
}

/// Checks the command of a body. A body sent to the wrong path would be misread.
fn expect_command(found: json::Field<'_>, expected: &'static str) -> Result<(), Error> {
    if found.required()?.text()? == expected {
        return Ok(());
    }
    Err(Error::new(
        Code::CommandMismatch,
        format!("callbackCommand: expected {expected}, as in the path"),
    ))
}
