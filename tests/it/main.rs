//! Tests of behaviour: the rules alone, and everything with real Postgres, real HTTP and real processes.

#![allow(unreachable_pub, reason = "nobody reaches into a test binary")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod access;
mod boundaries;
mod bounds;
mod callbacks;
mod columns;
mod connections;
mod dismissals;
mod docs_page;
mod document;
mod doors;
mod drift;
mod equality;
mod faults;
mod fences;
mod hints;
mod histories;
mod lanes;
mod large_answers;
mod layout;
mod lookups;
mod membership;
mod model;
mod model_messages;
mod model_quirks;
mod other_groups;
mod outage;
mod poolers;
mod private_postgres;
mod process;
mod readme;
mod reads;
mod real_hints;
mod real_histories;
mod real_openim;
mod reconcile;
mod reconcile_command;
mod recordings;
mod rejected;
mod routing;
mod rules;
mod schema;
mod settings;
mod snapshots;
mod spool_folder;
mod spool_log;
mod spool_versions;
mod stopping;
mod storage;
mod support;
mod tasks;
mod tls;
mod unreadable;
mod watching;
