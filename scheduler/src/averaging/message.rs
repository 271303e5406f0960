//! What the members of a gathering say to each other.

use crate::Attempt;

use super::group::{GatheringId, PartIndex};

/// A message between two members. `P` is an opaque payload: numbers as bytes in production, something small in
/// simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragingMessage<P> {
    /// Which round, among whom.
    pub gathering: GatheringId,
    /// Which part of the set.
    pub part: PartIndex,
    /// How many owners the part had before the one this is from, or for.
    pub attempt: Attempt,
    /// What is said.
    pub content: Content<P>,
}

impl<P> AveragingMessage<P> {
    /// The same with another payload, if it has any.
    #[must_use]
    pub fn with_payload<Q>(self, payload: Q) -> AveragingMessage<Q> {
        let Self { gathering, part, attempt, content } = self;
        let content = match content {
            Content::Share { weight, .. } => Content::Share { weight, share: payload },
            Content::Kept { of, .. } => Content::Kept { of, mean: payload },
            Content::Mean { .. } => Content::Mean { mean: payload },
            Content::Held => Content::Held,
            Content::Settled => Content::Settled,
            Content::Nothing => Content::Nothing,
            Content::Absent => Content::Absent,
        };
        AveragingMessage { gathering, part, attempt, content }
    }
}

/// What is said about a part.
#[derive(Clone, Debug, PartialEq)]
pub enum Content<P> {
    /// To the owner: what I had when the round began. It is also a promise to take no mean from owners before it.
    Share {
        /// My contributions since the set's last round.
        weight: u64,
        /// My numbers.
        share: P,
    },
    /// To a later owner, in place of a share: an earlier one gave me a mean. The same promise.
    Kept {
        /// Which owner it came from.
        of: Attempt,
        /// That mean.
        mean: P,
    },
    /// From the owner to all: take this, but do not apply it yet.
    Mean {
        /// The mean.
        mean: P,
    },
    /// To the owner: I have taken your mean.
    Held,
    /// From the owner to all: a majority holds the mean, so no other can replace it. Apply it.
    Settled,
    /// From the owner to all: nobody has anything to contribute to this part.
    Nothing,
    /// To whoever waits for an answer: I take no part in this gathering, or not any more. Never taken back.
    Absent,
}

impl<P> Content<P> {
    /// The numbers, if there are any.
    #[must_use]
    pub fn payload(&self) -> Option<&P> {
        match self {
            Self::Share { share: payload, .. }
            | Self::Kept { mean: payload, .. }
            | Self::Mean { mean: payload } => Some(payload),
            Self::Held | Self::Settled | Self::Nothing | Self::Absent => None,
        }
    }

    /// Whether who says this waits for an answer.
    pub(super) fn awaits_answer(&self) -> bool {
        matches!(self, Self::Share { .. } | Self::Kept { .. } | Self::Mean { .. })
    }
}
