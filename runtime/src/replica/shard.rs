//! Builds the shard of a stage on the executor's thread.

use std::path::PathBuf;

use bytes::Bytes;
use swarmline_kernels::Backend;
use swarmline_kernels::device::Work;
use swarmline_scheduler::StageIndex;

use crate::config::Run;
use crate::error::Error;
use crate::stage::{Compute, Engine, Learning};

/// Builds the engine of a stage, on any device.
#[derive(Debug)]
pub(super) struct ShardBuilder {
    pub(super) run: Run,
    pub(super) stage: StageIndex,
    /// Limit of the microbatches between forward and backward.
    pub(super) stashes: usize,
    /// The state that this process had when it was expelled.
    pub(super) kept: Option<Bytes>,
    /// File of the weights to begin with, unless there is such a state.
    pub(super) resume: Option<PathBuf>,
    pub(super) parameter_log: Option<PathBuf>,
}

impl Work for ShardBuilder {
    type Output = Result<Box<dyn Compute>, Error>;

    fn on<B: Backend>(self, mut open: impl FnMut() -> swarmline_kernels::Result<B>) -> Self::Output {
        let mut engine = Engine::new(open()?, &self.run, self.stage, self.stashes, Learning::Active)?;
        engine.record_parameters(self.parameter_log)?;
        if let Some(state) = self.kept {
            engine.restore_state(&state, None)?;
        } else if let Some(path) = self.resume {
            let resumed = engine.resume(&path);
            engine.write_parameter_log()?;
            resumed?;
        }
        Ok(Box::new(engine))
    }
}
