//! Logs: where they go and in which form.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::config::{Config, LogFormat};

/// Sends logs to standard error, so that standard output has nothing but what was asked for.
/// A second call in one process changes nothing.
pub fn init(config: &Config) {
    // The configuration has checked the filter.
    let asked: Targets = config.log_filter.parse().unwrap_or_default();
    // poem's server tells of its start and stop in its own words, beside ours, and sqlx passes on
    // Postgres' notices; whoever wants these names them in the filter.
    let filter = Targets::new()
        .with_default(asked.default_level().unwrap_or(LevelFilter::OFF))
        .with_target("poem::server", LevelFilter::WARN)
        .with_target("sqlx", LevelFilter::WARN)
        .with_targets(asked);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let lines = match config.log_format {
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // An error means that a subscriber is set already.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
    // A panic's message can quote the data it was about, so the log says only where it was.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "internal error: a task panicked");
    }));
}
