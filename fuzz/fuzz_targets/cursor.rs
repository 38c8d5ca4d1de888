//! Any text as a cursor: never a panic; one that is accepted is the one that we would give.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|cursor: &str| openim_group_mirror::http::fuzz::cursor(cursor));
