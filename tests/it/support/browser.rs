//! A headless Chromium, spoken to over its DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::run::run;

const BOUND: Duration = Duration::from_secs(60);

/// A page. Its Chromium, and all processes that it started, end with it.
pub struct Browser {
    watchdog: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Value,
    count: u64,
    /// The URL of everything that the page has asked for.
    pub asked_for: Vec<String>,
}

/// The names it has on Debian, on Fedora and from Google.
fn program() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|path| path.is_file())
}

impl Browser {
    /// `None`, with a word why, where there is no Chromium. In CI that is a failure.
    pub async fn start() -> Option<Browser> {
        let Some(program) = program() else {
            let is_ci = std::env::var_os("CI").is_some();
            assert!(!is_ci, "no Chromium in PATH: CI has to install it");
            // Not by eprintln!, which the test runner keeps to itself.
            let said = "SKIPPED: no Chromium in PATH, so the docs page is not tried in a browser";
            let mut stderr = std::io::stderr();
            writeln!(stderr, "{said}").unwrap();
            return None;
        };
        let profile = run().folder("chromium");
        // The shell waits for the end of its input, which comes when we are gone in whatever way.
        // Chromium has a process group of its own, for it is many processes; and what it wrote is
        // deleted here, for whoever deletes the run's folder may be an account with fewer rights.
        let script = "trap '' HUP INT TERM; exec 3<&0 </dev/null; profile=$1; shift
            setsid \"$@\" 3<&- & pid=$!
            exec 2>/dev/null; read -r _ <&3
            kill -s KILL -- -$pid; wait $pid
            for _ in 1 2 3 4 5 6 7 8 9; do rm -rf \"$profile\" && break; sleep 0.1; done";
        let mut watchdog = Command::new("sh")
            .args(["-c", script, "chromium"])
            .arg(&profile)
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args([
                "--no-first-run",
                "--disable-extensions",
                "--disable-sync",
                "--disable-quic",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(["--remote-debugging-port=0", "about:blank"])
            // All that it writes goes with the run.
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", &profile)
            .env("TMPDIR", &profile)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(watchdog.stderr.take().unwrap());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut sender = Some(sender);
            // To its end, so that Chromium can always write.
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("DevTools listening on ")
                    && let Some(sender) = sender.take()
                {
                    let _ = sender.send(url.to_owned());
                }
            }
        });
        let url = tokio::time::timeout(BOUND, receiver);
        let url = url
            .await
            .expect("Chromium starts")
            .expect("Chromium starts");
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let mut browser = Browser {
            watchdog,
            socket,
            session: Value::Null,
            count: 0,
            asked_for: Vec::new(),
        };
        let page = browser
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await;
        let target = json!({"targetId": page["targetId"], "flatten": true});
        browser.session = browser.call("Target.attachToTarget", target).await["sessionId"].clone();
        browser.call("Network.enable", json!({})).await;
        browser.call("Page.enable", json!({})).await;
        Some(browser)
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.count += 1;
        let mut message = json!({"id": self.count, "method": method, "params": params.clone()});
        if self.session.is_string() {
            message["sessionId"] = self.session.clone();
        }
        self.socket
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
        let answer = async {
            loop {
                let message = self
                    .socket
                    .next()
                    .await
                    .expect("Chromium is there")
                    .unwrap();
                let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
                if message["method"] == "Network.requestWillBeSent" {
                    let url = message["params"]["request"]["url"].as_str().unwrap();
                    self.asked_for.push(url.to_owned());
                }
                if message["id"] == json!(self.count) {
                    return message;
                }
            }
        };
        let answer = tokio::time::timeout(BOUND, answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {method} {params}"));
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Opens a page.
    pub async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert!(opened["errorText"].is_null(), "{opened}");
    }

    /// The value of an expression, awaited.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
            "userGesture": true,
        });
        let result = self.call("Runtime.evaluate", params).await;
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn until<'a>(&'a mut self, expression: &'a str) -> impl Future<Output = ()> + 'a {
        let wait = format!(
            "new Promise(done => {{ const look = () => ({expression}) ? done(true) : \
             setTimeout(look, 20); look(); }})"
        );
        async move {
            self.evaluate(&wait).await;
        }
    }

    /// Clicks on the first of what a selector finds, as a person would: in its middle, once it is
    /// there, stands still and nothing lies over it.
    pub async fn click(&mut self, selector: &str) {
        let selector = json!(selector);
        let middle = self
            .evaluate(&format!(
                "(async () => {{
                    const frame = () => new Promise(done => requestAnimationFrame(done));
                    for (let before = ''; ; await frame()) {{
                        const e = document.querySelector({selector});
                        if (!e) continue;
                        e.scrollIntoView({{block: 'center'}});
                        const r = e.getBoundingClientRect();
                        const [x, y] = [r.x + r.width / 2, r.y + r.height / 2];
                        const now = JSON.stringify(r);
                        if (now == before && e.contains(document.elementFromPoint(x, y)))
                            return [x, y];
                        before = now;
                    }}
                }})()"
            ))
            .await;
        for event in ["mousePressed", "mouseReleased"] {
            let params = json!({
                "type": event, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", params).await;
        }
    }

    /// Types into an input.
    pub async fn type_into(&mut self, selector: &str, text: &str) {
        self.click(selector).await;
        self.call("Input.insertText", json!({"text": text})).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}
