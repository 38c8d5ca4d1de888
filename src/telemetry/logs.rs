//! Logs: where they go and in which form.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Filter};
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
    let filter = WarnedOnce {
        filter,
        told: Mutex::default(),
    };
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

/// Where sqlx passes on Postgres' notices.
const NOTICES: &str = "sqlx::postgres::notice";
/// Most warnings that are remembered.
const MOST: usize = 100;

/// Tells a warning of Postgres once. PostgreSQL 19 warns of an MD5 password at every connection, and
/// any version of a setting that a role or a database has and cannot use.
struct WarnedOnce {
    filter: Targets,
    told: Mutex<HashSet<String>>,
}

impl<S: Subscriber> Filter<S> for WarnedOnce {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        Filter::enabled(&self.filter, metadata, context)
    }

    fn callsite_enabled(
        &self,
        metadata: &'static Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        Filter::<S>::callsite_enabled(&self.filter, metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Filter::<S>::max_level_hint(&self.filter)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() != NOTICES || *metadata.level() != Level::WARN {
            return true;
        }
        let mut message = Message::default();
        event.record(&mut message);
        // A set is a set, whoever panicked.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST {
            told.clear();
        }
        told.insert(message.0)
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
