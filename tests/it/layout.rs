//! The layout of `src`, held by reading the sources: no circular import between files, few files in a folder, and the
//! walks of docs/architecture.md along real imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Path of a module from the root of the crate, without `crate`.
type Module = Vec<String>;

/// Import of a name: where it stands, what it names, and under which name.
#[derive(Debug)]
struct Import {
    path: Vec<String>,
    name: String,
}

#[derive(Debug, Default)]
struct Source {
    file: String,
    imports: Vec<Import>,
    /// Paths in code that are no imports.
    uses: Vec<Vec<String>>,
}

/// All files of `src`, by their modules.
struct Graph(BTreeMap<Module, Source>);

impl Graph {
    fn read() -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut graph = BTreeMap::new();
        let mut tests = BTreeSet::new();
        let mut folders = vec![src.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let file = path.strip_prefix(&src).unwrap().to_str().unwrap();
                let Some(stem) = file.strip_suffix(".rs") else {
                    continue;
                };
                let mut module: Module = stem.split('/').map(str::to_owned).collect();
                if ["mod", "lib"].contains(&module.last().unwrap().as_str()) {
                    module.pop();
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let tokens = tokens(&text);
                let mut source = Source {
                    file: format!("src/{file}"),
                    ..Source::default()
                };
                scan(&tokens, &module, &mut source, &mut tests);
                graph.insert(module, source);
            }
        }
        let is_test = |module: &Module| {
            let mut parts = (1..=module.len()).map(|end| module[..end].to_vec());
            parts.any(|part| tests.contains(&part))
        };
        graph.retain(|module, _| !is_test(module));
        Self(graph)
    }

    /// The file that defines what `path` names, as it is read in `module`.
    fn resolve(&self, module: &Module, path: &[String], depth: usize) -> Option<&str> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => vec![],
            "self" => module.clone(),
            "super" => module[..module.len().checked_sub(1)?].to_vec(),
            child => {
                let mut at = module.clone();
                at.push(child.to_owned());
                if !self.0.contains_key(&at) {
                    return None;
                }
                at
            }
        };
        while let Some((next, after)) = rest.split_first() {
            if next == "super" {
                at.pop()?;
            } else {
                at.push(next.clone());
                if !self.0.contains_key(&at) {
                    at.pop();
                    // An item: of this module, or one that it hands on.
                    let source = self.0.get(&at)?;
                    let handed_on = source.imports.iter().find(|import| import.name == *next);
                    let from = handed_on
                        .filter(|_| depth < 8)
                        .and_then(|import| self.resolve(&at, &import.path, depth + 1));
                    return Some(from.unwrap_or(&source.file));
                }
            }
            rest = after;
        }
        self.0.get(&at).map(|source| source.file.as_str())
    }

    /// Imports of each file. The `mod.rs` of a folder is the folder's face: what a file takes from the face of its own
    /// folder, or of a folder around that, is not counted, since each child of a module may name its parent's items.
    fn edges(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let edges = self.0.iter().map(|(module, source)| {
            let imports = source.imports.iter().map(|import| &import.path);
            let targets = imports.chain(&source.uses);
            let targets = targets.filter_map(|path| self.resolve(module, path, 0));
            let others = targets.filter(|target| {
                let face = target.strip_suffix("mod.rs");
                *target != source.file && !face.is_some_and(|face| source.file.starts_with(face))
            });
            (source.file.as_str(), others.collect())
        });
        edges.collect()
    }
}

/// Names and signs of a source, without comments and texts.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let starts = |at: usize, with: &str| {
        let with: Vec<char> = with.chars().collect();
        chars[at..].starts_with(&with)
    };
    while at < chars.len() {
        let c = chars[at];
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "r#\"") {
            at += 3;
            while at < chars.len() && !starts(at, "\"#") {
                at += 1;
            }
            at += 2;
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' {
            // A character, or the name of a lifetime.
            let is_char = chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'');
            at += 1;
            if is_char {
                at += if chars[at] == '\\' { 2 } else { 1 };
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
        } else if c.is_alphanumeric() || c == '_' {
            let begin = at;
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            tokens.push(chars[begin..at].iter().collect());
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            at += 1;
        }
    }
    tokens
}

/// Reads imports and paths. Modules of tests are passed over; files of tests are added to `tests`.
fn scan(tokens: &[String], module: &Module, source: &mut Source, tests: &mut BTreeSet<Module>) {
    let is = |at: usize, what: &[&str]| {
        tokens.len() >= at + what.len() && (0..what.len()).all(|i| tokens[at + i] == what[i])
    };
    let is_name = |at: usize| {
        tokens
            .get(at)
            .is_some_and(|token| token.starts_with(|c: char| c.is_alphabetic() || c == '_'))
    };
    // Braces of modules that stand in this file.
    let (mut inline, mut depth, mut at) = (Vec::new(), 0_usize, 0);
    while at < tokens.len() {
        let of_test = ["#", "[", "cfg", "(", "test", ")", "]"];
        if is(at, &of_test) {
            let mut then = at + of_test.len();
            while is(then, &["pub"]) || is(then, &["("]) || is(then, &[")"]) || is(then, &["in"]) {
                then += 1;
            }
            if is(then, &["mod"]) && is(then + 2, &[";"]) {
                let mut file = module.clone();
                file.push(tokens[then + 1].clone());
                tests.insert(file);
                at = then + 3;
                continue;
            }
            // The item ends at its semicolon, or with its braces.
            let mut braces = 0_usize;
            while then < tokens.len() {
                match tokens[then].as_str() {
                    "{" => braces += 1,
                    "}" if braces == 1 => break,
                    "}" => braces -= 1,
                    ";" if braces == 0 => break,
                    _ => {}
                }
                then += 1;
            }
            at = then + 1;
            continue;
        }
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            "mod" if is_name(at + 1) && is(at + 2, &["{"]) => {
                inline.push(depth);
                at += 2;
                continue;
            }
            "use" if !is(at + 1, &["<"]) => {
                let mut found = Vec::new();
                at = tree(tokens, at + 1, &mut Vec::new(), &mut found);
                for import in found {
                    if let Some(path) = outside(&import.path, inline.len()) {
                        source.imports.push(Import { path, ..import });
                    }
                }
                continue;
            }
            _ if is_name(at) && is(at + 1, &["::"]) => {
                let mut path = vec![tokens[at].clone()];
                while is(at + 1, &["::"]) && is_name(at + 2) {
                    at += 2;
                    path.push(tokens[at].clone());
                }
                source.uses.extend(outside(&path, inline.len()));
            }
            _ => {}
        }
        at += 1;
    }
}

/// A path of an inner module as the file's own; `None` if it stays in the file.
fn outside(path: &[String], inner: usize) -> Option<Vec<String>> {
    let is_relative = ["super", "self"].contains(&path[0].as_str());
    let ups = path.iter().take_while(|part| *part == "super").count();
    match (is_relative, inner) {
        (false, _) | (_, 0) => Some(path.to_vec()),
        _ if ups > inner => Some(path[inner..].to_vec()),
        _ => None,
    }
}

/// Reads a tree of imports from `at`; returns where it ends.
fn tree(
    tokens: &[String],
    mut at: usize,
    path: &mut Vec<String>,
    found: &mut Vec<Import>,
) -> usize {
    let began = path.len();
    loop {
        match tokens[at].as_str() {
            "::" => {}
            "{" => {
                at += 1;
                while tokens[at] != "}" {
                    at = tree(tokens, at, path, found);
                    if tokens[at] == "," {
                        at += 1;
                    }
                }
                path.truncate(began);
                return at + 1;
            }
            ";" | "," | "}" => {
                if let Some(name) = path.last().cloned()
                    && path.len() > began
                {
                    let mut path = path.clone();
                    if name == "self" {
                        path.pop();
                    }
                    found.push(Import { path, name });
                }
                path.truncate(began);
                return at;
            }
            "as" => {
                let name = tokens[at + 1].clone();
                let path_here = path.clone();
                found.push(Import {
                    path: path_here,
                    name,
                });
                path.truncate(began);
                return at + 2;
            }
            "*" => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
}

/// Groups of files that import each other in a circle.
fn circles(edges: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Vec<String>> {
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(file) = open.pop() {
            for next in edges.get(file.as_str()).into_iter().flatten() {
                if seen.insert((*next).to_owned()) {
                    open.push((*next).to_owned());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> =
        edges.keys().map(|file| (*file, reach(file))).collect();
    let mut found = BTreeSet::new();
    for (file, seen) in &reached {
        if seen.contains(*file) {
            let back = |other: &&String| reached[other.as_str()].contains(*file);
            found.insert(seen.iter().filter(back).cloned().collect::<Vec<_>>());
        }
    }
    found.into_iter().collect()
}

#[test]
fn no_file_imports_itself_in_a_circle() {
    let graph = Graph::read();
    let edges = graph.edges();
    let imports: usize = edges.values().map(BTreeSet::len).sum();
    assert!(imports > 300, "the imports are not read: {imports}");
    let found = circles(&edges);
    assert!(found.is_empty(), "{} circles: {found:#?}", found.len());
}

#[test]
fn a_folder_has_at_most_twelve_files() {
    let graph = Graph::read();
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for source in graph.0.values() {
        let (folder, _) = source.file.rsplit_once('/').unwrap();
        *folders.entry(folder).or_default() += 1;
    }
    folders.retain(|_, files| *files > 12);
    assert_eq!(folders, BTreeMap::new());
}

/// Walks of the page, with the files of each in order.
fn walks() -> Vec<(String, Vec<String>)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = std::fs::read_to_string(page).unwrap();
    let walks = page.split("\n### Walk: ").skip(1).map(|walk| {
        let (name, rest) = walk.split_once('\n').unwrap();
        let rest = rest.split("\n#").next().unwrap();
        let rows = rest.lines().filter_map(|line| {
            let (file, _) = line.strip_prefix("| `")?.split_once('`')?;
            Some(format!("src/{file}"))
        });
        (name.to_owned(), rows.collect())
    });
    walks.collect()
}

#[test]
fn the_walks_of_the_architecture_page_follow_imports_and_are_short() {
    let graph = Graph::read();
    let edges = graph.edges();
    // A walk does not become longer.
    let limits = [
        ("a patch", 20),
        ("a join", 21),
        ("an outage", 13),
        ("a reconciled group", 23),
        ("a read", 12),
    ];
    let walks = walks();
    let names: Vec<&str> = walks.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, limits.map(|(name, _)| name));
    for ((name, files), (_, limit)) in walks.iter().zip(limits) {
        let distinct: BTreeSet<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(distinct.len(), files.len(), "{name}: a file twice");
        assert!(files.len() <= limit, "{name}: {} files", files.len());
        for (place, file) in files.iter().enumerate() {
            assert!(edges.contains_key(file.as_str()), "{name}: no {file}");
            // A face reaches its own folder by methods too, without an import. Other rooms call the methods of a room's
            // type (`Store`), which stand in files that only the face of the room imports.
            let room = file.split('/').nth(1).unwrap();
            let face_of_room = format!("src/{room}/mod.rs");
            let is_method = edges[face_of_room.as_str()].contains(file.as_str());
            let is_reached = is_method
                || distinct.iter().any(|other| {
                    let face = other.strip_suffix("mod.rs");
                    edges[other].contains(file.as_str())
                        || face.is_some_and(|face| *other != file && file.starts_with(face))
                });
            assert!(place == 0 || is_reached, "{name}: nothing reaches {file}");
        }
    }
}
