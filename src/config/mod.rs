//! All settings and subcommands. The only reader of the environment.
//!
//! A part of the service owns the struct of the settings that it takes (`http`, `ingest`, `openim`, `local_postgres`,
//! `telemetry`), and knows nothing of this module. This module fills these structs, and owns those that `app` alone
//! reads.
//!
//! `table` has one row for each setting, `form` the forms of their values, `settings` the structs and the conditions
//! between settings, `cli` the subcommands.

mod cli;
mod form;
mod settings;
mod table;

use std::ffi::{OsStr, OsString};

use clap::{CommandFactory, FromArgMatches};

pub use cli::{
    Command, ConfigFormat, OpenimConfig, OpenimVersion, Reconcile, RejectedCommand, Selection,
};
pub use settings::{Config, DatabaseSettings, SpoolSettings, StopSettings};
pub use table::{Errors, GROUPS, Group, Setting};

/// Reads `./.env` into the environment. A variable that is set already stays as it is. Call it while the process has
/// one thread. Returns the names in the file that are no settings, which may be misspelt.
///
/// # Errors
/// If the file exists and cannot be read. The text does not quote the file.
pub fn load_dotenv() -> Result<Vec<String>, Errors> {
    let not_understood = |error| match error {
        dotenvy::Error::Io(e) => Errors(vec![format!("./.env: {e}")]),
        _quotes_the_line => Errors(vec![
            "./.env: expected lines of the form NAME=value, values with spaces in quotes".into(),
        ]),
    };
    let lines = match dotenvy::from_path_iter(".env") {
        Err(dotenvy::Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        lines => lines.map_err(not_understood)?,
    };
    let mut unknown = Vec::new();
    for line in lines {
        let (name, _) = line.map_err(not_understood)?;
        // POSTGRES_* are for docker-compose.yml.
        if !table::all().any(|setting| setting.name == name) && !name.starts_with("POSTGRES_") {
            unknown.push(name);
        }
    }
    dotenvy::from_path(".env").map_err(not_understood)?;
    Ok(unknown)
}

/// Reads the arguments and the environment. `--help`, `--version` and usage errors print their text and end the
/// process.
///
/// # Errors
/// All settings that are not valid, each with its name.
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<(Command, Config), Errors> {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|v| v.is_empty());
    let (matches, cli) = cli::Cli::command()
        .args(table::flags(is_empty))
        .try_get_matches_from(args)
        .and_then(|matches| cli::Cli::from_arg_matches(&matches).map(|cli| (matches, cli)))
        .unwrap_or_else(|e| e.exit());
    let command = cli.command.unwrap_or(Command::Serve);
    let given = |name| matches.get_one::<OsString>(name).cloned();
    let config = Config::from_values(given, &command)?;
    Ok((command, config))
}
