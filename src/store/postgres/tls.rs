//! TLS to the database, with the rules of libpq for `sslmode`, and explanations of TLS errors.
//!
//! rustls reads only certificates of X.509 version 3, even without a check of them. OpenSSL, which sqlx could use
//! instead, reads older ones. But then every build needs OpenSSL's headers or a build of OpenSSL, and the administrator
//! has to follow its security updates.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::percent_decode_str;
use rustls::CertificateError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};

use super::url::TLS_FILE_NAMES;
use crate::store::error::OpenError;

/// SQLSTATE invalid_authorization_specification: no line of pg_hba.conf allows such a connection.
const NOT_ALLOWED: &str = "28000";

/// sqlx's names of the parameters for files.
const FILES: [&str; 3] = ["sslrootcert", "sslcert", "sslkey"];
/// Start of the value of such a parameter in sqlx's URL.
const FILE: &str = "file: ";
/// Applies two rules of libpq that sqlx does not have: a Unix socket has no TLS, and `require` with `sslrootcert` means
/// `verify-ca`. Fails if one of the files cannot be read.
pub(super) fn apply_rules(
    options: PgConnectOptions,
    url: &str,
) -> Result<PgConnectOptions, OpenError> {
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
            continue; // the value is the certificate
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

/// Finds the files for TLS that the URL or the environment names. sqlx tells them only in a URL, which is safe to make
/// only for plain names of host and user.
fn files(url: &str) -> Vec<(&'static str, String)> {
    let url = url.split_once('#').map_or(url, |(url, _)| url);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let of_tls = query.split('&').filter(|parameter| {
        let key = parameter.split('=').next().unwrap_or_default();
        // sqlx logs the values of parameters that it does not know, so pass it no others.
        TLS_FILE_NAMES.contains(&&*percent_decode_str(key).decode_utf8_lossy())
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

/// Connects. Tries again without TLS (`prefer`) or with it (`allow`), like libpq.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let first = match options.connect().await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    let (other, is_tried) = match options.get_ssl_mode() {
        PgSslMode::Prefer => (
            PgSslMode::Disable,
            is_tls_error(&first) || is_not_allowed(&first),
        ),
        PgSslMode::Allow => (PgSslMode::Require, is_not_allowed(&first)),
        _ => return Err(first),
    };
    if !is_tried {
        return Err(first);
    }
    match options.clone().ssl_mode(other).connect().await {
        Ok(connection) => {
            if is_tls_error(&first) {
                warn_once(&first);
            }
            Ok(connection)
        }
        // The first error tells the cause.
        Err(second) if is_tls_error(&second) || is_not_allowed(&second) => Err(first),
        Err(second) => Err(second),
    }
}

fn warn_once(error: &sqlx::Error) {
    static HAS_WARNED: AtomicBool = AtomicBool::new(false);
    if HAS_WARNED.swap(true, Ordering::Relaxed) {
        return;
    }
    let cause = explain(error, "").unwrap_or_else(|| error.to_string());
    tracing::warn!(
        cause,
        "the connections to the database are not encrypted: TLS does not work there, and sslmode=prefer \
         does without"
    );
}

fn is_not_allowed(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == NOT_ALLOWED)
}

fn is_tls_error(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => rustls_error(error).is_some(),
        _ => false,
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    if error.kind() != ErrorKind::InvalidData {
        return None;
    }
    error.get_ref()?.downcast_ref()
}

/// Explains an error of TLS and its solution. `None`: it is another error. `host` is the name that the certificate must
/// have.
pub(super) fn explain(error: &sqlx::Error, host: &str) -> Option<String> {
    let error = match error {
        sqlx::Error::Tls(error) => return Some(error.to_string()),
        sqlx::Error::Io(error) => rustls_error(error)?,
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
        // webpki's errors have no public type here. Their text is their name.
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
