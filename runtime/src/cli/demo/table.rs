//! The result of a demo: a table for people, one JSON object for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::audit::Audit;

use crate::config::Mode;
use crate::report::{FeederReport, ReplicaReport};

/// The figures of a finished demo. A figure that does not exist yet is null.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    pub(super) mode: &'static str,
    /// Held-out loss before the first optimizer step, nats a token.
    pub(super) loss_first: Option<f64>,
    /// Held-out loss after the last optimizer step, nats a token.
    pub(super) loss_last: Option<f64>,
    /// Loss of a bigram model on the same held-out text, nats a token.
    pub(super) loss_bigram: Option<f64>,
    /// Held-out loss when the last stage sees zeros instead of its upstream, nats a token.
    pub(super) loss_without_upstream: Option<f64>,
    pub(super) tokens: u64,
    /// Optimizer steps of the replica that took the fewest; a joiner begins with the number of its donor.
    pub(super) steps: Option<u64>,
    pub(super) tokens_per_s: f64,
    /// Median staleness at stage 0, where it is largest, weight versions.
    pub(super) staleness_p50: Option<u64>,
    pub(super) done: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    /// Stages of finished microbatches without a grant.
    pub(super) ungranted: u64,
    /// Contributions granted to the killed replica that no averaging round had carried to another replica.
    pub(super) contributions_lost: u64,
    pub(super) killed: u64,
    /// Microbatches sent again, because their replica was killed.
    pub(super) retried: u64,
    /// Microbatches taken over from the killed replica.
    pub(super) recovered: u64,
    /// Bytes that left a process for a neighbouring stage, headers and token ids included.
    pub(super) boundary_bytes: u64,
    /// The same frames with the whole stream in bf16.
    pub(super) boundary_bytes_bf16: u64,
    /// Time from the start of the first process to the end of the last.
    pub(super) seconds: f64,
    /// Folder of the checkpoint that the keeper left behind.
    pub(super) checkpoint: Option<String>,
    /// A text that its model has written.
    pub(super) sample: Option<String>,
    /// The last report of each replica, including a killed replica's.
    #[serde(skip)]
    replicas: BTreeMap<usize, ReplicaReport>,
}

impl Summary {
    pub(super) fn new(mode: Mode) -> Self {
        let mode = match mode {
            Mode::Asynchronous => "asynchronous",
            Mode::Synchronous => "synchronous",
        };
        Self { mode, ..Self::default() }
    }

    pub(super) fn take_evaluation(&mut self, done: u64, loss: f64, upstream_cut: bool) {
        if upstream_cut {
            self.loss_without_upstream = Some(loss);
        } else if done == 0 {
            self.loss_first = Some(loss);
        } else {
            self.loss_last = Some(loss);
        }
    }

    pub(super) fn take_feeder(&mut self, report: &FeederReport) {
        self.tokens = report.tokens;
        self.tokens_per_s = report.tokens_per_s;
        self.done = report.finished;
        self.refused = report.refused;
        self.lost = report.lost;
        self.ungranted = report.ungranted;
        self.contributions_lost = report.contributions_lost;
        self.retried += report.retried;
        self.boundary_bytes += report.bytes_sent;
        self.boundary_bytes_bf16 += report.bytes_sent;
    }

    pub(super) fn take_sample(&mut self, sample: Option<String>) {
        self.sample = sample;
    }

    pub(super) fn take_replica(&mut self, index: usize, report: ReplicaReport) {
        self.replicas.insert(index, report);
    }

    /// Takes the figures of all applied logs, the killed replica's included, and adds up the reports.
    pub(super) fn take_audit(&mut self, audit: &Audit) {
        self.duplicates = audit.duplicates;
        for report in self.replicas.values() {
            self.boundary_bytes += report.boundary_bytes;
            self.boundary_bytes_bf16 += report.boundary_bytes_bf16;
            self.recovered += report.recovered;
            self.retried += report.retried;
            if report.last {
                self.steps = Some(self.steps.map_or(report.steps, |least| least.min(report.steps)));
            }
            if report.stage == 0 {
                self.staleness_p50 = self.staleness_p50.max(Some(report.staleness_p50));
            }
        }
    }

    /// The table, one line a row.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let nats =
            |loss: Option<f64>| loss.map_or("not measured".to_owned(), |loss| format!("{loss:.3} nats/byte"));
        vec![
            ("held-out loss, untrained", nats(self.loss_first)),
            ("held-out loss, trained", nats(self.loss_last)),
            ("  a bigram model of the same text", nats(self.loss_bigram)),
            ("  with the upstream cut", nats(self.loss_without_upstream)),
            (
                "training",
                format!(
                    "{}, {} tokens, {} steps a replica or more",
                    self.mode,
                    self.tokens,
                    self.steps.unwrap_or(0)
                ),
            ),
            ("speed", format!("{:.0} tokens/s, {:.0} s in all", self.tokens_per_s, self.seconds)),
            (
                "staleness at the first stage, median",
                self.staleness_p50.map_or("-".to_owned(), |p50| format!("{p50} versions")),
            ),
            (
                "microbatches",
                format!(
                    "{} done, {} refused, {} lost, {} counted twice",
                    self.done, self.refused, self.lost, self.duplicates
                ),
            ),
            (
                "killed on the way",
                format!(
                    "{}; {} microbatches retried, {} recovered, {} applied contributions lost",
                    self.killed, self.retried, self.recovered, self.contributions_lost
                ),
            ),
            (
                "sent between stages",
                format!(
                    "{:.1} MB; {:.1} MB uncompressed (bf16), 1/{:.1}",
                    self.boundary_bytes as f64 / 1e6,
                    self.boundary_bytes_bf16 as f64 / 1e6,
                    self.boundary_bytes_bf16 as f64 / self.boundary_bytes.max(1) as f64
                ),
            ),
        ]
    }
}
