//! Swarms with replicas on a GPU, or on the library that takes the place of a GPU.

use swarmline::report::Event;
use swarmline_cuda_on_cpu::{BREAKS_WITH, DRIVER, MEMORY};

use crate::gpu::Gpu;
use crate::parity;
use crate::process::Process;
use crate::recipe::Recipe;
use crate::replicas::{
    INTERRUPTED, applied_log_of, assert_disjoint, assert_sound, end_with_equal_weights, recipe, start,
    wait_for, weights_of,
};
use crate::swarm::{Swarm, account, serving};

/// Exit code of a command that failed.
const FAILED: i32 = 1;

#[test]
fn a_swarm_with_stages_on_a_gpu_is_one_process() {
    let Some(gpu) = Gpu::find() else { return };
    let recipe = Recipe { boundary: "subspace", packing: "q8", ..Recipe::exact() };
    // The middle and the head; the first stage and the third compute on the CPU.
    parity::check_on(&recipe, |stage| (stage % 2 == 1).then_some(&gpu));
}

#[test]
fn replicas_on_both_devices_learn_one_stage() {
    let Some(gpu) = Gpu::find() else { return };
    let mut swarm = Swarm::coordinate(&recipe(2, 200));
    let save = [0, 1].map(|index| swarm.folder.argument(weights_of(index)));
    let mut on_gpu = swarm.start_replica_on(&gpu, "on the GPU", &["--save", &save[1]]);
    assert_eq!(serving(&mut on_gpu), 0);
    let mut feeder = swarm.start_feeder(&[]);
    // The CPU is so much faster here that it would leave the other replica nothing to learn.
    wait_for(&mut feeder, 20);
    let mut on_cpu = swarm.start_replica("on the CPU", &["--save", &save[0]]);
    assert_eq!(serving(&mut on_cpu), 0);
    let said = |process: &Process| process.lines().join("\n");
    assert!(said(&on_cpu).contains(r#""device":"cpu","profile":"repro""#), "{}", said(&on_cpu));
    assert!(said(&on_gpu).contains(r#""device":"cuda:0","profile":"fast""#), "{}", said(&on_gpu));
    end_with_equal_weights(&mut swarm, &mut feeder, &mut [on_cpu, on_gpu]);
    let (first, last) = heldout(&feeder);
    assert!(last < first - 0.5, "{first} to {last}: nothing was learned");
}

#[test]
fn a_replica_whose_device_fails_leaves_and_nothing_is_lost() {
    let Some(gpu) = Gpu::find() else { return };
    let mut swarm = Swarm::coordinate(&recipe(2, 1_000_000));
    let fault = swarm.folder.file("fault");
    let gpu = gpu.with(BREAKS_WITH, &fault);
    let log = swarm.folder.argument(applied_log_of(1));
    let mut failing = swarm.start_replica_on(&gpu, "on the GPU", &["--applied-log", &log]);
    let mut sound = start(&swarm, 0);
    assert_eq!((serving(&mut failing), serving(&mut sound)), (0, 0));
    let mut feeder = swarm.start_feeder(&[]);
    failing.hear("that it has learned", |event| match event {
        Event::Replica(report) => (report.done > 0).then_some(()),
        _ => None,
    });
    std::fs::write(fault, "").unwrap();
    assert_eq!(failing.end(), FAILED);
    assert!(failing.errors().contains("CUDA_ERROR_LAUNCH_FAILED"), "{}", failing.errors());
    let moment = sound.moment();
    sound.hear_since(moment, "that it goes on", |event| match event {
        Event::Replica(report) => (report.done > 20).then_some(()),
        _ => None,
    });
    wait_for(&mut feeder, 100);
    feeder.interrupt();
    assert_eq!(feeder.end(), INTERRUPTED);
    assert_sound(&account(&mut feeder));
    sound.interrupt();
    assert_eq!(sound.end(), 0, "{}", sound.errors());
    swarm.coordinator.interrupt();
    assert_eq!(swarm.coordinator.end(), INTERRUPTED);
    assert_disjoint(&swarm, 2);
}

#[test]
fn a_device_without_room_is_refused_with_what_is_missing() {
    let Some(gpu) = Gpu::find() else { return };
    let gpu = gpu.with(MEMORY, "100000");
    let swarm = Swarm::coordinate(&Recipe::exact());
    let mut replica = swarm.start_replica_on(&gpu, "on a small GPU", &[]);
    assert_eq!(replica.end(), FAILED);
    let errors = replica.errors();
    assert!(errors.contains("bytes needed") && errors.contains("bytes free"), "{errors}");
}

#[test]
fn the_doctor_lists_the_gpu_and_refuses_an_old_driver() {
    let Some(gpu) = Gpu::find() else { return };
    let mut doctor = gpu.start("doctor", ["doctor", "--json"]);
    assert_eq!(doctor.end(), 0, "{}", doctor.errors());
    let found = &doctor.lines()[0];
    assert!(found.contains(r#""auto":"cuda:0""#) && found.contains("CPU in place of a GPU"), "{found}");
    let old = gpu.with(DRIVER, "11080");
    let mut doctor = old.start("doctor", ["doctor", "--json"]);
    assert_eq!(doctor.end(), 0, "{}", doctor.errors());
    let found = &doctor.lines()[0];
    assert!(
        found.contains(r#""auto":"cpu""#) && found.contains("speaks CUDA 11.8, 12.0 is needed"),
        "{found}"
    );
}

/// The first and the last held-out loss that the feeder measured.
fn heldout(feeder: &Process) -> (f64, f64) {
    let loss = |line: &String| match serde_json::from_str(line).ok()? {
        Event::Evaluation { loss, upstream_cut: false, .. } => Some(loss),
        _ => None,
    };
    let losses: Vec<f64> = feeder.lines().iter().filter_map(loss).collect();
    (losses[0], losses[losses.len() - 1])
}
