//! The walls of the layout, held by reading the sources.

use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// Code lines that hold `word` as a word of its own, outside the rooms where it may stand.
fn trespasses(word: &str, rooms: &[&str]) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&src) {
        let place = path
            .strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        if rooms.iter().any(|room| place.starts_with(room)) {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            // Neither comments nor what stands between quotes.
            let code: String = line
                .split("//")
                .next()
                .unwrap()
                .split('"')
                .step_by(2)
                .collect();
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let stands_alone = code.match_indices(word).any(|(at, _)| {
                !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word)
            });
            if stands_alone {
                found.push(format!("src/{place}:{}: {line}", number + 1));
            }
        }
    }
    found
}

#[track_caller]
fn assert_only_in(word: &str, rooms: &[&str]) {
    // The wall is worth nothing if the word is nowhere at all.
    assert!(!trespasses(word, &[]).is_empty(), "{word} is not used");
    let found = trespasses(word, rooms);
    assert!(
        found.is_empty(),
        "{word} outside {rooms:?}:\n{}",
        found.join("\n")
    );
}

#[test]
fn only_http_names_poem() {
    assert_only_in("poem", &["http/"]);
    assert_only_in("poem_openapi", &["http/"]);
}

#[test]
fn only_store_names_sqlx() {
    assert_only_in("sqlx", &["store/"]);
}

#[test]
fn only_the_spool_names_sqlite() {
    assert_only_in("rusqlite", &["spool/"]);
}

#[test]
fn only_telemetry_names_the_metrics_library() {
    assert_only_in("prometheus", &["telemetry/"]);
}

#[test]
fn only_config_reads_the_environment() {
    assert_only_in("std::env::var_os", &["config/"]);
    // Main passes the arguments on.
    assert_only_in("std::env", &["config/", "main.rs"]);
    assert_only_in("dotenvy", &["config/"]);
}

#[test]
fn only_openim_and_the_healthcheck_make_requests() {
    assert_only_in("reqwest", &["openim/", "app/healthcheck.rs"]);
    // What is wrong with a database's certificate is an error of rustls in one of sqlx.
    assert_only_in("rustls", &["openim/", "store/postgres/tls.rs"]);
}

#[test]
fn only_the_app_draws_on_a_terminal() {
    assert_only_in("indicatif", &["app/"]);
}

#[test]
fn the_domain_imports_nobody() {
    for part in [
        "http",
        "ingest",
        "store",
        "config",
        "app",
        "local_postgres",
        "openim",
        "reconcile",
        "secret",
        "tasks",
        "telemetry",
    ] {
        let imports = trespasses(&format!("crate::{part}"), &[]);
        let of_domain = imports.iter().find(|line| line.starts_with("src/domain/"));
        assert_eq!(of_domain, None);
    }
}

#[test]
fn the_spool_imports_the_domain_only() {
    let imports = trespasses("crate", &[]);
    let of_spool = imports.iter().filter(|line| line.starts_with("src/spool/"));
    for line in of_spool.filter(|line| line.contains("crate::")) {
        assert!(line.contains("crate::domain"), "{line}");
    }
    assert_only_in("crate::spool", &["app/", "ingest/"]);
}

#[test]
fn the_store_and_the_queue_do_not_know_the_doors_nor_these_each_other() {
    // The configuration fills the settings of the parts.
    assert_only_in("crate::http", &["app/", "config/", "http/"]);
    assert_only_in("crate::openim", &["app/", "config/", "reconcile/"]);
    assert_only_in("crate::reconcile", &["app/", "config/"]);
    let rooms = ["app/", "http/", "reconcile/", "config/", "ingest/"];
    assert_only_in("crate::ingest", &rooms);
    let rooms = [
        "app/",
        "http/",
        "reconcile/",
        "ingest/",
        "config/",
        "store/",
    ];
    assert_only_in("crate::store", &rooms);
}

/// `openim` says what OpenIM says; `reconcile` stands above it, the queue and the store.
#[test]
fn openim_and_reconcile_import_only_rooms_below_them() {
    let below = ["domain", "secret", "telemetry"];
    assert_imports_only("openim/", &below, 5);
    let below = ["domain", "ingest", "openim", "store", "tasks", "telemetry"];
    assert_imports_only("reconcile/", &below, 15);
}

/// A room that imports fewer than `least` times is not read right.
#[track_caller]
fn assert_imports_only(room: &str, below: &[&str], least: usize) {
    let mut count = 0;
    for line in trespasses("crate", &[]) {
        if !line.starts_with(&format!("src/{room}")) {
            continue;
        }
        let Some((_, path)) = line.split_once("crate::") else {
            continue; // pub(crate) is no import
        };
        let part = path.split([':', ';']).next().unwrap();
        assert!(below.contains(&part), "{line}");
        count += 1;
    }
    assert!(count >= least, "{count}");
}

/// Work beside serving is started by `tasks`, which sees an early end. Work that ends by itself is started here:
#[test]
fn whatever_goes_on_is_looked_after() {
    assert_only_in(
        "spawn",
        &[
            "tasks.rs",
            // Waits for signals; without it the service ends.
            "main.rs",
            // Changes and bodies under way, for which whoever brought them waits.
            "ingest/mod.rs",
            // Questions; whoever has asked one is told where it is dropped.
            "store/lookups.rs",
            // Connections that are being closed, or looked at.
            "store/postgres/connections.rs",
            "store/write/mod.rs",
            // A process, which is looked at.
            "local_postgres/cluster.rs",
            // Its tests.
            "openim/snapshot/tests.rs",
        ],
    );
    for other in ["spawn_local", "JoinSet", "Builder::new_multi_thread"] {
        assert_eq!(trespasses(other, &[]), [""; 0]);
    }
    assert_only_in("TaskTracker", &["tasks.rs", "ingest/mod.rs"]);
}

/// `statements!` and `pages!` make constants of all SQL, so that the prepare test sees it. A page's two
/// are read in one place.
#[test]
fn every_query_is_a_listed_statement() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    for path in sources(&src) {
        let text = std::fs::read_to_string(&path).unwrap();
        let is_of_pages = path.ends_with("read/mod.rs");
        assert!(
            is_of_pages || !text.contains("PageSql {"),
            "{}: a page's statements are made by pages!",
            path.display()
        );
        for call in ["query(", "query_as(", "query_scalar(", "raw_sql("] {
            for (at, _) in text.match_indices(call) {
                let argument = text[at + call.len()..].trim_start();
                let of_page = ["sql.ordinary)", "sql.sized)"];
                let is_page = is_of_pages && of_page.iter().any(|one| argument.starts_with(one));
                assert!(
                    is_page || argument.starts_with(|c: char| c.is_ascii_uppercase()),
                    "{}: {call}{}",
                    path.display(),
                    argument.lines().next().unwrap()
                );
            }
        }
    }
}
