//! Failures of a device.

use crate::packing::PackingError;
use crate::report::Unavailable;

/// The outcome of a backend operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of making a backend and of operations. A wrong shape is a programming error and panics instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device has less free memory than a buffer needs.
    #[error("out of device memory: {needed} bytes needed, {free} bytes free")]
    OutOfMemory {
        /// Bytes of the buffer.
        needed: usize,
        /// Bytes free on the device; 0 if the driver does not say.
        free: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The first such id.
        id: u32,
        /// Entries of the vocabulary; ids are below it.
        vocab: usize,
    },
    /// A packed tensor cannot be read or written.
    #[error(transparent)]
    Packing(#[from] PackingError),
    /// The requested device cannot be used.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The driver, a kernel or the operating system failed, or a size or setting is refused; the text has the details.
    #[error("device error: {0}")]
    Device(String),
}
