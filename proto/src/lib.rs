//! The wire contract of swarmline: protobuf messages and the gRPC service, no behaviour.
//!
//! The `.proto` files are the specification. The code under `gen` is generated from them and committed, so that a build
//! needs no protobuf compiler; `tests/generated.rs` fails when the two differ.

/// Version 1 of the contract.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::semicolon_if_nothing_returned,
    clippy::redundant_closure_for_method_calls
)]
#[rustfmt::skip]
pub mod v1 {
    include!("gen/swarmline.v1.rs");
}

/// Version of the protocol of this code; peers must have the same version.
pub const PROTOCOL_VERSION: u32 = 8;
