//! Counters of a replica.

use crate::{Duration, Instance, MicrobatchId, PeerId, Refusal};

/// A note for metrics and people; the totals are in [`Counts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The gradients of a microbatch were applied here.
    Applied(MicrobatchId),
    /// A gradient was computed here only to pass it upstream: another replica has the grant.
    Relayed(MicrobatchId),
    /// An evaluation was answered.
    Evaluated(MicrobatchId),
    /// A microbatch was refused here.
    Refused(MicrobatchId, Refusal),
    /// A neighbour is dead or stalled as seen from here.
    Lost {
        /// The neighbour.
        neighbour: Instance,
        /// Microbatches held here that were handed to it, or came from it.
        affected: usize,
    },
    /// A feeder leaves claims unanswered and sends nothing else.
    FeederLost {
        /// The feeder.
        feeder: PeerId,
        /// Microbatches of the feeder that were held here.
        affected: usize,
    },
    /// The feeder of a microbatch did not send it on the route that this neighbour named.
    Forged(MicrobatchId, Instance),
    /// The grant of a microbatch was handed back: its gradient never came.
    Forfeited(MicrobatchId),
    /// A microbatch was given back to its upstream: its feeder, or the next stage, cannot be reached from here.
    GivenBack(MicrobatchId),
    /// A microbatch was handed on again: the replica that had it is lost.
    Retried(MicrobatchId),
    /// A microbatch was taken over for a replica that is lost.
    Recovered(MicrobatchId),
    /// A replica that holds the microbatch was asked for it instead of a second forward.
    Found(MicrobatchId),
    /// A forward found no room, or came while draining; it was never held.
    Busy(MicrobatchId),
    /// A forward from a neighbour does not fit this stage; it was never held.
    Malformed(MicrobatchId),
    /// The same forward or reply came again; nothing is done twice.
    Duplicate(MicrobatchId),
    /// A message about a microbatch that has its outcome; ignored.
    Late(MicrobatchId),
    /// A reply about a microbatch that is not held here; ignored.
    Unknown(MicrobatchId),
    /// A message about a microbatch from a peer that is not the neighbour it must come from; ignored.
    Foreign(MicrobatchId),
    /// The peer sent a message that only a feeder accepts; ignored.
    Misdirected(Instance),
    /// The executor replied to another job than it was given.
    Unexpected(MicrobatchId),
}

/// Totals since this replica started, by [`Note`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Microbatches whose gradients were applied here.
    pub applied: u64,
    /// Microbatches whose gradients were computed here only to pass them upstream.
    pub relayed: u64,
    /// Evaluations answered here.
    pub evaluated: u64,
    /// Microbatches refused here.
    pub refused: u64,
    /// Neighbours found dead or stalled.
    pub lost: u64,
    /// Feeders that left claims unanswered for too long.
    pub feeders_lost: u64,
    /// Microbatches that came with a false route.
    pub forged: u64,
    /// Grants handed back.
    pub forfeited: u64,
    /// Microbatches given back to their upstream.
    pub given_back: u64,
    /// Microbatches handed on again.
    pub retried: u64,
    /// Microbatches taken over for a lost replica.
    pub recovered: u64,
    /// Microbatches found further downstream.
    pub found: u64,
    /// Forwards that found no room.
    pub busy: u64,
    /// Forwards that do not fit this stage.
    pub malformed: u64,
    /// Forwards and replies that came again.
    pub duplicate: u64,
    /// Messages after the outcome.
    pub late: u64,
    /// Replies about microbatches not held.
    pub unknown: u64,
    /// Messages from another peer than the neighbour expected, or for another peer.
    pub foreign: u64,
    /// Replies of the executor to another job than it was given.
    pub unexpected: u64,
}

impl Counts {
    pub(super) fn add(&mut self, note: &Note) {
        let total = match note {
            Note::Applied(_) => &mut self.applied,
            Note::Relayed(_) => &mut self.relayed,
            Note::Evaluated(_) => &mut self.evaluated,
            Note::Refused(..) => &mut self.refused,
            Note::Lost { .. } => &mut self.lost,
            Note::FeederLost { .. } => &mut self.feeders_lost,
            Note::Forged(..) => &mut self.forged,
            Note::Forfeited(_) => &mut self.forfeited,
            Note::GivenBack(_) => &mut self.given_back,
            Note::Retried(_) => &mut self.retried,
            Note::Recovered(_) => &mut self.recovered,
            Note::Found(_) => &mut self.found,
            Note::Busy(_) => &mut self.busy,
            Note::Malformed(_) => &mut self.malformed,
            Note::Duplicate(_) => &mut self.duplicate,
            Note::Late(_) => &mut self.late,
            Note::Unknown(_) => &mut self.unknown,
            Note::Foreign(_) | Note::Misdirected(_) => &mut self.foreign,
            Note::Unexpected(_) => &mut self.unexpected,
        };
        *total += 1;
    }
}

/// A member's progress, as it reports it to the coordinator; zeros from a feeder or a standby.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Microbatches whose gradients were applied since the replica started.
    pub done: u64,
    /// Microbatches refused since the replica started.
    pub refused: u64,
    /// Tasks that wait for the executor.
    pub queued: u32,
    /// Time that the oldest of them has waited; zero if there are none.
    pub oldest: Duration,
}
