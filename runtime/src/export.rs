//! The model that a run leaves behind, as a folder that `transformers` loads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarmline_kernels::Cpu;
use swarmline_scheduler::{Block, MicrobatchId};

use crate::config::Run;
use crate::data::{Batches, Corpus};
use crate::error::Error;
use crate::model::{Shard, Upstream};
use crate::packing::TokenCodec;
use crate::report::{Event, ExportReport, Reporter};
use crate::weights::huggingface::{self, Dtype};
use crate::weights::{HuggingFace, SavedRun, Weights, dense_parameters};

/// The folder to make of the weights of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExportOptions {
    /// The folder to write: new or empty.
    pub to: PathBuf,
    /// Type of the numbers in it. Default f32.
    pub dtype: Dtype,
    /// Threads that compute. Default 1.
    pub threads: usize,
}

impl ExportOptions {
    /// Exports to the folder `to`, with the defaults.
    #[must_use]
    pub fn new(to: PathBuf) -> Self {
        Self { to, dtype: Dtype::default(), threads: 1 }
    }
}

/// Writes the folder, and computes the held-out loss of the model in it if the text of the run can be read.
///
/// # Errors
/// The weights do not fit the run, the target is not empty, a file cannot be read or written, or the loss is not finite.
pub fn export(mut saved: SavedRun, options: &ExportOptions, reporter: &Reporter) -> Result<(), Error> {
    let ExportOptions { to, dtype, threads } = options;
    let (run, base) = (saved.run().clone(), saved.base().to_owned());
    let bytes = huggingface::write(to, &mut saved, *dtype, &run, &base)?;
    let parameters = dense_parameters(saved.model()).iter().map(|parameter| parameter.numbers() as u64).sum();
    let (loss, unmeasured) = match held_out_text(&run, &base) {
        Ok(corpus) => {
            let mut exported = HuggingFace::open(to)?;
            (Some(held_out_loss(&run, corpus, &mut exported, *threads)?), None)
        }
        Err(cause) => (None, Some(cause)),
    };
    reporter.tell(&Event::Exported(ExportReport {
        path: to.display().to_string(),
        parameters,
        bytes,
        loss,
        unmeasured,
        loss_of_run: saved.stated_loss().map(|stated| stated.loss),
        loss_of_run_after: saved.stated_loss().and_then(|stated| stated.after),
    }));
    Ok(())
}

/// The text of a run, or the reason why there is none.
fn held_out_text(run: &Run, base: &Path) -> Result<Corpus, String> {
    if run.data.paths.is_empty() {
        return Err("a checkpoint does not name its text; give the run file with --run FILE".to_owned());
    }
    Corpus::open(run, base).map_err(|cause| cause.to_string())
}

/// Mean loss of a model in one piece on the held-out text of `run`, nats a token.
fn held_out_loss(run: &Run, corpus: Corpus, weights: &mut dyn Weights, threads: usize) -> Result<f64, Error> {
    let run = run.in_one_piece(*weights.model());
    let mut shard = shard(&run, weights, threads)?;
    let (codec, batches) = (TokenCodec::new(&run), Batches::new(&run, Arc::new(corpus)));
    let (mut sum, mut tokens) = (0.0, 0.0);
    for index in 0..run.data.heldout_microbatches as u64 {
        let id = MicrobatchId::evaluation(Block(0), index);
        let drawn = batches.heldout(index);
        let drawn = codec.tokens(&drawn).map_err(|source| Error::Tokens { microbatch: id, source })?;
        let loss = shard.evaluate_loss(id, &drawn, &[], Upstream::Connected)?;
        sum += loss.sum;
        tokens += f64::from(loss.tokens);
    }
    Ok(sum / tokens)
}

/// A shard of all layers with these weights.
fn shard(run: &Run, weights: &mut dyn Weights, threads: usize) -> Result<Shard<Cpu>, Error> {
    let mut shard = Shard::new(Cpu::new(threads)?, run, 0..run.model.num_hidden_layers, 0)?;
    for parameter in dense_parameters(&run.model) {
        let values = weights.read(&parameter.name)?;
        shard.upload(&parameter.name, &values).map_err(|error| unfit(&parameter.name, &error))?;
    }
    Ok(shard)
}

fn unfit(name: &str, error: &dyn std::error::Error) -> Error {
    Error::Weights { path: Path::new(name).to_owned(), reason: error.to_string() }
}
