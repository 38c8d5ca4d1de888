//! Senders that do what no sender should.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::app::{body_of, head_of_callback, member_info};
use super::faults::Stage;
use super::senders::Tally;

/// Odd connections that are open at a time.
const CONNECTIONS: usize = 1000;
const LARGEST: usize = 16 << 20;

/// Peak memory of the service, in bytes, and what became of ordinary callbacks beside all of it.
pub async fn abuse(seed: u64) -> (u64, Tally) {
    let mut stage = Stage::new(false, &[], None).await;
    // Made before anybody's time is taken, which runs on this thread.
    let whole = Bytes::from(body_of(LARGEST));
    let nonsense: Vec<Bytes> = nonsense().into_iter().map(Bytes::from).collect();
    stage.send(seed).await;
    let address = stage.base().strip_prefix("http://").unwrap().to_owned();
    let mut odd = JoinSet::new();
    for number in 0..CONNECTIONS {
        odd.spawn(linger(address.clone(), number));
    }
    stage.some_more().await;
    for _ in 0..3 {
        let mut bodies = JoinSet::new();
        for number in 0..2 {
            bodies.spawn(send(address.clone(), whole.clone()));
            let half = whole.slice(..(number + 1) << 21);
            odd.spawn(half_a_body(address.clone(), half));
        }
        for body in &nonsense {
            bodies.spawn(send(address.clone(), body.clone()));
        }
        while let Some(sent) = bodies.join_next().await {
            sent.unwrap();
        }
        stage.some_more().await;
    }
    let peak = stage.peak_memory();
    odd.shutdown().await;
    (peak, stage.verified().await)
}

/// Requests that are no callbacks.
fn nonsense() -> Vec<Vec<u8>> {
    let deep = 100_000;
    let nested = format!("{{\"ex\": {}{}}}", "[".repeat(deep), "]".repeat(deep));
    let once = member_info("odd", "u", serde_json::json!({}));
    let twice = once.replacen('{', "{\"groupID\": \"odd\", \"groupID\": 7, ", 1);
    let many = format!("{{{}\"ex\": 1}}", "\"ex\": 1, ".repeat(100_000));
    let bytes = (0..100_000_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]);
    vec![
        nested.into(),
        twice.into(),
        many.into(),
        bytes.collect(),
        vec![0; 1 << 20],
        Vec::new(),
    ]
}

/// A connection that is slow, or never says what it wants, for as long as it is let.
async fn linger(address: String, number: usize) {
    let Ok(mut connection) = TcpStream::connect(&address).await else {
        return;
    };
    let head = head_of_callback(1000);
    let said = match number % 4 {
        0 => "",
        1 => &head[..40],
        2 => &head,
        _ => {
            for byte in head.as_bytes() {
                if connection.write_all(&[*byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
            ""
        }
    };
    let _ = connection.write_all(said.as_bytes()).await;
    let _ = connection.read_to_end(&mut Vec::new()).await;
}

async fn half_a_body(address: String, half: Bytes) {
    let Ok(mut connection) = TcpStream::connect(&address).await else {
        return;
    };
    let head = head_of_callback(LARGEST);
    let _ = connection.write_all(head.as_bytes()).await;
    let _ = connection.write_all(&half).await;
    let _ = connection.read_to_end(&mut Vec::new()).await;
}

/// Sends a whole body, and waits until something is answered, whatever it is.
async fn send(address: String, body: Bytes) {
    let Ok(mut connection) = TcpStream::connect(&address).await else {
        return;
    };
    let head = head_of_callback(body.len());
    let _ = connection.write_all(head.as_bytes()).await;
    let _ = connection.write_all(&body).await;
    let _ = connection.read(&mut [0; 1024]).await;
}
