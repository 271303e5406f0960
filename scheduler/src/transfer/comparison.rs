//! Donors that a joiner compares before it takes a state.

use std::collections::BTreeSet;

use crate::Instance;

use super::manifest::Manifest;
use super::sketch::{ChunkSketch, SketchSeed, sources};
use super::{StateId, TransferMessage};

/// Donors that a joiner compares at most. Each copies its state for it.
pub const COMPARED_MAX: usize = 5;

/// A copy that a donor has named by its digests.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) donor: Instance,
    pub(super) state: StateId,
    pub(super) manifest: Manifest,
    /// What the donor says the projections of its chunks are; empty if it was compared with no other.
    pub(super) sketch: Vec<ChunkSketch>,
}

/// The donors asked, the preferred first.
#[derive(Debug)]
pub(super) struct Comparison {
    waiting: Vec<Instance>,
    offered: Vec<Source>,
    /// Drawn once every donor has named its copy.
    seed: Option<SketchSeed>,
    order: Vec<Instance>,
}

/// The copies that are compared, and the one that each chunk comes from.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) copies: Vec<Source>,
    /// By chunk the index in `copies`.
    pub(super) by_chunk: Vec<usize>,
    /// `None` if there was one copy only.
    pub(super) seed: Option<SketchSeed>,
}

impl Comparison {
    pub(super) fn of(donors: Vec<Instance>) -> Self {
        Self { waiting: donors.clone(), offered: Vec::new(), seed: None, order: donors }
    }

    /// The donors that have not answered the latest request.
    pub(super) fn waiting(&self) -> &[Instance] {
        &self.waiting
    }

    pub(super) fn has_offers(&self) -> bool {
        !self.offered.is_empty()
    }

    pub(super) fn contains(&self, donor: Instance) -> bool {
        self.waiting.contains(&donor) || self.offered.iter().any(|source| source.donor == donor)
    }

    pub(super) fn donors(&self) -> impl Iterator<Item = Instance> {
        let offered = self.offered.iter().map(|source| source.donor);
        self.waiting.iter().copied().chain(offered).collect::<BTreeSet<_>>().into_iter()
    }

    /// Leaves a donor out. Returns its copy.
    pub(super) fn leave_out(&mut self, donor: Instance) -> Option<StateId> {
        self.waiting.retain(|waiting| *waiting != donor);
        let at = self.offered.iter().position(|source| source.donor == donor)?;
        Some(self.offered.remove(at).state)
    }

    /// A donor names its copy; false if it was not asked to.
    pub(super) fn offer(&mut self, donor: Instance, state: StateId, manifest: Manifest) -> bool {
        let asked = self.seed.is_none() && self.answer(donor);
        if asked {
            self.offered.push(Source { donor, state, manifest, sketch: Vec::new() });
        }
        asked
    }

    /// A donor says what the projections of its chunks are.
    pub(super) fn sketch(
        &mut self,
        donor: Instance,
        state: StateId,
        seed: SketchSeed,
        sketch: Vec<ChunkSketch>,
    ) {
        let known = |source: &&mut Source| source.donor == donor && source.state == state;
        if self.seed == Some(seed)
            && let Some(source) = self.offered.iter_mut().find(known)
        {
            source.sketch = sketch;
            self.answer(donor);
        }
    }

    fn answer(&mut self, donor: Instance) -> bool {
        let asked = self.waiting.contains(&donor);
        self.waiting.retain(|waiting| *waiting != donor);
        asked
    }

    /// Whether the sketches must be requested now: the donors have named their copies, and there is more than one.
    pub(super) fn needs_sketches(&self) -> bool {
        self.seed.is_none() && self.waiting.is_empty() && self.offered.len() > 1
    }

    /// Draws the projections. Copies of another shape than most have are left out, and returned.
    pub(super) fn draw(&mut self, seed: SketchSeed) -> Vec<Source> {
        let order = &self.order;
        self.offered.sort_by_key(|source| order.iter().position(|donor| *donor == source.donor));
        let shape = |source: &Source| (source.manifest.bytes, source.manifest.chunk_bytes);
        let alike = |of: &Source| self.offered.iter().filter(|source| shape(source) == shape(of)).count();
        // The last of equals is the first here.
        let usual = self.offered.iter().rev().max_by_key(|source| alike(source)).map(shape);
        let others = self.offered.extract_if(.., |source| Some(shape(source)) != usual).collect();
        self.waiting = self.offered.iter().map(|source| source.donor).collect();
        self.seed = Some(seed);
        others
    }

    /// The requests that are not answered.
    pub(super) fn requests(&self) -> impl Iterator<Item = (Instance, TransferMessage)> {
        self.waiting.iter().map(|&donor| (donor, self.request(donor)))
    }

    fn request(&self, donor: Instance) -> TransferMessage {
        let copy = self.offered.iter().find(|source| source.donor == donor);
        match (self.seed, copy) {
            (Some(seed), Some(copy)) => TransferMessage::SketchRequest { state: copy.state, seed },
            _ => TransferMessage::Request,
        }
    }

    /// The choice, once all have answered; `None` before, and if no donor is left.
    pub(super) fn choose(&mut self) -> Option<Choice> {
        if !self.waiting.is_empty() || self.needs_sketches() {
            return None;
        }
        let copies = std::mem::take(&mut self.offered);
        let chunks = copies.first()?.manifest.chunks();
        let sketches: Vec<&[ChunkSketch]> = copies.iter().map(|copy| copy.sketch.as_slice()).collect();
        let steps: Vec<_> = copies.iter().map(|copy| copy.manifest.version).collect();
        let by_chunk = sources(&sketches, &steps, chunks);
        Some(Choice { copies, by_chunk, seed: self.seed })
    }
}
