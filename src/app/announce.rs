//! The lines that `serve` prints when the service is up: its addresses, and the lines for OpenIM.

use std::io::{self, Write};
use std::net::SocketAddr;

use super::webhooks;
use crate::config::ConfigFormat;
use crate::http::AccessSettings;
use crate::local_postgres::Server;
use crate::store::Database;

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
    let url = webhooks::url_of(addr);
    writeln!(out, "listening on  {url}")?;
    writeln!(out, "docs          {url}/docs")?;
    if let Some(metrics) = metrics {
        writeln!(out, "metrics       {}/metrics", webhooks::url_of(metrics))?;
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
