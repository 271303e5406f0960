//! What the coordinator wants of a member, told with every answer to a heartbeat.

use crate::StageIndex;

/// The wish of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Go on.
    Continue,
    /// Get ready to serve this stage, and say so when it is done.
    Serve(StageIndex),
    /// The run is over: leave.
    Finished,
    /// Finish what is in flight, then leave. The text is for people.
    Leave(String),
}
