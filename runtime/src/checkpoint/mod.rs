//! Checkpoints of a run: the states of its stages and what it takes to go on from them, in a local folder or a bucket.
//!
//! A checkpoint is a folder `checkpoint-<microbatches, 12 digits>/`. It has one safetensors file a stage, exactly the
//! bytes that joiners download: weights, both moments and the counters of the optimizer. It may have the tokenizer, and
//! its `manifest.json` names every other file with length and digest. The manifest is written last: a folder without it
//! is no checkpoint. The names of stage files contain digests, so two writers of one folder mix nothing.
//!
//! A stage file is the state between two optimizer steps of one replica. It has no gradients: where a step takes several
//! contributions (`gradient_accumulation_steps`), those that waited for the rest of their step when the state was copied
//! are not in it, although their microbatches had their outcome. A run that goes on from the checkpoint lacks up to
//! `gradient_accumulation_steps - 1` contributions of each replica of the stage. The checkpoint of a
//! finished run lacks none: its replicas have stepped with what they had accumulated.

mod error;
mod manifest;
mod place;
mod reading;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use error::{CheckpointError, Fault};
pub use manifest::{BlockCursor, FORMAT, Manifest, StageFile, TokenizerFile};
pub use reading::{Checkpoint, LocalCheckpoint};
pub use store::{Found, Lock, Store};
pub use writer::Writer;
