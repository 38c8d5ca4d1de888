//! The spool as the rest of the program sees it.

use super::testing::{TempDir, rejected};
use super::*;
use crate::ingest::Error;

/// Their own part can be full, which says nothing of changes.
#[tokio::test]
async fn a_rejected_callback_that_finds_no_room_is_counted_and_no_more() {
    let dir = TempDir::new();
    let spool = Spool::in_folder(dir.path(), 100_000).unwrap();
    spool.append_rejected(rejected(6000)).await.unwrap(); // 8,000 as base64
    let refused = spool.append_rejected(rejected(3000)).await;
    assert!(matches!(refused, Err(Error::Refused(_))));
    let state = spool.state();
    assert_eq!((state.spooled, state.refused, state.waiting), (1, 1, 1));
    assert!(!state.is_refusing);
}
