//! Ordinary messages at a steady rate, by a sender that costs little itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use serde_json::json;

/// The callback that tells of a message.
pub const MESSAGE: &str = "callbackAfterSendGroupMsgCommand";
/// A message that the service passes over.
pub const UNKNOWN: &str = "callbackAfterSendSingleMsgCommand";
/// Messages a second.
pub const RATE: u32 = 10_000;
pub const CONNECTIONS: u32 = 2;
const BODY: usize = 1024;

/// Requests until the end of the time.
pub struct Messages {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Messages {
    pub fn start(base: &str, command: &'static str) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let threads = (0..CONNECTIONS).map(|_| {
            let address = base.trim_start_matches("http://").to_owned();
            let is_ending = Arc::clone(&ending);
            std::thread::spawn(move || send(&address, command, &is_ending))
        });
        Self {
            threads: threads.collect(),
            ending,
        }
    }

    /// Number of answers.
    pub fn end(self) -> u64 {
        self.ending.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        threads.map(|thread| thread.join().unwrap()).sum()
    }
}

fn body(command: &str) -> String {
    let mut body = json!({
        "sendID": "2000000001",
        "callbackCommand": command,
        "serverMsgID": "b3f1d1f7b3f1d1f7b3f1d1f7b3f1d1f7",
        "clientMsgID": "b3f1d1f7b3f1d1f7b3f1d1f7b3f1d1f8",
        "operationID": "1764200000000",
        "senderPlatformID": 1,
        "senderNickname": "Ann",
        "sessionType": 3,
        "msgFrom": 100,
        "contentType": 101,
        "status": 1,
        "sendTime": 1_764_200_000_002_u64,
        "createTime": 1_764_200_000_001_u64,
        "content": "",
        "seq": 17,
        "atUserList": null,
        "faceURL": "",
        "ex": "",
        "groupID": "1000000001",
    });
    let empty = body.to_string().len();
    body["content"] = "x".repeat(BODY - empty).into();
    body.to_string()
}

fn send(address: &str, command: &str, is_ending: &AtomicBool) -> u64 {
    let body = body(command);
    let request = format!(
        "POST /{command} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Operationid: 1764200000000\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let apart = Duration::from_secs(1) * CONNECTIONS / RATE;
    let began = Instant::now();
    let mut answered = 0;
    let mut buffer = [0; 4096];
    while !is_ending.load(Ordering::Relaxed) {
        let due = began + apart * u32::try_from(answered).unwrap();
        let now = Instant::now();
        if due > now {
            sleep(due - now);
        }
        stream.write_all(request.as_bytes()).unwrap();
        read_answer(&mut stream, &mut buffer);
        answered += 1;
    }
    answered
}

/// Reads one answer. Nothing else comes.
fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut filled = 0;
    loop {
        let more = stream.read(&mut buffer[filled..]).unwrap();
        assert!(more > 0, "the connection has ended");
        filled += more;
        let text = std::str::from_utf8(&buffer[..filled]).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap() {
            return;
        }
    }
}
