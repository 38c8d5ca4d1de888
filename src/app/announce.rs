//! What one needs to use the service, told once it is up.

use std::io::{self, Write};
use std::net::SocketAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::AccessSettings;
use crate::local_postgres::Server;
use crate::store::Database;

/// What may stand in the user part of a URL as it is (RFC 3986, unreserved).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// OpenIM's switches of what tells about groups and their members. Not beforeMemberJoinGroup, which
/// tells more: with it on, nobody can join a group while this service is away.
const SWITCHES: [&str; 9] = [
    "afterCreateGroup",
    "afterJoinGroup",
    "afterQuitGroup",
    "afterKickGroupMember",
    "afterDismissGroup",
    "afterTransferGroupOwner",
    "afterSetGroupInfo",
    "afterSetGroupInfoEx",
    "afterSetGroupMemberInfo",
];

/// In one line each.
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
    webhooks(&mut out, &url, access, |_| "***".into())?;
    out.flush()
}

/// The address as a URL. An unspecified one (0.0.0.0) is none to go to.
pub(super) fn url_of(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() {
        format!("http://THIS-HOST:{}", addr.port())
    } else {
        format!("http://{addr}")
    }
}

/// The lines for OpenIM's config/webhooks.yml: where it reaches us, with the key in the URL, which
/// OpenIM's client sends as HTTP Basic.
pub(super) fn webhooks(
    mut out: impl Write,
    url: &str,
    access: &AccessSettings,
    show: impl FnOnce(&str) -> String,
) -> io::Result<()> {
    let url = match (access.callback_passwords.first(), url.split_once("://")) {
        (Some(password), Some((scheme, rest))) => {
            let user = utf8_percent_encode(&access.callback_username, ENCODED);
            format!("{scheme}://{user}:{}@{rest}", show(password.expose()))
        }
        _ => url.to_owned(),
    };
    writeln!(out, "url: {url}")?;
    for switch in SWITCHES {
        writeln!(out, "{switch}: {{ enable: true, timeout: 5 }}")?;
    }
    Ok(())
}

/// As in a URL.
pub(super) fn encode(password: &str) -> String {
    utf8_percent_encode(password, ENCODED).to_string()
}
