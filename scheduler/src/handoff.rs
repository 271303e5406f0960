//! What was handed on to the next stage.

pub(crate) mod attempts;
pub(crate) mod neighbours;
pub(crate) mod status_timer;
