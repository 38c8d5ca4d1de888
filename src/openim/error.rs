//! Why OpenIM did not answer, and what that means for other calls.

use std::time::Duration;

/// Largest answer, unpacked: OpenIM's own services hand each other 8 MiB at most, of which JSON makes
/// a few times as much.
pub(super) const MAX_ANSWER: usize = 64 << 20;
/// How much of OpenIM's own words an error quotes, in characters.
const QUOTED: usize = 200;

/// The arguments are wrong.
pub(super) const ARGS: i64 = 1001;
/// Not allowed, or the secret is wrong.
pub(super) const NO_PERMISSION: i64 = 1002;
/// Expired, invalid, malformed, not yet valid, unknown, kicked, not existing.
const OF_TOKEN: std::ops::RangeInclusive<i64> = 1501..=1507;
/// Of the services behind the API.
const OF_BACKEND: std::ops::RangeInclusive<i64> = 90_000..=99_999;
/// Something failed inside.
const INTERNAL: i64 = 500;
/// The codes of gRPC come through as they are: the answer, or the request, has more than OpenIM's
/// services hand each other.
const RESOURCE_EXHAUSTED: i64 = 8;
/// The service behind the API does not answer in time.
const DEADLINE_EXCEEDED: i64 = 4;
/// There is no such service just now.
const UNAVAILABLE: i64 = 14;

/// What is odd about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// A value is of another type, in this column.
    #[error("at column {0}")]
    Type(usize),
    /// No token, or none that the head of a request can hold.
    #[error("without a token that can be sent")]
    NoToken,
    /// A group that was not asked for.
    #[error("about another group")]
    OtherGroup,
    /// A user who was not asked for.
    #[error("about another user")]
    OtherUser,
    /// A group or a user who was told already.
    #[error("about the same one twice")]
    Twice,
    /// Changes since another version.
    #[error("since another version")]
    OtherVersion,
}

/// Why OpenIM did not answer a call as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Not reached, or the connection ended, or it took too long.
    #[error("OpenIM cannot be reached: {0}")]
    Transport(String),
    /// Another HTTP status than 200, which OpenIM's API has for its own errors too.
    #[error("OPENIM_API_URL answered with HTTP status {0}")]
    Status(u16),
    /// The API has no such path.
    #[error(
        "OPENIM_API_URL has no {0}: expected the address of OpenIM's API, version 3.8.1 or newer"
    )]
    NotFound(&'static str),
    /// HTTP 429.
    #[error("OpenIM asks for fewer calls")]
    TooMany(Duration),
    /// Not JSON, or cut.
    #[error("OPENIM_API_URL answered {0} with something that is not JSON")]
    Garbled(&'static str),
    /// JSON, but not of the form that OpenIM has.
    #[error("OPENIM_API_URL answered {0} in another form than OpenIM's: {1}")]
    Odd(&'static str, Oddity),
    /// More than any answer of OpenIM.
    #[error("OPENIM_API_URL answered {0} with more than {MAX_ANSWER} bytes")]
    TooLarge(&'static str),
    /// OpenIM's own errors.
    #[error("OpenIM answered {path} with error {code}: {message}")]
    OpenIm {
        /// What was called.
        path: &'static str,
        /// OpenIM's errCode.
        code: i64,
        /// Its errMsg and errDlt, cut.
        message: String,
    },
    /// The API answers, but the service behind it does not.
    #[error(
        "OpenIM's {} service is away: its API answers {path} with error {code}",
        service(path)
    )]
    Away {
        /// What was called.
        path: &'static str,
        /// OpenIM's errCode.
        code: i64,
    },
    /// It does not take the key.
    #[error("OpenIM does not accept OPENIM_ADMIN_USER_ID and OPENIM_SECRET: error {0}")]
    Refused(i64),
    /// The client cannot be made.
    #[error("OPENIM_API_URL: no HTTP client can be made: {0}")]
    Setup(String),
}

impl Error {
    /// An errCode other than 0.
    pub(super) fn of_openim(path: &'static str, code: i64, message: &str, detail: &str) -> Self {
        match code {
            UNAVAILABLE | DEADLINE_EXCEEDED => Self::Away { path, code },
            _ => Self::OpenIm {
                path,
                code,
                message: quoted(message, detail),
            },
        }
    }

    /// Whether the same call may succeed in a moment.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transport(_)
            | Self::TooMany(_)
            | Self::Garbled(_)
            | Self::Odd(_, Oddity::NoToken)
            | Self::Away { .. } => true,
            Self::Status(status) => *status >= 500,
            Self::OpenIm { code, .. } => *code == INTERNAL || OF_BACKEND.contains(code),
            Self::NotFound(_)
            | Self::TooLarge(_)
            | Self::Odd(..)
            | Self::Refused(_)
            | Self::Setup(_) => false,
        }
    }

    /// Whether the service behind the API is away, which may be for as long as it takes to start it.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// Whether less may be answered.
    pub(super) fn is_too_large(&self) -> bool {
        match self {
            Self::TooLarge(_) => true,
            Self::OpenIm { code, .. } => *code == RESOURCE_EXHAUSTED,
            _ => false,
        }
    }

    /// Whether another call may succeed all the same.
    pub(super) fn is_of_call(&self) -> bool {
        match self {
            Self::NotFound(_)
            | Self::Odd(_, Oddity::NoToken)
            | Self::Refused(_)
            | Self::Setup(_) => false,
            // One group may take its service too long; but none is read where there is no service.
            Self::Away { code, .. } => *code == DEADLINE_EXCEEDED,
            Self::OpenIm { code, .. } => *code != NO_PERMISSION,
            _ => true,
        }
    }

    /// Whether it was OpenIM that answered, be it with an error.
    pub(super) fn is_of_openim(&self) -> bool {
        matches!(
            self,
            Self::OpenIm { .. } | Self::Odd(..) | Self::TooLarge(_)
        )
    }

    /// OpenIM's code, if it is one of its errors.
    pub(super) fn code(&self) -> Option<i64> {
        match self {
            Self::OpenIm { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether OpenIM may not have seen a token.
    pub(super) fn is_of_args(&self) -> bool {
        self.code() == Some(ARGS)
    }

    pub(super) fn is_of_token(&self) -> bool {
        self.code().is_some_and(|code| OF_TOKEN.contains(&code))
    }

    /// For a metric.
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

/// Which of OpenIM's services answers a path.
fn service(path: &str) -> &str {
    path.split('/').find(|part| !part.is_empty()).unwrap_or("")
}

/// OpenIM's own words, for an error.
fn quoted(message: &str, detail: &str) -> String {
    let text = match detail {
        "" => message.to_owned(),
        _ => format!("{message} ({detail})"),
    };
    let is_plain = |c: &char| !c.is_control();
    text.chars().filter(is_plain).take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_away_is_told_in_words() {
        let path = "/group/get_groups";
        for (code, is_of_call) in [(14, false), (4, true)] {
            let away = Error::of_openim(path, code, "last resolver error: no children", "");
            assert!(away.is_away() && away.is_transient() && !away.is_of_openim());
            assert_eq!(away.is_of_call(), is_of_call);
            let text = away.to_string();
            assert!(text.contains("OpenIM's group service is away"), "{text}");
            assert!(text.contains(&format!("error {code}")), "{text}");
        }
        let away = Error::of_openim("/auth/get_admin_token", 14, "", "");
        assert!(away.to_string().contains("OpenIM's auth service is away"));
    }

    #[test]
    fn too_large_is_too_large_whoever_says_so() {
        let path = "/group/get_groups";
        assert!(Error::of_openim(path, 8, "", "").is_too_large());
        assert!(Error::TooLarge(path).is_too_large());
        for code in [14, 4, 500, 1001, 1004] {
            assert!(!Error::of_openim(path, code, "", "").is_too_large());
        }
        assert!(!Error::of_openim(path, 8, "", "").is_transient());
    }
}
