//! One measurement of the loss on held-out text.

use crate::{Attempt, Block, Loss, MicrobatchId, Purpose};

/// A measurement in progress.
#[derive(Clone, Debug)]
pub(super) struct Evaluation {
    /// The first attempt of its microbatches. Every measurement uses the same ids; a new number tells replicas that the
    /// microbatch is no duplicate.
    pub(super) attempt: Attempt,
    next: u64,
    left: u64,
    open: u64,
    measured: Measured,
}

/// The result of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// `Evaluate`, or `EvaluateCut` for a last stage without its upstream.
    pub purpose: Purpose,
    /// Sum of cross-entropies over the microbatches answered, nats.
    pub sum: f64,
    /// Tokens summed over.
    pub tokens: u64,
    /// Microbatches answered.
    pub answered: u64,
    /// Microbatches refused or lost; if not 0, the figure covers fewer microbatches than the schedule or command named.
    pub unanswered: u64,
}

impl Evaluation {
    pub(super) fn new(first: u64, count: u64, purpose: Purpose, attempt: Attempt) -> Self {
        let measured = Measured { purpose, sum: 0.0, tokens: 0, answered: 0, unanswered: 0 };
        Self { attempt, next: first, left: count, open: 0, measured }
    }

    pub(super) fn measured(&self) -> Measured {
        self.measured
    }

    /// The next id to inject, as the feeder of `block` sends it.
    pub(super) fn take(&mut self, block: Block) -> Option<MicrobatchId> {
        self.left = self.left.checked_sub(1)?;
        self.open += 1;
        let id = MicrobatchId::evaluation(block, self.next);
        self.next = self.next.wrapping_add(1);
        Some(id)
    }

    /// Counts the outcome of an id taken: its loss, or `None` if it was refused or never answered.
    pub(super) fn settle(&mut self, loss: Option<Loss>) {
        self.open = self.open.saturating_sub(1);
        match loss {
            Some(loss) => {
                self.measured.answered += 1;
                self.measured.sum += loss.sum;
                self.measured.tokens += u64::from(loss.tokens);
            }
            None => self.measured.unanswered += 1,
        }
    }

    /// Takes no further ids.
    pub(super) fn cut_short(&mut self) {
        self.left = 0;
    }

    pub(super) fn has_more(&self) -> bool {
        self.left > 0
    }

    pub(super) fn is_over(&self) -> bool {
        self.left == 0 && self.open == 0
    }
}

impl Measured {
    /// Mean cross-entropy per token, nats; `None` if no microbatch was answered.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        // Exact up to 2^53 tokens.
        #[allow(clippy::cast_precision_loss)]
        let tokens = self.tokens as f64;
        (self.tokens > 0).then(|| self.sum / tokens)
    }
}
