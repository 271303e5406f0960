//! What the product costs on this machine, beside what the machine could do and what others do with it.
//!
//! [`kernels`] measures one stage that holds a whole model. Machines are shared and noisy, so every figure is a
//! ratio of two things measured in one call: operations are held against the peaks of this machine
//! ([`Peaks`]), the whole step ([`step`]) against PyTorch's, run in turn ([`contest`]). Every measurement is
//! bounded in count and in time.

pub mod contest;
pub mod flops;
pub mod kernels;
mod machine;
mod operations;
mod peaks;
mod process;
mod profile;
mod size;
pub mod statistics;
pub mod step;
mod table;
mod timing;
mod torch;

pub use machine::Machine;
pub use operations::{OperationReport, Work};
pub use peaks::Peaks;
pub use profile::Profile;
pub use size::Size;
pub use torch::{Mode, Peer, PeerError};
