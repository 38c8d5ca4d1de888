//! Who is let in: HTTP Basic for callbacks, a Bearer token for reads, checked before a body is
//! read; and, where there is no key, only who names this machine in the Host header.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use headers::authorization::{Authorization, Basic, Bearer, Credentials};
use headers::{Header, HeaderValue};
use poem::http::header::AUTHORIZATION;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::{Code, Error};
use super::settings::AccessSettings;
use super::site::{is_from_another_site, names_this_machine};

/// The keys of both doors; handed to the extractors as request data.
#[derive(Clone, Debug)]
pub(super) struct Access {
    callbacks: Keys,
    reads: Keys,
    /// Whether a door without a key is open to those only who name this machine.
    is_local: bool,
}

/// Digests of what may be presented; none: nothing is asked for. Digests have one length, so the
/// time of a comparison tells nothing of the key, its length included.
#[derive(Clone)]
struct Keys(Vec<[u8; 32]>);

impl Access {
    /// `is_local`: whether only this machine can reach us.
    pub(super) fn new(settings: &AccessSettings, is_local: bool) -> Self {
        let AccessSettings {
            callback_username,
            callback_passwords,
            api_tokens,
            allow_anonymous,
        } = settings;
        // A user name has no colon, so the pair is one text.
        let pairs = callback_passwords
            .iter()
            .map(|password| digest(format!("{callback_username}:{}", password.expose())));
        Self {
            callbacks: Keys(pairs.collect()),
            reads: Keys(api_tokens.iter().map(|t| digest(t.expose())).collect()),
            is_local: is_local && !allow_anonymous,
        }
    }

    /// Whether a key is asked for anywhere.
    pub(super) fn has_keys(&self) -> bool {
        self.callbacks.is_set() || self.reads.is_set()
    }

    /// A page of another site can make a browser send requests here: under the site's own name,
    /// which it has pointed at this machine (DNS rebinding), or under ours, without seeing the
    /// answer. A key stops it; without one, the name does, and the site's.
    pub(super) fn check_host(&self, request: &Request, is_callback: bool) -> Result<(), Error> {
        let keys = if is_callback {
            &self.callbacks
        } else {
            &self.reads
        };
        if !self.is_local || keys.is_set() {
            return Ok(());
        }
        if !names_this_machine(request) {
            return Err(Error::new(
                Code::HostNotLocal,
                "Host: expected localhost or a loopback address, as long as no key is set",
            ));
        }
        if is_from_another_site(request) {
            return Err(Error::new(
                Code::HostNotLocal,
                "Origin: expected none or this service's own, as long as no key is set",
            ));
        }
        Ok(())
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
        // All are compared, in the same time, whichever it is.
        let mut keys = self.0.iter();
        let is = |key: &[u8; 32]| key.as_slice().ct_eq(presented.as_slice());
        let newest = keys.next().map_or(Choice::from(0), is);
        let older = keys.fold(Choice::from(0), |found, key| found | is(key));
        match (bool::from(newest), bool::from(older)) {
            (true, _) => Admitted::ByNewest,
            (false, true) => Admitted::ByOlder,
            (false, false) => Admitted::No,
        }
    }
}

/// Whether somebody is let in, and by which key: an older one can be dropped when nobody uses it
/// any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    No,
    /// Or none is asked for.
    ByNewest,
    ByOlder,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

fn digest(text: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// What a scheme presents, if the header is there once and can be read.
fn presented<C: Credentials>(request: &Request) -> Option<C> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let one: &HeaderValue = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let Authorization(credentials) = Authorization::<C>::decode(&mut std::iter::once(one)).ok()?;
    Some(credentials)
}

/// How a request was let in at its door, if it was; handed along as request data.
#[derive(Clone, Debug, Default)]
pub(super) struct LetIn(Arc<OnceLock<Admitted>>);

impl LetIn {
    pub(super) fn how(&self) -> Admitted {
        self.0.get().copied().unwrap_or(Admitted::No)
    }
}

fn access(request: &Request) -> Result<&Access, Error> {
    let access = request.extensions().get::<Arc<Access>>();
    access
        .map(|access| &**access)
        .ok_or_else(|| Error::new(Code::Internal, "the log says more"))
}

/// Proof that somebody was let in at a door. An argument of every operation there, before the body.
///
/// What poem-openapi's derive makes of a scheme, but for the door without a key, which it cannot
/// tell from wrong credentials.
pub(super) struct Key<S>(PhantomData<S>);

/// Of callbacks.
pub(super) type CallbackKey = Key<CallbackPassword>;
/// Of reads.
pub(super) type ReadKey = Key<ApiToken>;

/// A door's scheme, as the document has it and as it is checked.
pub(super) trait Scheme: Send {
    const NAME: &'static str;
    const SCHEME: &'static str;
    const DESCRIPTION: &'static str;
    /// What an answer says to whoever was not let in.
    const EXPECTED: &'static str;
    /// `WWW-Authenticate`.
    const CHALLENGE: &'static str;

    fn admit(access: &Access, request: &Request) -> Admitted;
}

/// HTTP Basic, which OpenIM's client makes of its URL.
pub(super) enum CallbackPassword {}

impl Scheme for CallbackPassword {
    const NAME: &'static str = "callbackPassword";
    const SCHEME: &'static str = "basic";
    const DESCRIPTION: &'static str = "CALLBACK_USERNAME and CALLBACK_PASSWORD, where one is set. \
        OpenIM sends them when its `url` is http://username:password@host.";
    const EXPECTED: &'static str =
        "Authorization: expected HTTP Basic with CALLBACK_USERNAME and CALLBACK_PASSWORD";
    const CHALLENGE: &'static str = "Basic realm=\"openim-group-mirror\", charset=\"UTF-8\"";

    fn admit(access: &Access, request: &Request) -> Admitted {
        let pair = presented::<Basic>(request);
        let pair = pair.map(|pair| format!("{}:{}", pair.username(), pair.password()));
        access.callbacks.admit(pair)
    }
}

/// A Bearer token.
pub(super) enum ApiToken {}

impl Scheme for ApiToken {
    const NAME: &'static str = "apiToken";
    const SCHEME: &'static str = "bearer";
    const DESCRIPTION: &'static str = "One of API_TOKEN, where one is set.";
    const EXPECTED: &'static str = "Authorization: expected Bearer and one of API_TOKEN";
    const CHALLENGE: &'static str = "Bearer realm=\"openim-group-mirror\"";

    fn admit(access: &Access, request: &Request) -> Admitted {
        let token = presented::<Bearer>(request);
        access.reads.admit(token.map(|t| t.token().to_owned()))
    }
}

impl<S: Scheme> Key<S> {
    /// That of a request.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let admitted = S::admit(access(request)?, request);
        if let Some(let_in) = request.extensions().get::<LetIn>() {
            // It may be set already, to the same: a request is asked for one key.
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
