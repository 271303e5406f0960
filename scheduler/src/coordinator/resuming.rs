//! A launch that begins at a checkpoint: all processes were killed, or a person goes back. Its blocks of ids are those of the
//! checkpoint, behind what had its outcome, and its stages are trained. No member of the launch before is one of this.

use super::restart::Restart;
use super::{Config, Coordinator, LeaseBook};
use crate::{BlockTally, Origin, PeerId, StageIndex};

impl Coordinator {
    /// The coordinator of a run that goes on from a checkpoint, at its `cursor`: the progress of every block.
    #[must_use]
    pub fn resumed(config: Config, origin: Origin, cursor: &[BlockTally]) -> Self {
        let mut run = Self {
            leases: LeaseBook::at(config.total, cursor),
            trained: (0..config.stages).map(StageIndex).collect(),
            restart: Some(Restart::of_new_launch(config.launch)),
            origin: Some(origin),
            has_run: true,
            ..Self::new(config)
        };
        run.publishing.change();
        run
    }

    /// Whether a process of this peer may have weights of this launch. Those of the launch before are of no use.
    pub(super) fn may_have_weights(&self, peer: PeerId) -> bool {
        self.origin.is_none() || self.members.contains(peer) || self.former.latest(peer).is_some()
    }

    /// The checkpoint that the launch began at; `None` if it began with initial weights.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.origin
    }
}
