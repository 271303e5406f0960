//! Bytes between peers: identity, QUIC data plane, gRPC control plane.
