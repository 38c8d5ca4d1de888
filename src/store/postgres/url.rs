//! The URL of a database, with the parameters that it may have.
//!
//! sqlx ignores unknown parameters and logs their values, which can be secret. So it gets only the ones that it knows.
//! A parameter of libpq that asks for more safety than sqlx has is an error: to ignore it would make a connection that
//! is less safe than asked.

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

/// Parameters that sqlx knows, beside `options[...]` and those for files of TLS.
const KNOWN: [&str; 11] = [
    "sslmode",
    "ssl-mode",
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

/// Parameters that name files for TLS, by all their names.
pub(super) const TLS_FILE_NAMES: [&str; 7] = [
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
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

/// Parameters of libpq about safety, or about another server: the values that the mirror can accept, and the solution
/// for others.
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
        // rustls has no version before TLSv1.2.
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

/// Parameters of libpq that look like those about safety, and do no harm if they are ignored: without the password of a
/// key there is no connection.
const HARMLESS: [&str; 6] = [
    "sslcompression",
    "sslpassword",
    "sslkeylogfile",
    "ssl_max_protocol_version",
    "gssdelegation",
    "gsslib",
];

/// Starts of names that are about safety. An unknown one is misspelt, or belongs to another driver.
const SAFETY_PREFIXES: [&str; 6] = ["ssl", "tls", "require", "channel", "gss", "target"];

/// Variables that libpq reads if the URL lacks the parameter.
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

/// Reason why a URL, or a variable beside it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: expected {expected}")]
pub struct UrlError {
    /// Name of the setting.
    pub setting: &'static str,
    /// Expected value. Quotes no value: it can be secret.
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

/// A parameter: its text in the URL, its name, its value.
struct Parameter<'a> {
    text: &'a str,
    key: String,
    value: String,
}

impl Parameter<'_> {
    fn is_known(&self) -> bool {
        let key = self.key.as_str();
        [&KNOWN[..], &TLS_FILE_NAMES].concat().contains(&key)
            || (key.starts_with("options[") && key.ends_with(']'))
    }

    /// True for an empty mode. libpq ignores it; for sqlx it is an error.
    fn is_empty_mode(&self) -> bool {
        is_mode(&self.key) && self.value.is_empty()
    }

    /// Returns the name if it looks like one. In a malformed URL it can be part of a password.
    fn name(&self) -> &str {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        match self.key.len() <= 40 && self.key.bytes().all(is_part) {
            true => &self.key,
            false => "(not a name)",
        }
    }
}

/// Splits a URL into the part before the parameters and the parameters.
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

/// Returns the expected value if the mirror cannot do what a value asks for. An empty value asks for nothing.
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

/// Parses a URL. Returns sqlx's options and the names of ignored parameters.
pub(super) fn parse(url: &str) -> Result<(PgConnectOptions, Vec<String>), UrlError> {
    let (base, parameters) = split(url);
    // sqlx itself accepts any scheme. The part before the parameters is parsed first: if a `?` stands in a password, no
    // error may quote what follows.
    let scheme = base.split_once("://").map(|(scheme, _)| scheme);
    let is_postgres = scheme.is_some_and(|scheme| ["postgres", "postgresql"].contains(&scheme));
    if !is_postgres || base.parse::<PgConnectOptions>().is_err() {
        return Err(UrlError::of_url(
            "a URL such as postgres://user:password@host:5432/database, special characters \
             percent-encoded",
        ));
    }
    let mut known = Vec::new();
    let mut ignored = Vec::new();
    for parameter in parameters.iter().filter(|one| !one.is_empty_mode()) {
        let key = parameter.key.as_str();
        if let Some(expected) = refuse(key, &parameter.value) {
            return Err(UrlError::of_url(expected));
        }
        let begins_with = |start: &&str| key.to_ascii_lowercase().starts_with(start);
        if parameter.is_known() {
            known.push(parameter.text);
        } else if SAFETY_PREFIXES.iter().any(begins_with)
            && !HARMLESS.contains(&key)
            && !ASKS_FOR_MORE.iter().any(|(name, ..)| *name == key)
        {
            let name = parameter.name();
            return Err(UrlError::of_url(format!(
                "no {name}, which is no parameter of PostgreSQL; that for TLS is sslmode"
            )));
        } else {
            ignored.push(parameter.name().to_owned());
        }
    }
    let options = format!("{base}?{}", known.join("&")).parse();
    let options = options.map_err(|_quotes_a_value| {
        UrlError::of_url(
            "a value of the right form for each of its parameters host, hostaddr, port, sslmode \
             and statement-cache-capacity",
        )
    })?;
    Ok((options, ignored))
}

/// Checks a URL, and the variables that libpq reads.
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
        parsed.map(|(options, ignored)| {
            assert_eq!(options.get_host(), "h");
            ignored
        })
    }

    #[test]
    fn sqlx_gets_known_parameters() {
        let url = format!("{BASE}?sslmode=verify%2Dca&options[lock_timeout]=3s&dbname=e&port=1#x");
        let (options, ignored) = parse(&url).unwrap();
        assert_eq!(ignored, Vec::<String>::new());
        assert_eq!(options.get_database(), Some("e"));
        assert_eq!(options.get_port(), 1);
        assert_eq!(options.get_options(), Some("-c lock_timeout=3s"));
        let mode = format!("{:?}", options.get_ssl_mode());
        assert_eq!(mode, "VerifyCa");
    }

    #[test]
    fn harmless_parameters_are_ignored() {
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
        // These ask for nothing.
        assert!(of("sslcrl=&require_auth=&target_session_attrs=any").is_ok());
    }

    #[test]
    fn no_error_quotes_a_value() {
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
        // A `?` stands in the password.
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
