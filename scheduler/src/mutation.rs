//! Rules that can be broken on purpose, to see whether the simulation notices. Outside tests none is.

/// A rule, by what breaking it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A replica throws its output away when it has handed it on.
    ReleaseEarly,
    /// A feeder grants whatever is claimed.
    GrantTwice,
    /// A slot is free again when the microbatch was handed on.
    SlotEarly,
    /// Another start of a peer is taken for the peer.
    IgnoreIncarnation,
    /// What is sent downstream carries the number of what came from upstream.
    OneAttempt,
    /// Nobody is asked before a microbatch is sent anew.
    ForwardUnasked,
}
