//! Messages between the members of a group.

use crate::Attempt;

use super::group::{GroupId, MemberSet, PartIndex};
use super::votes::MeanId;

/// A message between two members, without its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragingMessage {
    /// The round, and its members.
    pub group: GroupId,
    /// The part of the fragment.
    pub part: PartIndex,
    /// Number of owners that the part had before the owner that sends or receives the message.
    pub attempt: Attempt,
    /// The content of the message.
    pub content: Content,
}

/// The content of a message about a part. The names are those of single-decree Paxos.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// To every member, as soon as a round begins: the sender's copy is under way, so owners wait for it up to
    /// [`TIMEOUT_MAX`](super::TIMEOUT_MAX). It is about all parts; its part and attempt mean nothing.
    Copying,
    /// To the owner, with the sender's numbers as they were when the round began. Also a promise to accept no mean from
    /// earlier owners.
    Contribution {
        /// The sender's contributions since the fragment was last averaged.
        weight: u64,
    },
    /// To a later owner, in place of a contribution, with the mean that the sender accepted from an earlier owner. The
    /// same promise.
    Promise {
        /// The attempt whose owner proposed the mean.
        of: Attempt,
        /// The members whose contributions are in the mean.
        contributors: MemberSet,
    },
    /// From the owner to every member, with the mean, which the owner has accepted: accept it, but do not apply it yet.
    Accept {
        /// The members whose contributions are in the mean.
        contributors: MemberSet,
    },
    /// To every member: the sender has accepted this mean of the attempt, and accepts no other of the part.
    Accepted {
        /// The mean.
        mean: MeanId,
    },
    /// From the owner to every member: of the members heard, none has anything to contribute to this part.
    Empty {
        /// The members heard.
        heard: MemberSet,
    },
    /// To a member that waits for an answer: the sender takes no part in this group, or no longer. Final.
    NotAMember,
}

impl Content {
    /// Whether the message has numbers as its payload. The sender of such a message waits for an answer, and of no other.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        matches!(self, Self::Contribution { .. } | Self::Promise { .. } | Self::Accept { .. })
    }
}
