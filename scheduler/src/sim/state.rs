//! The weights of a simulated replica, in place of tensors: a few numbers for each fragment.

use std::ops::Range;

use crate::averaging::{FragmentIndex, PartIndex, Round};
use crate::transfer::{ChunkSketch, Manifest, SketchSeed};
use crate::{MicrobatchId, Rng, WeightVersion};

use super::payload::{WORD_BYTES, hash, projections};

/// Numbers of a fragment: enough for every member of a large stage to own one.
const NUMBERS: usize = 8;

/// Words of a chunk of a state: few, so that a state has many chunks.
const CHUNK_WORDS: usize = 1;

/// The numbers of one replica, and its contributions to them.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    by_fragment: Vec<[f64; NUMBERS]>,
    /// The microbatches whose contributions are in the numbers, in order.
    contributions: Vec<MicrobatchId>,
    /// Those of an optimizer step that is not complete.
    accumulated: Vec<MicrobatchId>,
    gradient_accumulation_steps: usize,
    /// Contributions carried when each fragment was last averaged; `None` at a joiner before the first time.
    averaged: Vec<Option<u64>>,
    /// The mean of each fragment that came last, as far as it is known: a replica that a mean leaves out follows its
    /// movement.
    references: Vec<[Option<f64>; NUMBERS]>,
    open: Option<Open>,
}

/// The round whose means are awaited.
#[derive(Clone, Debug)]
struct Open {
    round: Round,
    fragment: usize,
    parts: u32,
    numbers: [f64; NUMBERS],
    contributions: u64,
    /// Parts whose mean was applied.
    applied: u32,
}

impl Weights {
    /// The initial weights: every contribution counts.
    pub(super) fn initial(fragments: u32, gradient_accumulation_steps: u64) -> Self {
        let fragments = fragments.max(1) as usize;
        Self {
            by_fragment: vec![[0.0; NUMBERS]; fragments],
            contributions: Vec::new(),
            accumulated: Vec::new(),
            gradient_accumulation_steps: usize::try_from(gradient_accumulation_steps).unwrap_or(usize::MAX),
            averaged: vec![Some(0); fragments],
            references: vec![[None; NUMBERS]; fragments],
            open: None,
        }
    }

    /// Takes the gradients of a microbatch; the last of a step makes the step.
    pub(super) fn contribute(&mut self, microbatch: MicrobatchId) {
        self.accumulated.push(microbatch);
        if self.accumulated.len() >= self.gradient_accumulation_steps {
            self.step();
        }
    }

    /// Makes a step of the contributions that wait for one.
    pub(super) fn step(&mut self) {
        for microbatch in std::mem::take(&mut self.accumulated) {
            self.add(microbatch);
        }
    }

    /// Contributions that wait for the rest of their step.
    pub(super) fn waiting(&self) -> usize {
        self.accumulated.len()
    }

    /// Adds the gradients of a microbatch, which move every number by a different amount.
    fn add(&mut self, microbatch: MicrobatchId) {
        let mut rng = Rng::new(microbatch.0);
        for number in self.by_fragment.iter_mut().flatten() {
            *number += f64::from(u32::try_from(rng.below(1 << 20)).unwrap_or(0));
        }
        self.contributions.push(microbatch);
    }

    /// Whether any number differs from the initial weights.
    pub(super) fn is_trained(&self) -> bool {
        self.by_fragment.iter().flatten().any(|number| *number != 0.0)
    }

    /// Contributions that no round has averaged, of the fragment with the most.
    pub(super) fn unaveraged(&self) -> u64 {
        self.count() - self.averaged_in_full()
    }

    /// The microbatches whose contributions no other replica has: at least one fragment was not averaged with them.
    pub(super) fn own(&self) -> impl Iterator<Item = MicrobatchId> {
        let averaged = usize::try_from(self.averaged_in_full()).unwrap_or(usize::MAX);
        self.contributions.iter().skip(averaged).chain(&self.accumulated).copied()
    }

    fn count(&self) -> u64 {
        self.contributions.len() as u64
    }

    /// Contributions, from the first on, that every fragment was averaged with.
    fn averaged_in_full(&self) -> u64 {
        self.averaged.iter().map(|averaged| averaged.unwrap_or(0)).min().unwrap_or(0)
    }

    // --- Averaging ------------------------------------------------------------------------------------------

    /// Copies a fragment in parts, with the contributions that no mean has carried, and their weight.
    pub(super) fn snapshot(
        &mut self,
        round: Round,
        fragment: FragmentIndex,
        parts: u32,
    ) -> (u64, u64, Vec<Vec<f64>>) {
        let fragment = fragment.0 as usize;
        let (numbers, contributions) = (self.by_fragment[fragment], self.count());
        self.open = Some(Open { round, fragment, parts, numbers, contributions, applied: 0 });
        let carried = self.averaged[fragment];
        let (uncarried, weight) =
            (contributions - carried.unwrap_or(0), carried.map_or(0, |carried| contributions - carried));
        (
            uncarried,
            weight,
            (0..parts).map(|part| numbers[range_of(parts, PartIndex(part))].to_vec()).collect(),
        )
    }

    /// Moves the numbers of a part by the difference of the mean from the copy; a replica whose contribution is not in
    /// the mean moves as far as the mean has moved. `None` if no such round is open.
    pub(super) fn apply(
        &mut self,
        round: Round,
        part: PartIndex,
        mean: &[f64],
        contributed: bool,
    ) -> Option<()> {
        let open = self.open.as_mut().filter(|open| open.round == round)?;
        open.applied += 1;
        let has_own = self.averaged[open.fragment] != Some(open.contributions);
        for (place, mean) in range_of(open.parts, part).zip(mean) {
            let (now, copied) = (&mut self.by_fragment[open.fragment][place], open.numbers[place]);
            let reference = self.references[open.fragment][place].replace(*mean);
            let before = if contributed || !has_own { Some(copied) } else { reference };
            let rests = before.is_some_and(|before| now.to_bits() == before.to_bits());
            *now = if rests { *mean } else { *now + before.map_or(0.0, |before| mean - before) };
        }
        Some(())
    }

    /// Ends a round. `None` if no such round is open.
    pub(super) fn finish(&mut self, round: Round, complete: bool) -> Option<()> {
        let open = self.open.take().filter(|open| open.round == round)?;
        let averaged = &mut self.averaged[open.fragment];
        if complete {
            *averaged = Some(open.contributions);
        } else if open.applied == open.parts {
            averaged.get_or_insert(0);
        }
        Some(())
    }

    /// These weights, with no round open and no step begun.
    pub(super) fn at_rest(self) -> Self {
        Self { open: None, accumulated: Vec::new(), ..self }
    }

    // --- States ---------------------------------------------------------------------------------------------

    /// The bits of every number.
    pub(super) fn words(&self) -> Vec<u64> {
        self.by_fragment.iter().flatten().map(|number| number.to_bits()).collect()
    }

    /// Takes over the numbers of another replica, which counts their contributions.
    pub(super) fn import(&mut self, words: &[u64]) {
        for (number, word) in self.by_fragment.iter_mut().flatten().zip(words) {
            *number = f64::from_bits(*word);
        }
        self.contributions.clear();
        self.accumulated.clear();
        self.averaged.fill(None);
        self.references = self.by_fragment.iter().map(|numbers| numbers.map(Some)).collect();
    }

    /// Length of a state, bytes.
    pub(super) fn bytes(fragments: u32) -> u64 {
        u64::from(fragments.max(1)) * NUMBERS as u64 * WORD_BYTES
    }
}

/// Length of a chunk, bytes.
pub(super) fn chunk_bytes() -> u32 {
    u32::try_from(CHUNK_WORDS as u64 * WORD_BYTES).unwrap_or(u32::MAX)
}

/// The manifest of a state.
pub(super) fn manifest(words: &[u64], version: WeightVersion) -> Manifest {
    Manifest {
        version,
        bytes: words.len() as u64 * WORD_BYTES,
        chunk_bytes: chunk_bytes(),
        hashes: words.chunks(CHUNK_WORDS).map(hash).collect(),
    }
}

/// The projections of every chunk of a state.
pub(super) fn sketch(words: &[u64], seed: SketchSeed) -> Vec<ChunkSketch> {
    (0..).zip(words.chunks(CHUNK_WORDS)).map(|(chunk, words)| projections(words, chunk, seed)).collect()
}

/// Stores words of a state at an offset, bytes.
pub(super) fn store(state: &mut Vec<u64>, offset: u64, words: &[u64]) {
    let first = usize::try_from(offset / WORD_BYTES).unwrap_or(usize::MAX);
    let end = first.saturating_add(words.len());
    state.resize(state.len().max(end), 0);
    state[first..end].copy_from_slice(words);
}

/// The words of a state at an offset.
pub(super) fn words_at(words: &[u64], offset: u64, bytes: u32) -> Vec<u64> {
    let first = usize::try_from(offset / WORD_BYTES).unwrap_or(usize::MAX);
    let count = usize::try_from(u64::from(bytes) / WORD_BYTES).unwrap_or(usize::MAX);
    words.iter().skip(first).take(count).copied().collect()
}

fn range_of(parts: u32, part: PartIndex) -> Range<usize> {
    let (parts, part) = (parts as usize, part.0 as usize);
    NUMBERS * part / parts..NUMBERS * (part + 1) / parts
}

/// How many times as far from the centre as the median contribution one may lie.
pub(super) const REACH: f64 = 4.0;

/// The mean of contributions by weight, number by number. Those that lie far from the others are pulled in, as the
/// production code does it.
pub(super) fn mean<'a>(contributions: impl IntoIterator<Item = (u64, &'a [f64])>) -> Vec<f64> {
    // A run has few microbatches.
    let weight = |weight| f64::from(u32::try_from(weight).unwrap_or(u32::MAX));
    let mut given: Vec<(f64, Vec<f64>)> =
        contributions.into_iter().map(|(said, numbers)| (weight(said), numbers.to_vec())).collect();
    clip(&mut given);
    let weights: f64 = given.iter().map(|(weight, _)| weight).sum();
    let len = given.first().map_or(0, |(_, numbers)| numbers.len());
    let sum = |index: usize| given.iter().map(|(weight, numbers)| weight * numbers[index]).sum::<f64>();
    (0..len).map(|index| sum(index) / weights).collect()
}

/// Centered clipping around the median of all contributions.
fn clip(given: &mut [(f64, Vec<f64>)]) {
    let Some((_, first)) = given.first().filter(|_| given.len() > 2) else { return };
    let centre: Vec<f64> =
        (0..first.len()).map(|index| median(given.iter().map(|(_, numbers)| numbers[index]))).collect();
    let distance = |numbers: &[f64]| {
        numbers.iter().zip(&centre).map(|(number, centre)| (number - centre).powi(2)).sum::<f64>().sqrt()
    };
    let distances: Vec<f64> = given.iter().map(|(_, numbers)| distance(numbers)).collect();
    let typical = median(distances.iter().copied());
    let length = centre.iter().map(|number| number.powi(2)).sum::<f64>().sqrt();
    let typical_each = median(distances.iter().zip(&*given).map(|(distance, (weight, _))| distance / weight));
    for (distance, (weight, numbers)) in distances.into_iter().zip(given) {
        let typical = typical.max(typical_each * *weight);
        let radius = if typical > 0.0 { REACH * typical } else { length };
        if distance > radius {
            let pull = |(number, centre): (&mut f64, &f64)| {
                *number = centre + (*number - centre) * radius / distance;
            };
            numbers.iter_mut().zip(&centre).for_each(pull);
        }
    }
}

/// The middle number, or the mean of the middle two.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match (numbers.get(middle.wrapping_sub(1)), numbers.get(middle)) {
        (Some(below), Some(above)) if numbers.len().is_multiple_of(2) => f64::midpoint(*below, *above),
        (_, middle) => middle.copied().unwrap_or_default(),
    }
}
