//! What a replica counts.

use crate::{Duration, MicrobatchId, Refusal};

/// A note for the metrics; the totals are in [`Counts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A microbatch is done here.
    Done(MicrobatchId),
    /// An evaluation was answered.
    Evaluated(MicrobatchId),
    /// A microbatch held here was refused, here or elsewhere.
    Refused(MicrobatchId, Refusal),
    /// A forward found no room, or came while draining; it was never held.
    Busy(MicrobatchId),
    /// A forward from a neighbour does not fit this stage; it was never held.
    Malformed(MicrobatchId),
    /// The same forward or answer came again; ignored.
    Duplicate(MicrobatchId),
    /// An answer to a microbatch that had its end here before; ignored.
    Late(MicrobatchId),
    /// An answer to a microbatch never seen here.
    Unknown(MicrobatchId),
    /// A message from somebody who is not the neighbour it claims to be; ignored.
    Foreign(MicrobatchId),
    /// The executor answered something it was not asked.
    Unexpected(MicrobatchId),
}

/// Totals since this replica started, by [`Note`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Training microbatches done here.
    pub done: u64,
    /// Evaluations answered here.
    pub evaluated: u64,
    /// Microbatches held here and refused.
    pub refused: u64,
    /// Forwards that found no room.
    pub busy: u64,
    /// Forwards that do not fit this stage.
    pub malformed: u64,
    /// Forwards and answers that came again.
    pub duplicate: u64,
    /// Answers after the end.
    pub late: u64,
    /// Answers to microbatches never seen.
    pub unknown: u64,
    /// Messages from somebody else than the neighbour expected.
    pub foreign: u64,
    /// Answers of the executor to nothing it was asked.
    pub unexpected: u64,
}

impl Counts {
    pub(super) fn add(&mut self, note: &Note) {
        let total = match note {
            Note::Done(_) => &mut self.done,
            Note::Evaluated(_) => &mut self.evaluated,
            Note::Refused(..) => &mut self.refused,
            Note::Busy(_) => &mut self.busy,
            Note::Malformed(_) => &mut self.malformed,
            Note::Duplicate(_) => &mut self.duplicate,
            Note::Late(_) => &mut self.late,
            Note::Unknown(_) => &mut self.unknown,
            Note::Foreign(_) => &mut self.foreign,
            Note::Unexpected(_) => &mut self.unexpected,
        };
        *total += 1;
    }
}

/// What a heartbeat says about a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Microbatches done since the replica started.
    pub done: u64,
    /// Microbatches held and refused since the replica started.
    pub refused: u64,
    /// Tasks that wait for the executor.
    pub queued: u32,
    /// Age of the oldest of them; zero if there are none.
    pub oldest: Duration,
}
