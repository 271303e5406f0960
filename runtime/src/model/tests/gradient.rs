//! The hand-written backward pass against fourth-order central differences of the loss.

use swarmline_kernels::Cpu;

use super::{FIRST, KINDS, gradients, tiny, tokens, whole};
use crate::config::{Packing, Run};
use crate::model::{Shard, Upstream};
use crate::packing::Tokens;

const STEP: f32 = 1e-3;

/// Tolerance as a share of the largest entry of the parameter's gradient.
const TOLERANCE: f64 = 0.004;
/// Tolerance for the rounding of the loss, divided by the step.
const TOLERANCE_ABSOLUTE: f64 = 3e-4;

#[test]
fn every_parameter_has_the_gradient_of_finite_differences() {
    for kind in KINDS {
        for kv_heads in [4, 2, 1] {
            let mut run = tiny(kind, Packing::F32);
            run.model.num_key_value_heads = kv_heads;
            check(&run);
        }
    }
}

fn check(run: &Run) {
    let (mut shard, tokens) = (whole(run), tokens(run, FIRST));
    shard.loss_and_backward(FIRST, &tokens, &[]).unwrap();
    for (name, gradient) in gradients(&mut shard) {
        let largest =
            (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
        let bound = TOLERANCE * f64::from(gradient[largest].abs()) + TOLERANCE_ABSOLUTE;
        for entry in [largest, gradient.len() / 3, gradient.len() * 2 / 3] {
            let expected = difference(&mut shard, &tokens, &name, entry);
            let found = f64::from(gradient[entry]);
            assert!(
                (found - expected).abs() <= bound,
                "{:?}, {} key-value heads: {name}[{entry}] is {found}, finite differences say {expected}",
                run.boundary.kind,
                run.model.num_key_value_heads,
            );
        }
    }
}

fn difference(shard: &mut Shard<Cpu>, tokens: &Tokens, name: &str, entry: usize) -> f64 {
    let original = shard.download(name).unwrap().unwrap();
    let mut loss_at = |offset: f32| {
        let mut moved = original.clone();
        moved[entry] += offset;
        shard.upload(name, &moved).unwrap();
        let loss = shard.evaluate_loss(FIRST, tokens, &[], Upstream::Connected).unwrap();
        (loss.sum / f64::from(loss.tokens), f64::from(moved[entry]))
    };
    let mut slope_over = |step: f32| {
        let (above, below) = (loss_at(step), loss_at(-step));
        (above.0 - below.0) / (above.1 - below.1)
    };
    // Richardson's extrapolation: a norm over a short stream bends the loss too much for one step.
    let slope = (4.0 * slope_over(STEP) - slope_over(2.0 * STEP)) / 3.0;
    shard.upload(name, &original).unwrap();
    slope
}
