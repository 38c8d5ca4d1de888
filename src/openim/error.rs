//! Failures of calls to OpenIM, and what each means for other calls.

use std::time::Duration;

/// Largest answer in bytes, unpacked. OpenIM's services send each other at most 8 MiB, which JSON makes a few times
/// larger.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Most characters of OpenIM's own message that an error quotes.
const MAX_QUOTED_CHARS: usize = 200;

/// The arguments are wrong.
pub(super) const ARGS: i64 = 1001;
/// The user may not do this, or the secret is wrong.
pub(super) const NO_PERMISSION: i64 = 1002;
/// The token is expired, invalid, malformed, not yet valid, unknown, kicked or absent.
const TOKEN_ERRORS: std::ops::RangeInclusive<i64> = 1501..=1507;
/// A service behind the API failed.
const SERVICE_ERRORS: std::ops::RangeInclusive<i64> = 90_000..=99_999;
/// OpenIM failed inside.
const INTERNAL: i64 = 500;
// OpenIM passes gRPC codes on as they are.
/// The answer or the request is larger than OpenIM's services accept from each other.
const RESOURCE_EXHAUSTED: i64 = 8;
/// The service behind the API does not answer in time.
const DEADLINE_EXCEEDED: i64 = 4;
/// No such service runs now.
const UNAVAILABLE: i64 = 14;

/// A difference between an answer and what the call can have as its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A value has another type, at this column.
    #[error("at column {0}")]
    Type(usize),
    /// There is no token, or one that an HTTP header cannot hold.
    #[error("without a token that can be sent")]
    NoToken,
    /// The answer names a group that the request does not name.
    #[error("about another group")]
    OtherGroup,
    /// The answer names a user that the request does not name.
    #[error("about another user")]
    OtherUser,
    /// The answer names a group or a user twice.
    #[error("about the same one twice")]
    Twice,
    /// The changes start at another version.
    #[error("since another version")]
    OtherVersion,
}

/// A call that OpenIM did not answer as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No connection, a broken one, or a timeout.
    #[error("OpenIM cannot be reached: {0}")]
    Transport(String),
    /// An HTTP status other than 200. OpenIM's API has 200 for its own errors too.
    #[error("OPENIM_API_URL answered with HTTP status {0}")]
    Status(u16),
    /// The API has no such path.
    #[error(
        "OPENIM_API_URL has no {0}: expected the address of OpenIM's API, version 3.8.1 or newer"
    )]
    NotFound(&'static str),
    /// HTTP 429, with the pause that it asks for.
    #[error("OpenIM asks for fewer calls")]
    TooMany(Duration),
    /// The answer is not JSON, or ends early.
    #[error("OPENIM_API_URL answered {0} with something that is not JSON")]
    NotJson(&'static str),
    /// The answer is JSON, but not of OpenIM's form.
    #[error("OPENIM_API_URL answered {0} in another form than OpenIM's: {1}")]
    Unexpected(&'static str, Mismatch),
    /// The answer is larger than any of OpenIM.
    #[error("OPENIM_API_URL answered {0} with more than {MAX_ANSWER_BYTES} bytes")]
    TooLarge(&'static str),
    /// An error of OpenIM itself.
    #[error("OpenIM answered {path} with error {code}: {message}")]
    OpenIm {
        /// Path of the call.
        path: &'static str,
        /// OpenIM's errCode.
        code: i64,
        /// OpenIM's errMsg and errDlt, cut.
        message: String,
    },
    /// The API answers, but the service behind it does not.
    #[error(
        "OpenIM's {} service is away: its API answers {path} with error {code}",
        service(path)
    )]
    Away {
        /// Path of the call.
        path: &'static str,
        /// OpenIM's errCode.
        code: i64,
    },
    /// OpenIM refuses the secret or the token.
    #[error("OpenIM does not accept OPENIM_ADMIN_USER_ID and OPENIM_SECRET: error {0}")]
    Refused(i64),
    /// The HTTP client cannot be made.
    #[error("OPENIM_API_URL: no HTTP client can be made: {0}")]
    Setup(String),
}

impl Error {
    /// Makes the error of an errCode other than 0.
    pub(super) fn from_openim(path: &'static str, code: i64, message: &str, detail: &str) -> Self {
        match code {
            UNAVAILABLE | DEADLINE_EXCEEDED => Self::Away { path, code },
            _ => Self::OpenIm {
                path,
                code,
                message: quoted(message, detail),
            },
        }
    }

    /// True if the same call may succeed in a moment.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transport(_)
            | Self::TooMany(_)
            | Self::NotJson(_)
            | Self::Unexpected(_, Mismatch::NoToken)
            | Self::Away { .. } => true,
            Self::Status(status) => *status >= 500,
            Self::OpenIm { code, .. } => *code == INTERNAL || SERVICE_ERRORS.contains(code),
            Self::NotFound(_)
            | Self::TooLarge(_)
            | Self::Unexpected(..)
            | Self::Refused(_)
            | Self::Setup(_) => false,
        }
    }

    /// True if the service behind the API does not run. Its restart may take a while.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// True if a call that asks for less may succeed.
    pub(crate) fn is_too_large(&self) -> bool {
        match self {
            Self::TooLarge(_) => true,
            Self::OpenIm { code, .. } => *code == RESOURCE_EXHAUSTED,
            _ => false,
        }
    }

    /// True if other calls may still succeed.
    pub(crate) fn is_of_call(&self) -> bool {
        match self {
            Self::NotFound(_)
            | Self::Unexpected(_, Mismatch::NoToken)
            | Self::Refused(_)
            | Self::Setup(_) => false,
            // A single group may take its service too long. Without the service no group can be read.
            Self::Away { code, .. } => *code == DEADLINE_EXCEEDED,
            Self::OpenIm { code, .. } => *code != NO_PERMISSION,
            _ => true,
        }
    }

    /// True if OpenIM itself answered, even with an error.
    pub(crate) fn is_of_openim(&self) -> bool {
        matches!(
            self,
            Self::OpenIm { .. } | Self::Unexpected(..) | Self::TooLarge(_)
        )
    }

    /// OpenIM's code, if this is one of its errors.
    pub(crate) fn code(&self) -> Option<i64> {
        match self {
            Self::OpenIm { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True if OpenIM may have seen no token: it answers this code then too.
    pub(super) fn is_args_error(&self) -> bool {
        self.code() == Some(ARGS)
    }

    /// True if OpenIM does not accept the token.
    pub(super) fn is_token_error(&self) -> bool {
        self.code().is_some_and(|code| TOKEN_ERRORS.contains(&code))
    }

    /// The label of the metric.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Transport(_) | Self::Away { .. } => "unreachable",
            Self::Refused(_) => "keys",
            Self::OpenIm { code, .. } if *code == NO_PERMISSION => "keys",
            Self::OpenIm { .. } => "refused",
            Self::TooMany(_) => "too_many",
            _ => "unreadable",
        }
    }
}

/// The name of the OpenIM service that answers a path.
fn service(path: &str) -> &str {
    path.split('/').find(|part| !part.is_empty()).unwrap_or("")
}

/// OpenIM's own message, cut, for an error text.
fn quoted(message: &str, detail: &str) -> String {
    let text = match detail {
        "" => message.to_owned(),
        _ => format!("{message} ({detail})"),
    };
    let is_plain = |c: &char| !c.is_control();
    text.chars()
        .filter(is_plain)
        .take(MAX_QUOTED_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_the_service_that_is_away() {
        let path = "/group/get_groups";
        for (code, is_of_call) in [(14, false), (4, true)] {
            let away = Error::from_openim(path, code, "last resolver error: no children", "");
            assert!(away.is_away() && away.is_transient() && !away.is_of_openim());
            assert_eq!(away.is_of_call(), is_of_call);
            let text = away.to_string();
            assert!(text.contains("OpenIM's group service is away"), "{text}");
            assert!(text.contains(&format!("error {code}")), "{text}");
        }
        let away = Error::from_openim("/auth/get_admin_token", 14, "", "");
        assert!(away.to_string().contains("OpenIM's auth service is away"));
    }

    #[test]
    fn an_answer_can_be_too_large_for_openim_or_for_the_client() {
        let path = "/group/get_groups";
        assert!(Error::from_openim(path, 8, "", "").is_too_large());
        assert!(Error::TooLarge(path).is_too_large());
        for code in [14, 4, 500, 1001, 1004] {
            assert!(!Error::from_openim(path, code, "", "").is_too_large());
        }
        assert!(!Error::from_openim(path, 8, "", "").is_transient());
    }
}
