//! What one needs to use the service, told once it is up.

use std::io::{self, Write};
use std::net::SocketAddr;

use super::webhooks;
use crate::config::ConfigFormat;
use crate::http::AccessSettings;
use crate::local_postgres::Server;
use crate::store::Database;

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
    let url = webhooks::with_password(&url, access, |_| "***".into());
    webhooks::write(&mut out, &url, None, ConfigFormat::Yaml)?;
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
