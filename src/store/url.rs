//! The URL of the database: what libpq understands in one, and sqlx does not.
//!
//! sqlx passes over a parameter that it does not know, and writes its value to the log. So no such
//! parameter reaches it: one that asks for more safety than there would be is refused, the others are
//! left out.

use std::borrow::Cow;

use sqlx::postgres::PgConnectOptions;

/// Why a URL cannot be used. Never repeats a value: it may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL of a Postgres database.
    #[error(
        "a URL such as postgres://user:password@host:5432/database, special characters percent-encoded"
    )]
    Form,
    /// A parameter with a value that is not one of its values.
    #[error("{expected} for the parameter {name}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it can be.
        expected: &'static str,
    },
    /// A parameter that asks for a check that is not made here.
    #[error(
        "no parameter {name}: the check that it asks for is not made by this service. {instead}"
    )]
    Unmet {
        /// Its name.
        name: &'static str,
        /// What to do.
        instead: &'static str,
    },
}

/// Parameters that sqlx understands.
const UNDERSTOOD: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// A parameter of libpq that makes a connection safer, the values of it that ask for nothing, the
/// variable that says the same, and what to do instead.
struct Safety {
    name: &'static str,
    harmless: &'static [&'static str],
    variable: &'static str,
    instead: &'static str,
}

const TLS: &str = "sslmode=verify-full with sslrootcert makes sure of the server";

const SAFETY: [Safety; 14] = [
    Safety {
        name: "channel_binding",
        harmless: &["", "disable", "prefer"],
        variable: "PGCHANNELBINDING",
        instead: TLS,
    },
    Safety {
        name: "require_auth",
        harmless: &[""],
        variable: "PGREQUIREAUTH",
        instead: TLS,
    },
    Safety {
        name: "target_session_attrs",
        harmless: &["", "any"],
        variable: "PGTARGETSESSIONATTRS",
        instead: "Name the primary as the host; a server that takes no writes is not written to, \
                  and callbacks wait in the spool",
    },
    Safety {
        name: "gssencmode",
        harmless: &["", "disable", "prefer"],
        variable: "PGGSSENCMODE",
        instead: TLS,
    },
    Safety {
        name: "requiressl",
        harmless: &["", "0"],
        variable: "PGREQUIRESSL",
        instead: "sslmode=require is its name today",
    },
    Safety {
        name: "requirepeer",
        harmless: &[""],
        variable: "PGREQUIREPEER",
        instead: "Put the socket into a folder that only the server's user can write to",
    },
    Safety {
        name: "sslcertmode",
        harmless: &["", "disable", "allow"],
        variable: "PGSSLCERTMODE",
        instead: "sslcert and sslkey are shown to a server that asks for them",
    },
    Safety {
        name: "sslcrl",
        harmless: &[""],
        variable: "PGSSLCRL",
        instead: TLS,
    },
    Safety {
        name: "sslcrldir",
        harmless: &[""],
        variable: "PGSSLCRLDIR",
        instead: TLS,
    },
    Safety {
        name: "ssl_min_protocol_version",
        harmless: &["", "TLSv1", "TLSv1.1", "TLSv1.2"],
        variable: "PGSSLMINPROTOCOLVERSION",
        instead: "TLS is 1.2 or 1.3 here; the server's ssl_min_protocol_version can ask for more",
    },
    Safety {
        name: "min_protocol_version",
        harmless: &["", "3.0"],
        variable: "PGMINPROTOCOLVERSION",
        instead: "The protocol is 3.0 here",
    },
    Safety {
        name: "sslpassword",
        harmless: &[""],
        variable: "",
        instead: "Give a key file that is not encrypted, readable by the service alone",
    },
    Safety {
        name: "service",
        harmless: &[""],
        variable: "PGSERVICE",
        instead: "Write what the service file says into the URL",
    },
    Safety {
        name: "servicefile",
        harmless: &[""],
        variable: "PGSERVICEFILE",
        instead: "Write what the service file says into the URL",
    },
];

const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Variables of libpq that ask for more safety than there would be; whoever reads the environment
/// checks them by [`check_variable`].
pub fn safety_variables() -> impl Iterator<Item = &'static str> {
    let variables = SAFETY.iter().map(|safety| safety.variable);
    variables.filter(|variable| !variable.is_empty())
}

/// Whether a variable of libpq asks for nothing that is not done; if not, what to do instead.
///
/// # Errors
/// What to do instead.
pub fn check_variable(name: &str, value: &str) -> Result<(), &'static str> {
    let unmet = SAFETY
        .iter()
        .find(|safety| safety.variable == name && !safety.harmless.contains(&value));
    unmet.map_or(Ok(()), |safety| Err(safety.instead))
}

/// Whether the text is a URL of a Postgres database that can be used as it asks for.
///
/// # Errors
/// See [`UrlError`].
pub fn check_url(url: &str) -> Result<(), UrlError> {
    parse(url).map(|_| ())
}

/// The options of a URL, and the names of the parameters that are passed over.
pub(super) fn parse(url: &str) -> Result<(PgConnectOptions, Vec<String>), UrlError> {
    // sqlx alone takes any scheme for Postgres.
    let (scheme, _) = url.split_once("://").ok_or(UrlError::Form)?;
    if !["postgres", "postgresql"].contains(&scheme) {
        return Err(UrlError::Form);
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (query, _fragment) = query.split_once('#').unwrap_or((query, ""));
    let mut understood = Vec::new();
    let mut passed_over = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (name, value) = (decoded(name), decoded(value));
        check(&name, &value)?;
        if UNDERSTOOD.contains(&&*name) || is_option(&name) {
            understood.push(part);
        } else {
            passed_over.push(name.into_owned());
        }
    }
    let understood = understood.join("&");
    let url = match understood.is_empty() {
        true => base.to_owned(),
        false => format!("{base}?{understood}"),
    };
    let options = url.parse().map_err(|_| UrlError::Form)?;
    Ok((options, passed_over))
}

/// A setting of the session, `options[NAME]`.
fn is_option(name: &str) -> bool {
    name.starts_with("options[") && name.ends_with(']')
}

fn check(name: &str, value: &str) -> Result<(), UrlError> {
    let is_mode = ["sslmode", "ssl-mode"].contains(&name);
    if is_mode && !SSL_MODES.contains(&value.to_ascii_lowercase().as_str()) {
        return Err(UrlError::Value {
            name: "sslmode",
            expected: "disable, allow, prefer, require, verify-ca or verify-full",
        });
    }
    let unmet = SAFETY
        .iter()
        .find(|safety| safety.name == name && !safety.harmless.contains(&value));
    unmet.map_or(Ok(()), |safety| {
        Err(UrlError::Unmet {
            name: safety.name,
            instead: safety.instead,
        })
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    let text = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&text).decode_utf8_lossy();
    Cow::Owned(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "postgres://user:secret@db.example:5433/mirror";

    fn of(query: &str) -> Result<(PgConnectOptions, Vec<String>), UrlError> {
        parse(&format!("{URL}?{query}"))
    }

    /// What sqlx would not know never reaches it, so it cannot write a value to the log.
    #[test]
    fn parameters_that_sqlx_does_not_know_are_left_out() {
        let (options, passed_over) = of(
            "scram_client_key=a&sslmode=require&oauth_client_secret=b&connect_timeout=3&%73slkey=k",
        )
        .unwrap();
        assert_eq!(
            passed_over,
            ["scram_client_key", "oauth_client_secret", "connect_timeout"]
        );
        assert_eq!(options.get_host(), "db.example");
        assert_eq!(options.get_port(), 5433);
        assert_eq!(options.get_database(), Some("mirror"));
    }

    #[test]
    fn more_safety_than_there_is_is_refused() {
        for (query, name) in [
            ("channel_binding=require", "channel_binding"),
            ("sslmode=require&require_auth=scram-sha-256", "require_auth"),
            ("target_session_attrs=read-write", "target_session_attrs"),
            ("target%5Fsession_attrs=primary", "target_session_attrs"),
            ("gssencmode=require", "gssencmode"),
            ("sslcrl=/etc/crl.pem", "sslcrl"),
            (
                "ssl_min_protocol_version=TLSv1.3",
                "ssl_min_protocol_version",
            ),
            ("requiressl=1", "requiressl"),
            ("sslpassword=hidden", "sslpassword"),
        ] {
            let error = of(query).unwrap_err();
            assert!(
                matches!(error, UrlError::Unmet { name: of, .. } if of == name),
                "{query}: {error:?}"
            );
            assert!(!error.to_string().contains("hidden"));
        }
        for query in [
            "channel_binding=prefer",
            "target_session_attrs=any",
            "ssl_min_protocol_version=TLSv1.2",
            "gssencmode=disable",
            "sslmode=verify-full",
        ] {
            of(query).unwrap();
        }
    }

    #[test]
    fn a_value_that_is_none_names_its_parameter() {
        let error = of("sslmode=hidden").unwrap_err();
        assert_eq!(
            error.to_string(),
            "disable, allow, prefer, require, verify-ca or verify-full for the parameter sslmode"
        );
        for url in ["mysql://h/d", "nonsense", "postgres://h:none/d"] {
            assert_eq!(parse(url).unwrap_err(), UrlError::Form, "{url}");
        }
    }

    #[test]
    fn variables_say_the_same() {
        assert!(check_variable("PGREQUIREAUTH", "scram-sha-256").is_err());
        assert!(check_variable("PGCHANNELBINDING", "prefer").is_ok());
        assert!(check_variable("PGUSER", "require").is_ok());
        assert!(safety_variables().any(|name| name == "PGTARGETSESSIONATTRS"));
    }
}
