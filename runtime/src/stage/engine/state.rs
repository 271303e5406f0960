//! The complete state of a stage as bytes, which makes a joining replica equal to its donor.
//!
//! The bytes are a safetensors file. Its tensors are the parameters and, for each, `<name>.moment1` and
//! `<name>.moment2`; its metadata are the optimizer's counters, with the bits of each f64 in hexadecimal, so that no
//! number is rounded. Stashes and gradients that wait for the rest of their update are not part of the state.

use std::collections::BTreeMap;

use swarmline_kernels::Backend;
use swarmline_scheduler::{StageIndex, WeightVersion};

use super::Engine;
use super::average::Opened;
use crate::config::Run;
use crate::hashing::TensorHasher;
use crate::model::{ShardError, Snapshot, SnapshotError, SnapshotTensor};
use crate::optim::{Counters, ImportError, NORMS_KEPT, NamedTensor, OptimizerState};

/// Keys of the metadata.
const STEPS: &str = "steps";
const MOMENTUM_PRODUCT: &str = "momentum_product";
const RECENT_NORMS: &str = "recent_norms";
/// Digits of a number as text.
const BITS_DIGITS: usize = 16;
/// Part of the names of both moments, and of no parameter's name.
const MOMENT: &str = ".moment";

/// Limit of the names, shapes and counters, bytes: more than the largest run has.
const HEADER_BYTES_MAX: u64 = 8 << 20;

/// Errors of exporting and importing a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file or a parameter is wrong.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The state of the optimizer is wrong.
    #[error(transparent)]
    Optimizer(#[from] ImportError),
    /// A counter is missing or cannot be read.
    #[error("the state says nothing readable about {0}")]
    Counter(&'static str),
    /// The donor has named another number of optimizer steps.
    #[error("the state says {found} optimizer steps, and its donor has said {named}")]
    Steps {
        /// Steps that the donor has named.
        named: u64,
        /// Steps in the state.
        found: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] swarmline_kernels::Error),
}

/// Limit of the state of a stage, bytes; a longer state is not downloaded.
#[must_use]
pub fn state_bytes_max(run: &Run, stage: StageIndex) -> u64 {
    run.state_bytes(stage).saturating_add(HEADER_BYTES_MAX)
}

/// A copy of the state that is under way, tensor by tensor between jobs: weights, then moments. It is the state at its
/// beginning.
#[derive(Debug)]
pub(super) struct Draft {
    counters: Counters,
    tensors: Vec<SnapshotTensor>,
    is_complete: bool,
}

impl Draft {
    fn into_exported(self) -> Exported {
        let version = WeightVersion(self.counters.steps);
        Exported {
            version,
            state: Snapshot { metadata: write_counters(&self.counters), tensors: self.tensors },
        }
    }
}

/// A copy of a whole state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exported {
    /// Optimizer steps in the state.
    pub(crate) version: WeightVersion,
    state: Snapshot,
}

impl Exported {
    /// The state as a safetensors file. Slow for a long state: not for the executor's thread.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn into_bytes(self) -> Result<Vec<u8>, StateError> {
        Ok(self.state.write()?)
    }
}

impl<B: Backend> Engine<B> {
    /// Weights, moments and counters between two optimizer steps. Equal states have equal bytes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn export_state(&mut self) -> Result<Vec<u8>, StateError> {
        self.begin_export();
        loop {
            if let Some(exported) = self.export_more(usize::MAX)? {
                return exported.into_bytes();
            }
        }
    }

    /// Begins a copy of the state as it is now; [`Engine::export_more`] makes it.
    pub fn begin_export(&mut self) {
        self.draft =
            Some(Draft { counters: self.optimizer.counters(), tensors: Vec::new(), is_complete: false });
    }

    /// Copies `bytes` more bytes of the state, or one tensor if that is longer. Returns the whole copy with its last
    /// tensor; `None` before, and if no copy is under way.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn export_more(&mut self, bytes: usize) -> swarmline_kernels::Result<Option<Exported>> {
        let mut copied = 0;
        while copied < bytes
            && let Some(more) = self.copy_tensor()?
        {
            copied += more;
        }
        Ok(self.draft.take_if(|draft| draft.is_complete).map(Draft::into_exported))
    }

    /// The weights or moments are about to change: what of a copy under way is missing is copied before.
    pub(super) fn complete_export(&mut self) -> swarmline_kernels::Result<()> {
        while self.copy_tensor()?.is_some() {}
        Ok(())
    }

    /// Copies the next tensor of the draft and returns its length in bytes; `None` if there is none to copy.
    fn copy_tensor(&mut self) -> swarmline_kernels::Result<Option<usize>> {
        let Some(draft) = self.draft.as_mut().filter(|draft| !draft.is_complete) else { return Ok(None) };
        let index = draft.tensors.len();
        let tensor = match self.shard.tensor(index)? {
            Some(weight) => Some(weight),
            None => {
                let (backend, params) = self.shard.backend_and_params();
                let moment = index.saturating_sub(params.iter().count());
                let moment = self.optimizer.export_moment(backend, moment)?;
                moment.map(|NamedTensor { name, values }| SnapshotTensor {
                    shape: vec![values.len()],
                    name,
                    values,
                })
            }
        };
        draft.is_complete = tensor.is_none();
        let copied = tensor.as_ref().map(|tensor| size_of_val(&tensor.values[..]));
        draft.tensors.extend(tensor);
        Ok(copied)
    }

    /// Replaces the state by an [`Engine::export_state`] of another replica of the stage, after `version` optimizer
    /// steps; in averaging, this replica is a joiner then. The parameter log records every tensor, even if the state is
    /// refused.
    ///
    /// # Errors
    /// If the bytes are not a state of this stage, are of another version or hold an impossible number; the engine is
    /// unchanged then.
    pub fn import_state(&mut self, bytes: &[u8], version: WeightVersion) -> Result<(), StateError> {
        self.replace_state(bytes, Some(version))?;
        let Opened { backend, learned, averager, .. } = self.opened();
        averager.joined(backend, &learned)?;
        Ok(())
    }

    /// Replaces the state by an [`Engine::export_state`] of this process, or of a checkpoint, of which the `version` is
    /// known. What the replica learns from now on counts in
    /// averaging, as after a fresh start.
    ///
    /// # Errors
    /// As [`Engine::import_state`].
    pub fn restore_state(&mut self, bytes: &[u8], version: Option<WeightVersion>) -> Result<(), StateError> {
        self.replace_state(bytes, version)
    }

    fn replace_state(&mut self, bytes: &[u8], version: Option<WeightVersion>) -> Result<(), StateError> {
        let Snapshot { metadata, tensors } = self.shard.read(bytes)?;
        let counters = read_counters(&metadata)?;
        let (moments, weights): (Vec<_>, Vec<_>) =
            tensors.into_iter().partition(|tensor| tensor.name.contains(MOMENT));
        let named = |tensor: SnapshotTensor| NamedTensor { name: tensor.name, values: tensor.values };
        let state = OptimizerState { counters, tensors: moments.into_iter().map(named).collect() };
        self.shard.check_all(&weights)?;
        self.optimizer.check(&state)?;
        let found = state.counters.steps;
        if let Some(named) = version.filter(|named| named.0 != found) {
            return Err(StateError::Steps { named: named.0, found });
        }
        self.draft = None;
        self.shard.replace(&weights)?;
        let (backend, _) = self.shard.backend_and_params();
        self.optimizer.import(backend, &state)?;
        Ok(())
    }

    /// Digest (BLAKE3) of weights and moments, in order. Counters are left out: replicas of a stage take different
    /// numbers of steps, and still hold equal weights and moments after a cycle of averaging rounds without steps.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_hash(&mut self) -> Result<blake3::Hash, ShardError> {
        let Opened { backend, learned, .. } = self.opened();
        let mut hasher = TensorHasher::default();
        for tensors in &learned.tensors {
            let mut numbers = vec![0.0; tensors.len];
            for tensor in [&*tensors.weight, &*tensors.moment1, &*tensors.moment2] {
                backend.download(&mut numbers, tensor)?;
                hasher.update(&numbers);
            }
        }
        Ok(hasher.finalize())
    }
}

/// Counters as text of one length, so that the numbers of every state of the stage begin at the same byte.
fn write_counters(counters: &Counters) -> BTreeMap<String, String> {
    let norms: Vec<String> = counters.recent_norms.iter().map(|norm| bits(*norm)).collect();
    let (norms, width) = (norms.join(" "), NORMS_KEPT * (BITS_DIGITS + 1));
    BTreeMap::from([
        (STEPS.to_owned(), format!("{:020}", counters.steps)),
        (MOMENTUM_PRODUCT.to_owned(), bits(counters.momentum_product)),
        (RECENT_NORMS.to_owned(), format!("{norms:<width$}")),
    ])
}

/// Reads the counters; the optimizer checks their values.
pub(in crate::stage) fn read_counters(metadata: &BTreeMap<String, String>) -> Result<Counters, StateError> {
    let text = |key: &'static str| metadata.get(key).ok_or(StateError::Counter(key));
    let steps = text(STEPS)?.parse().map_err(|_| StateError::Counter(STEPS))?;
    let momentum_product = from_bits(text(MOMENTUM_PRODUCT)?).ok_or(StateError::Counter(MOMENTUM_PRODUCT))?;
    let norms: Option<Vec<f64>> = text(RECENT_NORMS)?.split_whitespace().map(from_bits).collect();
    let recent_norms = norms.ok_or(StateError::Counter(RECENT_NORMS))?;
    Ok(Counters { steps, momentum_product, recent_norms })
}

fn bits(number: f64) -> String {
    format!("{:0BITS_DIGITS$x}", number.to_bits())
}

fn from_bits(text: &str) -> Option<f64> {
    u64::from_str_radix(text, 16).ok().map(f64::from_bits)
}
