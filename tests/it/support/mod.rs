//! Parts of the tests: a throwaway Postgres for the run, a database for each test, the service in this process or as
//! one of its own. Everything that a test starts ends with it, also when the test panics or is killed.

mod abuse;
mod app;
mod browser;
mod cluster;
mod database;
mod delivery;
mod faults;
mod openim;
mod openim_cache;
mod openim_callbacks;
mod openim_faults;
mod openim_gates;
mod openim_load;
mod openim_messages;
mod openim_order;
mod openim_pair;
mod openim_release;
mod openim_rest;
mod openim_server;
mod openim_versions;
mod proxy;
mod random;
pub mod recording;
mod run;
mod senders;
mod service;
mod tls_server;
pub mod web;
mod wire;

pub use abuse::abuse;
pub use app::{
    COMMAND, Reply, TestApp, answer, body_of, head_of_callback, member_info, path_segment, sample,
    until,
};
pub use browser::Browser;
pub use cluster::Frozen;
pub use database::TestDb;
pub use delivery::{Delivery, Way};
pub use faults::{End, Fault, damage, suffer, tamper};
pub use openim::{ADMIN, ADMIN_ID, Creation, Group, ORDINARY, OWNER, OpenIm, Operation, Values};
pub use openim_callbacks::Callback;
pub use openim_faults::RestFault;
pub use openim_gates::Held;
pub use openim_order::Told;
pub use openim_pair::{CURRENT, Pair, access, ingest, settings, tell};
pub use openim_release::Release;
pub use openim_server::{OpenImServer, SECRET};
pub use proxy::Proxy;
pub use random::{Random, new_seed};
pub use run::{own_server, run, search, wait_for};
pub use senders::{TIMEOUT, Tally};
pub use service::{Ended, Service, hand_over_spool, kill};
pub use tls_server::{TLS, TlsServer};
pub use wire::Wire;
