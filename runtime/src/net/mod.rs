//! Bytes between peers: identity, QUIC data plane, gRPC control plane.
//!
//! This module handles bytes, ids and messages, and does not know tensors or models. Both planes speak TLS 1.3 between
//! ed25519 keys; there is no plaintext mode.

pub mod address;
pub mod control;
pub mod digest;
pub mod frame;
pub mod grpc;
pub mod held_out;
pub mod identity;
pub mod membership;
pub mod quic;
mod table_digest;
pub mod table_log;
mod tls;
pub mod trust;
pub mod wire;

pub use address::Invite;
pub use identity::Identity;
pub use tls::TlsError;
