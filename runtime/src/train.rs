//! The engines of all stages in one process, one after the other: the reference for training with a swarm.
//!
//! Every cut packs and unpacks codes as on the wire, so the loss equals the synchronous swarm's.

mod error;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use swarmline_kernels::Backend;
use swarmline_kernels::device::{Setup, Work};
use swarmline_scheduler::feeder::{Divergence, DivergenceWatch};
use swarmline_scheduler::stage::Evaluation;
use swarmline_scheduler::{Block, Loss, MicrobatchId, Refusal};

use crate::atomic_file;
use crate::config::Run;
use crate::data::{Batches, Corpus};
use crate::error::Error;
use crate::import::Import;
use crate::model::Upstream;
use crate::outcome::Outcome;
use crate::packing::TokenCodec;
use crate::report::{Event, FeederReport, ProgressReport, Reporter};
use crate::stage::{Engine, EngineError, Grant, Learning};
use crate::weights::Summary;

pub use error::TrainError;

/// Least time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two looks at `stop` while the text is read.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// A run to train in this process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TrainOptions {
    /// The run to train.
    pub run: Run,
    /// Folder that relative paths of the run start from.
    pub base: PathBuf,
    /// Device, profile and threads.
    pub setup: Setup,
    /// Folder for the final weights, one file a stage. Default: none.
    pub save: Option<PathBuf>,
    /// Folder in the format of Hugging Face whose weights the run begins with. Default: initial weights.
    pub init_from: Option<PathBuf>,
    /// Whether stages before the last learn; frozen stages are a control. Default: `Learning::Active`.
    pub upstream: Learning,
    /// Microbatches between two evaluations, besides those at the start and the end. Default: none between.
    pub evaluate_every: Option<u64>,
}

impl TrainOptions {
    /// Trains `run`, whose relative paths start from the folder `base`, with the defaults.
    #[must_use]
    pub fn new(run: Run, base: PathBuf, setup: Setup) -> Self {
        Self {
            run,
            base,
            setup,
            save: None,
            init_from: None,
            upstream: Learning::Active,
            evaluate_every: None,
        }
    }
}

/// Trains the model of a run in this process, until its last optimizer step or until `stop` is true.
///
/// # Errors
/// The text or the weights to begin with cannot be used, the device has no memory or fails, training diverges
/// ([`Error::Diverged`]), or the weights cannot be written.
pub fn train(options: &TrainOptions, reporter: &Reporter, stop: &AtomicBool) -> Result<Outcome, Error> {
    options.save.as_deref().map_or(Ok(()), try_folder)?;
    let Some(corpus) = open_corpus(options, stop)? else { return Ok(Outcome::Stopped) };
    let corpus = Arc::new(corpus);
    reporter.tell(&Event::corpus(&corpus));
    options.setup.run(Session { options, corpus, reporter, stop })
}

/// Tries the folder that the weights will go to: better a refusal now than weights that are lost at the end.
fn try_folder(folder: &Path) -> Result<(), Error> {
    let failed = |action| move |error| Error::File { action, path: folder.to_owned(), error };
    std::fs::create_dir_all(folder).map_err(failed("create"))?;
    atomic_file::try_place(&folder.join(stage_file(0))).map_err(failed("write into"))
}

/// The file of a stage in the folder of the weights.
fn stage_file(stage: usize) -> String {
    format!("stage-{stage}.safetensors")
}

/// Reads the text; `None` if `stop` is true before the end. The thread that reads a long text is left to itself then.
fn open_corpus(options: &TrainOptions, stop: &AtomicBool) -> Result<Option<Corpus>, Error> {
    let (run, base) = (options.run.clone(), options.base.clone());
    let reading = std::thread::spawn(move || Corpus::open(&run, &base));
    while !reading.is_finished() {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        std::thread::sleep(STOP_CHECK_INTERVAL);
    }
    let corpus = reading.join().map_err(|_| Error::Panicked { work: "reading the text" })?;
    Ok(Some(corpus?))
}

/// One call of [`train`], on the device of its setup.
struct Session<'a> {
    options: &'a TrainOptions,
    corpus: Arc<Corpus>,
    reporter: &'a Reporter,
    stop: &'a AtomicBool,
}

impl Work for Session<'_> {
    type Output = Result<Outcome, Error>;

    fn on<B: Backend>(self, open: impl FnMut() -> swarmline_kernels::Result<B>) -> Self::Output {
        let Session { options, corpus, reporter, stop } = self;
        let mut training = Training::new(options, corpus, open)?;
        if let Some(folder) = &options.init_from {
            training.begin_with(folder, &options.base)?;
        }
        training.evaluate(reporter)?;
        while training.report.injected < options.run.microbatches() {
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            training.microbatch()?;
            training.tell_progress(reporter);
            let done = training.report.injected;
            if options.evaluate_every.is_some_and(|interval| done.is_multiple_of(interval)) {
                training.evaluate(reporter)?;
            }
        }
        training.evaluate(reporter)?;
        reporter.tell(&Event::Feeder(training.final_report()));
        if let Some(folder) = &options.save {
            training.save(folder, reporter)?;
        }
        Ok(Outcome::Finished)
    }
}

struct Training<'a, B: Backend> {
    run: &'a Run,
    batches: Batches,
    tokens: TokenCodec,
    stages: Vec<Engine<B>>,
    report: FeederReport,
    began: Instant,
    computing: Duration,
    since_progress: SinceProgress,
    evaluated_at: Option<u64>,
    held_out: Option<f64>,
    watch: DivergenceWatch<()>,
}

struct SinceProgress {
    at: Instant,
    loss: Loss,
}

impl<'a, B: Backend> Training<'a, B> {
    fn new(
        options: &'a TrainOptions,
        corpus: Arc<Corpus>,
        mut open: impl FnMut() -> swarmline_kernels::Result<B>,
    ) -> Result<Self, Error> {
        let run = &options.run;
        let engine = |stage| {
            let learning = if stage == run.last_stage() { Learning::Active } else { options.upstream };
            // One microbatch is on its way at a time.
            Ok(Engine::new(open()?, run, stage, 1, learning)?)
        };
        Ok(Self {
            run,
            batches: Batches::new(run, corpus),
            tokens: TokenCodec::new(run),
            stages: run.stages().map(engine).collect::<Result<_, Error>>()?,
            report: FeederReport::default(),
            began: Instant::now(),
            computing: Duration::ZERO,
            since_progress: SinceProgress { at: Instant::now(), loss: Loss::default() },
            evaluated_at: None,
            held_out: None,
            watch: DivergenceWatch::default(),
        })
    }

    /// Replaces the initial weights by those of a Hugging Face folder.
    fn begin_with(&mut self, folder: &Path, base: &Path) -> Result<(), Error> {
        let mut import = Import::open(folder, self.run, base)?;
        self.stages.iter_mut().try_for_each(|stage| import.fill(stage))
    }

    /// Trains one microbatch through all stages and back.
    fn microbatch(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let id = MicrobatchId(self.report.injected);
        let ids = self.encode(id, &self.batches.train(id))?;
        self.report.injected += 1;
        match through(&mut self.stages, id, &ids) {
            Ok(loss) => {
                self.watch.note(None);
                self.report.finished += 1;
                self.report.tokens += u64::from(loss.tokens);
                self.since_progress.loss.sum += loss.sum;
                self.since_progress.loss.tokens += loss.tokens;
            }
            Err(error) => self.refuse(id, error)?,
        }
        if self.report.injected == self.run.microbatches() {
            self.step_rest()?;
        }
        self.computing += started.elapsed();
        self.watch.sign().map_or(Ok(()), |sign| Err(self.diverged(sign)))
    }

    /// After the last microbatch, stages that have refused one step with the rest of their accumulation, as replicas do.
    fn step_rest(&mut self) -> Result<(), Error> {
        self.stages.iter_mut().try_for_each(Engine::step_rest)?;
        Ok(())
    }

    fn encode(&self, id: MicrobatchId, ids: &[u32]) -> Result<Vec<u8>, TrainError> {
        self.tokens.encode(ids).map_err(|error| TrainError::Refused { id, cause: error.to_string() })
    }

    /// Refuses a microbatch whose numbers are not finite; other errors are a defect or a failed device.
    fn refuse(&mut self, id: MicrobatchId, error: EngineError) -> Result<(), Error> {
        let cause = error.to_string();
        if error.refusal()? != Refusal::NonFinite {
            return Err(TrainError::Refused { id, cause }.into());
        }
        self.stages.iter_mut().for_each(|stage| stage.forget(id));
        self.watch.note(Some(()));
        self.report.refused += 1;
        Ok(())
    }

    /// Loss on held-out text, with the upstream, and without it if there is an upstream.
    fn evaluate(&mut self, reporter: &Reporter) -> Result<(), Error> {
        if self.evaluated_at.replace(self.report.injected) == Some(self.report.injected) {
            return Ok(());
        }
        let trained = self.report.injected == self.run.microbatches();
        let cut = (trained && self.stages.len() > 1).then_some(Upstream::Cut);
        for upstream in [Some(Upstream::Connected), cut].into_iter().flatten() {
            let (loss, upstream_cut) = (self.held_out(upstream)?.mean(), upstream == Upstream::Cut);
            if !upstream_cut {
                self.held_out = Some(loss);
            }
            reporter.tell(&Event::Evaluation { done: self.report.injected, loss, upstream_cut });
        }
        Ok(())
    }

    /// Loss of all held-out microbatches together.
    fn held_out(&mut self, upstream: Upstream) -> Result<Loss, Error> {
        let mut loss = Loss::default();
        for index in 0..self.run.data.heldout_microbatches as u64 {
            let id = MicrobatchId::evaluation(Block(0), index);
            let ids = self.encode(id, &self.batches.heldout(index))?;
            let outcome = held_out(&mut self.stages, id, &ids, upstream);
            let one = outcome.or_else(|error| self.give_up(id, error))?;
            loss = Loss { sum: loss.sum + one.sum, tokens: loss.tokens + one.tokens };
        }
        Ok(loss)
    }

    /// Ends a training whose evaluation `id` failed.
    fn give_up<T>(&self, id: MicrobatchId, error: EngineError) -> Result<T, Error> {
        let cause = error.to_string();
        Err(match error.refusal()? {
            Refusal::NonFinite => self.diverged(Divergence::HeldOutLoss),
            _ => TrainError::Refused { id, cause }.into(),
        })
    }

    fn diverged(&self, sign: Divergence) -> Error {
        Error::Diverged { at: self.report.injected, sign }
    }

    fn tell_progress(&mut self, reporter: &Reporter) {
        let elapsed = self.since_progress.at.elapsed();
        if elapsed < PROGRESS_INTERVAL {
            return;
        }
        let since = std::mem::replace(
            &mut self.since_progress,
            SinceProgress { at: Instant::now(), loss: Loss::default() },
        );
        reporter.tell(&Event::Progress(ProgressReport {
            done: self.report.injected,
            total: self.run.microbatches(),
            in_flight: 0,
            loss: since.loss.mean(),
            tokens_per_s: f64::from(since.loss.tokens) / elapsed.as_secs_f64(),
        }));
    }

    fn final_report(&self) -> FeederReport {
        let seconds = self.computing.as_secs_f64();
        FeederReport {
            seconds,
            seconds_waited: self.began.elapsed().as_secs_f64(),
            tokens_per_s: self.report.tokens as f64 / seconds,
            ..self.report.clone()
        }
    }

    fn save(&mut self, folder: &Path, reporter: &Reporter) -> Result<(), Error> {
        for (index, stage) in self.stages.iter_mut().enumerate() {
            let path = folder.join(stage_file(index));
            stage.save(&path)?;
            reporter.tell(&Event::Saved { path: path.display().to_string() });
        }
        if let Some(held_out_loss) = self.held_out {
            Summary { microbatches: self.report.injected, held_out_loss }.write(folder)?;
        }
        Ok(())
    }
}

/// Forward through the stages, loss, and back; every stage steps on the way back.
fn through<B: Backend>(stages: &mut [Engine<B>], id: MicrobatchId, ids: &[u8]) -> Result<Loss, EngineError> {
    let Some((last, upstream)) = stages.split_last_mut() else { return Ok(Loss::default()) };
    let mut code = Vec::new();
    for stage in upstream.iter_mut() {
        code = stage.forward(id, ids, &code)?;
    }
    let result = last.loss_and_backward(id, ids, &code, Grant::Given)?;
    let mut gradient = result.gradient;
    for stage in upstream.iter_mut().rev() {
        gradient = stage.backward(id, &gradient, Grant::Given)?;
    }
    Ok(result.loss)
}

fn held_out<B: Backend>(
    stages: &mut [Engine<B>],
    id: MicrobatchId,
    ids: &[u8],
    upstream: Upstream,
) -> Result<Loss, EngineError> {
    let mut code = Vec::new();
    for stage in stages {
        match stage.evaluate(id, ids, &code, upstream)? {
            Evaluation::Activation { activation, .. } => code = activation,
            Evaluation::Loss(loss) => return Ok(loss),
        }
    }
    Ok(Loss::default())
}

#[cfg(test)]
mod tests;
