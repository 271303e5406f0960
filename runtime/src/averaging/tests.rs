//! The arithmetic of rounds, without a network: the tests pass parts and means from replica to replica.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use swarmline_kernels::{Backend, Cpu, CpuTensor};
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::averaging::{Fault, FragmentIndex, PartIndex, Round};

use super::merge::{shifted, shifted_square};
use super::part::{NUMBER_BYTES, Numbers};
use super::*;
use crate::config::Run;

const TENSORS: [(&str, usize); 4] = [("matrix", 1_003), ("gain", 7), ("short", 20), ("one", 1)];
const FRAGMENTS: u32 = 20;
const PARTS: u32 = 3;

fn fragments(seed: u64) -> Fragments {
    Fragments::new(seed, FRAGMENTS, TENSORS)
}

fn run() -> Run {
    let text =
        "[averaging]\nfragments = 20\n[optimizer]\nbeta1 = 0.9\nbeta2 = 0.95\n[data]\npaths = [\"text\"]\n";
    Run::parse(text, "run.toml", Path::new("")).unwrap()
}

fn part(weights: &[f32], moments1: &[f32], moments2: &[f32]) -> Bytes {
    let [weights, moments1, moments2] = [weights, moments1, moments2].map(<[f32]>::to_vec);
    Numbers { weights, moments1, moments2 }.to_bytes()
}

/// A replica's numbers on a device.
struct Replica {
    cpu: Cpu,
    averager: Averager,
    version: WeightVersion,
    /// For each tensor its weights, first and second moments.
    columns: Vec<[CpuTensor; 3]>,
}

impl Replica {
    fn new(seed: u32) -> Self {
        let mut cpu = Cpu::new(1).unwrap();
        let columns = TENSORS.map(|(_, len)| [0; 3].map(|_| cpu.zeros(len).unwrap())).into();
        let averager = Averager::new(&run(), TENSORS);
        let mut replica = Self { cpu, averager, version: WeightVersion(0), columns };
        replica.learn(seed, 1);
        replica
    }

    /// Changes every number a little, in `steps` steps.
    fn learn(&mut self, seed: u32, steps: u64) {
        for (columns, (_, len)) in self.columns.iter_mut().zip(TENSORS) {
            for (kind, tensor) in columns.iter_mut().enumerate() {
                let mut numbers = vec![0.0; len];
                self.cpu.download(&mut numbers, tensor).unwrap();
                for (i, number) in (0u32..).zip(&mut numbers) {
                    let step = (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) % 1_000;
                    *number += (step as f32 - 500.0 * f32::from(u8::from(kind < 2))) / 7_919.0;
                }
                self.cpu.upload(tensor, &numbers).unwrap();
            }
        }
        self.version.0 += steps;
        self.averager.contributed(steps);
    }

    fn numbers(&mut self) -> Vec<f32> {
        let mut all = Vec::new();
        for (columns, (_, len)) in self.columns.iter().zip(TENSORS) {
            for tensor in columns {
                let mut numbers = vec![0.0; len];
                self.cpu.download(&mut numbers, tensor).unwrap();
                all.extend(numbers);
            }
        }
        all
    }

    fn lent(&mut self) -> (&mut Cpu, Learned<'_, CpuTensor>, &mut Averager) {
        let tensors =
            self.columns.iter_mut().zip(TENSORS).map(|([weight, moment1, moment2], (name, len))| {
                TensorsMut { name, len, weight, moment1, moment2 }
            });
        let learned = Learned { version: self.version, tensors: tensors.collect() };
        (&mut self.cpu, learned, &mut self.averager)
    }

    fn snapshot(&mut self, round: Round) -> FragmentSnapshot {
        let (cpu, learned, averager) = self.lent();
        averager.snapshot(cpu, &learned, round, round.fragment(FRAGMENTS), PARTS).unwrap()
    }

    fn apply(
        &mut self,
        round: Round,
        part: PartIndex,
        mean: &Bytes,
        contributed: bool,
    ) -> Result<(), ApplyError> {
        self.averager.apply(round, part, mean.clone(), contributed)
    }

    fn finish(&mut self, round: Round, complete: bool) {
        let (cpu, mut learned, averager) = self.lent();
        averager.finish(cpu, &mut learned, round, complete, |_, _| {}).unwrap();
    }

    fn join(&mut self) {
        let (cpu, learned, averager) = self.lent();
        averager.joined(cpu, &learned).unwrap();
    }
}

/// The means of a round.
fn means(snapshots: &[FragmentSnapshot]) -> Vec<Bytes> {
    let part = |part: usize| {
        let inputs: Vec<(u64, Bytes)> =
            snapshots.iter().map(|snapshot| (snapshot.weight, snapshot.parts[part].clone())).collect();
        let inputs: Vec<_> = inputs.into_iter().filter(|(weight, _)| *weight > 0).collect();
        reduce(&snapshots[0].parts[part], &inputs).unwrap()
    };
    (0..PARTS as usize).map(part).collect()
}

fn play(replicas: &mut [Replica], round: Round, between: impl Fn(&mut Replica)) {
    let snapshots: Vec<_> = replicas.iter_mut().map(|replica| replica.snapshot(round)).collect();
    let means = means(&snapshots);
    for replica in replicas {
        between(replica);
        for (part, mean) in (0..).zip(&means) {
            replica.apply(round, PartIndex(part), mean, true).unwrap();
        }
        replica.finish(round, true);
    }
}

// --- Fragments ---------------------------------------------------------------------------------------------------

#[test]
fn every_number_is_in_one_fragment_and_one_part() {
    let fragments = fragments(7);
    let mut seen = TENSORS.map(|(_, len)| vec![0; len]);
    for fragment in (0..FRAGMENTS).map(FragmentIndex) {
        let mut numbers = 0;
        for part in (0..PARTS).map(PartIndex) {
            for stretch in fragments.stretches(fragment, PARTS, part) {
                assert!(stretch.positions.is_sorted());
                numbers += stretch.positions.len();
                stretch.positions.iter().for_each(|&position| seen[stretch.tensor][position] += 1);
            }
        }
        assert_eq!(numbers, fragments.len(fragment));
        assert!((50..=54).contains(&numbers), "{numbers} are a fair share");
    }
    assert!(seen.iter().flatten().all(|&count| count == 1));
}

#[test]
fn fragments_follow_from_seed_and_name_and_spread() {
    let positions = |fragments: &Fragments| fragments.stretches(FragmentIndex(3), 1, PartIndex(0));
    assert_eq!(positions(&fragments(7)), positions(&fragments(7)));
    assert_ne!(positions(&fragments(7)), positions(&fragments(8)));
    let renamed = Fragments::new(7, FRAGMENTS, [("other", 1_003)]);
    assert_ne!(positions(&fragments(7))[0], positions(&renamed)[0]);
    let places: BTreeSet<_> =
        positions(&fragments(7))[0].positions.iter().map(|position| position % 20).collect();
    assert!(places.len() > 10, "not one column: {places:?}");
}

proptest! {
    #[test]
    fn parts_fit_their_limit_and_say_their_length(
        lens in prop::collection::vec(0usize..500, 0..6),
        count in 1u32..40,
        bytes_max in 0usize..2_000,
        more in 0u32..5,
    ) {
        let tensors: Vec<(String, usize)> =
            lens.into_iter().enumerate().map(|(i, len)| (format!("t{i}"), len)).collect();
        let fragments = Fragments::new(1, count, tensors.iter().map(|(name, len)| (name.as_str(), *len)));
        let parts = fragments.size(bytes_max).parts_min + more;
        for fragment in (0..count).map(FragmentIndex) {
            for part in (0..parts).map(PartIndex) {
                let bytes = fragments.part_bytes(fragment, parts, part);
                prop_assert!(bytes <= bytes_max.max(NUMBER_BYTES));
                let numbers: usize =
                    fragments.stretches(fragment, parts, part).iter().map(|stretch| stretch.positions.len()).sum();
                prop_assert_eq!(bytes, numbers * NUMBER_BYTES);
            }
        }
    }
}

// --- Means --------------------------------------------------------------------------------------------------

#[test]
fn a_mean_is_weighted_by_contributions() {
    let inputs = [(1, part(&[1.0], &[-4.0], &[0.0])), (3, part(&[5.0], &[0.0], &[8.0]))];
    assert_eq!(reduce(&inputs[0].1, &inputs), Ok(part(&[4.0], &[-1.0], &[6.0])));
}

#[test]
fn equal_inputs_are_their_own_mean() {
    let numbers: Vec<f32> = (1..200u32).map(|i| f32::from_bits(i * 0x0079_3f7d % 0x7f00_0000)).collect();
    let input = part(&numbers, &numbers, &numbers);
    for weights in [[1, 1, 1], [3, 7, 5], [1, 99_991, 1_000_003]] {
        assert_eq!(reduce(&input, &weights.map(|weight| (weight, input.clone()))), Ok(input.clone()));
    }
}

#[test]
fn an_unusable_input_is_named() {
    let good = part(&[1.0], &[1.0], &[1.0]);
    let refused = |bad: Bytes| reduce(&good, &[(1, good.clone()), (1, bad)]).unwrap_err();
    assert_eq!(refused(part(&[f32::NAN], &[1.0], &[1.0])), (1, Fault::NonFinite));
    assert_eq!(refused(part(&[1.0], &[f32::INFINITY], &[1.0])), (1, Fault::NonFinite));
    assert_eq!(refused(part(&[1.0], &[1.0], &[-1.0])), (1, Fault::NonFinite));
    assert_eq!(refused(good.slice(..11)), (1, Fault::Malformed));
    assert_eq!(refused(Bytes::new()), (1, Fault::Malformed));
}

// --- Moves ---------------------------------------------------------------------------------------

#[test]
fn a_late_mean_keeps_what_was_learned_meanwhile() {
    assert_eq!(shifted(1.5, 1.0, 3.0, 1.0), 3.5);
    assert_eq!(shifted(1.5, 1.0, 3.0, 0.25), 2.0);
    assert_eq!(shifted(0.1, 0.1, 0.3, 1.0), 0.3, "the mean itself, where nothing was learned");
}

proptest! {
    #[test]
    fn second_moments_stay_above_zero(
        now in 0f32..1e-3, snapshot in 0f32..1.0, mean in 0f32..1.0, steps in 0i32..40,
    ) {
        let merged = shifted_square(now, snapshot, mean, 0.95f64.powi(steps));
        prop_assert!(merged >= 0.0 && merged.is_finite());
    }
}

#[test]
fn after_a_cycle_at_rest_replicas_are_equal_bit_for_bit() {
    let mut replicas: Vec<Replica> = (1..4).map(Replica::new).collect();
    replicas[1].learn(50, 6);
    let before = replicas[0].numbers();
    for round in (33..33 + u64::from(FRAGMENTS)).map(Round) {
        play(&mut replicas, round, |_| {});
    }
    let numbers: Vec<_> = replicas.iter_mut().map(Replica::numbers).collect();
    assert!(numbers.iter().all(|other| *other == numbers[0]));
    assert!(before.iter().zip(&numbers[0]).all(|(before, after)| before != after), "everything was averaged");
}

#[test]
fn what_is_learned_during_a_round_is_kept() {
    let mut replicas: Vec<Replica> = (1..3).map(Replica::new).collect();
    let mut resting: Vec<Replica> = (1..3).map(Replica::new).collect();
    play(&mut replicas, Round(1), |replica| replica.learn(9, 2));
    play(&mut resting, Round(1), |_| {});
    resting.iter_mut().for_each(|replica| replica.learn(9, 2));
    let (late, first) = (replicas[0].numbers(), resting[0].numbers());
    let mut start = 0;
    for (_, len) in TENSORS {
        let weights = start..start + len;
        for (late, first) in late[weights.clone()].iter().zip(&first[weights]) {
            assert!((late - first).abs() < 1e-6, "{late} instead of {first}");
        }
        start += 3 * len;
    }
    assert_ne!(late, first, "moments have forgotten part of the mean");
}

#[test]
fn a_joiner_has_no_weight_until_a_fragment_was_averaged() {
    let mut joiner = Replica::new(1);
    joiner.join();
    joiner.learn(2, 5);
    assert_eq!(joiner.snapshot(Round(1)).weight, 0);
    joiner.finish(Round(1), false);
    assert_eq!(joiner.snapshot(Round(21)).weight, 0, "an incomplete round does not count");
    joiner.learn(3, 2);
    joiner.finish(Round(21), true);
    assert_eq!(joiner.snapshot(Round(41)).weight, 2, "contributions after the snapshot count");
    assert_eq!(joiner.snapshot(Round(2)).weight, 0, "another fragment");
}

/// Fragment 1 of a replica, with all its weights.
fn weights_of(replica: &mut Replica) -> Vec<f32> {
    let fragments = fragments(run().seed);
    let mut weights = Vec::new();
    for (tensor, (_, len)) in TENSORS.iter().enumerate() {
        let mut numbers = vec![0.0; *len];
        replica.cpu.download(&mut numbers, &replica.columns[tensor][0]).unwrap();
        let stretches = fragments.stretches(FragmentIndex(1), 1, PartIndex(0));
        let here = stretches.into_iter().filter(|stretch| stretch.tensor == tensor);
        weights.extend(here.flat_map(|stretch| stretch.positions).map(|position| numbers[position]));
    }
    weights
}

/// A round whose means go on without the last replica, which learns of them.
fn play_without_the_last(replicas: &mut [Replica], round: Round) -> Vec<Bytes> {
    let snapshots: Vec<_> = replicas.iter_mut().map(|replica| replica.snapshot(round)).collect();
    let others = replicas.len() - 1;
    let means = means(&snapshots[..others]);
    for (index, replica) in replicas.iter_mut().enumerate() {
        for (part, mean) in (0..).zip(&means) {
            replica.apply(round, PartIndex(part), mean, index < others).unwrap();
        }
        replica.finish(round, index < others);
    }
    means
}

#[test]
fn a_replica_that_a_mean_leaves_out_keeps_what_it_learned_and_follows_the_others() {
    let mut replicas: Vec<Replica> = (1..4).map(Replica::new).collect();
    let before = weights_of(&mut replicas[2]);
    let weight = replicas[2].snapshot(Round(1)).weight;
    play_without_the_last(&mut replicas, Round(1));
    assert_eq!(weights_of(&mut replicas[2]), before, "the first mean it knows is where it begins");
    let first = weights_of(&mut replicas[0]);

    replicas[0].learn(5, 1);
    play_without_the_last(&mut replicas, Round(21));
    let second = weights_of(&mut replicas[0]);
    let followed = weights_of(&mut replicas[2]);
    assert_ne!(first, second);
    for ((before, followed), (first, second)) in before.iter().zip(&followed).zip(first.iter().zip(&second)) {
        assert!((followed - (before + second - first)).abs() < 1e-6);
    }
    assert_eq!(replicas[2].snapshot(Round(41)).weight, weight, "its contributions still count");
}

#[test]
fn a_joiner_keeps_what_it_learned_before_its_first_mean() {
    let mut replicas: Vec<Replica> = (0..3).map(|_| Replica::new(7)).collect();
    replicas[2].join();
    let donated = weights_of(&mut replicas[2]);
    replicas[2].learn(8, 3);
    replicas[0].learn(9, 1);
    let learned = weights_of(&mut replicas[2]);
    play_without_the_last(&mut replicas, Round(1));
    let (mean, joiner) = (weights_of(&mut replicas[0]), weights_of(&mut replicas[2]));
    for ((mean, joiner), (learned, donated)) in mean.iter().zip(&joiner).zip(learned.iter().zip(&donated)) {
        assert!((joiner - (mean + learned - donated)).abs() < 1e-6);
    }
    let snapshot = replicas[2].snapshot(Round(21));
    assert_eq!((snapshot.weight, snapshot.uncarried), (3, 3), "from then on its contributions count");
}

#[test]
fn a_round_copies_each_tensor_once_however_many_parts_it_has() {
    let round = Round(1);
    let stretches = fragments(run().seed).stretches(round.fragment(FRAGMENTS), 1, PartIndex(0));
    let touched: BTreeSet<usize> = stretches.iter().map(|stretch| stretch.tensor).collect();
    let bytes: usize = touched.into_iter().map(|tensor| TENSORS[tensor].1 * size_of::<f32>()).sum();
    let mut replicas = vec![Replica::new(1)];
    play(&mut replicas, round, |_| {});
    // Weights and two moments go out for the copy; for the means they go out again and come back.
    assert_eq!(replicas[0].averager.transferred_bytes(), 9 * bytes as u64);
}

#[test]
fn means_of_no_open_round_change_nothing() {
    let mut replica = Replica::new(1);
    let parts = replica.snapshot(Round(4)).parts;
    let before = replica.numbers();
    let first = PartIndex(0);
    let not_open = |outcome| assert!(matches!(outcome, Err(ApplyError::NotOpen)));
    not_open(replica.apply(Round(5), first, &parts[0], true));
    not_open(replica.apply(Round(4), PartIndex(3), &parts[0], true));
    let short = replica.apply(Round(4), first, &parts[0].slice(1..), true);
    assert!(matches!(short, Err(ApplyError::Unusable(Fault::Malformed))));
    let mut poisoned = parts[0].to_vec();
    poisoned[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let poisoned = replica.apply(Round(4), first, &poisoned.into(), true);
    assert!(matches!(poisoned, Err(ApplyError::Unusable(Fault::NonFinite))));
    replica.finish(Round(4), true);
    not_open(replica.apply(Round(4), first, &parts[0], true));
    assert_eq!(replica.numbers(), before);
}
