//! Errors of requests: one table of codes, and one error type. An error becomes a callback reply or a
//! problem document (RFC 9457).
//!
//! A problem document has no `status`, which is optional: a proxy can turn a callback into a GET, and
//! OpenIM would store the `status` of the answer as the status of a group.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use poem::error::{MethodNotAllowedError, NotFoundError, ResponseError};
use poem::http::StatusCode;
use poem::{IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::error::{ParseParamError, ParsePathError};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{
    MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry,
};
use poem_openapi::types::Type;

use super::json_response::json_object;
use crate::domain::IdError;
use crate::{ingest, store};

/// The two sides of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Callbacks only.
    Callback,
    /// Everything but callbacks.
    Read,
    /// Both.
    Any,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $code:ident = $number:literal, $name:literal, $status:ident, $side:ident, $message:literal;)+) => {
        /// Stable code of an error: a number for OpenIM's `errCode`, and a name for people and
        /// backends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code {
            $($(#[doc = $doc])* $code,)+
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

            fn side(self) -> Side {
                match self { $(Code::$code => Side::$side,)+ }
            }

            /// The codes of answers on one side.
            pub(super) fn of_side(side: Side) -> impl Iterator<Item = Code> {
                let is_of_side = move |code: &Code| [side, Side::Any].contains(&code.side());
                Code::ALL.iter().copied().filter(is_of_side)
            }

            /// Constant text of the code.
            pub(super) fn message(self) -> &'static str {
                match self { $(Code::$code => $message,)+ }
            }
        }
    };
}

// 51xx: an error of the request, which a retry does not help. 52xx: an error of the service.
codes! {
    /// Not JSON, not UTF-8, or not an object.
    BodyMalformed = 5101, "body_malformed", BAD_REQUEST, Any, "the body is not a JSON object";
    /// A required field is missing or null.
    FieldMissing = 5102, "field_missing", BAD_REQUEST, Any, "a required field is missing";
    FieldType = 5103, "field_type", BAD_REQUEST, Any, "a field has the wrong type";
    /// An id is empty, too long, or holds U+0000.
    IdInvalid = 5104, "id_invalid", BAD_REQUEST, Any, "an id cannot be used";
    CommandMismatch = 5105, "command_mismatch", BAD_REQUEST, Callback, "callbackCommand does not match the path";
    /// A query parameter or path segment is not what is documented.
    ParameterInvalid = 5106, "parameter_invalid", BAD_REQUEST, Read, "a parameter cannot be used";
    /// A cursor is damaged, or of another path or filter.
    CursorInvalid = 5107, "cursor_invalid", BAD_REQUEST, Read, "the cursor cannot be used";
    TooMany = 5108, "too_many", BAD_REQUEST, Any, "too many items";
    BodyIncomplete = 5109, "body_incomplete", BAD_REQUEST, Any, "the body did not arrive whole";
    BodyTimeout = 5110, "body_timeout", REQUEST_TIMEOUT, Any, "the body took too long";
    CredentialsWrong = 5111, "credentials_wrong", UNAUTHORIZED, Any, "the credentials are missing or wrong";
    /// No key is set, and Host or Origin is not of this machine.
    HostNotLocal = 5112, "host_not_local", FORBIDDEN, Any, "without a key only this machine is answered";
    /// The body is larger than MAX_BODY_BYTES.
    BodyTooLarge = 5113, "body_too_large", PAYLOAD_TOO_LARGE, Any, "the body is too large";
    /// The path has no command, and `callbackCommand` is none.
    CommandUnknown = 5114, "command_unknown", BAD_REQUEST, Callback, "callbackCommand is no command that can be used";
    NotJson = 5115, "not_json", UNSUPPORTED_MEDIA_TYPE, Any, "the Content-Type is not application/json";
    /// Nothing is served at this path. A POST to any path is a callback.
    PathUnknown = 5121, "path_unknown", NOT_FOUND, Read, "nothing is served at this path";
    MethodNotAllowed = 5122, "method_not_allowed", METHOD_NOT_ALLOWED, Any, "the path does not take this method";
    GroupUnknown = 5123, "group_unknown", NOT_FOUND, Read, "the group is not in the mirror";
    MemberUnknown = 5124, "member_unknown", NOT_FOUND, Read, "the user is not a current member of the group";
    /// The database is away or too slow.
    DatabaseAway = 5201, "database_away", SERVICE_UNAVAILABLE, Any, "the database is away";
    /// Bodies hold all of MAX_BODY_MEMORY, or answers all of MAX_ANSWER_MEMORY.
    Busy = 5203, "busy", SERVICE_UNAVAILABLE, Any, "too much at a time";
    SpoolRefused = 5205, "spool_refused", SERVICE_UNAVAILABLE, Callback, "the database is away, and the spool takes no more";
    /// Some part cannot work, or the service is stopping.
    NotReady = 5204, "not_ready", SERVICE_UNAVAILABLE, Read, "the service is not ready";
    /// A bug of the service.
    Internal = 5202, "internal", INTERNAL_SERVER_ERROR, Any, "internal error";
}

/// An error of a request. The middleware renders and logs it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}", code.name())]
pub(super) struct Error {
    pub(super) code: Code,
    /// Details for the caller: the field and the expected value. Never the value that was sent.
    pub(super) detail: Cow<'static, str>,
    /// The cause, for the log only.
    #[source]
    pub(super) source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// The refused body, if there is one to keep.
    pub(super) body: Option<Bytes>,
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

    pub(super) fn with_body(self, body: Bytes) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }

    /// A bug of the service. The log has the details.
    pub(super) fn internal() -> Self {
        Self::new(Code::Internal, "the log says more")
    }

    pub(super) fn path_unknown() -> Self {
        Self::new(Code::PathUnknown, "see /docs for what is")
    }

    /// A parameter that cannot be read. The text of poem-openapi names Rust types.
    fn parameter(name: &str) -> Self {
        let expected = expected_parameter(name).unwrap_or("what /docs says");
        let detail = format!("{name}: expected {expected}");
        Self::new(Code::ParameterInvalid, detail)
    }

    pub(super) fn id(field: &str, error: IdError) -> Self {
        Self::new(Code::IdInvalid, format!("{field}: {error}"))
    }
}

/// The expected value of a parameter. A test of the OpenAPI document finds parameters without one.
pub(super) fn expected_parameter(name: &str) -> Option<&'static str> {
    Some(match name {
        "limit" => "a whole number from 1 to 1000",
        "roleLevel" | "status" => "a whole number from -2147483648 to 2147483647",
        "userID" => "1 to 1024 bytes of UTF-8, at most 100 of them where it can be repeated",
        "groupID" => "1 to 1024 bytes of UTF-8",
        "state" => "current, left or all",
        "for" => "callbacks or reads",
        "checkWanted" => "true or false",
        "cursor" => "the nextCursor of an earlier answer",
        _ => return None,
    })
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
            store::Error::Permanent(_) | store::Error::Unreadable(_) => Self::internal(),
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
            ingest::Error::Lost => Self::internal().because(error),
        }
    }
}

/// Keeps errors of this type, and translates poem's errors to texts without Rust types.
impl From<poem::Error> for Error {
    fn from(error: poem::Error) -> Self {
        if error.is::<Error>() {
            return error.downcast().unwrap_or_else(|_| Self::internal());
        }
        if let Some(ParseParamError { name, .. }) = error.downcast_ref() {
            return Self::parameter(name);
        }
        // The error does not have the documented name of the segment. All segments have one rule.
        if error.is::<ParsePathError>() {
            let detail = "path: expected percent-encoded UTF-8";
            return Self::new(Code::ParameterInvalid, detail);
        }
        if error.is::<NotFoundError>() {
            return Self::path_unknown();
        }
        if error.is::<MethodNotAllowedError>() {
            return Self::new(Code::MethodNotAllowed, "see /docs for those that it takes");
        }
        Self::internal().because(std::io::Error::other(error))
    }
}

/// Media type of a problem document.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Value of Retry-After, a header of each 503.
pub(super) const RETRY_AFTER_SECS: &str = "2";

json_object! {
    /// A problem document (RFC 9457). Its type is "about:blank": `code` distinguishes problems.
    #[oai(example)]
    struct Problem {
        /// Text of the code. One code has one text.
        title "title": String = Code::ParameterInvalid.message().into();
        /// Details: the parameter or field, and the expected value.
        detail "detail": String = "limit: expected a whole number from 1 to 1000".into();
        /// Code of the problem. Codes are never renamed.
        code "code": String = Code::ParameterInvalid.name().into();
    }
}

impl Problem {
    pub(super) fn new(code: Code, detail: String) -> Self {
        Self {
            title: code.message().into(),
            detail,
            code: code.name().into(),
        }
    }
}

/// Renders an error as the answer to anything but a callback.
pub(super) fn render_problem(error: &Error) -> Response {
    Json(Problem::new(error.code, error.detail.to_string()))
        .with_status(error.code.status())
        .with_content_type(PROBLEM_JSON)
        .into_response()
}

/// A failing answer to a read. It documents itself for each operation.
#[derive(Debug)]
pub(super) struct ReadFailure(Error);

impl<E: Into<Error>> From<E> for ReadFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<ReadFailure> for poem::Error {
    fn from(failure: ReadFailure) -> Self {
        failure.0.into()
    }
}

impl ApiResponse for ReadFailure {
    fn meta() -> MetaResponses {
        failures(Side::Read, || {
            vec![MetaMediaType {
                content_type: PROBLEM_JSON,
                schema: Json::<Problem>::schema_ref(),
            }]
        })
    }

    fn register(registry: &mut Registry) {
        Problem::register(registry);
    }
}

/// The failing answers of one side, for an `ApiResponse`: one per status. The completion of the
/// OpenAPI document knows the operation. It removes impossible answers and describes the others.
pub(super) fn failures(side: Side, content: impl Fn() -> Vec<MetaMediaType>) -> MetaResponses {
    let statuses: BTreeSet<u16> = Code::of_side(side)
        .map(|code| code.status().as_u16())
        .collect();
    let header = |(name, description, schema): (&str, &str, MetaSchemaRef)| MetaHeader {
        name: name.into(),
        description: Some(description.into()),
        required: true,
        deprecated: false,
        schema,
    };
    let response = |status| {
        let of_status = match status {
            401 => Some((
                "WWW-Authenticate",
                "The scheme to use.",
                String::schema_ref(),
            )),
            503 => Some((
                "Retry-After",
                "Seconds to wait before a retry.",
                i32::schema_ref(),
            )),
            _ => None,
        };
        MetaResponse {
            description: "",
            status: Some(status),
            status_range: None,
            content: content(),
            headers: of_status.map(header).into_iter().collect(),
        }
    };
    MetaResponses {
        responses: statuses.into_iter().map(response).collect(),
    }
}
