//! The five-field reply that OpenIM expects to a callback, good or bad.

use poem::{IntoResponse, Response};
use poem_openapi::registry::{MetaResponses, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiResponse, Object, ResponseContent};
use serde::Serialize;

use super::super::error::{Code, Error, Side, failures};
use super::super::json_response::JsonResponse;

/// The reply to a callback.
#[derive(Clone, Debug, Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(in crate::http) struct CallbackReply {
    /// 0: the callback was executed; 1: it was not, errCode says why.
    pub(in crate::http) action_code: i32,
    /// 0, or the number of the error.
    pub(in crate::http) err_code: i32,
    /// Text of the error. It is fixed for each errCode.
    pub(in crate::http) err_msg: String,
    /// Details of the error: the field and the expected value.
    pub(in crate::http) err_dlt: String,
    /// 1 in the success reply to callbackAfterSetGroupMemberInfoCommand (0 with
    /// CALLBACK_NEXT_CODE=0), else 0. OpenIM 3.7 and later reads it in before-callbacks only.
    pub(in crate::http) next_code: i32,
}

impl CallbackReply {
    pub(in crate::http) fn success(next_code: i32) -> Self {
        Self {
            action_code: 0,
            err_code: 0,
            err_msg: String::new(),
            err_dlt: String::new(),
            next_code,
        }
    }

    pub(in crate::http) fn failure(code: Code, detail: String) -> Self {
        Self {
            action_code: 1,
            err_code: code.number(),
            err_msg: code.message().into(),
            err_dlt: detail,
            next_code: 0,
        }
    }
}

impl Example for CallbackReply {
    fn example() -> Self {
        Self::success(1)
    }
}

/// A failing answer to a callback; documents itself for each operation that returns it.
#[derive(Debug)]
pub(in crate::http) struct CallbackFailure(Error);

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
pub(in crate::http) fn render(error: &Error) -> Response {
    let reply = CallbackReply::failure(error.code, error.detail.to_string());
    let mut response = JsonResponse(reply).into_response();
    response.set_status(error.code.status());
    response
}

#[cfg(test)]
mod tests {
    use super::super::super::json_response::assert_written_as_documented;
    use super::CallbackReply;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<CallbackReply>();
    }
}
