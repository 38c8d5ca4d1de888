//! Settings for OpenIM: the URL of this service, and the callbacks to send. `serve` prints them when it is up, with its
//! addresses.

use std::io::{self, Write};
use std::net::SocketAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Error;
use crate::config::{Config, ConfigFormat, OpenimConfig, OpenimVersion};
use crate::http::{self, AccessSettings};
use crate::local_postgres::Server;
use crate::store::Database;

/// Characters to escape in the user part of a URL: all but the unreserved ones of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The switch of messages, and those of them that are notifications of groups. Only where OpenIM knows allowedTypes:
/// elsewhere every message would come.
const MESSAGES: &str = "afterSendGroupMsg";
const NOTIFICATIONS: &str = "1501-1520";

/// Seconds.
const TIMEOUT: &str = "5";

/// Text for an unknown version of OpenIM.
const CHOICE: &str = "# OpenIM v3.8.2 to v3.8.3-patch.16 needs one line more, or joins stay unheard: \
                      openim-config --openim patch; others need these: openim-config --openim main";

/// The URL with the key in it, which OpenIM's client sends as HTTP Basic.
fn with_password(url: &str, access: &AccessSettings, show: impl FnOnce(&str) -> String) -> String {
    match (access.callback_passwords.first(), url.split_once("://")) {
        (Some(password), Some((scheme, rest))) => {
            let user = utf8_percent_encode(&access.callback_username, ENCODED);
            format!("{scheme}://{user}:{}@{rest}", show(password.expose()))
        }
        _ => url.to_owned(),
    }
}

/// Writes the settings, in the form of OpenIM's config/webhooks.yml or of the environment.
fn write(
    mut out: impl Write,
    url: &str,
    openim: Option<OpenimVersion>,
    format: ConfigFormat,
) -> io::Result<()> {
    if openim.is_none() {
        writeln!(out, "{CHOICE}")?;
    }
    let has_notifications = openim == Some(OpenimVersion::Patch);
    match format {
        ConfigFormat::Yaml => {
            writeln!(out, "url: {url}")?;
            for switch in http::webhook_switches() {
                writeln!(out, "{switch}: {{ enable: true, timeout: {TIMEOUT} }}")?;
            }
            if has_notifications {
                writeln!(
                    out,
                    "{MESSAGES}: {{ enable: true, timeout: {TIMEOUT}, allowedTypes: [\"{NOTIFICATIONS}\"] }}"
                )?;
            }
        }
        ConfigFormat::Env => {
            for (name, value) in variables(url, has_notifications) {
                writeln!(out, "{name}={value}")?;
            }
        }
        ConfigFormat::Compose => {
            writeln!(out, "environment:")?;
            for (name, value) in variables(url, has_notifications) {
                writeln!(out, "  {name}: {}", quoted(&value))?;
            }
        }
    }
    Ok(())
}

/// OpenIM's names for its settings where they stand in the environment.
fn variables(url: &str, has_notifications: bool) -> Vec<(String, String)> {
    let variable = |name: &str, value: &str| {
        let name = format!("IMENV_WEBHOOKS_{}", name.to_ascii_uppercase());
        (name, value.to_owned())
    };
    let mut all = vec![variable("url", url)];
    let messages = has_notifications.then_some(MESSAGES);
    for switch in http::webhook_switches().chain(messages) {
        all.push(variable(&format!("{switch}_enable"), "true"));
        all.push(variable(&format!("{switch}_timeout"), TIMEOUT));
    }
    if has_notifications {
        all.push(variable(&format!("{MESSAGES}_allowedTypes"), NOTIFICATIONS));
    }
    all
}

/// Quotes a value for a docker-compose file, so that nothing in it is read as a variable.
fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped.replace('$', "$$"))
}

/// The URL of an address. Nobody can connect to an unspecified one (0.0.0.0).
fn url_of(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() {
        format!("http://THIS-HOST:{}", addr.port())
    } else {
        format!("http://{addr}")
    }
}

/// Writes the lines for OpenIM with the real password.
///
/// # Errors
/// If they cannot be written.
pub fn openim_config(config: &Config, asked: OpenimConfig, out: impl Write) -> Result<(), Error> {
    let OpenimConfig {
        url,
        openim,
        format,
    } = asked;
    let url = url.unwrap_or_else(|| url_of(config.listen_addr));
    let url = url.trim_end_matches('/');
    let url = with_password(url, &config.access, |password| {
        utf8_percent_encode(password, ENCODED).to_string()
    });
    write(out, &url, openim, format)?;
    Ok(())
}

/// Prints one line for each address, and the lines for OpenIM.
pub(super) fn announce(
    mut out: impl Write,
    addr: SocketAddr,
    metrics: Option<SocketAddr>,
    access: &AccessSettings,
    (database, server): (&Database, Option<&Server>),
) -> io::Result<()> {
    let private = match server {
        Some(_) => " (private, ends with this process)",
        None => "",
    };
    let url = url_of(addr);
    writeln!(out, "listening on  {url}")?;
    writeln!(out, "docs          {url}/docs")?;
    if let Some(metrics) = metrics {
        writeln!(out, "metrics       {}/metrics", url_of(metrics))?;
    }
    writeln!(out, "database      {database}{private}")?;
    writeln!(
        out,
        "for OpenIM's config/webhooks.yml{}:",
        match access.callback_passwords.as_slice() {
            [] => "",
            _ => " (openim-config prints the password)",
        }
    )?;
    let url = with_password(&url, access, |_| "***".into());
    write(&mut out, &url, None, ConfigFormat::Yaml)?;
    out.flush()
}
