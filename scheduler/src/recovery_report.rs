//! The recovery report: a replica's knowledge of a range of ids whose feeder is gone.

use crate::{AckRange, MicrobatchId, StageIndex};

/// Items of one page at most.
pub const RECOVERY_ITEMS_MAX: usize = 64;

/// A page of a recovery report. Its grants are final: the replica takes no more grants from the former feeder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The first id of the range.
    pub first: MicrobatchId,
    /// Number of the successor that asked, from 1.
    pub epoch: u64,
    /// The first id that the page covers.
    pub from: MicrobatchId,
    /// The first id of the next page; `None` if this page is the last.
    pub next: Option<MicrobatchId>,
    /// The stage of the sender.
    pub stage: StageIndex,
    /// The outcomes that feeders have announced to the sender.
    pub ended: Vec<AckRange>,
    /// Ids without an outcome that the sender holds or has applied, at most [`RECOVERY_ITEMS_MAX`].
    pub items: Vec<Item>,
}

/// A replica's knowledge of one id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The microbatch.
    pub microbatch: MicrobatchId,
    /// The former feeder's answer to the sender's claim: granted, or denied because another replica has the grant.
    /// `None` if there was no answer.
    pub granted: Option<bool>,
    /// The sender's possession of the microbatch.
    pub possession: Possession,
    /// Stages that a replica has left since the sender took the microbatch: that replica may have had the grant, and no
    /// other process knows.
    pub may_have_been_granted: Vec<StageIndex>,
}

/// A replica's possession of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Possession {
    /// The replica does not hold it.
    Gone,
    /// The replica holds it; its gradient has not returned.
    Held,
    /// The replica has its gradient, with the path of the replicas that computed it.
    Returned,
}
