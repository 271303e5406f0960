//! Sketches of states, and the choice of the donor of each chunk by them.
//!
//! Replicas that update on their own are never quite alike, so equal digests cannot tell an honest donor from one with a
//! state of its own. But honest replicas are near each other, and a state that is of use to a liar is not. A sketch of a
//! chunk is a few random projections of its numbers: the distance of two sketches estimates that of the chunks. The
//! joiner draws the projections once every donor has named its copy by digests, so no donor can fit a copy to them; and
//! it compares each chunk that arrives with the sketch of its donor.
//!
//! Each chunk comes from a donor that has a majority of the donors near it. Let fewer than half of the donors lie. An
//! honest donor has a majority within the distance that honest donors have from each other, so the nearest majority is
//! no further; and one of every majority is honest. So what a liar can place is as near to the state of an honest replica
//! as honest replicas are to each other, up to [`TOLERANCE`]. Of two donors that differ nothing can be said: the first is
//! believed.
//!
//! The counters of the optimizer are in the header of a state, in its first chunk, and no projection shows them. So the
//! first chunk comes from a donor that has named about as many optimizer steps as the donors with a like chunk did.

use std::fmt;

use crate::WeightVersion;

/// Random projections of a chunk.
pub const SKETCH_NUMBERS: usize = 4;
/// The projections of one chunk.
pub type ChunkSketch = [f32; SKETCH_NUMBERS];
/// Factor on squared distances up to which a chunk comes from the same donor as the others: a sketch is an estimate, and
/// a state from one donor is the state of one moment.
const TOLERANCE: f64 = 16.0;
/// Replicas of different speeds take different numbers of steps: up to this factor, and a few more at the beginning.
const STEPS_FACTOR: u64 = 2;
const STEPS_MORE: u64 = 100;

/// The seed of the projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SketchSeed(pub u64);

/// The secret that a joiner draws its seeds from.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SketchSecret(pub [u8; 32]);

impl fmt::Debug for SketchSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SketchSecret")
    }
}

impl SketchSecret {
    /// The secret of a download, by its number, of a process that makes several.
    #[must_use]
    pub(crate) fn of_download(&self, download: u64) -> Self {
        let mut number = [0; 16];
        number[8..].copy_from_slice(&download.to_be_bytes());
        Self(*blake3::keyed_hash(&self.0, &number).as_bytes())
    }

    /// The seed of a comparison, by its number. Former seeds do not give it away.
    #[must_use]
    pub fn seed(&self, comparison: u64) -> SketchSeed {
        let hash = blake3::keyed_hash(&self.0, &comparison.to_be_bytes());
        SketchSeed(hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }
}

/// For each chunk the index of the donor that gives it: each has named a sketch and a number of steps. Most chunks come
/// from one donor.
pub(super) fn sources(sketches: &[&[ChunkSketch]], steps: &[WeightVersion], chunks: u32) -> Vec<usize> {
    let chunks: Vec<Majorities> =
        (0..chunks as usize).map(|chunk| Majorities::around(sketches, chunk)).collect();
    let fitting = |of: usize| chunks.iter().filter(|chunk| chunk.fits(of)).count();
    // The last of equals is the first here.
    let main = (0..sketches.len()).rev().max_by_key(|&of| fitting(of)).unwrap_or(0);
    let source = |chunk: &Majorities| if chunk.fits(main) { main } else { chunk.nearest };
    let mut sources: Vec<usize> = chunks.iter().map(source).collect();
    if let (Some(source), Some(first)) = (sources.first_mut(), chunks.first()) {
        *source = header_source(*source, first, steps);
    }
    sources
}

/// The donor of the header: `chosen`, unless the donors with a like first chunk have taken far more steps or far fewer.
fn header_source(chosen: usize, first: &Majorities, steps: &[WeightVersion]) -> usize {
    let mut alike: Vec<usize> = (0..steps.len()).filter(|&of| first.fits(of)).collect();
    alike.sort_by_key(|&of| steps[of]);
    let near = |one: WeightVersion, other: WeightVersion| {
        one.0 <= other.0.saturating_mul(STEPS_FACTOR).saturating_add(STEPS_MORE)
    };
    match alike.get(alike.len() / 2) {
        Some(&usual) if alike.len() > 2 => {
            let fits = near(steps[chosen], steps[usual]) && near(steps[usual], steps[chosen]);
            if fits { chosen } else { usual }
        }
        _ => chosen,
    }
}

/// How near a majority of the donors is to each of them, in one chunk.
struct Majorities {
    /// Squared distance within which each donor has a majority, itself included.
    radii: Vec<f64>,
    /// The donor with the least of them.
    nearest: usize,
}

impl Majorities {
    fn around(sketches: &[&[ChunkSketch]], chunk: usize) -> Self {
        let at = |of: usize| sketches[of].get(chunk);
        let radius = |of: usize| {
            let others = (0..sketches.len()).filter(|&other| other != of);
            let mut distances: Vec<f64> = others.map(|other| distance(at(of), at(other))).collect();
            distances.sort_by(f64::total_cmp);
            let needed = sketches.len() / 2;
            needed.checked_sub(1).map_or(0.0, |last| distances[last])
        };
        let radii: Vec<f64> = (0..sketches.len()).map(radius).collect();
        let nearest = (0..radii.len()).min_by(|&a, &b| radii[a].total_cmp(&radii[b])).unwrap_or(0);
        Self { radii, nearest }
    }

    fn fits(&self, of: usize) -> bool {
        self.radii[of] <= TOLERANCE * self.radii[self.nearest]
    }
}

/// Squared distance of two sketches; infinite if one is missing or not finite.
fn distance(a: Option<&ChunkSketch>, b: Option<&ChunkSketch>) -> f64 {
    let (Some(a), Some(b)) = (a, b) else { return f64::INFINITY };
    let squares = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let sum: f64 = squares.sum();
    if sum.is_nan() { f64::INFINITY } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One number for each chunk, in every projection.
    fn sketch(numbers: &[f32]) -> Vec<ChunkSketch> {
        numbers.iter().map(|&number| [number; SKETCH_NUMBERS]).collect()
    }

    fn chosen(states: &[&[f32]]) -> Vec<usize> {
        let sketches: Vec<Vec<ChunkSketch>> = states.iter().map(|state| sketch(state)).collect();
        let chunks = states.iter().map(|state| state.len()).max().unwrap_or(0);
        let sketches: Vec<&[ChunkSketch]> = sketches.iter().map(Vec::as_slice).collect();
        let steps = vec![WeightVersion(9); states.len()];
        sources(&sketches, &steps, u32::try_from(chunks).unwrap())
    }

    #[test]
    fn the_header_comes_from_a_donor_that_took_about_as_many_steps_as_the_others() {
        let state = sketch(&[1.0, 2.0]);
        let header = |steps: &[u64]| {
            let steps: Vec<_> = steps.iter().copied().map(WeightVersion).collect();
            sources(&vec![state.as_slice(); steps.len()], &steps, 2)
        };
        assert_eq!(header(&[1_000, 1_400, 900]), [0, 0]);
        assert_eq!(header(&[u64::MAX, 1_400, 900]), [1, 0]);
        assert_eq!(header(&[0, 1_400, 900]), [2, 0]);
        assert_eq!(header(&[3, 90]), [0, 0], "of two the first is believed");
    }

    #[test]
    fn a_state_comes_from_one_of_the_donors_that_are_alike() {
        assert_eq!(chosen(&[&[1.0, 2.0], &[1.1, 2.1], &[1.2, 1.9]]), [0, 0]);
        assert_eq!(chosen(&[&[9.0, 2.0], &[1.1, 2.1], &[1.2, 1.9]]), [1, 1]);
        assert_eq!(chosen(&[&[9.0; 3], &[1.0; 3], &[f32::NAN; 3], &[1.1; 3], &[0.9; 3]]), [1, 1, 1]);
        assert_eq!(
            chosen(&[&[1.0], &[1.0, 1.0], &[1.0, 1.0]]),
            [1, 1],
            "it shows nothing of the second chunk"
        );
    }

    #[test]
    fn two_liars_that_agree_do_not_prevail_against_three() {
        assert_eq!(chosen(&[&[9.0], &[1.0], &[9.0], &[1.3], &[0.7]]), [1]);
    }

    #[test]
    fn a_liar_that_is_near_one_honest_donor_and_then_near_the_other_places_nothing() {
        // It copies the second donor, then the third, and lies in the last chunk.
        let (liar, second, third) = ([1.0, 5.0, 9.0], [1.0, 2.0, 1.0], [3.0, 5.0, 1.1]);
        let sources = chosen(&[&liar, &second, &third]);
        assert_ne!(sources[2], 0, "the honest donors agree where it lies");
    }

    #[test]
    fn of_two_donors_the_first_is_believed() {
        assert_eq!(chosen(&[&[9.0, 9.0], &[1.0, 1.0]]), [0, 0]);
        assert_eq!(chosen(&[&[9.0]]), [0]);
    }

    #[test]
    fn seeds_of_one_secret_differ() {
        let secret = SketchSecret([7; 32]);
        assert_ne!(secret.seed(0), secret.seed(1));
        assert_ne!(secret.seed(0), SketchSecret::default().seed(0));
    }
}
