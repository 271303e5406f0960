//! Messages of a state on its way to a joining replica.

use bytes::Bytes;
use swarmline_proto::v1;
use swarmline_proto::v1::frame::Message as Wire;
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::transfer::{Manifest, StateId, TransferMessage};

use super::{WireError, unknown};

pub(super) fn encode(message: &TransferMessage<Bytes>) -> Wire {
    match message {
        TransferMessage::Ask => Wire::StateRequest(v1::StateRequest {}),
        TransferMessage::Offer { state, manifest } => Wire::StateOffer(v1::StateOffer {
            state: state.0,
            weight_version: manifest.version.0,
            bytes: manifest.bytes,
            chunk_bytes: manifest.chunk_bytes,
        }),
        TransferMessage::Want { state, chunk } => {
            Wire::ChunkRequest(v1::ChunkRequest { state: state.0, chunk: *chunk })
        }
        TransferMessage::Chunk { state, chunk, payload } => {
            Wire::Chunk(v1::Chunk { state: state.0, chunk: *chunk, chunk_bytes: payload.len() as u64 })
        }
        TransferMessage::Declined => Wire::StateDeclined(v1::StateDeclined {}),
        TransferMessage::Done { state } => Wire::StateDone(v1::StateDone { state: state.0 }),
    }
}

/// The message with the announced length, in bytes, where a chunk will be, and without digests, which follow as a
/// payload; neither length is checked yet.
pub(super) fn decode(message: &Wire) -> Result<TransferMessage<u64>, WireError> {
    Ok(match *message {
        Wire::StateRequest(v1::StateRequest {}) => TransferMessage::Ask,
        Wire::StateOffer(offer) => {
            if offer.chunk_bytes == 0 {
                return Err(unknown("length of a chunk", 0, "1 or more"));
            }
            let manifest = Manifest {
                version: WeightVersion(offer.weight_version),
                bytes: offer.bytes,
                chunk_bytes: offer.chunk_bytes,
                hashes: Vec::new(),
            };
            TransferMessage::Offer { state: StateId(offer.state), manifest }
        }
        Wire::ChunkRequest(v1::ChunkRequest { state, chunk }) => {
            TransferMessage::Want { state: StateId(state), chunk }
        }
        Wire::Chunk(v1::Chunk { state, chunk, chunk_bytes }) => {
            TransferMessage::Chunk { state: StateId(state), chunk, payload: chunk_bytes }
        }
        Wire::StateDeclined(v1::StateDeclined {}) => TransferMessage::Declined,
        Wire::StateDone(v1::StateDone { state }) => TransferMessage::Done { state: StateId(state) },
        _ => return Err(WireError::Missing { field: "the message of a download" }),
    })
}
