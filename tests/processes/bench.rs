//! `bench kernels`: the smallest model from the command line to the file, beside a fake PyTorch. `bench dropout` and
//! `simulate`: a small swarm in virtual time.

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

// --- A swarm in virtual time ------------------------------------------------------------------------------------

#[track_caller]
fn swarmline(arguments: &[&str], code: i32) -> Process {
    let mut process = Process::start("dropout", arguments.iter().copied());
    assert_eq!(process.end(), code, "{arguments:?}: {}", process.errors());
    process
}

fn read(file: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn dropout_of_a_small_swarm_is_a_table_a_file_and_a_picture_and_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let (file, again) = (folder.path().join("result.json"), folder.path().join("again.json"));
    let bench = |file: &Path| {
        let part = ["--shape", "3x2", "--minutes", "3", "--churn", "C0,C10", "--seeds", "11,7930"];
        let written = ["--json", argument(file), "--plot", argument(folder.path())];
        swarmline(&[&["bench", "dropout", "--quick"], &part[..], &written].concat(), 0)
    };
    bench(&file);
    let result = read(&file);
    for (figure, least) in
        [(&result["e1"]["0"], 0.9), (&result["share_of_bound"], 0.9), (&result["e1"]["10"], 0.7)]
    {
        assert!(figure.as_f64().unwrap() > least, "{result:#}");
    }
    assert!(result["e3"]["10"].as_f64().unwrap() > 0.3, "{result:#}");
    for count in ["lost", "duplicates", "ungranted"] {
        assert_eq!(result[count], 0, "{result:#}");
    }
    let cell = &result["routers"]["least-outstanding"]["C10"];
    assert!(cell["seeds"]["7930"]["recovery_p95_s"].as_f64().unwrap() < 15.0, "{cell:#}");
    let losses = cell["median"]["losses"].as_object().unwrap();
    assert!(losses.contains_key("recomputation") && losses.len() == 8, "{cell:#}");
    assert!(std::fs::read_to_string(folder.path().join("dropout-3x2.svg")).unwrap().contains("<polyline"));
    bench(&again);
    assert_eq!(read(&again), result);
}

#[test]
fn a_plan_is_played_and_a_wrong_one_is_refused_with_its_line_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.toml");
    std::fs::write(&plan, "shape = \"2x2\"\nchurn = \"CS\"\nminutes = 2\n").unwrap();
    swarmline(&["simulate", argument(&plan)], 0);
    std::fs::write(&plan, "shape = \"2x2\"\nchurn = \"C0.5\"\n").unwrap();
    let message = swarmline(&["simulate", argument(&plan)], USAGE).errors();
    assert!(
        message.contains("plan.toml:2: `churn` is \"C0.5\"") && message.contains("Write e.g."),
        "{message}"
    );
    let message = swarmline(&["bench", "dropout", "--tier", "r"], USAGE).errors();
    assert!(message.contains("does not exist yet"), "{message}");
}
