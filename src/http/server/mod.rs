//! The way of a request in: connection, middleware, keys, memory.

pub(super) mod auth;
pub(super) mod connection;
pub(super) mod memory;
pub(super) mod middleware;
