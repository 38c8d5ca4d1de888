//! Calls of OpenIM's REST API: the token, the envelope, retries and limits.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::Access;
use super::error::{ARGS, Error, MAX_ANSWER, NO_PERMISSION, Oddity};
use super::pace;
use super::wire::{Envelope, Token};
use crate::config::Secret;
use crate::telemetry::Metrics;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a call is tried again.
const TRIES_MORE: usize = 4;
/// How long it is tried again where the service behind the API is away: about as long as one takes to
/// be started again.
const AWAY: Duration = Duration::from_secs(30);
/// Longest wait that OpenIM's rate limiter is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const GET_TOKEN: &str = "/auth/get_admin_token";

/// OpenIM's REST API, as one of its administrators.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    access: Access,
    /// How long one call waits for a service that is away.
    patience: Duration,
    token: Mutex<Minted>,
    /// The number of the last token with which OpenIM has answered what was asked.
    served: AtomicU64,
    /// Makes operation ids that no other process has.
    process: u64,
    calls: AtomicU64,
    metrics: Metrics,
}

/// The token, kept until OpenIM does not take it any more: each new one ends the others of the same
/// administrator.
#[derive(Clone, Debug, Default)]
struct Minted {
    token: Option<Secret>,
    /// How often one was asked for.
    count: u64,
}

/// Tells the HTTP library whose cryptography it is to use: before its first client is made.
pub fn choose_cryptography() {
    // It may be chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Client {
    /// Makes no call yet.
    ///
    /// # Errors
    /// [`Error::Setup`] where the URL is of https and the system has no certificates.
    pub fn new(access: Access, metrics: Metrics) -> Result<Self, Error> {
        choose_cryptography();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(access.timeout)
            .redirect(Policy::none())
            .no_proxy();
        if access.url.starts_with("http:") {
            // Nothing is encrypted, so the system's certificates need not be there.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| Error::Setup(reason(&error)))?;
        Ok(Self {
            http,
            access,
            patience: AWAY,
            token: Mutex::default(),
            served: AtomicU64::new(0),
            process: RandomState::new().hash_one(std::process::id()),
            calls: AtomicU64::new(0),
            metrics,
        })
    }

    /// The same, but that a call waits only so long for a service behind the API that is away.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Calls OpenIM, again where that may help. What `check` finds odd is an error.
    pub(super) async fn call<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        request: &impl Serialize,
        check: impl Fn(&T) -> Result<(), Oddity>,
    ) -> Result<T, Error> {
        // Our own structs have no maps with odd keys, so it cannot fail.
        let body = bytes::Bytes::from(serde_json::to_vec(request).unwrap_or_default());
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter()
            .build();
        let end = Instant::now() + self.patience;
        let mut tries_more = TRIES_MORE;
        loop {
            let error = match self.call_with_token(path, body.clone(), &check).await {
                Err(error) if error.is_transient() => error,
                answered_or_in_vain => return answered_or_in_vain,
            };
            // They have no end.
            let mut pause = pauses.next().unwrap_or_default();
            if error.is_away() {
                // Not counted: whatever else goes wrong is tried again as often all the same.
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(error);
                }
                pause = pause.min(left);
            } else if tries_more == 0 {
                return Err(error);
            } else {
                tries_more -= 1;
            }
            if let Error::TooMany(wait) = error {
                pause = pause.max(wait);
            }
            sleep(pause).await;
        }
    }

    /// Where OpenIM does not take the token any more, once more with a new one.
    async fn call_with_token<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        body: bytes::Bytes,
        check: &impl Fn(&T) -> Result<(), Oddity>,
    ) -> Result<T, Error> {
        let minted = self.token(0).await?;
        let sent = self.send_with(&minted, path, body.clone(), check).await;
        let is_of_no_use = |error: &Error| {
            // Where it does not see a token either. That it has seen this one, another answer has shown.
            let has_served = self.served.load(Ordering::Relaxed) >= minted.count;
            error.is_of_token() || (error.is_of_args() && !has_served)
        };
        match sent {
            Err(error) if is_of_no_use(&error) => {
                let minted = self.token(minted.count).await?;
                let sent = self.send_with(&minted, path, body, check).await;
                sent.map_err(|error| match error.code() {
                    Some(code) if error.is_of_token() => Error::Refused(code),
                    _ => error,
                })
            }
            sent => sent,
        }
    }

    async fn send_with<T: DeserializeOwned + Default>(
        &self,
        minted: &Minted,
        path: &'static str,
        body: bytes::Bytes,
        check: &impl Fn(&T) -> Result<(), Oddity>,
    ) -> Result<T, Error> {
        let sent = self.send(path, body, minted.token.as_ref(), check).await;
        let has_served = match &sent {
            Ok(_) => true,
            Err(error) => error.code().is_some() && !error.is_of_token() && !error.is_of_args(),
        };
        if has_served {
            self.served.fetch_max(minted.count, Ordering::Relaxed);
        }
        sent
    }

    /// The token; a new one where those up to the number `stale` are of no use.
    async fn token(&self, stale: u64) -> Result<Minted, Error> {
        // Whoever comes meanwhile waits for the same one.
        let mut minted = self.token.lock().await;
        if minted.token.is_none() || minted.count <= stale {
            // It is of no use either where there is no other.
            minted.token = None;
            let request = json!({
                "secret": self.access.secret.expose(),
                "userID": self.access.admin_user_id,
            });
            let body = bytes::Bytes::from(request.to_string());
            // One that no request can have would be sent in vain for as long as it is kept.
            let token = self.send(GET_TOKEN, body, None, &Token::check).await;
            let token = token.map_err(|error| match (error.code(), error) {
                (Some(code @ (ARGS | NO_PERMISSION)), _) => Error::Refused(code),
                (_, Error::Odd(path, _)) => Error::Odd(path, Oddity::NoToken),
                (_, error) => error,
            })?;
            minted.token = Some(token.token.into());
            minted.count += 1;
        }
        Ok(minted.clone())
    }

    async fn send<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        body: bytes::Bytes,
        token: Option<&Secret>,
        check: &impl Fn(&T) -> Result<(), Oddity>,
    ) -> Result<T, Error> {
        if pace::turn().await {
            self.metrics.look_calls.inc([]);
        }
        let sent = self.exchange(path, body, token).await;
        let sent = sent.and_then(|data| match check(&data) {
            Ok(()) => Ok(data),
            Err(oddity) => Err(Error::Odd(path, oddity)),
        });
        let outcome = sent.as_ref().map_or_else(Error::outcome, |_| "ok");
        self.metrics.openim_calls.inc([path, outcome]);
        sent
    }

    async fn exchange<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        body: bytes::Bytes,
        token: Option<&Secret>,
    ) -> Result<T, Error> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .http
            .post(format!("{}{path}", self.access.url))
            .header(CONTENT_TYPE, "application/json")
            // To be found in OpenIM's log.
            .header(
                "operationID",
                format!("group-mirror-{:016x}-{number}", self.process),
            )
            .body(body);
        if let Some(token) = token {
            request = request.header("token", token.expose());
        }
        // Its text names the address, which may hold more than OpenIM's name.
        let transport = |error: reqwest::Error| Error::Transport(reason(&error.without_url()));
        let mut answer = request.send().await.map_err(transport)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Error::NotFound(path)),
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = answer
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|seconds| seconds.to_str().ok()?.parse().ok());
                let wait = Duration::from_secs(seconds.unwrap_or(0));
                return Err(Error::TooMany(wait.min(LONGEST_WAIT)));
            }
            status => return Err(Error::Status(status.as_u16())),
        }
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(transport)? {
            if text.len() + chunk.len() > MAX_ANSWER {
                return Err(Error::TooLarge(path));
            }
            text.extend_from_slice(&chunk);
        }
        let envelope: Envelope<T> = serde_json::from_slice(&text).map_err(|error| {
            // Its own text quotes what it found.
            match error.is_data() {
                true => Error::Odd(path, Oddity::Type(error.column())),
                false => Error::Garbled(path),
            }
        })?;
        match envelope.err_code {
            0 => Ok(envelope.data.unwrap_or_default()),
            code => {
                let (message, detail) = (&envelope.err_msg, &envelope.err_dlt);
                Err(Error::of_openim(path, code, message, detail))
            }
        }
    }
}

/// The innermost reason, which says more than those around it.
fn reason(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
