//! Callbacks of OpenIM. [`commands`] declares each; here is what each kind does, and the reply.

mod commands;
mod messages;

use std::marker::PhantomData;
use std::sync::Arc;

use poem::{IntoResponse, Response};
use poem_openapi::param::Path;
use poem_openapi::registry::{MetaResponses, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, OpenApi, ResponseContent};

pub(super) use commands::{Command, PATTERN, command_of, labels};
pub(super) use commands::{DECLARED, Operations, SetGroupMemberInfo, operations};
#[cfg(fuzzing)]
pub(super) use messages::MessageParser;
pub(super) use messages::Notice;

use super::body::{self, FromBody, JsonBody, Unread};
use super::error::{Code, Error, Side, failures};
use super::json_response::{JsonResponse, json_object};
use super::server::auth::{CallbackKey, Tag};
use crate::domain::{Change, Event, GroupId, Hint, MarkReason, Operators};
use crate::ingest::{HintOutcome, Ingest};
use crate::telemetry::Metrics;
use commands::ProfileEcho;
use messages::Message;

/// Declares a callback: its operation, its documented body, its parser and its example.
///
/// ```ignore
/// callback! {
///     /// After quit group
///     ///
///     /// OpenIM calls this after a member left a group by itself.
///     "/callbackAfterQuitGroupCommand", "callbackAfterQuitGroup", switch "afterQuitGroup";
///
///     /// callbackAfterQuitGroupCommand: a member left a group by itself.
///     QuitGroup: Stored {
///         /// The group: 1 to 1,024 bytes, any characters but U+0000.
///         "groupID" group_id: GroupId = id("g77");
///         /// The member: 1 to 1,024 bytes, any characters but U+0000.
///         "userID" user_id: UserId = id("m1");
///     } of group_id => Event::Quit(user_id)
/// }
/// ```
///
/// The operation has its documentation, its path, its id, and OpenIM's switch if the mirror needs the callback.
/// The body has its kind, which says what happens with it. A field has its JSON name, its Rust name, its type,
/// and its value in the example. The type says what the document shows and how the value is read
/// ([`body::FromField`]), unless `by` names another function that reads it. The document does not show a `hidden` field.
/// The expression at the end is the content, made of the values.
macro_rules! callback {
    (
        $(#[doc = $operation:literal])+
        $path:literal, $id:literal $(, switch $switch:literal)?;

        $(#[doc = $doc:literal])+
        $name:ident: $kind:ident $fields:tt $(of $group_id:ident => $content:expr)?
    ) => {
        impl super::Callback for $name {
            const COMMAND: &'static str = $path.split_at(1).1;
        }

        callback! { @document $(#[doc = $doc])+ $name $fields }
        $(callback! { @parser $name $kind $fields $group_id $content })?

        #[poem_openapi::OpenApi(tag = "crate::http::server::auth::Tag::Callbacks")]
        impl super::Operation<$name> {
            $(#[doc = $operation])+
            #[oai(path = $path, method = "post", operation_id = $id)]
            async fn answer(
                &self,
                _key: crate::http::server::auth::CallbackKey,
                body: <super::$kind as super::Handle<$name>>::Body,
            ) -> Result<<super::$kind as super::Kind>::Answer, super::CallbackFailure> {
                <super::$kind as super::Handle<$name>>::handle(&self.0, body).await
            }

            const DECLARED: super::Declared = super::Declared {
                command: <$name as super::Callback>::COMMAND,
                operation_id: $id,
                switch: [$(Some($switch),)? None][0],
                needs_database: <super::$kind as super::Kind>::NEEDS_DATABASE,
                parse: <super::$kind as super::Handle<$name>>::PARSE,
            };
        }
    };
    (@document $(#[doc = $doc:literal])+ $name:ident {
        $($(#[$attr:meta])+ $json:literal $field:ident: $type:ty = $example:expr $(, by $read:path)?;)+
        $(hidden $hidden_json:literal $hidden:ident by $read_hidden:path;)*
    }) => {
        $(#[doc = $doc])+
        #[derive(Debug, poem_openapi::Object)]
        #[oai(example)]
        pub(in crate::http) struct $name {
            /// The command, as in the path.
            #[oai(rename = "callbackCommand")]
            callback_command: String,
            $($(#[$attr])+ #[oai(rename = $json)] $field: $type,)+
        }

        impl poem_openapi::types::Example for $name {
            fn example() -> Self {
                Self {
                    callback_command: <Self as super::Callback>::COMMAND.into(),
                    $($field: $example,)+
                }
            }
        }
    };
    (@parser $name:ident $kind:ident {
        $($(#[$attr:meta])+ $json:literal $field:ident: $type:ty = $example:expr $(, by $read:path)?;)+
        $(hidden $hidden_json:literal $hidden:ident by $read_hidden:path;)*
    } $group_id:ident $content:expr) => {
        impl crate::http::body::FromBody for $name {
            const SIDE: crate::http::error::Side = crate::http::error::Side::Callback;
            type Parsed = super::Parsed<<super::$kind as super::Kind>::Content>;

            #[allow(unused_variables, reason = "a value that is not read")]
            fn parse(text: &str) -> Result<Self::Parsed, crate::http::error::Error> {
                let [callback_command, $($field,)+ $($hidden,)*] = crate::http::body::object(
                    text,
                    ["callbackCommand", $($json,)+ $($hidden_json,)*],
                )?;
                super::expect_command::<Self>(callback_command)?;
                $(let $field = callback! { @read $field, $type $(, $read)? };)+
                $(let $hidden = $read_hidden($hidden)?;)*
                Ok(super::Parsed { content: $content, group_id: $group_id })
            }
        }
    };
    (@read $field:ident, $type:ty) => {
        <$type as crate::http::body::FromField>::from_field($field)?
    };
    (@read $field:ident, $type:ty, $read:path) => {
        $read($field)?
    };
}
pub(super) use callback;

/// State of the callbacks' operations.
pub(super) struct Callbacks {
    pub(super) ingest: Ingest,
    pub(super) metrics: Metrics,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand.
    pub(super) next_code: i32,
    /// Users that callbacks name for having called OpenIM's API.
    pub(super) operators: Operators,
}

/// Operation of the callback that `T` declares.
pub(super) struct Operation<T>(Arc<Callbacks>, PhantomData<fn() -> T>);

impl<T> Operation<T> {
    fn new(callbacks: &Arc<Callbacks>) -> Self {
        Self(Arc::clone(callbacks), PhantomData)
    }
}

/// Properties of a declared callback.
pub(super) struct Declared {
    /// The command, which is also its path.
    pub(super) command: &'static str,
    pub(super) operation_id: &'static str,
    /// OpenIM's switch to turn on, if the mirror needs the callback.
    pub(super) switch: Option<&'static str>,
    /// True if the answer waits for the database.
    pub(super) needs_database: bool,
    /// The parser. `None` for a message: no body of a message is an error.
    pub(super) parse: Option<Parser>,
}

/// Parser of a body. `None` for a callback that does not change the mirror.
type Parser = fn(&[u8]) -> Result<Option<Parsed<Event>>, Error>;

/// A callback: its group, and the content that its kind makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed<Content> {
    pub(super) group_id: GroupId,
    pub(super) content: Content,
}

/// Body of a callback that is declared with its fields.
pub(super) trait Callback: Type + Send {
    const COMMAND: &'static str;
}

/// A kind of callbacks: the result of its parser, and its answer.
pub(super) trait Kind {
    /// What the declaration makes of the fields.
    type Content;
    type Answer: ApiResponse;
    const NEEDS_DATABASE: bool;
}

/// Declares the kinds: name, content, answer, and if the answer waits for the database.
macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident: $content:ty => $answer:ty, $needs_database:literal;)+) => {$(
        $(#[$doc])+
        pub(super) struct $kind;

        impl Kind for $kind {
            type Content = $content;
            type Answer = $answer;
            const NEEDS_DATABASE: bool = $needs_database;
        }
    )+};
}

kinds! {
    /// Callbacks after a change. The answer waits until the change is stored.
    Stored: Event => Done, true;
    /// Callbacks before a change that may not happen. The answer does not wait for the mark, because a
    /// user waits for the answer.
    Announced: Event => Acknowledged, false;
    /// Callbacks whose answer OpenIM stores. The answer repeats the fields.
    Echoed: ProfileEcho => Echo, false;
    /// Messages that are sent. The answer waits until the hint of a notification is taken.
    Sent: () => Done, true;
    /// Messages before they are pushed. The answer waits for nothing, because OpenIM waits for it.
    Pushed: () => Acknowledged, false;
}

/// What a kind does with the callback `T`.
pub(super) trait Handle<T>: Kind {
    type Body;
    const PARSE: Option<Parser> = None;

    async fn handle(
        callbacks: &Callbacks,
        body: Self::Body,
    ) -> Result<Self::Answer, CallbackFailure>;
}

impl<T: Callback + FromBody<Parsed = Parsed<Event>>> Handle<T> for Stored {
    type Body = JsonBody<T>;
    const PARSE: Option<Parser> = Some(|bytes| body::parse::<T>(bytes).map(Some));

    async fn handle(callbacks: &Callbacks, body: JsonBody<T>) -> Result<Done, CallbackFailure> {
        let Parsed { group_id, content } = body.parsed;
        let event = callbacks.operators.sort_out(content);
        let change = Change::new(group_id, body.received_at, event);
        let operation_id = body.operation_id.as_deref();
        callbacks.ingest.take(change, operation_id).await?;
        let is_member_info = T::COMMAND == SetGroupMemberInfo::COMMAND;
        Ok(Done::with(if is_member_info {
            callbacks.next_code
        } else {
            0
        }))
    }
}

impl<T: Callback + FromBody<Parsed = Parsed<Event>>> Handle<T> for Announced {
    type Body = JsonBody<T>;
    const PARSE: Option<Parser> = Some(|bytes| body::parse::<T>(bytes).map(Some));

    async fn handle(
        callbacks: &Callbacks,
        body: JsonBody<T>,
    ) -> Result<Acknowledged, CallbackFailure> {
        let group_id = body.parsed.group_id;
        callbacks
            .ingest
            .mark_unwaited(group_id, MarkReason::JoinAnnounced);
        Ok(Acknowledged::success())
    }
}

impl<T: Callback + FromBody<Parsed = Parsed<ProfileEcho>>> Handle<T> for Echoed {
    type Body = JsonBody<T>;
    const PARSE: Option<Parser> = Some(|bytes| body::parse::<T>(bytes).map(|_| None));

    async fn handle(_callbacks: &Callbacks, body: JsonBody<T>) -> Result<Echo, CallbackFailure> {
        Ok(Echo::Echo(JsonResponse(body.parsed.content)))
    }
}

impl<T: Callback> Handle<T> for Sent {
    type Body = Message<T>;

    async fn handle(callbacks: &Callbacks, message: Message<T>) -> Result<Done, CallbackFailure> {
        if let Some(hint) = callbacks.hint(message) {
            let kind = hint.kind;
            let hinted = callbacks.ingest.hint(hint).await;
            let outcome = hinted.as_ref().map_or(FAILED, |hinted| hinted.label());
            callbacks.metrics.hints.inc([kind.label(), outcome]);
            hinted?;
        }
        Ok(Done::with(0))
    }
}

impl<T: Callback> Handle<T> for Pushed {
    type Body = Message<T>;

    async fn handle(
        callbacks: &Callbacks,
        message: Message<T>,
    ) -> Result<Acknowledged, CallbackFailure> {
        if let Some(hint) = callbacks.hint(message) {
            let kind = hint.kind;
            let outcome = callbacks.ingest.hint_unwaited(hint).label();
            callbacks.metrics.hints.inc([kind.label(), outcome]);
        }
        Ok(Acknowledged::success())
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

impl Callbacks {
    /// The hint of a message. Every other message is counted.
    fn hint<T: Callback>(&self, message: Message<T>) -> Option<Hint> {
        match message.notice {
            Notice::Ordinary => self.metrics.passed_over.inc([T::COMMAND]),
            Notice::Notification {
                kind,
                group_id: None,
                ..
            } => self.metrics.hints.inc([kind.label(), UNREADABLE]),
            Notice::Notification {
                kind,
                group_id: Some(group_id),
                operation_id,
            } => {
                return Some(Hint {
                    group_id,
                    kind,
                    operation_id,
                    received_at: message.received_at,
                });
            }
        }
        None
    }
}

/// Operation of every other callback.
pub(super) struct OtherCallbacks(pub(super) Arc<Callbacks>);

#[OpenApi(tag = "Tag::Callbacks")]
impl OtherCallbacks {
    /// Any other callback
    ///
    /// OpenIM has one URL for all its callbacks. So callbacks about messages, friends and users arrive here
    /// too, and callbacks about groups that the mirror does not need. They are answered at once and
    /// counted. Their body is not read.
    ///
    /// The path of a POST can end without a command. If it is not the path of a read, the `callbackCommand`
    /// of the body is the command. Other segments may precede a command.
    #[oai(path = "/:command", method = "post", operation_id = "callbackOther")]
    async fn other(
        &self,
        _key: CallbackKey,
        /// The command.
        #[oai(example = "commands::example")]
        command: Path<String>,
        _body: Unread,
    ) -> Result<Acknowledged, CallbackFailure> {
        let label = commands::label(&command.0);
        self.0.metrics.passed_over.inc([label]);
        Ok(Acknowledged::success())
    }
}

/// Checks the command of a body. A body sent to the wrong path would be misread.
fn expect_command<T: Callback>(found: body::Field<'_>) -> Result<(), Error> {
    if found.required()?.text()? == T::COMMAND {
        return Ok(());
    }
    let detail = format!("callbackCommand: expected {}, as in the path", T::COMMAND);
    Err(Error::new(Code::CommandMismatch, detail))
}

/// Parses the body of a callback to this path, for rejected callbacks that are taken in again.
pub(super) fn understand(path: &str, body: &[u8]) -> Result<Parsed<Event>, Error> {
    let command = match command_of(path) {
        Some(command) => command.to_owned(),
        None => body::parse::<Command>(body)?,
    };
    let declared = DECLARED.iter().find(|one| one.command == command);
    let parsed = match declared.and_then(|declared| declared.parse) {
        Some(parse) => parse(body)?,
        None => None,
    };
    parsed.ok_or_else(|| {
        let detail = "callbackCommand: expected one that says something of a group";
        Error::new(Code::CommandUnknown, detail)
    })
}

/// Returns the group of a body. The other fields may be invalid.
pub(super) fn group_of(body: &[u8]) -> Option<GroupId> {
    let [group_id] = body::object(str::from_utf8(body).ok()?, ["groupID"]).ok()?;
    group_id.required().ok()?.group_id().ok()
}

json_object! {
    /// The reply to a callback.
    #[oai(example)]
    struct CallbackReply {
        /// 0: the callback was executed; 1: it was not, errCode says why.
        action_code "actionCode": i32 = 0;
        /// 0, or the number of the error.
        err_code "errCode": i32 = 0;
        /// Text of the error. It is fixed for each errCode.
        err_msg "errMsg": String = String::new();
        /// Details of the error: the field and the expected value.
        err_dlt "errDlt": String = String::new();
        /// 1 in the success reply to callbackAfterSetGroupMemberInfoCommand (0 with
        /// CALLBACK_NEXT_CODE=0), else 0. OpenIM 3.7 and later reads it in before-callbacks only.
        next_code "nextCode": i32 = 1;
    }
}

impl CallbackReply {
    fn success(next_code: i32) -> Self {
        Self {
            action_code: 0,
            err_code: 0,
            err_msg: String::new(),
            err_dlt: String::new(),
            next_code,
        }
    }

    pub(super) fn failure(code: Code, detail: String) -> Self {
        Self {
            action_code: 1,
            err_code: code.number(),
            err_msg: code.message().into(),
            err_dlt: detail,
            next_code: 0,
        }
    }
}

#[derive(ApiResponse)]
pub(super) enum Done {
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
pub(super) enum Acknowledged {
    /// Always.
    #[oai(status = 200)]
    Acknowledged(JsonResponse<CallbackReply>),
}

impl Acknowledged {
    fn success() -> Self {
        Self::Acknowledged(JsonResponse(CallbackReply::success(0)))
    }
}

#[derive(ApiResponse)]
pub(super) enum Echo {
    /// The fields as sent.
    #[oai(status = 200)]
    Echo(JsonResponse<ProfileEcho>),
}

/// A failing answer to a callback; documents itself for each operation that returns it.
#[derive(Debug)]
pub(super) struct CallbackFailure(Error);

impl<E: Into<Error>> From<E> for CallbackFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<CallbackFailure> for poem::Error {
    /// Rendered at the edge, by `render`.
    fn from(failure: CallbackFailure) -> Self {
        failure.0.into()
    }
}

impl ApiResponse for CallbackFailure {
    fn meta() -> MetaResponses {
        failures(Side::Callback, JsonResponse::<CallbackReply>::media_types)
    }

    fn register(registry: &mut Registry) {
        CallbackReply::register(registry);
    }
}

/// An error as the answer to a callback.
pub(super) fn render(error: &Error) -> Response {
    let reply = CallbackReply::failure(error.code, error.detail.to_string());
    let mut response = JsonResponse(reply).into_response();
    response.set_status(error.code.status());
    response
}

#[cfg(test)]
mod tests {
    use super::super::json_response::assert_written_as_documented;
    use super::{CallbackReply, ProfileEcho};

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<CallbackReply>();
        assert_written_as_documented::<ProfileEcho>();
    }
}
