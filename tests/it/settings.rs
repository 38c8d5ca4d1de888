//! The settings: their values, their errors, and the files that come from their table. With `WRITE_GENERATED=1` a test
//! writes these files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use openim_group_mirror::config::{Command, Config, Errors, GROUPS, Setting};
use openim_group_mirror::secret::Secret;

const ENV_HEAD: &str = "\
# Settings of openim-group-mirror. Copy this file to .env in the folder in which the service starts, and
# uncomment what you change. `make .env` does that, with new random keys. A line shows the default. Put a
# value with a $ or a space in single quotes.
#
# src/config/table.rs is the source of this file, see CONTRIBUTING.md.
";

const DOCS_HEAD: &str = "\
# Settings

A setting is a flag (`--listen-addr`) and an environment variable (`LISTEN_ADDR`). The variable may also
be a line of `./.env`, in the folder in which the service starts. The flag comes first, then the variable,
then `./.env`. An empty variable means the default, also if `./.env` has a value for it.

`openim-group-mirror --help` prints the same list, and `.env.example` is a template of `./.env`. All
invalid settings are reported together at the start, and the process ends with exit code 2.

[`src/config/table.rs`](../src/config/table.rs) is the source of this page.
";

fn all() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|group| group.settings).copied()
}

/// The text in lines of at most 100 characters, each with this prefix.
fn wrapped(text: &str, prefix: &str) -> String {
    let mut lines = vec![prefix.to_owned()];
    for word in text.split(' ') {
        let last = lines.last_mut().unwrap();
        let is_full = last.len() + 1 + word.len() > 100;
        if is_full {
            lines.push(format!("{prefix} {word}"));
        } else {
            last.push(' ');
            last.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

/// The values of a number with their unit.
fn values(setting: &Setting) -> Option<String> {
    let unit = match setting.unit {
        "MS" => " ms",
        "SECS" => " s",
        "BYTES" => " bytes",
        "DAYS" => " days",
        _ => "",
    };
    Some(setting.range()? + unit)
}

fn env_example() -> String {
    let mut text = ENV_HEAD.to_owned();
    for group in GROUPS {
        text += &format!("\n# --- {} ---\n", group.title);
        if !group.note().is_empty() {
            text += &wrapped(&group.note(), "#");
        }
        for setting in group.settings {
            let range = values(setting).map_or_else(String::new, |values| format!(" ({values})"));
            text += "\n";
            text += &wrapped(&(setting.help() + &range), "#");
            text += &format!("#{}={}\n", setting.name, setting.default.unwrap_or(""));
        }
    }
    text
}

/// Names of settings as code.
fn with_code(text: &str) -> String {
    let is_name = |word: &&str| all().any(|setting| setting.name == *word);
    let words = text.split(' ').map(|word| {
        let name = word.trim_end_matches([',', '.']);
        match is_name(&name.trim_end_matches("=true")) {
            true => format!("`{name}`{}", &word[name.len()..]),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn docs() -> String {
    let mut text = DOCS_HEAD.to_owned();
    for group in GROUPS {
        text += &format!("\n## {}\n\n", group.title);
        if !group.note().is_empty() {
            text += &format!("{}\n\n", with_code(&group.note()));
        }
        text += "| setting | default | values | description |\n| --- | --- | --- | --- |\n";
        for setting in group.settings {
            let default = setting.default.map(|default| format!("`{default}`"));
            let values = values(setting).unwrap_or_else(|| format!("`{}`", setting.unit));
            let needs: Vec<String> = setting
                .needs
                .iter()
                .map(|name| format!("`{name}`"))
                .collect();
            let needs = match needs.as_slice() {
                [] => String::new(),
                _ => format!(". Needs {}", needs.join(" and ")),
            };
            text += &format!(
                "| `{}` | {} | {values} | {}{needs} |\n",
                setting.name,
                default.unwrap_or_default(),
                with_code(&setting.help()),
            );
        }
    }
    text
}

#[test]
fn generated_files_are_those_of_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, text) in [
        (".env.example", env_example()),
        ("docs/settings.md", docs()),
    ] {
        let path = root.join(name);
        if std::env::var_os("WRITE_GENERATED").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == text,
            "{name} is not that of src/config/table.rs: run WRITE_GENERATED=1 cargo test --test it settings::"
        );
    }
    // The program can read the template.
    assert!(dotenvy::from_read_iter(env_example().as_bytes()).all(|line| line.is_ok()));
}

#[test]
fn docker_compose_passes_settings_that_exist() {
    let compose = include_str!("../../docker-compose.yml");
    let mirror = compose.split("\n  postgres:\n").next().unwrap();
    let names = mirror.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("      ")?.split_once(": ")?;
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        name.chars().all(is_name).then_some(name)
    });
    let passed: BTreeSet<&str> = names.collect();
    let known: BTreeSet<&str> = all().map(|setting| setting.name).collect();
    assert_eq!(passed.difference(&known).next(), None);
    // The image and the file itself set these.
    let of_image = [
        "ALLOW_ANONYMOUS",
        "DATA_DIR",
        "LISTEN_ADDR",
        "METRICS_ADDR",
        "PG_BIN_DIR",
        "SPOOL_DIR",
    ];
    let not_passed: Vec<&str> = known.difference(&passed).copied().collect();
    assert_eq!(not_passed, of_image);
}

/// Parses settings that are given as flags: `--listen-addr=0.0.0.0:80` is LISTEN_ADDR.
fn parse(flags: &[&str]) -> Result<Config, Errors> {
    let given = flags.iter().map(|flag| {
        let (name, value) = flag.strip_prefix("--").unwrap().split_once('=').unwrap();
        (name.to_uppercase().replace('-', "_"), value.into())
    });
    let given: BTreeMap<String, OsString> = given.collect();
    Config::from_values(|name| given.get(name).cloned(), &Command::Serve)
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
    let error = Config::from_values(|_| None, &Command::Reconcile(Default::default()))
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
