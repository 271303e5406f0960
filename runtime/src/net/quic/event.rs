//! Events of a data plane.

use std::fmt;

use bytes::Bytes;
use swarmline_scheduler::{Envelope, Instance, Message, PeerId};

use super::link::LinkError;
use crate::net::frame::FrameError;

/// An event of the network. `Debug` leaves payloads out.
#[derive(Clone)]
pub enum NetEvent {
    /// A peer is connected. This comes before its first message, and again for each new incarnation.
    Connected(Instance),
    /// An envelope arrived.
    Received {
        /// The sender; its key is proven.
        from: Instance,
        /// The envelope. After a reconnection, it may be a duplicate.
        envelope: Envelope<Bytes>,
    },
    /// Bytes of a frame arrive that is still incomplete, at most a few times a second: the peer lives.
    Arriving(Instance),
    /// A peer sent bytes that are not a frame of this run. Its other frames are unaffected; repeated faults close the
    /// connection.
    Malformed {
        /// The sender.
        from: PeerId,
        /// The fault.
        error: FrameError,
    },
    /// The last connection with a peer ended, and not to make room for another. This comes after its last message.
    Disconnected {
        /// The peer.
        instance: Instance,
        /// The cause, one line.
        reason: String,
    },
    /// Envelopes could not be delivered.
    Unreachable {
        /// The receiver.
        peer: PeerId,
        /// The cause.
        reason: LinkError,
        /// The envelopes, in the order sent. Some of them may have reached the peer.
        undelivered: Vec<Envelope<Bytes>>,
    },
}

impl fmt::Debug for NetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(instance) => write!(f, "Connected({instance:?})"),
            Self::Arriving(instance) => write!(f, "Arriving({instance:?})"),
            Self::Received { from, envelope } => {
                write!(f, "Received({from:?}, {})", describe(&envelope.message))
            }
            Self::Malformed { from, error } => write!(f, "Malformed({from:?}, {error})"),
            Self::Disconnected { instance, reason } => write!(f, "Disconnected({instance:?}, {reason})"),
            Self::Unreachable { peer, reason, undelivered } => {
                let undelivered: Vec<String> =
                    undelivered.iter().map(|envelope| describe(&envelope.message)).collect();
                write!(f, "Unreachable({peer:?}, {reason}, {undelivered:?})")
            }
        }
    }
}

fn describe(message: &Message) -> String {
    match message {
        Message::Forward { microbatch, attempt, .. } => format!("forward {microbatch}.{}", attempt.0),
        Message::Backward { microbatch, attempt, .. } => format!("backward {microbatch}.{}", attempt.0),
        Message::Evaluated { proof, attempt, .. } => format!("evaluated {}.{}", proof.microbatch, attempt.0),
        Message::Refused { proof, .. } => format!("refused {}", proof.microbatch),
        Message::StatusRequest { microbatch, attempt, .. } => {
            format!("status request {microbatch}.{}", attempt.0)
        }
        Message::StatusReply { microbatch, attempt, .. } => {
            format!("status reply {microbatch}.{}", attempt.0)
        }
        Message::Forwarded { microbatch, attempt, .. } => format!("forwarded {microbatch}.{}", attempt.0),
        Message::OrphanNotice { microbatch, .. } => format!("orphan {microbatch}"),
        Message::Claim { claimed, .. } => format!("claim of {}", claimed.len()),
        Message::ClaimReply { granted, .. } => format!("grant of {}", granted.len()),
        Message::Outcomes { .. } => "outcomes".to_owned(),
        Message::RoundCall { round, .. } => format!("round call {}", round.0),
        Message::RoundReport { round, .. } => format!("round report {}", round.0),
        Message::RecoverRange { first, from, .. } => format!("recover range {first} from {from}"),
        Message::RecoveryReport(report) => format!("recovery report of {}", report.first),
        Message::Heartbeat(_) => "heartbeat".to_owned(),
        Message::Averaging(message) => {
            format!("averaging {}.{}.{}", message.group.round.0, message.part.0, message.attempt.0)
        }
        Message::Transfer(_) => "transfer".to_owned(),
        Message::Prediction(_) => "prediction".to_owned(),
    }
}
