//! What is asked of the program besides serving, each in a moment.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::database::{self, Private};
use super::{Error, PRIVATE_STOP, announce, webhooks};
use crate::config::{Config, OpenimConfig};

/// How long a healthy service may take to say so.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// Brings the database's schema up to date.
///
/// # Errors
/// See [`Error`].
pub async fn migrate(config: &Config) -> Result<(), Error> {
    let (database, server) = database::find(config, Private::Own).await?;
    let migrated = database.migrate().await;
    database::stop(server, PRIVATE_STOP).await?;
    migrated?;
    tracing::info!(%database, "the schema is up to date");
    Ok(())
}

/// Writes the settings that OpenIM needs, with the real password.
///
/// # Errors
/// When they cannot be written.
pub fn openim_config(config: &Config, asked: OpenimConfig, out: impl Write) -> Result<(), Error> {
    let OpenimConfig {
        url,
        openim,
        format,
    } = asked;
    let url = url.unwrap_or_else(|| announce::url_of(config.listen_addr));
    let url = url.trim_end_matches('/');
    let url = webhooks::with_password(url, &config.access, webhooks::encode);
    webhooks::write(out, &url, openim, format)?;
    Ok(())
}

/// Asks the service on `LISTEN_ADDR` of this machine whether it is alive. Not whether it is ready:
/// a database that is away is no reason to restart it.
///
/// # Errors
/// [`Error::Unhealthy`] if it does not say so in time.
pub async fn healthcheck(config: &Config) -> Result<(), Error> {
    let addr = config.listen_addr;
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let url = format!("http://{}/livez", SocketAddr::new(ip, addr.port()));
    let unhealthy = |error: reqwest::Error| Error::Unhealthy(format!("{url}: {error}"));
    crate::openim::choose_cryptography();
    let client = reqwest::Client::builder()
        .timeout(HEALTH_TIMEOUT)
        .no_proxy()
        // Nothing is encrypted here, so the system's certificates need not be there.
        .tls_certs_only([])
        .build()
        .map_err(unhealthy)?;
    let answer = client.get(&url).send().await.map_err(unhealthy)?;
    answer.error_for_status().map_err(unhealthy)?;
    Ok(())
}
