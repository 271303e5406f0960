//! A replica's side of its rounds: copies go out, means come in.

use bytes::Bytes;
use swarmline_kernels::Backend;
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::averaging::{Fault, FragmentIndex, PartIndex, Round};

use super::contributions::Contributions;
use super::fragments::{Fragments, Stretch, range_of};
use super::merge::{shifted, shifted_square};
use super::part::{NUMBER_BYTES, Number, Numbers, PartView};
use super::references::References;
use crate::config::Run;

/// A parameter and its moments on the device, borrowed for one call.
#[derive(Debug)]
pub struct TensorsMut<'a, T> {
    /// Global name of the parameter.
    pub name: &'a str,
    /// Length of each of the three tensors.
    pub len: usize,
    /// The weights.
    pub weight: &'a mut T,
    /// The first moments.
    pub moment1: &'a mut T,
    /// The second moments.
    pub moment2: &'a mut T,
}

/// Weights and moments of a replica, borrowed for one call.
#[derive(Debug)]
pub struct Learned<'a, T> {
    /// Optimizer steps that the weights have taken.
    pub version: WeightVersion,
    /// All tensors of the stage, in the order that [`Averager::new`] got.
    pub tensors: Vec<TensorsMut<'a, T>>,
}

/// Why a mean was not taken. The weights are unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The round of the mean is not open here, or has no such part.
    #[error("the mean belongs to no round that is open here")]
    NotOpen,
    /// The mean has another length than the part, or numbers that no replica can have.
    #[error("the mean cannot be used: {0:?}")]
    Unusable(Fault),
}

/// The averaging state of a replica: its fragments, its contributions, and the copy of the open round.
#[derive(Debug)]
pub struct Averager {
    fragments: Fragments,
    fragment_count: u32,
    contributions: Contributions,
    references: References,
    beta1: f64,
    beta2: f64,
    open: Option<Open>,
    transferred_bytes: u64,
}

/// The round that waits for its means.
#[derive(Debug)]
struct Open {
    round: Round,
    fragment: FragmentIndex,
    copies: Vec<Bytes>,
    /// The means that have arrived, by part.
    means: Vec<Option<Arrived>>,
    contributions: u64,
    version: WeightVersion,
}

/// A mean that waits for the end of its round.
#[derive(Clone, Debug)]
struct Arrived {
    numbers: Bytes,
    /// Whether this replica's contribution is in it.
    contributed: bool,
}

/// A copy of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragmentSnapshot {
    /// Contributions in the copy that no mean of the fragment has carried.
    pub uncarried: u64,
    /// Weight of this replica in the mean: the same, but 0 for a joiner before its first mean of the fragment.
    pub weight: u64,
    /// The parts of the copy, in order.
    pub parts: Vec<Bytes>,
}

impl Averager {
    /// The averager of a stage with the initial weights of `run`. `tensors` are global names and lengths, in the order
    /// of [`Learned::tensors`].
    #[must_use]
    pub fn new<'a>(run: &Run, tensors: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let fragment_count = run.averaging.fragments;
        Self {
            fragments: Fragments::new(run.seed, fragment_count, tensors),
            fragment_count,
            contributions: Contributions::fresh(fragment_count),
            references: References::none(fragment_count),
            beta1: f64::from(run.optimizer.beta1),
            beta2: f64::from(run.optimizer.beta2),
            open: None,
            transferred_bytes: 0,
        }
    }

    /// The fragments of this stage.
    #[must_use]
    pub fn fragments(&self) -> &Fragments {
        &self.fragments
    }

    /// Counts contributions that an optimizer step has put into the weights.
    pub fn contributed(&mut self, contributions: u64) {
        self.contributions.add(contributions);
    }

    /// Bytes of tensors copied from the device and to it, since this averager was made: a round copies each tensor and
    /// its moments once for the snapshot, and once in both directions for its means.
    #[must_use]
    pub fn transferred_bytes(&self) -> u64 {
        self.transferred_bytes
    }

    /// Notes that a donor's weights have replaced this replica's. That closes an open round. The donor counts the
    /// contributions in its weights; this replica counts what it learns from here on.
    ///
    /// # Errors
    /// If the device fails.
    pub fn joined<B: Backend>(
        &mut self,
        backend: &mut B,
        learned: &Learned<'_, B::Tensor>,
    ) -> swarmline_kernels::Result<()> {
        self.contributions = Contributions::joined(self.fragment_count);
        self.open = None;
        self.references = References::none(self.fragment_count);
        for fragment in (0..self.fragment_count).map(FragmentIndex) {
            let stretches = self.fragments.stretches(fragment, 1, PartIndex(0));
            let mut weights = Vec::new();
            for Stretch { tensor, positions } in &stretches {
                let tensor = &learned.tensors[*tensor];
                gather(backend, tensor.weight, tensor.len, positions, &mut weights)?;
            }
            self.references.set(fragment, weights);
        }
        Ok(())
    }

    /// Copies `fragment` as `parts` parts and keeps the copy until [`Averager::finish`]. An older copy is dropped.
    ///
    /// # Errors
    /// If the device fails; no round is open then.
    ///
    /// # Panics
    /// If `learned` has other tensors than [`Averager::new`] got; likewise below.
    pub fn snapshot<B: Backend>(
        &mut self,
        backend: &mut B,
        learned: &Learned<'_, B::Tensor>,
        round: Round,
        fragment: FragmentIndex,
        parts: u32,
    ) -> swarmline_kernels::Result<FragmentSnapshot> {
        self.open = None;
        let mut numbers = Numbers::default();
        for Stretch { tensor, positions } in &self.fragments.stretches(fragment, 1, PartIndex(0)) {
            let tensor = &learned.tensors[*tensor];
            let columns = [
                (&*tensor.weight, &mut numbers.weights),
                (&*tensor.moment1, &mut numbers.moments1),
                (&*tensor.moment2, &mut numbers.moments2),
            ];
            for (values, column) in columns {
                self.transferred_bytes += tensor_bytes(tensor.len);
                gather(backend, values, tensor.len, positions, column)?;
            }
        }
        let len = numbers.weights.len();
        let copies: Vec<Bytes> =
            (0..parts).map(|part| numbers.slice(range_of(len, parts, PartIndex(part))).to_bytes()).collect();
        let (contributions, version) = (self.contributions.total(), learned.version);
        let means = vec![None; copies.len()];
        self.open = Some(Open { round, fragment, copies: copies.clone(), means, contributions, version });
        let (uncarried, weight) =
            (self.contributions.uncarried(fragment), self.contributions.weight(fragment));
        Ok(FragmentSnapshot { uncarried, weight, parts: copies })
    }

    /// Takes the mean of a part. [`Averager::finish`] moves the numbers of all parts at once, so that no tensor is
    /// copied twice. `contributed`: this replica's contribution is in the mean.
    ///
    /// # Errors
    /// [`ApplyError::NotOpen`] if the open round has no such part; [`ApplyError::Unusable`] if `mean` has another
    /// length than the part, or impossible numbers.
    pub fn apply(
        &mut self,
        round: Round,
        part: PartIndex,
        mean: Bytes,
        contributed: bool,
    ) -> Result<(), ApplyError> {
        let open = self.open.as_mut().filter(|open| open.round == round).ok_or(ApplyError::NotOpen)?;
        let copy = open.copies.get(part.0 as usize).ok_or(ApplyError::NotOpen)?;
        Numbers::from_bytes(&mean, copy.len() / NUMBER_BYTES).map_err(ApplyError::Unusable)?;
        open.means[part.0 as usize] = Some(Arrived { numbers: mean, contributed });
        Ok(())
    }

    /// Closes `round` if it is open, and moves the numbers of every part whose mean has arrived. `complete`: the copy
    /// was averaged in full. `recorded` is called with the name and the mean weights of every tensor that moves.
    ///
    /// # Errors
    /// If the device fails; some tensors may have moved.
    pub fn finish<B: Backend>(
        &mut self,
        backend: &mut B,
        learned: &mut Learned<'_, B::Tensor>,
        round: Round,
        complete: bool,
        mut recorded: impl FnMut(&str, &[f32]),
    ) -> swarmline_kernels::Result<()> {
        let Some(open) = self.open.take_if(|open| open.round == round) else { return Ok(()) };
        let was_new = self.contributions.is_new(open.fragment);
        if open.means.iter().any(Option::is_some) {
            self.scatter(backend, learned, &open, &mut recorded)?;
        }
        if complete {
            self.contributions.set_averaged(open.fragment, open.contributions);
        } else if open.means.iter().all(Option::is_some) {
            self.contributions.set_followed(open.fragment);
        }
        if was_new && !self.contributions.is_new(open.fragment) {
            self.references.forget(open.fragment);
        }
        Ok(())
    }

    fn scatter<B: Backend>(
        &mut self,
        backend: &mut B,
        learned: &mut Learned<'_, B::Tensor>,
        open: &Open,
        recorded: &mut impl FnMut(&str, &[f32]),
    ) -> swarmline_kernels::Result<()> {
        let [decay1, decay2] = self.decays(open.version, learned.version);
        let has_own = self.contributions.uncarried_at(open.fragment, open.contributions) > 0;
        let is_new = self.contributions.is_new(open.fragment);
        let movement = Movement::new(open, has_own, is_new);
        let mut first = 0;
        for Stretch { tensor, positions } in &self.fragments.stretches(open.fragment, 1, PartIndex(0)) {
            let tensor = &mut learned.tensors[*tensor];
            let region = Region { positions, first, len: tensor.len };
            let mut means = Vec::new();
            let references = &mut self.references;
            region.shift(backend, tensor.weight, |index, now| {
                let Some(number) = movement.at(index) else { return now };
                means.push(number.mean.weight);
                let reference = references.follow(open.fragment, index, number.mean.weight, number.keeps);
                let before = if number.keeps { reference } else { Some(number.copy.weight) };
                before.map_or(now, |before| shifted(now, before, number.mean.weight, 1.0))
            })?;
            region.shift(backend, tensor.moment1, |index, now| match movement.moments_at(index) {
                Some((copy, mean)) => shifted(now, copy.moment1, mean.moment1, decay1),
                None => now,
            })?;
            region.shift(backend, tensor.moment2, |index, now| match movement.moments_at(index) {
                Some((copy, mean)) => shifted_square(now, copy.moment2, mean.moment2, decay2),
                None => now,
            })?;
            recorded(tensor.name, &means);
            first += positions.len();
            self.transferred_bytes += 6 * tensor_bytes(tensor.len);
        }
        Ok(())
    }

    /// `beta1^tau`, `beta2^tau`
    fn decays(&self, before: WeightVersion, now: WeightVersion) -> [f64; 2] {
        let steps = now.0.saturating_sub(before.0) as f64;
        [self.beta1.powf(steps), self.beta2.powf(steps)]
    }
}

fn tensor_bytes(len: usize) -> u64 {
    len as u64 * 4
}

/// Appends the numbers of a tensor at these positions.
fn gather<B: Backend>(
    backend: &mut B,
    tensor: &B::Tensor,
    len: usize,
    positions: &[usize],
    column: &mut Vec<f32>,
) -> swarmline_kernels::Result<()> {
    let mut whole = vec![0.0; len];
    backend.download(&mut whole, tensor)?;
    column.extend(positions.iter().map(|&position| whole[position]));
    Ok(())
}

/// The mean of a part, and whether this replica is one of its contributors.
type MeanView<'a> = (PartView<'a>, bool);

/// How the means of a round move the numbers of its fragment.
struct Movement<'a> {
    /// By part: where its numbers begin in the fragment, its copy, and its mean if there is one.
    parts: Vec<(usize, PartView<'a>, Option<MeanView<'a>>)>,
    /// The copy has contributions that no mean has carried.
    has_own: bool,
    /// This replica is a joiner whose first mean of the fragment this is: it has no moments of its own to keep.
    is_new: bool,
}

/// A number of a fragment, in the copy and in the mean.
struct Moved {
    copy: Number,
    mean: Number,
    /// The mean lacks what this replica has learned, which must stay.
    keeps: bool,
}

impl<'a> Movement<'a> {
    fn new(open: &'a Open, has_own: bool, is_new: bool) -> Self {
        let mut first = 0;
        let part = |(copy, mean): (&'a Bytes, &'a Option<Arrived>)| {
            let mean = mean.as_ref().map(|mean| (PartView(&mean.numbers), mean.contributed));
            let part = (first, PartView(copy), mean);
            first += PartView(copy).len();
            part
        };
        Self { parts: open.copies.iter().zip(&open.means).map(part).collect(), has_own, is_new }
    }

    /// The number at this index of the fragment; `None` if its part has no mean.
    fn at(&self, index: usize) -> Option<Moved> {
        let part = self.parts.partition_point(|(first, ..)| *first <= index).checked_sub(1)?;
        let (first, copy, mean) = &self.parts[part];
        let (mean, contributed) = mean.as_ref()?;
        let index = index - first;
        Some(Moved { copy: copy.at(index), mean: mean.at(index), keeps: self.has_own && !contributed })
    }

    /// Moments in the copy and in the mean; `None` if they stay as they are.
    fn moments_at(&self, index: usize) -> Option<(Number, Number)> {
        let Moved { copy, mean, keeps } = self.at(index)?;
        (!keeps || self.is_new).then_some((copy, mean))
    }
}

/// The numbers of a fragment that lie in one tensor.
struct Region<'a> {
    /// Positions in the tensor, ascending.
    positions: &'a [usize],
    /// Index in the fragment of the number at the first position.
    first: usize,
    /// Length of the tensor.
    len: usize,
}

impl Region<'_> {
    /// `tensor[position] = rule(index in the fragment, tensor[position])`
    fn shift<B: Backend>(
        &self,
        backend: &mut B,
        tensor: &mut B::Tensor,
        mut rule: impl FnMut(usize, f32) -> f32,
    ) -> swarmline_kernels::Result<()> {
        let mut whole = vec![0.0; self.len];
        backend.download(&mut whole, tensor)?;
        for (index, &position) in (self.first..).zip(self.positions) {
            whole[position] = rule(index, whole[position]);
        }
        backend.upload(tensor, &whole)
    }
}
