//! Bytes sent, by kind of frame.

use std::sync::atomic::{AtomicU64, Ordering};

use swarmline_scheduler::Message;

/// Bytes of frames sent: preambles, headers, ids and payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BytesSent {
    /// Activations and token ids that go downstream.
    pub forward: u64,
    /// Gradients that go upstream.
    pub backward: u64,
    /// All other messages.
    pub other: u64,
    /// Averaging rounds and state downloads between replicas of a stage.
    pub replicas: u64,
}

impl BytesSent {
    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.forward, self.backward, self.other, self.replicas].into_iter().fold(0, u64::saturating_add)
    }
}

/// The counters behind [`BytesSent`]; each only grows.
#[derive(Debug, Default)]
pub(super) struct Counters {
    forward: AtomicU64,
    backward: AtomicU64,
    other: AtomicU64,
    replicas: AtomicU64,
}

impl Counters {
    pub(super) fn add(&self, message: &Message, bytes: usize) {
        let counter = match message {
            Message::Forward { .. } => &self.forward,
            Message::Backward { .. } => &self.backward,
            Message::Averaging(_) | Message::Transfer(_) => &self.replicas,
            _ => &self.other,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> BytesSent {
        BytesSent {
            forward: self.forward.load(Ordering::Relaxed),
            backward: self.backward.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
            replicas: self.replicas.load(Ordering::Relaxed),
        }
    }
}
