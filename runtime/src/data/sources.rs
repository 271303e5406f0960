//! Default text of the demo: the sources that cargo has fetched on this machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::DataError;
use super::files::walk;
use crate::config::Data;

/// Limit of the text, bytes.
const SOURCES_BYTES_MAX: usize = 12 << 20;
/// Limit of the text of one crate, bytes, so that no single style of writing fills the text.
const CRATE_BYTES_MAX: usize = 1 << 20;
/// Limit of a file, bytes: larger files are rarely written by hand.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Limit of a line, bytes: longer lines are rarely written by hand; tables have them.
const LINE_BYTES_MAX: usize = 400;
/// Limit of the mean line, bytes: a file above it is a table too.
const MEAN_LINE_BYTES_MAX: usize = 80;
/// Bytes at the start of a file that are searched for the name of a generator.
const HEAD_BYTES: usize = 2 << 10;

/// Hand-written crates that this program is built from, in the order in which they are taken.
const CRATES: &[&str] = &[
    "tokio",
    "quinn-proto",
    "quinn",
    "rustls",
    "hyper",
    "h2",
    "tonic",
    "tower",
    "serde_core",
    "serde",
    "clap_builder",
    "regex-automata",
    "regex-syntax",
    "bytes",
    "tracing",
    "tracing-subscriber",
    "toml_edit",
    "winnow",
    "indexmap",
    "petgraph",
    "rayon",
    "tokenizers",
    "http",
    "futures-util",
    "serde_json",
];

/// Text found on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The files, ready for a run; tokenizer `bytes`, the other fields at their defaults.
    pub data: Data,
    /// Number of files, crates and bytes, and the first bytes of their BLAKE3 digest.
    pub description: String,
}

/// Finds hand-written Rust sources in cargo's registry folder: `$CARGO_HOME`, else `~/.cargo`.
///
/// Takes a fixed list of crates in the versions that this program is built with, so that the text is the same on every
/// machine; without any of them, takes any crates. Generated files, tables and files over 256 KiB are left out. The
/// limits are 1 MiB of a crate and 12 MiB in all.
///
/// # Errors
/// [`DataError::NoSources`] without any text; its message names `--data PATH`.
pub fn find() -> Result<Found, DataError> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    find_in(&home.unwrap_or_else(|| PathBuf::from(".cargo")))
}

/// As [`find`], in the cargo folder `cargo_home`.
///
/// # Errors
/// As [`find`].
pub fn find_in(cargo_home: &Path) -> Result<Found, DataError> {
    let registry = cargo_home.join("registry").join("src");
    let folders = crate_folders(&registry);
    let listed: Vec<PathBuf> = CRATES.iter().filter_map(|name| folder_of(&folders, name)).cloned().collect();
    let mut taken = Taken::default();
    taken.add_all(&listed);
    if taken.paths.is_empty() {
        taken.add_all(&folders);
    }
    if taken.paths.is_empty() {
        return Err(DataError::NoSources { path: registry });
    }
    Ok(taken.into_found())
}

#[derive(Default)]
struct Taken {
    paths: Vec<PathBuf>,
    bytes: usize,
    crates: usize,
    hasher: blake3::Hasher,
}

impl Taken {
    fn add_all(&mut self, folders: &[PathBuf]) {
        for folder in folders {
            let before = self.paths.len();
            self.add_crate(folder);
            self.crates += usize::from(self.paths.len() > before);
        }
    }

    fn add_crate(&mut self, folder: &Path) {
        let room = SOURCES_BYTES_MAX.min(self.bytes + CRATE_BYTES_MAX);
        // A file that cannot be read is left out: the run does not name it.
        for entry in walk(&folder.join("src")).flatten() {
            let path = entry.path();
            let is_small = entry.metadata().is_ok_and(|data| data.len() <= FILE_BYTES_MAX);
            if !is_small || !is_rust(path) || has_generated_name(path) {
                continue;
            }
            let Ok(text) = fs::read_to_string(path) else { continue };
            if is_hand_written(&text) && self.bytes + text.len() <= room {
                self.hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
                self.bytes += text.len();
                self.paths.push(path.to_owned());
            }
        }
    }

    fn into_found(self) -> Found {
        let description = format!(
            "{} hand-written Rust files of {} crates that cargo fetched, {:.1} MB, digest {}",
            self.paths.len(),
            self.crates,
            self.bytes as f64 / 1e6,
            &self.hasher.finalize().to_hex()[..16],
        );
        let data = Data::of(self.paths);
        Found { data, description }
    }
}

/// Folders of all crates of all registries, by name.
fn crate_folders(registry: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut folders: Vec<PathBuf> = below(registry).iter().flat_map(|index| below(index)).collect();
    folders.sort_by(|a, b| a.file_name().cmp(&b.file_name()).then(a.cmp(b)));
    folders
}

/// The folder of the crate in the version of our lock file.
fn folder_of<'f>(folders: &'f [PathBuf], name: &str) -> Option<&'f PathBuf> {
    let versions = locked_versions(name);
    let is_it = |folder: &&PathBuf| {
        let folder = folder.file_name().unwrap_or_default().to_string_lossy();
        folder
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|v| versions.contains(&v))
    };
    folders.iter().find(is_it)
}

fn locked_versions(name: &str) -> Vec<&'static str> {
    const LOCK: &str = include_str!("../../../Cargo.lock");
    let package = |entry: &'static str| {
        let value =
            |key: &str| entry.lines().find_map(|line| line.strip_prefix(key)?.trim_matches('"').into());
        let (found, version): (Option<&str>, Option<&'static str>) = (value("name = "), value("version = "));
        version.filter(|_| found == Some(name))
    };
    LOCK.split("[[package]]").filter_map(package).collect()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn has_generated_name(path: &Path) -> bool {
    const MARKS: &[&str] = &["generated", "bindgen", "bindings", "unicode_tables"];
    path.components().any(|part| MARKS.iter().any(|mark| part.as_os_str().to_string_lossy().contains(mark)))
}

fn is_hand_written(text: &str) -> bool {
    const MARKS: &[&str] =
        &["@generated", "bindgen", "do not edit", "generated by", "automatically generated"];
    let head = String::from_utf8_lossy(&text.as_bytes()[..text.len().min(HEAD_BYTES)]).to_lowercase();
    let lines = text.lines().count();
    let longest = text.lines().map(str::len).max().unwrap_or(0);
    !text.trim().is_empty()
        && longest <= LINE_BYTES_MAX
        && text.len() <= lines * MEAN_LINE_BYTES_MAX
        && !MARKS.iter().any(|mark| head.contains(mark))
}
