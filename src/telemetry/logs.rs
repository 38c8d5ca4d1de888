//! The log: its form, its filter and its destination.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::prelude::*;

/// Form and filter of the log.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Form of the lines.
    pub format: LogFormat,
    /// A tracing filter.
    pub filter: String,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends the log to standard error. Standard output has only the result of a command. A second call in one process
/// changes nothing.
pub fn init(settings: &LogSettings) {
    // `config` has checked the filter.
    let asked: Targets = settings.filter.parse().unwrap_or_default();
    // poem's server logs its start and stop, as we do, and sqlx logs Postgres' notices. The filter can name both.
    let filter = Targets::new()
        .with_default(asked.default_level().unwrap_or(LevelFilter::OFF))
        .with_target("poem::server", LevelFilter::WARN)
        .with_target("sqlx", LevelFilter::WARN)
        .with_targets(asked);
    let filter = WarnedOnce {
        filter,
        logged: Mutex::default(),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let lines = match settings.format {
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // An error means that a subscriber is set already.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init();
    // The message of a panic can quote data, so the log has only its location.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "internal error: a task panicked");
    }));
}

/// Target of Postgres' notices in sqlx.
const NOTICES: &str = "sqlx::postgres::notice";
/// Limit of warnings in memory.
const MAX_LOGGED: usize = 100;

/// A filter that logs a warning of Postgres once. PostgreSQL 19 warns about an MD5 password at every connection. Every
/// version warns about a setting of a role or a database that it cannot use.
struct WarnedOnce {
    filter: Targets,
    logged: Mutex<HashSet<String>>,
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
        // A set stays valid after a panic.
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= MAX_LOGGED {
            logged.clear();
        }
        logged.insert(message.0)
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
