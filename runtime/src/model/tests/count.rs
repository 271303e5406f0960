//! A shard holds as many parameters as its run counts.

use super::{KINDS, cpu, tiny};
use crate::config::Packing;
use crate::model::{Parameter, Shard};

#[test]
fn a_stage_has_as_many_parameters_as_its_run_counts() {
    for kind in KINDS {
        for vocab_size in [11, 300] {
            let mut run = tiny(kind, Packing::Q8);
            run.model.vocab_size = vocab_size;
            for stage in run.stages() {
                let shard = Shard::for_stage(cpu(), &run, stage, 1).unwrap();
                let held: usize = shard.params().iter().map(Parameter::len).sum();
                assert_eq!(held as u64, run.stage_parameters(stage), "{kind:?}, {stage}");
            }
        }
    }
}
