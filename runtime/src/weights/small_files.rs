//! The small files beside the tensors, read and written whole.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::WeightsError;
use crate::atomic_file;

/// Limit of a file that is read, bytes.
const BYTES_MAX: u64 = 64 << 20;

/// The bytes of a JSON file; what is beyond [`BYTES_MAX`] is cut off.
pub(super) fn read_json(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes))
        .map_err(WeightsError::file("read", path))?;
    Ok(bytes)
}

/// Writes `value` as indented JSON.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<(), WeightsError> {
    write_bytes(path, format!("{value:#}\n").as_bytes())
}

/// Writes a file, whole or not at all.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    atomic_file::write(path, bytes).map_err(WeightsError::file("write", path))
}
