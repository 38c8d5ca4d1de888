//! The subcommands and their flags. The settings, which are flags too, are in `table`.

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::form::{BASE_URL, is_base_url};
use crate::domain::{GroupId, IdError};

/// Keeps a Postgres mirror of the groups and members of OpenIM, made from OpenIM's callbacks, and serves
/// it over REST.
///
/// A setting is read from its flag, else from its environment variable, else from its line in ./.env. An
/// empty variable counts as unset.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// The subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Receive callbacks and answer reads. The default
    Serve,
    /// Bring the database schema up to date
    Migrate,
    /// Print the OpenAPI document as JSON
    Openapi,
    /// Print the lines for OpenIM's config/webhooks.yml, with the real password
    OpenimConfig(OpenimConfig),
    /// Ask the service on LISTEN_ADDR if it is alive. Fails if it is not
    Healthcheck,
    /// Write the spool to the database. Stop the service before
    Drain,
    /// Compare the mirror with OpenIM and repair the differences. The service may run. Exit code 1: a dry
    /// run has found a difference. Exit code 2: it failed, or groups were left as they are
    Reconcile(Reconcile),
    /// List, show, replay or delete callbacks with a body that could not be understood
    #[command(subcommand)]
    Rejected(RejectedCommand),
}

/// Flags of `openim-config`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenimConfig {
    /// URL of this service for OpenIM, such as http://mirror:8080. Unset: LISTEN_ADDR
    #[arg(long, value_name = "URL", value_parser = base_url)]
    pub url: Option<String>,
    /// Version of OpenIM. Unset: the lines that all versions have in common
    #[arg(long, value_enum)]
    pub openim: Option<OpenimVersion>,
    /// Form of the lines
    #[arg(long, value_enum, default_value_t)]
    pub format: ConfigFormat,
}

/// Versions of OpenIM that need different lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OpenimVersion {
    /// v3.8.2 to v3.8.3-patch.16: with notifications, which report changes that no callback reports
    Patch,
    /// Newer and older versions: without notifications, because every message would come with them
    Main,
}

/// Forms of OpenIM's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ConfigFormat {
    /// Lines of config/webhooks.yml
    #[default]
    Yaml,
    /// Environment variables. OpenIM as a single process does not read them
    Env,
    /// Environment variables in a docker-compose file
    Compose,
}

/// Flags of `reconcile`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconcile {
    /// Only this group. Can be given several times
    #[arg(long = "group", value_name = "ID", value_parser = group_id)]
    pub groups: Vec<GroupId>,
    /// Read every group as a whole, not only the changed groups
    #[arg(long, conflicts_with = "groups")]
    pub full: bool,
    /// Repair nothing. Read every group, and print each value that differs, and still differs after
    /// RECONCILE_DELAY_MS
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Remove members and dismiss groups that OpenIM does not have, without the limits on removals
    #[arg(long, conflicts_with = "dry_run")]
    pub accept_removals: bool,
}

fn group_id(text: &str) -> Result<GroupId, IdError> {
    GroupId::parse(text.to_owned())
}

fn base_url(text: &str) -> Result<String, String> {
    match is_base_url(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected {BASE_URL}")),
    }
}

/// Subcommands of `rejected`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum RejectedCommand {
    /// Print one line for each, newest first
    List {
        /// Limit of lines
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the body as it came to standard output, and the rest to standard error
    Show {
        /// Number in the list
        id: i64,
    },
    /// Process them again. Those that are understood now are applied and deleted
    Replay(Selection),
    /// Delete them
    Delete(Selection),
}

/// Flags that select rejected callbacks.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// Numbers in the list
    #[arg(value_name = "ID")]
    pub ids: Vec<i64>,
    /// All of them
    #[arg(long)]
    pub all: bool,
}
