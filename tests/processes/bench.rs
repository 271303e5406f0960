//! `bench kernels`: the smallest model from the command line to the file, beside a fake PyTorch.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::process::Process;

const USAGE: i32 = 2;

/// An interpreter that claims to have PyTorch, fails to compile, and reports a made-up speed.
const INTERPRETER: &str = r#"#!/bin/sh
case "$*" in
    -c*) echo 9.9.9 ;;
    *--compile*) echo "no compiler" >&2; exit 1 ;;
    *) echo '{"tokens_per_s": 1.0, "step_s_median": 512.0, "peak_rss_mb": 900, "batch": 16, "params": 217664,
"threads": 1, "loss_first": 5.5, "loss_last": 5.4, "torch": "9.9.9"}' | tr -d '\n' ;;
esac
"#;

#[track_caller]
fn bench(arguments: &[&str], code: i32) -> Process {
    let mut process = Process::start("bench", ["bench", "kernels"].iter().chain(arguments).copied());
    assert_eq!(process.end(), code, "{arguments:?}: {}", process.errors());
    process
}

fn argument(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_smallest_model_is_measured_and_the_file_is_keyed_by_its_letter() {
    let folder = tempfile::tempdir().unwrap();
    let (python, script) = (folder.path().join("python"), folder.path().join("torch_llama.py"));
    std::fs::write(&python, INTERPRETER).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&script, "").unwrap();
    let file = folder.path().join("result.json");
    let beside = ["--against", argument(&script), "--python", argument(&python)];
    let other = ["--config", "t", "--rounds", "2", "--profile", "repro,fast", "--json", argument(&file)];
    bench(&[&beside[..], &other[..]].concat(), 0);

    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let t = &result["t"];
    assert!(t["ratio_to_best_torch"]["repro"].as_f64().unwrap() > 1.0, "{t}");
    assert!(t["ratio_to_torch_f32"].as_f64().unwrap() > 1.0, "{t}");
    assert_eq!(t["profile"], "repro");
    let contest = &t["profiles"]["repro"]["torch"];
    assert_eq!(contest["modes"].as_array().unwrap().len(), 2, "{contest}");
    assert_eq!(contest["left_out"][0]["reason"], "it failed: no compiler");
}

#[test]
fn what_cannot_be_measured_or_written_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let expect = |arguments: &[&str], part: &str| {
        let message = bench(arguments, USAGE).errors();
        assert!(message.contains(part), "{arguments:?} says {message:?} without {part:?}");
        assert!(!message.contains("configuration"), "{arguments:?} was measured: {message:?}");
    };
    let script = folder.path().join("torch_llama.py");
    expect(&["--against", argument(&script)], "torch_llama.py");
    std::fs::write(&script, "").unwrap();
    expect(&["--against", argument(&script), "--python", "no-such-python"], "--python");
    expect(&["--against", argument(&script), "--python", "false"], "pip install torch");
    expect(&["--json", argument(&folder.path().join("no/folder.json"))], "cannot be written");
    expect(&["--json", argument(folder.path())], "is a folder");
    expect(&["--config", "xl"], "possible values");
}
