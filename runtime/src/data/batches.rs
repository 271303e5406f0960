//! Microbatches drawn from a corpus.

use std::sync::Arc;

use swarmline_scheduler::MicrobatchId;

use super::{Corpus, TokenStream};
use crate::config::Run;

/// Draws microbatches: each is `B` sequences of `T + 1` ids, row after row. A sequence begins at any position of the
/// stream with equal chance. Its first `T` ids are inputs, its last `T` targets.
///
/// A draw depends on the run seed and the number of the microbatch alone, and takes microseconds.
#[derive(Clone, Debug)]
pub struct Batches {
    corpus: Arc<Corpus>,
    sequences: usize,
    sequence: usize,
    train_key: [u8; 32],
    heldout_key: [u8; 32],
}

impl Batches {
    /// Draws from `corpus`, which was opened for the same run.
    #[must_use]
    pub fn new(run: &Run, corpus: Arc<Corpus>) -> Self {
        let seed = run.seed.to_le_bytes();
        Self {
            corpus,
            sequences: run.batch.sequences,
            sequence: run.model.max_position_embeddings + 1,
            train_key: blake3::derive_key("swarmline 2026 training draws", &seed),
            heldout_key: blake3::derive_key("swarmline 2026 held-out draws", &seed),
        }
    }

    /// The ids of a microbatch to train on.
    #[must_use]
    pub fn train(&self, id: MicrobatchId) -> Vec<u32> {
        self.draw(self.corpus.train(), &self.train_key, id.0)
    }

    /// The ids of the `index`-th microbatch of every evaluation.
    #[must_use]
    pub fn heldout(&self, index: u64) -> Vec<u32> {
        self.draw(self.corpus.heldout(), &self.heldout_key, index)
    }

    fn draw(&self, tokens: &TokenStream, key: &[u8; 32], number: u64) -> Vec<u32> {
        let mut random = blake3::Hasher::new_keyed(key).update(&number.to_le_bytes()).finalize_xof();
        // Each side of a corpus of this run has at least one sequence; a draw from another corpus may be shorter.
        let starts = tokens.len().saturating_sub(self.sequence) as u64 + 1;
        let mut ids = Vec::with_capacity(self.sequences * self.sequence);
        for _ in 0..self.sequences {
            let mut draw = [0; 8];
            random.fill(&mut draw);
            let start = below(u64::from_le_bytes(draw), starts) as usize;
            let end = (start + self.sequence).min(tokens.len());
            tokens.copy_to(&mut ids, start..end);
        }
        ids
    }
}

/// A 64-bit draw scaled to `0..bound`. The bias is at most `bound / 2^64`.
fn below(draw: u64, bound: u64) -> u64 {
    ((u128::from(draw) * u128::from(bound)) >> 64) as u64
}
