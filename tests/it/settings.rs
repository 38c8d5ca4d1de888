//! The files that come from the table of settings. With `WRITE_GENERATED=1` the test writes them.

use std::collections::BTreeSet;
use std::path::Path;

use openim_group_mirror::config::{GROUPS, Setting};

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
then `./.env`. An empty variable means the default, also if `./.env` has the name.

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
