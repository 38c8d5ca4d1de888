//! The README is true: its commands, run in their order against the service, print what it shows.

use std::process::Command;

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
    let digits_to_zero = |line: &str| {
        let timed = ["createdAt", "updatedAt", "newestChange", "etag", "date:"];
        if timed.iter().any(|name| line.contains(name)) {
            line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
        } else {
            line.to_owned()
        }
    };
    // Postgres drops trailing zeros of a second's fraction, rarely, and a weekday changes.
    let lines: Vec<String> = text
        .trim()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.starts_with("date: "))
        .map(|line| digits_to_zero(&line))
        .collect();
    let mut text = lines.join("\n");
    while let Some(at) = text.find(".00").filter(|_| true) {
        let end = text[at + 1..].find(|c| c != '0').map_or(text.len(), |n| at + 1 + n);
        text.replace_range(at..end, "");
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
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        let printed = String::from_utf8_lossy(&out.stdout);
        assert_eq!(without_times(&printed), without_times(&output), "{command}");
    }
}
