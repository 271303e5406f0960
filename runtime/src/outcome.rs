//! The outcome of a process.

/// The end of a coordinator, a feeder, a replica or a training that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run is over: every microbatch has its outcome.
    Finished,
    /// The process was asked to stop earlier, and has handed over its work.
    Stopped,
}
