//! Stashes between forward and backward, and gradients that accumulate.

use swarmline_scheduler::WeightVersion;

use super::{Chain, FIRST, KINDS, SECOND, gradients, stage, tiny, tokens, whole};
use crate::config::{Kind, Packing};
use crate::model::ShardError;

#[test]
fn recomputing_gives_the_gradients_of_stashed_activations() {
    for kind in KINDS {
        for packing in [Packing::F32, Packing::Q8] {
            let stashing = tiny(kind, packing);
            let mut recomputing = stashing.clone();
            recomputing.pipeline.activation_checkpointing = true;
            let (mut a, mut b) = (Chain::new(&stashing), Chain::new(&recomputing));
            let tokens = tokens(&stashing, FIRST);
            assert_eq!(a.train(FIRST, &tokens), b.train(FIRST, &tokens));
            assert_eq!(a.gradients(), b.gradients(), "{kind:?} {packing:?}");
        }
    }
}

#[test]
fn a_retained_input_stands_in_for_a_stash() {
    let run = tiny(Kind::Subspace, Packing::Q8);
    let tokens = tokens(&run, FIRST);
    let (mut first, mut stashed, mut last) = (stage(&run, 0), stage(&run, 1), stage(&run, 2));
    let input = first.evaluate(FIRST, &tokens, &[]).unwrap();
    let output = stashed.forward(FIRST, WeightVersion(0), &tokens, &input).unwrap();
    let gradient = last.loss_and_backward(FIRST, &tokens, &output).unwrap().gradient;
    let mut restored = stage(&run, 1);
    assert_eq!(
        restored.backward_from_input(FIRST, &tokens, &input, &gradient).unwrap(),
        stashed.backward(FIRST, &gradient).unwrap().gradient
    );
    assert_eq!(gradients(&mut restored), gradients(&mut stashed));
}

#[test]
fn gradients_of_microbatches_add_up() {
    let run = tiny(Kind::Subspace, Packing::F32);
    let mut shard = whole(&run);
    let mut gradients_of = |microbatches: &[_]| {
        shard.zero_gradients().unwrap();
        for &microbatch in microbatches {
            shard.loss_and_backward(microbatch, &tokens(&run, microbatch), &[]).unwrap();
        }
        gradients(&mut shard)
    };
    let (first, second) = (gradients_of(&[FIRST]), gradients_of(&[SECOND]));
    for (name, both) in gradients_of(&[FIRST, SECOND]) {
        let scale = both.iter().fold(0f32, |scale, number| scale.max(number.abs()));
        for ((both, a), b) in both.iter().zip(&first[&name]).zip(&second[&name]) {
            assert!((both - (a + b)).abs() <= 1e-5 * scale, "{name}: {both} for {a} + {b}");
        }
    }
}

#[test]
fn stashed_microbatches_do_not_disturb_each_other() {
    let run = tiny(Kind::Subspace, Packing::F32);
    let mut interleaved = stage(&run, 0);
    let mut alone = stage(&run, 0);
    let gradient: Vec<u8> = (0..run.tokens_per_microbatch() * run.boundary.rank)
        .flat_map(|i| (i as f32 / 100.0 - 0.2).to_le_bytes())
        .collect();
    for microbatch in [FIRST, SECOND] {
        interleaved.forward(microbatch, WeightVersion(0), &tokens(&run, microbatch), &[]).unwrap();
    }
    for microbatch in [FIRST, SECOND] {
        alone.forward(microbatch, WeightVersion(0), &tokens(&run, microbatch), &[]).unwrap();
        assert_eq!(
            interleaved.backward(microbatch, &gradient).unwrap(),
            alone.backward(microbatch, &gradient).unwrap()
        );
    }
    assert_eq!(gradients(&mut interleaved), gradients(&mut alone));
}

#[test]
fn slots_are_bounded_and_come_back() {
    for checkpointing in [false, true] {
        let mut run = tiny(Kind::Identity, Packing::F32);
        run.pipeline.activation_checkpointing = checkpointing;
        let (mut shard, tokens) = (stage(&run, 0), tokens(&run, FIRST));
        let forward = |shard: &mut crate::model::Shard<_>, id, version| {
            shard.forward(swarmline_scheduler::MicrobatchId(id), WeightVersion(version), &tokens, &[])
        };
        forward(&mut shard, 1, 5).unwrap();
        forward(&mut shard, 2, 6).unwrap();
        assert!(matches!(forward(&mut shard, 3, 7), Err(ShardError::Full { slots: 2 })));
        forward(&mut shard, 1, 8).unwrap();
        assert_eq!(shard.stash_version(FIRST), Some(WeightVersion(8)));
        assert_eq!(shard.free_slots(), 0);
        assert!(shard.release(SECOND));
        assert!(!shard.release(SECOND));
        assert_eq!(shard.free_slots(), 1);
        forward(&mut shard, 3, 9).unwrap();
    }
}
