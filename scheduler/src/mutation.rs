//! Rules that can be broken on purpose, to see whether the simulation notices. Outside tests none is.

/// A rule, by what breaking it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A replica throws its output away when it has handed it on.
    ReleaseEarly,
    /// A feeder grants every claim.
    GrantTwice,
    /// A slot is free again when the microbatch was handed on.
    SlotEarly,
    /// Another start of a peer is taken for the peer.
    IgnoreIncarnation,
    /// A forward carries the number of the one that came from upstream.
    OneAttempt,
    /// A known holder is not asked before a retry.
    ForwardUnasked,
    /// A replica leaves when it is drained, with contributions that no other replica has.
    LeaveUnaveraged,
    /// A joiner stores whatever chunk it is sent.
    TrustChunks,
}
