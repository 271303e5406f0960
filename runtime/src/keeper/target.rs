//! The files of a keeper: a checkpoint that is being written, in the background, one file at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swarmline_scheduler::keeper::{Watermark, Written};
use swarmline_scheduler::{BlockTally, StageIndex, WeightVersion};
use tokio::task::JoinHandle;

use crate::checkpoint::{BlockCursor, Checkpoint, CheckpointError, FORMAT, Fault, Manifest, Store, Writer};
use crate::config::Run;
use crate::error::StateError;
use crate::net::held_out::HeldOut;
use crate::report::KeptReport;
use crate::stage::check_state;

/// How long a target may take for a small request.
const REPLY_WITHIN: Duration = Duration::from_secs(30);
/// Slowest target, bytes a second: a file has this much more time in proportion to its length.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// What every checkpoint of this start says about the run.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) run_name: String,
    pub(super) run_digest: String,
    pub(super) run_text: String,
    pub(super) launch: u64,
    /// The tokenizer file.
    pub(super) tokenizer: Option<Bytes>,
}

/// The outcome of a write, and what a person hears of it.
#[derive(Debug)]
pub(super) enum Done {
    /// A stage is written.
    Stage,
    /// The bytes are no state of the stage.
    Unfit(StateError),
    /// The checkpoint is complete; older ones may not have been removed.
    Complete(Box<Checkpoint>, Option<CheckpointError>),
    /// The target did not take the file.
    Failed(CheckpointError),
}

impl Done {
    pub(super) fn written(&self) -> Written {
        match self {
            Self::Stage | Self::Complete(..) => Written::Done,
            Self::Unfit(_) => Written::Unfit,
            Self::Failed(_) => Written::Failed,
        }
    }
}

/// A target, and the checkpoint that is being written there.
#[derive(Debug)]
pub(super) struct Target {
    store: Store,
    run: Arc<Run>,
    about: About,
    keep: usize,
    open: Option<Open>,
    /// The write under way. It has the writer meanwhile.
    writing: Option<JoinHandle<(Writer, Done)>>,
}

/// A checkpoint that is not complete.
#[derive(Debug)]
struct Open {
    watermark: Watermark,
    /// `None` while a write is under way.
    writer: Option<Writer>,
}

impl Target {
    /// Keeps the `keep` newest checkpoints.
    pub(super) fn new(store: Store, run: Arc<Run>, about: About, keep: usize) -> Self {
        Self { store, run, about, keep, open: None, writing: None }
    }

    /// Opens a checkpoint in place of one that is not complete; a write under way ends unheard.
    pub(super) fn open(&mut self, watermark: Watermark) {
        self.drop_open();
        let writer = Some(self.store.begin(watermark.microbatches));
        self.open = Some(Open { watermark, writer });
    }

    /// Drops the checkpoint that is not complete.
    pub(super) fn drop_open(&mut self) {
        (self.open, self.writing) = (None, None);
    }

    /// Checks the state of a stage and writes it.
    pub(super) fn write(&mut self, stage: StageIndex, version: WeightVersion, state: Bytes) {
        let (run, name) = (Arc::clone(&self.run), self.store.name().to_owned());
        let Some(mut writer) = self.open.as_mut().and_then(|open| open.writer.take()) else { return };
        self.writing = Some(tokio::spawn(async move {
            let checked = state.clone();
            let checking = tokio::task::spawn_blocking(move || check_state(&run, stage, &checked, version));
            let done = match checking.await {
                Ok(Ok(())) => {
                    let length = state.len() as u64;
                    let written = writer.stage(stage.0, version.0, state);
                    within_time(&name, length, written).await.map_or_else(Done::Failed, |()| Done::Stage)
                }
                Ok(Err(error)) => Done::Unfit(error),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            };
            (writer, done)
        }));
    }

    /// Writes the tokenizer and the manifest, then removes older checkpoints.
    pub(super) fn complete(&mut self, heldout: Option<HeldOut>) {
        let Some(open) = &mut self.open else { return };
        let Some(mut writer) = open.writer.take() else { return };
        let manifest = self.about.manifest(&open.watermark, heldout);
        let (store, about, keep) = (self.store.clone(), self.about.clone(), self.keep);
        self.writing = Some(tokio::spawn(async move {
            let completed = complete(&mut writer, &store, &about, manifest).await;
            let done = match completed {
                Ok(checkpoint) => {
                    let pruned = within(store.name(), store.prune(keep, about.launch)).await;
                    Done::Complete(Box::new(checkpoint), pruned.err())
                }
                Err(error) => Done::Failed(error),
            };
            (writer, done)
        }));
    }

    /// The next write that ends. Cancelling the wait loses nothing; without a write it never resolves.
    pub(super) async fn next(&mut self) -> Done {
        let ended = match &mut self.writing {
            Some(writing) => writing.await,
            None => std::future::pending().await,
        };
        self.writing = None;
        match ended {
            Ok((writer, done)) => {
                if let Some(open) = &mut self.open {
                    open.writer = Some(writer);
                }
                done
            }
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}

async fn complete(
    writer: &mut Writer,
    store: &Store,
    about: &About,
    manifest: Manifest,
) -> Result<Checkpoint, CheckpointError> {
    if let Some(tokenizer) = &about.tokenizer {
        within_time(store.name(), tokenizer.len() as u64, writer.tokenizer(tokenizer.clone())).await?;
    }
    within(store.name(), writer.complete(manifest)).await
}

impl About {
    fn manifest(&self, watermark: &Watermark, heldout: Option<HeldOut>) -> Manifest {
        let cursor = |tally: &BlockTally| BlockCursor {
            block: tally.block.0,
            leased: tally.leased,
            injected: tally.injected,
            settled: tally.settled,
        };
        Manifest {
            format: FORMAT,
            run_name: self.run_name.clone(),
            run_digest: self.run_digest.clone(),
            run: self.run_text.clone(),
            launch: self.launch,
            microbatches: watermark.microbatches,
            stages: Vec::new(),
            cursor: watermark.blocks.iter().map(cursor).collect(),
            tokenizer: None,
            heldout_loss: heldout.map(|heldout| heldout.loss.mean()),
            heldout_after: heldout.and_then(|heldout| heldout.after),
            is_final: watermark.is_final,
            is_agreed: watermark.is_agreed,
        }
    }
}

/// What a person hears of a complete checkpoint.
pub(crate) fn kept(checkpoint: &Checkpoint) -> KeptReport {
    let manifest = checkpoint.manifest();
    KeptReport {
        path: checkpoint.location(),
        microbatches: manifest.microbatches,
        bytes: manifest.stages.iter().map(|stage| stage.bytes).sum(),
        heldout_loss: manifest.heldout_loss,
        heldout_after: manifest.heldout_after,
        is_final: manifest.is_final,
        is_agreed: manifest.is_agreed,
    }
}

/// The reply of a target to a small request, or the fault that it is silent.
pub(super) async fn within<T>(
    target: &str,
    work: impl Future<Output = Result<T, CheckpointError>>,
) -> Result<T, CheckpointError> {
    within_time(target, 0, work).await
}

/// The reply of a target that is sent so many bytes.
async fn within_time<T>(
    target: &str,
    bytes: u64,
    work: impl Future<Output = Result<T, CheckpointError>>,
) -> Result<T, CheckpointError> {
    let limit = REPLY_WITHIN + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
    let silent = |_| CheckpointError::new(target, Fault::Silent { seconds: limit.as_secs() });
    tokio::time::timeout(limit, work).await.map_err(silent)?
}
