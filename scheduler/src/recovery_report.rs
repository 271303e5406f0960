//! What a replica knows of a range of ids whose feeder is gone.

use crate::{MicrobatchId, Span, StageIndex};

/// Items of one page at most.
pub const INVENTORY_MAX: usize = 64;

/// A page of what a replica knows. The grants of the former feeder are final in it: the replica takes none from there
/// any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The first id of the range.
    pub range: MicrobatchId,
    /// Which successor in a row this is for.
    pub epoch: u64,
    /// The page tells of ids from here on.
    pub from: MicrobatchId,
    /// The first id of the next page, if there is one.
    pub next: Option<MicrobatchId>,
    /// The sender's stage.
    pub stage: StageIndex,
    /// What the former feeder has announced.
    pub ended: Vec<Span>,
    /// Ids without an outcome that the sender holds or has applied, at most [`INVENTORY_MAX`].
    pub items: Vec<Item>,
}

/// What a replica knows of one id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which one.
    pub microbatch: MicrobatchId,
    /// What the former feeder said to the sender's claim: yes, or that another one has the grant.
    pub granted: Option<bool>,
    /// How far the sender has it.
    pub stock: Stock,
    /// Stages of which a replica has left since the sender took it: it may have had the grant, and nobody is left who
    /// knows.
    pub doubted: Vec<StageIndex>,
}

/// How far a replica has a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {
    /// It is not here any more.
    Gone,
    /// It is held; its gradient is not there yet.
    Held,
    /// Its gradient is there, and who computed it is known.
    Answered,
}
