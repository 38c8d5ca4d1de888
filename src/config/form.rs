//! Forms of values of settings: the check of a text, and its description in errors and docs.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::domain::UserId;
use crate::telemetry::LogFormat;

/// Form of a value.
#[derive(Debug)]
pub(super) enum Form {
    /// A whole number between two bounds.
    Number(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A text that fits the check, with a description.
    Text(fn(&str) -> bool, &'static str),
    /// Every text that the type of the setting can be read from, with a description.
    Typed(&'static str),
}

pub(super) const ADDRESS: Form =
    Form::Typed("an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080");
pub(super) const SWITCH: Form = Form::OneOf(&["true", "false"]);
pub(super) const URL_OF_SERVER: Form = Form::Text(is_base_url, BASE_URL);
pub(super) const BASE_URL: &str =
    "http://HOST:PORT or https://HOST:PORT, without user and password";
pub(super) const FOLDER: Form = Form::Typed("a folder");
pub(super) const ANY: Form = Form::Typed("a text in UTF-8");
/// The characters that HTTP Basic can carry (RFC 7617).
pub(super) const USERNAME: Form = Form::Text(
    |text| !text.is_empty() && !text.contains(|c: char| c == ':' || c.is_control()),
    "a user name without colons and control characters",
);
pub(super) const PASSWORD: Form = Form::Text(
    |text| !text.contains(char::is_control),
    "a password without control characters",
);
pub(super) const TOKENS: Form = Form::Text(
    |text| list(text).all(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())),
    "a token of visible ASCII characters, or several with one comma between them",
);
pub(super) const USER_IDS: Form =
    Form::Typed("user ids of 1 to 1,024 bytes, with one comma between two");
pub(super) const SCHEMA: Form = Form::Text(
    is_plain_name,
    "1 to 63 lower-case letters, digits and _, not starting with a digit or pg_",
);
pub(super) const LOG_FILTER: Form = Form::Text(
    is_log_filter,
    "a level (off, error, warn, info, debug, trace), or target=level pairs joined by commas",
);

impl Form {
    /// The value, if the text has this form. `unit` is the unit of a duration.
    pub(super) fn read<T: Value>(&self, text: &OsStr, unit: &str) -> Option<T> {
        let fits = |check: &dyn Fn(&str) -> bool| text.to_str().is_some_and(check);
        let is_valid = match self {
            Self::Number(least, most) => {
                fits(&|text| text.parse().is_ok_and(|n| (*least..=*most).contains(&n)))
            }
            Self::OneOf(words) => fits(&|text| words.contains(&text)),
            Self::Text(check, _) => fits(check),
            Self::Typed(_) => true,
        };
        T::read(text, unit).filter(|_| is_valid)
    }

    /// Completes "expected ...".
    pub(super) fn description(&self) -> String {
        match self {
            Self::Number(least, most) => format!("a whole number from {least} to {most}"),
            Self::OneOf(words) => words.join(" or "),
            Self::Text(_, text) | Self::Typed(text) => (*text).to_owned(),
        }
    }

    /// The values, if they can be listed in few words.
    pub(super) fn range(&self) -> Option<String> {
        match self {
            Self::Number(least, most) => Some(format!("{least} to {most}")),
            Self::OneOf(words) => Some(words.join(", ")),
            Self::Text(..) | Self::Typed(_) => None,
        }
    }
}

/// Type of a setting.
pub(super) trait Value: Sized {
    fn read(text: &OsStr, unit: &str) -> Option<Self>;
}

impl Value for PathBuf {
    fn read(text: &OsStr, _: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl Value for Duration {
    fn read(text: &OsStr, unit: &str) -> Option<Self> {
        let number = text.to_str()?.parse().ok()?;
        match unit {
            "MS" => Some(Self::from_millis(number)),
            "SECS" => Some(Self::from_secs(number)),
            _ => None,
        }
    }
}

impl Value for LogFormat {
    fn read(text: &OsStr, _: &str) -> Option<Self> {
        match text.to_str()? {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl Value for Vec<UserId> {
    fn read(text: &OsStr, _: &str) -> Option<Self> {
        list(text.to_str()?)
            .map(|id| UserId::parse(id.to_owned()).ok())
            .collect()
    }
}

macro_rules! parsed {
    ($($type:ty)+) => { $(
        impl Value for $type {
            fn read(text: &OsStr, _: &str) -> Option<Self> {
                text.to_str()?.parse().ok()
            }
        }
    )+ };
}

parsed! { SocketAddr String bool i32 u16 u32 u64 usize }

/// The parts of a list with commas.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// True for the URL of a server, with or without a path, that a user and a password can be put into.
pub(super) fn is_base_url(text: &str) -> bool {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let is_plain = |c: char| c.is_ascii_graphic() && !"@?#".contains(c);
    rest.is_some_and(|rest| {
        rest.chars().all(is_plain) && !rest.is_empty() && !rest.starts_with('/')
    })
}

/// Stricter than tracing, which takes a misspelt level for the name of a target.
fn is_log_filter(filter: &str) -> bool {
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    filter.parse::<Targets>().is_ok()
        && filter
            .split(',')
            .all(|part| part.contains('=') || is_level(part))
}

/// True for a name that Postgres takes without quotes, on a search path too.
fn is_plain_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.starts_with("pg_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_no_log_filter() {
        for good in ["info", "WARN", "off", "info,sqlx=debug", "hyper=trace"] {
            assert!(is_log_filter(good), "{good}");
        }
        for bad in ["warning", "loud", "a=b=c", "info,verbose"] {
            assert!(!is_log_filter(bad), "{bad}");
        }
    }
}
