//! From the flags' text to settings: every value checked, every error told at once.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::flags::{BASE_URL, Settings, is_base_url};
use super::{
    AccessSettings, BodySettings, Command, Config, DatabaseSettings, Errors, LogFormat, Patience,
    SpoolSettings, StopSettings,
};
use crate::domain::{Operators, UserId};
use crate::ingest::Retention;
use crate::local_postgres::Search;
use crate::openim;
use crate::reconcile;
use crate::secret::Secret;
use crate::store;

/// How long one call of OpenIM's API may take. Nobody has to set it: a page of members takes a moment.
const OPENIM_TIMEOUT: Duration = Duration::from_secs(15);

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

    fn address(&mut self, name: &str, value: &str) -> Option<SocketAddr> {
        let expected = "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080";
        self.parse(name, value, expected)
    }

    fn access(
        &mut self,
        username: String,
        [password, previous]: [Option<String>; 2],
        tokens: Option<String>,
        anonymous: &str,
    ) -> Option<AccessSettings> {
        let before = self.0.len();
        let (password, previous) = (present(password), present(previous));
        // What HTTP Basic can carry (RFC 7617).
        if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
            let expected = "a user name without colons and control characters";
            self.add("CALLBACK_USERNAME", expected);
        }
        for (name, password) in [
            ("CALLBACK_PASSWORD", &password),
            ("CALLBACK_PASSWORD_PREVIOUS", &previous),
        ] {
            if password
                .as_deref()
                .is_some_and(|p| p.contains(char::is_control))
            {
                self.add(name, "a password without control characters");
            }
        }
        if previous.is_some() && password.is_none() {
            let expected = "CALLBACK_PASSWORD beside it: alone it would let nobody else in";
            self.add("CALLBACK_PASSWORD_PREVIOUS", expected);
        }
        let tokens = present(tokens);
        let tokens: Vec<String> = tokens
            .iter()
            .flat_map(|tokens| tokens.split(','))
            .map(|token| token.trim_matches(' ').to_owned())
            .collect();
        let is_token =
            |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        if !tokens.iter().all(is_token) {
            self.add(
                "API_TOKEN",
                "a token of visible ASCII characters, or several with one comma between them",
            );
        }
        let switch = [("true", true), ("false", false)];
        let allow_anonymous = self.choice("ALLOW_ANONYMOUS", anonymous, &switch)?;
        (self.0.len() == before).then(|| AccessSettings {
            callback_username: username,
            callback_passwords: password
                .into_iter()
                .chain(previous)
                .map(Secret::from)
                .collect(),
            api_tokens: tokens.into_iter().map(Secret::from).collect(),
            allow_anonymous,
        })
    }
}

impl Errors {
    /// All three or, where they are not needed, none.
    fn openim(
        &mut self,
        is_needed: bool,
        url: Option<String>,
        admin_user_id: Option<String>,
        secret: Option<String>,
    ) -> Option<openim::OpenimAccess> {
        let (url, admin_user_id, secret) = (present(url), present(admin_user_id), present(secret));
        if url.as_deref().is_some_and(|url| !is_base_url(url)) {
            self.add("OPENIM_API_URL", BASE_URL);
        }
        let names = ["OPENIM_API_URL", "OPENIM_ADMIN_USER_ID", "OPENIM_SECRET"];
        let given = [url.is_some(), admin_user_id.is_some(), secret.is_some()];
        if is_needed && !given.contains(&true) {
            let expected = "the address of OpenIM's API, such as http://openim:10002, with \
                            OPENIM_ADMIN_USER_ID and OPENIM_SECRET: there is nothing to compare with";
            self.add("OPENIM_API_URL", expected);
        }
        for (name, is_given) in names.into_iter().zip(given) {
            if !is_given && given.contains(&true) {
                let expected = "a value: OPENIM_API_URL, OPENIM_ADMIN_USER_ID and OPENIM_SECRET \
                                are given together or not at all";
                self.add(name, expected);
            }
        }
        Some(openim::OpenimAccess {
            url: url?.trim_end_matches('/').to_owned(),
            admin_user_id: admin_user_id?,
            secret: secret?.into(),
            timeout: OPENIM_TIMEOUT,
        })
    }
}

impl Errors {
    /// These, and the administrator by whom we call ourselves.
    fn operators(&mut self, listed: Option<String>, admin: Option<String>) -> Option<Operators> {
        let before = self.0.len();
        let mut users = Vec::new();
        let listed = present(listed);
        let listed = listed.iter().flat_map(|ids| ids.split(','));
        let listed = listed.map(|id| ("OPENIM_OPERATOR_USER_IDS", id.trim().to_owned()));
        let admin = admin.map(|id| ("OPENIM_ADMIN_USER_ID", id));
        for (name, id) in listed.chain(admin) {
            match UserId::parse(id) {
                Ok(user) => users.push(user),
                Err(_) => self.add(
                    name,
                    "user ids of 1 to 1,024 bytes, with one comma between two",
                ),
            }
        }
        (self.0.len() == before).then(|| Operators::new(users))
    }
}

impl Settings {
    pub(super) fn parse(self, command: &Command) -> Result<Config, Errors> {
        let mut errors = Errors::default();
        let e = &mut errors;
        let listen_addr = e.address("LISTEN_ADDR", &self.listen_addr);
        let metrics_addr = present(self.metrics_addr);
        let metrics_addr = metrics_addr.map(|addr| e.address("METRICS_ADDR", &addr));
        let access = e.access(
            self.callback_username,
            [self.callback_password, self.callback_password_previous],
            self.api_token,
            &self.allow_anonymous,
        );
        if *command == Command::Serve
            && listen_addr.is_some_and(|addr| !addr.ip().is_loopback())
            && access
                .as_ref()
                .is_some_and(|access| !access.allow_anonymous && !access.is_complete())
        {
            e.add(
                "LISTEN_ADDR",
                "a loopback address (127.0.0.1 or ::1), or both CALLBACK_PASSWORD and API_TOKEN, or \
                 ALLOW_ANONYMOUS=true: whoever reaches the port can read and change the mirror",
            );
        }
        let url = present(self.database_url);
        let variable = |name: &'static str| std::env::var(name).ok();
        if let Some(url) = &url
            && let Err(error) = store::check_url(url, variable)
        {
            e.add(error.setting, &error.expected);
        }
        if !is_plain_name(&self.database_schema) {
            e.add(
                "DATABASE_SCHEMA",
                "1 to 63 lower-case letters, digits and _, not starting with a digit or pg_",
            );
        }
        let pool_size = e.number("DATABASE_POOL_SIZE", &self.database_pool_size, 2..=1000);
        let timeout = e.number(
            "DATABASE_TIMEOUT_MS",
            &self.database_timeout_ms,
            100..=60_000,
        );
        let after = e.number("SPOOL_AFTER_MS", &self.spool_after_ms, 100..=4000);
        let max_spool = e.number("SPOOL_MAX_BYTES", &self.spool_max_bytes, 65_536..=1 << 40);
        let max_body = e.number("MAX_BODY_BYTES", &self.max_body_bytes, 1024..=1 << 30);
        let memory = e.number(
            "MAX_BODY_MEMORY",
            &self.max_body_memory,
            1..=u32::MAX.into(),
        );
        if let (Some(body), Some(memory)) = (max_body, memory)
            && memory < 2 * body
        {
            let least = 2 * body;
            let expected = format!("at least twice MAX_BODY_BYTES, so {least}");
            e.add("MAX_BODY_MEMORY", &expected);
        }
        let answers = e.number(
            "MAX_ANSWER_MEMORY",
            &self.max_answer_memory,
            16 << 20..=u32::MAX.into(),
        );
        let next_code = e.number("CALLBACK_NEXT_CODE", &self.callback_next_code, 0..=1);
        let admin = present(self.openim_admin_user_id.clone());
        let openim = e.openim(
            matches!(command, Command::Reconcile(_)),
            self.openim_api_url,
            self.openim_admin_user_id,
            self.openim_secret,
        );
        let operators = e.operators(self.openim_operator_user_ids, admin);
        let interval = e.number(
            "RECONCILE_INTERVAL_SECS",
            &self.reconcile_interval_secs,
            1..=604_800,
        );
        let full_interval = e.number(
            "RECONCILE_FULL_INTERVAL_SECS",
            &self.reconcile_full_interval_secs,
            1..=31_536_000,
        );
        let check_delay = e.number("RECONCILE_DELAY_MS", &self.reconcile_delay_ms, 0..=600_000);
        let concurrency = e.number("RECONCILE_CONCURRENCY", &self.reconcile_concurrency, 1..=64);
        let keep_days = e.number("REJECTED_KEEP_DAYS", &self.rejected_keep_days, 1..=3650);
        let max_rejected = e.number("REJECTED_MAX_BYTES", &self.rejected_max_bytes, 0..=1 << 40);
        let delay = e.number("SHUTDOWN_DELAY_MS", &self.shutdown_delay_ms, 0..=600_000);
        let stop = e.number(
            "SHUTDOWN_TIMEOUT_SECS",
            &self.shutdown_timeout_secs,
            1..=3600,
        );
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let log_format = e.choice("LOG_FORMAT", &self.log_format, &formats);
        if !is_log_filter(&self.rust_log) {
            e.add(
                "RUST_LOG",
                "a level (off, error, warn, info, debug, trace), or target=level pairs joined by \
                 commas",
            );
        }

        let data_dir = self.data_dir.or_else(default_data_dir);
        let spool_dir = self
            .spool_dir
            .filter(|dir| !dir.as_os_str().is_empty())
            .or_else(|| Some(data_dir.as_ref()?.join("spool")));

        let config = (|| {
            Some(Config {
                listen_addr: listen_addr?,
                metrics_addr: match metrics_addr {
                    Some(addr) => Some(addr?),
                    None => None,
                },
                access: access?,
                database: DatabaseSettings {
                    url: url.map(Secret::from),
                    schema: self.database_schema,
                    pool_size: u32::try_from(pool_size?).ok()?,
                    timeout: Duration::from_millis(timeout?),
                },
                spool: SpoolSettings {
                    dir: spool_dir,
                    after: Duration::from_millis(after?),
                    max_bytes: max_spool?,
                },
                data_dir,
                search: Search {
                    bin_dir: self.pg_bin_dir,
                    path: std::env::var_os("PATH")
                        .map(|path| std::env::split_paths(&path).collect())
                        .unwrap_or_default(),
                },
                body: BodySettings {
                    max_bytes: usize::try_from(max_body?).ok()?,
                    max_memory: u32::try_from(memory?).ok()?,
                },
                max_answer_memory: u32::try_from(answers?).ok()?,
                callback_next_code: i32::try_from(next_code?).ok()?,
                operators: operators?,
                openim,
                reconcile: reconcile::ReconcileSettings {
                    interval: Duration::from_secs(interval?),
                    full_interval: Duration::from_secs(full_interval?),
                    delay: Duration::from_millis(check_delay?),
                    settling: reconcile::SETTLING_TIMEOUT,
                    concurrency: usize::try_from(concurrency?).ok()?,
                },
                rejected: Retention {
                    keep_days: u16::try_from(keep_days?).ok()?,
                    max_bytes: max_rejected?,
                },
                stop: StopSettings {
                    delay: Duration::from_millis(delay?),
                    timeout: Duration::from_secs(stop?),
                },
                patience: Patience::default(),
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

/// An empty text counts as unset, whoever gave it.
fn present(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Not just what tracing takes: to it a level that is misspelt is the name of a target.
fn is_log_filter(filter: &str) -> bool {
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    filter.parse::<Targets>().is_ok()
        && filter
            .split(',')
            .all(|part| part.contains('=') || is_level(part))
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

    use clap::{CommandFactory, FromArgMatches};

    use super::super::flags::Cli;
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, Errors> {
        let args = std::iter::once("openim-group-mirror").chain(args.iter().copied());
        let command = Cli::command().mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(args).unwrap();
        Cli::from_arg_matches(&matches)
            .unwrap()
            .settings
            .parse(&Command::Serve)
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
        assert_eq!(config.body.max_bytes, 16 << 20);
        assert_eq!(config.body.max_memory, 64 << 20);
        assert_eq!(config.patience.body, Duration::from_secs(15));
        assert_eq!(config.rejected.keep_days, 30);
        assert_eq!(config.rejected.max_bytes, 256 << 20);
        assert_eq!(config.access.callback_username, "openim");
        assert!(config.access.callback_passwords.is_empty() && config.access.api_tokens.is_empty());
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
            "--metrics-addr=9090",
            "--callback-username=a:b",
            "--callback-password-previous=hunter3",
            "--api-token=hunter4,,hunter5",
            "--max-body-memory=0",
            "--max-answer-memory=0",
            "--rejected-keep-days=0",
            "--rejected-max-bytes=1GB",
            "--shutdown-delay-ms=-1",
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
            "METRICS_ADDR",
            "CALLBACK_USERNAME",
            "CALLBACK_PASSWORD_PREVIOUS",
            "API_TOKEN",
            "MAX_BODY_MEMORY",
            "MAX_ANSWER_MEMORY",
            "REJECTED_KEEP_DAYS",
            "REJECTED_MAX_BYTES",
            "SHUTDOWN_DELAY_MS",
        ] {
            assert!(
                errors.contains(&format!("\n  {name}: expected ")),
                "{errors}"
            );
        }
        assert!(!errors.contains("hunter"), "{errors}");
    }

    #[test]
    fn an_open_address_needs_both_keys_or_a_decision() {
        let open = "--listen-addr=0.0.0.0:80";
        let (password, token) = ("--callback-password=p", "--api-token=t");
        for args in [&[open][..], &[open, password], &[open, token]] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains("LISTEN_ADDR: expected "), "{error}");
            assert!(error.contains("ALLOW_ANONYMOUS"), "{error}");
        }
        assert!(parse(&[open, password, token]).is_ok());
        assert!(parse(&[open, "--allow-anonymous=true"]).is_ok());
        assert!(parse(&["--listen-addr=[::1]:80"]).is_ok());
        // An empty key is none.
        assert!(parse(&[open, "--callback-password=", "--api-token="]).is_err());
    }

    #[test]
    fn a_misspelt_level_is_no_log_filter() {
        for good in ["info", "WARN", "off", "info,sqlx=debug", "hyper=trace"] {
            assert!(is_log_filter(good), "{good}");
        }
        for bad in ["warning", "loud", "a=b=c", "info,verbose"] {
            assert!(!is_log_filter(bad), "{bad}");
        }
    }

    #[test]
    fn the_memory_holds_two_of_the_largest_bodies() {
        let errors = parse(&["--max-body-bytes=50000000"])
            .unwrap_err()
            .to_string();
        let expected = "MAX_BODY_MEMORY: expected at least twice MAX_BODY_BYTES, so 100000000";
        assert!(errors.contains(expected), "{errors}");
    }

    #[test]
    fn tokens_and_passwords_can_be_rotated() {
        let access = |args: &[&str]| parse(args).unwrap().access;
        let tokens = access(&["--api-token=new, old"]).api_tokens;
        assert_eq!(tokens, ["new", "old"].map(|t| Secret::from(t.to_owned())));
        let passwords = access(&[
            "--callback-password=new",
            "--callback-password-previous=old",
        ]);
        assert_eq!(passwords.callback_passwords.len(), 2);
        for tokens in [",", "a,", ",a", "a,,b", "a b", "a\u{e9}"] {
            let error = parse(&[&format!("--api-token={tokens}")]).unwrap_err();
            assert!(
                error.to_string().contains("API_TOKEN: expected"),
                "{tokens}"
            );
        }
    }

    #[test]
    fn a_secret_prints_as_stars() {
        let config = parse(&[
            "--database-url=postgres://u:hunter2@h/d",
            "--callback-password=hunter3",
            "--callback-password-previous=hunter4",
            "--api-token=hunter5,hunter6",
        ])
        .unwrap();
        assert!(!format!("{config:?}").contains("hunter"));
        assert!(config.database.url.unwrap().expose().contains("hunter2"));
    }
}
