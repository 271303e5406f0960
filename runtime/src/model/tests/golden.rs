//! The recorded bits of one training step: loss, gradients, and weights after one update.
//!
//! After a change that is meant to show, `SWARMLINE_WRITE_GOLDEN=1 cargo test -p swarmline golden` writes the table
//! beside this file again.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use swarmline_kernels::{Cpu, CpuTensor};
use swarmline_scheduler::StageIndex;

use super::{Chain, FIRST, enlarge, tiny, tokens};
use crate::config::{Kind, Packing, Run};
use crate::model::Shard;
use crate::optim::{Contribution, ParameterMut, StageOptimizer};

/// Environment variable that makes the test write the table instead of comparing with it.
const REWRITE: &str = "SWARMLINE_WRITE_GOLDEN";

#[test]
fn a_step_keeps_its_bits() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/tests/golden.txt");
    if env::var_os(REWRITE).is_some() {
        fs::write(&path, table(1)).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    for threads in [1, 2, 3] {
        assert_eq!(table(threads), expected, "{threads} threads");
    }
}

#[test]
fn a_step_has_the_same_bits_on_narrower_instructions() {
    if env::var_os("SWARMLINE_ISA").is_some() || env::var_os(REWRITE).is_some() {
        return;
    }
    for isa in ["scalar", "avx2"] {
        let outcome = Command::new(env::current_exe().unwrap())
            .arg("a_step_keeps_its_bits")
            .env("SWARMLINE_ISA", isa)
            .output()
            .unwrap();
        assert!(outcome.status.success(), "{isa}: {}", String::from_utf8_lossy(&outcome.stdout));
    }
}

/// Some boundaries, packings and stashes, and a microbatch of more rows than the head takes at once.
fn runs() -> [(&'static str, Run); 5] {
    let mut recomputing = tiny(Kind::Subspace, Packing::Q8);
    recomputing.pipeline.activation_checkpointing = true;
    let mut tall = tiny(Kind::Identity, Packing::F32);
    tall.batch.sequences = 70;
    [
        ("identity_f32", tiny(Kind::Identity, Packing::F32)),
        ("identity_f32_tall", tall),
        ("subspace_q4", tiny(Kind::Subspace, Packing::Q4)),
        ("subspace_q8_recomputed", recomputing),
        ("none", tiny(Kind::None, Packing::Bf16)),
    ]
}

/// A line per run: its name, the loss, digests of gradients and weights.
fn table(threads: usize) -> String {
    let line = |(name, run): (&str, Run)| {
        let mut chain = chain(&run, threads);
        let loss = chain.train(FIRST, &tokens(&run, FIRST));
        let gradients = digest(chain.gradients().values().flatten());
        chain.shards.iter_mut().for_each(|shard| update(shard, &run));
        let weights = chain.shards.iter().flat_map(|shard| shard.params().iter());
        let weights = digest(weights.flat_map(|parameter| parameter.weight.as_slice()));
        format!("{name} loss {:016x} gradients {gradients} weights {weights}\n", loss.sum.to_bits())
    };
    runs().into_iter().map(line).collect()
}

fn chain(run: &Run, threads: usize) -> Chain {
    let shard = |stage| {
        let backend = Cpu::new(threads).unwrap();
        let mut shard = Shard::for_stage(backend, run, StageIndex(stage), 1).unwrap();
        enlarge(&mut shard);
        shard
    };
    Chain { shards: (0..run.pipeline.stages as u16).map(shard).collect() }
}

fn update(shard: &mut Shard<Cpu>, run: &Run) {
    let (backend, params) = shard.backend_and_params();
    let sizes: Vec<(String, usize)> = params.iter().map(|p| (p.name.clone(), p.len())).collect();
    let sizes = sizes.iter().map(|(name, len)| (name.as_str(), *len));
    let mut optimizer = StageOptimizer::new(backend, &run.optimizer, 1, sizes).unwrap();
    let mut parameters: Vec<ParameterMut<'_, CpuTensor>> = params
        .iter_mut()
        .map(|parameter| ParameterMut {
            len: parameter.len(),
            name: &parameter.name,
            weight: &mut parameter.weight,
            gradient: &mut parameter.gradient,
            decays: parameter.decays,
        })
        .collect();
    let contribution = optimizer.contribute(backend, &mut parameters, 2).unwrap();
    assert!(matches!(contribution, Contribution::Stepped { .. }));
}

fn digest<'a>(numbers: impl Iterator<Item = &'a f32>) -> String {
    let mut hasher = blake3::Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
