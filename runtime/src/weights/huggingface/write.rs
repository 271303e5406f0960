//! A folder is written aside and renamed, so it is whole or not there.

use std::io;
use std::path::{Path, PathBuf};

use super::{CONFIG, Dtype, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, config, tensors, tokenizer};
use crate::config::Run;
use crate::weights::small_files::{write_bytes, write_json};
use crate::weights::{Weights, WeightsError};

/// Limit of a file with weights, bytes.
const FILE_BYTES_MAX: u64 = 4_000_000_000;

/// Writes `weights` and the tokenizer of `run`, whose paths start from `base`, into `folder`, which is new or empty.
/// Returns the bytes of all tensors.
///
/// # Errors
/// The folder holds files, a parameter cannot be read, or a file cannot be written. Nothing is left behind then.
pub fn write(
    folder: &Path,
    weights: &mut dyn Weights,
    dtype: Dtype,
    run: &Run,
    base: &Path,
) -> Result<u64, WeightsError> {
    write_cut(folder, weights, dtype, run, base, FILE_BYTES_MAX)
}

/// As [`write`], with files of `file_bytes_max` bytes.
pub(crate) fn write_cut(
    folder: &Path,
    weights: &mut dyn Weights,
    dtype: Dtype,
    run: &Run,
    base: &Path,
    file_bytes_max: u64,
) -> Result<u64, WeightsError> {
    refuse_full(folder)?;
    let parent = parent(folder);
    std::fs::create_dir_all(&parent).map_err(WeightsError::file("create the folder", &parent))?;
    let aside = aside(&parent)?;
    let bytes = tensors::write(aside.path(), weights, dtype, file_bytes_max)?;
    let at = |name: &str| aside.path().join(name);
    let model = weights.model();
    write_json(&at(CONFIG), &config::config(model, dtype))?;
    write_json(&at(GENERATION_CONFIG), &config::generation_config())?;
    write_bytes(&at(TOKENIZER), &tokenizer::file_of(&run.data.tokenizer, base)?)?;
    write_json(&at(TOKENIZER_CONFIG), &tokenizer::config(model))?;
    std::fs::rename(aside.path(), folder).map_err(WeightsError::file("write the folder", folder))?;
    // It has another name now, so there is nothing to delete.
    let _ = aside.keep();
    Ok(bytes)
}

fn refuse_full(folder: &Path) -> Result<(), WeightsError> {
    let is_full = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(WeightsError::file("open the folder", folder)(error)),
    };
    if is_full {
        let remedy = "Choose another folder, or empty this one";
        return Err(WeightsError::unusable(folder, "the folder is not empty", remedy));
    }
    Ok(())
}

/// The folder that `folder` stands in.
fn parent(folder: &Path) -> PathBuf {
    match folder.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn aside(parent: &Path) -> Result<tempfile::TempDir, WeightsError> {
    use std::os::unix::fs::PermissionsExt as _;
    // As readable as any folder that a person makes; temporary ones are private otherwise.
    let permissions = std::fs::Permissions::from_mode(0o755);
    let made = tempfile::Builder::new().prefix(".export-").permissions(permissions).tempdir_in(parent);
    made.map_err(WeightsError::file("create a folder in", parent))
}
