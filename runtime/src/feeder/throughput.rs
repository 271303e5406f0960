//! Tokens, losses and speed of a feeder.

use std::time::{Duration, Instant};

use swarmline_scheduler::Loss;
use swarmline_scheduler::feeder::Counts;

use crate::report::{FeederReport, ProgressReport};

/// Tokens and losses of finished microbatches, and the time of training.
#[derive(Debug)]
pub(super) struct Throughput {
    /// When this start began.
    began: Instant,
    total: u64,
    /// Tokens of the microbatches finished.
    tokens: u64,
    since_progress: Loss,
    progress_at: Instant,
    /// Time of the last finished microbatch, or of the start of training; `None` during an evaluation.
    training_since: Option<Instant>,
    training: Duration,
}

impl Throughput {
    /// Of a run of `total` microbatches, and a start that has begun then; the starts before this one have trained `tokens`,
    /// for so long.
    pub(super) fn new(began: Instant, total: u64, tokens: u64, training: Duration) -> Self {
        let now = Instant::now();
        Self {
            began,
            total,
            tokens,
            since_progress: Loss::default(),
            progress_at: now,
            training_since: None,
            training,
        }
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Time of training, starts before this one included.
    pub(super) fn training(&self) -> Duration {
        self.training
    }

    pub(super) fn started(&mut self) {
        self.training_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn finished(&mut self, loss: Loss) {
        self.tokens = self.tokens.saturating_add(u64::from(loss.tokens));
        self.since_progress.sum += loss.sum;
        self.since_progress.tokens = self.since_progress.tokens.saturating_add(loss.tokens);
        if let Some(since) = self.training_since.replace(Instant::now()) {
            self.training += since.elapsed();
        }
    }

    pub(super) fn paused(&mut self) {
        self.training_since = None;
    }

    /// Progress since the last call; `None` if no microbatch has finished since. `done` microbatches of the run have their
    /// outcome.
    pub(super) fn progress(&mut self, counts: &Counts, done: u64) -> Option<ProgressReport> {
        let elapsed = std::mem::replace(&mut self.progress_at, Instant::now()).elapsed();
        let since = std::mem::take(&mut self.since_progress);
        (since.tokens > 0).then(|| ProgressReport {
            done,
            total: self.total,
            in_flight: counts.in_flight,
            loss: since.mean(),
            tokens_per_s: f64::from(since.tokens) / elapsed.as_secs_f64(),
        })
    }

    /// The account at the end, of all starts.
    pub(super) fn report(&self, counts: &Counts, bytes_sent: u64) -> FeederReport {
        let seconds = self.training.as_secs_f64();
        FeederReport {
            injected: counts.injected,
            finished: counts.finished,
            refused: counts.refused,
            abandoned: counts.abandoned,
            inherited: counts.inherited,
            lost: counts.lost,
            ungranted: counts.ungranted,
            retried: counts.retried,
            contributions_lost: counts.contributions_lost,
            tokens: self.tokens,
            seconds,
            seconds_waited: self.began.elapsed().as_secs_f64(),
            tokens_per_s: self.tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            bytes_sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_after_a_restart_is_that_of_the_whole_run() {
        let mut throughput = Throughput::new(Instant::now(), 10, 950, Duration::from_secs(20));
        throughput.finished(Loss { sum: 1.0, tokens: 50 });
        let report = throughput.report(&Counts::default(), 0);
        assert_eq!((report.tokens, report.seconds, report.tokens_per_s), (1_000, 20.0, 50.0));
    }
}
