//! TLS to the database, as libpq has it: what `sslmode` means, and what is wrong with a certificate.
//!
//! rustls reads certificates of X.509 version 3 alone, also where it need not judge them. OpenSSL,
//! which sqlx could use instead, reads older ones; but then everybody who builds this needs OpenSSL's
//! headers or a build of OpenSSL, and has to follow its security updates.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::percent_decode_str;
use rustls::CertificateError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};

use super::connect::OpenError;

/// invalid_authorization_specification: no line of pg_hba.conf is for such a connection.
const NOT_LET_IN: &str = "28000";

/// What sqlx calls a parameter that names a file, and what that looks like in its URL.
const FILES: [&str; 3] = ["sslrootcert", "sslcert", "sslkey"];
const FILE: &str = "file: ";
/// All names that these have in a URL.
const NAMES: [&str; 7] = [
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
];

/// Settles what sqlx does not do as libpq: a Unix socket has no TLS, whatever `sslmode` says; and
/// `require` with `sslrootcert` is `verify-ca`. Fails where a file that is named cannot be read.
pub(super) fn settle(options: PgConnectOptions, url: &str) -> Result<PgConnectOptions, OpenError> {
    if options.get_socket().is_some() || options.get_host().starts_with('/') {
        return Ok(options.ssl_mode(PgSslMode::Disable));
    }
    let files = files(url);
    let is_named = |name: &str| files.iter().any(|(found, _)| *found == name);
    let options = match options.get_ssl_mode() {
        PgSslMode::Disable => return Ok(options),
        PgSslMode::Require if is_named("sslrootcert") => options.ssl_mode(PgSslMode::VerifyCa),
        _ => options,
    };
    let verifies = matches!(
        options.get_ssl_mode(),
        PgSslMode::VerifyCa | PgSslMode::VerifyFull
    );
    for (parameter, value) in files {
        let Some(path) = value.strip_prefix(FILE) else {
            continue; // a certificate itself
        };
        if (parameter != "sslrootcert" || verifies)
            && let Err(error) = File::open(path)
        {
            return Err(OpenError::File {
                parameter,
                path: path.to_owned(),
                error,
            });
        }
    }
    Ok(options)
}

/// The files for TLS that the URL or the environment names, as sqlx has read them. It has no other
/// way to tell, and its URL is safe to make for plain names of host and user only.
fn files(url: &str) -> Vec<(&'static str, String)> {
    let url = url.split_once('#').map_or(url, |(url, _)| url);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let of_tls = query.split('&').filter(|parameter| {
        let key = parameter.split('=').next().unwrap_or_default();
        // No other: sqlx logs the value of one that it does not know.
        NAMES.contains(&&*percent_decode_str(key).decode_utf8_lossy())
    });
    let of_tls: Vec<&str> = of_tls.collect();
    let url = format!("postgres://user@localhost/db?{}", of_tls.join("&"));
    let Ok(options) = url.parse::<PgConnectOptions>() else {
        return Vec::new();
    };
    let known = options.to_url_lossy();
    let named = |name: &'static str| {
        let value = known.query_pairs().find(|(key, _)| key == name);
        value.map(|(_, value)| (name, value.into_owned()))
    };
    FILES.into_iter().filter_map(named).collect()
}

/// Connects, and tries without TLS (`prefer`) or with it (`allow`) where libpq does.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let first = match options.connect().await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    let (other, is_tried) = match options.get_ssl_mode() {
        PgSslMode::Prefer => (
            PgSslMode::Disable,
            is_of_tls(&first) || is_not_let_in(&first),
        ),
        PgSslMode::Allow => (PgSslMode::Require, is_not_let_in(&first)),
        _ => return Err(first),
    };
    if !is_tried {
        return Err(first);
    }
    match options.clone().ssl_mode(other).connect().await {
        Ok(connection) => {
            if is_of_tls(&first) {
                tell_once(&first);
            }
            Ok(connection)
        }
        // The first says what is in the way.
        Err(second) if is_of_tls(&second) || is_not_let_in(&second) => Err(first),
        Err(second) => Err(second),
    }
}

fn tell_once(error: &sqlx::Error) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if IS_TOLD.swap(true, Ordering::Relaxed) {
        return;
    }
    let cause = explain(error, "").unwrap_or_else(|| error.to_string());
    tracing::warn!(
        cause,
        "the connections to the database are not encrypted: TLS does not work there, and sslmode=prefer \
         does without"
    );
}

fn is_not_let_in(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == NOT_LET_IN)
}

fn is_of_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => of_rustls(error).is_some(),
        _ => false,
    }
}

fn of_rustls(error: &io::Error) -> Option<&rustls::Error> {
    if error.kind() != ErrorKind::InvalidData {
        return None;
    }
    error.get_ref()?.downcast_ref()
}

/// What is wrong with TLS, and the way out; `None`: it is something else. `host` is whom the
/// certificate has to be for.
pub(super) fn explain(error: &sqlx::Error, host: &str) -> Option<String> {
    let error = match error {
        sqlx::Error::Tls(error) => return Some(error.to_string()),
        sqlx::Error::Io(error) => of_rustls(error)?,
        _ => return None,
    };
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return Some(error.to_string());
    };
    Some(match certificate {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired; give the server a new one".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; look at the clocks of both machines".into()
        }
        CertificateError::UnknownIssuer => {
            "the issuer of the server's certificate is not known here; name the issuer's certificate in \
             sslrootcert"
                .into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "the server's certificate is not for the host {host}; its subjectAltName has to name it \
                 (the common name does not count), or sslmode=verify-ca goes without"
            )
        }
        // webpki's errors have no type here; their text is their name.
        CertificateError::Other(other) => match other.to_string().as_str() {
            "UnsupportedCertVersion" => "the server's certificate is of X.509 version 1 or 2, and only \
                 version 3 can be read here; give the server one of version 3 (made with extensions, such \
                 as subjectAltName), or set sslmode=disable in a network that is trusted"
                .into(),
            "CaUsedAsEndEntity" => "the server's certificate is that of an authority (CA:TRUE), which may \
                 not be a server's; give the server one with CA:FALSE, and name its issuer's in sslrootcert"
                .into(),
            _ => error.to_string(),
        },
        _ => error.to_string(),
    })
}
