//! Checks the sources for rules of ARCHITECTURE.md that no compiler guards.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// A layer inside `runtime/src` and the words its files must not contain outside comments.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage"]),
    ("subspace.rs", &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage"]),
    ("packing.rs", &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage"]),
    (
        "optim",
        &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage", "crate::model"],
    ),
    (
        "averaging",
        &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage", "crate::model"],
    ),
    (
        "data",
        &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage", "crate::model"],
    ),
    (
        "config",
        &["tokio::", "quinn::", "tonic::", "swarmline_proto", "crate::net", "crate::stage", "crate::model"],
    ),
    ("net", &["swarmline_kernels", "crate::model", "crate::optim", "crate::subspace", "crate::stage"]),
];

/// The crates that each crate must not depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("proto", &["swarmline-scheduler", "swarmline-kernels"]),
    ("scheduler", &["swarmline-proto", "swarmline-kernels", "tokio", "rand", "getrandom"]),
    ("kernels", &["swarmline-proto", "swarmline-scheduler", "tokio"]),
];

/// Names that do not describe a module's content.
const GRAB_BAGS: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

/// The workspace, relative to the folder of this package, where cargo starts tests. The folder known at compile time is
/// no use: checkouts that share a target folder share test binaries.
fn root() -> PathBuf {
    PathBuf::from("..")
}

fn rust_files(under: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = WalkDir::new(under)
        .into_iter()
        .filter_entry(|entry| entry.file_name() != "target" && entry.file_name() != ".git")
        .map(|entry| entry.expect("readable tree").into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    files.sort();
    files
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

#[test]
fn layers_inside_the_runtime_know_only_what_they_may() {
    let source = root().join("runtime/src");
    let found: Vec<_> = LAYERS
        .iter()
        .flat_map(|(layer, banned)| offences(&rust_files(&source.join(layer)), banned))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn conversions_between_wire_and_own_types_live_in_one_file() {
    let source = root().join("runtime/src");
    let allowed = ["net", "coordinator"];
    let files: Vec<_> = rust_files(&source)
        .into_iter()
        .filter(|path| !allowed.iter().any(|folder| path.starts_with(source.join(folder))))
        .collect();
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
    let tls =
        ["net/grpc/connect.rs", "net/grpc/incoming.rs", "net/grpc.rs", "net/quic.rs", "coordinator/mod.rs"];
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
