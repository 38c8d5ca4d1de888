//! The README is true: its commands, run in their order against the service, print what it shows.

use std::process::Command;

use regex::Regex;

use crate::support::{Service, run};

/// A command of the README and what it shows as its output.
struct Shown {
    command: String,
    output: String,
}

/// Blocks of "sh" that hold a curl, each with the block that follows it.
fn shown() -> Vec<Shown> {
    let readme = include_str!("../../README.md");
    let mut blocks = Vec::new();
    let mut fences = readme.split("\n```");
    fences.next();
    while let (Some(block), Some(_prose)) = (fences.next(), fences.next()) {
        let (language, text) = block.split_once('\n').unwrap();
        blocks.push((language.trim(), text));
    }
    blocks
        .windows(2)
        .filter(|pair| pair[0].0 == "sh" && pair[0].1.starts_with("curl "))
        .map(|pair| Shown {
            command: pair[0].1.to_owned(),
            output: pair[1].1.to_owned(),
        })
        .collect()
}

/// Times, and what is made of them, differ from run to run.
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

#[test]
fn the_readmes_commands_print_what_it_shows() {
    let service = Service::private(&run().folder("data"));
    let shown = shown();
    assert!(shown.len() >= 6, "{}", shown.len());
    for Shown { command, output } in shown {
        let command = command.replace("http://127.0.0.1:8080", &service.base);
        let out = Command::new("sh")
            .args(["-c", &command])
            .output()
            .expect("run the README's command");
        assert!(
            out.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let printed = String::from_utf8_lossy(&out.stdout);
        assert_eq!(without_times(&printed), without_times(&output), "{command}");
    }
}

#[test]
fn the_picture_is_that_of_the_sources() {
    let readme = include_str!("../../README.md");
    let sources = include_str!("../../src/lib.rs").replace("//! ", "");
    let picture = |text: &str| -> String {
        let (_, rest) = text.split_once("```text\n").unwrap();
        rest.split("```").next().unwrap().to_owned()
    };
    assert_eq!(picture(readme), picture(&sources));
}
