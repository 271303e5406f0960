//! Reads the fixtures of PyTorch's tensors, and compares tensors with them.

use std::path::Path;

use safetensors::SafeTensors;

/// Relative to the folder of the package, where cargo starts tests. The folder known at compile time is no use:
/// checkouts that share a target folder share test binaries.
const FIXTURES: &str = "../tests/fixtures";

/// The bytes of one fixture file.
pub(crate) struct Fixture {
    bytes: Vec<u8>,
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let path = Path::new(FIXTURES).join(name).with_extension("safetensors");
        Self { bytes: std::fs::read(path).unwrap() }
    }

    /// Names of all tensors that start with `prefix`, without it, in alphabetical order.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let mut names: Vec<String> =
            tensors.names().iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The entry `config` of the file's metadata.
    pub(crate) fn config(&self) -> serde_json::Value {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let metadata = metadata.metadata().as_ref().unwrap();
        serde_json::from_str(&metadata["config"]).unwrap()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.four_bytes(name).map(f32::from_le_bytes).collect()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<u32> {
        self.four_bytes(name).map(u32::from_le_bytes).collect()
    }

    fn four_bytes(&self, name: &str) -> impl Iterator<Item = [u8; 4]> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let bytes = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}")).data();
        bytes.chunks_exact(4).map(|four| four.try_into().unwrap())
    }
}

/// `|found - expected|` as a share of `|expected|`, both as Euclidean norms over the whole tensor.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |squares: f64| squares.sqrt();
    let difference = norm(found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum());
    difference / norm(expected.iter().map(|b| f64::from(*b).powi(2)).sum())
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative_error(found, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.1e} is above {tolerance:.0e}");
}
