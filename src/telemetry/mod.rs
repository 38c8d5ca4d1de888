//! Logs and metrics of the service.

mod logs;
mod metrics;

pub use logs::{LogFormat, LogSettings, init};
pub use metrics::{Error, Metrics, Snapshot};
