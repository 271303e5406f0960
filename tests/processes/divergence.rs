//! A run whose numbers are not finite any more is over, and every process says so.

use std::path::Path;

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{STAGES, Swarm};

const FAILED: i32 = 1;

#[test]
fn a_run_that_diverges_ends_at_every_member_and_leaves_no_unusable_file() {
    let recipe = Recipe::asynchronous();
    let mut swarm = Swarm::coordinate(&recipe);
    let saved = swarm.folder.argument("saved");
    let mut train = Process::start("train", ["train", "--run", &short(&swarm), "--save", &saved]);
    assert_eq!(train.end(), 0, "{}", train.errors());
    let beyond = swarm.folder.argument("saved/stage-2.safetensors");
    fill(Path::new(&beyond), 1e30);

    for stage in 0..STAGES {
        let save = swarm.folder.argument(format!("end-{stage}"));
        let resume = ["--resume", &beyond];
        let resume = if stage == 2 { &resume[..] } else { &[] };
        swarm.join(&[&["--save", &save], resume].concat());
    }
    let mut feeder = swarm.start_feeder(&[]);
    expect_divergence(&mut feeder);
    expect_divergence(&mut swarm.coordinator);
    for (stage, replica) in swarm.replicas.iter_mut().enumerate() {
        expect_divergence(replica);
        assert!(!swarm.folder.file(format!("end-{stage}")).exists(), "stage {stage} saved its weights");
    }
}

/// The run file of a short training with the same model.
fn short(swarm: &Swarm) -> String {
    let text = std::fs::read_to_string(swarm.folder.run_file()).unwrap();
    let path = swarm.folder.argument("short.toml");
    std::fs::write(&path, text.replace("steps = 200", "steps = 2")).unwrap();
    path
}

/// Fills all tensors of a safetensors file with one number.
fn fill(path: &Path, number: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let numbers = &mut bytes[8 + usize::try_from(header).unwrap()..];
    numbers.chunks_exact_mut(4).for_each(|chunk| chunk.copy_from_slice(&number.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[track_caller]
fn expect_divergence(process: &mut Process) {
    assert_eq!(process.end(), FAILED, "{}", process.errors());
    let message = process.errors();
    assert!(message.contains("diverged at microbatch "), "{message:?}");
    assert!(message.contains("optimizer.learning_rate"), "{message:?}");
}
