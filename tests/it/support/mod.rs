//! What the tests stand on: a throwaway Postgres for the run, a database for each test, the
//! service in this process or as one of its own. Whatever a test starts ends with it, also when
//! the test panics or is killed.

mod app;
mod browser;
mod database;
mod openim;
mod run;
mod service;
mod wire;

pub use app::{
    COMMAND, Reply, TestApp, answer, body_of, head_of_callback, member_info, path_segment, sample,
    until,
};
pub use browser::Browser;
pub use database::TestDb;
pub use openim::{ADMIN, Callback, Creation, Group, ORDINARY, OWNER, OpenIm, Operation, Values};
pub use run::{own_server, run, search, wait_for};
pub use service::{Ended, Service, kill};
pub use wire::Wire;
