//! A replica's side of its rounds: copies go out, means come in.

use bytes::Bytes;
use swarmline_kernels::Backend;
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::averaging::{Fault, FragmentIndex, PartIndex, Round};

use super::contributions::Contributions;
use super::fragments::{Fragments, Stretch, range_of};
use super::merge::{shifted, shifted_square};
use super::part::Numbers;
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

/// Why a mean was not applied. Unless the device failed, the weights are unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The round of the mean is not open here, or has no such part.
    #[error("the mean belongs to no round that is open here")]
    NotOpen,
    /// The mean has another length than the part, or numbers that no replica can have.
    #[error("the mean cannot be used: {0:?}")]
    Unusable(Fault),
    /// The device failed. Some tensors may have moved.
    #[error(transparent)]
    Device(#[from] swarmline_kernels::Error),
}

/// The averaging state of a replica: its fragments, its contributions, and the copy of the open round.
#[derive(Debug)]
pub struct Averager {
    fragments: Fragments,
    fragment_count: u32,
    contributions: Contributions,
    beta1: f64,
    beta2: f64,
    open: Option<Open>,
}

/// The round that waits for its means.
#[derive(Debug)]
struct Open {
    round: Round,
    fragment: FragmentIndex,
    parts: Vec<Bytes>,
    contributions: u64,
    version: WeightVersion,
}

/// A copy of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragmentSnapshot {
    /// Weight of this replica in the mean: its contributions since the fragment's last round.
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
            beta1: f64::from(run.optimizer.beta1),
            beta2: f64::from(run.optimizer.beta2),
            open: None,
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

    /// Notes that a donor's weights have replaced this replica's. That closes an open round; the donor counts the
    /// contributions in its weights.
    pub fn joined(&mut self) {
        self.contributions = Contributions::joined(self.fragment_count);
        self.open = None;
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
        let part = |part| {
            let stretches = self.fragments.stretches(fragment, parts, PartIndex(part));
            Ok(gather(backend, &learned.tensors, &stretches)?.to_bytes())
        };
        let parts = (0..parts).map(part).collect::<swarmline_kernels::Result<Vec<Bytes>>>()?;
        let contributions = self.contributions.total();
        self.open =
            Some(Open { round, fragment, parts: parts.clone(), contributions, version: learned.version });
        Ok(FragmentSnapshot { weight: self.contributions.weight(fragment), parts })
    }

    /// Moves the numbers of `part` by the difference of `mean` from the copy. `recorded` is called with the name and the
    /// mean weights of every tensor that has numbers in the part.
    ///
    /// # Errors
    /// [`ApplyError::NotOpen`] if the open round has no such part; [`ApplyError::Unusable`] if `mean` has another length
    /// than the part, or impossible numbers.
    pub fn apply<B: Backend>(
        &self,
        backend: &mut B,
        learned: &mut Learned<'_, B::Tensor>,
        round: Round,
        part: PartIndex,
        mean: &[u8],
        mut recorded: impl FnMut(&str, &[f32]),
    ) -> Result<(), ApplyError> {
        let open = self.open.as_ref().filter(|open| open.round == round).ok_or(ApplyError::NotOpen)?;
        let snapshot = open.parts.get(part.0 as usize).ok_or(ApplyError::NotOpen)?;
        let parts = u32::try_from(open.parts.len()).unwrap_or(u32::MAX);
        let len = range_of(self.fragments.len(open.fragment), parts, part).len();
        let mean = Numbers::from_bytes(mean, len).map_err(ApplyError::Unusable)?;
        let snapshot = Numbers::from_bytes(snapshot, len).map_err(ApplyError::Unusable)?;
        let stretches = self.fragments.stretches(open.fragment, parts, part);
        let mut rest = mean.weights.as_slice();
        for stretch in &stretches {
            let (weights, others) = rest.split_at(stretch.positions.len());
            rest = others;
            recorded(learned.tensors[stretch.tensor].name, weights);
        }
        let moves =
            Moves { mean: &mean, snapshot: &snapshot, decays: self.decays(open.version, learned.version) };
        Ok(moves.scatter(backend, &mut learned.tensors, &stretches)?)
    }

    /// Closes `round` if it is open. `complete`: the fragment was averaged in full.
    pub fn finish(&mut self, round: Round, complete: bool) {
        if let Some(open) = self.open.take_if(|open| open.round == round)
            && complete
        {
            self.contributions.set_averaged(open.fragment, open.contributions);
        }
    }

    /// `beta1^tau`, `beta2^tau`
    fn decays(&self, before: WeightVersion, now: WeightVersion) -> [f64; 2] {
        let steps = now.0.saturating_sub(before.0) as f64;
        [self.beta1.powf(steps), self.beta2.powf(steps)]
    }
}

/// The numbers at the positions of the stretches.
fn gather<B: Backend>(
    backend: &mut B,
    tensors: &[TensorsMut<'_, B::Tensor>],
    stretches: &[Stretch],
) -> swarmline_kernels::Result<Numbers> {
    let mut numbers = Numbers::default();
    for stretch in stretches {
        let tensor = &tensors[stretch.tensor];
        let mut whole = vec![0.0; tensor.len];
        let columns = [
            (&*tensor.weight, &mut numbers.weights),
            (&*tensor.moment1, &mut numbers.moments1),
            (&*tensor.moment2, &mut numbers.moments2),
        ];
        for (tensor, column) in columns {
            backend.download(&mut whole, tensor)?;
            column.extend(stretch.positions.iter().map(|&position| whole[position]));
        }
    }
    Ok(numbers)
}

/// How a mean moves the numbers of a part.
struct Moves<'a> {
    mean: &'a Numbers,
    snapshot: &'a Numbers,
    decays: [f64; 2],
}

impl Moves<'_> {
    fn scatter<B: Backend>(
        &self,
        backend: &mut B,
        tensors: &mut [TensorsMut<'_, B::Tensor>],
        stretches: &[Stretch],
    ) -> swarmline_kernels::Result<()> {
        let (mean, snapshot, [decay1, decay2]) = (self.mean, self.snapshot, self.decays);
        let mut first = 0;
        for stretch in stretches {
            let tensor = &mut tensors[stretch.tensor];
            let region = Region { positions: &stretch.positions, first, len: tensor.len };
            region.shift(backend, tensor.weight, |i, now| {
                shifted(now, snapshot.weights[i], mean.weights[i], 1.0)
            })?;
            region.shift(backend, tensor.moment1, |i, now| {
                shifted(now, snapshot.moments1[i], mean.moments1[i], decay1)
            })?;
            region.shift(backend, tensor.moment2, |i, now| {
                shifted_square(now, snapshot.moments2[i], mean.moments2[i], decay2)
            })?;
            first += stretch.positions.len();
        }
        Ok(())
    }
}

/// The numbers of a part that lie in one tensor.
struct Region<'a> {
    /// Positions in the tensor, ascending.
    positions: &'a [usize],
    /// Index in the part of the number at the first position.
    first: usize,
    /// Length of the tensor.
    len: usize,
}

impl Region<'_> {
    /// `tensor[position] = rule(index in the part, tensor[position])`
    fn shift<B: Backend>(
        &self,
        backend: &mut B,
        tensor: &mut B::Tensor,
        rule: impl Fn(usize, f32) -> f32,
    ) -> swarmline_kernels::Result<()> {
        let mut whole = vec![0.0; self.len];
        backend.download(&mut whole, tensor)?;
        for (index, &position) in (self.first..).zip(self.positions) {
            whole[position] = rule(index, whole[position]);
        }
        backend.upload(tensor, &whole)
    }
}
