//! What a replica knows of a range of ids whose feeder has gone.

use crate::{AckRange, MicrobatchId, StageIndex};

/// Items of one page at most.
pub const RECOVERY_ITEMS_MAX: usize = 64;

/// A page of what a replica knows. The grants in it are final: the replica takes no more from the former feeder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The first id of the range.
    pub first: MicrobatchId,
    /// Number of the successor that asked.
    pub epoch: u64,
    /// The page covers ids from here on.
    pub from: MicrobatchId,
    /// The first id of the next page; `None` if this is the last.
    pub next: Option<MicrobatchId>,
    /// The stage of the sender.
    pub stage: StageIndex,
    /// The outcomes that the former feeder has announced.
    pub ended: Vec<AckRange>,
    /// Ids without an outcome that the sender holds or has applied, at most [`RECOVERY_ITEMS_MAX`].
    pub items: Vec<Item>,
}

/// What a replica knows of one id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The id.
    pub microbatch: MicrobatchId,
    /// What the former feeder answered to the sender's claim: granted, or denied because another replica has the
    /// grant. `None` if it answered nothing.
    pub granted: Option<bool>,
    /// How far the sender has it.
    pub possession: Possession,
    /// Stages that a replica has left since the sender took it: that replica may have had the grant, and no other
    /// process knows.
    pub may_have_been_granted: Vec<StageIndex>,
}

/// How far a replica has a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Possession {
    /// It is no longer here.
    Gone,
    /// It is held; its gradient has not returned.
    Held,
    /// Its gradient is here, with the path that tells which replicas computed it.
    Returned,
}
