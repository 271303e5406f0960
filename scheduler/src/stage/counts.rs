//! What a replica counts.

use crate::{Duration, Incarnation, MicrobatchId, PeerId, Refusal};

/// A note for the metrics; the totals are in [`Counts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The gradients of a microbatch are applied here.
    Applied(MicrobatchId),
    /// A gradient was computed here for others only: somebody else had applied his.
    Relayed(MicrobatchId),
    /// An evaluation was answered.
    Evaluated(MicrobatchId),
    /// A microbatch was refused here.
    Refused(MicrobatchId, Refusal),
    /// A neighbour is dead or wedged as seen from here.
    Lost {
        /// Which.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// Microbatches held here that lie with it, or are for it.
        with_it: usize,
    },
    /// Handed on anew: the replica that had it is lost.
    Rerouted(MicrobatchId),
    /// Taken over for a replica that is lost.
    Restored(MicrobatchId),
    /// A replica further downstream was found to hold it, so that nothing is computed twice there.
    Found(MicrobatchId),
    /// A forward found no room, or came while draining; it was never held.
    Busy(MicrobatchId),
    /// A forward from a neighbour does not fit this stage; it was never held.
    Malformed(MicrobatchId),
    /// The same forward or answer came again; nothing is done twice.
    Duplicate(MicrobatchId),
    /// A message about a microbatch that has its outcome; ignored.
    Late(MicrobatchId),
    /// An answer to a microbatch not held here; ignored.
    Unknown(MicrobatchId),
    /// A message from somebody who is not the neighbour it claims to be; ignored.
    Foreign(MicrobatchId),
    /// This peer sent what only feeders take; ignored.
    Misdirected(PeerId),
    /// The executor answered something it was not asked.
    Unexpected(MicrobatchId),
}

/// Totals since this replica started, by [`Note`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Microbatches whose gradients were applied here.
    pub applied: u64,
    /// Microbatches whose gradients were computed here for others only.
    pub relayed: u64,
    /// Evaluations answered here.
    pub evaluated: u64,
    /// Microbatches refused here.
    pub refused: u64,
    /// Neighbours found dead or wedged.
    pub lost: u64,
    /// Microbatches handed on anew.
    pub rerouted: u64,
    /// Microbatches taken over for a lost replica.
    pub restored: u64,
    /// Microbatches found further downstream.
    pub found: u64,
    /// Forwards that found no room.
    pub busy: u64,
    /// Forwards that do not fit this stage.
    pub malformed: u64,
    /// Forwards and answers that came again.
    pub duplicate: u64,
    /// Messages after the outcome.
    pub late: u64,
    /// Answers to microbatches not held.
    pub unknown: u64,
    /// Messages from somebody else than the neighbour expected, or for somebody else.
    pub foreign: u64,
    /// Answers of the executor to nothing it was asked.
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
            Note::Rerouted(_) => &mut self.rerouted,
            Note::Restored(_) => &mut self.restored,
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

/// What a heartbeat says about a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Microbatches whose gradients were applied since the replica started.
    pub done: u64,
    /// Microbatches refused since the replica started.
    pub refused: u64,
    /// Tasks that wait for the executor.
    pub queued: u32,
    /// Age of the oldest of them; zero if there are none.
    pub oldest: Duration,
}
