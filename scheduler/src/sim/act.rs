//! What a liar does, beside its work or instead of it.

/// One way to lie, with a valid key and a place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It claims every open microbatch that it was never handed, as if the feeder had handed it over.
    FalseClaims,
    /// The same, as if an honest replica of the stage before had handed it over.
    BorrowedClaims,
    /// It refuses microbatches that it was never handed.
    FalseRefusals,
    /// It hands microbatches that it was never handed to every replica of the next stage.
    ForgedForwards,
    /// It asks the next stage for the gradients of microbatches that it was never handed.
    ForgedRequests,
    /// At stage 0 it returns each microbatch at once, with a made-up path and loss.
    InventedPaths,
    /// It takes everything, computes nothing, says that it holds it, and offers more room than any other replica.
    BlackHole,
    /// In averaging rounds it says the largest weight there is.
    HugeWeight,
    /// It contributes wild numbers to averaging rounds.
    WildNumbers,
    /// As an owner it proposes two means of a part, one to each half of the members.
    TwoMeans,
    /// As an owner it takes contributions and proposes nothing, and it never votes.
    SilentOwner,
}

impl Act {
    pub(super) const ALL: [Self; 11] = [
        Self::FalseClaims,
        Self::BorrowedClaims,
        Self::FalseRefusals,
        Self::ForgedForwards,
        Self::ForgedRequests,
        Self::InventedPaths,
        Self::BlackHole,
        Self::HugeWeight,
        Self::WildNumbers,
        Self::TwoMeans,
        Self::SilentOwner,
    ];

    /// The name in [`Report::paths`](super::Report::paths).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FalseClaims => "false claims",
            Self::BorrowedClaims => "false claims that name an upstream",
            Self::FalseRefusals => "false refusals",
            Self::ForgedForwards => "forged forwards",
            Self::ForgedRequests => "forged status requests",
            Self::InventedPaths => "invented paths",
            Self::BlackHole => "black hole",
            Self::HugeWeight => "huge weight",
            Self::WildNumbers => "wild numbers",
            Self::TwoMeans => "two means",
            Self::SilentOwner => "silent owner",
        }
    }
}
