//! Errors of the read side: problem documents (RFC 9457) with a stable `code`.
//!
//! Without `status`, which is optional: an answer to a callback that a proxy has made a GET of would
//! make OpenIM take it over, as the status of a group.

use poem::{IntoResponse, Response};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaResponses, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiResponse, Object};

use super::answers;
use super::error::{Code, Door, Error};

/// Media type of a problem document.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document (RFC 9457). Its type is "about:blank": `code` tells problems apart.
#[derive(Clone, Debug, Object)]
#[oai(example)]
pub(super) struct Problem {
    /// What happened, the same words for the same code.
    pub(super) title: String,
    /// What exactly: names the parameter or field and what was expected.
    pub(super) detail: String,
    /// What to tell problems apart by; never renamed.
    pub(super) code: String,
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

impl Example for Problem {
    fn example() -> Self {
        Self::new(
            Code::ParameterInvalid,
            "limit: expected a whole number from 1 to 1000".into(),
        )
    }
}

/// A failing answer to a read; documents itself, 404 apart, for each operation that returns it.
#[derive(Debug)]
pub(super) struct ReadFailure(Error);

impl<E: Into<Error>> From<E> for ReadFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<ReadFailure> for poem::Error {
    /// Rendered at the edge, by `render`.
    fn from(failure: ReadFailure) -> Self {
        failure.0.into()
    }
}

impl ApiResponse for ReadFailure {
    fn meta() -> MetaResponses {
        answers::failures(Door::Read, || {
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

/// An error as the answer to anything but a callback.
pub(super) fn render(error: &Error) -> Response {
    Json(Problem::new(error.code, error.detail.to_string()))
        .with_status(error.code.status())
        .with_content_type(PROBLEM_JSON)
        .into_response()
}
