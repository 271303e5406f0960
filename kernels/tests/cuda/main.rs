//! The CUDA backend against the CPU backend: on a device where there is one, and anywhere on a driver whose device is
//! the CPU (`kernels/shim`).
//!
//! The latter runs all of the backend and its kernels from the unchanged sources, under the address sanitizer. Not
//! executed there: the instructions `mma.sync` and `ldmatrix` of the kernels with `bf16` in their names (their scalar
//! twins are), cuBLASLt, and faults that only real concurrency shows.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod conformance;

use std::{collections::BTreeMap, env, ffi::OsStr, fs, path::Path, process::Command};

use conformance::{Conformance, Tolerance};
use swarmline_cuda_on_cpu::{BOTH_ORDERS, BREAKS_WITH, DRIVER, LAUNCHED, Library, MEMORY, Sanitizer};
use swarmline_kernels::{Backend, Cuda, Error, Profile, device};

/// Every operation in both profiles.
fn conformance() {
    let repro = &mut Cuda::with_profile(0, Profile::Repro).unwrap();
    let mut suite = Conformance::new(repro);
    suite.run(Tolerance::NONE);
    report("repro", &suite.worst);

    let fast = &mut Cuda::with_profile(0, Profile::Fast).unwrap();
    let mut suite = Conformance::new(fast);
    suite.factors_are_rounded();
    suite.run(Tolerance {
        // Sums of up to 300 exact products in another order.
        product: 2e-5,
        // Sums over 43 keys in another order, exponentials of 2 ulp.
        attention: 1e-6,
        // Rotated queries and keys, values, probabilities and gradients of scores of 2^-9 accuracy, in sums of
        // terms above unit size.
        bf16_attention: 3e-2,
    });
    report("fast", &suite.worst);
}

#[expect(clippy::print_stdout, reason = "shown on request: how close the backend comes")]
fn report(title: &str, worst: &BTreeMap<&str, f64>) {
    for (operation, error) in worst {
        let error = if *error == 0.0 { "equal bits".to_owned() } else { format!("{error:.1e}") };
        println!("{title}: {operation}: {error}");
    }
}

#[test]
fn a_device_does_what_the_cpu_does() {
    match device::cuda_report().usable(0) {
        Ok(()) => conformance(),
        Err(reason) => skipped(&reason.to_string()),
    }
}

#[test]
fn a_device_that_is_the_cpu_does_what_the_cpu_does() {
    let folder = tempfile::tempdir().unwrap();
    let launched = folder.path().join("launched");
    let settings = [(BOTH_ORDERS, OsStr::new("1")), (LAUNCHED, launched.as_os_str())];
    let outside = on_the_cpu("a_device_that_is_the_cpu_does_what_the_cpu_does", &settings, conformance);
    if outside {
        let launched = fs::read_to_string(launched).unwrap();
        let mut kernels = swarmline_cuda_on_cpu::kernels().unwrap();
        kernels.retain(|kernel| !launched.lines().any(|line| line == kernel));
        assert!(kernels.is_empty(), "kernels without a case: {kernels:?}");
    }
}

#[test]
fn a_full_device_says_what_is_needed_and_free() {
    let settings = [(MEMORY, OsStr::new("67108864"))];
    on_the_cpu("a_full_device_says_what_is_needed_and_free", &settings, || {
        let mut cuda = Cuda::new(0).unwrap();
        let kept = cuda.zeros(1 << 20).unwrap();
        let refused = cuda.zeros(1 << 24).unwrap_err();
        let Error::OutOfMemory { needed, free } = refused else { panic!("{refused}") };
        assert_eq!(needed, 1 << 26);
        assert!(free < (1 << 26) - (1 << 22), "{free}");
        // Other buffers keep their numbers, and the memory of a dropped one is free again.
        let again = cuda.zeros(1 << 23).unwrap();
        drop(again);
        cuda.zeros(1 << 23).unwrap();
        let mut seen = vec![1.0; 1 << 20];
        cuda.download(&mut seen, &kept).unwrap();
        assert!(seen.iter().all(|&number| number == 0.0));
    });
}

#[test]
fn a_failing_device_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let fault = folder.path().join("fault");
    on_the_cpu("a_failing_device_is_an_error_and_no_panic", &[(BREAKS_WITH, fault.as_os_str())], || {
        let mut cuda = Cuda::new(0).unwrap();
        let mut x = cuda.zeros(100).unwrap();
        cuda.fill(&mut x, 1.0, 100).unwrap();
        fs::write(env::var_os(BREAKS_WITH).unwrap(), "").unwrap();
        let mut seen = vec![0.0; 100];
        for outcome in [cuda.download(&mut seen, &x), cuda.fill(&mut x, 2.0, 100), cuda.zeros(1).map(drop)] {
            let Err(Error::Device(why)) = outcome else { panic!("{outcome:?}") };
            assert!(why.contains("LAUNCH_FAILED"), "{why}");
        }
        assert!(Cuda::new(0).is_err());
    });
}

#[test]
fn a_driver_that_is_too_old_is_refused() {
    on_the_cpu("a_driver_that_is_too_old_is_refused", &[(DRIVER, OsStr::new("11080"))], || {
        let refused = Cuda::new(0).unwrap_err().to_string();
        assert!(refused.contains("11.8") && refused.contains("12.0"), "{refused}");
    });
}

/// Runs `body` in a process that finds the driver on the CPU. That process runs `test`, which must be the caller, once
/// more. Returns `true` in the outer process after the inner one has passed.
fn on_the_cpu(test: &str, settings: &[(&str, &OsStr)], body: impl FnOnce()) -> bool {
    const INSIDE: &str = "SWARMLINE_TEST_INSIDE";
    if env::var_os(INSIDE).is_some() {
        body();
        return false;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let Some(library) = Library::for_test(folder, Sanitizer::Address) else { return false };
    let run = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .envs(library.environment().unwrap())
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let said = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(run.status.success() && said.contains("1 passed"), "{}\n{said}", run.status);
    told(&said);
    true
}

#[expect(clippy::print_stdout, reason = "shown on request")]
fn told(said: &str) {
    println!("{said}");
}

#[expect(clippy::print_stderr, reason = "a skipped check should be seen")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
