//! What a lying feeder does beside its work, or instead of it.

/// One way for a feeder to lie, with a valid key and ids of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeederAct {
    /// It announces that all its microbatches have their outcome, and tells the coordinator so.
    FalseOutcomes,
    /// It announces that all microbatches of the other feeders have their outcome.
    OutcomesOfOthers,
    /// It announces no outcome.
    NoOutcomes,
    /// It grants every claim.
    EveryGrant,
    /// It answers no claim.
    NoGrants,
    /// It answers every claim that the proof is forged.
    FalseForgeries,
    /// It calls rounds without end.
    EndlessRounds,
    /// It injects ids that it was not given: of its block, of another feeder's block, and of no block.
    UnleasedIds,
    /// It tells the coordinator that it was given, has injected and has settled more than the run has.
    FalseTallies,
}

impl FeederAct {
    pub(super) const ALL: [Self; 9] = [
        Self::FalseOutcomes,
        Self::OutcomesOfOthers,
        Self::NoOutcomes,
        Self::EveryGrant,
        Self::NoGrants,
        Self::FalseForgeries,
        Self::EndlessRounds,
        Self::UnleasedIds,
        Self::FalseTallies,
    ];

    /// The name in [`Report::paths`](super::Report::paths).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FalseOutcomes => "feeder: false outcomes",
            Self::OutcomesOfOthers => "feeder: outcomes of others",
            Self::NoOutcomes => "feeder: no outcomes",
            Self::EveryGrant => "feeder: every grant",
            Self::NoGrants => "feeder: no grants",
            Self::FalseForgeries => "feeder: false forgeries",
            Self::EndlessRounds => "feeder: endless rounds",
            Self::UnleasedIds => "feeder: unleased ids",
            Self::FalseTallies => "feeder: false tallies",
        }
    }
}
