//! The healthcheck of a container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Error;
use crate::config::Config;

/// Timeout of the request.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the service on `LISTEN_ADDR` if it is alive. It does not ask for readiness, because a database that is away is
/// no reason for a restart.
///
/// # Errors
/// [`Error::Unhealthy`] if there is no good answer in time.
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
        // Nothing is encrypted here, so the system needs no certificates.
        .tls_certs_only([])
        .build()
        .map_err(unhealthy)?;
    let answer = client.get(&url).send().await.map_err(unhealthy)?;
    answer.error_for_status().map_err(unhealthy)?;
    Ok(())
}
