//! Access: HTTP Basic for callbacks and a Bearer token for reads, checked before the body is read.
//!
//! Without a key, a request must name this machine in its Host header, and must not come from a page
//! of another origin.

use std::marker::PhantomData;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use headers::authorization::{Authorization, Basic, Bearer, Credentials};
use headers::{Header, HeaderValue};
use poem::http::header::{AUTHORIZATION, HOST, ORIGIN};
use poem::http::uri::Authority;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Tags};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::http::AccessSettings;
use crate::http::error::{Code, Error};
use crate::secret::Secret;

/// Parts of the API, in the OpenAPI document.
#[derive(Tags)]
pub(crate) enum Tag {
    /// Requests of OpenIM.
    Callbacks,
    /// Requests of a backend.
    Reads,
    /// Requests of operators of the service.
    Operations,
}

/// The keys of callbacks and of reads. Extractors get it as request data.
#[derive(Clone)]
pub(crate) struct Access {
    callbacks: Keys,
    reads: Keys,
    /// True if requests without a key must name this machine.
    is_local: bool,
}

/// Digests of the accepted credentials, the newest first. Empty: no key is required. Digests have
/// one length, so the time of a comparison shows nothing about a key, not even its length.
#[derive(Clone)]
struct Keys(Vec<[u8; 32]>);

impl Access {
    /// `is_local`: only this machine can reach the listener.
    pub(crate) fn new(settings: &AccessSettings, is_local: bool) -> Self {
        let (name, tokens) = (&settings.callback_username, &settings.api_tokens);
        // A user name has no colon, so the text of a pair is unambiguous.
        let passwords = settings.callback_passwords.iter().map(Secret::expose);
        let pairs = passwords.map(|password| digest(format!("{name}:{password}")));
        Self {
            callbacks: Keys(pairs.collect()),
            reads: Keys(tokens.iter().map(|token| digest(token.expose())).collect()),
            is_local: is_local && !settings.allow_anonymous,
        }
    }

    /// True if callbacks or reads need a key.
    pub(crate) fn has_keys(&self) -> bool {
        self.callbacks.is_set() || self.reads.is_set()
    }

    /// Checks Host and Origin of a request that needs no key.
    ///
    /// A page of another origin can make a browser send requests here. It uses its own host name,
    /// which it points at this machine (DNS rebinding), or the name of this service, without access
    /// to the answer. A key stops that. Without a key, these headers do.
    pub(crate) fn check_host(&self, request: &Request, is_callback: bool) -> Result<(), Error> {
        let keys = if is_callback {
            &self.callbacks
        } else {
            &self.reads
        };
        if !self.is_local || keys.is_set() {
            return Ok(());
        }
        let detail = if !names_this_machine(request) {
            "Host: expected localhost or a loopback address, as long as no key is set"
        } else if has_foreign_origin(request) {
            "Origin: expected none or this service's own, as long as no key is set"
        } else {
            return Ok(());
        };
        Err(Error::new(Code::HostNotLocal, detail))
    }
}

impl Keys {
    fn is_set(&self) -> bool {
        !self.0.is_empty()
    }

    fn admit(&self, presented: Option<String>) -> Admitted {
        if !self.is_set() {
            return Admitted::ByNewest;
        }
        let Some(presented) = presented.map(digest) else {
            return Admitted::No;
        };
        // Compares all, so that the time is always the same.
        let is_same = |key: &[u8; 32]| key.as_slice().ct_eq(presented.as_slice()).into();
        let same: Vec<bool> = self.0.iter().map(is_same).collect();
        match same.iter().position(|is_same| *is_same) {
            Some(0) => Admitted::ByNewest,
            Some(_) => Admitted::ByOlder,
            None => Admitted::No,
        }
    }
}

/// Result of a check of credentials. An older key can be removed when nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    No,
    /// By the newest key, or none is required.
    ByNewest,
    ByOlder,
}

fn digest(text: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// The credentials of a request, if it has one Authorization header and it can be read.
fn credentials<C: Credentials>(request: &Request) -> Option<C> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let one: &HeaderValue = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let Authorization(credentials) = Authorization::<C>::decode(&mut std::iter::once(one)).ok()?;
    Some(credentials)
}

/// Result of the check of a request, once it is done. Travels as request data.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdmittedBy(Arc<OnceLock<Admitted>>);

impl AdmittedBy {
    pub(crate) fn get(&self) -> Admitted {
        self.0.get().copied().unwrap_or(Admitted::No)
    }
}

/// Proof of access. An argument of each operation, before the body.
///
/// poem-openapi's derive makes a similar type, but it cannot distinguish an API without a key from
/// wrong credentials.
pub(crate) struct Key<S>(PhantomData<S>);

/// Access to callbacks.
pub(crate) type CallbackKey = Key<CallbackPassword>;
/// Access to reads.
pub(crate) type ReadKey = Key<ApiToken>;

/// An authentication scheme: its check and its documentation.
pub(crate) trait Scheme: Send {
    const NAME: &'static str;
    const SCHEME: &'static str;
    const DESCRIPTION: &'static str;
    /// Detail of the error of a refused request.
    const EXPECTED: &'static str;
    /// Value of `WWW-Authenticate`.
    const CHALLENGE: &'static str;

    fn admit(access: &Access, request: &Request) -> Admitted;
}

/// HTTP Basic. OpenIM takes the credentials from its callback URL.
pub(crate) enum CallbackPassword {}

impl Scheme for CallbackPassword {
    const NAME: &'static str = "callbackPassword";
    const SCHEME: &'static str = "basic";
    const DESCRIPTION: &'static str = "CALLBACK_USERNAME and CALLBACK_PASSWORD, if a password is \
        set. OpenIM sends them if its `url` is http://username:password@host.";
    const EXPECTED: &'static str =
        "Authorization: expected HTTP Basic with CALLBACK_USERNAME and CALLBACK_PASSWORD";
    const CHALLENGE: &'static str = "Basic realm=\"openim-group-mirror\", charset=\"UTF-8\"";

    fn admit(access: &Access, request: &Request) -> Admitted {
        let pair = credentials::<Basic>(request);
        let pair = pair.map(|pair| format!("{}:{}", pair.username(), pair.password()));
        access.callbacks.admit(pair)
    }
}

/// A Bearer token.
pub(crate) enum ApiToken {}

impl Scheme for ApiToken {
    const NAME: &'static str = "apiToken";
    const SCHEME: &'static str = "bearer";
    const DESCRIPTION: &'static str = "One of API_TOKEN, if a token is set.";
    const EXPECTED: &'static str = "Authorization: expected Bearer and one of API_TOKEN";
    const CHALLENGE: &'static str = "Bearer realm=\"openim-group-mirror\"";

    fn admit(access: &Access, request: &Request) -> Admitted {
        let token = credentials::<Bearer>(request);
        access.reads.admit(token.map(|t| t.token().to_owned()))
    }
}

impl<S: Scheme> Key<S> {
    /// Checks the credentials of a request.
    pub(crate) fn of(request: &Request) -> Result<Self, Error> {
        let access = request.extensions().get::<Arc<Access>>();
        let admitted = S::admit(access.ok_or_else(Error::internal)?, request);
        if let Some(let_in) = request.extensions().get::<AdmittedBy>() {
            // A second check of one request has the same result.
            let _ = let_in.0.set(admitted);
        }
        match admitted {
            Admitted::ByNewest | Admitted::ByOlder => Ok(Self(PhantomData)),
            Admitted::No => Err(Error::new(Code::CredentialsWrong, S::EXPECTED)),
        }
    }
}

impl<'a, S: Scheme> ApiExtractor<'a> for Key<S> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let scheme = MetaSecurityScheme {
            ty: "http",
            description: Some(S::DESCRIPTION),
            name: None,
            key_in: None,
            scheme: Some(S::SCHEME),
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        };
        registry.create_security_scheme(S::NAME, scheme);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![S::NAME]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self::of(request)?)
    }
}

/// True if each host name of the request is of this machine: in `Host`, and in an absolute URL, as
/// in a request to a proxy.
fn names_this_machine(request: &Request) -> bool {
    let hosts = request.headers().get_all(HOST).iter();
    let of_header = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
    let of_url = request.uri().authority().cloned().map(Some);
    let mut names = of_header.chain(of_url).peekable();
    names.peek().is_some() && names.all(|name| is_local(name.as_ref()))
}

/// True if a browser sends the request for a page of another origin. Browsers set `Origin` in each
/// POST. A GET without it does no harm, because the page has no access to the answer. The page of
/// the documentation has the origin of this service.
fn has_foreign_origin(request: &Request) -> bool {
    let own = request.headers().get(HOST).map(HeaderValue::as_bytes);
    let mut origins = request.headers().get_all(ORIGIN).iter();
    origins.any(|origin| origin.as_bytes().strip_prefix(b"http://") != own)
}

fn is_local(host: Option<&Authority>) -> bool {
    let Some(host) = host.map(Authority::host) else {
        return false;
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let address: Option<IpAddr> = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse().ok(),
    };
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_named_by(hosts: &[&str]) -> bool {
        let mut request = Request::builder();
        for host in hosts {
            request = request.header("host", *host);
        }
        names_this_machine(&request.finish())
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        let local = "localhost LocalHost:8080 127.0.0.1 127.0.0.1:80 127.9.9.9 [::1] [::1]:8080";
        for host in local.split(' ') {
            assert!(is_named_by(&[host]), "{host}");
        }
        let foreign = "evil.example localhost.evil.example 127.0.0.1.evil.example:8080 \
            evil.example:127 127.0.0.1@evil.example 10.0.0.1 [::2] [localhost] 0.0.0.0";
        for host in foreign.split(' ').chain([""]) {
            assert!(!is_named_by(&[host]), "{host}");
        }
        assert!(!is_named_by(&[]));
        assert!(!is_named_by(&["localhost", "evil.example"]));
    }
}
