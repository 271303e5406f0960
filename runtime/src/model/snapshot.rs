//! Tensors as safetensors bytes. Bytes from outside are not trusted.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use crate::model::ParameterLog;

/// Named f32 tensors and a map of notes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Notes of the writer, e.g. the weight version.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the writer's order.
    pub tensors: Vec<SnapshotTensor>,
}

/// One tensor of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotTensor {
    /// Global name.
    pub name: String,
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Row-major; their number is the product of `shape`.
    pub values: Vec<f32>,
}

/// Reasons why a snapshot cannot be written, read or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The bytes are not a safetensors file.
    #[error("not a readable safetensors file: {0}")]
    Malformed(String),
    /// A tensor is not f32.
    #[error("tensor {name} is {dtype}, not F32")]
    NotF32 {
        /// Name of the tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor of the snapshot is no parameter of this shard.
    #[error("{name} is no parameter of this shard")]
    Foreign {
        /// Name of the tensor.
        name: String,
    },
    /// A parameter of this shard is not in the snapshot.
    #[error("parameter {name} is missing")]
    Missing {
        /// Global name of the parameter.
        name: String,
    },
    /// A tensor does not have the shape of the parameter.
    #[error("parameter {name} has shape {found:?} where the run demands {expected:?}")]
    Shape {
        /// Global name of the parameter.
        name: String,
        /// Shape the run demands.
        expected: Vec<usize>,
        /// Shape in the snapshot.
        found: Vec<usize>,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("parameter {name} holds a number that is not finite")]
    NonFinite {
        /// Global name of the parameter.
        name: String,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] swarmline_kernels::Error),
}

impl Snapshot {
    /// The snapshot as a safetensors file. Equal snapshots give equal bytes, so donors of a state agree on its
    /// hash.
    ///
    /// # Errors
    /// [`SnapshotError::Malformed`] if the header cannot be written.
    pub fn write(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = self.header()?;
        for tensor in &self.tensors {
            bytes.extend(tensor.values.iter().flat_map(|number| number.to_le_bytes()));
        }
        Ok(bytes)
    }

    /// Reads a safetensors file. `log` records every tensor, even one refused later: it has been in this process.
    ///
    /// # Errors
    /// If the bytes are not a safetensors file, or hold a tensor that is not f32.
    pub fn read(bytes: &[u8], log: &mut ParameterLog) -> Result<Self, SnapshotError> {
        let malformed = |error: safetensors::SafeTensorError| SnapshotError::Malformed(error.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
        for (name, view) in file.iter() {
            log.record(name, blake3::hash(view.data()));
        }
        let mut tensors = Vec::with_capacity(file.len());
        for name in header.offset_keys() {
            let view = file.tensor(&name).map_err(malformed)?;
            if view.dtype() != Dtype::F32 {
                return Err(SnapshotError::NotF32 { name, dtype: view.dtype().to_string() });
            }
            let values = view.data().chunks_exact(4).map(little_endian_f32).collect();
            tensors.push(SnapshotTensor { name, shape: view.shape().to_vec(), values });
        }
        let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        Ok(Self { metadata: metadata.collect(), tensors })
    }

    /// Length, then JSON padded to 8 bytes. The `safetensors` crate would write the metadata in the order of a hash
    /// map, which differs in each process.
    fn header(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut entries = BTreeMap::new();
        entries.insert("__metadata__", serde_json::json!(self.metadata));
        let mut offset = 0;
        for tensor in &self.tensors {
            let end = offset + 4 * tensor.values.len();
            let entry = serde_json::json!({
                "dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end],
            });
            entries.insert(&tensor.name, entry);
            offset = end;
        }
        let mut json =
            serde_json::to_vec(&entries).map_err(|error| SnapshotError::Malformed(error.to_string()))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = Vec::with_capacity(8 + json.len() + offset);
        bytes.extend((json.len() as u64).to_le_bytes());
        bytes.extend(json);
        Ok(bytes)
    }
}

fn little_endian_f32(bytes: &[u8]) -> f32 {
    f32::from_bits(bytes.iter().rev().fold(0, |bits, &byte| (bits << 8) | u32::from(byte)))
}
