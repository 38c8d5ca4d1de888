//! Everything that needs more than one function: real Postgres, real HTTP, real processes.

#![allow(unreachable_pub, reason = "nobody reaches into a test binary")]

mod boundaries;
mod callbacks;
mod document;
mod outage;
mod private_postgres;
mod process;
mod reads;
//mod readme;
mod storage;
mod support;
