//! Rules that a test can break on purpose, to check that the simulation notices. Outside tests no rule is broken.

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A replica drops its output when it has handed it on.
    ReleaseEarly,
    /// A replica takes the open microbatches of an announcement for ended.
    ReleaseOpen,
    /// A feeder grants every claim.
    GrantTwice,
    /// A slot is free again as soon as the microbatch was handed on.
    SlotEarly,
    /// Every start of a peer counts as the same instance.
    IgnoreIncarnation,
    /// A forward carries the attempt number of the forward from upstream.
    OneAttempt,
    /// A known holder is not asked before a retry.
    ForwardUnasked,
    /// A replica leaves when it is drained, with contributions that no other replica has.
    LeaveUnaveraged,
    /// A replica ends with contributions that wait for the rest of their step.
    KeepRest,
    /// A feeder believes every claim, without proof that the replica was handed the microbatch.
    BelieveClaims,
    /// The coordinator lists every replica that says it serves, with whatever weights.
    BeginBesideTrained,
    /// A joiner stores every chunk without a check.
    TrustChunks,
}
