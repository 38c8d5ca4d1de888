//! The documents are true: their commands run in their order and print what they show, their links lead somewhere,
//! and each alert has a runbook.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use crate::support::{ADMIN_ID, Creation, OpenImServer, Operation, SECRET, Service, run};

/// Documents whose commands ask OpenIM's API.
const WITH_OPENIM: [&str; 1] = ["docs/reconciliation.md"];

/// A fenced block of a document.
struct Block {
    line: usize,
    language: String,
    text: String,
    /// The reason that a comment before the block gives for not running it.
    not_run: Option<String>,
    /// True if only blank lines stand between the end of the block before and this one.
    follows: bool,
}

impl Block {
    fn is_shell(&self) -> bool {
        ["sh", "bash", "shell", "console"].contains(&self.language.as_str())
    }
}

/// A document, with its path from the root of the repository.
struct Document {
    path: String,
    text: String,
    blocks: Vec<Block>,
}

impl Document {
    fn is_run(&self) -> bool {
        let mut blocks = self.blocks.iter();
        blocks.any(|block| block.is_shell() && block.not_run.is_none())
    }

    /// Lines outside of blocks.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_inside = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.trim_start().starts_with("```");
            is_inside ^= is_fence;
            !is_inside && !is_fence
        })
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, is_deep: bool, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if is_deep && path.is_dir() {
            files(&path, true, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

fn documents() -> Vec<Document> {
    let mut paths = Vec::new();
    files(root(), false, &mut paths);
    files(&root().join("docs"), true, &mut paths);
    files(&root().join("bench"), false, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap();
        Document {
            path: path.to_str().unwrap().to_owned(),
            blocks: blocks(&text),
            text,
        }
    };
    paths.into_iter().map(read).collect()
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut is_inside = false;
    let mut indent = 0;
    // The last line outside of blocks that is not blank; the end of a block counts as such a line.
    let mut before = "";
    for (number, line) in text.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if is_inside => {
                is_inside = false;
                before = line;
            }
            Some(language) => {
                is_inside = true;
                indent = line.len() - line.trim_start().len();
                let reason = before.trim().strip_prefix("<!-- not run:");
                let reason = reason.and_then(|rest| rest.strip_suffix("-->"));
                found.push(Block {
                    line: number + 1,
                    language: language.trim().to_owned(),
                    text: String::new(),
                    not_run: reason.map(|reason| reason.trim().to_owned()),
                    follows: before.trim() == "```",
                });
            }
            None if is_inside => {
                let text = &mut found.last_mut().unwrap().text;
                text.push_str(line.get(indent..).unwrap_or_default());
                text.push('\n');
            }
            None if !line.trim().is_empty() => before = line,
            None => {}
        }
    }
    found
}

#[test]
fn each_command_is_run_or_says_why_not() {
    let command = Regex::new(r"(?m)^(\$|curl|docker|make|cargo|openim-group-mirror) ").unwrap();
    for document in documents() {
        for block in &document.blocks {
            let place = format!("{}:{}", document.path, block.line);
            assert!(
                !block.language.is_empty(),
                "{place}: a block of no language"
            );
            if let Some(reason) = &block.not_run {
                assert!(block.is_shell(), "{place}: a mark before no command");
                assert!(!reason.is_empty(), "{place}: no reason");
            }
            let is_hidden = !block.is_shell() && command.is_match(&block.text);
            assert!(!is_hidden, "{place}: a command in a block that is not sh");
        }
    }
}

/// Times, and values made of them, differ from run to run.
fn without_times(text: &str) -> String {
    let mut text = text.trim().replace('\r', "");
    for (pattern, name) in [
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r#"etag: "\d+""#, "etag: ETAG"),
        (r"date: .*", "date: DATE"),
        (r"content-length: \d+", "content-length: LENGTH"), // a time may have fewer digits
    ] {
        text = Regex::new(pattern)
            .unwrap()
            .replace_all(&text, name)
            .into_owned();
    }
    text
}

/// Runs the commands of a document against a service of its own.
fn run_commands(document: &Document, openim: &OpenImServer) {
    let data_dir = run().folder("data");
    let data_dir = data_dir.to_str().unwrap();
    let mut variables = vec![("DATA_DIR", data_dir)];
    if WITH_OPENIM.contains(&document.path.as_str()) {
        variables.extend([
            ("OPENIM_API_URL", openim.url.as_str()),
            ("OPENIM_ADMIN_USER_ID", ADMIN_ID),
            ("OPENIM_SECRET", SECRET),
            ("RECONCILE_DELAY_MS", "50"),
        ]);
    }
    let service = Service::start(&variables);
    let cwd = run().folder("cwd");
    let binary = Path::new(env!("CARGO_BIN_EXE_openim-group-mirror"));
    // pg_dump is beside the server's program, whose path starts the file of its options.
    let options = Path::new(data_dir).join("postgres/data/postmaster.opts");
    let options = std::fs::read_to_string(options).unwrap();
    let postgres = Path::new(options.split_whitespace().next().unwrap());
    let path = [
        binary.parent().unwrap().to_str().unwrap(),
        postgres.parent().unwrap().to_str().unwrap(),
        &std::env::var("PATH").unwrap(),
    ];
    let path = path.join(":");
    for (at, block) in document.blocks.iter().enumerate() {
        if !block.is_shell() || block.not_run.is_some() {
            continue;
        }
        let place = format!("{}:{}", document.path, block.line);
        let command = block
            .text
            .replace("http://127.0.0.1:8080", &service.base)
            .replace("/var/lib/openim-group-mirror", data_dir);
        let out = Command::new("sh")
            .args(["-e", "-c", &command])
            .env("PATH", &path)
            .envs(variables.iter().copied())
            .current_dir(&cwd)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{place}: {command}: {said}");
        let shown = document.blocks.get(at + 1);
        let shown = shown.filter(|next| next.follows && !next.is_shell());
        if let Some(shown) = shown {
            let printed = String::from_utf8_lossy(&out.stdout);
            let shown = without_times(&shown.text);
            assert_eq!(without_times(&printed), shown, "{place}: {command}");
        }
    }
}

#[tokio::test]
async fn the_commands_print_what_the_documents_show() {
    let openim = OpenImServer::start().await;
    let creation = Creation::open("Kayaks", "boss", &["user789"]);
    let create = Operation::Create(creation);
    openim
        .openim
        .lock()
        .unwrap()
        .apply("12345", &create)
        .unwrap();
    let documents = documents();
    let run = documents.iter().filter(|document| document.is_run());
    let run: Vec<&Document> = run.collect();
    for expected in ["README.md", "docs/api-tour.md", WITH_OPENIM[0]] {
        let found = run.iter().any(|document| document.path == expected);
        assert!(found, "{expected} has no commands that are run");
    }
    for document in run {
        run_commands(document, &openim);
    }
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(document: &Document) -> BTreeSet<String> {
    let headings = document.prose().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
            title.chars().filter(kept).collect::<String>()
        })
        .map(|title| title.replace(' ', "-"))
        .collect()
}

/// `path` as seen from the folder of `document`, without `.` and `..`.
fn resolved(document: &str, path: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn each_link_leads_to_a_file_and_a_heading() {
    let documents = documents();
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut broken = Vec::new();
    for document in &documents {
        let links = document.prose().flat_map(|line| link.captures_iter(line));
        for found in links {
            let target = found.get(1).unwrap().as_str();
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => document.path.clone(),
                path => resolved(&document.path, path),
            };
            let there = documents.iter().find(|other| other.path == path);
            let is_there = root().join(&path).exists();
            let has_anchor =
                anchor.is_empty() || there.is_some_and(|other| anchors(other).contains(anchor));
            if !is_there || !has_anchor {
                broken.push(format!("{}: {target}", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_readme_links_each_document() {
    let documents = documents();
    let readme = documents
        .iter()
        .find(|document| document.path == "README.md");
    let readme = &readme.unwrap().text;
    for document in &documents {
        let is_page = document.path.matches('/').count() == 1 && document.path.starts_with("docs/");
        if is_page || document.path == "CONTRIBUTING.md" {
            let link = format!("]({})", document.path);
            assert!(readme.contains(&link), "README.md has no {link}");
        }
    }
}

#[test]
fn each_alert_has_a_runbook() {
    let alerts = include_str!("../../deploy/prometheus-alerts.yml");
    let alert = Regex::new(r"- alert: (\w+)").unwrap();
    let alerts: BTreeSet<&str> = alert
        .captures_iter(alerts)
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    let operations = include_str!("../../docs/operations.md");
    let (_, runbooks) = operations.split_once("\n## Runbooks\n").unwrap();
    let headings = runbooks
        .lines()
        .filter_map(|line| line.strip_prefix("### "));
    assert_eq!(headings.collect::<BTreeSet<&str>>(), alerts);
}

#[test]
fn the_picture_is_that_of_the_sources() {
    let readme = include_str!("../../README.md");
    let map = include_str!("../../docs/architecture.md");
    let sources = include_str!("../../src/lib.rs").replace("//! ", "");
    let picture = |text: &str| -> String {
        let (_, rest) = text.split_once("```text\n").unwrap();
        rest.split("```").next().unwrap().to_owned()
    };
    assert_eq!(picture(readme), picture(&sources));
    assert_eq!(picture(map), picture(&sources));
}
