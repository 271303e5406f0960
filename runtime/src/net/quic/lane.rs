//! The two queues in front of a peer. Short messages overtake long frames, so a heartbeat or a grant never waits for
//! megabytes on a thin uplink.

use std::collections::BTreeSet;

use swarmline_scheduler::prediction::PredictionMessage;
use swarmline_scheduler::transfer::TransferMessage;
use swarmline_scheduler::{Attempt, Message, MicrobatchId};

use super::Settings;
use super::tuning::{self, CONTROL_STREAMS};

/// Limit of the short messages that wait for one peer.
const CONTROL_FRAMES_MAX: usize = 1024;
/// Limit of the long frames that wait for one peer.
const BULK_FRAMES_MAX: usize = 1024;
/// That limit for small windows: room for chunks and parts beside the microbatches.
const BULK_FRAMES_MIN: usize = 64;

/// A queue of frames for one peer, with streams and a task of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Heartbeats, claims, receipts, status requests and all other messages without a long payload.
    Control,
    /// Activations, gradients, parts of a fragment, and states.
    Bulk,
}

impl Lane {
    pub(super) const COUNT: usize = 2;

    pub(super) fn of(message: &Message) -> Self {
        match message {
            Message::Forward { .. } | Message::Backward { .. } => Self::Bulk,
            Message::Prediction(PredictionMessage::Request(_) | PredictionMessage::Reply(_)) => Self::Bulk,
            Message::Averaging(message) if message.content.has_payload() => Self::Bulk,
            Message::Transfer(
                TransferMessage::Offer { .. }
                | TransferMessage::Sketch { .. }
                | TransferMessage::Chunk { .. },
            ) => Self::Bulk,
            _ => Self::Control,
        }
    }

    /// Priority of the stream of a frame, of which `earlier` were sent before in this lane; QUIC sends the highest
    /// first. A receiver can use only whole frames, so a long frame is finished before the next begins.
    pub(super) fn priority(self, earlier: u64) -> i32 {
        match self {
            Self::Control => 1,
            Self::Bulk => -i32::try_from(earlier % (1 << 30)).unwrap_or(0),
        }
    }

    /// Limit of the frames in the queue.
    pub(super) fn capacity(self, settings: &Settings) -> usize {
        match self {
            Self::Control => CONTROL_FRAMES_MAX,
            Self::Bulk => settings.window.saturating_mul(2).clamp(BULK_FRAMES_MIN, BULK_FRAMES_MAX),
        }
    }

    /// Limits of the frames sent and not yet acknowledged: their number, and their bytes. Each lane has its share of
    /// the streams and bytes that the peer allows, so bulk leaves room for control.
    pub(super) fn unacknowledged_max(self, settings: &Settings) -> (usize, usize) {
        match self {
            Self::Control => (CONTROL_STREAMS as usize, usize::MAX),
            Self::Bulk => (tuning::bulk_streams(settings) as usize, tuning::bulk_bytes(settings) as usize),
        }
    }
}

/// The frames for one peer that are queued or sent, and not yet acknowledged.
#[derive(Debug, Default)]
pub(super) struct Underway {
    frames: usize,
    microbatches: BTreeSet<MicrobatchFrame>,
}

/// A frame with the tensor of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MicrobatchFrame {
    Forward(MicrobatchId, Attempt),
    Backward(MicrobatchId, Attempt),
}

impl MicrobatchFrame {
    fn of(message: &Message) -> Option<Self> {
        match message {
            Message::Forward { microbatch, attempt, .. } => Some(Self::Forward(*microbatch, *attempt)),
            Message::Backward { microbatch, attempt, .. } => Some(Self::Backward(*microbatch, *attempt)),
            _ => None,
        }
    }

    /// The frame that a message repeats or asks about.
    fn concerned(message: &Message) -> Option<Self> {
        match message {
            Message::StatusRequest { microbatch, attempt, .. } => Some(Self::Forward(*microbatch, *attempt)),
            other => Self::of(other),
        }
    }
}

impl Underway {
    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    pub(super) fn add(&mut self, message: &Message) {
        self.frames += 1;
        self.microbatches.extend(MicrobatchFrame::of(message));
    }

    /// A frame is acknowledged or given back.
    pub(super) fn remove(&mut self, message: &Message) {
        self.frames = self.frames.saturating_sub(1);
        if let Some(frame) = MicrobatchFrame::of(message) {
            self.microbatches.remove(&frame);
        }
    }

    /// Whether a message adds nothing: the same tensor is on its way, or the message asks for the status of a
    /// microbatch that is. Overtaking it, the question would be answered with "missing", and the tensor sent twice.
    pub(super) fn makes_needless(&self, message: &Message) -> bool {
        MicrobatchFrame::concerned(message).is_some_and(|frame| self.microbatches.contains(&frame))
    }
}

#[cfg(test)]
mod tests {
    use swarmline_scheduler::{Heartbeat, Loss};

    use super::*;

    const ID: MicrobatchId = MicrobatchId(7);

    fn backward(attempt: u32) -> Message {
        Message::Backward {
            microbatch: ID,
            attempt: Attempt(attempt),
            loss: Loss::default(),
            path: Vec::new(),
        }
    }

    #[test]
    fn only_long_frames_are_bulk() {
        assert_eq!(Lane::of(&backward(0)), Lane::Bulk);
        let status = Message::StatusRequest {
            microbatch: ID,
            attempt: Attempt(0),
            route: Vec::new(),
            key: swarmline_scheduler::RouteKey::default(),
        };
        assert_eq!(Lane::of(&status), Lane::Control);
        assert_eq!(Lane::of(&Message::Heartbeat(Heartbeat::default())), Lane::Control);
        assert_eq!(Lane::of(&Message::Transfer(TransferMessage::Request)), Lane::Control);
        assert!(Lane::Control.priority(u64::MAX) > Lane::Bulk.priority(0));
        assert!(Lane::Bulk.priority(4) > Lane::Bulk.priority(5));
    }

    #[test]
    fn a_frame_on_its_way_makes_its_repetition_needless_until_it_has_arrived() {
        let mut underway = Underway::default();
        underway.add(&backward(1));
        assert!(underway.makes_needless(&backward(1)));
        assert!(!underway.makes_needless(&backward(2)));
        let status = Message::StatusRequest {
            microbatch: ID,
            attempt: Attempt(1),
            route: Vec::new(),
            key: swarmline_scheduler::RouteKey::default(),
        };
        assert!(!underway.makes_needless(&status), "it asks for the forward, and that has arrived");
        underway.remove(&backward(1));
        assert!(!underway.makes_needless(&backward(1)) && underway.is_empty());
    }
}
