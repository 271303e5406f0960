//! What a replica has learned, in place of tensors: a few numbers for each index set.

use std::ops::Range;

use crate::averaging::{PartIndex, Round, SetIndex};
use crate::{MicrobatchId, Rng};

/// Numbers of a set: enough for every member of a large stage to own some.
const NUMBERS: usize = 8;

/// The numbers of one replica, and how much it has contributed to them.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    by_set: Vec<[f64; NUMBERS]>,
    contributions: u64,
    /// Contributions when each set was last round; `None` before the first round of a joiner.
    counted: Vec<Option<u64>>,
    open: Option<Open>,
}

/// The round whose means are awaited.
#[derive(Clone, Debug)]
struct Open {
    round: Round,
    set: usize,
    parts: u32,
    numbers: [f64; NUMBERS],
    contributions: u64,
}

impl Weights {
    /// The initial ones: every contribution counts.
    pub(in crate::sim) fn fresh(sets: u32) -> Self {
        let sets = sets as usize;
        let (by_set, counted) = (vec![[0.0; NUMBERS]; sets], vec![Some(0); sets]);
        Self { by_set, contributions: 0, counted, open: None }
    }

    /// Those of another replica: what is in them is counted there.
    pub(in crate::sim) fn joined(&self) -> Self {
        let counted = vec![None; self.by_set.len()];
        Self { by_set: self.by_set.clone(), contributions: 0, counted, open: None }
    }

    /// Adds the gradients of a microbatch, which moves every number by something else.
    pub(in crate::sim) fn contribute(&mut self, microbatch: MicrobatchId) {
        let mut rng = Rng::new(microbatch.0);
        for number in self.by_set.iter_mut().flatten() {
            *number += f64::from(u32::try_from(rng.below(1 << 20)).unwrap());
        }
        self.contributions += 1;
    }

    /// Copies a set in parts, each with the contributions since its last round.
    pub(in crate::sim) fn snapshot(
        &mut self,
        round: Round,
        set: SetIndex,
        parts: u32,
    ) -> (u64, Vec<Vec<f64>>) {
        let set = set.0 as usize;
        let (numbers, contributions) = (self.by_set[set], self.contributions);
        self.open = Some(Open { round, set, parts, numbers, contributions });
        let weight = self.counted[set].map_or(0, |counted| contributions - counted);
        (weight, (0..parts).map(|part| numbers[range_of(parts, PartIndex(part))].to_vec()).collect())
    }

    /// Moves the numbers of a part by what the mean differs from the copy.
    pub(in crate::sim) fn apply(&mut self, round: Round, part: PartIndex, mean: &[f64]) {
        let open = self.open.as_ref().filter(|open| open.round == round).expect("its round is open");
        let range = range_of(open.parts, part);
        assert_eq!(mean.len(), range.len(), "a mean of another part");
        for (place, mean) in range.zip(mean) {
            let (now, before) = (&mut self.by_set[open.set][place], open.numbers[place]);
            let rests = now.to_bits() == before.to_bits();
            *now = if rests { *mean } else { *now + (mean - before) };
        }
    }

    pub(in crate::sim) fn finish(&mut self, round: Round, complete: bool) {
        let open = self.open.take().filter(|open| open.round == round).expect("its round is open");
        if complete {
            self.counted[open.set] = Some(open.contributions);
        }
    }

    /// Every number, bit for bit.
    pub(crate) fn bits(&self) -> Vec<u64> {
        self.by_set.iter().flatten().map(|number| number.to_bits()).collect()
    }
}

fn range_of(parts: u32, part: PartIndex) -> Range<usize> {
    let (parts, part) = (parts as usize, part.0 as usize);
    NUMBERS * part / parts..NUMBERS * (part + 1) / parts
}

/// The mean of shares by weight, number by number.
pub(in crate::sim) fn mean<'a>(shares: impl IntoIterator<Item = (u64, &'a [f64])>) -> Vec<f64> {
    let (mut sums, mut weights) = (Vec::new(), 0.0);
    for (weight, share) in shares {
        let weight = f64::from(u32::try_from(weight).expect("a run has few microbatches"));
        sums.resize(share.len(), 0.0);
        sums.iter_mut().zip(share).for_each(|(sum, number)| *sum += weight * number);
        weights += weight;
    }
    sums.into_iter().map(|sum| sum / weights).collect()
}
