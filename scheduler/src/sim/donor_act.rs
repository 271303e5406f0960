//! What a lying donor gives to joiners.

/// One way for a donor to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DonorAct {
    /// Chunks that differ from its manifest.
    WrongChunks,
    /// A manifest that describes no state of the run.
    WrongManifest,
    /// A state of its own, with a manifest and sketches that fit it.
    ForgedState,
    /// The first chunks of a state, and no others.
    HalfAState,
    /// Offers without end, each of another copy.
    EndlessOffers,
}

impl DonorAct {
    pub(super) const ALL: [Self; 5] =
        [Self::WrongChunks, Self::WrongManifest, Self::ForgedState, Self::HalfAState, Self::EndlessOffers];

    /// The name in [`Report::paths`](super::Report::paths).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WrongChunks => "donor: wrong chunks",
            Self::WrongManifest => "donor: wrong manifest",
            Self::ForgedState => "donor: forged state",
            Self::HalfAState => "donor: half a state",
            Self::EndlessOffers => "donor: endless offers",
        }
    }
}
