//! What can go wrong on a device.

/// Outcome of a backend operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A device could not do what was asked. Wrong shapes are programmer errors and panic instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device has less free memory than a buffer needs.
    #[error("out of device memory: {needed} bytes needed, {free} bytes free")]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes the device still had.
        free: usize,
    },
    /// A token id does not exist in the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The offending id.
        id: u32,
        /// Number of entries of the vocabulary.
        vocab: usize,
    },
    /// A packed tensor cannot be read or written.
    #[error(transparent)]
    Packing(#[from] crate::PackingError),
    /// The device that was asked for cannot be used.
    #[error(transparent)]
    Unavailable(#[from] crate::device::report::Unavailable),
    /// The driver or a kernel failed.
    #[error("device error: {0}")]
    Device(String),
}
