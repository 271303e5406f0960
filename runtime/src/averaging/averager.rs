//! A replica's side of its rounds: copies go out, means come in.

use bytes::Bytes;
use swarmline_kernels::Backend;
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::averaging::{Fault, PartIndex, Round, SetIndex};

use super::contributions::Ledger;
use super::fragments::{IndexSets, Stretch, range_of};
use super::merge::{shifted, shifted_square};
use super::part::Numbers;
use crate::config::Run;

/// One parameter and its moments on the device, lent for a call.
#[derive(Debug)]
pub struct TensorsMut<'a, T> {
    /// Global name of the parameter.
    pub name: &'a str,
    /// Numbers of each of the three.
    pub len: usize,
    /// The weights.
    pub weight: &'a mut T,
    /// The first moments.
    pub moment1: &'a mut T,
    /// The second moments.
    pub moment2: &'a mut T,
}

/// What a replica has learned, lent for a call.
#[derive(Debug)]
pub struct Learned<'a, T> {
    /// Updates in it.
    pub version: WeightVersion,
    /// All its tensors, in the order the averager was made for.
    pub tensors: Vec<TensorsMut<'a, T>>,
}

/// Why a mean was not applied. Nothing has changed, unless the device failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It belongs to no round that is open here.
    #[error("the mean belongs to no round that is open here")]
    NotOpen,
    /// It is no mean of this part.
    #[error("the mean cannot be used: {0:?}")]
    Unusable(Fault),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] swarmline_kernels::Error),
}

/// What a replica keeps for averaging: its sets, what it has contributed, and the copy of the open round.
#[derive(Debug)]
pub struct Averager {
    sets: IndexSets,
    set_count: u32,
    ledger: Ledger,
    beta1: f64,
    beta2: f64,
    open: Option<Open>,
}

/// The round whose means are awaited.
#[derive(Debug)]
struct Open {
    round: Round,
    set: SetIndex,
    parts: Vec<Bytes>,
    contributions: u64,
    version: WeightVersion,
}

/// A copy of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSnapshot {
    /// Contributions in it since the set's last round.
    pub weight: u64,
    /// Its parts, in order.
    pub parts: Vec<Bytes>,
}

impl Averager {
    /// For a stage of `run` with these tensors (global name and length, in the order in which they will be lent),
    /// whose weights are the run's initial ones.
    #[must_use]
    pub fn new<'a>(run: &Run, tensors: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let set_count = run.averaging.fragments;
        Self {
            sets: IndexSets::new(run.seed, set_count, tensors),
            set_count,
            ledger: Ledger::fresh(set_count),
            beta1: f64::from(run.optimizer.beta1),
            beta2: f64::from(run.optimizer.beta2),
            open: None,
        }
    }

    /// The sets.
    #[must_use]
    pub fn sets(&self) -> &IndexSets {
        &self.sets
    }

    /// As many contributions more are in the weights: an update was taken.
    pub fn contributed(&mut self, contributions: u64) {
        self.ledger.add(contributions);
    }

    /// The weights were replaced by another replica's: an open round is over for this one, and what it has is counted
    /// elsewhere.
    pub fn joined(&mut self) {
        self.ledger = Ledger::joined(self.set_count);
        self.open = None;
    }

    /// Copies `set` as `parts` parts and keeps the copy until [`Averager::finish`]; an older one is dropped.
    ///
    /// # Errors
    /// If the device fails; no round is open then.
    ///
    /// # Panics
    /// If `learned` has other tensors than the averager was made for; likewise below.
    pub fn snapshot<B: Backend>(
        &mut self,
        backend: &mut B,
        learned: &Learned<'_, B::Tensor>,
        round: Round,
        set: SetIndex,
        parts: u32,
    ) -> swarmline_kernels::Result<SetSnapshot> {
        self.open = None;
        let part = |part| {
            let stretches = self.sets.stretches(set, parts, PartIndex(part));
            Ok(gather(backend, &learned.tensors, &stretches)?.to_bytes())
        };
        let parts = (0..parts).map(part).collect::<swarmline_kernels::Result<Vec<Bytes>>>()?;
        let contributions = self.ledger.contributions();
        self.open = Some(Open { round, set, parts: parts.clone(), contributions, version: learned.version });
        Ok(SetSnapshot { weight: self.ledger.weight(set), parts })
    }

    /// Moves the numbers of `part` by what `mean` differs from the copy. `recorded` is told name and weights of every
    /// tensor for which the mean has some.
    ///
    /// # Errors
    /// If there is no such part in the open round, or `mean` has not as many numbers, or impossible ones.
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
        let len = range_of(self.sets.len(open.set), parts, part).len();
        let mean = Numbers::from_bytes(mean, len).map_err(ApplyError::Unusable)?;
        let snapshot = Numbers::from_bytes(snapshot, len).map_err(ApplyError::Unusable)?;
        let stretches = self.sets.stretches(open.set, parts, part);
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

    /// The round is over; `complete` if the set has been round.
    pub fn finish(&mut self, round: Round, complete: bool) {
        if let Some(open) = self.open.take_if(|open| open.round == round)
            && complete
        {
            self.ledger.went_round(open.set, open.contributions);
        }
    }

    /// `beta1^tau`, `beta2^tau`
    fn decays(&self, before: WeightVersion, now: WeightVersion) -> [f64; 2] {
        let updates = now.0.saturating_sub(before.0) as f64;
        [self.beta1.powf(updates), self.beta2.powf(updates)]
    }
}

/// The numbers that the stretches name.
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

/// What a mean does to the numbers of a part.
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
            let at = Place { positions: &stretch.positions, first, len: tensor.len };
            at.shift(backend, tensor.weight, |i, now| {
                shifted(now, snapshot.weights[i], mean.weights[i], 1.0)
            })?;
            at.shift(backend, tensor.moment1, |i, now| {
                shifted(now, snapshot.moments1[i], mean.moments1[i], decay1)
            })?;
            at.shift(backend, tensor.moment2, |i, now| {
                shifted_square(now, snapshot.moments2[i], mean.moments2[i], decay2)
            })?;
            first += stretch.positions.len();
        }
        Ok(())
    }
}

/// Where some numbers of a part lie in a tensor.
struct Place<'a> {
    positions: &'a [usize],
    /// Place of the first of them in the part.
    first: usize,
    /// Numbers of the tensor.
    len: usize,
}

impl Place<'_> {
    /// `tensor[position] = rule(place in the part, tensor[position])`
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
