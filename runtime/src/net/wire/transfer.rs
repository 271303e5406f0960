//! Messages of a state download by a joining replica.

use swarmline_proto::v1;
use swarmline_proto::v1::frame::Message as Wire;
use swarmline_scheduler::transfer::{DeclineReason, Manifest, SketchSeed, StateId, TransferMessage};
use swarmline_scheduler::{Duration, WeightVersion};

use super::{WireError, out_of_range};

pub(super) fn encode(message: &TransferMessage) -> Wire {
    match message {
        TransferMessage::Request => Wire::StateRequest(v1::StateRequest {}),
        TransferMessage::CopyAt { clock } => Wire::CopyAt(v1::CopyAt { clock: *clock }),
        TransferMessage::CopyDeclined { clock, is_late } => {
            Wire::CopyDeclined(v1::CopyDeclined { clock: *clock, is_late: *is_late })
        }
        TransferMessage::Offer { state, manifest, age, clock } => Wire::StateOffer(v1::StateOffer {
            state: state.0,
            weight_version: manifest.version.0,
            bytes: manifest.bytes,
            chunk_bytes: manifest.chunk_bytes,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            clock: *clock,
        }),
        TransferMessage::SketchRequest { state, seed } => {
            Wire::SketchRequest(v1::SketchRequest { state: state.0, seed: seed.0 })
        }
        TransferMessage::Sketch { state, seed, .. } => {
            Wire::Sketch(v1::Sketch { state: state.0, seed: seed.0 })
        }
        TransferMessage::ChunkRequest { state, chunk } => {
            Wire::ChunkRequest(v1::ChunkRequest { state: state.0, chunk: *chunk })
        }
        TransferMessage::Chunk { state, chunk } => Wire::Chunk(v1::Chunk { state: state.0, chunk: *chunk }),
        TransferMessage::Declined(reason) => {
            let reason = match reason {
                DeclineReason::Busy => v1::DeclineReason::Unspecified,
                DeclineReason::NotEntitled => v1::DeclineReason::NotEntitled,
            };
            Wire::StateDeclined(v1::StateDeclined { reason: reason.into() })
        }
        TransferMessage::Done { state } => Wire::StateDone(v1::StateDone { state: state.0 }),
    }
}

/// The message. An offer has no digests and a sketch has no projections yet: they follow as the payload.
pub(super) fn decode(message: &Wire) -> Result<TransferMessage, WireError> {
    Ok(match *message {
        Wire::StateRequest(v1::StateRequest {}) => TransferMessage::Request,
        Wire::CopyAt(v1::CopyAt { clock }) => TransferMessage::CopyAt { clock },
        Wire::CopyDeclined(v1::CopyDeclined { clock, is_late }) => {
            TransferMessage::CopyDeclined { clock, is_late }
        }
        Wire::StateOffer(offer) => {
            if offer.chunk_bytes == 0 {
                return Err(out_of_range("length of a chunk", 0, "1 or more"));
            }
            let manifest = Manifest {
                version: WeightVersion(offer.weight_version),
                bytes: offer.bytes,
                chunk_bytes: offer.chunk_bytes,
                hashes: Vec::new(),
            };
            let age = Duration::from_millis(offer.age_ms);
            TransferMessage::Offer { state: StateId(offer.state), manifest, age, clock: offer.clock }
        }
        Wire::SketchRequest(v1::SketchRequest { state, seed }) => {
            TransferMessage::SketchRequest { state: StateId(state), seed: SketchSeed(seed) }
        }
        Wire::Sketch(v1::Sketch { state, seed }) => {
            TransferMessage::Sketch { state: StateId(state), seed: SketchSeed(seed), sketch: Vec::new() }
        }
        Wire::ChunkRequest(v1::ChunkRequest { state, chunk }) => {
            TransferMessage::ChunkRequest { state: StateId(state), chunk }
        }
        Wire::Chunk(v1::Chunk { state, chunk }) => TransferMessage::Chunk { state: StateId(state), chunk },
        Wire::StateDeclined(declined) => match declined.reason() {
            v1::DeclineReason::Unspecified => TransferMessage::Declined(DeclineReason::Busy),
            v1::DeclineReason::NotEntitled => TransferMessage::Declined(DeclineReason::NotEntitled),
        },
        Wire::StateDone(v1::StateDone { state }) => TransferMessage::Done { state: StateId(state) },
        _ => return Err(WireError::Missing { field: "the message of a download" }),
    })
}
