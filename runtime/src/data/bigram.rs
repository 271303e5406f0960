//! The loss of a model that counts pairs of tokens.

use std::collections::HashMap;

/// Largest vocabulary whose pairs are counted in a table.
const DENSE_VOCAB_MAX: usize = 2048;

/// Loss on `heldout`, nats per token, of a bigram model counted on `train`.
///
/// Smoothing is Witten and Bell's: `p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a))`, where `c` counts and `t(a)` is the
/// number of different tokens seen after `a`; `p(b)` is the unigram share with one added to every count. The first
/// held-out token has probability `p(b)`. About 2.5 on Rust source in bytes. 0 without held-out tokens.
///
/// # Panics
/// If an id is not below `vocab`.
pub fn bigram_loss(
    train: impl Iterator<Item = u32>,
    heldout: impl Iterator<Item = u32>,
    vocab: usize,
) -> f64 {
    let counts = Counts::of(train, vocab);
    let (mut loss, mut tokens, mut before) = (0.0, 0u64, None);
    for token in heldout {
        loss -= counts.probability(before, token).ln();
        tokens += 1;
        before = Some(token);
    }
    if tokens == 0 { 0.0 } else { loss / tokens as f64 }
}

struct Counts {
    pairs: Pairs,
    /// Occurrences of each token.
    tokens: Vec<u64>,
    /// Occurrences of each token in front of another.
    followed: Vec<u64>,
    /// Number of different tokens behind each token.
    followers: Vec<u32>,
    total: u64,
}

impl Counts {
    fn of(train: impl Iterator<Item = u32>, vocab: usize) -> Self {
        let mut counts = Self {
            pairs: Pairs::new(vocab),
            tokens: vec![0; vocab],
            followed: vec![0; vocab],
            followers: vec![0; vocab],
            total: 0,
        };
        let mut before = None;
        for token in train {
            counts.tokens[token as usize] += 1;
            counts.total += 1;
            if let Some(first) = before {
                counts.followed[first as usize] += 1;
                counts.followers[first as usize] += u32::from(counts.pairs.add(first, token));
            }
            before = Some(token);
        }
        counts
    }

    fn probability(&self, before: Option<u32>, token: u32) -> f64 {
        let alone = (self.tokens[token as usize] + 1) as f64 / (self.total + self.tokens.len() as u64) as f64;
        let Some(first) = before else { return alone };
        let followers = f64::from(self.followers[first as usize]);
        if followers == 0.0 {
            return alone;
        }
        let pair = f64::from(self.pairs.get(first, token));
        (pair + followers * alone) / (self.followed[first as usize] as f64 + followers)
    }
}

/// Counts of pairs. They are only looked up, so the order of the map has no effect.
enum Pairs {
    Dense { counts: Vec<u32>, vocab: usize },
    Sparse(HashMap<(u32, u32), u32>),
}

impl Pairs {
    fn new(vocab: usize) -> Self {
        if vocab <= DENSE_VOCAB_MAX {
            Self::Dense { counts: vec![0; vocab * vocab], vocab }
        } else {
            Self::Sparse(HashMap::new())
        }
    }

    /// Counts a pair; returns whether it is new.
    fn add(&mut self, first: u32, second: u32) -> bool {
        let count = match self {
            Self::Dense { counts, vocab } => &mut counts[first as usize * *vocab + second as usize],
            Self::Sparse(counts) => counts.entry((first, second)).or_default(),
        };
        *count = count.saturating_add(1);
        *count == 1
    }

    fn get(&self, first: u32, second: u32) -> u32 {
        match self {
            Self::Dense { counts, vocab } => counts[first as usize * vocab + second as usize],
            Self::Sparse(counts) => counts.get(&(first, second)).copied().unwrap_or(0),
        }
    }
}
