//! Events of a process.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::Incident;
use crate::data::Corpus;

/// An event that a process reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The coordinator listens.
    Listening {
        /// The address that `join` and `feed` take.
        invite: String,
        /// Digest of the run manifest, hexadecimal.
        manifest: String,
    },
    /// A coordinator goes on with a run that an earlier start has begun.
    Resumed {
        /// Members that the run had.
        members: usize,
        /// Microbatches that had their outcome.
        done: u64,
        /// Whether the run is over.
        finished: bool,
    },
    /// A coordinator goes on from a checkpoint, in a new launch of the run.
    ResumedAt {
        /// The checkpoint.
        checkpoint: String,
        /// Microbatches that had their outcome there.
        done: u64,
        /// Microbatches that the launch before had come to, if its log says so.
        before: Option<u64>,
        /// Where the log of the launch before is now.
        aside: Option<String>,
    },
    /// A coordinator that is to go on from a checkpoint has done so before, and goes on where the run is.
    ResumedAlready {
        /// The checkpoint.
        checkpoint: String,
    },
    /// No replica begins before a keeper gives the states of the checkpoint that the run goes on from.
    KeeperNeeded {
        /// The command that starts one.
        command: String,
    },
    /// The weights of the run stay split: the coordinator starts no keeper.
    WeightsStaySplit {
        /// The last stage, from 0.
        last_stage: u16,
        /// The command that keeps stage S.
        command: String,
    },
    /// A replica waits for a keeper that gives the state of its stage.
    AwaitsKeeper {
        /// Its stage, from 0.
        stage: u16,
    },
    /// A feeder's journal is of the launch before the checkpoint that the run goes on from.
    JournalPutAside {
        /// The journal.
        path: String,
        /// Where the former one is now.
        aside: String,
    },
    /// The membership table of a coordinator has changed.
    Members {
        /// Version of the table.
        version: u64,
        /// Serving replicas of each stage.
        serving: Vec<usize>,
        /// Replicas that wait for a stage.
        standby: usize,
        /// Number of feeders.
        feeders: usize,
        /// Number of keepers.
        #[serde(default)]
        keepers: usize,
        /// Number of readers.
        #[serde(default)]
        readers: usize,
    },
    /// A process has a key.
    Key {
        /// Its public key, hexadecimal.
        key: String,
        /// The file that keeps the key; without one it ends with the process.
        file: Option<String>,
        /// Whether the key was made by this start.
        is_new: bool,
    },
    /// A process has chosen its device.
    Computing {
        /// `cpu` or `cuda:N`.
        device: String,
        /// Arithmetic: `repro` or `fast`.
        profile: String,
    },
    /// A replica was placed and builds its shard.
    Placed {
        /// Its stage, from 0.
        stage: u16,
        /// Stages of the run.
        stages: usize,
        /// First layer it serves.
        first_layer: usize,
        /// One past the last layer.
        end_layer: usize,
        /// Its number of parameters.
        parameters: u64,
    },
    /// This replica waits for a stage.
    Standby {
        /// Stages of the run.
        stages: usize,
        /// Stages whose replicas fell silent with their weights, and may come back; the others have their replicas.
        #[serde(default)]
        awaited: Vec<u16>,
    },
    /// A replica has taken over the state of another replica of its stage.
    StateTaken {
        /// Its stage, from 0.
        stage: u16,
        /// The donor: the first bytes of its key, hexadecimal.
        peer: String,
        /// Length of the state, bytes.
        bytes: u64,
        /// Time from the start of serving to the imported state, seconds.
        seconds: f64,
        /// Optimizer steps in the state.
        version: u64,
    },
    /// A replica's shard is built and takes microbatches.
    Serving {
        /// Its stage, from 0.
        stage: u16,
    },
    /// A replica was asked to leave: it finishes its microbatches, then waits until other replicas have its last updates.
    Leaving {
        /// Limit of the time to leave, seconds.
        seconds_max: u64,
    },
    /// A replica's counters, every 10 s and at the end.
    Replica(ReplicaReport),
    /// A feeder has opened its text.
    Corpus {
        /// Files read.
        files: usize,
        /// Bytes of text.
        bytes: u64,
        /// Digest of the text, hexadecimal.
        digest: String,
        /// Loss of a bigram model of the training text on the held-out text, nats a token.
        bigram: f64,
    },
    /// A feeder's progress, every second.
    Progress(ProgressReport),
    /// Loss on held-out text.
    Evaluation {
        /// Microbatches with an outcome at the time.
        done: u64,
        /// Mean loss, nats a token.
        loss: f64,
        /// Whether the last stage got zeros instead of the upstream's activations.
        upstream_cut: bool,
    },
    /// A feeder's counters at the end.
    Feeder(FeederReport),
    /// The outcomes that a feeder reported to its coordinator at the end.
    FeederDone(Totals),
    /// A command ends without success.
    Failed {
        /// The exit code.
        code: u8,
        /// The cause and the remedy.
        message: String,
    },
    /// A fault, with its consequence.
    Incident(Incident),
    /// A keeper has joined.
    Keeping(KeepingReport),
    /// A keeper has completed a checkpoint.
    Kept(KeptReport),
    /// The weights of a stage were written.
    Saved {
        /// The file.
        path: String,
    },
    /// The model of a run was written as a folder for `transformers`.
    Exported(ExportReport),
    /// A text was generated.
    Generated(GenerateReport),
}

impl Event {
    /// The event of an opened corpus.
    #[must_use]
    pub fn corpus(corpus: &Corpus) -> Self {
        Self::Corpus {
            files: corpus.files(),
            bytes: corpus.text_bytes(),
            digest: HEXLOWER.encode(&corpus.digest()),
            bigram: corpus.bigram_loss(),
        }
    }
}

/// A replica's counters since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Its stage, from 0.
    pub stage: u16,
    /// Microbatches applied.
    pub done: u64,
    /// Microbatches refused.
    pub refused: u64,
    /// Microbatches taken over from a lost replica.
    pub recovered: u64,
    /// Microbatches sent downstream again, because their replica was lost.
    pub retried: u64,
    /// Microbatches whose gradient went upstream only, because another replica had the grant.
    pub relayed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Median staleness of contributions, weight versions.
    pub staleness_p50: u64,
    /// Largest staleness, weight versions.
    pub staleness_max: u64,
    /// Contributions left out, since their gradients were far larger than those before.
    #[serde(default)]
    pub skipped: u64,
    /// Contributions that wait for the rest of their step (`gradient_accumulation_steps`). A replica steps with them before it
    /// ends, so none are left in the last report.
    #[serde(default)]
    pub waiting: u64,
    /// Averaging rounds in which a whole fragment was averaged with the other replicas of the stage.
    pub rounds: u64,
    /// Parts of fragments moved to their mean.
    pub parts_applied: u64,
    /// Bytes sent to neighbouring stages, headers and ids included.
    pub boundary_bytes: u64,
    /// The same frames with the whole stream in bf16, bytes.
    pub boundary_bytes_bf16: u64,
    /// Whether this is the last report.
    pub last: bool,
}

/// A feeder's progress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// Microbatches of the run with an outcome, those of other feeders included.
    pub done: u64,
    /// Microbatches of the run.
    pub total: u64,
    /// Microbatches of this feeder in flight.
    pub in_flight: u64,
    /// Mean training loss since the previous report, nats a token.
    pub loss: f64,
    /// Tokens a second since the previous report.
    pub tokens_per_s: f64,
}

/// The outcomes that a feeder reports to its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Microbatches sent to stage 0.
    pub injected: u64,
    /// Microbatches finished.
    pub finished: u64,
    /// Microbatches refused.
    pub refused: u64,
    /// Microbatches injected that have no outcome and are not in flight.
    pub lost: u64,
    /// Stages of finished microbatches without a grant.
    pub ungranted: u64,
}

/// The outcomes of the microbatches that a feeder injected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeederReport {
    /// Microbatches sent to stage 0.
    pub injected: u64,
    /// Microbatches finished.
    pub finished: u64,
    /// Microbatches refused.
    pub refused: u64,
    /// Refused microbatches that a former feeder had injected and that no replica holds any more.
    pub abandoned: u64,
    /// Microbatches that had their outcome under a former feeder; no other figure here counts them.
    pub inherited: u64,
    /// Microbatches injected that have no outcome and are not in flight.
    pub lost: u64,
    /// Stages of finished microbatches without a grant.
    pub ungranted: u64,
    /// Microbatches sent to stage 0 again, because their replica was lost.
    pub retried: u64,
    /// Contributions granted to replicas that died before an averaging round carried them to another replica.
    pub contributions_lost: u64,
    /// Tokens trained on, those before a restart included.
    pub tokens: u64,
    /// Seconds of training, from the first injection to the last outcome, without evaluation; those before a restart with a
    /// journal included.
    pub seconds: f64,
    /// Seconds that a person has waited for this start: from its beginning to this report.
    #[serde(default)]
    pub seconds_waited: f64,
    /// Tokens a second over the seconds of training.
    pub tokens_per_s: f64,
    /// Bytes of all frames sent to stage 0.
    pub bytes_sent: u64,
}

/// What a keeper keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepingReport {
    /// Name of the run.
    pub run: String,
    /// The folder or bucket.
    pub target: String,
    /// Its stages, from 0.
    pub stages: Vec<u16>,
    /// The time between two checkpoints, for people.
    pub every: String,
    /// Microbatches of the newest checkpoint of this launch in the target; 0 without one.
    pub newest: u64,
}

/// A complete checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptReport {
    /// Its folder: a path or a URL.
    pub path: String,
    /// Microbatches of the run that come before the states.
    pub microbatches: u64,
    /// Length of all states, bytes.
    pub bytes: u64,
    /// Newest loss on held-out text, nats a token; absent if none was measured.
    pub heldout_loss: Option<f64>,
    /// Microbatches of the run that had their outcome when that was measured, if the checkpoint says so.
    #[serde(default)]
    pub heldout_after: Option<u64>,
    /// These are the final states of the run.
    pub is_final: bool,
    /// Every stage was told beforehand to copy its state at `microbatches`.
    pub is_agreed: bool,
}

/// A model that was exported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportReport {
    /// The folder.
    pub path: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Held-out loss of the exported model, nats a token.
    pub loss: Option<f64>,
    /// The reason why that loss was not measured.
    pub unmeasured: Option<String>,
    /// Held-out loss that the run states, nats a token.
    pub loss_of_run: Option<f64>,
    /// Microbatches of the run that had their outcome when that was measured, if the run says so.
    #[serde(default)]
    pub loss_of_run_after: Option<u64>,
}

/// A text that a model has generated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerateReport {
    /// The tokens behind the prompt.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Seconds from the first token of the prompt to the last of the text.
    pub seconds: f64,
}

impl FeederReport {
    /// The part of the report that the coordinator is told.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let Self { injected, finished, refused, lost, ungranted, .. } = *self;
        Totals { injected, finished, refused, lost, ungranted }
    }
}
