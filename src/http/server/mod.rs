//! The way of a request in: connection, middleware, keys, memory, and the operation of a callback.

pub(super) mod auth;
pub(super) mod connection;
pub(super) mod memory;
pub(super) mod middleware;
pub(super) mod routing;
