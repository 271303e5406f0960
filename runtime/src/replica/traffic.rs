//! What compression saves, counted on what was really sent.

use bytes::Bytes;
use swarmline_scheduler::{Message, StageIndex};

use crate::config::Run;
use crate::net::quic::BytesSent;

/// Bytes of a bf16 number.
const BF16_BYTES: u64 = 2;

/// Counts the codes a process sends to neighbouring stages.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    stream_bytes: u64,
    last_stage: StageIndex,
    codes: u64,
    code_bytes: u64,
}

/// Bytes that left for neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// As sent: frames with headers and ids. What replicas of a stage tell each other is not for neighbours.
    pub(crate) sent: u64,
    /// The same frames with the whole stream in bf16 in place of each code.
    pub(crate) uncompressed: u64,
}

impl Traffic {
    pub(crate) fn new(run: &Run) -> Self {
        Self {
            stream_bytes: (run.tokens_per_microbatch() * run.model.hidden_size) as u64 * BF16_BYTES,
            last_stage: run.last_stage(),
            codes: 0,
            code_bytes: 0,
        }
    }

    /// Notes a message that `stage` sends. What stage 0 tells a feeder carries no code.
    pub(crate) fn count(&mut self, message: &Message<Bytes>, stage: StageIndex) {
        let code = match message {
            Message::Forward { code, .. } if stage < self.last_stage => code,
            Message::Backward { gradient, .. } if stage > StageIndex(0) => gradient,
            _ => return,
        };
        self.codes += 1;
        self.code_bytes += code.len() as u64;
    }

    pub(crate) fn totals(&self, frames: BytesSent) -> Totals {
        let sent = frames.total().saturating_sub(frames.replicas);
        let uncompressed = sent.saturating_sub(self.code_bytes) + self.codes * self.stream_bytes;
        Totals { sent, uncompressed }
    }
}
