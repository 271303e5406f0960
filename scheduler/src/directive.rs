//! The coordinator's directive to a member, in every reply to a heartbeat.

use crate::StageIndex;

/// A directive of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Go on as before.
    Continue,
    /// Get ready to serve this stage, then report ready.
    Serve(StageIndex),
    /// The run is over: leave.
    Finished,
    /// Training has diverged, and the run is over: end.
    Diverged {
        /// Microbatches of the run that had their outcome when it was noticed.
        at: u64,
    },
    /// Finish the microbatches in flight, then leave. The text is for people.
    Leave(String),
}
