//! Averaging among engines, and downloads of a state from one engine to another.

use swarmline_kernels::Cpu;
use swarmline_scheduler::averaging::{PartIndex, Round};
use swarmline_scheduler::{MicrobatchId, StageIndex, WeightVersion};

use super::*;
use crate::averaging::reduce;
use crate::config::{Kind, Packing};
use crate::model::SnapshotError;
use crate::model::tests::tiny;
use crate::optim::ImportError;

const LAST: StageIndex = StageIndex(2);
const FRAGMENTS: u32 = 4;

fn run() -> Run {
    let mut run = tiny(Kind::Subspace, Packing::F32);
    run.averaging.fragments = FRAGMENTS;
    run
}

fn engine_of(run: &Run, stage: StageIndex) -> Engine<Cpu> {
    Engine::new(Cpu::new(1).unwrap(), run, stage, 2, Learning::Active).unwrap()
}

/// A replica of the last stage that has learned from these microbatches.
fn trained(microbatches: std::ops::Range<u64>) -> Engine<Cpu> {
    let mut engine = engine_of(&run(), LAST);
    learn(&mut engine, microbatches);
    engine
}

fn learn(engine: &mut Engine<Cpu>, microbatches: std::ops::Range<u64>) {
    let run = run();
    let codec = TokenCodec::new(&run);
    for id in microbatches {
        let ids: Vec<u32> = (0..codec.ids() as u64).map(|i| ((i * 3 + id * 5) % 11) as u32).collect();
        let ids = codec.encode(&ids).unwrap();
        let activation: Vec<u8> = (0..engine.shard().input_codec().byte_len() / 4)
            .flat_map(|i| ((i as f32 + id as f32) * 0.37).sin().to_le_bytes())
            .collect();
        engine.loss_and_backward(MicrobatchId(id), &ids, &activation, Grant::Given).unwrap();
    }
}

fn snapshot(engine: &mut Engine<Cpu>, round: Round) -> (u64, Vec<Bytes>) {
    let job = AveragingJob::Snapshot { round, fragment: round.fragment(FRAGMENTS), parts: 2 };
    match engine.average(job) {
        Ok(Some(AveragingReply::Snapshot { weight, parts, .. })) => (weight, parts),
        other => panic!("no snapshot but {other:?}"),
    }
}

fn average(engines: &mut [Engine<Cpu>], round: Round) {
    let snapshots: Vec<_> = engines.iter_mut().map(|engine| snapshot(engine, round)).collect();
    for part in 0..2 {
        let inputs: Vec<(u64, Bytes)> =
            snapshots.iter().map(|(weight, parts)| (*weight, parts[part as usize].clone())).collect();
        let mean = reduce(&inputs[0].1, &inputs).unwrap();
        for engine in engines.iter_mut() {
            let job =
                AveragingJob::Apply { round, part: PartIndex(part), mean: mean.clone(), contributed: true };
            assert!(matches!(engine.average(job), Ok(Some(AveragingReply::Applied { applied: true, .. }))));
        }
    }
    let finish = AveragingJob::Finish { round, fragment: round.fragment(FRAGMENTS), complete: true };
    for engine in engines {
        assert!(engine.average(finish.clone()).unwrap().is_none());
    }
}

#[test]
fn after_each_fragment_was_averaged_at_rest_replicas_have_one_hash() {
    let mut engines = [trained(0..3), trained(3..5), trained(5..9)];
    let weights: Vec<u64> = engines.iter_mut().map(|engine| snapshot(engine, Round(1)).0).collect();
    assert_eq!(weights, [3, 2, 4]);
    assert_ne!(engines[0].state_hash().unwrap(), engines[1].state_hash().unwrap());
    (8..8 + u64::from(FRAGMENTS)).map(Round).for_each(|round| average(&mut engines, round));
    let hashes: Vec<_> = engines.iter_mut().map(|engine| engine.state_hash().unwrap()).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    assert_eq!(snapshot(&mut engines[0], Round(12)).0, 0, "everything is averaged");
}

#[test]
fn the_rest_of_an_accumulation_is_a_step_of_its_own_and_the_next_round_carries_it() {
    let accumulating = |steps| {
        let mut run = run();
        run.pipeline.gradient_accumulation_steps = steps;
        engine_of(&run, LAST)
    };
    let (mut engine, mut whole) = (accumulating(4), accumulating(3));
    learn(&mut engine, 0..3);
    assert_eq!((engine.statistics().steps, engine.statistics().waiting), (0, 3));
    let before = engine.export_state().unwrap();
    engine.begin_export();
    engine.step_rest().unwrap();
    let copied = engine.export_more(usize::MAX).unwrap().unwrap().into_bytes().unwrap();
    assert!(copied == before, "a copy that was under way is of the state before");
    learn(&mut whole, 0..3);
    assert!(engine.export_state().unwrap() == whole.export_state().unwrap(), "weights, moments and counters");
    assert_eq!((engine.statistics().steps, engine.statistics().waiting), (1, 0));
    assert_eq!(snapshot(&mut engine, Round(1)).0, 3, "its weight in the mean");
    engine.step_rest().unwrap();
    assert!(engine.export_state().unwrap() == whole.export_state().unwrap(), "nothing waits any more");

    let mut control = Engine::new(Cpu::new(1).unwrap(), &run(), LAST, 2, Learning::Frozen).unwrap();
    let initial = control.export_state().unwrap();
    learn(&mut control, 0..3);
    control.step_rest().unwrap();
    assert!(control.export_state().unwrap() == initial, "a frozen stage has nothing to step with");
}

#[test]
fn what_averaging_brings_in_is_recorded() {
    let mut engines = [trained(0..1), trained(1..2)];
    let before = engines[0].shard.parameter_log().count("head");
    average(&mut engines, Round(1));
    assert!(engines[0].shard.parameter_log().count("head") > before);
}

#[test]
fn a_joiner_goes_on_like_its_donor_bit_for_bit() {
    let mut donor = trained(0..7);
    let state = donor.export_state().unwrap();
    assert!(state.len() as u64 <= state_bytes_max(&run(), LAST));
    assert_eq!(donor.export_state().unwrap(), state, "equal states have equal bytes");
    let mut joiner = trained(90..92);
    joiner.import_state(&state, WeightVersion(7)).unwrap();
    assert_eq!(joiner.export_state().unwrap(), state);
    learn(&mut donor, 7..10);
    learn(&mut joiner, 7..10);
    assert_eq!(joiner.state_hash().unwrap(), donor.state_hash().unwrap());
    assert_eq!(snapshot(&mut joiner, Round(1)).0, 0, "the donor counts its contributions");
}

#[test]
fn a_copy_made_in_slices_is_the_state_at_its_beginning_whatever_is_learned_meanwhile() {
    let mut engine = trained(0..3);
    let state = engine.export_state().unwrap();
    for slices in 0..6 {
        let mut engine = trained(0..3);
        engine.begin_export();
        let mut early = (0..slices).filter_map(|_| engine.export_more(1).unwrap());
        assert!(early.next().is_none(), "it has more tensors");
        learn(&mut engine, 3..5);
        average(std::slice::from_mut(&mut engine), Round(1));
        let exported = engine.export_more(usize::MAX).unwrap().unwrap();
        assert_eq!((exported.version.0, exported.into_bytes().unwrap() == state), (3, true), "{slices}");
        assert!(engine.export_more(usize::MAX).unwrap().is_none(), "it is made once");
    }
}

/// Behind a cut that nothing crosses a stage has an anchor with a row for every token.
#[test]
fn a_state_with_a_large_anchor_is_within_the_limit() {
    let mut run = tiny(Kind::None, Packing::F32);
    (run.model.vocab_size, run.model.hidden_size, run.pipeline.replicas) = (15_625, 64, 2);
    for stage in run.stages() {
        let state = engine_of(&run, stage).export_state().unwrap();
        assert!(state.len() as u64 <= state_bytes_max(&run, stage), "{} bytes of {stage}", state.len());
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let mut engine = trained(0..3);
    let before = engine.export_state().unwrap();
    let mut refused = |state: &[u8]| {
        let error = engine.import_state(state, WeightVersion(3)).unwrap_err();
        assert_eq!(engine.export_state().unwrap(), before, "{error}");
        error
    };
    let foreign = engine_of(&run(), StageIndex(1)).export_state().unwrap();
    let error = refused(&foreign);
    assert!(matches!(error, StateError::Snapshot(SnapshotError::Foreign { .. })), "{error}");
    let weights = trained(0..1).shard.snapshot(BTreeMap::new()).unwrap();
    assert!(matches!(refused(&weights), StateError::Counter("steps")));
    for len in [0, 8, 100, before.len() - 1] {
        assert!(matches!(refused(&before[..len]), StateError::Snapshot(SnapshotError::Malformed(_))));
    }
    let other = trained(0..4).export_state().unwrap();
    assert!(matches!(refused(&other), StateError::Steps { named: 3, found: 4 }));
    // The last number is a second moment.
    let mut negative = before.clone();
    let end = negative.len() - 4;
    negative[end..].copy_from_slice(&(-1f32).to_le_bytes());
    assert!(matches!(refused(&negative), StateError::Optimizer(ImportError::Value(_))));
}

#[test]
fn what_a_state_brings_in_is_recorded_even_if_it_is_refused() {
    let mut engine = trained(0..1);
    let foreign = engine_of(&run(), StageIndex(1)).export_state().unwrap();
    engine.import_state(&foreign, WeightVersion(0)).unwrap_err();
    assert_eq!(engine.shard.parameter_log().count("layers.2.attention.wq"), 1);
}

#[test]
fn the_schedule_makes_a_step_when_every_configured_replica_could_have_made_one() {
    let mut run = run();
    run.pipeline.replicas = 4;
    (run.optimizer.warmup_steps, run.optimizer.steps) = (1, 100);
    let weights_at = |clock: Option<u64>| {
        let mut engine = engine_of(&run, LAST);
        clock.into_iter().for_each(|microbatches| engine.set_clock(microbatches));
        learn(&mut engine, 0..1);
        engine.state_hash().unwrap()
    };
    let first_step = weights_at(None);
    assert_eq!([0, 3].map(|microbatches| weights_at(Some(microbatches))), [first_step; 2]);
    assert_ne!(weights_at(Some(4)), first_step);
}

#[test]
fn the_logits_of_a_prediction_are_those_that_the_loss_is_made_of() {
    let mut engine = trained(0..3);
    let codec = TokenCodec::new(&run());
    let text: Vec<u32> = (0..=codec.context() as u32).map(|place| (place * 7 + 2) % 11).collect();
    let ids = codec.encode(&[&text[..], &text].concat()).unwrap();
    let numbers = engine.shard().input_codec().byte_len() / 8;
    let sequence: Vec<u8> =
        (0..numbers).flat_map(|place| (place as f32 * 0.37).sin().to_le_bytes()).collect();
    let activation = [&sequence[..], &sequence].concat();
    let evaluated = engine.evaluate(MicrobatchId(1), &ids, &activation, Upstream::Connected).unwrap();
    let Evaluation::Loss(loss) = evaluated else { panic!("{evaluated:?}") };
    let pass = |position| Pass { number: 0, stage: LAST, position };
    let mut sum = 0.0;
    for (position, &target) in text[1..].iter().enumerate() {
        let bytes = engine.predict(pass(position as u32), &ids, &activation).unwrap();
        let logits: Vec<f64> =
            bytes.as_chunks().0.iter().map(|number| f64::from(f32::from_le_bytes(*number))).collect();
        sum += logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[target as usize];
    }
    assert!((2.0 * sum - loss.sum).abs() < 1e-4, "twice {sum} is not {}", loss.sum);
    let beyond = engine.predict(pass(codec.context() as u32), &ids, &activation);
    assert!(matches!(beyond, Err(EngineError::NoSuchPosition { context: 5, .. })), "{beyond:?}");
}
