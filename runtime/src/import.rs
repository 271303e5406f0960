//! A model in one piece, in a folder that `transformers` loads, as the beginning of a run: its weights are cut into the
//! stages, with moments that know no gradient yet.

use std::path::{Path, PathBuf};

use swarmline_kernels::{Backend, Cpu};
use swarmline_scheduler::StageIndex;

use crate::checkpoint::{Checkpoint, FORMAT, Manifest, Store};
use crate::config::{self, Run};
use crate::error::Error;
use crate::model::{ShardError, SnapshotError};
use crate::stage::{Engine, Learning};
use crate::weights::{HuggingFace, Weights as _};

/// Launch of a checkpoint that no launch of the run has made: before every one.
const BEFORE_EVERY_LAUNCH: u64 = 0;

/// A folder with weights that fit a run.
#[derive(Debug)]
pub(crate) struct Import {
    folder: PathBuf,
    weights: HuggingFace,
}

impl Import {
    /// Opens a folder for a run, whose paths start from `base`.
    ///
    /// # Errors
    /// The boundary of the run confines its weights, the folder cannot be read, or its model is of another size or has
    /// another tokenizer.
    pub(crate) fn open(folder: &Path, run: &Run, base: &Path) -> Result<Self, Error> {
        if !run.is_dense() {
            let kind = run.boundary.kind.into();
            return Err(Error::NotDense { folder: folder.to_owned(), kind });
        }
        let weights = HuggingFace::open(folder)?;
        weights.check_run(run, base)?;
        Ok(Self { folder: folder.to_owned(), weights })
    }

    /// Replaces the weights of a stage.
    ///
    /// # Errors
    /// If a parameter cannot be read, or the device fails.
    pub(crate) fn fill<B: Backend>(&mut self, stage: &mut Engine<B>) -> Result<(), Error> {
        let (folder, shard) = (&self.folder, stage.shard());
        let names: Vec<String> = shard.params().iter().map(|parameter| parameter.name.clone()).collect();
        names.iter().try_for_each(|name| {
            let values = self.weights.read(name)?;
            let unfit =
                |error: SnapshotError| Error::Weights { path: folder.clone(), reason: error.to_string() };
            shard.upload(name, &values).map_err(unfit)
        })
    }

    /// Writes the checkpoint that `run` begins at. One stage is in memory at a time.
    ///
    /// # Errors
    /// If a parameter cannot be read, memory is short, or the target takes no files.
    pub(crate) async fn write_checkpoint(
        &mut self,
        run: &config::Manifest,
        target: &Store,
    ) -> Result<Checkpoint, Error> {
        let mut writer = target.begin(0);
        for stage in run.run().stages() {
            let state = self.state(run.run(), stage)?;
            writer.stage(stage.0, 0, state.into()).await?;
        }
        Ok(writer.complete(manifest(run)).await?)
    }

    fn state(&mut self, run: &Run, stage: StageIndex) -> Result<Vec<u8>, Error> {
        let unfit =
            |error: ShardError| Error::Weights { path: self.folder.clone(), reason: error.to_string() };
        let mut engine = Engine::new(Cpu::new(1)?, run, stage, 0, Learning::Active).map_err(unfit)?;
        self.fill(&mut engine)?;
        Ok(engine.export_state()?)
    }
}

/// What the checkpoint says but for its files.
fn manifest(run: &config::Manifest) -> Manifest {
    Manifest {
        format: FORMAT,
        run_name: run.run().name.clone(),
        run_digest: blake3::Hash::from_bytes(run.digest()).to_hex().to_string(),
        run: String::from_utf8_lossy(&run.to_bytes()).into_owned(),
        launch: BEFORE_EVERY_LAUNCH,
        microbatches: 0,
        stages: Vec::new(),
        cursor: Vec::new(),
        tokenizer: None,
        heldout_loss: None,
        heldout_after: None,
        is_final: false,
        is_agreed: false,
    }
}
