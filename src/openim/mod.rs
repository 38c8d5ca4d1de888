//! The door that pulls: asks OpenIM what it holds, and has repaired what the mirror holds else. The
//! only place that calls OpenIM.

mod calls;
mod client;
mod error;
mod fetch;
mod list;
mod pace;
mod pages;
mod reconcile;
mod view;
mod wire;

use std::time::Duration;

use crate::config::Secret;

pub use client::{Client, choose_cryptography};
pub use error::Error as ClientError;
pub use reconcile::{
    Comparing, DriftOf, Error, Mode, Parts, Reconciler, SETTLING, Settings, Tally,
};

/// How to reach OpenIM.
#[derive(Clone, Debug)]
pub struct Access {
    /// Such as `http://openim:10002`; a path in it comes before OpenIM's own.
    pub url: String,
    /// One of OpenIM's administrators.
    pub admin_user_id: String,
    /// What OpenIM's config/share.yml calls `secret`.
    pub secret: Secret,
    /// How long one call may take.
    pub timeout: Duration,
}
