//! The weights of a whole model on disk: checkpoints, what a training saves, and Hugging Face folders.
//!
//! All are read as the model in one piece, [`Weights`]: `embed`, `layers.0.attention.wq`, ..., `norm`, `head`, every
//! matrix `[out, in]`. [`SavedRun`] lifts the constrained weights of a subspace on the way, so the model computes what
//! the stages of the run compute, up to the packing at their cuts. [`HuggingFace`] is a folder that `transformers`
//! loads as a `LlamaForCausalLM`. Both rotate half-split pairs, so no row of a matrix moves between the two.

mod dense;
mod error;
pub mod huggingface;
mod saved;
mod small_files;
mod tensor_file;
mod tensor_files;

use crate::config::Model;

pub use dense::{DenseParameter, dense_parameters};
pub use error::WeightsError;
pub use huggingface::HuggingFace;
pub use saved::{SavedRun, StatedLoss, Summary};
pub use tensor_file::TensorFile;
use tensor_files::TensorFiles;

/// The weights of a model in one piece, read a parameter at a time.
pub trait Weights {
    /// Sizes of the model.
    fn model(&self) -> &Model;

    /// A parameter of [`dense_parameters`], row-major. Every number is finite.
    ///
    /// # Errors
    /// The parameter is missing, cannot be read, or holds a number that is not finite.
    fn read(&mut self, name: &str) -> Result<Vec<f32>, WeightsError>;
}

#[cfg(test)]
mod tests;
