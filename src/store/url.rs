//! The URL of a database: which parameters it may have.
//!
//! sqlx passes over the parameters that it does not know, and logs their values, which may be
//! secret. So it gets only those that it knows. Of the others, libpq's are told apart: one that
//! asks for more safety than sqlx has is an error, because to pass over it is to connect less
//! safely than asked.

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

/// What sqlx understands, besides `options[...]`.
const KNOWN: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

const VERIFY: &str = "sslmode=verify-full makes sure of the server";
const WRITE_OUT: &str = "write host, port, user and database into DATABASE_URL";

/// Parameters of libpq that ask for safety, or for another server: the values that ask for no more
/// than there is, and what is to be done instead of others.
const ASKS_FOR_MORE: [(&str, &[&str], &str); 15] = [
    ("channel_binding", &["disable", "prefer"], VERIFY),
    ("require_auth", &[], VERIFY),
    (
        "target_session_attrs",
        &["any"],
        "name the primary as the host: a server that takes no writes is not written to, and \
         callbacks wait in the spool",
    ),
    ("gssencmode", &["disable", "prefer"], VERIFY),
    (
        "sslnegotiation",
        &["postgres"],
        "sslmode=require refuses a server without TLS",
    ),
    ("sslcertmode", &["disable", "allow"], VERIFY),
    ("sslsni", &["1"], "the name of the host is always told"),
    (
        // rustls knows none before TLSv1.2.
        "ssl_min_protocol_version",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "the server can be told to take no less",
    ),
    ("min_protocol_version", &["3.0"], "the protocol is 3.0 here"),
    ("sslcrl", &[], VERIFY),
    ("sslcrldir", &[], VERIFY),
    (
        "requirepeer",
        &[],
        "put the socket into a folder that only the server's user can write to",
    ),
    (
        "requiressl",
        &["0"],
        "sslmode=require is its name since PostgreSQL 8",
    ),
    ("service", &[], WRITE_OUT),
    ("servicefile", &[], WRITE_OUT),
];

/// Parameters of libpq whose names begin as those about safety, and that do no harm when they are
/// passed over: without the password of a key there is no connection at all.
const HARMLESS: [&str; 6] = [
    "sslcompression",
    "sslpassword",
    "sslkeylogfile",
    "ssl_max_protocol_version",
    "gssdelegation",
    "gsslib",
];

/// How names begin that are about safety. One that nobody knows is misspelt, or another driver's.
const OF_SAFETY: [&str; 6] = ["ssl", "tls", "require", "channel", "gss", "target"];

/// Variables that libpq reads where the URL has no such parameter.
const VARIABLES: [(&str, &str); 15] = [
    ("PGSSLMODE", "sslmode"),
    ("PGREQUIRESSL", "requiressl"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLSNI", "sslsni"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGMINPROTOCOLVERSION", "min_protocol_version"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGSERVICE", "service"),
];

/// Why a URL, or a variable beside it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: expected {expected}")]
pub struct UrlError {
    /// Whose value it is.
    pub setting: &'static str,
    /// What was expected. Quotes no value: it may be secret.
    pub expected: String,
}

impl UrlError {
    fn of_url(expected: impl Into<String>) -> Self {
        Self {
            setting: "DATABASE_URL",
            expected: expected.into(),
        }
    }
}

/// A parameter: as it stands there, its name, its value.
struct Parameter<'a> {
    text: &'a str,
    key: String,
    value: String,
}

impl Parameter<'_> {
    fn is_known(&self) -> bool {
        let key = self.key.as_str();
        KNOWN.contains(&key) || (key.starts_with("options[") && key.ends_with(']'))
    }

    /// An empty one is none to libpq, and an error to sqlx.
    fn is_empty_mode(&self) -> bool {
        is_mode(&self.key) && self.value.is_empty()
    }

    /// The name, if it looks like one: in a URL with a mistake it may be part of a password.
    fn name(&self) -> &str {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        match self.key.len() <= 40 && self.key.bytes().all(is_part) {
            true => &self.key,
            false => "(not a name)",
        }
    }
}

/// What comes before the parameters, and the parameters.
fn split(url: &str) -> (&str, Vec<Parameter<'_>>) {
    let url = url.split_once('#').map_or(url, |(url, _)| url);
    let Some((base, query)) = url.split_once('?') else {
        return (url, Vec::new());
    };
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let parameters = query.split('&').filter(|text| !text.is_empty());
    let parameters = parameters.map(|text| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let (key, value) = (decode(key), decode(value));
        Parameter { text, key, value }
    });
    (base, parameters.collect())
}

fn is_mode(key: &str) -> bool {
    key == "sslmode" || key == "ssl-mode"
}

/// What is expected instead, where a value asks for what there is not. An empty value is none.
fn refuse(key: &str, value: &str) -> Option<String> {
    if value.is_empty() {
        return None;
    }
    if is_mode(key) {
        let is_there = MODES.contains(&value.to_ascii_lowercase().as_str());
        return (!is_there).then(|| format!("sslmode to be one of {}", MODES.join(", ")));
    }
    let (_, had, instead) = ASKS_FOR_MORE.iter().find(|(name, ..)| *name == key)?;
    if had.contains(&value) {
        return None;
    }
    let expected = match had.join(" or ") {
        had if had.is_empty() => format!("no {key}"),
        had => format!("{key} to be {had}"),
    };
    Some(format!(
        "{expected}, because the mirror cannot do more; {instead}"
    ))
}

/// The URL as sqlx reads it, and the names of parameters that are passed over.
///
/// # Errors
/// See [`UrlError`].
pub(super) fn parse(url: &str) -> Result<(PgConnectOptions, Vec<String>), UrlError> {
    let (base, parameters) = split(url);
    // sqlx alone takes any scheme for Postgres. Without the parameters first: where these begin in
    // the midst of a password, no word of them is to be told.
    let scheme = base.split_once("://").map(|(scheme, _)| scheme);
    let is_postgres = scheme.is_some_and(|scheme| ["postgres", "postgresql"].contains(&scheme));
    if !is_postgres || base.parse::<PgConnectOptions>().is_err() {
        return Err(UrlError::of_url(
            "a URL such as postgres://user:password@host:5432/database, special characters \
             percent-encoded",
        ));
    }
    let mut known = Vec::new();
    let mut passed_over = Vec::new();
    for parameter in parameters.iter().filter(|one| !one.is_empty_mode()) {
        let key = parameter.key.as_str();
        if let Some(expected) = refuse(key, &parameter.value) {
            return Err(UrlError::of_url(expected));
        }
        let begins_with = |start: &&str| key.to_ascii_lowercase().starts_with(start);
        if parameter.is_known() {
            known.push(parameter.text);
        } else if OF_SAFETY.iter().any(begins_with)
            && !HARMLESS.contains(&key)
            && !ASKS_FOR_MORE.iter().any(|(name, ..)| *name == key)
        {
            let name = parameter.name();
            return Err(UrlError::of_url(format!(
                "no {name}, which is no parameter of PostgreSQL; that for TLS is sslmode"
            )));
        } else {
            passed_over.push(parameter.name().to_owned());
        }
    }
    let options = format!("{base}?{}", known.join("&")).parse();
    let options = options.map_err(|_quotes_a_value| {
        UrlError::of_url(
            "a value of the right form for each of its parameters host, hostaddr, port, sslmode \
             and statement-cache-capacity",
        )
    })?;
    Ok((options, passed_over))
}

/// Whether a URL can be used, beside what libpq reads of the environment.
///
/// # Errors
/// See [`UrlError`].
pub fn check_url(
    url: &str,
    variable: impl Fn(&'static str) -> Option<String>,
) -> Result<(), UrlError> {
    parse(url)?;
    let (_, parameters) = split(url);
    for (setting, key) in VARIABLES {
        let is_same = |parameter: &Parameter<'_>| {
            let is_named = parameter.key == key || (is_mode(key) && is_mode(&parameter.key));
            is_named && !parameter.is_empty_mode()
        };
        if parameters.iter().any(is_same) {
            continue;
        }
        let expected = variable(setting).and_then(|value| refuse(key, &value));
        if let Some(expected) = expected {
            return Err(UrlError { setting, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "postgres://u:p%3Fq@h:5433/d";

    fn of(query: &str) -> Result<Vec<String>, String> {
        let parsed = parse(&format!("{BASE}?{query}"));
        let parsed = parsed.map_err(|error| error.to_string());
        parsed.map(|(options, passed_over)| {
            assert_eq!(options.get_host(), "h");
            passed_over
        })
    }

    #[test]
    fn what_sqlx_knows_reaches_it() {
        let url = format!("{BASE}?sslmode=verify%2Dca&options[lock_timeout]=3s&dbname=e&port=1#x");
        let (options, passed_over) = parse(&url).unwrap();
        assert_eq!(passed_over, Vec::<String>::new());
        assert_eq!(options.get_database(), Some("e"));
        assert_eq!(options.get_port(), 1);
        assert_eq!(options.get_options(), Some("-c lock_timeout=3s"));
        let mode = format!("{:?}", options.get_ssl_mode());
        assert_eq!(mode, "VerifyCa");
    }

    #[test]
    fn what_does_no_harm_is_passed_over_by_its_name() {
        assert_eq!(
            of("keepalives=1&sslpassword=s&connect%5Ftimeout=3&channel_binding=prefer&sslmode="),
            Ok([
                "keepalives",
                "sslpassword",
                "connect_timeout",
                "channel_binding"
            ]
            .map(str::to_owned)
            .into())
        );
        // What asks for nothing.
        assert!(of("sslcrl=&require_auth=&target_session_attrs=any").is_ok());
    }

    #[test]
    fn a_value_is_never_told() {
        for query in [
            "require_auth=hunter2",
            "channel_binding=hunter2",
            "sslmode=hunter2",
            "sslmod=hunter2",
            "port=hunter2",
            "hostaddr=hunter2",
            "ssl%20hunter2=1",
        ] {
            let error = of(query).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.starts_with("DATABASE_URL: expected "), "{error}");
        }
        // The parameters begin in the midst of the password.
        let error = parse("postgres://u:pass?sslhunter2@h/d").err().unwrap();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert_eq!(of("@hunter2=1"), Ok(vec!["(not a name)".to_owned()]));
    }

    #[test]
    fn other_databases_are_refused() {
        for url in ["mysql://u@h/d", "postgres", "", "postgres:/h", "?sslmode=x"] {
            assert!(parse(url).is_err(), "{url}");
        }
        assert!(parse("postgresql://").is_ok());
    }
}
