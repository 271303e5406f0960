//! Several safetensors files, read as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{TensorFile, WeightsError};

/// Open files, and where each tensor is.
#[derive(Debug)]
pub(super) struct TensorFiles {
    files: Vec<TensorFile>,
    /// Position of the file of each tensor.
    places: BTreeMap<String, usize>,
}

impl TensorFiles {
    /// Opens the files of `folder`.
    ///
    /// # Errors
    /// A file cannot be read or is broken, or two have the same tensor.
    pub(super) fn open(
        folder: &Path,
        paths: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self, WeightsError> {
        let files = paths.into_iter().map(|path| TensorFile::open(&path));
        let files: Vec<TensorFile> = files.collect::<Result<_, _>>()?;
        let places = places(folder, &files)?;
        Ok(Self { files, places })
    }

    /// The file that has a tensor.
    pub(super) fn with(&self, name: &str) -> Option<&TensorFile> {
        self.places.get(name).map(|&place| &self.files[place])
    }

    /// The same, to read from.
    pub(super) fn with_mut(&mut self, name: &str) -> Option<&mut TensorFile> {
        self.places.get(name).map(|&place| &mut self.files[place])
    }
}

fn places(folder: &Path, files: &[TensorFile]) -> Result<BTreeMap<String, usize>, WeightsError> {
    let mut places = BTreeMap::new();
    for (place, file) in files.iter().enumerate() {
        for name in file.names() {
            if let Some(other) = places.insert(name.clone(), place) {
                let files = format!("{} and {}", files[other].path().display(), file.path().display());
                let problem = format!("{name} is in {files}");
                let remedy = "Leave one file of each stage or part in the folder";
                return Err(WeightsError::unusable(folder, problem, remedy));
            }
        }
    }
    Ok(places)
}
