//! How a process of a run ended.

/// How a coordinator, a feeder, a replica or a training ended, if nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run is over: every microbatch has its outcome.
    Finished,
    /// It was asked to stop before that, and has handed over its work.
    Stopped,
}
