//! The table of all settings. A setting is one row.
//!
//! The flag, the line in `--help`, `.env.example`, `docs/settings.md` and the parsing come from the row:
//! its doc comment is the description, then come its name, type, default, unit, form and the settings that
//! it needs. The doc comment of a group is its note in `.env.example` and `docs/settings.md`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, value_parser};

use super::form::{
    ADDRESS, ANY, FOLDER, Form, LOG_FILTER, PASSWORD, SCHEMA, SWITCH, TOKENS, URL_OF_SERVER,
    USER_IDS, USERNAME, Value,
};
use crate::domain::UserId;
use crate::telemetry::LogFormat;

/// A row of the table.
#[derive(Debug)]
pub struct Setting {
    /// Name of the environment variable. The flag is the same in lower case with hyphens.
    pub name: &'static str,
    help: &'static [&'static str],
    /// `None`: the setting is not set by default.
    pub default: Option<&'static str>,
    /// Name of the value in `--help`; for a number its unit.
    pub unit: &'static str,
    form: Form,
    /// Settings that have to be set if this one is.
    pub needs: &'static [&'static str],
}

/// Settings that belong together.
#[derive(Debug)]
pub struct Group {
    /// Heading.
    pub title: &'static str,
    note: &'static [&'static str],
    /// The rows.
    pub settings: &'static [&'static Setting],
}

macro_rules! settings {
    ($(
        $(#[doc = $note:literal])* $title:literal {
            $( $(#[doc = $help:literal])+
            $name:ident: $type:ty $(= $default:literal)?, $unit:literal, $form:expr $(, needs $($needed:ident)+)?; )+
        }
    )+) => {
        impl Setting {
            $($( const $name: Self = Self {
                name: stringify!($name),
                help: &[$($help),+],
                default: settings!(@option $($default)?),
                unit: $unit,
                form: $form,
                needs: &[$($(stringify!($needed)),+)?],
            }; )+)+
        }

        /// The rows of all settings.
        pub const GROUPS: &[Group] = &[$( Group {
            title: $title,
            note: &[$($note),*],
            settings: &[$(&Setting::$name),+],
        } ),+];

        /// The value of each setting; `None` if it is not set or not valid.
        #[expect(non_snake_case, reason = "a field has the name of its setting")]
        pub(super) struct Values {
            $($( pub(super) $name: Option<$type>, )+)+
        }

        impl Values {
            /// Reads all settings, and adds an error for each that is not valid.
            pub(super) fn read(
                given: impl Fn(&'static str) -> Option<OsString>,
                errors: &mut Errors,
            ) -> Self {
                let given = |setting: &Setting| {
                    let is_optional = setting.default.is_none();
                    let value = given(setting.name).or_else(|| Some(setting.default?.into()));
                    value.filter(|text| !(is_optional && text.is_empty()))
                };
                let values = Self {
                    $($( $name: Setting::$name.read(given(&Setting::$name), errors), )+)+
                };
                for setting in all().filter(|setting| given(setting).is_none()) {
                    let needs_it =
                        |other: &&Setting| given(other).is_some() && other.needs.contains(&setting.name);
                    let others: Vec<&str> = all().filter(needs_it).map(|other| other.name).collect();
                    if !others.is_empty() {
                        let expected = format!("a value, needed by {}", others.join(" and "));
                        errors.add(setting.name, &expected);
                    }
                }
                values
            }
        }
    };
    (@option) => { None };
    (@option $default:literal) => { Some($default) };
}

settings! {
    /// Other machines can reach every address that is not a loopback address. Such an address needs both
    /// CALLBACK_PASSWORD and API_TOKEN, or ALLOW_ANONYMOUS=true.
    "Addresses" {
        /// Address and port to listen on. Port 0 picks a free port
        LISTEN_ADDR: SocketAddr = "127.0.0.1:8080", "ADDR:PORT", ADDRESS;
        /// Address and port for /metrics alone, which needs no token there. Unset: /metrics is on LISTEN_ADDR
        METRICS_ADDR: SocketAddr, "ADDR:PORT", ADDRESS;
    }
    /// Callbacks need CALLBACK_PASSWORD. `openim-group-mirror openim-config` prints the URL for OpenIM with
    /// the password in it. Reads need a token of API_TOKEN. To change the password, move the old one to
    /// CALLBACK_PASSWORD_PREVIOUS until all servers of OpenIM have the new one.
    "Keys" {
        /// User name of callbacks
        CALLBACK_USERNAME: String = "openim", "NAME", USERNAME;
        /// Password of callbacks. Unset: callbacks need no password
        CALLBACK_PASSWORD: String, "PASSWORD", PASSWORD;
        /// Previous password of callbacks, which is accepted too
        CALLBACK_PASSWORD_PREVIOUS: String, "PASSWORD", PASSWORD, needs CALLBACK_PASSWORD;
        /// Token of reads, or several tokens with commas between them. Unset: reads need no token
        API_TOKEN: String, "TOKEN[,TOKEN]", TOKENS;
        /// Allow an address that other machines can reach without keys, and every Host header
        ALLOW_ANONYMOUS: bool = "false", "BOOL", SWITCH;
    }
    /// If DATABASE_URL is not set, the service runs a private Postgres with the programs in PG_BIN_DIR and
    /// the data in DATA_DIR.
    "Postgres" {
        /// URL of the database, postgres://user:password@host:5432/database. Unset: a private Postgres
        DATABASE_URL: String, "URL", ANY;
        /// Schema of the tables. It is created if it does not exist
        DATABASE_SCHEMA: String = "public", "NAME", SCHEMA;
        /// Limit of connections. From 4 on, two of them are for callbacks alone. The reconcile with OpenIM
        /// uses one or two more
        DATABASE_POOL_SIZE: u32 = "10", "N", Form::Number(2, 1000);
        /// Timeout of a read in Postgres. The service waits 500 ms longer, for the network
        DATABASE_TIMEOUT_MS: Duration = "2000", "MS", Form::Number(100, 60_000);
        /// Folder of the private Postgres and of the spool. Unset: /var/lib/openim-group-mirror for root,
        /// $XDG_DATA_HOME/openim-group-mirror for other users
        DATA_DIR: PathBuf, "DIR", FOLDER;
        /// Folder of initdb and postgres for the private Postgres. Unset: PATH and the usual places
        PG_BIN_DIR: PathBuf, "DIR", FOLDER;
    }
    /// Callbacks wait in the spool while Postgres is away or slow.
    "Spool" {
        /// Folder of the spool, for this instance alone. Unset: the folder spool in DATA_DIR
        SPOOL_DIR: PathBuf, "DIR", FOLDER;
        /// Timeout of a callback in Postgres. The callback goes to the spool after this time plus 500 ms for the
        /// network. OpenIM's own timeout is 5000 ms
        SPOOL_AFTER_MS: Duration = "1500", "MS", Form::Number(100, 4000);
        /// Limit of the spool. Callbacks are refused if it is full. A tenth of it is for bodies that could not
        /// be understood
        SPOOL_MAX_BYTES: u64 = "1073741824", "BYTES", Form::Number(65_536, 1 << 40);
    }
    /// A request waits up to 3 s if the memory is in use.
    "Memory" {
        /// Limit of the body of one callback
        MAX_BODY_BYTES: usize = "16777216", "BYTES", Form::Number(1024, 1 << 30);
        /// Limit of all bodies together, at least twice MAX_BODY_BYTES
        MAX_BODY_MEMORY: u32 = "67108864", "BYTES", Form::Number(1, u32::MAX as u64);
        /// Limit of all answers to reads together
        MAX_ANSWER_MEMORY: u32 = "67108864", "BYTES", Form::Number(16 << 20, u32::MAX as u64);
    }
    "Callbacks" {
        /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand. 1 as OpenIM documents
        /// it. 0 for OpenIM 3.6 and older: they read 1 as an error
        CALLBACK_NEXT_CODE: i32 = "1", "0|1", Form::Number(0, 1);
        /// Age at which a rejected callback is deleted, counted from the time at which it is stored
        REJECTED_KEEP_DAYS: u16 = "30", "DAYS", Form::Number(1, 3650);
        /// Limit of all rejected callbacks together. The oldest are deleted first
        REJECTED_MAX_BYTES: u64 = "268435456", "BYTES", Form::Number(0, 1 << 40);
    }
    /// Runs compare the mirror with OpenIM's API and repair the differences. OPENIM_API_URL,
    /// OPENIM_ADMIN_USER_ID and OPENIM_SECRET switch them on if all are set.
    "Reconcile" {
        /// URL of OpenIM's API, such as http://openim:10002. Unset: nothing is compared
        OPENIM_API_URL: String, "URL", URL_OF_SERVER, needs OPENIM_ADMIN_USER_ID OPENIM_SECRET;
        /// User id of an administrator of OpenIM. Use one that nobody else uses
        OPENIM_ADMIN_USER_ID: String, "USERID", ANY, needs OPENIM_API_URL OPENIM_SECRET;
        /// The value of secret in OpenIM's config/share.yml
        OPENIM_SECRET: String, "SECRET", ANY, needs OPENIM_API_URL OPENIM_ADMIN_USER_ID;
        /// User ids with which backends call OpenIM's API, with commas between them, beside
        /// OPENIM_ADMIN_USER_ID. A user whom a callback names only for that does not become a member
        OPENIM_OPERATOR_USER_IDS: Vec<UserId>, "USERIDS", USER_IDS;
        /// Interval of runs. A run does not read groups with an unchanged version
        RECONCILE_INTERVAL_SECS: Duration = "600", "SECS", Form::Number(1, 604_800);
        /// Interval after which a run reads a group as a whole, also if its version has not changed
        RECONCILE_FULL_INTERVAL_SECS: Duration = "86400", "SECS", Form::Number(1, 31_536_000);
        /// Delay from the mark of a group to its reconcile
        RECONCILE_DELAY_MS: Duration = "2000", "MS", Form::Number(0, 600_000);
        /// Number of groups that are read from OpenIM at the same time
        RECONCILE_CONCURRENCY: usize = "4", "N", Form::Number(1, 64);
    }
    "Stop and logs" {
        /// Delay between the stop signal and the stop. /readyz answers 503 meanwhile, so that load balancers
        /// notice it
        SHUTDOWN_DELAY_MS: Duration = "0", "MS", Form::Number(0, 600_000);
        /// Timeout of the stop: to finish open requests and to close the database
        SHUTDOWN_TIMEOUT_SECS: Duration = "20", "SECS", Form::Number(1, 3600);
        /// Form of the log lines on standard error
        LOG_FORMAT: LogFormat = "text", "FORMAT", Form::OneOf(&["text", "json"]);
        /// Level of the log (error, warn, info, debug or trace), or a tracing filter
        RUST_LOG: String = "info", "FILTER", LOG_FILTER;
    }
}

/// All rows.
pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|group| group.settings).copied()
}

/// The lines of a doc comment as one text.
fn joined(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

impl Group {
    /// Note for the whole group; may be empty.
    pub fn note(&self) -> String {
        joined(self.note)
    }
}

impl Setting {
    /// Description.
    pub fn help(&self) -> String {
        joined(self.help)
    }

    /// The values, if they can be listed in few words.
    pub fn range(&self) -> Option<String> {
        self.form.range()
    }

    fn read<T: Value>(&self, text: Option<OsString>, errors: &mut Errors) -> Option<T> {
        let text = text?;
        let value = self.form.read(&text, self.unit);
        if value.is_none() {
            errors.add(self.name, &self.form.description());
        }
        value
    }

    /// The flag of the setting. Its value, which may be secret, is not shown in `--help`.
    fn flag(&self, title: &'static str) -> Arg {
        let range = self.range().map(|range| format!(" [{range}]"));
        Arg::new(self.name)
            .long(self.name.to_lowercase().replace('_', "-"))
            .global(true)
            .value_name(self.unit)
            .value_parser(value_parser!(OsString))
            .default_value(self.default)
            .help(self.help() + &range.unwrap_or_default())
            .help_heading(title)
            .hide_env_values(true)
    }
}

/// The flags of all settings. A variable for which `is_empty` is true is not read.
pub(super) fn flags(is_empty: impl Fn(&OsStr) -> bool) -> Vec<Arg> {
    let rows = GROUPS
        .iter()
        .flat_map(|group| group.settings.iter().map(|row| (group.title, *row)));
    rows.map(|(title, row)| {
        let flag = row.flag(title);
        match is_empty(row.name.as_ref()) {
            true => flag,
            false => flag.env(row.name),
        }
    })
    .collect()
}

/// All errors of the settings, one a line.
#[derive(Debug, Default)]
pub struct Errors(pub(super) Vec<String>);

impl Errors {
    pub(super) fn add(&mut self, name: &str, expected: &str) {
        self.0.push(format!("{name}: expected {expected}"));
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings are not valid:")?;
        self.0.iter().try_for_each(|e| write!(f, "\n  {e}"))
    }
}

impl std::error::Error for Errors {}
