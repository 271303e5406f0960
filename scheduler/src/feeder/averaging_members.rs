//! The replicas that average with each other, noted once for every table: events come far more often than tables.

use crate::{Instance, PeerTable, StageIndex};

/// The members of the averaging rounds, by stage.
#[derive(Clone, Debug, Default)]
pub(super) struct AveragingMembers {
    /// Version of the table they are taken from.
    version: u64,
    stages: Vec<Vec<Instance>>,
}

impl AveragingMembers {
    /// Follows the table. Returns whether it is another than at the last call.
    pub(super) fn follow(&mut self, table: &PeerTable, stages: u16) -> bool {
        if self.version == table.version() {
            return false;
        }
        self.version = table.version();
        self.stages = (0..stages).map(|stage| members(table, StageIndex(stage))).collect();
        self.stages.retain(|members| members.len() > 1);
        true
    }

    /// The replicas of the stages that have more than one.
    pub(super) fn stages(&self) -> &[Vec<Instance>] {
        &self.stages
    }
}

fn members(table: &PeerTable, stage: StageIndex) -> Vec<Instance> {
    table.hops(stage).iter().map(|hop| hop.instance).collect()
}
