//! States of the newest checkpoint, for replicas of stages that have lost their last replica.

use std::collections::BTreeMap;

use bytes::Bytes;
use swarmline_scheduler::keeper::{Event, Given};
use swarmline_scheduler::transfer::{SketchSeed, StateId};
use swarmline_scheduler::{Instance, StageIndex, WeightVersion};
use tokio::task::JoinSet;

use super::target::within;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::stage::StateCopy;

/// What was read or computed for a joiner.
type Ready = (Event<Bytes>, Option<(Given, StateCopy)>, Option<CheckpointError>);

/// The copies that are given, at most one of each stage.
#[derive(Debug, Default)]
pub(super) struct GivenStates {
    copies: BTreeMap<StageIndex, (StateId, StateCopy)>,
    /// Reads and projections under way; the scheduler bounds them by stage and joiner.
    tasks: JoinSet<Ready>,
}

impl GivenStates {
    /// Begins to read the state of a stage; without a checkpoint there is none.
    pub(super) fn read(&mut self, given: Given, checkpoint: Option<&Checkpoint>) {
        let checkpoint = checkpoint.cloned();
        self.tasks.spawn(async move {
            let Some(checkpoint) = checkpoint else {
                return (Event::Exported { given, manifest: None }, None, None);
            };
            match within(&checkpoint.location(), read(&checkpoint, given.stage)).await {
                Ok(copy) => {
                    let manifest = copy.as_ref().map(|copy| copy.manifest().clone());
                    (Event::Exported { given, manifest }, copy.map(|copy| (given, copy)), None)
                }
                Err(fault) => (Event::Exported { given, manifest: None }, None, Some(fault)),
            }
        });
    }

    /// Bytes of a copy; `None` after its release.
    pub(super) fn chunk(&self, given: Given, offset: u64, bytes: u32) -> Option<Bytes> {
        self.copy(given).map(|copy| copy.chunk(offset, bytes))
    }

    /// Begins to compute the projections of a copy; does nothing after its release.
    pub(super) fn sketch(&mut self, to: Instance, given: Given, seed: SketchSeed) {
        let Some(copy) = self.copy(given).cloned() else { return };
        self.tasks.spawn_blocking(move || {
            (Event::Sketched { to, given, seed, sketch: copy.sketch(seed) }, None, None)
        });
    }

    pub(super) fn release(&mut self, given: Given) {
        if self.copy(given).is_some() {
            self.copies.remove(&given.stage);
        }
    }

    /// The next read or computation that is done, with a fault of the checkpoint. Cancelling the wait loses nothing;
    /// without work it never resolves.
    pub(super) async fn next(&mut self) -> (Event<Bytes>, Option<CheckpointError>) {
        match self.tasks.join_next().await {
            Some(Ok((event, copy, fault))) => {
                self.copies.extend(copy.map(|(given, copy)| (given.stage, (given.state, copy))));
                (event, fault)
            }
            Some(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
            None => std::future::pending().await,
        }
    }

    fn copy(&self, given: Given) -> Option<&StateCopy> {
        let (state, copy) = self.copies.get(&given.stage)?;
        (*state == given.state).then_some(copy)
    }
}

/// The state of a stage, which is as it was written.
async fn read(checkpoint: &Checkpoint, stage: StageIndex) -> Result<Option<StateCopy>, CheckpointError> {
    let steps = checkpoint.manifest().stages.iter().find(|file| file.stage == stage.0);
    let version = WeightVersion(steps.map_or(0, |file| file.steps));
    let state = checkpoint.read_stage(stage.0).await?;
    let copying = tokio::task::spawn_blocking(move || StateCopy::new(version, state));
    match copying.await {
        Ok(copy) => Ok(copy),
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
