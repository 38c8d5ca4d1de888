//! The flags, each with an environment variable of the same name.
//!
//! clap reads them as text and makes the reference (`--help`); they are parsed here, so that all
//! errors are told at once and each names its variable.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::filter::Targets;

use super::{Config, DatabaseSettings, Errors, LogFormat};
use crate::local_postgres::Search;
use crate::store;

/// Keeps a Postgres mirror of OpenIM group membership, fed by OpenIM's callbacks, and answers
/// questions about members over REST.
///
/// Each setting is read from its flag, else from its environment variable, else from the same
/// name in ./.env; an empty variable counts as unset.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

/// What the program is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Receive callbacks and answer reads (what happens without a subcommand)
    Serve,
    /// Bring the database schema up to date, and end
    Migrate,
    /// Print the OpenAPI document as JSON, and end
    Openapi,
}

#[derive(Args)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// Address and port to listen on; port 0 picks a free one
    #[arg(
        long,
        env,
        global = true,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:8080"
    )]
    listen_addr: String,
    /// Serve without keys on an address that other machines can reach: true or false
    #[arg(long, env, global = true, value_name = "BOOL", default_value = "false")]
    allow_anonymous: String,
    /// The Postgres to use, postgres://user:password@host:5432/database; unset: a private one
    #[arg(long, env, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// Schema of the mirror's tables, made if missing: lower-case letters, digits and _
    #[arg(
        long,
        env,
        global = true,
        value_name = "NAME",
        default_value = "public"
    )]
    database_schema: String,
    /// Most connections to Postgres at a time, 1 to 1000
    #[arg(long, env, global = true, value_name = "N", default_value = "10")]
    database_pool_size: String,
    /// Longest wait for a connection, and longest a statement may take, 100 to 60000
    #[arg(long, env, global = true, value_name = "MS", default_value = "2000")]
    database_timeout_ms: String,
    /// Where the private Postgres keeps its data [default: /var/lib/openim-group-mirror for root,
    /// else $XDG_DATA_HOME/openim-group-mirror]
    #[arg(long, env, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Folder of initdb and postgres for the private Postgres; unset: PATH and the usual places
    #[arg(long, env, global = true, value_name = "DIR")]
    pg_bin_dir: Option<PathBuf>,
    /// Largest body of a callback, 1024 to 1073741824
    #[arg(
        long,
        env,
        global = true,
        value_name = "BYTES",
        default_value = "16777216"
    )]
    max_body_bytes: String,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand: 1 as documented,
    /// 0 for OpenIM 3.6 and older, which takes 1 for an error
    #[arg(long, env, global = true, value_name = "0|1", default_value = "1")]
    callback_next_code: String,
    /// Longest time to finish open requests when stopping, 1 to 3600
    #[arg(long, env, global = true, value_name = "SECS", default_value = "20")]
    shutdown_timeout_secs: String,
    /// Form of the log lines on standard error: text or json
    #[arg(
        long,
        env,
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: String,
    /// What is logged: error, warn, info, debug or trace, or a tracing filter
    #[arg(
        long,
        env,
        global = true,
        value_name = "FILTER",
        default_value = "info"
    )]
    rust_log: String,
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
    Ok((command, cli.settings.parse(command)?))
}

impl Errors {
    fn add(&mut self, name: &str, expected: &str) {
        self.0.push(format!("{name}: expected {expected}"));
    }

    /// The parsed value, or `None` and one more error.
    fn parse<T: FromStr>(&mut self, name: &str, value: &str, expected: &str) -> Option<T> {
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.add(name, expected);
        }
        parsed
    }

    fn number(&mut self, name: &str, value: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let number = value.parse().ok().filter(|n| range.contains(n));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.add(name, &format!("a whole number from {least} to {most}"));
        }
        number
    }

    fn choice<T: Copy>(&mut self, name: &str, value: &str, choices: &[(&str, T)]) -> Option<T> {
        let chosen = choices.iter().find(|(text, _)| *text == value);
        if chosen.is_none() {
            let texts: Vec<&str> = choices.iter().map(|(text, _)| *text).collect();
            self.add(name, &texts.join(" or "));
        }
        chosen.map(|(_, choice)| *choice)
    }
}

impl Settings {
    fn parse(self, command: Command) -> Result<Config, Errors> {
        let mut errors = Errors::default();
        let e = &mut errors;
        let listen_addr = e.parse::<SocketAddr>(
            "LISTEN_ADDR",
            &self.listen_addr,
            "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080",
        );
        let switch = [("true", true), ("false", false)];
        let anonymous = e.choice("ALLOW_ANONYMOUS", &self.allow_anonymous, &switch);
        let is_open = listen_addr.is_some_and(|addr| !addr.ip().is_loopback());
        if command == Command::Serve && anonymous == Some(false) && is_open {
            e.add(
                "LISTEN_ADDR",
                "a loopback address (127.0.0.1 or ::1), or ALLOW_ANONYMOUS=true: whoever reaches \
                 the port can read and change the mirror",
            );
        }
        let url = self.database_url.filter(|url| !url.is_empty());
        if url.as_deref().is_some_and(|url| !store::is_url(url)) {
            e.add(
                "DATABASE_URL",
                "a URL such as postgres://user:password@host:5432/database, special characters \
                 percent-encoded",
            );
        }
        if !is_plain_name(&self.database_schema) {
            e.add(
                "DATABASE_SCHEMA",
                "1 to 63 lower-case letters, digits and _, not starting with a digit or pg_",
            );
        }
        let pool_size = e.number("DATABASE_POOL_SIZE", &self.database_pool_size, 1..=1000);
        let timeout = e.number(
            "DATABASE_TIMEOUT_MS",
            &self.database_timeout_ms,
            100..=60_000,
        );
        let max_body = e.number("MAX_BODY_BYTES", &self.max_body_bytes, 1024..=1 << 30);
        let next_code = e.number("CALLBACK_NEXT_CODE", &self.callback_next_code, 0..=1);
        let stop = e.number(
            "SHUTDOWN_TIMEOUT_SECS",
            &self.shutdown_timeout_secs,
            1..=3600,
        );
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let log_format = e.choice("LOG_FORMAT", &self.log_format, &formats);
        e.parse::<Targets>(
            "RUST_LOG",
            &self.rust_log,
            "a level (error, warn, info, debug, trace), or target=level pairs joined by commas",
        );

        let config = (|| {
            Some(Config {
                listen_addr: listen_addr?,
                database: DatabaseSettings {
                    url: url.map(Into::into),
                    schema: self.database_schema,
                    pool_size: u32::try_from(pool_size?).ok()?,
                    timeout: Duration::from_millis(timeout?),
                },
                data_dir: self.data_dir.or_else(default_data_dir),
                search: Search {
                    bin_dir: self.pg_bin_dir,
                    path: std::env::var_os("PATH")
                        .map(|path| std::env::split_paths(&path).collect())
                        .unwrap_or_default(),
                },
                max_body_bytes: usize::try_from(max_body?).ok()?,
                callback_next_code: i32::try_from(next_code?).ok()?,
                shutdown_timeout: Duration::from_secs(stop?),
                log_format: log_format?,
                log_filter: self.rust_log,
            })
        })();
        match config {
            Some(config) if errors.0.is_empty() => Ok(config),
            _ => Err(errors),
        }
    }
}

/// A name that Postgres takes without quotes, on a search path too.
fn is_plain_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.starts_with("pg_")
}

/// For root /var/lib, for others the XDG data folder.
fn default_data_dir() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")))?
    };
    Some(data.join("openim-group-mirror"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(args: &[&str]) -> Result<Config, Errors> {
        let args = std::iter::once("openim-group-mirror").chain(args.iter().copied());
        let command = Cli::command().mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(args).unwrap();
        Cli::from_arg_matches(&matches)
            .unwrap()
            .settings
            .parse(Command::Serve)
    }

    #[test]
    fn every_flag_is_its_variable_in_lower_case() {
        for arg in Cli::command().get_arguments() {
            let (Some(long), Some(env)) = (arg.get_long(), arg.get_env()) else {
                continue;
            };
            let env = env.to_str().unwrap();
            assert_eq!(long.replace('-', "_").to_uppercase(), env);
        }
    }

    #[test]
    fn the_example_lists_every_variable_with_its_default() {
        let example = include_str!("../../.env.example");
        let listed: BTreeMap<String, String> = example
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("# "))
            .map(|line| line.trim_start_matches('#').split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let known: BTreeMap<String, String> = Cli::command()
            .get_arguments()
            .filter_map(|arg| {
                let default = arg.get_default_values().first();
                Some((
                    arg.get_env()?.to_str()?.to_owned(),
                    default.map_or(String::new(), |v| v.to_str().unwrap().to_owned()),
                ))
            })
            .collect();
        assert_eq!(listed, known);
        // And the file is one that the program can read.
        assert!(dotenvy::from_read_iter(example.as_bytes()).all(|line| line.is_ok()));
    }

    #[test]
    fn defaults_are_usable() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(config.max_body_bytes, 16 << 20);
        assert_eq!(config.callback_next_code, 1);
        assert_eq!(config.database.url, None);
    }

    #[test]
    fn all_errors_are_told_at_once_and_none_repeats_a_secret() {
        let errors = parse(&[
            "--listen-addr=here",
            "--database-url=mysql://u:hunter2@h/d",
            "--database-schema=Robert'); DROP",
            "--database-pool-size=0",
            "--database-timeout-ms=2s",
            "--max-body-bytes=",
            "--callback-next-code=2",
            "--shutdown-timeout-secs=0",
            "--log-format=xml",
            "--rust-log=a=b=c",
            "--allow-anonymous=yes",
        ])
        .unwrap_err()
        .to_string();
        for name in [
            "LISTEN_ADDR",
            "DATABASE_URL",
            "DATABASE_SCHEMA",
            "DATABASE_POOL_SIZE",
            "DATABASE_TIMEOUT_MS",
            "MAX_BODY_BYTES",
            "CALLBACK_NEXT_CODE",
            "SHUTDOWN_TIMEOUT_SECS",
            "LOG_FORMAT",
            "RUST_LOG",
            "ALLOW_ANONYMOUS",
        ] {
            assert!(
                errors.contains(&format!("\n  {name}: expected ")),
                "{errors}"
            );
        }
        assert!(!errors.contains("hunter2"), "{errors}");
    }

    #[test]
    fn an_open_address_needs_a_decision() {
        let error = parse(&["--listen-addr=0.0.0.0:80"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("ALLOW_ANONYMOUS"), "{error}");
        assert!(parse(&["--listen-addr=0.0.0.0:80", "--allow-anonymous=true"]).is_ok());
        assert!(parse(&["--listen-addr=[::1]:80"]).is_ok());
    }

    #[test]
    fn a_secret_prints_as_stars() {
        let config = parse(&["--database-url=postgres://u:hunter2@h/d"]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(config.database.url.unwrap().expose().contains("hunter2"));
    }
}
