//! The small runs of the tests, on text of their own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The fields of a run that tests vary.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) stages: usize,
    /// Replicas of each stage.
    pub(crate) replicas: usize,
    pub(crate) mode: &'static str,
    pub(crate) max_in_flight: usize,
    pub(crate) gradient_accumulation_steps: usize,
    pub(crate) steps: u64,
    pub(crate) boundary: &'static str,
    pub(crate) packing: &'static str,
    /// The end of the file, e.g. a section `[policy]`.
    pub(crate) more: String,
}

impl Recipe {
    /// Exact gradients, one microbatch after the other, all numbers in full precision.
    pub(crate) fn exact() -> Self {
        Self {
            stages: 4,
            replicas: 1,
            mode: "synchronous",
            max_in_flight: 1,
            gradient_accumulation_steps: 1,
            steps: 10,
            boundary: "identity",
            packing: "f32",
            more: String::new(),
        }
    }

    /// Eight microbatches in flight; no stage waits for another.
    pub(crate) fn asynchronous() -> Self {
        Self { mode: "asynchronous", max_in_flight: 8, steps: 200, ..Self::exact() }
    }

    /// A run that outlasts any test.
    pub(crate) fn endless() -> Self {
        Self { steps: 1_000_000, ..Self::asynchronous() }
    }

    fn to_toml(&self) -> String {
        let Self {
            stages,
            replicas,
            mode,
            max_in_flight,
            gradient_accumulation_steps,
            steps,
            boundary,
            packing,
            more,
        } = self;
        format!(
            r#"
name = "processes"
seed = 5

[model]
hidden_size = 32
num_hidden_layers = 4
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 32

[pipeline]
stages = {stages}
replicas = {replicas}
mode = "{mode}"
max_in_flight = {max_in_flight}
gradient_accumulation_steps = {gradient_accumulation_steps}

[boundary]
kind = "{boundary}"
rank = 8
packing = "{packing}"

[batch]
sequences = 2

[optimizer]
steps = {steps}
warmup_steps = 2
max_grad_norm_ratio = 0
max_grad_norm = 0
staleness_power = 0

[data]
paths = ["text"]
heldout = 0.2
heldout_microbatches = 2

{more}
"#
        )
    }

    /// Writes run file and text into a folder of their own.
    pub(crate) fn write(&self) -> RunFolder {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        std::fs::create_dir(&text).unwrap();
        for file in 0..8 {
            std::fs::write(text.join(format!("{file}.txt")), rhymes(file)).unwrap();
        }
        std::fs::write(folder.path().join("run.toml"), self.to_toml()).unwrap();
        RunFolder { folder }
    }
}

/// A folder with a run file and its text, deleted on drop.
pub(crate) struct RunFolder {
    folder: TempDir,
}

impl RunFolder {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in this folder.
    pub(crate) fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A path in this folder, as an argument.
    pub(crate) fn argument(&self, name: impl AsRef<Path>) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    /// The run file, as an argument.
    pub(crate) fn run_file(&self) -> String {
        self.argument("run.toml")
    }
}

/// A few kilobytes of learnable text, different for each file.
fn rhymes(file: usize) -> String {
    let words = ["swarm", "line", "stage", "shard", "peer", "weight", "token", "batch"];
    let mut text = String::new();
    for line in 0..120 {
        let word = |step: usize| words[(file + line * step) % words.len()];
        let _ = writeln!(text, "{line}: the {} of a {} knows no {}", word(1), word(3), word(5));
    }
    text
}
