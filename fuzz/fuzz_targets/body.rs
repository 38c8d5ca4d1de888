//! Any bytes as the body of a callback and of a membership query: never a panic, and what is
//! accepted and what is refused keep their promises.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| openim_group_mirror::http::fuzz::body(body));
