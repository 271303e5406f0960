//! After its first microbatches, a stage allocates no more tensors: scratch and slots are made once. It still allocates
//! codes and gradients to send, and small change of each call.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use allocation_counter::measure;
use swarmline::bench::Size;
use swarmline::config::{Boundary, Kind, Packing, Pipeline, Run};
use swarmline::packing::TokenCodec;
use swarmline::stage::{Engine, Grant, Learning};
use swarmline_kernels::Cpu;
use swarmline_scheduler::{MicrobatchId, StageIndex};

/// Microbatches after which scratch and slots exist.
const FIRST: u64 = 3;
/// Names, lists of parameters and token ids of one microbatch; a single tensor of this model has 128 KiB.
const SMALL_CHANGE: u64 = 32 << 10;

/// The trial model in two stages.
fn run() -> Run {
    let run = Size::T.run();
    let boundary = Boundary { kind: Kind::Subspace, packing: Packing::Q8, ..run.boundary.clone() };
    let pipeline = Pipeline { stages: 2, layers_per_stage: vec![2, 2], ..run.pipeline.clone() };
    Run { boundary, pipeline, ..run }
}

#[test]
fn a_step_asks_for_what_it_hands_over_and_little_else() {
    let run = run();
    let stage =
        |index| Engine::new(Cpu::new(1).unwrap(), &run, StageIndex(index), 2, Learning::Active).unwrap();
    let [mut first, mut last] = [stage(0), stage(1)];
    let codec = TokenCodec::new(&run);
    let ids = (0..codec.ids() as u32).map(|id| id * 7 % run.model.vocab_size as u32).collect::<Vec<_>>();
    let ids = codec.encode(&ids).unwrap();
    for number in 0..2 * FIRST {
        let id = MicrobatchId(number);
        let mut handed_over = 0;
        let asked = measure(|| {
            let code = first.forward(id, &ids, &[]).unwrap();
            let visit = last.loss_and_backward(id, &ids, &code, Grant::Given).unwrap();
            first.backward(id, &visit.gradient, Grant::Given).unwrap();
            handed_over = (code.len() + visit.gradient.len()) as u64;
        });
        let asked = asked.bytes_total;
        assert!(
            number < FIRST || asked <= handed_over + SMALL_CHANGE,
            "{asked} bytes asked for, {handed_over} of them handed over, at {id}"
        );
    }
}
