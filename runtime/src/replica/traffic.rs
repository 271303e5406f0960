//! Counts the bytes that compression saves on frames to neighbouring stages.

use bytes::Bytes;
use swarmline_scheduler::{Envelope, Message, StageIndex};

use crate::config::Run;
use crate::net::quic::BytesSent;

/// Bytes of a bf16 number.
const BF16_BYTES: u64 = 2;

/// Counts the activations and gradients that a replica sends to neighbouring stages.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    stream_bytes: u64,
    stage: StageIndex,
    last_stage: StageIndex,
    payloads: u64,
    payload_bytes: u64,
}

/// Bytes sent to neighbouring stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    /// Bytes as sent: frames with headers and token ids. Messages between replicas of a stage do not count.
    pub(super) sent: u64,
    /// The same frames with the whole stream in bf16 in place of each payload.
    pub(super) uncompressed: u64,
}

impl Traffic {
    pub(super) fn new(run: &Run, stage: StageIndex) -> Self {
        Self {
            stream_bytes: (run.tokens_per_microbatch() * run.model.hidden_size) as u64 * BF16_BYTES,
            stage,
            last_stage: run.last_stage(),
            payloads: 0,
            payload_bytes: 0,
        }
    }

    /// Notes an envelope that the replica sends. A gradient of stage 0 has no receiver.
    pub(super) fn count(&mut self, envelope: &Envelope<Bytes>) {
        let crosses = match envelope.message {
            Message::Forward { .. } => self.stage < self.last_stage,
            Message::Backward { .. } => self.stage > StageIndex(0),
            _ => false,
        };
        if crosses {
            self.payloads += 1;
            self.payload_bytes += envelope.payload.len() as u64;
        }
    }

    pub(super) fn totals(&self, frames: BytesSent) -> Totals {
        let sent = frames.total().saturating_sub(frames.replicas);
        let uncompressed = sent.saturating_sub(self.payload_bytes) + self.payloads * self.stream_bytes;
        Totals { sent, uncompressed }
    }
}
