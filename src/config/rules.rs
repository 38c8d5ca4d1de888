//! From the values of the settings to the structs of settings, with the conditions between settings.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;
use super::cli::Command;
use super::form::list;
use super::settings::{Config, DatabaseSettings, SpoolSettings, StopSettings};
use super::table::{Errors, Values};
use crate::domain::{Operators, UserId};
use crate::http::{AccessSettings, BodySettings, HttpTimeouts};
use crate::ingest::Retention;
use crate::local_postgres::Search;
use crate::openim;
use crate::store;
use crate::telemetry::LogSettings;

/// Timeout of one call of OpenIM's API. There is no setting for it, because a page of members takes a moment.
const OPENIM_TIMEOUT: Duration = Duration::from_secs(15);

/// Reads all settings, and finds all errors in them.
pub(super) fn config(
    given: impl Fn(&'static str) -> Option<OsString>,
    command: &Command,
) -> Result<Config, Errors> {
    let mut errors = Errors::default();
    let values = Values::read(given, &mut errors);
    check(&values, command, &mut errors);
    match assemble(values) {
        Some(config) if errors.0.is_empty() => Ok(config),
        _ => Err(errors),
    }
}

/// Adds the errors that are not errors of one setting alone.
fn check(values: &Values, command: &Command, errors: &mut Errors) {
    let of_keys = ["CALLBACK_PASSWORD:", "API_TOKEN:"];
    let is_of_keys = |error: &String| of_keys.iter().any(|name| error.starts_with(name));
    let keys_are_valid = !errors.0.iter().any(is_of_keys);
    let is_complete = values.CALLBACK_PASSWORD.is_some() && values.API_TOKEN.is_some();
    let is_reachable = |addr: std::net::SocketAddr| !addr.ip().is_loopback();
    if *command == Command::Serve
        && keys_are_valid
        && values.LISTEN_ADDR.is_some_and(is_reachable)
        && values.ALLOW_ANONYMOUS == Some(false)
        && !is_complete
    {
        errors.add(
            "LISTEN_ADDR",
            "a loopback address (127.0.0.1 or ::1), or both CALLBACK_PASSWORD and API_TOKEN, or \
             ALLOW_ANONYMOUS=true: without keys everyone who reaches the port can read and change the \
             mirror",
        );
    }
    let variable = |name: &'static str| std::env::var(name).ok();
    if let Some(url) = &values.DATABASE_URL
        && let Err(error) = store::check_url(url, variable)
    {
        errors.add(error.setting, &error.expected);
    }
    if let (Some(body), Some(memory)) = (values.MAX_BODY_BYTES, values.MAX_BODY_MEMORY)
        && (memory as usize) < 2 * body
    {
        let expected = format!("at least twice MAX_BODY_BYTES, so {}", 2 * body);
        errors.add("MAX_BODY_MEMORY", &expected);
    }
    let admin = values.OPENIM_ADMIN_USER_ID.clone();
    if admin.is_some_and(|admin| UserId::parse(admin).is_err()) {
        errors.add("OPENIM_ADMIN_USER_ID", "a user id of 1 to 1,024 bytes");
    }
    if matches!(command, Command::Reconcile(_)) && values.OPENIM_API_URL.is_none() {
        errors.add(
            "OPENIM_API_URL",
            "the address of OpenIM's API, such as http://openim:10002, with OPENIM_ADMIN_USER_ID and \
             OPENIM_SECRET: without them there is nothing to compare with",
        );
    }
}

/// The structs. `None` if a value that has to be there is not.
fn assemble(values: Values) -> Option<Config> {
    let data_dir = values.DATA_DIR.or_else(default_data_dir);
    let spool_dir = values.SPOOL_DIR;
    let admin = values.OPENIM_ADMIN_USER_ID;
    let mut operators = values.OPENIM_OPERATOR_USER_IDS.unwrap_or_default();
    operators.extend(admin.clone().and_then(|id| UserId::parse(id).ok()));
    let secrets = |texts: Vec<String>| texts.into_iter().map(Secret::from).collect();
    let passwords = [values.CALLBACK_PASSWORD, values.CALLBACK_PASSWORD_PREVIOUS];
    let tokens = values.API_TOKEN.unwrap_or_default();
    let tokens = list(&tokens).filter(|token| !token.is_empty());
    let path = std::env::var_os("PATH");
    Some(Config {
        listen_addr: values.LISTEN_ADDR?,
        metrics_addr: values.METRICS_ADDR,
        access: AccessSettings {
            callback_username: values.CALLBACK_USERNAME?,
            callback_passwords: secrets(passwords.into_iter().flatten().collect()),
            api_tokens: secrets(tokens.map(str::to_owned).collect()),
            allow_anonymous: values.ALLOW_ANONYMOUS?,
        },
        database: DatabaseSettings {
            url: values.DATABASE_URL.map(Secret::from),
            schema: values.DATABASE_SCHEMA?,
            pool_size: values.DATABASE_POOL_SIZE?,
            timeout: values.DATABASE_TIMEOUT_MS?,
        },
        spool: SpoolSettings {
            dir: spool_dir.or_else(|| Some(data_dir.as_ref()?.join("spool"))),
            after: values.SPOOL_AFTER_MS?,
            max_bytes: values.SPOOL_MAX_BYTES?,
        },
        data_dir,
        search: Search {
            bin_dir: values.PG_BIN_DIR,
            path: path.map_or_else(Vec::new, |path| std::env::split_paths(&path).collect()),
        },
        body: BodySettings {
            max_bytes: values.MAX_BODY_BYTES?,
            max_memory: values.MAX_BODY_MEMORY?,
        },
        max_answer_memory: values.MAX_ANSWER_MEMORY?,
        callback_next_code: values.CALLBACK_NEXT_CODE?,
        operators: Operators::new(operators),
        openim: match (values.OPENIM_API_URL, admin, values.OPENIM_SECRET) {
            (Some(url), Some(admin_user_id), Some(secret)) => Some(openim::Access {
                url: url.trim_end_matches('/').to_owned(),
                admin_user_id,
                secret: secret.into(),
                timeout: OPENIM_TIMEOUT,
            }),
            _ => None,
        },
        reconcile: openim::Settings {
            interval: values.RECONCILE_INTERVAL_SECS?,
            full_interval: values.RECONCILE_FULL_INTERVAL_SECS?,
            delay: values.RECONCILE_DELAY_MS?,
            settling: openim::SETTLING,
            concurrency: values.RECONCILE_CONCURRENCY?,
        },
        rejected: Retention {
            keep_days: values.REJECTED_KEEP_DAYS?,
            max_bytes: values.REJECTED_MAX_BYTES?,
        },
        stop: StopSettings {
            delay: values.SHUTDOWN_DELAY_MS?,
            timeout: values.SHUTDOWN_TIMEOUT_SECS?,
        },
        timeouts: HttpTimeouts::default(),
        log: LogSettings {
            format: values.LOG_FORMAT?,
            filter: values.RUST_LOG?,
        },
    })
}

/// /var/lib for root, the XDG data folder for other users.
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
    use super::super::table::flags;
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, Errors> {
        let args = std::iter::once("openim-group-mirror").chain(args.iter().copied());
        let command = clap::Command::new("test").args(flags(|_| true));
        let matches = command.try_get_matches_from(args).unwrap();
        config(
            |name| matches.get_one::<OsString>(name).cloned(),
            &Command::Serve,
        )
    }

    #[test]
    fn defaults_are_usable() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(config.body.max_bytes, 16 << 20);
        assert_eq!(config.body.max_memory, 64 << 20);
        assert_eq!(config.timeouts.body, Duration::from_secs(15));
        assert_eq!(config.rejected.keep_days, 30);
        assert_eq!(config.rejected.max_bytes, 256 << 20);
        assert_eq!(config.access.callback_username, "openim");
        assert!(config.access.callback_passwords.is_empty() && config.access.api_tokens.is_empty());
        assert_eq!(config.callback_next_code, 1);
        assert_eq!(config.database.url, None);
    }

    #[test]
    fn all_errors_are_reported_at_once_and_none_repeats_a_secret() {
        let wrong = [
            ("LISTEN_ADDR", "here"),
            ("DATABASE_URL", "mysql://u:hunter2@h/d"),
            ("DATABASE_SCHEMA", "Robert'); DROP"),
            ("DATABASE_POOL_SIZE", "0"),
            ("DATABASE_TIMEOUT_MS", "2s"),
            ("MAX_BODY_BYTES", ""),
            ("CALLBACK_NEXT_CODE", "2"),
            ("SHUTDOWN_TIMEOUT_SECS", "0"),
            ("LOG_FORMAT", "xml"),
            ("RUST_LOG", "a=b=c"),
            ("ALLOW_ANONYMOUS", "yes"),
            ("METRICS_ADDR", "9090"),
            ("CALLBACK_USERNAME", "a:b"),
            ("CALLBACK_PASSWORD_PREVIOUS", "hunter3\n"),
            ("API_TOKEN", "hunter4,,hunter5"),
            ("MAX_BODY_MEMORY", "0"),
            ("MAX_ANSWER_MEMORY", "0"),
            ("REJECTED_KEEP_DAYS", "0"),
            ("REJECTED_MAX_BYTES", "1GB"),
            ("SHUTDOWN_DELAY_MS", "-1"),
        ];
        let args = wrong.map(|(name, value)| {
            let flag = name.to_lowercase().replace('_', "-");
            format!("--{flag}={value}")
        });
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let errors = parse(&args).unwrap_err().to_string();
        for (name, _) in wrong {
            let expected = format!("\n  {name}: expected ");
            assert!(errors.contains(&expected), "{errors}");
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
    fn settings_that_need_each_other_are_set_together() {
        let (url, admin, secret) = (
            "--openim-api-url=http://openim:10002/",
            "--openim-admin-user-id=imAdmin",
            "--openim-secret=openIM123",
        );
        let config = parse(&[url, admin, secret]).unwrap();
        assert_eq!(config.openim.unwrap().url, "http://openim:10002");
        let error = parse(&[admin, "--callback-password-previous=p"]);
        let error = error.unwrap_err().to_string();
        for expected in [
            "OPENIM_API_URL: expected a value, needed by OPENIM_ADMIN_USER_ID",
            "OPENIM_SECRET: expected a value, needed by OPENIM_ADMIN_USER_ID",
            "CALLBACK_PASSWORD: expected a value, needed by CALLBACK_PASSWORD_PREVIOUS",
        ] {
            assert!(error.contains(expected), "{error}");
        }
        let error = super::config(|_| None, &Command::Reconcile(Default::default()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("OPENIM_API_URL: expected the address"),
            "{error}"
        );
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
