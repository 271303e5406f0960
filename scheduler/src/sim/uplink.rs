//! The uplink of a process: frames take time on it, and wait for it in a queue for each receiver. Short messages wait
//! for no frame, since they have streams and a priority of their own.

use std::collections::VecDeque;

use crate::{Attempt, Duration, Envelope, Instance, Message, MicrobatchId, PeerId};

use super::payload::Payload;

/// Token ids alone take this part of the time of a long frame.
const IDS: u32 = 16;

/// The rate of every uplink, and the limit of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplinks {
    /// Time that an activation, a gradient, a part of a fragment or a chunk of a state takes.
    pub frame_time: Duration,
    /// Activations and gradients that may wait for one receiver. Parts and chunks have room beside them: few are under way
    /// at a time.
    pub queue_max: usize,
}

impl Uplinks {
    pub(super) fn time_of(&self, envelope: &Envelope<Payload>) -> Duration {
        if envelope.payload == Payload::Empty { self.frame_time / IDS } else { self.frame_time }
    }
}

/// A message with a payload.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) to: Instance,
    pub(super) envelope: Envelope<Payload>,
    /// Time of the handshake before it.
    pub(super) handshake: Duration,
}

impl Frame {
    fn is_tensor(&self) -> bool {
        Tensor::of(&self.envelope.message).is_some()
    }

    /// The microbatch of the tensor.
    pub(super) fn microbatch(&self) -> Option<MicrobatchId> {
        Tensor::of(&self.envelope.message).map(|tensor| match tensor {
            Tensor::Activation(microbatch, _) | Tensor::Gradient(microbatch, _) => microbatch,
        })
    }
}

/// What became of a frame.
#[derive(Clone, Debug)]
pub(super) enum Pushed {
    Queued,
    /// The same tensor is on its way.
    Needless,
    /// The queue is full: the message comes back.
    Full(Message),
}

/// The frames of one process.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    /// By receiver, in the order of their turns; no queue is empty.
    queues: VecDeque<(PeerId, VecDeque<Frame>)>,
    sending: Option<Frame>,
}

impl Uplink {
    /// Whether a message goes over the uplink as a frame.
    pub(super) fn carries(envelope: &Envelope<Payload>) -> bool {
        (&envelope.ids, &envelope.payload) != (&Payload::Empty, &Payload::Empty)
    }

    /// Whether the tensor that a message repeats or asks about is on its way to a peer.
    pub(super) fn makes_needless(&self, to: PeerId, message: &Message) -> bool {
        let Some(concerned) = Tensor::concerned(message) else { return false };
        let queued = self.queues.iter().filter(|(peer, _)| *peer == to).flat_map(|(_, queue)| queue);
        let sending = self.sending.iter().filter(|frame| frame.to.peer == to);
        queued.chain(sending).any(|frame| Tensor::of(&frame.envelope.message) == Some(concerned))
    }

    /// Queues a frame behind those for the same receiver.
    pub(super) fn push(&mut self, frame: Frame, limits: &Uplinks) -> Pushed {
        let to = frame.to.peer;
        if self.makes_needless(to, &frame.envelope.message) {
            return Pushed::Needless;
        }
        let Some((_, queue)) = self.queues.iter_mut().find(|(peer, _)| *peer == to) else {
            self.queues.push_back((to, VecDeque::from([frame])));
            return Pushed::Queued;
        };
        let tensors = queue.iter().filter(|frame| frame.is_tensor()).count();
        if frame.is_tensor() && tensors >= limits.queue_max {
            return Pushed::Full(frame.envelope.message);
        }
        queue.push_back(frame);
        Pushed::Queued
    }

    /// Begins to send the next frame, if no frame is being sent. Returns the frame that it begins with.
    pub(super) fn begin(&mut self) -> Option<&Frame> {
        if self.sending.is_some() {
            return None;
        }
        let (to, mut queue) = self.queues.pop_front()?;
        let frame = queue.pop_front()?;
        if !queue.is_empty() {
            self.queues.push_back((to, queue));
        }
        Some(self.sending.insert(frame))
    }

    /// The frame that is being sent.
    pub(super) fn sending(&self) -> Option<&Frame> {
        self.sending.as_ref()
    }

    /// The frame that has been sent.
    pub(super) fn take_sent(&mut self) -> Option<Frame> {
        self.sending.take()
    }
}

/// A tensor of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tensor {
    Activation(MicrobatchId, Attempt),
    Gradient(MicrobatchId, Attempt),
}

impl Tensor {
    fn of(message: &Message) -> Option<Self> {
        match message {
            Message::Forward { microbatch, attempt, .. } => Some(Self::Activation(*microbatch, *attempt)),
            Message::Backward { microbatch, attempt, .. } => Some(Self::Gradient(*microbatch, *attempt)),
            _ => None,
        }
    }

    /// The tensor that a message repeats or asks about.
    fn concerned(message: &Message) -> Option<Self> {
        match message {
            Message::StatusRequest { microbatch, attempt, .. } => {
                Some(Self::Activation(*microbatch, *attempt))
            }
            message => Self::of(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Loss};

    const LIMITS: Uplinks = Uplinks { frame_time: Duration::from_millis(160), queue_max: 2 };

    fn gradient(to: u8, microbatch: u64) -> Frame {
        let microbatch = MicrobatchId(microbatch);
        let message =
            Message::Backward { microbatch, attempt: Attempt(0), loss: Loss::default(), path: Vec::new() };
        let to = Instance::new(PeerId([to; 32]), Incarnation(1));
        Frame { to, envelope: Envelope::with_payload(message, Payload::Gradient), handshake: Duration::ZERO }
    }

    fn sent(uplink: &mut Uplink) -> Option<u8> {
        uplink.take_sent();
        uplink.begin().map(|frame| frame.to.peer.0[0])
    }

    #[test]
    fn receivers_have_their_turns_and_one_frame_is_sent_at_a_time() {
        let mut uplink = Uplink::default();
        for (to, microbatch) in [(1, 1), (1, 2), (2, 3)] {
            assert!(matches!(uplink.push(gradient(to, microbatch), &LIMITS), Pushed::Queued));
        }
        let time = uplink.begin().map(|frame| LIMITS.time_of(&frame.envelope));
        assert_eq!(time, Some(LIMITS.frame_time));
        assert!(uplink.begin().is_none(), "the first frame is not yet sent");
        assert_eq!([sent(&mut uplink), sent(&mut uplink), sent(&mut uplink)], [Some(2), Some(1), None]);
    }

    #[test]
    fn a_full_queue_gives_a_message_back_and_a_repetition_is_dropped() {
        let mut uplink = Uplink::default();
        for microbatch in 0..2 {
            uplink.push(gradient(1, microbatch), &LIMITS);
        }
        assert!(matches!(uplink.push(gradient(1, 1), &LIMITS), Pushed::Needless));
        assert!(matches!(uplink.push(gradient(1, 2), &LIMITS), Pushed::Full(Message::Backward { .. })));
        assert!(matches!(uplink.push(gradient(2, 2), &LIMITS), Pushed::Queued));
    }
}
