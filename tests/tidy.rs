//! Checks the sources for rules of ARCHITECTURE.md that no compiler guards.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// A room of `runtime/src`, and the rooms that its production code may name.
const ROOMS: &[(&str, &[&str])] = &[
    ("atomic_file", &[]),
    ("hashing", &[]),
    ("outcome", &[]),
    ("config", &["data"]),
    ("data", &["config"]),
    ("checkpoint", &["config"]),
    ("subspace", &["config", "hashing"]),
    ("packing", &["config", "hashing", "subspace"]),
    ("optim", &["config"]),
    ("averaging", &["config", "hashing"]),
    ("model", &["config", "hashing", "optim", "packing", "subspace"]),
    ("weights", &["atomic_file", "checkpoint", "config", "data", "subspace"]),
    ("export", &["config", "data", "error", "model", "packing", "report", "weights"]),
    ("generate", &["config", "data", "error", "report", "weights"]),
    ("stage", &["atomic_file", "averaging", "config", "error", "hashing", "model", "optim", "packing"]),
    ("import", &["checkpoint", "config", "error", "model", "stage", "weights"]),
    ("net", &["config"]),
    ("telemetry", &["net"]),
    ("report", &["data"]),
    (
        "train",
        &[
            "atomic_file",
            "config",
            "data",
            "error",
            "import",
            "model",
            "outcome",
            "packing",
            "report",
            "stage",
            "weights",
        ],
    ),
    ("process", &["config", "error", "net", "packing", "report"]),
    ("coordinator", &["atomic_file", "checkpoint", "config", "error", "net", "outcome", "process", "report"]),
    (
        "feeder",
        &[
            "atomic_file",
            "config",
            "data",
            "error",
            "net",
            "outcome",
            "packing",
            "process",
            "report",
            "telemetry",
        ],
    ),
    (
        "replica",
        &[
            "atomic_file",
            "averaging",
            "config",
            "error",
            "net",
            "outcome",
            "process",
            "report",
            "stage",
            "telemetry",
        ],
    ),
    (
        "keeper",
        &[
            "checkpoint",
            "config",
            "data",
            "error",
            "net",
            "outcome",
            "process",
            "report",
            "stage",
            "telemetry",
        ],
    ),
    ("reader", &["config", "data", "error", "generate", "net", "packing", "process", "report"]),
    ("bench", &["config", "error", "model", "packing", "stage"]),
];

/// Rooms that compute: no task, no socket, no message.
const PURE: &[&str] = &["hashing", "config", "data", "subspace", "packing", "optim", "averaging", "model"];

/// The crates of tasks, sockets and messages.
const NETWORK: &[&str] = &["tokio::", "quinn::", "tonic::", "swarmline_proto"];

/// The crates that a crate must not depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("proto", &["swarmline-scheduler", "swarmline-kernels"]),
    ("scheduler", &["swarmline-proto", "swarmline-kernels", "tokio", "rand", "getrandom"]),
    ("kernels", &["swarmline-proto", "swarmline-scheduler", "tokio"]),
];

/// Names of modules that name no idea.
const GRAB_BAGS: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

/// Words that hide the actor of a sentence, or are no longer plain English.
const BANNED_WORDS: &[&str] =
    &["anew", "at hand", "everybody", "everyone", "is void", "nobody", "somebody", "whoever", "whomever"];

/// Longest file of production code, lines.
const FILE_LINES_MAX: usize = 600;
/// Longest function that counts as short, lines.
const SHORT_FUNCTION_LINES: usize = 70;

/// The workspace, relative to the folder of this package, where cargo starts tests. The folder known at compile time is
/// no use: checkouts that share a target folder share test binaries.
fn root() -> PathBuf {
    PathBuf::from("..")
}

fn files(under: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = WalkDir::new(under)
        .into_iter()
        .filter_entry(|entry| entry.file_name() != "target" && entry.file_name() != ".git")
        .map(|entry| entry.expect("readable tree").into_path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

fn rust_files(under: &Path) -> Vec<PathBuf> {
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files(under).into_iter().filter(is_rust).collect()
}

/// Whether a file is part of the product: neither a test nor made by a generator.
fn is_production(path: &Path) -> bool {
    let named = |name: &str| path.components().any(|part| part.as_os_str() == name);
    let tests = ["tests", "tests.rs", "fixtures.rs", "benches", "gen"];
    !tests.into_iter().any(named)
}

/// The production code in a file: unit tests at its end left out.
fn production_code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("readable source");
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("readable source");
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .collect()
}

fn offences(files: &[PathBuf], banned: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files {
        for (number, line) in code_lines(path) {
            for word in banned.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{number}: `{word}` does not belong here", path.display()));
            }
        }
    }
    found
}

/// The files of a room: `name.rs`, and the folder beside it.
fn room(name: &str) -> Vec<PathBuf> {
    let source = root().join("runtime/src");
    let face = source.join(format!("{name}.rs"));
    let inside = source.join(name);
    let mut files = if inside.is_dir() { rust_files(&inside) } else { Vec::new() };
    files.extend(face.is_file().then_some(face));
    assert!(!files.is_empty(), "there is no room {name}");
    files
}

#[test]
fn rooms_of_the_runtime_name_only_the_rooms_below() {
    let mut found = Vec::new();
    for (name, below) in ROOMS {
        for path in room(name).into_iter().filter(|path| is_production(path)) {
            let code = production_code(&path);
            let named = code.lines().filter_map(|line| line.split("//").next()?.split("crate::").nth(1));
            for named in named {
                let named: String = named.chars().take_while(|&c| c == '_' || c.is_alphanumeric()).collect();
                if named != *name && !below.contains(&named.as_str()) {
                    found.push(format!("{}: `crate::{named}` does not belong here", path.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn rooms_that_compute_know_no_network() {
    let found: Vec<_> = PURE.iter().flat_map(|name| offences(&room(name), NETWORK)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    let found = offences(&room("net"), &["swarmline_kernels"]);
    assert!(found.is_empty(), "tensors do not belong here\n{}", found.join("\n"));
}

#[test]
fn wire_types_stay_with_the_network_and_the_coordinator() {
    let source = root().join("runtime/src");
    let allowed = ["net", "coordinator"].map(room).concat();
    let files: Vec<_> = rust_files(&source).into_iter().filter(|path| !allowed.contains(path)).collect();
    let found = offences(&files, &["swarmline_proto"]);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn crates_do_not_know_each_other() {
    for (name, banned) in CRATES {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("readable manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for word in *banned {
            let known = dependencies
                .lines()
                .any(|line| line.starts_with(&format!("{word}.")) || line.starts_with(&format!("{word} ")));
            assert!(!known, "{name}/Cargo.toml must not depend on {word}");
        }
    }
}

#[test]
fn no_module_is_a_grab_bag() {
    for path in rust_files(&root()) {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder =
            path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        assert!(
            !GRAB_BAGS.contains(&stem) && !GRAB_BAGS.contains(&folder),
            "{}: name the module after its content",
            path.display()
        );
    }
}

#[test]
fn sockets_are_opened_in_few_places_all_of_which_speak_tls() {
    let source = root().join("runtime/src");
    let tls = [
        "net/grpc/connect.rs",
        "net/grpc/incoming.rs",
        "net/grpc.rs",
        "net/quic.rs",
        "coordinator.rs",
        "coordinator/opened.rs",
    ];
    let tests = |path: &Path| path.file_name().is_some_and(|name| name == "tests.rs");
    let files: Vec<_> = rust_files(&source)
        .into_iter()
        .filter(|path| !tests(path) && !tls.iter().any(|file| path.ends_with(file)))
        .collect();
    let found = offences(&files, &["TcpStream", "TcpListener", "UdpSocket::bind", "http://", "Endpoint::"]);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn leftovers_are_not_committed() {
    let banned = ["todo!(", "unimplemented!(", "dbg!("];
    let files: Vec<_> =
        rust_files(&root()).into_iter().filter(|path| !path.ends_with("tests/tidy.rs")).collect();
    let found = offences(&files, &banned);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn words_that_hide_the_actor_are_not_written() {
    let mut found = Vec::new();
    for path in files(&root()).iter().filter(|path| !path.ends_with("tests/tidy.rs")) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        for (index, line) in text.lines().enumerate() {
            let line = line.to_lowercase().replace('_', " ");
            for word in BANNED_WORDS.iter().filter(|word| holds_word(&line, word)) {
                found.push(format!("{}:{}: name the actor, not `{word}`", path.display(), index + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn holds_word(line: &str, word: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    line.match_indices(word).any(|(at, _)| {
        !is_letter(line[..at].chars().next_back()) && !is_letter(line[at + word.len()..].chars().next())
    })
}

/// `cargo test --release --test tidy short -- --nocapture` prints the figures.
#[test]
fn functions_are_short_and_files_own_one_idea() {
    let rooms = ["proto", "scheduler", "kernels", "runtime", "examples"];
    let production: Vec<_> = rooms
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .filter(|path| is_production(path))
        .collect();
    let long: Vec<_> = production.iter().filter(|path| lines_of(path) > FILE_LINES_MAX).collect();
    let mut functions: Vec<_> =
        production.iter().flat_map(|path| function_lengths(&production_code(path))).collect();
    functions.sort_unstable();
    let short = functions.partition_point(|&lines| lines < SHORT_FUNCTION_LINES);
    let share = 100.0 * short as f64 / functions.len() as f64;
    println!(
        "{} files of production code, {} over {FILE_LINES_MAX} lines; {} functions, median {} lines, {share:.2} % \
         under {SHORT_FUNCTION_LINES}, the longest {}",
        production.len(),
        long.len(),
        functions.len(),
        functions[functions.len() / 2],
        functions[functions.len() - 1],
    );
    assert!(long.is_empty(), "over {FILE_LINES_MAX} lines: {long:?}");
    assert!(share >= 99.9, "only {share:.2} % of the functions are under {SHORT_FUNCTION_LINES} lines");
}

fn lines_of(path: &Path) -> usize {
    fs::read_to_string(path).expect("readable source").lines().count()
}

/// Lines of each function with a body, signature and closing brace included. Formatted code closes a function with a
/// brace in the column where it began.
fn function_lengths(code: &str) -> Vec<usize> {
    let lines: Vec<&str> = code.lines().collect();
    let starts = (0..lines.len()).filter(|&start| starts_function(lines[start]));
    starts.filter_map(|start| function_length(&lines[start..])).collect()
}

fn function_length(lines: &[&str]) -> Option<usize> {
    let signature = lines.iter().find(|line| line.ends_with(['{', '}', ';']))?;
    if signature.ends_with(';') {
        return None;
    }
    if signature.ends_with('}') {
        return Some(1);
    }
    let column = lines[0].len() - lines[0].trim_start().len();
    let closing = format!("{}}}", " ".repeat(column));
    Some(lines.iter().position(|line| *line == closing)? + 1)
}

fn starts_function(line: &str) -> bool {
    let is_qualifier = |word: &str| {
        word.starts_with("pub")
            || ["const", "async", "unsafe", "extern", "\"C\"", "crate::net)"].contains(&word)
    };
    line.split_whitespace().find(|word| !is_qualifier(word)) == Some("fn")
}
