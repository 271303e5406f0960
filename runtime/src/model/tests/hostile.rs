//! Wrong bytes from peers give errors, never panics, and lose no slot.

use swarmline_scheduler::WeightVersion;

use super::{FIRST, KINDS, stage, tiny, tokens};
use crate::config::{Kind, Packing};
use crate::model::{ShardError, Upstream};
use crate::packing::CodeError;

#[test]
fn wrong_lengths_are_errors() {
    for kind in KINDS {
        let run = tiny(kind, Packing::Q8);
        let (mut middle, mut last) = (stage(&run, 1), stage(&run, 2));
        let tokens = tokens(&run, FIRST);
        let right = middle.input_codec().byte_len();
        let wrong_lengths = [0, 1, right / 2, right + 1, right * 4].into_iter().filter(|&len| len != right);
        for len in wrong_lengths {
            let bytes = vec![0; len];
            let is_length = |error: ShardError| {
                assert!(matches!(error, ShardError::Code(CodeError::Length { found, .. }) if found == len));
            };
            is_length(middle.forward(FIRST, WeightVersion(0), &tokens, &bytes).unwrap_err());
            is_length(middle.evaluate(FIRST, &tokens, &bytes).unwrap_err());
            is_length(last.loss_and_backward(FIRST, &tokens, &bytes).unwrap_err());
            is_length(last.evaluate_loss(FIRST, &tokens, &bytes, Upstream::Cut).unwrap_err());
            assert_eq!(middle.free_slots(), 2);
            middle.forward(FIRST, WeightVersion(0), &tokens, &vec![0; right]).unwrap();
            is_length(middle.backward(FIRST, &bytes).unwrap_err());
            assert!(middle.release(FIRST), "a wrong gradient leaves the stash for the right one");
        }
    }
}

#[test]
fn the_embedding_takes_no_code() {
    let run = tiny(Kind::Identity, Packing::F32);
    let error = stage(&run, 0).evaluate(FIRST, &tokens(&run, FIRST), &[0]).unwrap_err();
    assert!(matches!(error, ShardError::Code(CodeError::Length { expected: 0, found: 1 })));
}

#[test]
fn numbers_that_are_not_finite_are_errors() {
    for packing in [Packing::F32, Packing::Bf16, Packing::Q8, Packing::Q4] {
        let run = tiny(Kind::Subspace, packing);
        let (mut middle, tokens) = (stage(&run, 1), tokens(&run, FIRST));
        // All ones is a NaN in every float format, and Q8 and Q4 start a row with a bf16 scale.
        let bytes = vec![0xff; middle.input_codec().byte_len()];
        let is_not_finite = |error: ShardError| {
            assert!(
                matches!(error, ShardError::Code(CodeError::NonFinite { row: 0 })),
                "{packing:?}: {error:?}"
            );
        };
        is_not_finite(middle.forward(FIRST, WeightVersion(0), &tokens, &bytes).unwrap_err());
        assert_eq!(middle.free_slots(), 2);
        let fine = vec![0; bytes.len()];
        middle.forward(FIRST, WeightVersion(0), &tokens, &fine).unwrap();
        is_not_finite(middle.backward(FIRST, &bytes).unwrap_err());
    }
}

#[test]
fn huge_numbers_are_an_error_or_a_finite_loss() {
    let run = tiny(Kind::Identity, Packing::F32);
    let (mut last, tokens) = (stage(&run, 2), tokens(&run, FIRST));
    let bytes = f32::MAX.to_le_bytes().repeat(last.input_codec().byte_len() / 4);
    match last.evaluate_loss(FIRST, &tokens, &bytes, Upstream::Connected) {
        Ok(loss) => assert!(loss.sum.is_finite()),
        Err(error) => assert!(matches!(error, ShardError::NonFiniteLoss)),
    }
}

#[test]
fn a_gradient_without_a_stash_is_refused() {
    let run = tiny(Kind::Subspace, Packing::Q8);
    let mut shard = stage(&run, 0);
    let gradient = vec![0; shard.output_codec().byte_len()];
    assert!(matches!(shard.backward(FIRST, &gradient), Err(ShardError::NotHeld(FIRST))));
}
