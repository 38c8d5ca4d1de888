//! The flags, each with an environment variable of the same name.
//!
//! clap reads them as text and makes the reference (`--help`); `parse` makes settings of the text,
//! so that all errors are told at once and each names its variable.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::{Config, Errors};
use crate::domain::{GroupId, IdError};

/// Keeps a Postgres mirror of OpenIM group membership, fed by OpenIM's callbacks, and answers
/// questions about members over REST.
///
/// Each setting is read from its flag, else from its environment variable, else from the same
/// name in ./.env; an empty variable counts as unset.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// What the program is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Receive callbacks and answer reads (what happens without a subcommand)
    Serve,
    /// Bring the database schema up to date, and end
    Migrate,
    /// Print the OpenAPI document as JSON, and end
    Openapi,
    /// Print the lines for OpenIM's config/webhooks.yml, with the real password, and end
    OpenimConfig(OpenimConfig),
    /// Ask the running service on LISTEN_ADDR whether it is alive; fails if not
    Healthcheck,
    /// Write what waits in the spool to the database, and end; not beside a running service
    Drain,
    /// Compare the mirror with OpenIM and repair what differs, and end; works beside a running
    /// service. Exits with 1 where a dry run finds a difference, with 2 where it fails or groups were
    /// left as they are
    Reconcile(Reconcile),
    /// Look at callbacks whose body could not be understood, send them in again, or delete them
    #[command(subcommand)]
    Rejected(RejectedCommand),
}

/// Which lines to print.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenimConfig {
    /// How OpenIM reaches this service, such as http://mirror:8080; unset: LISTEN_ADDR
    #[arg(long, value_name = "URL", value_parser = base_url)]
    pub url: Option<String>,
    /// Which OpenIM they are for; unset: what all have in common
    #[arg(long, value_enum)]
    pub openim: Option<OpenimVersion>,
    /// In which form
    #[arg(long, value_enum, default_value_t)]
    pub format: ConfigFormat,
}

/// OpenIM's versions, as far as they are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OpenimVersion {
    /// v3.8.2 to v3.8.3-patch.16: notifications too, which tell of what no callback does
    Patch,
    /// Newer ones, and older: there the notifications would bring every message
    Main,
}

/// Forms of OpenIM's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ConfigFormat {
    /// Lines of config/webhooks.yml
    #[default]
    Yaml,
    /// Environment variables, which OpenIM's single-process form does not read
    Env,
    /// The same for a docker-compose file
    Compose,
}

/// What to compare, and how.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconcile {
    /// Only this group; can be given several times
    #[arg(long = "group", value_name = "ID", value_parser = group_id)]
    pub groups: Vec<GroupId>,
    /// Read every group as a whole, not only those that have changed
    #[arg(long, conflicts_with = "groups")]
    pub full: bool,
    /// Repair nothing: read every group, and print each value that differs and still does after
    /// RECONCILE_DELAY_MS
    #[arg(long)]
    pub dry_run: bool,
    /// JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Take members for gone however many they are, and groups that OpenIM does not know for dismissed
    #[arg(long, conflicts_with = "dry_run")]
    pub accept_removals: bool,
}

fn group_id(text: &str) -> Result<GroupId, IdError> {
    GroupId::parse(text.to_owned())
}

/// A URL that a password can be put into.
fn base_url(text: &str) -> Result<String, String> {
    match is_base_url(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected {BASE_URL}")),
    }
}

/// What [`is_base_url`] takes.
pub(super) const BASE_URL: &str =
    "http://HOST:PORT or https://HOST:PORT, without user and password";

/// Whether it is the address of a server, with or without a path.
pub(super) fn is_base_url(text: &str) -> bool {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let is_plain = |c: char| c.is_ascii_graphic() && !"@?#".contains(c);
    rest.is_some_and(|rest| {
        rest.chars().all(is_plain) && !rest.is_empty() && !rest.starts_with('/')
    })
}

/// What to do with rejected callbacks.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum RejectedCommand {
    /// One line for each, newest first
    List {
        /// Most lines
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// The body, as it came, on standard output; what is known of it on standard error
    Show {
        /// Number in the list
        id: i64,
    },
    /// Take them as callbacks again; those that are understood now are applied and deleted
    Replay(Selection),
    /// Delete them
    Delete(Selection),
}

/// Which rejected callbacks.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// Numbers in the list
    #[arg(value_name = "ID")]
    pub ids: Vec<i64>,
    /// Every one
    #[arg(long)]
    pub all: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct Settings {
    /// Address and port to listen on; port 0 picks a free one
    #[arg(
        long,
        env,
        global = true,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub(super) listen_addr: String,
    /// User name that OpenIM sends with callbacks
    #[arg(
        long,
        env,
        global = true,
        value_name = "NAME",
        default_value = "openim"
    )]
    pub(super) callback_username: String,
    /// Password that OpenIM sends with callbacks; unset: callbacks need none
    #[arg(long, env, global = true, value_name = "PASSWORD")]
    pub(super) callback_password: Option<String>,
    /// The password before, taken too while OpenIM's servers change over
    #[arg(long, env, global = true, value_name = "PASSWORD")]
    pub(super) callback_password_previous: Option<String>,
    /// Token that reads send, or several with commas between them; unset: reads need none
    #[arg(long, env, global = true, value_name = "TOKEN[,TOKEN]")]
    pub(super) api_token: Option<String>,
    /// Serve without keys on an address that other machines can reach, and to any Host: true or
    /// false
    #[arg(long, env, global = true, value_name = "BOOL", default_value = "false")]
    pub(super) allow_anonymous: String,
    /// Address and port for /metrics alone, which need no token there; unset: on LISTEN_ADDR
    #[arg(long, env, global = true, value_name = "ADDR:PORT")]
    pub(super) metrics_addr: Option<String>,
    /// The Postgres to use, postgres://user:password@host:5432/database; unset: a private one
    #[arg(long, env, global = true, value_name = "URL")]
    pub(super) database_url: Option<String>,
    /// Schema of the mirror's tables, made if missing: lower-case letters, digits and _
    #[arg(
        long,
        env,
        global = true,
        value_name = "NAME",
        default_value = "public"
    )]
    pub(super) database_schema: String,
    /// Most connections to Postgres at a time, 2 to 1000; from 4 on two are for callbacks alone;
    /// comparing with OpenIM takes one or two more
    #[arg(long, env, global = true, value_name = "N", default_value = "10")]
    pub(super) database_pool_size: String,
    /// Longest a read waits for Postgres, 100 to 60000
    #[arg(long, env, global = true, value_name = "MS", default_value = "2000")]
    pub(super) database_timeout_ms: String,
    /// Folder where callbacks wait while Postgres is away, for this instance alone; unset: the folder
    /// spool in DATA_DIR
    #[arg(long, env, global = true, value_name = "DIR")]
    pub(super) spool_dir: Option<PathBuf>,
    /// How long Postgres may take for a callback before it waits there, 100 to 4000; OpenIM gives up
    /// after 5000
    #[arg(long, env, global = true, value_name = "MS", default_value = "1500")]
    pub(super) spool_after_ms: String,
    /// Most room for callbacks that wait, 65536 to 1099511627776; with none left they are refused
    #[arg(
        long,
        env,
        global = true,
        value_name = "BYTES",
        default_value = "1073741824"
    )]
    pub(super) spool_max_bytes: String,
    /// Where the private Postgres keeps its data, and callbacks wait [default: /var/lib/openim-group-mirror for root,
    /// else $XDG_DATA_HOME/openim-group-mirror]
    #[arg(long, env, global = true, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Folder of initdb and postgres for the private Postgres; unset: PATH and the usual places
    #[arg(long, env, global = true, value_name = "DIR")]
    pub(super) pg_bin_dir: Option<PathBuf>,
    /// Largest body of a callback, 1024 to 1073741824
    #[arg(
        long,
        env,
        global = true,
        value_name = "BYTES",
        default_value = "16777216"
    )]
    pub(super) max_body_bytes: String,
    /// Most memory for all bodies at a time, twice MAX_BODY_BYTES to 4294967295; more have to wait
    #[arg(
        long,
        env,
        global = true,
        value_name = "BYTES",
        default_value = "67108864"
    )]
    pub(super) max_body_memory: String,
    /// Most memory for all answers to reads at a time, 16777216 to 4294967295; more have to wait
    #[arg(
        long,
        env,
        global = true,
        value_name = "BYTES",
        default_value = "67108864"
    )]
    pub(super) max_answer_memory: String,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand: 1 as documented,
    /// 0 for OpenIM 3.6 and older, which takes 1 for an error
    #[arg(long, env, global = true, value_name = "0|1", default_value = "1")]
    pub(super) callback_next_code: String,
    /// Where OpenIM's API is, such as http://openim:10002; with it, OPENIM_ADMIN_USER_ID and
    /// OPENIM_SECRET the mirror is compared with OpenIM and repaired; unset: it is not
    #[arg(long, env, global = true, value_name = "URL")]
    pub(super) openim_api_url: Option<String>,
    /// An administrator of OpenIM, best one that nobody else uses
    #[arg(long, env, global = true, value_name = "USERID")]
    pub(super) openim_admin_user_id: Option<String>,
    /// Users by whom backends call OpenIM's API, with commas between them, beside OPENIM_ADMIN_USER_ID:
    /// where a callback names one for that alone, nobody becomes a member by it
    #[arg(long, env, global = true, value_name = "USERIDS")]
    pub(super) openim_operator_user_ids: Option<String>,
    /// What OpenIM's config/share.yml calls secret
    #[arg(long, env, global = true, value_name = "SECRET")]
    pub(super) openim_secret: Option<String>,
    /// From one comparison of all groups with OpenIM to the next, 1 to 604800; groups whose version
    /// has not moved are not read
    #[arg(long, env, global = true, value_name = "SECS", default_value = "600")]
    pub(super) reconcile_interval_secs: String,
    /// After so long a group is read as a whole all the same, 1 to 31536000
    #[arg(long, env, global = true, value_name = "SECS", default_value = "86400")]
    pub(super) reconcile_full_interval_secs: String,
    /// From a callback that does not fit what is known to the look at its group, 0 to 600000
    #[arg(long, env, global = true, value_name = "MS", default_value = "2000")]
    pub(super) reconcile_delay_ms: String,
    /// Groups that are read from OpenIM at a time, 1 to 64
    #[arg(long, env, global = true, value_name = "N", default_value = "4")]
    pub(super) reconcile_concurrency: String,
    /// How long bodies that could not be understood are kept, 1 to 3650
    #[arg(long, env, global = true, value_name = "DAYS", default_value = "30")]
    pub(super) rejected_keep_days: String,
    /// Most room for them, 0 to 1099511627776; the oldest go first
    #[arg(
        long,
        env,
        global = true,
        value_name = "BYTES",
        default_value = "268435456"
    )]
    pub(super) rejected_max_bytes: String,
    /// When stopping, how long to go on as before with /readyz at 503, for load balancers to
    /// notice, 0 to 600000
    #[arg(long, env, global = true, value_name = "MS", default_value = "0")]
    pub(super) shutdown_delay_ms: String,
    /// After that, longest time to finish open requests and close the database, 1 to 3600
    #[arg(long, env, global = true, value_name = "SECS", default_value = "20")]
    pub(super) shutdown_timeout_secs: String,
    /// Form of the log lines on standard error: text or json
    #[arg(
        long,
        env,
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(super) log_format: String,
    /// What is logged: error, warn, info, debug or trace, or a tracing filter
    #[arg(
        long,
        env,
        global = true,
        value_name = "FILTER",
        default_value = "info"
    )]
    pub(super) rust_log: String,
}

/// Whether a setting is read from this variable.
pub(super) fn is_variable(name: &str) -> bool {
    let command = Cli::command();
    let mut variables = command.get_arguments().filter_map(|arg| arg.get_env());
    variables.any(|variable| variable == name)
}

/// The command line's definition, with empty variables counted as unset and their values, which
/// may be secret, left out of `--help`.
fn definition() -> clap::Command {
    Cli::command().mut_args(|arg| {
        let empty = arg
            .get_env()
            .and_then(std::env::var_os)
            .is_some_and(|value| value.is_empty());
        if empty {
            arg.env(None::<&str>)
        } else {
            arg.hide_env_values(true)
        }
    })
}

pub(super) fn read(args: impl IntoIterator<Item = OsString>) -> Result<(Command, Config), Errors> {
    let cli = definition()
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .unwrap_or_else(|e| e.exit());
    let command = cli.command.unwrap_or(Command::Serve);
    let config = cli.settings.parse(&command)?;
    Ok((command, config))
}
