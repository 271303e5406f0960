//! Weights into a shard and out of it.

use std::collections::BTreeMap;

use swarmline_kernels::Backend;

use super::{Shard, ShardError};
use crate::hashing::digest;
use crate::model::params::value;
use crate::model::{ParameterLog, Params, Snapshot, SnapshotError, SnapshotTensor};

impl<B: Backend> Shard<B> {
    /// The parameters and their gradients.
    #[must_use]
    pub fn params(&self) -> &Params<B> {
        &self.params
    }

    /// Device and parameters, for the optimizer.
    pub fn backend_and_params(&mut self) -> (&mut B, &mut Params<B>) {
        (&mut self.backend, &mut self.params)
    }

    /// Device, parameters and the log, for values from outside (averaging).
    pub fn backend_params_and_log(&mut self) -> (&mut B, &mut Params<B>, &mut ParameterLog) {
        (&mut self.backend, &mut self.params, &mut self.log)
    }

    /// Every parameter value that this shard took or refused.
    #[must_use]
    pub fn parameter_log(&self) -> &ParameterLog {
        &self.log
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn zero_gradients(&mut self) -> Result<(), ShardError> {
        Ok(self.params.zero_gradients(&mut self.backend)?)
    }

    /// The value of a parameter, row-major; `None` if the shard does not have it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&mut self, name: &str) -> Result<Option<Vec<f32>>, ShardError> {
        Ok(self.params.download(&mut self.backend, name)?)
    }

    /// The gradient of a parameter, row-major; `None` if the shard does not have it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download_gradient(&mut self, name: &str) -> Result<Option<Vec<f32>>, ShardError> {
        let Some(parameter) = self.params.get(name) else { return Ok(None) };
        let mut gradient = vec![0.0; parameter.len()];
        self.backend.download(&mut gradient, &parameter.gradient)?;
        Ok(Some(gradient))
    }

    /// Replaces the value of one parameter.
    ///
    /// # Errors
    /// As [`Shard::restore`]; the value is recorded in any case.
    pub fn upload(&mut self, name: &str, values: &[f32]) -> Result<(), SnapshotError> {
        let shape = match self.params.get(name) {
            Some(parameter) if parameter.len() == values.len() => parameter.shape.clone(),
            Some(_) | None => vec![values.len()],
        };
        let tensor = SnapshotTensor { name: name.to_owned(), shape, values: values.to_vec() };
        self.log.record(name, digest(values));
        self.put(&[tensor])
    }

    /// Digest (BLAKE3 of the little-endian f32) of each parameter, in order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn digests(&mut self) -> Result<Vec<(String, blake3::Hash)>, ShardError> {
        Ok(self.params.digests(&mut self.backend)?)
    }

    /// All parameters as a safetensors file.
    ///
    /// # Errors
    /// If the device fails or the file cannot be written.
    pub fn snapshot(&mut self, metadata: BTreeMap<String, String>) -> Result<Vec<u8>, SnapshotError> {
        Snapshot { metadata, tensors: self.tensors()? }.write()
    }

    /// All parameters, in order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn tensors(&mut self) -> Result<Vec<SnapshotTensor>, SnapshotError> {
        let count = self.params.iter().count();
        (0..count).filter_map(|index| self.tensor(index).transpose()).map(|tensor| Ok(tensor?)).collect()
    }

    /// One parameter, by number; `None` beyond the last.
    ///
    /// # Errors
    /// If the device fails.
    pub fn tensor(&mut self, index: usize) -> swarmline_kernels::Result<Option<SnapshotTensor>> {
        let Some(parameter) = self.params.iter().nth(index) else { return Ok(None) };
        let values = value(&mut self.backend, parameter)?;
        Ok(Some(SnapshotTensor { name: parameter.name.clone(), shape: parameter.shape.clone(), values }))
    }

    /// Replaces all parameters by those of a safetensors file; returns its metadata. The log records every tensor of
    /// the file, even if it is refused.
    ///
    /// # Errors
    /// If the file cannot be read, names a parameter the shard does not have, misses one, or holds one in
    /// another shape or with a number that is not finite. No parameter has changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<BTreeMap<String, String>, SnapshotError> {
        let snapshot = self.read(bytes)?;
        self.check_all(&snapshot.tensors)?;
        self.put(&snapshot.tensors)?;
        Ok(snapshot.metadata)
    }

    /// Reads a safetensors file and records its tensors in the log; the weights stay.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        Snapshot::read(bytes, &mut self.log)
    }

    /// Replaces all parameters by `tensors`, which [`Shard::read`] gave.
    ///
    /// # Errors
    /// As [`Shard::restore`].
    pub fn replace(&mut self, tensors: &[SnapshotTensor]) -> Result<(), SnapshotError> {
        self.check_all(tensors)?;
        self.put(tensors)
    }

    /// Checks whether [`Shard::replace`] would take `tensors`.
    ///
    /// # Errors
    /// As [`Shard::restore`].
    pub fn check_all(&self, tensors: &[SnapshotTensor]) -> Result<(), SnapshotError> {
        // A foreign tensor is reported first: it explains more than a missing parameter.
        self.check(tensors)?;
        let has = |name: &str| tensors.iter().any(|tensor| tensor.name == name);
        match self.params.iter().find(|parameter| !has(&parameter.name)) {
            Some(missing) => Err(SnapshotError::Missing { name: missing.name.clone() }),
            None => Ok(()),
        }
    }

    /// Puts foreign values into weights; the caller has recorded them.
    fn put(&mut self, tensors: &[SnapshotTensor]) -> Result<(), SnapshotError> {
        self.check(tensors)?;
        for tensor in tensors {
            if let Some(parameter) = self.params.get_mut(&tensor.name) {
                self.backend.upload(&mut parameter.weight, &tensor.values)?;
            }
        }
        Ok(())
    }

    fn check(&self, tensors: &[SnapshotTensor]) -> Result<(), SnapshotError> {
        tensors.iter().try_for_each(|tensor| {
            let name = tensor.name.clone();
            match self.params.get(&name) {
                None => Err(SnapshotError::Foreign { name }),
                Some(parameter) if parameter.shape != tensor.shape => Err(SnapshotError::Shape {
                    name,
                    expected: parameter.shape.clone(),
                    found: tensor.shape.clone(),
                }),
                Some(_) if !tensor.values.iter().all(|value| value.is_finite()) => {
                    Err(SnapshotError::NonFinite { name })
                }
                Some(_) => Ok(()),
            }
        })
    }
}
