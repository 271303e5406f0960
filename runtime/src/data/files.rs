//! The text files that a run names, read and normalised.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::DataError;
use crate::config::Data;

/// Limit of text in memory, bytes.
const TEXT_BYTES_MAX: u64 = 8 << 30;
/// A file with more than one invalid byte in every 10 is not text.
const BYTES_PER_INVALID_MIN: usize = 10;

/// A file of text.
#[derive(Debug)]
pub(super) struct TextFile {
    pub(super) path: PathBuf,
    /// Without byte order mark; each line ends with `\n`, the last one too.
    pub(super) text: Vec<u8>,
}

/// The text files that were read.
#[derive(Debug, Default)]
pub(super) struct TextFiles {
    pub(super) files: Vec<TextFile>,
    /// Number of binary files inside directories that were skipped.
    pub(super) skipped: usize,
    bytes: u64,
    /// Paths read so far: a run may name a file twice, directly and by its directory.
    seen: BTreeSet<PathBuf>,
}

impl TextFiles {
    /// Reads `data.paths`, relative to `base`, in the order given and by name within a directory. Links inside
    /// directories and names that begin with a dot are skipped.
    pub(super) fn read(data: &Data, base: &Path) -> Result<Self, DataError> {
        let mut found = Self::default();
        for path in &data.paths {
            let path = base.join(path);
            let kind = fs::metadata(&path).map_err(|cause| unreadable(&path, cause))?;
            if kind.is_dir() {
                found.add_directory(&path, &data.extensions)?;
            } else if kind.is_file() {
                found.add_named(path)?;
            } else {
                return Err(DataError::NotAFile { path });
            }
        }
        Ok(found)
    }

    fn add_named(&mut self, path: PathBuf) -> Result<(), DataError> {
        let bytes = self.take(&path)?;
        if let Some(reason) = why_binary(&bytes) {
            return Err(DataError::Binary { path, reason });
        }
        let text = normalised(&bytes);
        if text.is_empty() {
            return Err(DataError::Empty { path });
        }
        self.push(path, text);
        Ok(())
    }

    fn add_directory(&mut self, root: &Path, extensions: &[String]) -> Result<(), DataError> {
        let (mut others, mut empty, mut usable, skipped_before) = (0, 0, 0, self.skipped);
        for entry in walk(root) {
            let path = entry.map_err(|error| walk_error(root, error))?.into_path();
            if !has_extension(&path, extensions) {
                others += 1;
                continue;
            }
            let bytes = self.take(&path)?;
            if why_binary(&bytes).is_some() {
                self.skipped += 1;
                continue;
            }
            let text = normalised(&bytes);
            if text.is_empty() {
                empty += 1;
            } else {
                usable += 1;
                self.push(path, text);
            }
        }
        if usable > 0 {
            return Ok(());
        }
        let binary = self.skipped - skipped_before;
        let wanted = if extensions.is_empty() { "any ending".to_owned() } else { extensions.join(", ") };
        let found = format!("looked for {wanted}; {others} other, {binary} binary and {empty} empty files");
        Err(DataError::NoFiles { path: root.to_owned(), found })
    }

    fn take(&mut self, path: &Path) -> Result<Vec<u8>, DataError> {
        let size = fs::metadata(path).map_err(|cause| unreadable(path, cause))?.len();
        if self.bytes.saturating_add(size) > TEXT_BYTES_MAX {
            return Err(DataError::TooMuchText { limit_bytes: TEXT_BYTES_MAX });
        }
        let bytes = fs::read(path).map_err(|cause| unreadable(path, cause))?;
        self.bytes += bytes.len() as u64;
        Ok(bytes)
    }

    fn push(&mut self, path: PathBuf, text: Vec<u8>) {
        if self.seen.insert(path.clone()) {
            self.files.push(TextFile { path, text });
        }
    }
}

/// Regular files below `root`, by name.
pub(super) fn walk(root: &Path) -> impl Iterator<Item = Result<DirEntry, walkdir::Error>> {
    let visible =
        |entry: &DirEntry| entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.');
    let walk = WalkDir::new(root).follow_links(false).sort_by_file_name().into_iter().filter_entry(visible);
    walk.filter(|entry| entry.as_ref().map_or(true, |entry| entry.file_type().is_file()))
}

fn has_extension(path: &Path, extensions: &[String]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // By the end of the name, so that "rst.txt" works.
    let ends = |ending: &String| name.strip_suffix(ending.as_str()).is_some_and(|rest| rest.ends_with('.'));
    extensions.is_empty() || extensions.iter().any(ends)
}

fn why_binary(bytes: &[u8]) -> Option<&'static str> {
    if bytes.contains(&0) {
        return Some("it contains NUL bytes");
    }
    let invalid: usize = bytes.utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
    (invalid > bytes.len() / BYTES_PER_INVALID_MIN).then_some("most of it is not UTF-8")
}

fn normalised(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut text: Vec<u8> = Vec::with_capacity(bytes.len() + 1);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(line) => text.extend_from_slice(line),
            None => text.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line)),
        }
        text.push(b'\n');
    }
    if text.iter().all(u8::is_ascii_whitespace) { Vec::new() } else { text }
}

fn walk_error(root: &Path, error: walkdir::Error) -> DataError {
    let path = error.path().unwrap_or(root).to_owned();
    let cause = error.into_io_error().unwrap_or_else(|| io::Error::other("a loop of links"));
    DataError::Unreadable { path, cause }
}

fn unreadable(path: &Path, cause: io::Error) -> DataError {
    let path = path.to_owned();
    if cause.kind() == io::ErrorKind::NotFound {
        DataError::NotFound { path }
    } else {
        DataError::Unreadable { path, cause }
    }
}
