//! A Postgres mirror of OpenIM group membership: fed by OpenIM's callbacks, reconciled with OpenIM's API, served over
//! REST.
//!
//! ```text
//!  OpenIM ──POST──▶ http ──────────────┐
//!                                      ├─ domain ──▶ ingest ──▶ store (write) ──▶ Postgres
//!  OpenIM ◀──REST── openim ─ reconcile ┘    lanes ▸ (spool) ▸ fold, apply            │
//!                                ▲                                                   │
//!                     ┌──────────┴───────────── store (read) ◀───────────────────────┘
//!                     ▼
//!  backend ──GET──▶ http
//! ```
//!
//! A callback becomes a `domain::Change` in `http`, and a difference from OpenIM becomes a `domain::Repair` in
//! `reconcile`. Both go to `ingest`. Its lanes write them through `store`: patches of current members in one statement,
//! all other changes by `domain::apply`, which computes the new rows and the mark of a group that contradicts them.
//! Changes that Postgres does not take wait in `spool`, and the drain writes them later. A notification of OpenIM
//! becomes a `domain::Hint`, and `reconcile` looks at its group.
//!
//! `docs/architecture.md` has the rooms, what each may import, and five walks through the code.
//! `tests/it/boundaries.rs` and `tests/it/layout.rs` hold the code to it.

pub mod app;
pub mod config;
pub mod domain;
pub mod http;
pub mod ingest;
pub mod local_postgres;
pub mod openim;
pub mod reconcile;
pub mod secret;
pub mod spool;
pub mod store;
pub mod tasks;
pub mod telemetry;
