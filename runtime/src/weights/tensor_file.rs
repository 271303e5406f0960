//! A safetensors file on disk, read a tensor at a time. The file is not trusted.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::WeightsError;

/// Limit of a header, bytes: that of the format.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Bytes of the length in front of the header.
const LENGTH_BYTES: u64 = 8;

/// An open safetensors file: its header, and its tensors on request.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Offset of the first tensor in the file.
    data: u64,
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, is no safetensors file, or is cut off.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut file = File::open(path).map_err(WeightsError::file("open", path))?;
        let length = file.metadata().map_err(WeightsError::file("read", path))?.len();
        let bytes = read_header(&mut file, length).map_err(|problem| broken(path, &problem))?;
        let header: Metadata =
            serde_json::from_slice(&bytes).map_err(|error| broken(path, &error.to_string()))?;
        let data = LENGTH_BYTES + bytes.len() as u64;
        if data.checked_add(header.data_len() as u64) != Some(length) {
            let promised = data.saturating_add(header.data_len() as u64);
            return Err(broken(path, &format!("it has {length} bytes where its header promises {promised}")));
        }
        Ok(Self { path: path.to_owned(), file, header, data })
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in their order in the file.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Size of each axis of a tensor; `None` if the file does not have it.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// The numbers of a tensor, row-major, from f32, bf16 or f16. Every number is finite.
    ///
    /// # Errors
    /// The file does not have the tensor, or has it in another type or with a number that is not finite.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let Some(info) = self.header.info(name) else {
            return Err(broken(&self.path, &format!("it has no tensor {name}")));
        };
        let (start, end) = info.data_offsets;
        let dtype = info.dtype;
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(WeightsError::file("read", &self.path))?;
        let Some(numbers) = numbers(dtype, &bytes) else {
            let problem = format!("{name} is {dtype}, not F32, BF16 or F16");
            return Err(WeightsError::unusable(&self.path, problem, "Convert the weights to one of them"));
        };
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(numbers),
            false => Err(not_finite(&self.path, name)),
        }
    }
}

fn read_header(file: &mut File, length: u64) -> Result<Vec<u8>, String> {
    let mut size = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut size).map_err(|error| error.to_string())?;
    let size = u64::from_le_bytes(size);
    if size > HEADER_BYTES_MAX || size > length - LENGTH_BYTES {
        return Err(format!("its header would have {size} bytes"));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter().copied();
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect()),
        Dtype::BF16 => Some(halves().map(|half| bf16::from_le_bytes(half).to_f32()).collect()),
        Dtype::F16 => Some(halves().map(|half| f16::from_le_bytes(half).to_f32()).collect()),
        _ => None,
    }
}

fn broken(path: &Path, problem: &str) -> WeightsError {
    let problem = format!("not a whole safetensors file: {problem}");
    WeightsError::unusable(path, problem, "Copy it again from its source, or save it again")
}

fn not_finite(path: &Path, name: &str) -> WeightsError {
    let problem = format!("{name} holds a number that is not finite: its training had diverged");
    WeightsError::unusable(path, problem, "Use weights that were saved before")
}
