//! A synchronous swarm and one process compute the same losses and weights, bit for bit.

use crate::gpu::Gpu;
use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};
use crate::swarm::{STAGES, Swarm, account};

#[test]
fn a_swarm_in_full_precision_is_one_process() {
    check(&Recipe::exact());
}

#[test]
fn a_swarm_with_packed_codes_is_one_process() {
    check(&Recipe { boundary: "subspace", packing: "q8", ..Recipe::exact() });
}

#[test]
fn a_swarm_that_accumulates_is_one_process() {
    check(&Recipe { gradient_accumulation_steps: 2, max_in_flight: 2, ..Recipe::exact() });
}

fn check(recipe: &Recipe) {
    check_on(recipe, |_| None);
}

/// Compares a swarm with one process; `gpu` gives the GPU of a stage, if any.
pub(crate) fn check_on<'a>(recipe: &Recipe, gpu: impl Fn(usize) -> Option<&'a Gpu>) {
    let interval = recipe.gradient_accumulation_steps.to_string();
    let every = ["--evaluate-every", interval.as_str()];
    let mut swarm = Swarm::serve_on(recipe, gpu);
    let mut feeder = swarm.start_feeder(&every);
    assert_eq!(feeder.end(), 0);
    let replicas = swarm.end();

    let train = train(&swarm.folder, &every);
    let losses = losses(&train);
    // At the start, after each step, and with the upstream cut.
    assert_eq!(losses.len(), 1 + 10 + 1, "{losses:#?}");
    assert_eq!(self::losses(&feeder), losses);
    for stage in 0..STAGES {
        let name = format!("stage-{stage}.safetensors");
        let weights = std::fs::read(swarm.folder.file(&name)).unwrap();
        let reference = std::fs::read(swarm.folder.file("reference").join(&name)).unwrap();
        assert!(weights == reference, "the weights of stage {stage} differ");
    }

    let account = account(&mut feeder);
    let microbatches = recipe.steps * recipe.gradient_accumulation_steps as u64;
    assert_eq!((account.injected, account.finished), (microbatches, microbatches));
    assert_eq!((account.lost, account.refused, account.ungranted), (0, 0, 0));
    for replica in replicas {
        assert_eq!((replica.steps, replica.staleness_max), (recipe.steps, 0), "{replica:?}");
    }
}

/// Trains the run in one process.
fn train(folder: &RunFolder, every: &[&str]) -> Process {
    let (run_file, save) = (folder.run_file(), folder.argument("reference"));
    let fixed = ["train", "--run", &run_file, "--threads", "1", "--json", "--save", &save];
    let mut train = Process::start("train", fixed.iter().chain(every).copied());
    assert_eq!(train.end(), 0);
    train
}

/// The held-out losses as printed: the shortest digits that give the same number. Parsing would round once more.
fn losses(process: &Process) -> Vec<&str> {
    let evaluations = process.lines().iter().map(String::as_str);
    evaluations.filter(|line| line.contains(r#""event":"evaluation""#)).collect()
}
