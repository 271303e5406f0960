//! What feeders and replicas say to each other about microbatches.

use std::net::SocketAddr;

use crate::averaging::AveragingMessage;
use crate::transfer::TransferMessage;
use crate::{Attempt, Incarnation, MicrobatchId, PeerId, StageIndex, WeightVersion};

/// One visit on the way of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Where in the pipeline; `None` is the feeder.
    pub stage: Option<StageIndex>,
    /// Which peer.
    pub peer: PeerId,
    /// Which start of that peer.
    pub incarnation: Incarnation,
}

/// Why a microbatch travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Forward and backward; weights learn from it.
    Train,
    /// Forward only, to measure the loss on held-out text.
    Evaluate,
    /// Like `Evaluate`, but the last stage replaces what it received by zeros: the control that shows whether
    /// the upstream matters.
    EvaluateCut,
}

/// Summed loss of the tokens of a microbatch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of cross-entropies, nats.
    pub sum: f64,
    /// Tokens summed over.
    pub tokens: u32,
}

impl Loss {
    /// Nats a token; not a number where there are no tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / f64::from(self.tokens)
    }
}

/// Why a microbatch was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A NaN or an infinity in what a stage received or computed.
    NonFinite,
    /// Bytes that do not fit the run: wrong shape, wrong length, token id out of range.
    Malformed(String),
    /// A microbatch this peer does not hold (a gradient without a stash).
    Unknown,
    /// No room: more microbatches in flight than the peer has slots for.
    Busy,
    /// No peer serves the next stage.
    Undeliverable,
    /// The device failed.
    Device(String),
}

/// A message between neighbours on the route of a microbatch. `P` is an opaque payload: bytes in production,
/// `()` in simulation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<P> {
    /// Downstream: token ids and the activation.
    Forward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Which sending of it.
        attempt: Attempt,
        /// Why it travels.
        purpose: Purpose,
        /// Visits so far, the feeder first, the sender last.
        route: Vec<Hop>,
        /// Weight version the sender computed the activation with (0 from a feeder).
        version: WeightVersion,
        /// `B * (T + 1)` token ids, packed.
        ids: P,
        /// The packed activation; empty from the feeder.
        code: P,
    },
    /// Upstream: the gradient of the activation. To a feeder: the microbatch is finished (payload empty).
    Backward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number of the forward this answers.
        attempt: Attempt,
        /// Training loss of the microbatch.
        loss: Loss,
        /// The packed boundary gradient.
        gradient: P,
    },
    /// Upstream: result of an evaluation.
    Evaluated {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number of the forward this answers.
        attempt: Attempt,
        /// Its loss.
        loss: Loss,
    },
    /// Both ways: the microbatch was refused and counts as such.
    Refused {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number as last exchanged with the receiver.
        attempt: Attempt,
        /// Who refused it.
        by: Hop,
        /// Why.
        reason: Refusal,
    },
    /// Between replicas of a stage: an averaging round. For [`Averaging`](crate::Averaging), not for the machines of
    /// microbatches.
    Averaging(AveragingMessage<P>),
    /// Between a joining replica and one that serves: the state of their stage. For [`transfer`](crate::transfer).
    Transfer(TransferMessage<P>),
}

/// What a peer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Draws data and injects microbatches.
    Feeder,
    /// Serves, or waits to serve, a stage.
    Replica,
}

/// How far a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Placed on a stage and building its shard.
    Loading(StageIndex),
    /// Serving a stage.
    Serving(StageIndex),
    /// Every stage is served; waits.
    Standby,
    /// A feeder.
    Feeding,
}

/// One line of the membership table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub peer: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// How far it is.
    pub standing: Standing,
    /// Where its data plane listens.
    pub address: SocketAddr,
}

/// Who takes part, as the coordinator last signed it. Members are ordered by peer id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Grows by one with every change.
    pub version: u64,
    /// The members.
    pub members: Vec<Member>,
}
