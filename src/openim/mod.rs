//! Client of OpenIM's REST API, and snapshots of groups. Only this room calls OpenIM.

mod calls;
mod client;
mod error;
mod snapshot;
mod wire;

use std::time::Duration;

use crate::secret::Secret;

pub(crate) use calls::{Halves, LARGEST_PAGE, ListPages};
pub use client::{Client, choose_cryptography};
pub(crate) use client::{Pace, paced};
pub use error::Error;
pub use snapshot::ReadError;
pub(crate) use snapshot::{
    GroupSnapshot, GroupState, Incomplete, MAX_DELTA_LEAVES, NOT_FOUND, Reader,
};
pub(crate) use wire::{Delta, GroupInfo};

/// Address and credentials of OpenIM's API.
#[derive(Clone, Debug)]
pub struct OpenimAccess {
    /// Base URL, for example `http://openim:10002`. A path in it comes before OpenIM's own paths.
    pub url: String,
    /// User id of an OpenIM administrator.
    pub admin_user_id: String,
    /// The value of `secret` in OpenIM's config/share.yml.
    pub secret: Secret,
    /// Time limit of one call.
    pub timeout: Duration,
}
