//! States of the newest checkpoint, for replicas of stages that have lost their last replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use swarmline_scheduler::keeper::{Event, Given};
use swarmline_scheduler::transfer::{SketchSeed, StateId};
use swarmline_scheduler::{Instance, StageIndex, WeightVersion};
use tokio::task::JoinSet;

use super::target::within;
use crate::checkpoint::{Checkpoint, CheckpointError, Fault};
use crate::config::Run;
use crate::error::StateError;
use crate::stage::{StateCopy, check_state, recut_state, stages_with_layers_of};

/// What was read or computed for a joiner.
type Ready = (Event<Bytes>, Option<(Given, StateCopy)>, Option<CheckpointError>);

/// The copies that are given, at most one of each stage.
#[derive(Debug)]
pub(super) struct GivenStates {
    ours: Ours,
    copies: BTreeMap<StageIndex, (StateId, StateCopy)>,
    /// Reads and projections under way; the scheduler bounds them by stage and joiner.
    tasks: JoinSet<Ready>,
}

/// The run of this keeper.
#[derive(Clone, Debug)]
pub(super) struct Ours {
    pub(super) run: Arc<Run>,
    /// Digest of its manifest, hexadecimal.
    pub(super) digest: String,
}

impl GivenStates {
    /// No copies yet, of a run.
    pub(super) fn new(ours: Ours) -> Self {
        Self { ours, copies: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Begins to read the state of a stage; without a checkpoint there is none.
    pub(super) fn read(&mut self, given: Given, checkpoint: Option<&Checkpoint>) {
        let (ours, checkpoint) = (self.ours.clone(), checkpoint.cloned());
        self.tasks.spawn(async move {
            let Some(checkpoint) = checkpoint else {
                return (Event::Exported { given, manifest: None }, None, None);
            };
            match within(&checkpoint.location(), read(&ours, &checkpoint, given.stage)).await {
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

/// The state of a stage: as it was written, or put together from the states of a run whose layers were cut otherwise.
async fn read(
    ours: &Ours,
    checkpoint: &Checkpoint,
    stage: StageIndex,
) -> Result<Option<StateCopy>, CheckpointError> {
    if checkpoint.manifest().run_digest != ours.digest {
        return recut(ours, checkpoint, stage).await;
    }
    let steps = checkpoint.manifest().stages.iter().find(|file| file.stage == stage.0);
    let version = WeightVersion(steps.map_or(0, |file| file.steps));
    let state = checkpoint.read_stage(stage.0).await?;
    Ok(blocking(move || StateCopy::new(version, state)).await)
}

async fn recut(
    Ours { run, .. }: &Ours,
    checkpoint: &Checkpoint,
    stage: StageIndex,
) -> Result<Option<StateCopy>, CheckpointError> {
    let unfit = |fault: String| CheckpointError { file: checkpoint.location(), fault: Fault::Unfit(fault) };
    let before = checkpoint.manifest().run().map_err(|error| unfit(error.to_string()))?;
    let mut states = Vec::new();
    for part in stages_with_layers_of(&before, run, stage) {
        states.push(checkpoint.read_stage(part.0).await?);
    }
    let run = Arc::clone(run);
    let recut = blocking(move || {
        let (version, state) = recut_state(&run, stage, &states)?;
        check_state(&run, stage, &state, version)?;
        Ok::<_, StateError>(StateCopy::new(version, state))
    });
    recut.await.map_err(|error| unfit(error.to_string()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
