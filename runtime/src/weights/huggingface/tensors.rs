//! The safetensors files of a folder: one, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use half::bf16;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{INDEX, WEIGHTS};
use crate::weights::small_files::{read_json, write_json};
use crate::weights::{DenseParameter, Weights, WeightsError, dense_parameters};

/// Type of the numbers in an exported folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// 4 bytes a number, exact.
    #[default]
    F32,
    /// 2 bytes a number, rounded to nearest.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    fn header_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    fn write(self, out: &mut impl Write, numbers: &[f32]) -> io::Result<()> {
        numbers.iter().try_for_each(|&number| match self {
            Self::F32 => out.write_all(&number.to_le_bytes()),
            Self::Bf16 => out.write_all(&bf16::from_f32(number).to_le_bytes()),
        })
    }
}

/// `model.safetensors.index.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    metadata: Value,
    weight_map: BTreeMap<String, String>,
}

/// Names of the files in an index; `None` without one.
pub(super) fn read_index(path: &Path) -> Result<Option<Vec<String>>, WeightsError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bad =
        |problem: String| WeightsError::unusable(path, problem, "Copy the folder again from its source");
    let index: Index = serde_json::from_slice(&read_json(path)?)
        .map_err(|error| bad(format!("not an index of safetensors files: {error}")))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    match names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        Some(name) => Err(bad(format!("{name:?} is no name of a file beside it"))),
        None => Ok(Some(names.into_iter().collect())),
    }
}

/// Writes all parameters of `weights` into `folder`, each file with tensors of `file_bytes_max` bytes at most, or with
/// one tensor. Returns the bytes of all tensors.
pub(super) fn write(
    folder: &Path,
    weights: &mut dyn Weights,
    dtype: Dtype,
    file_bytes_max: u64,
) -> Result<u64, WeightsError> {
    let parameters = dense_parameters(weights.model());
    let cuts = cuts(&parameters, dtype, file_bytes_max);
    let mut weight_map = BTreeMap::new();
    for (number, range) in cuts.iter().enumerate() {
        let name = match cuts.len() {
            1 => WEIGHTS.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let part = &parameters[range.clone()];
        write_file(&folder.join(&name), part, weights, dtype)?;
        weight_map.extend(part.iter().map(|parameter| (parameter.hugging_face.clone(), name.clone())));
    }
    let total = parameters.iter().map(|parameter| bytes_of(parameter, dtype)).sum();
    if cuts.len() > 1 {
        let index = Index { metadata: json!({ "total_size": total }), weight_map };
        write_json(&folder.join(INDEX), &json!(index))?;
    }
    Ok(total)
}

/// Consecutive parameters for each file.
fn cuts(parameters: &[DenseParameter], dtype: Dtype, file_bytes_max: u64) -> Vec<Range<usize>> {
    let (mut cuts, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, parameter) in parameters.iter().enumerate() {
        let more = bytes_of(parameter, dtype);
        if index > start && bytes + more > file_bytes_max {
            cuts.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += more;
    }
    cuts.push(start..parameters.len());
    cuts
}

fn bytes_of(parameter: &DenseParameter, dtype: Dtype) -> u64 {
    parameter.numbers() as u64 * dtype.bytes()
}

fn write_file(
    path: &Path,
    parameters: &[DenseParameter],
    weights: &mut dyn Weights,
    dtype: Dtype,
) -> Result<(), WeightsError> {
    let failed = || WeightsError::file("write", path);
    let file = File::create(path).map_err(failed())?;
    let mut out = BufWriter::new(file);
    out.write_all(&header(parameters, dtype)).map_err(failed())?;
    for parameter in parameters {
        let numbers = weights.read(&parameter.name)?;
        dtype.write(&mut out, &numbers).map_err(failed())?;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?;
    file.sync_all().map_err(failed())
}

/// Length, then JSON padded to 8 bytes. `transformers` reads no file without the note of its format.
fn header(parameters: &[DenseParameter], dtype: Dtype) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut offset = 0;
    for parameter in parameters {
        let end = offset + bytes_of(parameter, dtype);
        let entry = json!({
            "dtype": dtype.header_name(), "shape": parameter.shape, "data_offsets": [offset, end],
        });
        entries.insert(parameter.hugging_face.clone(), entry);
        offset = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes
}
