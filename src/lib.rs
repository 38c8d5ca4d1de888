//! A Postgres mirror of OpenIM group membership, fed by OpenIM's callbacks, held against OpenIM's API
//! and served over REST.
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
//! Two doors (`http`, which OpenIM and the backends call, and `reconcile`, which calls OpenIM through
//! `openim`), one queue (`ingest`), one wall (`store`). What a callback says is born as a `domain::Change` at its door, what
//! a comparison with OpenIM finds as a `domain::Repair` at the other; both only move right, and nothing
//! knows what stands to its left. A lane writes what waits: patches of members who are there as one
//! statement, in which those of one member are folded into one; everything else by `domain::apply`,
//! which says what a change does to the rows of its group, and whether the group is to be checked
//! against OpenIM, as `reconcile` then does. What cannot be written, for the database is away, goes to the
//! spool on disk, and from there to the store when it is back.
//!
//! OpenIM's notifications come by the first door too, each as a `domain::Hint` that something has happened
//! to a group. `ingest::hints` keeps them in memory and says when which group is to be looked at, and
//! `reconcile` looks; without access to OpenIM's API some become marks.
//!
//! Around them: `app` builds the parts, runs them and stops them, and does what the subcommands
//! ask; `tasks` tells of what goes on beside serving and has ended early; `config` has every setting;
//! `telemetry` the logs and every metric; `local_postgres` the server that is used where no other is
//! named.
//!
//! Imports point at `domain`, which imports nobody. `http` and `reconcile` read from `store` and submit
//! to `ingest`, and do not know each other; `reconcile` also records in `store` what it has compared. Only
//! `http` names poem, only `openim` and the healthcheck in `app` reqwest, only `openim` and `store`
//! rustls, only `store` sqlx, only `spool` SQLite, only `telemetry` the metrics library, only `app` what
//! draws progress, and only `config` reads the environment; `tests/it/boundaries.rs` holds the code to
//! that.

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
