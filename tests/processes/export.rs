//! A trained model leaves as a folder for `transformers`, and text comes out of it.

mod reference;

use std::sync::Arc;

use swarmline::checkpoint::{BlockCursor, FORMAT, Manifest, Store};
use swarmline::config::{self, Run};
use swarmline::data::{Batches, Corpus};
use swarmline::report::{Event, ExportReport, GenerateReport};

use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};
use reference::Reference;

/// Tokens of a sequence in the runs of the tests.
const CONTEXT: usize = 32;
const PROMPT: &str = "1: the line";

/// A run of four stages that was trained in one process, saved and exported.
struct Exported {
    folder: RunFolder,
    report: ExportReport,
}

impl Exported {
    fn new(boundary: &'static str, packing: &'static str) -> Self {
        let folder = Recipe { boundary, packing, steps: 60, ..Recipe::exact() }.write();
        let (run, saved) = (folder.run_file(), folder.argument("saved"));
        let mut train = Process::start("train", ["train", "--run", &run, "--save", &saved]);
        assert_eq!(train.end(), 0, "{}", train.errors());
        let to = folder.argument("exported");
        let report = export(&["export", &saved, "--run", &run, "--to", &to]);
        Self { folder, report }
    }

    fn reference(&self) -> Reference {
        Reference::open(&self.folder.file("exported"))
    }

    fn generate(&self, from: &str, more: &[&str]) -> GenerateReport {
        let from = self.folder.argument(from);
        let fixed = ["generate", &from, PROMPT, "--tokens", "16", "--json"];
        let mut generate = Process::start("generate", fixed.iter().chain(more).copied());
        let report = generate.hear("the text", |event| match event {
            Event::Generated(report) => Some(report),
            _ => None,
        });
        assert_eq!(generate.end(), 0, "{}", generate.errors());
        report
    }
}

/// Runs an export to its end.
fn export(arguments: &[&str]) -> ExportReport {
    let mut export = Process::start("export", arguments.iter().copied().chain(["--json"]));
    let report = export.hear("the export", |event| match event {
        Event::Exported(report) => Some(report),
        _ => None,
    });
    assert_eq!(export.end(), 0, "{}", export.errors());
    report
}

/// The held-out loss of the folder by a forward pass that shares nothing with ours, nats a token.
fn reference_loss(exported: &Exported) -> f64 {
    let run = Run::load(&exported.folder.file("run.toml")).unwrap();
    let corpus = Arc::new(Corpus::open(&run, exported.folder.path()).unwrap());
    let (batches, reference) = (Batches::new(&run, corpus), exported.reference());
    let drawn = (0..run.data.heldout_microbatches as u64).flat_map(|index| batches.heldout(index));
    let ids: Vec<u32> = drawn.collect();
    let losses: Vec<f64> = ids.chunks(CONTEXT + 1).flat_map(|ids| reference.losses(ids)).collect();
    losses.iter().sum::<f64>() / losses.len() as f64
}

#[test]
fn the_loss_of_an_exported_model_is_that_of_its_run_by_an_independent_forward_pass_too() {
    for boundary in ["identity", "subspace"] {
        let exported = Exported::new(boundary, "f32");
        let (found, run) = (exported.report.loss.unwrap(), exported.report.loss_of_run.unwrap());
        let reference = reference_loss(&exported);
        assert!(run < 5.0, "{boundary}: the run has learned something, and ends at {run}");
        assert!((found - run).abs() < 1e-5, "{boundary}: {found} where the run has {run}");
        assert!((found - reference).abs() < 1e-5, "{boundary}: {found} where the reference has {reference}");
    }
}

#[test]
fn packing_is_all_that_parts_an_exported_model_from_its_run() {
    let exported = Exported::new("subspace", "q8");
    let (found, run) = (exported.report.loss.unwrap(), exported.report.loss_of_run.unwrap());
    assert!((found - run).abs() < 0.01, "{found} where the run has {run}");
    assert!((found - reference_loss(&exported)).abs() < 1e-5);
}

#[test]
fn greedy_text_is_that_of_an_independent_forward_pass_and_the_same_from_the_saved_stages() {
    let exported = Exported::new("subspace", "f32");
    let report = exported.generate("exported", &[]);
    let prompt: Vec<u32> = PROMPT.bytes().map(u32::from).collect();
    assert_eq!(report.ids, exported.reference().greedy(&prompt, 16));
    let bytes: Vec<u8> = report.ids.iter().map(|&id| id as u8).collect();
    assert_eq!(report.text, String::from_utf8_lossy(&bytes));
    let run = exported.folder.run_file();
    assert_eq!(exported.generate("saved", &["--run", &run]).ids, report.ids);
}

#[test]
fn a_seed_repeats_its_text_and_another_gives_another() {
    let exported = Exported::new("identity", "f32");
    let drawn = |seed| exported.generate("exported", &["--temperature", "1.5", "--seed", seed]).ids;
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn a_run_that_begins_with_an_exported_model_begins_at_its_loss() {
    let exported = Exported::new("identity", "f32");
    let (run, from) = (exported.folder.run_file(), exported.folder.argument("exported"));
    let arguments = ["train", "--run", &run, "--init-from", &from, "--json"];
    let mut train = Process::start("train", arguments);
    let first = train.hear("the first loss", |event| match event {
        Event::Evaluation { done: 0, loss, .. } => Some(loss),
        _ => None,
    });
    let ended = exported.report.loss_of_run.unwrap();
    assert!((first - ended).abs() < 1e-6, "{first} where the model ended at {ended}");
    assert_eq!(train.end(), 0);
}

/// A checkpoint of the saved stages, in the folder `keeper`; returns the name of its folder.
fn write_checkpoint(exported: &Exported) -> String {
    let run = Run::load(&exported.folder.file("run.toml")).unwrap();
    let manifest = config::Manifest::of(&run, exported.folder.path()).unwrap();
    let about = Manifest {
        format: FORMAT,
        run_name: run.name.clone(),
        run_digest: blake3::hash(&manifest.to_bytes()).to_string(),
        run: String::from_utf8(manifest.to_bytes()).unwrap(),
        launch: 1,
        microbatches: 30,
        stages: Vec::new(),
        cursor: vec![BlockCursor { block: 0, leased: 30, injected: 30, settled: 30 }],
        tokenizer: None,
        heldout_loss: Some(2.5),
        heldout_after: Some(30),
        is_final: true,
        is_agreed: false,
    };
    let write = async {
        let mut writer = Store::open(&exported.folder.argument("keeper")).unwrap().begin(30);
        for stage in run.stages() {
            let file = format!("saved/stage-{}.safetensors", stage.0);
            let bytes = std::fs::read(exported.folder.file(file)).unwrap();
            writer.stage(stage.0, 30, bytes.into()).await.unwrap();
        }
        writer.complete(about).await.unwrap()
    };
    tokio::runtime::Runtime::new().unwrap().block_on(write);
    "keeper/checkpoint-000000000030".to_owned()
}

#[test]
fn a_checkpoint_is_exported_by_its_folder_and_as_the_newest_of_its_keeper() {
    let exported = Exported::new("subspace", "f32");
    let checkpoint = write_checkpoint(&exported);
    let run = exported.folder.run_file();
    let again = |from: &str, to: &str, more: &[&str]| {
        let (from, to) = (exported.folder.argument(from), exported.folder.argument(to));
        export(&[&["export", &from, "--to", &to], more].concat())
    };
    let without_text = again("keeper", "of-keeper", &[]);
    assert_eq!((without_text.loss, without_text.loss_of_run), (None, Some(2.5)));
    assert_eq!(without_text.loss_of_run_after, Some(30));
    assert!(without_text.unmeasured.unwrap().contains("--run"));
    let with_text = again(&checkpoint, "of-checkpoint", &["--run", &run]);
    assert_eq!(with_text.loss, exported.report.loss);
    for folder in ["of-keeper", "of-checkpoint"] {
        let weights = |folder| std::fs::read(exported.folder.file(folder).join("model.safetensors")).unwrap();
        assert!(weights(folder) == weights("exported"), "{folder}");
    }
    assert_eq!(exported.generate("keeper", &[]).ids, exported.generate("exported", &[]).ids);
    std::fs::create_dir(exported.folder.file("run.run")).unwrap();
    let keeper = exported.folder.file("keeper");
    std::fs::rename(keeper, exported.folder.file("run.run/checkpoints")).unwrap();
    assert_eq!(again("run.run", "of-run", &[]).loss_of_run, Some(2.5));
}

#[test]
fn a_text_that_cannot_be_generated_leaves_standard_output_empty() {
    let folder = Recipe::exact().write();
    let mut generate = Process::start("generate", ["generate", &folder.argument("nowhere"), PROMPT]);
    assert_eq!(generate.end(), 1);
    assert!(generate.errors().contains("there is no such folder"), "{}", generate.errors());
    assert!(generate.lines().is_empty(), "{:?}", generate.lines());
}
