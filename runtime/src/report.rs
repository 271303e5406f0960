//! What a process of a run says about itself, for people or for programs.
//!
//! Every command speaks in [`Event`]s. [`Reporter`] prints them either as one calm line each or, with `--json`,
//! as one JSON object a line; `swarmline demo` reads the latter from the processes it starts. A program that embeds
//! swarmline gets the events themselves from [`Reporter::to`].

use std::io::{self, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::data::Corpus;

/// One thing worth telling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The coordinator listens.
    Listening {
        /// What `join` and `feed` take as their address.
        invite: String,
        /// Digest of the run manifest, hexadecimal.
        manifest: String,
    },
    /// A coordinator saw its membership change.
    Members {
        /// Version of the table.
        version: u64,
        /// Serving replicas of each stage.
        serving: Vec<usize>,
        /// Replicas that wait.
        standby: usize,
        /// Feeders.
        feeders: usize,
    },
    /// Something computes.
    Computing {
        /// On what: `cpu` or `cuda:N`.
        device: String,
        /// How exactly: `repro` or `fast`.
        profile: String,
    },
    /// A replica was placed and builds its shard.
    Placed {
        /// Its stage, 0-based.
        stage: u16,
        /// Stages of the run.
        stages: usize,
        /// First layer it serves.
        first_layer: usize,
        /// One past the last layer.
        end_layer: usize,
        /// Its parameters.
        parameters: u64,
    },
    /// Every stage has its replica; this one waits.
    Standby {
        /// Stages of the run.
        stages: usize,
    },
    /// A replica has taken over what the others of its stage have learned.
    StateTaken {
        /// Its stage, 0-based.
        stage: u16,
        /// Whose state it is: the first bytes of the key, hexadecimal.
        peer: String,
        /// Length of the state, bytes.
        bytes: u64,
        /// How long it took, seconds.
        seconds: f64,
        /// Updates in it.
        version: u64,
    },
    /// A replica's shard is built and takes microbatches.
    Serving {
        /// Its stage, 0-based.
        stage: u16,
    },
    /// A replica's account of itself, once in a while and at the end.
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
    /// Training goes on.
    Progress(ProgressReport),
    /// Loss on held-out text.
    Evaluation {
        /// Microbatches with an outcome when it was measured.
        done: u64,
        /// Nats a token.
        loss: f64,
        /// Whether the last stage saw zeros instead of the upstream's activations.
        upstream_cut: bool,
    },
    /// A feeder's account at the end.
    Feeder(FeederReport),
    /// Something a person should know about: one line per incident, with its consequence.
    Incident {
        /// What happened, and what follows from it.
        message: String,
    },
    /// A checkpoint was written.
    Saved {
        /// Where.
        path: String,
    },
}

impl Event {
    /// What is told of a corpus.
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
    /// Its stage, 0-based.
    pub stage: u16,
    /// Microbatches applied.
    pub done: u64,
    /// Microbatches refused.
    pub refused: u64,
    /// Microbatches taken over for a lost replica.
    pub restored: u64,
    /// Microbatches handed on anew, because the replica that had them was lost.
    pub rerouted: u64,
    /// Microbatches whose gradient was computed for others only.
    pub relayed: u64,
    /// Optimizer steps.
    pub updates: u64,
    /// Median staleness of contributions, weight versions.
    pub staleness_p50: u64,
    /// Largest staleness, weight versions.
    pub staleness_max: u64,
    /// Averaging rounds in which a whole index set was averaged with the other replicas of the stage.
    pub rounds: u64,
    /// Parts of index sets moved to their mean.
    pub parts_applied: u64,
    /// Bytes sent to neighbouring stages, headers and ids included.
    pub boundary_bytes: u64,
    /// What those frames would have weighed with the whole stream in bf16.
    pub boundary_bytes_bf16: u64,
    /// Whether this is the replica's last word.
    pub last: bool,
}

/// How far a feeder is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// Microbatches with an outcome.
    pub done: u64,
    /// Microbatches of the run.
    pub total: u64,
    /// Microbatches on their way.
    pub in_flight: u64,
    /// Mean training loss since the previous report, nats a token.
    pub loss: f64,
    /// Tokens a second since the previous report.
    pub tokens_per_s: f64,
}

/// What became of the microbatches a feeder injected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeederReport {
    /// Microbatches sent on their way.
    pub injected: u64,
    /// Microbatches finished.
    pub finished: u64,
    /// Microbatches refused, and reported as such.
    pub refused: u64,
    /// Those of them that a former feeder had injected and nobody could go on with.
    pub abandoned: u64,
    /// Microbatches that had their outcome under a former feeder; in no other figure here.
    pub inherited: u64,
    /// Microbatches injected, neither finished nor reported.
    pub lost: u64,
    /// Stages of finished microbatches that nobody was granted.
    pub ungranted: u64,
    /// Microbatches sent to stage 0 again, because the replica that had them was lost.
    pub resent: u64,
    /// Contributions granted to replicas that died afterwards, before an averaging round carried them on.
    pub contributions_lost: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds from the first injection to the last outcome, without evaluation.
    pub seconds: f64,
    /// Tokens a second over those seconds.
    pub tokens_per_s: f64,
    /// Bytes of all frames sent to stage 0.
    pub bytes_sent: u64,
}

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// One line of prose per event.
    People,
    /// One JSON object a line.
    Programs,
}

/// Tells events to whoever listens.
pub struct Reporter {
    sink: Box<dyn Fn(&Event) + Send + Sync>,
}

impl Reporter {
    /// A reporter that prints to standard output, for this audience. A closed pipe is not an error: nobody listens
    /// any more.
    #[must_use]
    pub fn new(audience: Audience) -> Self {
        let out = Mutex::new(io::stdout());
        Self::to(move |event| {
            let line = match audience {
                Audience::People => event.to_string(),
                Audience::Programs => serde_json::to_string(event).unwrap_or_default(),
            };
            let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        })
    }

    /// A reporter that hands every event to `sink`, for programs that embed a process of a run. The teller waits
    /// for `sink`, so it must not block.
    #[must_use]
    pub fn to(sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self { sink: Box::new(sink) }
    }

    /// Tells one event.
    pub fn tell(&self, event: &Event) {
        (self.sink)(event);
    }
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

/// Pause between two lines about the same kind of incident.
const REPEATED_EVERY: Duration = Duration::from_secs(5);

/// An incident that may repeat for every microbatch: told at once the first time, then once in a while, by default every
/// 5 s at most.
#[derive(Debug)]
pub(crate) struct Repeated {
    every: Duration,
    told: Option<Instant>,
    untold: u64,
}

impl Default for Repeated {
    fn default() -> Self {
        Self::every(REPEATED_EVERY)
    }
}

impl Repeated {
    /// Told this often at most.
    pub(crate) fn every(every: Duration) -> Self {
        Self { every, told: None, untold: 0 }
    }

    /// It happened. If it is time to tell: how often since it was told last.
    pub(crate) fn happened(&mut self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    pub(crate) fn happened_at(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < self.every) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listening { invite, manifest } => {
                write!(
                    f,
                    "coordinator listens; manifest {}\n\n  swarmline join {invite}\n  swarmline feed {invite}\n",
                    &manifest[..manifest.len().min(12)]
                )
            }
            Self::Members { version, serving, standby, feeders } => {
                write!(
                    f,
                    "members v{version}: serving per stage {serving:?}, {standby} standby, {feeders} feeding"
                )
            }
            Self::Computing { device, profile } => write!(f, "computing on {device}, profile {profile}"),
            Self::Placed { stage, stages, first_layer, end_layer, parameters } => write!(
                f,
                "placed on stage {stage} of {stages}: layers {first_layer}..{end_layer}, {parameters} parameters"
            ),
            Self::Standby { stages } => {
                write!(f, "standby: all {stages} stages are served. This replica waits; Ctrl-C leaves")
            }
            Self::StateTaken { stage, peer, bytes, seconds, version } => write!(
                f,
                "took the state of stage {stage} from peer {peer}: {:.1} MB in {seconds:.1} s, version {version}",
                *bytes as f64 / 1e6
            ),
            Self::Serving { stage } => write!(f, "serving stage {stage}; Ctrl-C leaves cleanly"),
            Self::Replica(report) => report.fmt(f),
            Self::Corpus { files, bytes, digest, bigram } => write!(
                f,
                "text: {files} files, {:.1} MB, digest {}; a bigram model of it has {bigram:.3} nats/token held out",
                *bytes as f64 / 1e6,
                &digest[..digest.len().min(12)]
            ),
            Self::Progress(report) => report.fmt(f),
            Self::Evaluation { done, loss, upstream_cut } => {
                let cut = if *upstream_cut { " with the upstream cut" } else { "" };
                write!(f, "held-out loss{cut} after {done} microbatches: {loss:.4} nats/token")
            }
            Self::Feeder(report) => report.fmt(f),
            Self::Incident { message } => write!(f, "! {message}"),
            Self::Saved { path } => write!(f, "saved {path}"),
        }
    }
}

impl std::fmt::Display for ReplicaReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "stage {}: {} microbatches, {} updates, {} refused, staleness p50 {} max {}, {:.1} MB to neighbours",
            self.stage,
            self.done,
            self.updates,
            self.refused,
            self.staleness_p50,
            self.staleness_max,
            self.boundary_bytes as f64 / 1e6
        )
    }
}

impl std::fmt::Display for ProgressReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{} microbatches, {} in flight, loss {:.4} nats/token, {:.0} tokens/s",
            self.done, self.total, self.in_flight, self.loss, self.tokens_per_s
        )
    }
}

impl std::fmt::Display for FeederReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} injected, {} finished, {} refused, {} lost, {} ungranted; {} tokens in {:.1} s, {:.0} tokens/s",
            self.injected,
            self.finished,
            self.refused,
            self.lost,
            self.ungranted,
            self.tokens,
            self.seconds,
            self.tokens_per_s
        )?;
        if self.inherited + self.abandoned > 0 {
            write!(f, "; taken over: {} had ended, {} abandoned", self.inherited, self.abandoned)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::{Event, Reporter};

    #[test]
    fn a_program_that_embeds_swarmline_hears_every_event() {
        let (hear, heard) = mpsc::channel();
        let reporter = Reporter::to(move |event| {
            let _ = hear.send(event.clone());
        });
        reporter.tell(&Event::Serving { stage: 2 });
        assert_eq!(heard.try_recv(), Ok(Event::Serving { stage: 2 }));
    }
}
