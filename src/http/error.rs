//! Everything that an answer can say besides "done": one table of codes, and one error type that
//! becomes a callback reply or a problem document, depending on who asked.

use std::borrow::Cow;

use poem::error::{MethodNotAllowedError, NotFoundError, ResponseError};
use poem::http::StatusCode;
use poem_openapi::error::{ContentTypeError, ParseParamError, ParsePathError};

use super::body::Received;
use super::params;
use crate::domain::IdError;
use crate::{ingest, store};

/// Who can be answered with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Answers to callbacks only.
    Callback,
    /// Answers to reads only.
    Read,
    /// Both.
    Any,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident = $number:literal, $name:literal, $status:ident, $door:ident, $message:literal;)+) => {
        /// Stable code of an error: a number for OpenIM's `errCode`, a name for people and for
        /// readers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code {
            $($(#[doc = $doc])+ $code,)+
        }

        impl Code {
            const ALL: &[Code] = &[$(Code::$code),+];

            /// `errCode`, in the range that OpenIM leaves to business servers.
            pub(super) fn number(self) -> i32 {
                match self { $(Code::$code => $number,)+ }
            }

            /// `code` of a problem document.
            pub(super) fn name(self) -> &'static str {
                match self { $(Code::$code => $name,)+ }
            }

            pub(super) fn status(self) -> StatusCode {
                match self { $(Code::$code => StatusCode::$status,)+ }
            }

            fn door(self) -> Door {
                match self { $(Code::$code => Door::$door,)+ }
            }

            /// The codes that can be told at a door.
            pub(super) fn told_at(door: Door) -> impl Iterator<Item = Code> {
                let told = move |code: &Code| [door, Door::Any].contains(&code.door());
                Code::ALL.iter().copied().filter(told)
            }

            /// What happened, in the same words each time.
            pub(super) fn message(self) -> &'static str {
                match self { $(Code::$code => $message,)+ }
            }
        }
    };
}

// 51xx: the request is at fault, and sending it again does not help. 52xx: we are.
codes! {
    /// Not JSON, not UTF-8, or not an object.
    BodyMalformed = 5101, "body_malformed", BAD_REQUEST, Any, "the body is not a JSON object";
    /// A required field is missing or null.
    FieldMissing = 5102, "field_missing", BAD_REQUEST, Any, "a required field is missing";
    /// A field has another type than documented.
    FieldType = 5103, "field_type", BAD_REQUEST, Any, "a field has the wrong type";
    /// An id is empty, too long, or holds U+0000.
    IdInvalid = 5104, "id_invalid", BAD_REQUEST, Any, "an id cannot be used";
    /// `callbackCommand` is not the command in the path.
    CommandMismatch = 5105, "command_mismatch", BAD_REQUEST, Callback, "callbackCommand does not match the path";
    /// A query parameter or path segment is not what is documented.
    ParameterInvalid = 5106, "parameter_invalid", BAD_REQUEST, Read, "a parameter cannot be used";
    /// A cursor is damaged, or of another path or filter.
    CursorInvalid = 5107, "cursor_invalid", BAD_REQUEST, Read, "the cursor cannot be used";
    /// More items than documented.
    TooMany = 5108, "too_many", BAD_REQUEST, Any, "too many items";
    /// The sender went away before the body was whole.
    BodyIncomplete = 5109, "body_incomplete", BAD_REQUEST, Any, "the body did not arrive whole";
    /// The body did not arrive in time.
    BodyTimeout = 5110, "body_timeout", REQUEST_TIMEOUT, Any, "the body took too long";
    /// No credentials, or wrong ones.
    CredentialsWrong = 5111, "credentials_wrong", UNAUTHORIZED, Any, "the credentials are missing or wrong";
    /// No key is set, and the Host or the Origin is not of this machine.
    HostNotLocal = 5112, "host_not_local", FORBIDDEN, Any, "without a key only this machine is answered";
    /// The body is larger than MAX_BODY_BYTES.
    BodyTooLarge = 5113, "body_too_large", PAYLOAD_TOO_LARGE, Any, "the body is too large";
    /// `callbackCommand`, which the path does not tell, is no command.
    CommandUnknown = 5114, "command_unknown", BAD_REQUEST, Callback, "callbackCommand is no command that can be used";
    /// The Content-Type is not JSON.
    NotJson = 5115, "not_json", UNSUPPORTED_MEDIA_TYPE, Any, "the Content-Type is not application/json";
    /// Nothing is served at this path. A POST is a callback wherever it comes.
    PathUnknown = 5121, "path_unknown", NOT_FOUND, Read, "nothing is served at this path";
    /// The path is served, for other methods.
    MethodNotAllowed = 5122, "method_not_allowed", METHOD_NOT_ALLOWED, Any, "the path does not take this method";
    /// We never heard of the group.
    GroupUnknown = 5123, "group_unknown", NOT_FOUND, Read, "the group is not in the mirror";
    /// The user is not a current member.
    MemberUnknown = 5124, "member_unknown", NOT_FOUND, Read, "the user is not a current member of the group";
    /// The database is away or too slow.
    DatabaseAway = 5201, "database_away", SERVICE_UNAVAILABLE, Any, "the database is away";
    /// Bodies take all of MAX_BODY_MEMORY, or answers all of MAX_ANSWER_MEMORY.
    Busy = 5203, "busy", SERVICE_UNAVAILABLE, Any, "too much at a time";
    /// The database is away, and the spool is full or cannot be written.
    SpoolRefused = 5205, "spool_refused", SERVICE_UNAVAILABLE, Callback, "the database is away, and the spool takes no more";
    /// Some part cannot work, or the service is stopping.
    NotReady = 5204, "not_ready", SERVICE_UNAVAILABLE, Read, "the service is not ready";
    /// A mistake of ours.
    Internal = 5202, "internal", INTERNAL_SERVER_ERROR, Any, "internal error";
}

/// An error on its way to the edge, where it is rendered and, if it is ours, logged.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}", code.name())]
pub(super) struct Error {
    pub(super) code: Code,
    /// What exactly, for the caller: names the field and what was expected, never a value.
    pub(super) detail: Cow<'static, str>,
    /// What lies behind it, for the log only.
    #[source]
    pub(super) source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// The body that was refused, for whoever keeps it.
    pub(super) body: Option<Received>,
}

impl Error {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            source: None,
            body: None,
        }
    }

    pub(super) fn because(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..self
        }
    }

    pub(super) fn with_body(self, body: Received) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }

    pub(super) fn id(field: &str, error: IdError) -> Self {
        Self::new(Code::IdInvalid, format!("{field}: {error}"))
    }
}

impl ResponseError for Error {
    fn status(&self) -> StatusCode {
        self.code.status()
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Transient(_) => Self::new(Code::DatabaseAway, "try again in a moment"),
            store::Error::Permanent(_) | store::Error::Unreadable(_) => {
                Self::new(Code::Internal, "the log says more")
            }
        }
        .because(error)
    }
}

impl From<ingest::Error> for Error {
    fn from(error: ingest::Error) -> Self {
        match error {
            ingest::Error::Store(error) => error.into(),
            ingest::Error::Refused(_) => {
                Self::new(Code::SpoolRefused, "try again in a moment").because(error)
            }
            ingest::Error::Lost => Self::new(Code::Internal, "the log says more").because(error),
        }
    }
}

/// Ours come back as they are; poem's own are translated, in words that name no Rust type.
impl From<poem::Error> for Error {
    fn from(error: poem::Error) -> Self {
        if error.is::<Error>() {
            return error
                .downcast::<Error>()
                .unwrap_or_else(|_| Self::new(Code::Internal, "the log says more"));
        }
        if let Some(ParseParamError { name, .. }) = error.downcast_ref() {
            return params::invalid(name);
        }
        // Its name for a segment is not the documented one; what can be wrong is the same for all.
        if error.is::<ParsePathError>() {
            return Self::new(
                Code::ParameterInvalid,
                "path: expected percent-encoded UTF-8",
            );
        }
        if error.is::<ContentTypeError>() {
            return Self::new(Code::NotJson, "Content-Type: expected application/json");
        }
        if error.is::<NotFoundError>() {
            return Self::new(Code::PathUnknown, "see /docs for what is");
        }
        if error.is::<MethodNotAllowedError>() {
            return Self::new(Code::MethodNotAllowed, "see /docs for those that it takes");
        }
        Self::new(Code::Internal, "the log says more").because(std::io::Error::other(error))
    }
}
