//! What the service tells of itself: logs and metrics.

mod logs;
mod metrics;

pub use logs::init;
pub use metrics::{Answer, Error, Metrics, Snapshot};
