//! HTTP client of OpenIM's REST API: the token, the envelope, retries and limits.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task_local;
use tokio::time::{Instant, sleep, sleep_until};

use super::OpenimAccess;
use super::error::{ARGS, Error, MAX_ANSWER_BYTES, Mismatch, NO_PERMISSION};
use super::wire::{Envelope, Token};
use crate::secret::Secret;
use crate::telemetry::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RETRIES: usize = 4;
/// Time limit of the retries while the service behind the API is away. A restart of one takes about as long.
const AWAY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause that OpenIM's rate limiter can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const GET_TOKEN: &str = "/auth/get_admin_token";

/// Client of OpenIM's REST API, as an OpenIM administrator.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    access: OpenimAccess,
    away_timeout: Duration,
    token: Mutex<IssuedToken>,
    /// Number of the newest token that OpenIM is known to accept.
    accepted: AtomicU64,
    /// Random number of this process, for operation ids that no other process has.
    process: u64,
    calls: AtomicU64,
    metrics: Metrics,
}

/// The current token. It is kept until OpenIM refuses it: a new token ends the other tokens of the same administrator.
#[derive(Clone, Debug, Default)]
struct IssuedToken {
    token: Option<Secret>,
    /// Counts the tokens of this process.
    number: u64,
}

/// Selects the cryptography of the HTTP library. Has to run before its first client is made.
pub fn choose_cryptography() {
    // An error says that one is selected already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Client {
    /// Makes a client. Calls nothing yet.
    ///
    /// # Errors
    /// [`Error::Setup`] if the URL is of https and the system has no certificates.
    pub fn new(access: OpenimAccess, metrics: Metrics) -> Result<Self, Error> {
        choose_cryptography();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(access.timeout)
            .redirect(Policy::none())
            .no_proxy();
        if access.url.starts_with("http:") {
            // Without TLS the system needs no certificates.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| Error::Setup(cause(&error)))?;
        Ok(Self {
            http,
            access,
            away_timeout: AWAY_TIMEOUT,
            token: Mutex::default(),
            accepted: AtomicU64::new(0),
            process: RandomState::new().hash_one(std::process::id()),
            calls: AtomicU64::new(0),
            metrics,
        })
    }

    /// Sets the time limit of retries while a service behind the API is away.
    #[must_use]
    pub fn with_away_timeout(self, away_timeout: Duration) -> Self {
        Self {
            away_timeout,
            ..self
        }
    }

    /// Calls OpenIM, with retries. An answer that `check` refuses is an error.
    pub(super) async fn call<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        request: &impl Serialize,
        check: impl Fn(&T) -> Result<(), Mismatch>,
    ) -> Result<T, Error> {
        // Cannot fail: the requests have no maps with keys other than text.
        let body = Bytes::from(serde_json::to_vec(request).unwrap_or_default());
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter()
            .build();
        let end = Instant::now() + self.away_timeout;
        let mut retries = MAX_RETRIES;
        loop {
            let error = match self.call_with_token(path, body.clone(), &check).await {
                Err(error) if error.is_transient() => error,
                done => return done,
            };
            // The pauses have no end.
            let mut pause = pauses.next().unwrap_or_default();
            if error.is_away() {
                // Not counted, so that other failures keep all their retries.
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(error);
                }
                pause = pause.min(left);
            } else if retries == 0 {
                return Err(error);
            } else {
                retries -= 1;
            }
            if let Error::TooMany(wait) = error {
                pause = pause.max(wait);
            }
            sleep(pause).await;
        }
    }

    /// Calls OpenIM, and a second time with a new token if OpenIM refuses the token.
    async fn call_with_token<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        body: Bytes,
        check: &impl Fn(&T) -> Result<(), Mismatch>,
    ) -> Result<T, Error> {
        let issued = self.token(0).await?;
        let sent = self.send_with(&issued, path, body.clone(), check).await;
        let is_refused = |error: &Error| {
            // OpenIM answers ARGS too if it sees no token. An accepted token is one that it sees.
            let is_accepted = self.accepted.load(Ordering::Relaxed) >= issued.number;
            error.is_token_error() || (error.is_args_error() && !is_accepted)
        };
        match sent {
            Err(error) if is_refused(&error) => {
                let issued = self.token(issued.number).await?;
                let sent = self.send_with(&issued, path, body, check).await;
                sent.map_err(|error| match error.code() {
                    Some(code) if error.is_token_error() => Error::Refused(code),
                    _ => error,
                })
            }
            sent => sent,
        }
    }

    async fn send_with<T: DeserializeOwned + Default>(
        &self,
        issued: &IssuedToken,
        path: &'static str,
        body: Bytes,
        check: &impl Fn(&T) -> Result<(), Mismatch>,
    ) -> Result<T, Error> {
        let sent = self.send(path, body, issued.token.as_ref(), check).await;
        let is_accepted = match &sent {
            Ok(_) => true,
            Err(error) => {
                error.code().is_some() && !error.is_token_error() && !error.is_args_error()
            }
        };
        if is_accepted {
            self.accepted.fetch_max(issued.number, Ordering::Relaxed);
        }
        sent
    }

    /// Returns a token with a number above `refused`, a new one if necessary.
    async fn token(&self, refused: u64) -> Result<IssuedToken, Error> {
        // The lock makes concurrent calls wait for one new token.
        let mut issued = self.token.lock().await;
        if issued.token.is_none() || issued.number <= refused {
            // A refused token must not stay if the next call fails.
            issued.token = None;
            let request = json!({
                "secret": self.access.secret.expose(),
                "userID": self.access.admin_user_id,
            });
            let body = Bytes::from(request.to_string());
            // A token that no header can hold is refused here: it would fail each call that uses it.
            let token = self.send(GET_TOKEN, body, None, &Token::check).await;
            let token = token.map_err(|error| match (error.code(), error) {
                (Some(code @ (ARGS | NO_PERMISSION)), _) => Error::Refused(code),
                (_, Error::Unexpected(path, _)) => Error::Unexpected(path, Mismatch::NoToken),
                (_, error) => error,
            })?;
            issued.token = Some(token.token.into());
            issued.number += 1;
        }
        Ok(issued.clone())
    }

    /// Sends one request and checks its answer.
    async fn send<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        body: Bytes,
        token: Option<&Secret>,
        check: &impl Fn(&T) -> Result<(), Mismatch>,
    ) -> Result<T, Error> {
        if wait_for_pace().await {
            self.metrics.look_calls.inc([]);
        }
        let sent = self.exchange(path, body, token).await;
        let sent = sent.and_then(|data| match check(&data) {
            Ok(()) => Ok(data),
            Err(mismatch) => Err(Error::Unexpected(path, mismatch)),
        });
        let outcome = sent.as_ref().map_or_else(Error::outcome, |_| "ok");
        self.metrics.openim_calls.inc([path, outcome]);
        sent
    }

    async fn exchange<T: DeserializeOwned + Default>(
        &self,
        path: &'static str,
        body: Bytes,
        token: Option<&Secret>,
    ) -> Result<T, Error> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .http
            .post(format!("{}{path}", self.access.url))
            .header(CONTENT_TYPE, "application/json")
            // OpenIM logs it.
            .header(
                "operationID",
                format!("group-mirror-{:016x}-{number}", self.process),
            )
            .body(body);
        if let Some(token) = token {
            request = request.header("token", token.expose());
        }
        // The URL may hold a password.
        let transport = |error: reqwest::Error| Error::Transport(cause(&error.without_url()));
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
                return Err(Error::TooMany(wait.min(MAX_RETRY_AFTER)));
            }
            status => return Err(Error::Status(status.as_u16())),
        }
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(transport)? {
            if text.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Error::TooLarge(path));
            }
            text.extend_from_slice(&chunk);
        }
        let envelope: Envelope<T> = serde_json::from_slice(&text).map_err(|error| {
            // serde's text is left out: it quotes the answer.
            match error.is_data() {
                true => Error::Unexpected(path, Mismatch::Type(error.column())),
                false => Error::NotJson(path),
            }
        })?;
        match envelope.err_code {
            0 => Ok(envelope.data.unwrap_or_default()),
            code => {
                let (message, detail) = (&envelope.err_msg, &envelope.err_dlt);
                Err(Error::from_openim(path, code, message, detail))
            }
        }
    }
}

/// The innermost cause of an error, which is the most specific one.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Calls that may start at once after a pause.
const BURST: u32 = 10;
/// Interval between calls after a burst. With the burst there are at most 200 calls in any second.
const CALL_INTERVAL: Duration = Duration::from_micros(1_000_000 / 190);

/// Rate limit of the calls that hints cause: hints can come at any rate, and OpenIM has to serve its users first.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Start of the next call if there were no bursts.
    next: std::sync::Mutex<Option<Instant>>,
}

impl Pace {
    fn next(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a call; returns its start.
    fn reserve(&self, now: Instant) -> Instant {
        let mut next = self.next();
        let planned = next.unwrap_or(now).max(now);
        *next = Some(planned + CALL_INTERVAL);
        Self::start_of(planned, now)
    }

    /// The start of a call that is planned for a time: a burst runs ahead of the plan.
    fn start_of(planned: Instant, now: Instant) -> Instant {
        let ahead = CALL_INTERVAL * (BURST - 1);
        planned.checked_sub(ahead).unwrap_or(now).max(now)
    }

    /// Waits until a call can start at once. Callers that collect groups use this time, so that one call asks for more
    /// of them.
    pub(crate) async fn until_free(&self) {
        loop {
            let now = Instant::now();
            let planned = self.next().unwrap_or(now);
            let start = Self::start_of(planned, now);
            if start <= now {
                return;
            }
            sleep_until(start).await;
        }
    }
}

task_local! {
    static PACE: Arc<Pace>;
}

/// Runs `work`. Each call that it makes waits for the pace.
pub(crate) async fn paced<T>(pace: &Arc<Pace>, work: impl Future<Output = T>) -> T {
    PACE.scope(Arc::clone(pace), work).await
}

/// Waits until a call may start. Returns false if the current work is not paced.
async fn wait_for_pace() -> bool {
    let Ok(start) = PACE.try_with(|pace| pace.reserve(Instant::now())) else {
        return false;
    };
    sleep_until(start).await;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_200_calls_start_in_any_second_and_a_burst_does_not_wait() {
        let pace = Pace::default();
        let now = Instant::now();
        let starts: Vec<Instant> = (0..1000).map(|_| pace.reserve(now)).collect();
        assert!(starts[..10].iter().all(|start| *start == now));
        let second = Duration::from_secs(1);
        for (place, start) in starts.iter().enumerate() {
            let within = starts[place..].iter().take_while(|t| **t < *start + second);
            assert!(within.count() <= 200);
        }
        assert!(starts[999] < now + 6 * second, "the pace is not slower");
        // After a pause the burst is not larger than before.
        let later = now + 60 * second;
        let starts: Vec<Instant> = (0..11).map(|_| pace.reserve(later)).collect();
        assert!(starts[9] == later && starts[10] > later);
    }

    #[tokio::test]
    async fn a_call_need_not_wait_once_the_pace_is_free() {
        let pace = Pace::default();
        let start = Instant::now();
        while pace.reserve(Instant::now()) <= start {}
        pace.until_free().await;
        let now = Instant::now();
        assert!(start < now, "it was not free before");
        assert_eq!(pace.reserve(now), now);
    }

    #[tokio::test]
    async fn only_paced_work_waits() {
        assert!(!wait_for_pace().await);
        let pace = Arc::new(Pace::default());
        assert!(paced(&pace, wait_for_pace()).await);
        assert!(pace.next.lock().unwrap().is_some());
    }
}
