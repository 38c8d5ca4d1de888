//! OpenIM's REST API as a server of its own, in front of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use poem::http::{HeaderMap, Method, StatusCode, header};
use poem::listener::TcpAcceptor;
use poem::{Endpoint, Request, Response, Server};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::openim::{ADMIN_ID, OpenIm};
use super::openim_faults::{RestFault, RestFaults, cut_off, garbage, status, too_large};
use super::openim_gates::{Gates, Held, Place};
use super::openim_rest::{ARGUMENTS, Code, GET_IDS, NO_PERMISSION, without_rows};
use super::random::Random;

/// Secret for which a token is given.
pub const SECRET: &str = "openIM123";

/// Follows the path of a call that asks for no rows, where calls are counted.
pub const ONLY_TOTAL: &str = " (total)";

const GET_TOKEN: &str = "/auth/get_admin_token";
const TOKEN_INVALID: Code = 1502;
const TOKEN_REPLACED: Code = 1507;
/// Codes of gRPC.
const EXHAUSTED: Code = 8;

type Hook = Box<dyn FnMut(&str, &Value, &mut OpenIm) + Send>;
/// Change of a request, or of the data of an answer.
type Tamper = Box<dyn FnMut(&mut Value) + Send>;

/// A running server. It has a thread of its own, and ends when it is dropped.
pub struct OpenImServer {
    pub url: String,
    pub openim: Arc<Mutex<OpenIm>>,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    openim: Arc<Mutex<OpenIm>>,
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
    /// Changes by the end of a path: of requests, and of answers.
    tampers: Mutex<[Vec<(String, Tamper)>; 2]>,
}

struct State {
    port: u16,
    calls: BTreeMap<String, u64>,
    /// Bytes of the answers to these calls, before compression.
    bytes: usize,
    /// All that were given, and what they are refused with since.
    tokens: BTreeMap<String, Option<Code>>,
    faults: RestFaults,
    gates: Gates,
    /// Ends of paths whose answers have lost all rows.
    emptied: BTreeSet<String>,
    /// First page of lists of members without its rows.
    lost_from: u64,
    /// Whatever page is asked for, the first is given.
    has_one_page: bool,
    random: Random,
}

impl OpenImServer {
    /// A server of an OpenIM that holds nothing.
    pub async fn start() -> Self {
        Self::start_with(OpenIm::default()).await
    }

    #[expect(clippy::unused_async, reason = "as other things are started")]
    pub async fn start_with(openim: OpenIm) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let openim = Arc::new(Mutex::new(openim));
        let shared = Arc::new(Shared {
            openim: Arc::clone(&openim),
            state: Mutex::new(State {
                port,
                calls: BTreeMap::new(),
                bytes: 0,
                tokens: BTreeMap::new(),
                faults: RestFaults::default(),
                gates: Gates::default(),
                emptied: BTreeSet::new(),
                lost_from: u64::MAX,
                has_one_page: false,
                random: Random::new(0, 0),
            }),
            hook: Mutex::new(None),
            tampers: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let rest = Rest(Arc::clone(&shared));
        // A test that is busy must not keep the server from answering.
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                let acceptor = TcpAcceptor::from_std(listener).unwrap();
                tokio::select! {
                    served = Server::new_with_acceptor(acceptor).run(rest) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            url: format!("http://127.0.0.1:{port}"),
            openim,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Number of calls of each path.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.shared.state().calls.clone()
    }

    /// Bytes of the answers, before compression.
    pub fn bytes(&self) -> usize {
        self.shared.state().bytes
    }

    pub fn reset_calls(&self) {
        let mut state = self.shared.state();
        state.calls.clear();
        state.bytes = 0;
    }

    pub fn tokens_minted(&self) -> usize {
        self.shared.state().tokens.len()
    }

    /// All tokens up to now are replaced by others.
    pub fn expire_tokens(&self) {
        self.expire_tokens_with(TOKEN_REPLACED);
    }

    /// All tokens up to now are refused with this error.
    pub fn expire_tokens_with(&self, code: i64) {
        for refused in self.shared.state().tokens.values_mut() {
            *refused = Some(code);
        }
    }

    /// The next calls of paths with this end, so many times, go wrong.
    pub fn fail_next(&self, path_suffix: &str, fault: RestFault, times: u64) {
        self.shared.state().faults.add(path_suffix, fault, times);
    }

    /// From now on one call in so many goes wrong, in one way or another; at most two in a row.
    pub fn fail_sometimes(&self, seed: u64, one_in: u64) {
        self.shared.state().faults.add_random(seed, one_in);
    }

    /// Until told otherwise, calls of paths with this end go wrong.
    pub fn fail_until_told(&self, path_suffix: &str, fault: RestFault) {
        self.fail_next(path_suffix, fault, u64::MAX);
    }

    /// From now on nothing goes wrong.
    pub fn stop_failing(&self) {
        self.shared.state().faults = RestFaults::default();
    }

    /// Before each call is answered, with its path and its request. A panic in it comes out when
    /// the server is dropped.
    pub fn on_call(&self, hook: impl FnMut(&str, &Value, &mut OpenIm) + Send + 'static) {
        *lock(&self.shared.hook) = Some(Box::new(hook));
    }

    /// From now on calls of paths with this end are answered as if they had asked this.
    pub fn tamper_with_requests(
        &self,
        path_suffix: &str,
        change: impl FnMut(&mut Value) + Send + 'static,
    ) {
        let [requests, _] = &mut *lock(&self.shared.tampers);
        requests.push((path_suffix.to_owned(), Box::new(change)));
    }

    /// From now on the data of answers to paths with this end is changed on its way.
    pub fn tamper_with_answers(
        &self,
        path_suffix: &str,
        change: impl FnMut(&mut Value) + Send + 'static,
    ) {
        let [_, answers] = &mut *lock(&self.shared.tampers);
        answers.push((path_suffix.to_owned(), Box::new(change)));
    }

    /// From now on everything is answered as it is.
    pub fn stop_tampering(&self) {
        *lock(&self.shared.tampers) = Default::default();
    }

    /// The next call of a path with this end waits before anything is looked at.
    pub fn hold(&self, path_suffix: &str) -> Held {
        self.shared
            .state()
            .gates
            .add(path_suffix, Place::BeforeAnswer)
    }

    /// The answer to the next call of a path with this end waits, and so tells what was.
    pub fn hold_answer(&self, path_suffix: &str) -> Held {
        self.shared
            .state()
            .gates
            .add(path_suffix, Place::AfterAnswer)
    }

    /// The next call for a group's ids waits where it has the ids and not yet the version.
    pub fn hold_before_version(&self) -> Held {
        self.shared.state().gates.add(GET_IDS, Place::BeforeVersion)
    }

    /// From now on, whatever page is asked for, the first is given.
    pub fn give_first_page_only(&self) {
        self.shared.state().has_one_page = true;
    }

    /// Lists of members have no rows from this page on, though they say how many there are.
    pub fn lose_pages_from(&self, page: u64) {
        self.shared.state().lost_from = page;
    }

    /// True if lists of paths with this end are answered without rows.
    pub fn answer_empty(&self, path_suffix: &str, is_empty: bool) {
        let emptied = &mut self.shared.state().emptied;
        if is_empty {
            emptied.insert(path_suffix.to_owned());
        } else {
            emptied.remove(path_suffix);
        }
    }
}

impl Drop for OpenImServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended in a panic.
            let _ = stop.send(());
        }
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(ended.is_none_or(|ended| ended.is_ok()), "the server failed");
            assert!(!self.shared.hook.is_poisoned(), "on_call has panicked");
        }
    }
}

/// A test that fails with the lock in its hand is not to fail for it a second time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    async fn wait_at_gate(&self, path: &str, place: Place) {
        // Not in the `if`, which would keep the lock.
        let gate = self.state().gates.take(path, place);
        if let Some(gate) = gate {
            gate.wait().await;
        }
    }

    /// The data of an answer. Nothing where there is no such call.
    fn answer(
        &self,
        path: &str,
        headers: &HeaderMap,
        request: Option<&Value>,
    ) -> Option<Result<Value, Code>> {
        let state = &mut *self.state();
        let mut request = request.unwrap_or(&Value::Null).clone();
        if state.has_one_page && request["pagination"]["pageNumber"].is_u64() {
            request["pagination"]["pageNumber"] = json!(1);
        }
        let request = &request;
        let has_operation = header_of(headers, "operationID").is_some();
        if path == GET_TOKEN {
            let minted = if has_operation {
                state.mint(request)
            } else {
                Err(ARGUMENTS)
            };
            return Some(minted);
        }
        let answer = lock(&self.openim).answer(path, request, &mut state.random)?;
        if !has_operation {
            return Some(Err(ARGUMENTS));
        }
        if let Some(code) = state.refusal(headers) {
            return Some(Err(code));
        }
        let mut emptied = state.emptied.iter();
        if emptied.any(|suffix| path.ends_with(suffix)) {
            return without_rows(path).map(Ok);
        }
        let page = request["pagination"]["pageNumber"].as_u64();
        let is_list = path.ends_with("get_group_member_list");
        if is_list && page.is_some_and(|page| page >= state.lost_from) {
            return Some(answer.map(|mut data| {
                data["members"] = Value::Null;
                data
            }));
        }
        Some(answer)
    }
}

impl State {
    fn mint(&mut self, request: &Value) -> Result<Value, Code> {
        if request["secret"] != SECRET {
            return Err(NO_PERMISSION);
        }
        if request["userID"] != ADMIN_ID {
            return Err(ARGUMENTS);
        }
        // Another server gives others.
        let token = format!("{}-{}", self.port, self.tokens.len());
        self.tokens.insert(token.clone(), None);
        Ok(json!({"token": token, "expireTimeSeconds": 90 * 86400}))
    }

    fn refusal(&self, headers: &HeaderMap) -> Option<Code> {
        match header_of(headers, "token") {
            None => Some(ARGUMENTS),
            Some(token) => *self.tokens.get(token).unwrap_or(&Some(TOKEN_INVALID)),
        }
    }
}

/// An empty one is none.
fn header_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    (!value.is_empty()).then_some(value)
}

struct Rest(Arc<Shared>);

impl Endpoint for Rest {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let Self(shared) = self;
        let path = request.uri().path().to_owned();
        let body = request.take_body().into_bytes().await?;
        let mut asked: Option<Value> = serde_json::from_slice(&body).ok();
        let mut call = path.clone();
        let size = asked
            .as_ref()
            .map(|asked| &asked["pagination"]["showNumber"]);
        if size.is_some_and(|size| *size == 0) {
            call.push_str(ONLY_TOTAL);
        }
        *shared.state().calls.entry(call).or_default() += 1;
        shared.wait_at_gate(&path, Place::BeforeAnswer).await;
        if let Some(hook) = &mut *shared.hook.lock().unwrap() {
            let asked = asked.as_ref().unwrap_or(&Value::Null);
            hook(&path, asked, &mut lock(&shared.openim));
        }
        tamper(&mut lock(&shared.tampers)[0], &path, asked.as_mut());
        let fault = shared.state().faults.take(&path, &body);
        let answer = match fault {
            Some(RestFault::Status(code)) => return Ok(status(code)),
            Some(RestFault::Garbage) => return Ok(garbage()),
            Some(RestFault::Hang) => std::future::pending().await,
            Some(RestFault::TooLarge) => return Ok(too_large()),
            Some(RestFault::ErrCode(code)) => Some(Err(code)),
            Some(RestFault::CutOff) | None if request.method() == Method::POST => {
                shared.answer(&path, request.headers(), asked.as_ref())
            }
            Some(RestFault::CutOff) | None => None,
        };
        let Some(mut answer) = answer else {
            return Ok(StatusCode::NOT_FOUND.into());
        };
        if let (true, Ok(ids)) = (path.ends_with(GET_IDS), &mut answer) {
            shared.wait_at_gate(&path, Place::BeforeVersion).await;
            let asked = asked.as_ref().unwrap_or(&Value::Null);
            lock(&shared.openim).renew_version(asked, ids);
        }
        tamper(&mut lock(&shared.tampers)[1], &path, answer.as_mut().ok());
        shared.wait_at_gate(&path, Place::AfterAnswer).await;
        // The token's service is another, and its answer is small.
        let is_of_group = path.starts_with("/group/");
        let most = is_of_group.then(|| lock(&shared.openim).largest_answer());
        let body = envelope(answer, most);
        shared.state().bytes += body.len();
        Ok(respond(&request, body, fault))
    }
}

fn tamper(tampers: &mut [(String, Tamper)], path: &str, value: Option<&mut Value>) {
    let Some(value) = value else {
        return;
    };
    let mut tampers = tampers.iter_mut();
    if let Some((_, change)) = tampers.find(|(suffix, _)| path.ends_with(suffix.as_str())) {
        change(value);
    }
}

/// An answer that is too large for its way from the service to the API is an error.
fn envelope(answer: Result<Value, Code>, most: Option<usize>) -> Vec<u8> {
    let code = match answer {
        Ok(data) => {
            let whole = json!({"errCode": 0, "errMsg": "", "errDlt": "", "data": data});
            let whole = whole.to_string().into_bytes();
            if most.is_none_or(|most| whole.len() <= most) {
                return whole;
            }
            EXHAUSTED
        }
        Err(code) => code,
    };
    let error = json!({
        "errCode": code,
        "errMsg": message(code),
        "errDlt": format!("{code} {}", message(code)),
    });
    error.to_string().into_bytes()
}

fn message(code: Code) -> &'static str {
    match code {
        4 => "context deadline exceeded",
        8 => "grpc: received message larger than max",
        14 => "no children to pick from",
        1001 => "ArgsError",
        1002 => "NoPermissionError",
        1004 => "RecordNotFoundError",
        1201 => "GroupIDNotFoundError",
        1204 => "DismissedAlreadyError",
        1501 => "TokenExpiredError",
        1502 => "TokenInvalidError",
        1507 => "TokenNotExistError",
        90002 => "DatabaseError",
        _ => "ServerInternalError",
    }
}

fn respond(request: &Request, mut body: Vec<u8>, fault: Option<RestFault>) -> Response {
    let mut response = Response::builder().content_type("application/json; charset=utf-8");
    let offered = header_of(request.headers(), header::ACCEPT_ENCODING.as_str());
    if offered.is_some_and(|offered| offered.contains("gzip")) {
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(&body).unwrap();
        body = encoder.finish().unwrap();
        response = response.header(header::CONTENT_ENCODING, "gzip");
    }
    let body = Bytes::from(body);
    if fault == Some(RestFault::CutOff) {
        return cut_off(response.finish(), &body);
    }
    response.body(body)
}
