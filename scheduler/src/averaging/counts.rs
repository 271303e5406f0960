//! Counters of averaging.

use super::group::{PartIndex, Round};
use crate::Instance;

/// The fault of a contribution that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A number is NaN, an infinity, or another value that no replica can have.
    #[error("a number in it is not finite")]
    NonFinite,
    /// The contribution has not as many numbers as the part.
    #[error("it has another length than the part")]
    Malformed,
}

/// A note for metrics and people; the totals are in [`Counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A part was applied here.
    Applied(Round, PartIndex),
    /// A part was applied here, but its mean lacks this replica's contribution, which waits for the next round.
    NotCarried(Round, PartIndex),
    /// A part was given to the next owner, because its owner is silent or gone.
    Reassigned(Round, PartIndex),
    /// The contribution of a member did not arrive in time; the mean is made without it.
    LeftOut(Round, PartIndex, Instance),
    /// The contribution of a member cannot be used; the mean is made without it.
    Refused(Instance, Fault),
    /// A member says that it has accepted another mean of this owner than this replica: one of the two lies. Neither mean
    /// is applied but by a larger majority.
    TwoMeans {
        /// The owner, which may have proposed two means.
        owner: Instance,
        /// The member, which may have accepted none like that.
        voter: Instance,
    },
    /// No member had contributed to a part.
    Empty(Round, PartIndex),
    /// A part was given up in this round, unchanged; it waits for the next round of its fragment.
    GivenUp(Round, PartIndex),
    /// A message from an instance that is no live replica of this stage; ignored.
    Stranger(Instance),
    /// A message from a member with another list of members in this round; ignored.
    OtherMembers(Instance),
    /// A message that does not fit the round it is about; ignored.
    Malformed(Instance),
    /// A message that came too late to matter; ignored.
    Late(Instance),
}

/// Totals since this replica started, by [`Note`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Rounds ended here.
    pub rounds: u64,
    /// Rounds of `rounds` that have carried this replica's contributions in full, or had nothing to carry.
    pub complete: u64,
    /// Parts applied.
    pub applied: u64,
    /// Parts of `applied` whose mean lacks this replica's contribution.
    pub not_carried: u64,
    /// Parts given to another owner.
    pub reassigned: u64,
    /// Contributions that came too late for their mean, at parts owned here.
    pub left_out: u64,
    /// Contributions that could not be used, at parts owned here.
    pub refused: u64,
    /// Votes that contradict a mean of the same owner.
    pub two_means: u64,
    /// Parts that no member had contributed to.
    pub empty: u64,
    /// Parts given up.
    pub given_up: u64,
    /// Messages from instances that are no live replica of this stage.
    pub strangers: u64,
    /// Messages from members with another list of members.
    pub other_members: u64,
    /// Messages that do not fit their round.
    pub malformed: u64,
    /// Messages too late to matter.
    pub late: u64,
}

impl Counts {
    pub(super) fn add(&mut self, note: &Note) {
        let total = match note {
            Note::Applied(..) => &mut self.applied,
            Note::NotCarried(..) => &mut self.not_carried,
            Note::Reassigned(..) => &mut self.reassigned,
            Note::LeftOut(..) => &mut self.left_out,
            Note::Refused(..) => &mut self.refused,
            Note::TwoMeans { .. } => &mut self.two_means,
            Note::Empty(..) => &mut self.empty,
            Note::GivenUp(..) => &mut self.given_up,
            Note::Stranger(_) => &mut self.strangers,
            Note::OtherMembers(_) => &mut self.other_members,
            Note::Malformed(_) => &mut self.malformed,
            Note::Late(_) => &mut self.late,
        };
        *total += 1;
    }
}
