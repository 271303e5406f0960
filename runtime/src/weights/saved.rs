//! The stages that a run has saved, read as the model in one piece.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use swarmline_kernels::Cpu;

use super::small_files::{read_json, write_json};
use super::{TensorFiles, Weights, WeightsError};
use crate::checkpoint::LocalCheckpoint;
use crate::config::{Entry, Model, Run, Stream};
use crate::subspace::Subspace;

/// Name of the file with the [`Summary`], beside those of the stages.
const SUMMARY: &str = "train.json";

/// How a training ended whose weights are in the same folder.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Microbatches trained.
    pub microbatches: u64,
    /// Loss of the run on held-out text, nats a token.
    pub held_out_loss: f64,
}

impl Summary {
    /// Writes the summary into `folder`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(self, folder: &Path) -> Result<(), WeightsError> {
        write_json(&folder.join(SUMMARY), &serde_json::json!(self))
    }

    /// The summary in `folder`; `None` without one that can be read.
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&read_json(&folder.join(SUMMARY)).ok()?).ok()
    }
}

/// The held-out loss that a run states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatedLoss {
    /// Nats a token.
    pub loss: f64,
    /// Microbatches of the run that had their outcome when it was measured; `None` if the run does not say.
    pub after: Option<u64>,
}

impl From<Summary> for StatedLoss {
    fn from(summary: Summary) -> Self {
        Self { loss: summary.held_out_loss, after: Some(summary.microbatches) }
    }
}

/// A folder with the weights of all stages of a run, one safetensors file each: a checkpoint, or what a training saved.
/// Names are global, so the cut of the files does not matter.
#[derive(Debug)]
pub struct SavedRun {
    folder: PathBuf,
    run: Run,
    base: PathBuf,
    stated_loss: Option<StatedLoss>,
    model: Model,
    /// The first layer that the loss depends on: behind a cut that nothing crosses, the stream starts again.
    first_layer: usize,
    files: TensorFiles,
    lift: Lift,
    /// The checkpoint that the files are of. One that was copied from a bucket is removed with it.
    _checkpoint: Option<LocalCheckpoint>,
}

/// The subspace of a run with constrained layers, and the device that lifts.
#[derive(Debug)]
struct Lift {
    cpu: Cpu,
    space: Option<Subspace<Cpu>>,
}

impl SavedRun {
    /// Opens the `.safetensors` files in `folder`, which stages of `run` have saved. Relative paths of the run start
    /// from `base`; `threads` lift.
    ///
    /// # Errors
    /// A file cannot be read, a parameter of the run is missing, is in two files, or has another shape.
    pub fn open(folder: &Path, run: Run, base: PathBuf, threads: usize) -> Result<Self, WeightsError> {
        let stated_loss = Summary::read(folder).map(StatedLoss::from);
        Self::of_files(folder, open_all(folder)?, run, base, stated_loss, threads)
    }

    /// Opens a checkpoint. Of the run of a run file that is given, and of the folder that its paths start from, the text
    /// counts: a checkpoint does not name it.
    ///
    /// # Errors
    /// As [`SavedRun::open`], or the checkpoint is of a run that this program cannot read.
    pub fn of_checkpoint(
        checkpoint: LocalCheckpoint,
        given: Option<(Run, PathBuf)>,
        threads: usize,
    ) -> Result<Self, WeightsError> {
        let (folder, manifest) = (checkpoint.folder(), checkpoint.manifest());
        let run = manifest.run()?;
        let (run, base) = match given {
            Some((given, base)) => (Run { data: given.data, ..run }, base),
            None => (run, folder.to_owned()),
        };
        let paths = manifest.stages.iter().map(|stage| folder.join(&stage.file));
        let files = TensorFiles::open(folder, paths)?;
        let after = manifest.heldout_after;
        let stated_loss = manifest.heldout_loss.map(|loss| StatedLoss { loss, after });
        let saved = Self::of_files(folder, files, run, base, stated_loss, threads)?;
        Ok(Self { _checkpoint: Some(checkpoint), ..saved })
    }

    fn of_files(
        folder: &Path,
        files: TensorFiles,
        run: Run,
        base: PathBuf,
        stated_loss: Option<StatedLoss>,
        threads: usize,
    ) -> Result<Self, WeightsError> {
        let first_layer = first_layer(&run);
        let model = Model { num_hidden_layers: run.model.num_hidden_layers - first_layer, ..run.model };
        let mut cpu = Cpu::new(threads)?;
        let space = (run.constrained_layers() > 0).then(|| Subspace::new(&mut cpu, &run)).transpose()?;
        let lift = Lift { cpu, space };
        let folder = folder.to_owned();
        let saved =
            Self { folder, run, base, stated_loss, model, first_layer, files, lift, _checkpoint: None };
        saved.check()?;
        Ok(saved)
    }

    /// The run, as its stages trained it.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The folder that relative paths of the run start from.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The held-out loss that the run states.
    #[must_use]
    pub fn stated_loss(&self) -> Option<StatedLoss> {
        self.stated_loss
    }

    fn check(&self) -> Result<(), WeightsError> {
        const REMEDY: &str = "Give the run file that the weights were trained with: --run FILE";
        for spec in self.run.parameter_specs(0..self.run.model.num_hidden_layers) {
            let Some(file) = self.files.with(&spec.name) else {
                let problem = format!("no file in it has the parameter {}", spec.name);
                let remedy =
                    "Put the files of all stages there, and give the run file they were trained with";
                return Err(WeightsError::unusable(&self.folder, problem, remedy));
            };
            let shape = file.shape(&spec.name).unwrap_or_default();
            if shape != spec.shape {
                let problem = format!("{} has shape {shape:?}, the run demands {:?}", spec.name, spec.shape);
                return Err(WeightsError::unusable(file.path(), problem, REMEDY));
            }
        }
        Ok(())
    }

    /// The parameter as the stage holds it.
    fn read_as_saved(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match self.files.with_mut(name) {
            Some(file) => file.read(name),
            None => {
                let problem = format!("no file in it has the parameter {name}");
                Err(WeightsError::unusable(&self.folder, problem, "Save the run again"))
            }
        }
    }

    /// The name in the run of a parameter of the model in one piece.
    fn name_in_run(&self, name: &str) -> String {
        if name == "embed" && self.first_layer > 0 {
            return format!("layers.{}.anchor", self.first_layer);
        }
        match layer_and_part(name) {
            Some((layer, part)) => format!("layers.{}.{part}", layer + self.first_layer),
            None => name.to_owned(),
        }
    }
}

impl Weights for SavedRun {
    fn model(&self) -> &Model {
        &self.model
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let values = self.read_as_saved(&self.name_in_run(name))?;
        let Lift { cpu, space: Some(space) } = &mut self.lift else { return Ok(values) };
        let is_constrained = |layer| self.run.stream(layer) == Stream::Coordinates;
        match layer_and_part(name) {
            Some((layer, "attention.wo" | "ffn.down")) if is_constrained(layer) => {
                Ok(space.lift_writer(cpu, &values)?)
            }
            None if name == "embed" => Ok(space.lift_embedding(cpu, &values)?),
            _ => Ok(values),
        }
    }
}

/// The layer and the part of a name such as `layers.7.attention.wq`.
fn layer_and_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

fn first_layer(run: &Run) -> usize {
    let restarts = |layer: &usize| run.entry(*layer) == Entry::Restart;
    (0..run.model.num_hidden_layers).rev().find(restarts).unwrap_or(0)
}

fn open_all(folder: &Path) -> Result<TensorFiles, WeightsError> {
    if !folder.is_dir() {
        let remedy =
            "Give a checkpoint, the folder of a keeper, or what `swarmline train --save` has written";
        return Err(WeightsError::unusable(folder, "there is no such folder", remedy));
    }
    let entries = std::fs::read_dir(folder).map_err(WeightsError::file("open the folder", folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> =
        paths.collect::<Result<_, _>>().map_err(WeightsError::file("read the folder", folder))?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    paths.sort();
    if paths.is_empty() {
        let remedy = "Give the folder that `swarmline train --save FOLDER` has written";
        return Err(WeightsError::unusable(folder, "no .safetensors file is in it", remedy));
    }
    TensorFiles::open(folder, paths)
}
