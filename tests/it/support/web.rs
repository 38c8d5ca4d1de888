//! HTTP clients of the tests.

use std::sync::Once;

/// A client to be built. The library has to be told whose cryptography it is to use before the first
/// one is made, though nothing here is encrypted.
pub fn client() -> reqwest::ClientBuilder {
    static CHOSEN: Once = Once::new();
    CHOSEN.call_once(|| {
        // The service in this process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder()
}

/// Like `reqwest::get`.
pub async fn get(url: impl reqwest::IntoUrl) -> reqwest::Result<reqwest::Response> {
    client().build()?.get(url).send().await
}
