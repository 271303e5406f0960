//! Predictions: the token that follows a text, by the live replicas of a run.
//!
//! A reader takes the text through the stages itself. It sends token ids and activation to a replica of a stage, gets the
//! next activation back, and goes on with a replica of the next stage; the last stage replies with the logits behind one
//! token. No microbatch, lease or grant takes part, and no weight changes. The reader sees what crosses the cuts, and no
//! parameter. A replica that dies is replaced with another one of its stage, which is sent the same activation.

mod reader;
mod serving;
#[cfg(test)]
mod tests;

use crate::StageIndex;

pub use reader::{Action, Config, Event, Failure, Reader, STAGE_WITHIN};
pub use serving::{PREDICTIONS_MAX, PREDICTIONS_OF_READER_MAX};
pub(crate) use serving::{Predictions, ServingAction};

/// A pass of a text through the model, at one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Number of the pass, counted by its reader. Numbers that cross the cuts are rounded by it.
    pub number: u64,
    /// The stage that computes.
    pub stage: StageIndex,
    /// The place of the token whose logits are asked for, from 0, in the first sequence.
    pub position: u32,
}

/// A message between a reader and a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum PredictionMessage {
    /// To a replica, with token ids and the activation: compute the stage.
    Request(Pass),
    /// To the reader, with the next activation, or with the logits of the last stage.
    Reply(Pass),
    /// To the reader: the replica has not computed it.
    Declined {
        /// The pass.
        pass: Pass,
        /// The cause.
        reason: Decline,
    },
}

/// The reason why a replica does not compute a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decline {
    /// Too many passes wait. This is no fault.
    Busy,
    /// The table of the replica names no such reader, or the replica is of another stage.
    NotAReader,
    /// It does not fit the run, or a number in it is not finite; the text says so to people.
    Failed(String),
}

/// The work of an executor on a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictionJob<P> {
    /// The pass.
    pub pass: Pass,
    /// Its token ids, packed.
    pub ids: P,
    /// The packed activation received; empty at stage 0.
    pub activation: P,
}
