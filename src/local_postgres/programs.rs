//! Finds the server programs `initdb` and `postgres`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// Folders of distributions: parent folder, start of the name with the version, the rest.
const USUAL_PLACES: [(&str, &str, &str); 7] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ("/opt/local/lib", "postgresql", "bin"),
];

/// Folders to search.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The only folder, if set.
    pub bin_dir: Option<PathBuf>,
    /// The folders of PATH, which come first.
    pub path: Vec<PathBuf>,
}

impl Search {
    /// Finds the first folder with both programs. In the usual places the newest version comes first. `version` is a
    /// major version that the folder must have.
    pub(crate) fn bin_dir(&self, version: Option<&str>) -> Result<PathBuf, Error> {
        let mut others: Vec<String> = Vec::new();
        for dir in self.candidates() {
            if !(dir.join("initdb").is_file() && dir.join("postgres").is_file()) {
                continue;
            }
            let Some(wanted) = version else {
                return Ok(dir);
            };
            let found = version_in(&dir)?;
            // "15.18", but also "19beta1"
            if found.split(|c: char| !c.is_ascii_digit()).next() == Some(wanted) {
                return Ok(dir);
            }
            if !others.contains(&found) {
                others.push(found);
            }
        }
        match version {
            Some(made) if !others.is_empty() => Err(Error::OtherVersion {
                made: made.to_owned(),
                installed: others.join(", "),
            }),
            _ => Err(Error::NotInstalled),
        }
    }

    fn candidates(&self) -> Vec<PathBuf> {
        if let Some(dir) = &self.bin_dir {
            return vec![dir.clone()];
        }
        let mut dirs = self.path.clone();
        if let Ok(out) = Command::new("pg_config").arg("--bindir").output() {
            dirs.push(String::from_utf8_lossy(&out.stdout).trim().into());
        }
        for (parent, prefix, rest) in USUAL_PLACES {
            let mut found: Vec<PathBuf> = fs::read_dir(parent)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| entry.path().join(rest))
                .collect();
            found.sort_by_key(|path| std::cmp::Reverse(last_number(&path.to_string_lossy())));
            dirs.extend(found);
        }
        dirs
    }
}

/// Returns the version in "postgres (PostgreSQL) 15.18 (Debian ...)".
fn version_in(dir: &Path) -> Result<String, Error> {
    let out = Command::new(dir.join("postgres"))
        .arg("--version")
        .output()?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(said
        .split_whitespace()
        .nth(2)
        .unwrap_or_default()
        .to_owned())
}

fn last_number(s: &str) -> u64 {
    s.split(|c: char| !c.is_ascii_digit())
        .rfind(|digits| !digits.is_empty())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}
