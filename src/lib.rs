//! A Postgres mirror of OpenIM group membership, fed by OpenIM's callbacks and served over REST.
//!
//! ```text
//!  OpenIM ──POST──▶ http ── domain ──▶ ingest ──▶ store (write) ──▶ Postgres
//!                     ▲  lanes ▸ (spool) ▸ fold, apply │
//!  backend ──GET──────┴──────── store (read) ◀──────┘
//! ```
//!
//! One door (`http`), one queue (`ingest`), one wall (`store`). What a callback says is born as a
//! `domain::Change` at the door and only moves right; nothing knows what stands to its left. A lane
//! writes what waits: patches of members who are there as one statement, in which those of one member
//! are folded into one; everything else by `domain::apply`, which says what a change does to the rows
//! of its group, and whether the group is to be checked against OpenIM. What cannot be written, for
//! the database is away, goes to the spool on disk, and from there to the store when it is back.
//!
//! Around them: `app` builds the parts, runs them and stops them, and does what the subcommands
//! ask; `config` has every setting; `telemetry` the logs and every metric; `local_postgres` the
//! server that is used where no other is named.
//!
//! Imports point at `domain`, which imports nobody. `http` reads from `store` and submits to
//! `ingest`. Only `http` names poem, only `store` names sqlx, only `config` reads the environment,
//! only `telemetry` names the metrics library, only `ingest::spool` SQLite; `tests/it/boundaries.rs` holds the code to that.

pub mod app;
pub mod config;
pub mod domain;
pub mod http;
pub mod ingest;
pub mod local_postgres;
pub mod openim;
pub mod store;
pub mod telemetry;
